//! Vision tower and projector in a GGUF file of their own, `mmproj`. Source: llama.cpp's `tools/mtmd/clip.cpp` and `clip-impl.h`.
//!
//! llama.cpp computes the projector's GELU by its tanh approximation, where Imp's is exact, and pads images to a square where Imp
//! stretches them; neither can be chosen in the file.

use super::{super::names, container::Keys};
use crate::{encoding::Encoding, imp::Imp, weights::NamedTensor};

pub(super) fn describe(keys: &mut Keys, model: &Imp, name: &str) {
    let (config, layers) = (&model.vision.config, model.vision.layers());
    keys.text("general.architecture", "clip");
    keys.text("general.type", "mmproj");
    keys.text("general.name", name);
    keys.number("general.file_type", 1);
    keys.flag("clip.has_vision_encoder", true);
    keys.text("clip.projector_type", "mlp");
    // Otherwise it is CLIP's approximation by a sigmoid.
    keys.flag("clip.use_gelu", true);
    for (name, value) in [
        ("image_size", config.image_size),
        ("patch_size", config.patch_size),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("projection_dim", model.llm.config.hidden_size),
        ("block_count", layers),
        ("attention.head_count", config.num_attention_heads),
    ] {
        keys.number(&format!("clip.vision.{name}"), value);
    }
    keys.float("clip.vision.attention.layer_norm_epsilon", config.layer_norm_eps);
    keys.floats("clip.vision.image_mean", [0.5; 3]);
    keys.floats("clip.vision.image_std", [0.5; 3]);
    // The number of layers that run; without it, it would be one less than there are.
    keys.numbers("clip.vision.feature_layer", [layers as i32]);
}

/// The tensors, each with its encoding: matrices in f16, the others in f32.
///
/// # Errors
/// Names a tensor for which llama.cpp has no place.
pub(super) fn tensors(model: &Imp) -> Result<Vec<(NamedTensor<'_>, Encoding)>, String> {
    let all = model.vision.tensors("").into_iter().chain(model.projector.tensors());
    all.map(|tensor| {
        let Some(name) = names::of_vision(&tensor.name) else { return Err(tensor.name) };
        let encoding = if tensor.shape.len() == 1 || name.contains("position") { Encoding::F32 } else { Encoding::F16 };
        Ok((tensor.renamed(name), encoding))
    })
    .collect()
}
