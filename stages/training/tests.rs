//! The training stages, merging and quantizing as the runner runs them, on a model of a few thousand weights.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use imp_model::{
    GenerateOptions, Imp, Sample,
    config::{Family, LanguageConfig},
    init,
    save::DType,
    tensor::Activation,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    StageError,
    download::Download,
    event::Event,
    finetune::Finetune,
    merge::Merge,
    preprocess::{
        Preprocess, RecordSet,
        pixels::{AspectRatio, pixels},
    },
    pretrain::Pretrain,
    quantize::Quantize,
    stage::Stage,
    testing::{Outcome, Trial, tree},
};

/// A folder with what training starts from: `phi`, `siglip`, `captions`, `instructions`.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let get = |name: &str, config: &Value| {
            Trial::new(&root.path().join(name), &[]).run::<Download>(config).done();
        };
        let sizes = json!({"hidden_size": 32, "layers": 2, "heads": 2});
        get("phi", &json!({"source": "builtin:tiny-phi", "model": sizes}));
        let sizes = json!({"hidden_size": 32, "layers": 2, "heads": 2, "patch_size": 16});
        get("siglip", &json!({"source": "builtin:tiny-siglip", "model": sizes}));
        get("shapes", &json!({"source": "builtin:shapes", "images": 12, "eval_images": 1}));
        let shop = Self(root);
        for (name, annotations, template) in
            [("captions", "pretrain.json", "plain"), ("instructions", "instruct.json", "phi2")]
        {
            let config = json!({"annotations": annotations, "template": template});
            shop.trial(name, &[("data", "shapes"), ("tokenizer", "phi")]).run::<Preprocess>(&config).done();
        }
        shop
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A stage that works in `name` on the outputs of others.
    fn trial(&self, name: &str, inputs: &[(&str, &str)]) -> Trial {
        let folders: Vec<(&str, PathBuf)> =
            inputs.iter().map(|(key, from)| (*key, self.path(from).join("out"))).collect();
        let inputs: Vec<(&str, &Path)> = folders.iter().map(|(key, folder)| (*key, folder.as_path())).collect();
        Trial::new(&self.path(name), &inputs)
    }

    fn pretrain(&self, name: &str) -> Trial {
        self.trial(name, &[("llm", "phi"), ("vision", "siglip"), ("data", "captions")])
    }

    fn finetune(&self, name: &str) -> Trial {
        self.trial(name, &[("model", "pretrain"), ("data", "instructions")])
    }

    /// With `pretrain` done.
    fn pretrained() -> Self {
        let shop = Self::new();
        shop.pretrain("pretrain").run::<Pretrain>(&stage1()).done();
        shop
    }

    /// The lines of `metrics.jsonl`, without what varies from run to run.
    fn metrics(&self, name: &str) -> Vec<BTreeMap<String, f64>> {
        let text = fs::read_to_string(self.path(name).join("metrics.jsonl")).unwrap();
        let line = |line: &str| {
            let mut line: BTreeMap<String, f64> = serde_json::from_str(line).unwrap();
            for varying in ["time", "examples_per_second", "tokens_per_second", "data_wait", "memory"] {
                assert!(line.remove(varying).unwrap() >= 0.0, "{varying}");
            }
            line
        };
        text.lines().map(line).collect()
    }
}

fn stage1() -> Value {
    json!({"global_batch_size": 4, "learning_rate": 1e-2, "warmup_ratio": 0.3})
}

fn lora() -> Value {
    json!({
        "mode": "lora", "global_batch_size": 4, "epochs": 2, "learning_rate": 1e-3, "projector_learning_rate": 1e-4,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
    })
}

fn full() -> Value {
    json!({"mode": "full", "global_batch_size": 5, "epochs": 1, "learning_rate": 1e-3, "weight_decay": 0.1})
}

/// Ends a run after each of `reports`, then lets it finish.
fn interrupted<S: Stage>(config: &Value, reports: &[usize], trial: impl Fn() -> Trial) -> Outcome {
    for count in reports {
        let error = trial().cancelled_after(*count).run::<S>(config).error();
        assert!(matches!(error, StageError::Cancelled), "{error}");
    }
    trial().run::<S>(config)
}

#[test]
fn a_run_that_was_stopped_ends_as_one_that_was_not() {
    let shop = Workshop::pretrained();
    let once = shop.finetune("once").run::<Finetune>(&lora()).done();
    let often = interrupted::<Finetune>(&lora(), &[1, 2, 1], || shop.finetune("often")).done();
    assert_eq!(tree(&once), tree(&often), "LoRA");
    assert_eq!(shop.metrics("once"), shop.metrics("often"), "each step is logged once");
    // The figures for TensorBoard, of which each takes as many bytes whatever it is.
    let events = |name: &str| fs::metadata(shop.path(name).join(crate::job::EVENTS)).unwrap().len();
    assert_eq!(events("once"), events("often"));
    let once = shop.finetune("full").run::<Finetune>(&full()).done();
    let often = interrupted::<Finetune>(&full(), &[2], || shop.finetune("full_often")).done();
    assert_eq!(tree(&once), tree(&often), "full");
    let once = shop.path("pretrain/out");
    let often = interrupted::<Pretrain>(&stage1(), &[1, 1], || shop.pretrain("pretrain_often")).done();
    assert_eq!(tree(&once), tree(&often), "projector");
}

#[test]
fn a_damaged_checkpoint_is_told_about_and_not_used() {
    let shop = Workshop::pretrained();
    let once = shop.finetune("once").run::<Finetune>(&lora()).done();
    shop.finetune("damaged").cancelled_after(2).run::<Finetune>(&lora()).error();
    let saved = fs::read_dir(shop.path("damaged/checkpoint")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&saved).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&saved, bytes).unwrap();
    let outcome = shop.finetune("damaged").run::<Finetune>(&lora());
    assert!(outcome.warnings().contains("a damaged checkpoint is not used"), "{}", outcome.warnings());
    assert!(outcome.warnings().contains("its content is not what was written"));
    assert_eq!(tree(&outcome.done()), tree(&once));
    assert_eq!(shop.metrics("damaged"), shop.metrics("once"));
}

/// The micro-batch is no part of a stage's key, so it must not matter: neither for the gradients, nor for what
/// dropout drops.
#[test]
fn micro_batches_add_up_to_the_batch() {
    let shop = Workshop::pretrained();
    let config = json!({
        "mode": "lora", "global_batch_size": 6, "max_steps": 3, "warmup_ratio": 0.0, "learning_rate": 1e-3,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.3},
    });
    let losses = |name: &str, size: usize| {
        shop.finetune(name).micro_batch(size).run::<Finetune>(&config).done();
        shop.metrics(name).iter().map(|line| [line["loss"], line["grad_norm"]]).collect::<Vec<_>>()
    };
    let whole = losses("whole", 6);
    for (name, size) in [("ones", 1), ("uneven", 4)] {
        for (ours, theirs) in losses(name, size).iter().flatten().zip(whole.iter().flatten()) {
            // Sums in another order, in f32, through three steps.
            assert!((ours - theirs).abs() < 2e-5 * theirs, "{name}: {ours} instead of {theirs}");
        }
    }
}

/// Logits at all positions of the first records.
fn logits(folder: &Path, data: &Path) -> Vec<f32> {
    let (model, set) = (Imp::load(folder).unwrap(), RecordSet::open(data).unwrap());
    let pass = imp_model::layers::Pass::inference();
    let mut all = Vec::new();
    for number in 0..3 {
        let record = set.record(number).unwrap();
        let size = model.vision.config.image_size;
        let images: Vec<Vec<f32>> =
            record.images().map(|image| pixels(image, AspectRatio::default(), size).unwrap()).collect();
        let numbers: Vec<usize> = (0..images.len()).collect();
        let features = model.encode_images(&images);
        let sample = Sample { input_ids: record.input_ids, labels: record.labels, images: &numbers };
        let spliced = model.splice(&pass, &[sample], &features);
        let hidden = model.llm.forward(&pass, &spliced.embedded, &spliced.segments);
        all.extend_from_slice(model.llm.logits(&pass, &hidden).values());
        let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
        assert_eq!(model.generate(&[sample], &features, &options)[0].len(), 4);
    }
    all
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn adapters_merge_and_the_merged_model_quantizes() {
    let shop = Workshop::pretrained();
    let data = shop.path("instructions/out");
    let tuned = shop.finetune("lora").run::<Finetune>(&lora()).done();
    let base = tree(&shop.path("pretrain/out"));
    for (path, bytes) in tree(&tuned) {
        let new = path.starts_with("adapter") || path == Path::new("mm_projector.safetensors");
        assert!(new || base[&path] == bytes, "{} is the base's", path.display());
    }
    assert_ne!(tree(&tuned)[Path::new("mm_projector.safetensors")], base[Path::new("mm_projector.safetensors")]);

    let with_adapter = logits(&tuned, &data);
    let largest = with_adapter.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(farthest(&with_adapter, &logits(&shop.path("pretrain/out"), &data)) > 0.05 * largest, "it learned");
    let merge = |name: &str, dtype: &str| {
        let config = json!({ "dtype": dtype });
        shop.trial(name, &[("model", "lora")]).run::<Merge>(&config).done()
    };
    // f32: another order of sums. f16: 11 bits a weight, through four layers.
    assert!(farthest(&logits(&merge("merge32", "f32"), &data), &with_adapter) < 1e-5 * largest);
    let merged = merge("merge", "f16");
    assert!(farthest(&logits(&merged, &data), &with_adapter) < 4e-3 * largest);
    assert!(merged.join("tokenizer.json").is_file(), "the tokenizer comes along");

    let outcome = shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({}));
    // 4.5 bits a weight, and norms, biases, positions and the convolution in 16.
    assert!((4.5..9.0).contains(&outcome.figure("bits_per_weight")), "{}", outcome.figure("bits_per_weight"));
    let bytes = outcome.figure("megabytes") * 1e6;
    let quantized = outcome.done();
    let size = fs::metadata(quantized.join("model.safetensors")).unwrap().len() as f64;
    assert!((0.0..20_000.0).contains(&(size - bytes)), "{size} bytes in the file, {bytes} of tensors");
    assert!(farthest(&logits(&quantized, &data), &with_adapter) < 0.7 * largest);
}

/// Finetuning goes on from any model folder: the base of a second adapter has the first one in it.
#[test]
fn a_finetuned_model_can_be_finetuned_again() {
    let shop = Workshop::pretrained();
    let data = shop.path("instructions/out");
    shop.finetune("first").run::<Finetune>(&lora()).done();
    let still = json!({
        "mode": "lora", "global_batch_size": 8, "max_steps": 1, "learning_rate": 0.0, "lora": {"rank": 2, "alpha": 2},
    });
    shop.trial("merge", &[("model", "first")]).run::<Merge>(&json!({"dtype": "f32"})).done();
    let before = logits(&shop.path("first/out"), &data);
    for from in ["first", "merge"] {
        let inputs = [("model", from), ("data", "instructions")];
        let after = shop.trial(&format!("after_{from}"), &inputs).run::<Finetune>(&still).done();
        assert!(farthest(&logits(&after, &data), &before) < 1e-4, "after {from}");
        assert!(after.join("llm/tokenizer.json").is_file());
    }
}

#[test]
fn training_learns_and_reports_it() {
    let shop = Workshop::pretrained();
    let config = json!({"mode": "full", "global_batch_size": 4, "epochs": 16, "learning_rate": 3e-3});
    let outcome = shop.finetune("finetune").run::<Finetune>(&config);
    let lines = shop.metrics("finetune");
    assert!(outcome.figure("loss") < 0.5 * lines[0]["loss"], "{} after {}", outcome.figure("loss"), lines[0]["loss"]);
    assert!(outcome.figure("tokens_per_second") > outcome.figure("examples_per_second"));
    assert!(lines[0]["learning_rate"].abs() < 1e-12, "the first step has a learning rate of 0");
    assert_eq!(lines.iter().map(|line| line["step"] as usize).collect::<Vec<_>>(), (1..=48).collect::<Vec<_>>());
    let reports = outcome.events.iter().filter_map(|event| match event {
        Event::Progress(progress) => Some((progress.done, progress.total)),
        _ => None,
    });
    assert_eq!(reports.collect::<Vec<_>>(), (1..=48).map(|step| (step, 48)).collect::<Vec<_>>());
}

#[test]
fn divergence_says_where_and_what_to_try() {
    let shop = Workshop::pretrained();
    let config = json!({
        "mode": "full", "global_batch_size": 4, "epochs": 9, "learning_rate": 1e30, "max_grad_norm": 0, "warmup_ratio": 0,
    });
    let error = shop.finetune("diverges").run::<Finetune>(&config).error();
    assert!(error.to_string().starts_with("training diverged in step 2: the loss is "), "{error}");
    assert!(error.to_string().contains("(records "), "{error}");
    assert!(error.help().unwrap().contains("learning_rate"));
}

#[test]
fn faults_of_inputs_name_the_user_s_files() {
    let shop = Workshop::pretrained();
    // Data of a tokenizer with more tokens than the model knows.
    let phi =
        json!({"source": "builtin:tiny-phi", "model": {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 300}});
    Trial::new(&shop.path("other"), &[]).run::<Download>(&phi).done();
    let inputs = [("llm", "other"), ("vision", "siglip"), ("data", "captions")];
    let error = shop.trial("mismatch", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().contains("can't be trained on: it has the token"), "{error}");
    assert!(error.help().unwrap().contains("tokenizer of this model"));

    let inputs = [("llm", "siglip"), ("vision", "siglip"), ("data", "captions")];
    let error = shop.trial("swapped", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().starts_with("shown/llm/config.json: model_type `siglip`"), "{error}");

    let inputs = [("llm", "phi"), ("vision", "siglip"), ("data", "shapes")];
    let error = shop.trial("no_records", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().starts_with("shown/data/meta.json: the file is missing"), "{error}");

    let error = shop.trial("unmerged", &[("model", "pretrain")]).run::<Quantize>(&json!({})).error();
    assert!(error.to_string().starts_with("shown/model/config.json: only a merged model"), "{error}");

    let file = shop.path("phi/out/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = shop.pretrain("cut").run::<Pretrain>(&stage1()).error();
    assert!(
        error.to_string().starts_with("shown/llm/model.safetensors: this is not a whole safetensors file"),
        "{error}"
    );
}

#[test]
fn impossible_settings_are_named() {
    let issue = |key: &str, value: Value| {
        let mut config = json!({});
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let target = if section.is_empty() { &mut config } else { &mut config[section] };
        target[name] = value;
        let found = Finetune::check(&serde_json::from_value(config).unwrap()).unwrap_err();
        assert_eq!(found.key, key, "{}", found.message);
    };
    issue("learning_rate", json!(-1.0));
    issue("warmup_ratio", json!(1.5));
    issue("adam_beta2", json!(1.0));
    issue("epochs", json!(0));
    issue("global_batch_size", json!(0));
    issue("max_length", json!(1));
    issue("lora.rank", json!(0));
    issue("lora.dropout", json!(1.0));
    let pretrain = |config: Value| Pretrain::check(&serde_json::from_value(config).unwrap()).unwrap_err();
    assert_eq!(pretrain(json!({"mm_projector_type": "mlpx_gelu"})).key, "mm_projector_type");
    assert_eq!(pretrain(json!({"mm_vision_select_layer": 1})).key, "mm_vision_select_layer");
}

/// Weights by file, without the configuration beside them.
fn weights(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    tree(folder).into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "safetensors")).collect()
}

#[test]
fn the_best_weights_are_those_of_the_step_with_the_smallest_held_out_loss() {
    let shop = Workshop::pretrained();
    let validated = |name: &str| {
        shop.trial(name, &[("model", "pretrain"), ("data", "instructions"), ("validation", "instructions")])
    };
    // So large a learning rate that what comes after some good steps is worse.
    let base = json!({
        "mode": "full", "global_batch_size": 4, "epochs": 3, "learning_rate": 0.3, "lr_scheduler": "constant",
        "warmup_steps": 0, "max_grad_norm": 0.0,
    });
    let with = |more: Value| {
        let mut config = base.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let keeping = with(json!({"eval_steps": 2, "keep_best": true}));
    let outcome = validated("best").run::<Finetune>(&keeping);
    let (best, loss) = (outcome.figure("best_step") as usize, outcome.figure("validation_loss"));
    let kept = outcome.done();
    let lines = shop.metrics("best");
    let seen: Vec<(usize, f64)> =
        lines.iter().filter_map(|line| Some((line["step"] as usize, *line.get("validation_loss")?))).collect();
    assert_eq!(seen.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [2, 4, 6, 8, 9]);
    assert!(seen.iter().all(|(_, other)| *other >= loss) && seen.contains(&(best, loss)), "{best}, {loss}: {seen:?}");
    assert!(best < 9, "the last step is not the best: {seen:?}");
    let until_then = shop.finetune("until_then").run::<Finetune>(&with(json!({"max_steps": best}))).done();
    assert_eq!(weights(&kept), weights(&until_then));

    let often = interrupted::<Finetune>(&keeping, &[1, 3, 3], || validated("often")).done();
    assert_eq!(tree(&kept), tree(&often));
    assert_eq!(shop.metrics("often"), lines);
}

#[test]
fn held_out_records_must_be_given_and_best_weights_looked_for() {
    let shop = Workshop::pretrained();
    let error = shop.finetune("none").run::<Finetune>(&json!({"eval_steps": 5})).error();
    assert!(error.to_string().contains("`eval_steps` needs held-out records"), "{error}");
    let config = serde_json::from_value(json!({"keep_best": true})).unwrap();
    assert_eq!(Finetune::check(&config).unwrap_err().key, "keep_best");
}

/// Neither of them is part of a key.
#[test]
fn runtime_settings_change_no_result() {
    let shop = Workshop::pretrained();
    let usual = shop.finetune("usual").run::<Finetune>(&lora()).done();
    let again = shop.finetune("again").runtime(|runtime| runtime.gradient_checkpointing = Some(true));
    assert_eq!(tree(&again.run::<Finetune>(&lora()).done()), tree(&usual));
    let every = |runtime: &mut crate::job::Runtime| (runtime.checkpoint_steps, runtime.keep_checkpoints) = (1, 3);
    let kept = shop.finetune("kept").runtime(every).run::<Finetune>(&lora()).done();
    assert_eq!(tree(&kept), tree(&usual));
    let mut names: Vec<String> = fs::read_dir(shop.path("kept/checkpoint"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap()[..14].to_string())
        .collect();
    names.sort();
    assert_eq!(names, ["step-000000004", "step-000000005", "step-000000006"]);
}

#[test]
fn adapters_go_where_the_targets_say() {
    let shop = Workshop::pretrained();
    let config = |targets: Value| json!({"mode": "custom", "max_steps": 1, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": targets}});
    let out = shop.finetune("some").run::<Finetune>(&config(json!(["q_proj", "lm_head"]))).done();
    let text = fs::read_to_string(out.join("adapter/adapter_config.json")).unwrap();
    let adapter: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(adapter["target_modules"], json!(["lm_head", "q_proj"]));
    let error = shop.finetune("wrong").run::<Finetune>(&config(json!(["qkv_proj"]))).error();
    assert!(error.to_string().contains("lora.targets: `qkv_proj` is no linear layer of this model"), "{error}");
}

/// Qwen2, Llama with tied embeddings, and Phi-3 with its stacked matrices: pretrained, adapted, merged, quantized.
#[test]
fn every_family_goes_through_all_stages() {
    for family in [Family::Qwen2, Family::Llama, Family::Phi3] {
        let shop = Workshop::new();
        let phi = imp_model::load_language(&shop.path("phi/out")).unwrap().config;
        let config = LanguageConfig {
            family,
            intermediate_size: 40,
            num_key_value_heads: 1,
            hidden_act: Activation::Silu,
            tie_word_embeddings: family == Family::Llama,
            sliding_window: (family == Family::Phi3).then_some(20),
            ..LanguageConfig::phi(phi.vocab_size, 32, 2, 2, 16)
        };
        init::write_language(&shop.path("phi/out"), &config, 3, DType::F16).unwrap();
        shop.pretrain("pretrain").run::<Pretrain>(&stage1()).done();
        let tuned = shop.finetune("lora").run::<Finetune>(&lora()).done();
        let data = shop.path("instructions/out");
        let adapted = logits(&tuned, &data);
        let largest = adapted.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let merged = shop.trial("merge", &[("model", "lora")]).run::<Merge>(&json!({"dtype": "f32"})).done();
        assert!(farthest(&logits(&merged, &data), &adapted) < 1e-4 * largest, "{family:?}");
        let quantized = shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({})).done();
        assert!(farthest(&logits(&quantized, &data), &adapted) < largest, "{family:?}");
        let full = shop.trial("full", &[("model", "merge"), ("data", "instructions")]).run::<Finetune>(&full()).done();
        assert!(farthest(&logits(&full, &data), &adapted) > 1e-3 * largest, "{family:?} learned on");
    }
}
