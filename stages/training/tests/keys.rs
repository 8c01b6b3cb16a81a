//! The keys of the training kinds: caches everywhere know their names and defaults.

use crate::{finetune, pretrain};

#[test]
fn names_and_defaults_stay_as_old_caches_know_them() {
    let text = serde_json::to_string_pretty(&serde_json::to_value(pretrain::Config::default()).unwrap()).unwrap();
    assert_eq!(text, PRETRAIN);
    let text = serde_json::to_string_pretty(&serde_json::to_value(finetune::Config::default()).unwrap()).unwrap();
    assert_eq!(text, FINETUNE);
}

const PRETRAIN: &str = r#"{
  "adam_beta1": 0.9,
  "adam_beta2": 0.999,
  "adam_epsilon": 1e-8,
  "epochs": 1,
  "eval_steps": 0,
  "global_batch_size": 256,
  "group_by_modality_length": false,
  "keep_best": false,
  "learning_rate": 0.001,
  "lr_scheduler": "cosine",
  "max_grad_norm": 1.0,
  "max_length": 3072,
  "max_steps": 0,
  "mm_projector_type": "mlp2x_gelu",
  "mm_vision_select_layer": -2,
  "warmup_ratio": 0.03,
  "weight_decay": 0.0
}"#;

const FINETUNE: &str = r#"{
  "adam_beta1": 0.9,
  "adam_beta2": 0.999,
  "adam_epsilon": 1e-8,
  "epochs": 2,
  "eval_steps": 0,
  "global_batch_size": 128,
  "group_by_modality_length": true,
  "keep_best": false,
  "learning_rate": 0.0002,
  "lora": {
    "alpha": 256.0,
    "dropout": 0.05,
    "rank": 256,
    "targets": []
  },
  "lr_scheduler": "cosine",
  "max_grad_norm": 1.0,
  "max_length": 3072,
  "max_steps": 0,
  "mode": "lora",
  "projector_learning_rate": null,
  "warmup_ratio": 0.03,
  "weight_decay": 0.0
}"#;
