//! What the flags of LLaVA's and Imp's training programs are called here. The programs take most of them from Hugging Face's
//! Trainer. Independent of how scripts are read and pipelines written.

/// What becomes of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A number, a word or a truth value of the training stage, under this name.
    Training(&'static str),
    /// The same of the training stage and of its `preprocess` stage.
    Both(&'static str),
    /// Used in another way by `pipeline.rs`.
    Known,
    /// Nothing has to be said for it here. Why.
    Nothing(&'static str),
    /// What one has to decide in its place.
    Yours(&'static str),
}

use Meaning::{Both, Known, Nothing, Training, Yours};

const MEMORY: &str = "the memory is planned by imp-flow; `runtime.micro_batch_size` limits what is computed at once";
const OUTPUT: &str = "results are below artifacts/, checkpoints in the cache";
const MEASURED: &str = "a held-out loss takes `eval_steps` and the input `validation`";
const LOGS: &str = "figures are in metrics.jsonl, TensorBoard files and the report page";
const LOADER: &str = "records are read from a memory map";
const ROUNDING: &str = "`precision` says how products are computed";

/// Flags, and what becomes of them.
const FLAGS: &[(&str, Meaning)] = &[
    ("model_name_or_path", Known),
    ("version", Known),
    ("data_path", Known),
    ("image_folder", Known),
    ("vision_tower", Known),
    ("pretrain_mm_mlp_adapter", Known),
    ("tune_mm_mlp_adapter", Known),
    ("lora_enable", Known),
    ("lora_r", Known),
    ("lora_alpha", Known),
    ("lora_dropout", Known),
    ("bf16", Known),
    ("fp16", Known),
    ("per_device_train_batch_size", Known),
    ("gradient_accumulation_steps", Known),
    ("mm_projector_type", Known),
    ("mm_vision_select_layer", Known),
    ("mm_projector_lr", Known),
    ("lr_scheduler_type", Known),
    ("max_steps", Known),
    ("seed", Known),
    ("bits", Known),
    ("mm_use_im_start_end", Known),
    ("mm_use_im_patch_token", Known),
    ("image_aspect_ratio", Known),
    ("num_train_epochs", Training("epochs")),
    ("learning_rate", Training("learning_rate")),
    ("weight_decay", Training("weight_decay")),
    ("warmup_ratio", Training("warmup_ratio")),
    ("warmup_steps", Training("warmup_steps")),
    ("adam_beta1", Training("adam_beta1")),
    ("adam_beta2", Training("adam_beta2")),
    ("adam_epsilon", Training("adam_epsilon")),
    ("max_grad_norm", Training("max_grad_norm")),
    ("neftune_noise_alpha", Training("neftune_noise_alpha")),
    ("group_by_modality_length", Training("group_by_modality_length")),
    ("model_max_length", Both("max_length")),
    ("gradient_checkpointing", Training("runtime.gradient_checkpointing")),
    ("save_steps", Training("runtime.checkpoint_steps")),
    ("save_total_limit", Training("runtime.keep_checkpoints")),
    ("logging_steps", Training("runtime.log_steps")),
    ("mm_vision_tower_lr", Yours("`vision_learning_rate`, where `vision_layers` says how many blocks train")),
    ("unfreeze_mm_vision_tower", Yours("`vision_layers` says how many of the encoder's last blocks train")),
    ("mm_tunable_parts", Yours("`vision_layers` says how many of the encoder's last blocks train")),
    ("deepspeed", Nothing(MEMORY)),
    ("per_device_eval_batch_size", Nothing(MEASURED)),
    ("evaluation_strategy", Nothing(MEASURED)),
    ("eval_strategy", Nothing(MEASURED)),
    ("save_strategy", Nothing("checkpoints are written by time and by `runtime.checkpoint_steps`")),
    ("output_dir", Nothing(OUTPUT)),
    ("overwrite_output_dir", Nothing(OUTPUT)),
    ("run_name", Nothing("`imp-flow run --name` names a run")),
    ("report_to", Nothing(LOGS)),
    ("logging_dir", Nothing(LOGS)),
    ("tf32", Nothing(ROUNDING)),
    ("dataloader_num_workers", Nothing(LOADER)),
    ("dataloader_pin_memory", Nothing(LOADER)),
    ("dataloader_persistent_workers", Nothing(LOADER)),
    ("lazy_preprocess", Nothing(LOADER)),
    ("is_multimodal", Nothing("records may have an image or none")),
    ("local_rank", Nothing("one process trains")),
    ("remove_unused_columns", Nothing(LOADER)),
];

/// What becomes of a flag; `None` if it is not known.
pub(super) fn meaning(flag: &str) -> Option<Meaning> {
    FLAGS.iter().find(|(name, _)| *name == flag).map(|(_, meaning)| *meaning)
}

/// What a program takes where a script does not say it, if that is not what the kinds here take: the defaults of the Trainer
/// (transformers 4.37) and of LLaVA's own arguments.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    ("num_train_epochs", "3"),
    ("learning_rate", "5e-5"),
    ("warmup_ratio", "0"),
    ("lr_scheduler_type", "linear"),
    ("model_max_length", "512"),
    ("group_by_modality_length", "False"),
    ("per_device_train_batch_size", "8"),
    ("gradient_accumulation_steps", "1"),
    ("lora_r", "64"),
    ("lora_alpha", "16"),
    ("lora_dropout", "0.05"),
    ("mm_projector_type", "linear"),
    ("mm_vision_select_layer", "-1"),
    ("seed", "42"),
];

/// Conversation templates by the names that `--version` takes.
pub(super) const TEMPLATES: &[(&str, &str)] = &[
    ("plain", "plain"),
    ("phi2", "phi2"),
    ("qwen2", "qwen2"),
    ("phi3", "phi3"),
    ("v1", "vicuna_v1"),
    ("vicuna_v1", "vicuna_v1"),
];
