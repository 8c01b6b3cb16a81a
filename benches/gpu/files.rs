//! The models that both sides' work is done on: random weights, written fast. A language model has the weights of one random
//! block in all of its blocks, since drawing 2.8 billion numbers takes longer than the measurements; speed does not depend on
//! it. The peer draws its own weights, on the card.

use std::{fs, path::Path};

use imp_model::{config::VisionConfig, encoding::Encoding, init};
use safetensors::{SafeTensors, tensor::TensorView};

use crate::sizes::Sizes;

/// Writes the models unless they are there: `llm`, `vision`, and `vision-short`, an encoder of the same width with few
/// blocks, for cases that get their features for free.
pub(crate) fn write(sizes: &Sizes) -> bool {
    let root = sizes.models();
    let done = root.join("done");
    if done.exists() {
        return true;
    }
    for folder in ["one-block", "llm", "vision", "vision-short"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let one = imp_model::config::LanguageConfig { num_hidden_layers: 1, ..sizes.language.clone() };
    init::write_language(&root.join("one-block"), &one, 1, Encoding::Bf16).unwrap();
    repeat_block(&root.join("one-block"), &root.join("llm"), sizes.language.num_hidden_layers);
    let config = sizes.language.to_json();
    fs::write(root.join("llm/config.json"), config.to_string()).unwrap();
    init::write_vision(&root.join("vision"), &sizes.vision, 1).unwrap();
    let short = VisionConfig { num_hidden_layers: 2, ..sizes.vision.clone() };
    init::write_vision(&root.join("vision-short"), &short, 1).unwrap();
    fs::write(done, "").unwrap();
    true
}

/// Writes a model whose blocks all have the weights of the only block of another.
fn repeat_block(from: &Path, to: &Path, blocks: usize) {
    let file = "model.safetensors";
    let bytes = fs::read(from.join(file)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut all: Vec<(String, &TensorView<'_>)> = Vec::new();
    for (name, tensor) in &tensors {
        match name.strip_prefix("model.layers.0.") {
            Some(part) => all.extend((0..blocks).map(|block| (format!("model.layers.{block}.{part}"), tensor))),
            None => all.push((name.clone(), tensor)),
        }
    }
    safetensors::serialize_to_file(all, None, &to.join(file)).unwrap();
}
