//! The vision encoders: their names in files, what precedes the patches, and transformers' defaults for missing keys of
//! `config.json` and of `preprocessor_config.json`. Independent of how files are read and of the arithmetic.
//!
//! To add an encoder whose network consists of what is here: add a variant to [`Encoder`] and to [`Encoder::ALL`], write its
//! `Description` from transformers' `modeling_*.py`, `configuration_*.py` and `image_processing_*.py`, and add a tiny random
//! checkpoint to `benches/peers/vision.py`.

use crate::{
    images::{Filter, Fit, ImageProcessor},
    tensor::Activation,
};

/// The architecture of a vision encoder: pre-norm transformers on square patches, which differ in the following.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoder {
    /// `SigLIP` (Zhai et al. 2023, arXiv 2303.15343), and the checkpoints of `SigLIP` 2 with a fixed resolution: patches only.
    Siglip,
    /// CLIP (Radford et al. 2021, arXiv 2103.00020): a class token, and a norm before the first block.
    Clip,
    /// `DINOv2` (Oquab et al. 2023, arXiv 2304.07193): a class token, and a factor for each channel of a branch (`LayerScale`).
    Dinov2,
    /// `DINOv2` with registers (Darcet et al. 2023, arXiv 2309.16588): tokens between class token and patches.
    Dinov2WithRegisters,
}

/// The names of the embeddings.
#[derive(Debug)]
pub(crate) struct Embeddings {
    /// The convolution on patches, without `.weight`.
    pub(crate) patch: &'static str,
    /// Whether it has a bias.
    pub(crate) patch_bias: bool,
    /// The positions, `[positions, hidden]` behind as many axes of length 1 as the class token has beyond one.
    pub(crate) position: &'static str,
    /// The class token, and the number of its axes. It has the first position.
    pub(crate) class: Option<(&'static str, usize)>,
    /// The registers, which have no position.
    pub(crate) registers: Option<&'static str>,
}

/// The names of a block's layers.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) norms: [&'static str; 2],
    /// Queries, keys, values, the output of attention, and both layers of the MLP.
    pub(crate) linears: [&'static str; 6],
    /// The factors of the two branches.
    pub(crate) scales: Option<[&'static str; 2]>,
}

/// Transformers' defaults for missing keys.
#[derive(Debug)]
pub(crate) struct Defaults {
    pub(crate) patch_size: usize,
    pub(crate) epsilon: f64,
    pub(crate) activation: Activation,
}

/// The properties of an encoder.
#[derive(Debug)]
pub(crate) struct Description {
    /// `model_type` of the encoder alone.
    pub(crate) model_type: &'static str,
    /// `model_type` and `architectures` of the folder that is written; for encoders that were trained with a text encoder, the
    /// type of both.
    pub(crate) whole: (&'static str, &'static str),
    /// What precedes the names of its tensors in such a folder.
    pub(crate) prefix: &'static str,
    pub(crate) embeddings: Embeddings,
    /// The norm before the first block.
    pub(crate) first_norm: Option<&'static str>,
    /// The norm after the last block, which features do not pass.
    pub(crate) last_norm: &'static str,
    /// What the names of tensors that are not used begin with.
    pub(crate) unused: &'static [&'static str],
    /// What precedes the number of a block.
    pub(crate) blocks: &'static str,
    pub(crate) parts: Parts,
    pub(crate) defaults: Defaults,
    /// The class of transformers' image processor.
    pub(crate) processor: &'static str,
    /// How images become pixel values.
    pub(crate) images: ImageProcessor,
    /// What other tensors may stand in the folder beside those under `prefix`.
    pub(crate) beside: &'static [&'static str],
}

const SIGLIP: Description = Description {
    model_type: "siglip_vision_model",
    whole: ("siglip", "SiglipModel"),
    prefix: "vision_model.",
    embeddings: Embeddings {
        patch: "embeddings.patch_embedding",
        patch_bias: true,
        position: "embeddings.position_embedding.weight",
        class: None,
        registers: None,
    },
    first_norm: None,
    last_norm: "post_layernorm",
    unused: &["encoder.layers.", "post_layernorm.", "head.", "embeddings.position_ids"],
    blocks: "encoder.layers",
    parts: Parts {
        norms: ["layer_norm1", "layer_norm2"],
        linears: [
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.out_proj",
            "mlp.fc1",
            "mlp.fc2",
        ],
        scales: None,
    },
    defaults: Defaults { patch_size: 16, epsilon: 1e-6, activation: Activation::GeluTanh },
    processor: "SiglipImageProcessor",
    images: ImageProcessor { mean: [0.5; 3], std: [0.5; 3], filter: Filter::Bicubic, fit: Fit::Stretch },
    beside: &["text_model.", "logit_scale", "logit_bias", "classifier."],
};

const CLIP: Description = Description {
    model_type: "clip_vision_model",
    whole: ("clip", "CLIPModel"),
    embeddings: Embeddings { patch_bias: false, class: Some(("embeddings.class_embedding", 1)), ..SIGLIP.embeddings },
    // Spelled like this by OpenAI's first port, and kept.
    first_norm: Some("pre_layrnorm"),
    defaults: Defaults { patch_size: 32, epsilon: 1e-5, activation: Activation::QuickGelu },
    processor: "CLIPImageProcessor",
    images: ImageProcessor {
        mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
        std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
        filter: Filter::Bicubic,
        fit: Fit::Crop { edge: 224, side: 224 },
    },
    beside: &["text_model.", "logit_scale", "text_projection.", "visual_projection.", "classifier."],
    ..SIGLIP
};

const DINOV2: Description = Description {
    model_type: "dinov2",
    whole: ("dinov2", "Dinov2Model"),
    prefix: "",
    embeddings: Embeddings {
        patch: "embeddings.patch_embeddings.projection",
        patch_bias: true,
        position: "embeddings.position_embeddings",
        class: Some(("embeddings.cls_token", 3)),
        registers: None,
    },
    first_norm: None,
    last_norm: "layernorm",
    unused: &["encoder.layer.", "layernorm.", "embeddings.mask_token"],
    blocks: "encoder.layer",
    parts: Parts {
        norms: ["norm1", "norm2"],
        linears: [
            "attention.attention.query",
            "attention.attention.key",
            "attention.attention.value",
            "attention.output.dense",
            "mlp.fc1",
            "mlp.fc2",
        ],
        scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"]),
    },
    defaults: Defaults { patch_size: 14, epsilon: 1e-6, activation: Activation::GeluErf },
    processor: "BitImageProcessor",
    images: ImageProcessor {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        filter: Filter::Bicubic,
        fit: Fit::Crop { edge: 256, side: 224 },
    },
    beside: &["classifier."],
};

const DINOV2_WITH_REGISTERS: Description = Description {
    model_type: "dinov2_with_registers",
    whole: ("dinov2_with_registers", "Dinov2WithRegistersModel"),
    embeddings: Embeddings { registers: Some("embeddings.register_tokens"), ..DINOV2.embeddings },
    ..DINOV2
};

impl Encoder {
    /// Every encoder.
    pub const ALL: [Self; 4] = [Self::Siglip, Self::Clip, Self::Dinov2, Self::Dinov2WithRegisters];

    pub(crate) fn description(self) -> &'static Description {
        match self {
            Self::Siglip => &SIGLIP,
            Self::Clip => &CLIP,
            Self::Dinov2 => &DINOV2,
            Self::Dinov2WithRegisters => &DINOV2_WITH_REGISTERS,
        }
    }

    /// The encoder with this `model_type`, alone or with a text encoder.
    pub fn by_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|encoder| {
            let description = encoder.description();
            [description.model_type, description.whole.0].contains(&name)
        })
    }

    /// Whether a token that stands for the whole image precedes the patches. It is no feature.
    pub fn has_class(self) -> bool {
        self.description().embeddings.class.is_some()
    }

    /// Whether this is a `DINOv2`, whose positions are interpolated where its images are of another size than in its training.
    pub(crate) fn is_dinov2(self) -> bool {
        matches!(self, Self::Dinov2 | Self::Dinov2WithRegisters)
    }
}
