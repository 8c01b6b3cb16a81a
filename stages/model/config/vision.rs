//! The configuration of a vision encoder. Names and defaults are in `encoder.rs`.

use serde_json::{Value, json};

use super::keys::Keys;
use crate::{
    encoder::Encoder,
    error::Result,
    images::{Fit, ImageProcessor},
    tensor::Activation,
};

/// Where a configuration keeps how its images become pixel values, if not as in the encoder's published checkpoints.
const IMAGES: &str = "image_processor";

/// The configuration of a vision encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// The architecture.
    pub encoder: Encoder,
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
    /// Side length of the images that the positions in the file were learned on, if not `image_size`.
    pub learned_size: Option<usize>,
    /// Side length of a patch, in pixels.
    pub patch_size: usize,
    /// Number of registers.
    pub registers: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation function of the MLP.
    pub hidden_act: Activation,
    /// How images become pixel values.
    pub images: ImageProcessor,
}

/// The image processor beside a configuration.
pub(super) enum Beside<'a> {
    /// Its keys.
    Given(Keys<'a>),
    /// There is none: images are of the size in the configuration.
    Missing,
    /// The folder is not here. It is taken to have what published checkpoints have.
    Unknown,
}

impl VisionConfig {
    /// A configuration with the encoder's defaults, an MLP four times as wide as the residual stream, and images of `image_size`
    /// pixels.
    pub fn new(encoder: Encoder, hidden_size: usize, layers: usize, heads: usize, image_size: usize) -> Self {
        let description = encoder.description();
        let fit = description.images.fit.of(image_size);
        Self {
            encoder,
            hidden_size,
            intermediate_size: 4 * hidden_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            image_size,
            learned_size: None,
            patch_size: description.defaults.patch_size,
            registers: if description.embeddings.registers.is_some() { 4 } else { 0 },
            layer_norm_eps: description.defaults.epsilon,
            hidden_act: description.defaults.activation,
            images: ImageProcessor { fit, ..description.images },
        }
    }

    /// `google/siglip-so400m-patch14-384`, the encoder of every published Imp.
    pub fn so400m_patch14_384() -> Self {
        let sizes = Self::new(Encoder::Siglip, 1152, 27, 16, 384);
        Self { intermediate_size: 4304, patch_size: 14, ..sizes }
    }

    /// `openai/clip-vit-large-patch14-336`, the encoder of LLaVA-1.5.
    pub fn clip_vit_large_patch14_336() -> Self {
        Self { patch_size: 14, ..Self::new(Encoder::Clip, 1024, 24, 16, 336) }
    }

    /// Number of patches along a side of the image; the pixels of an incomplete patch are ignored.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Number of patches, and of feature vectors, per image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Number of tokens before the patches: class token and registers.
    pub fn tokens_before(&self) -> usize {
        usize::from(self.encoder.has_class()) + self.registers
    }

    /// Number of patches along a side of the images that the positions in the file were learned on.
    pub(crate) fn learned_grid(&self) -> usize {
        self.learned_size.unwrap_or(self.image_size) / self.patch_size
    }

    /// Number of parameters, without the pooling head.
    pub fn parameters(&self) -> usize {
        let (width, patch, description) = (self.hidden_size, self.patch_size, self.encoder.description());
        let class = usize::from(self.encoder.has_class());
        let norms = 1 + usize::from(description.first_norm.is_some());
        let vectors =
            usize::from(description.embeddings.patch_bias) + self.tokens_before() + class + self.patches() + 2 * norms;
        width * (3 * patch * patch + vectors) + self.num_hidden_layers * self.block_parameters()
    }

    /// Number of blocks that compute hidden state `select`, counted from the end if it is negative; `None` if it does not exist.
    pub fn used_layers(&self, select: i64) -> Option<usize> {
        let layers = self.num_hidden_layers;
        let state = if select < 0 { layers as i64 + 1 + select } else { select };
        usize::try_from(state).ok().filter(|state| *state <= layers)
    }

    /// Number of parameters of a block.
    pub(crate) fn block_parameters(&self) -> usize {
        self.layer_shapes().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Class token, registers and patches of an image.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens_before() + self.patches()
    }

    /// Rows of what [`crate::vision::VisionTower::encode`] gives of an image if the last `trained` blocks train: these take all
    /// tokens.
    pub fn encoded_rows(&self, trained: usize) -> usize {
        if trained > 0 { self.tokens() } else { self.patches() }
    }

    /// Outputs and inputs of a block's linear layers, in the order of [`crate::encoder::Parts::linears`].
    pub(crate) fn linear_shapes(&self) -> [(usize, usize); 6] {
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        [(width, width), (width, width), (width, width), (width, width), (inner, width), (width, inner)]
    }

    /// The name within a layer, and the shape, of each of a layer's tensors.
    pub(crate) fn layer_shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (width, parts) = (self.hidden_size, &self.encoder.description().parts);
        let norms = parts.norms.iter().map(|name| (*name, vec![width], width));
        let linears = parts.linears.iter().zip(self.linear_shapes());
        let linears = linears.map(|(name, (outputs, inputs))| (*name, vec![outputs, inputs], outputs));
        let both = norms.chain(linears).flat_map(|(name, shape, width)| {
            [(format!("{name}.weight"), shape), (format!("{name}.bias"), vec![width])]
        });
        let scales = parts.scales.iter().flatten().map(|name| ((*name).to_string(), vec![width]));
        both.chain(scales).collect()
    }

    /// Reads the keys of a vision encoder; missing ones have the defaults of transformers' configuration of it. `beside` is
    /// what is known of its image processor.
    pub(super) fn read(keys: &Keys<'_>, encoder: Encoder, beside: Beside<'_>) -> Result<Self> {
        let (description, defaults) = (encoder.description(), &encoder.description().defaults);
        let own = keys.get(IMAGES).and_then(Value::as_object).map(|own| Keys { keys: own, path: keys.path });
        let processor = own.map_or(beside, Beside::Given);
        let images = match &processor {
            Beside::Given(processor) => ImageProcessor::read(processor, &description.images)?,
            Beside::Missing | Beside::Unknown => description.images,
        };
        let hidden_size = keys.number("hidden_size", Some(768))?;
        let learned_size = keys.number("image_size", Some(224))?;
        let image_size = match (images.fit, &processor) {
            (Fit::Crop { side, .. }, Beside::Given(_) | Beside::Unknown) if encoder.is_dinov2() => side,
            (Fit::Crop { side, .. }, Beside::Given(processor)) if side != learned_size => {
                let message = format!("it gives images of {side} pixels, and the encoder has {learned_size}");
                return Err(processor.wrong(message));
            }
            _ => learned_size,
        };
        let images = ImageProcessor { fit: images.fit.of(image_size), ..images };
        let config = Self {
            encoder,
            hidden_size,
            intermediate_size: inner(keys, encoder, hidden_size)?,
            num_hidden_layers: keys.number("num_hidden_layers", Some(12))?,
            num_attention_heads: keys.number("num_attention_heads", Some(12))?,
            image_size,
            learned_size: Some(learned_size).filter(|learned| *learned != image_size),
            patch_size: keys.number("patch_size", Some(defaults.patch_size))?,
            registers: match description.embeddings.registers {
                Some(_) => keys.number("num_register_tokens", Some(4))?,
                None => 0,
            },
            layer_norm_eps: keys.float("layer_norm_eps", defaults.epsilon)?,
            hidden_act: keys.word("hidden_act", defaults.activation)?,
            images,
        };
        config.check(keys)?;
        Ok(config)
    }

    fn check(&self, keys: &Keys<'_>) -> Result<()> {
        keys.only(&[("num_channels", &[json!(3)]), ("qkv_bias", &[json!(true)]), ("use_swiglu_ffn", &[json!(false)])])?;
        keys.positive(&[
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("patch_size", self.patch_size),
        ])?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) || self.patches() == 0 || self.learned_grid() == 0
        {
            return Err(
                keys.wrong("hidden_size must be a multiple of num_attention_heads, and image_size at least patch_size")
            );
        }
        if self.hidden_act == Activation::Silu {
            return Err(keys.wrong("`hidden_act` must be a GELU"));
        }
        Ok(())
    }

    /// Converts to the `config.json` of the encoder's own folder.
    pub fn to_json(&self) -> Value {
        let (model_type, architecture) = self.encoder.description().whole;
        if self.encoder.is_dinov2() {
            let mut value = self.vision_json();
            value["architectures"] = json!([architecture]);
            return value;
        }
        json!({ "model_type": model_type, "architectures": [architecture], "vision_config": self.vision_json() })
    }

    /// The keys of the network, as transformers has them, of an encoder with these positions.
    pub(crate) fn network_json(&self) -> Value {
        let mut value = json!({
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "layer_norm_eps": self.layer_norm_eps,
            "hidden_act": self.hidden_act,
            "model_type": self.encoder.description().model_type,
        });
        if self.encoder.is_dinov2() {
            let (inner, width) = (self.intermediate_size, self.hidden_size);
            let whole = inner.is_multiple_of(width);
            value["mlp_ratio"] = if whole { json!(inner / width) } else { json!(inner as f64 / width as f64) };
        } else {
            value["intermediate_size"] = json!(self.intermediate_size);
        }
        if self.registers > 0 {
            value["num_register_tokens"] = json!(self.registers);
        }
        value
    }

    /// The keys of the network, and of its images if they are not the usual ones.
    pub(super) fn vision_json(&self) -> Value {
        let mut value = self.network_json();
        let [own, usual] =
            [self.images, self.encoder.description().images].map(|images| images.to_json(self.image_size));
        if own != usual {
            value[IMAGES] = Value::Object(own);
        }
        value
    }
}

/// Width inside the MLP, which `DINOv2` has as a multiple of the width of the residual stream.
fn inner(keys: &Keys<'_>, encoder: Encoder, hidden_size: usize) -> Result<usize> {
    if !encoder.is_dinov2() {
        return keys.number("intermediate_size", Some(3072));
    }
    let ratio = keys.float("mlp_ratio", 4.0)?;
    if !(0.0..=64.0).contains(&ratio) {
        return Err(keys.wrong(format!("`mlp_ratio` = {ratio} is not supported: it must be at most 64")));
    }
    // Rounding may have made a ratio that was computed from a width slightly too small.
    Ok((hidden_size as f64 * ratio + 1e-6) as usize)
}
