//! The configuration of a SigLIP vision encoder.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::keys::Keys;
use crate::{error::Result, tensor::Activation};

/// The configuration of a SigLIP vision encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiglipConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks; those after the selected layer are not computed.
    pub num_hidden_layers: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Side length of the square image, in pixels.
    pub image_size: usize,
    /// Side length of a patch, in pixels.
    pub patch_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation function of the MLP.
    pub hidden_act: Activation,
}

impl SiglipConfig {
    /// `google/siglip-so400m-patch14-384`, the encoder of every published Imp.
    pub fn so400m_patch14_384() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 14,
            layer_norm_eps: 1e-6,
            hidden_act: Activation::GeluTanh,
        }
    }

    /// Number of patches along a side of the image; the pixels of an incomplete patch are ignored.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Number of patches, and of feature vectors, per image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Number of parameters, without the pooling head.
    pub fn parameters(&self) -> usize {
        let (width, inner, patch) = (self.hidden_size, self.intermediate_size, self.patch_size);
        let block = 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width;
        width * (3 * patch * patch + 1 + self.patches() + 2) + self.num_hidden_layers * block
    }

    /// The name within a layer, and the shape, of each of a layer's tensors.
    pub(crate) fn layer_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let norms = ["layer_norm1", "layer_norm2"].map(|name| (name, vec![width], width));
        let square = ["q_proj", "k_proj", "v_proj", "out_proj"];
        let square = square.map(|name| (format!("self_attn.{name}"), vec![width, width], width));
        let mlp = [("mlp.fc1", vec![inner, width], inner), ("mlp.fc2", vec![width, inner], width)];
        let named = |(name, shape, width): (&str, Vec<usize>, usize)| (name.to_string(), shape, width);
        let all = norms.into_iter().map(named).chain(square).chain(mlp.into_iter().map(named));
        all.flat_map(|(name, shape, width)| [(format!("{name}.weight"), shape), (format!("{name}.bias"), vec![width])])
            .collect()
    }

    /// Reads the keys of a vision encoder. Missing keys have the defaults of transformers' `SiglipVisionConfig`.
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self> {
        let config = Self {
            hidden_size: keys.number("hidden_size", Some(768))?,
            intermediate_size: keys.number("intermediate_size", Some(3072))?,
            num_hidden_layers: keys.number("num_hidden_layers", Some(12))?,
            num_attention_heads: keys.number("num_attention_heads", Some(12))?,
            image_size: keys.number("image_size", Some(224))?,
            patch_size: keys.number("patch_size", Some(16))?,
            layer_norm_eps: keys.float("layer_norm_eps", 1e-6)?,
            hidden_act: keys.word("hidden_act", Activation::GeluTanh)?,
        };
        keys.only(&[("num_channels", &[json!(3)])])?;
        keys.positive(&[
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.num_attention_heads),
            ("patch_size", config.patch_size),
        ])?;
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) || config.patches() == 0 {
            return Err(
                keys.wrong("hidden_size must be a multiple of num_attention_heads, and image_size at least patch_size")
            );
        }
        Ok(config)
    }

    /// Converts to the `config.json` of a full SigLIP.
    pub fn to_json(&self) -> Value {
        json!({ "model_type": "siglip", "architectures": ["SiglipModel"], "vision_config": self.vision_json() })
    }

    pub(super) fn vision_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["model_type"] = json!("siglip_vision_model");
        value
    }
}
