//! The training stages, merging and quantizing as the runner runs them, on a model of a few thousand weights.
#![allow(clippy::unwrap_used)]

mod features;
mod forecast;
mod keys;
mod methods;
mod mixtures;
mod models;
mod runs;
mod silent;
mod workers;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use imp_model::{
    GenerateOptions, Imp, Sample,
    config::{Family, LanguageConfig},
    encoding::Encoding,
    init,
    tensor::Activation,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Stage, StageError,
    contract::event::Event,
    data::records::RecordSet,
    download::Download,
    finetune::Finetune,
    image::pixels::{AspectRatio, Recipe as PixelRecipe},
    merge::Merge,
    preprocess::Preprocess,
    pretrain::Pretrain,
    quantize::Quantize,
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
                // A line with the held-out loss has nothing else.
                let value = line.remove(varying);
                assert!(value.map_or(line.contains_key("validation_loss"), |value| value >= 0.0), "{varying}");
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

/// Logits at all positions of the first records.
fn logits(folder: &Path, data: &Path) -> Vec<f32> {
    let (model, set) = (Imp::load(folder).unwrap(), RecordSet::open(data).unwrap());
    let pass = imp_model::layers::Pass::inference();
    let mut all = Vec::new();
    for number in 0..3 {
        let record = set.record(number).unwrap();
        let recipe = PixelRecipe::new(AspectRatio::default(), &model.vision.config);
        let images: Vec<Vec<f32>> = record.images().map(|image| recipe.pixels(image).unwrap()).collect();
        let numbers: Vec<usize> = (0..images.len()).collect();
        let features = model.encode_images(&images);
        let sample = Sample { input_ids: record.input_ids, labels: record.labels, images: &numbers };
        let spliced = model.splice(&pass, &[sample], &features);
        let hidden = model.llm.forward(&pass, &spliced.embedded, &spliced.segments);
        all.extend_from_slice(&model.llm.logits(&pass, &hidden).to_host());
        let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
        assert_eq!(model.generate(&[sample], &features, &options).unwrap()[0].len(), 4);
    }
    all
}

fn farthest(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(!a.is_empty() && a.iter().chain(b).all(|value| value.is_finite()), "nothing to compare");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Weights by file, without the configuration beside them.
fn weights(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    tree(folder).into_iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "safetensors")).collect()
}
