//! Vision tower and projector in a GGUF file of their own, `mmproj`. Source: llama.cpp's `tools/mtmd/clip.cpp` and `clip-impl.h`.
//!
//! llama.cpp computes the projector's GELU by its tanh approximation, where Imp's is exact, and pads images to a square where Imp
//! stretches them; neither can be chosen in the file.

use super::{
    super::{names, setting::Setting},
    container::Keys,
    mixture::{Mixture, Role},
};
use crate::{encoding::Encoding, imp::Imp, weights::NamedTensor};

/// What the file says of the network.
pub(in crate::gguf) fn settings(model: &Imp) -> Vec<(String, Setting)> {
    let (config, layers) = (&model.vision.config, model.vision.layers());
    let mut all = vec![
        ("general.architecture".to_string(), Setting::Text("clip")),
        ("clip.has_vision_encoder".into(), Setting::Flag(true)),
        ("clip.projector_type".into(), Setting::Text("mlp")),
        // Otherwise it is CLIP's approximation by a sigmoid.
        ("clip.use_gelu".into(), Setting::Flag(true)),
    ];
    for (name, value) in [
        ("image_size", Setting::Number(config.image_size)),
        ("patch_size", Setting::Number(config.patch_size)),
        ("embedding_length", Setting::Number(config.hidden_size)),
        ("feed_forward_length", Setting::Number(config.intermediate_size)),
        ("projection_dim", Setting::Number(model.llm.config.hidden_size)),
        ("block_count", Setting::Number(layers)),
        ("attention.head_count", Setting::Number(config.num_attention_heads)),
        ("attention.layer_norm_epsilon", Setting::Float(config.layer_norm_eps)),
        ("image_mean", Setting::Floats(config.images.mean.map(|mean| mean as f32).to_vec())),
        ("image_std", Setting::Floats(config.images.std.map(|std| std as f32).to_vec())),
        // The number of layers that run; without it, it would be one less than there are.
        ("feature_layer", Setting::Numbers(vec![layers as i32])),
    ] {
        all.push((format!("clip.vision.{name}"), value));
    }
    all
}

pub(super) fn describe(keys: &mut Keys, model: &Imp, mixture: Mixture, name: &str) {
    keys.text("general.type", "mmproj");
    keys.text("general.name", name);
    keys.number("general.file_type", wide(mixture).number());
    for (key, setting) in &settings(model) {
        keys.set(key, setting);
    }
}

/// The tower is small, and its rows are of widths that few blocks divide: it is not quantized.
fn wide(mixture: Mixture) -> Mixture {
    if mixture == Mixture::F32 { Mixture::F32 } else { Mixture::F16 }
}

/// The tensors, each with its encoding: matrices in f16, or f32 if the language model is; the others in f32.
///
/// # Errors
/// Names a tensor for which llama.cpp has no place.
pub(super) fn tensors(model: &Imp, mixture: Mixture) -> Result<Vec<(NamedTensor<'_>, Encoding)>, String> {
    let all = model.vision.tensors("").into_iter().chain(model.projector.tensors());
    all.map(|tensor| {
        let Some(name) = names::of_vision(&tensor.name) else { return Err(tensor.name) };
        let is_matrix = tensor.shape.len() > 1 && !name.contains("position");
        let width = tensor.shape.last().copied().unwrap_or(1);
        let encoding = if is_matrix { wide(mixture).encoding(Role::Other, width) } else { Encoding::F32 };
        Ok((tensor.renamed(name), encoding))
    })
    .collect()
}
