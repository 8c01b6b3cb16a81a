//! The families of language models: their names, the linear layers and norms of a block, and transformers' defaults for
//! missing keys of `config.json`. Independent of how files are read and of the arithmetic.
//!
//! To add a family whose blocks consist of existing [`Part`]s:
//! 1. add a variant to [`Family`], and to [`Family::ALL`];
//! 2. write its `Description` below, from transformers' `modeling_*.py` and `configuration_*.py`;
//! 3. add its conversation template to imp-stages where the compiler reports it (`Template::of_family`);
//! 4. add it to `tests/families.rs` (checks against the oracle) and `tests/memory.rs` (forecast against the allocator).
//!
//! A new [`Part`] also needs its shape and its input here, and its arithmetic in `attention.rs` or `mlp.rs`.

use crate::tensor::Activation;

/// The architecture of a language model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Phi-1.5, Phi-2: parallel attention and MLP, layer norms, biases in all linear layers.
    Phi,
    /// Qwen1.5, Qwen2: RMS norms, a gated MLP, biases on queries, keys and values only.
    Qwen2,
    /// Llama, `TinyLlama`, `SmolLM2`, `MobileLLaMA`: Qwen2 without biases.
    Llama,
    /// Phi-3: Llama with q, k and v in one matrix, gate and up in another.
    Phi3,
}

/// The function of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Query projection.
    Q,
    /// Key projection.
    K,
    /// Value projection.
    V,
    /// Query, key and value projection with their rows in one matrix.
    Qkv,
    /// Output projection of attention.
    O,
    /// Gate projection of a gated MLP.
    Gate,
    /// Up projection of an MLP.
    Up,
    /// Gate and up projection with their rows in one matrix.
    GateUp,
    /// Down projection of an MLP.
    Down,
    /// Output layer, from hidden states to logits.
    LmHead,
}

/// The input of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The output of the norm before attention.
    AttentionNorm,
    /// The output of attention.
    Attended,
    /// The output of the norm before the MLP; in a block with one norm, the same as before attention.
    MlpNorm,
    /// The output of the MLP's activation function.
    Inner,
    /// The output of the final norm.
    FinalNorm,
}

impl Part {
    /// The input, which layers of a block with the same value share.
    pub fn input(self) -> Input {
        match self {
            Self::Q | Self::K | Self::V | Self::Qkv => Input::AttentionNorm,
            Self::O => Input::Attended,
            Self::Gate | Self::Up | Self::GateUp => Input::MlpNorm,
            Self::Down => Input::Inner,
            Self::LmHead => Input::FinalNorm,
        }
    }

    /// Whether the output is added to the residual stream.
    pub fn ends_branch(self) -> bool {
        match self.input() {
            Input::Attended | Input::Inner => true,
            Input::AttentionNorm | Input::MlpNorm | Input::FinalNorm => false,
        }
    }

    /// Widths of output and input.
    pub(crate) fn shape(self, widths: Widths) -> (usize, usize) {
        let Widths { vocab, hidden, inner, queries, keys } = widths;
        match self {
            Self::Q => (queries, hidden),
            Self::K | Self::V => (keys, hidden),
            Self::Qkv => (queries + 2 * keys, hidden),
            Self::O => (hidden, queries),
            Self::Gate | Self::Up => (inner, hidden),
            Self::GateUp => (2 * inner, hidden),
            Self::Down => (hidden, inner),
            Self::LmHead => (vocab, hidden),
        }
    }
}

/// The widths that determine the shapes of linear layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widths {
    pub(crate) vocab: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width inside the MLP.
    pub(crate) inner: usize,
    /// Width of all query heads.
    pub(crate) queries: usize,
    /// Width of all key heads, which is that of all value heads.
    pub(crate) keys: usize,
}

/// A linear layer of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// The function.
    pub part: Part,
    /// The name in files; for a layer of a block, without `model.layers.N.`.
    pub name: &'static str,
    /// Whether it has a bias.
    pub bias: bool,
}

impl Layer {
    const fn plain(part: Part, name: &'static str) -> Self {
        Self { part, name, bias: false }
    }

    const fn biased(part: Part, name: &'static str) -> Self {
        Self { part, name, bias: true }
    }

    /// The last component of the name, such as `q_proj`, by which adapters target layers (peft's `target_modules`).
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

/// Whether the layer `short_name` gets an adapter: if it is in `targets`, or if `targets` is empty.
pub(crate) fn is_target(targets: &[String], short_name: &str) -> bool {
    targets.is_empty() || targets.iter().any(|target| target == short_name)
}

/// When attention has a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// Never.
    Never,
    /// If `use_sliding_window` is true, from layer `max_window_layers` on. Files also have a `sliding_window` if it is
    /// unused.
    IfUsed,
    /// If `sliding_window` is present.
    IfGiven,
}

/// The properties of a family.
#[derive(Debug)]
pub(crate) struct Description {
    /// Values of `model_type` of the language model: all are read, the first is written.
    pub(crate) model_types: &'static [&'static str],
    /// `model_type` of an Imp with this language model.
    pub(crate) imp_model_type: &'static str,
    /// `architectures` of the language model.
    pub(crate) architecture: &'static str,
    /// `architectures` of an Imp with this language model.
    pub(crate) imp_architecture: &'static str,
    /// The linear layers of a block, in the order of files and of training.
    pub(crate) layers: &'static [Layer],
    pub(crate) head: Layer,
    /// Whether norms are RMS norms, without bias, rather than layer norms.
    pub(crate) rms_norms: bool,
    /// The norms of a block. If there is only one, attention and MLP are parallel and share it.
    pub(crate) block_norms: &'static [&'static str],
    pub(crate) final_norm: &'static str,
    /// The key and the default of the norms' epsilon.
    pub(crate) epsilon: (&'static str, f64),
    /// The default activation function of the MLP.
    pub(crate) activation: Activation,
    /// The default share of a head's dimensions that is rotated.
    pub(crate) rotary_share: f64,
    pub(crate) window: Window,
    /// Whether a file may set `attention_bias`.
    pub(crate) attention_bias: bool,
}

const TWO_NORMS: &[&str] = &["input_layernorm", "post_attention_layernorm"];

const PHI: Description = Description {
    model_types: &["phi", "phi2", "phi-msft", "imp", ""],
    imp_model_type: "imp",
    architecture: "PhiForCausalLM",
    imp_architecture: "ImpForCausalLM",
    layers: &[
        Layer::biased(Part::Q, "self_attn.q_proj"),
        Layer::biased(Part::K, "self_attn.k_proj"),
        Layer::biased(Part::V, "self_attn.v_proj"),
        Layer::biased(Part::O, "self_attn.dense"),
        Layer::biased(Part::Up, "mlp.fc1"),
        Layer::biased(Part::Down, "mlp.fc2"),
    ],
    head: Layer::biased(Part::LmHead, "lm_head"),
    rms_norms: false,
    block_norms: &["input_layernorm"],
    final_norm: "model.final_layernorm",
    epsilon: ("layer_norm_eps", 1e-5),
    activation: Activation::GeluTanh,
    rotary_share: 0.5,
    window: Window::Never,
    attention_bias: false,
};

const QWEN2: Description = Description {
    model_types: &["qwen2", "qwen1.5", "qwen1_5"],
    imp_model_type: "imp_qwen2",
    architecture: "Qwen2ForCausalLM",
    imp_architecture: "ImpQwen2ForCausalLM",
    layers: &[
        Layer::biased(Part::Q, "self_attn.q_proj"),
        Layer::biased(Part::K, "self_attn.k_proj"),
        Layer::biased(Part::V, "self_attn.v_proj"),
        Layer::plain(Part::O, "self_attn.o_proj"),
        Layer::plain(Part::Gate, "mlp.gate_proj"),
        Layer::plain(Part::Up, "mlp.up_proj"),
        Layer::plain(Part::Down, "mlp.down_proj"),
    ],
    head: Layer::plain(Part::LmHead, "lm_head"),
    rms_norms: true,
    block_norms: TWO_NORMS,
    final_norm: "model.norm",
    epsilon: ("rms_norm_eps", 1e-6),
    activation: Activation::Silu,
    rotary_share: 1.0,
    window: Window::IfUsed,
    attention_bias: true,
};

const LLAMA: Description = Description {
    model_types: &["llama"],
    imp_model_type: "imp_llama",
    architecture: "LlamaForCausalLM",
    imp_architecture: "ImpLlamaForCausalLM",
    layers: &[
        Layer::plain(Part::Q, "self_attn.q_proj"),
        Layer::plain(Part::K, "self_attn.k_proj"),
        Layer::plain(Part::V, "self_attn.v_proj"),
        Layer::plain(Part::O, "self_attn.o_proj"),
        Layer::plain(Part::Gate, "mlp.gate_proj"),
        Layer::plain(Part::Up, "mlp.up_proj"),
        Layer::plain(Part::Down, "mlp.down_proj"),
    ],
    window: Window::Never,
    attention_bias: false,
    ..QWEN2
};

const PHI3: Description = Description {
    model_types: &["phi3"],
    imp_model_type: "imp_phi3",
    architecture: "Phi3ForCausalLM",
    imp_architecture: "ImpPhi3ForCausalLM",
    layers: &[
        Layer::plain(Part::Qkv, "self_attn.qkv_proj"),
        Layer::plain(Part::O, "self_attn.o_proj"),
        Layer::plain(Part::GateUp, "mlp.gate_up_proj"),
        Layer::plain(Part::Down, "mlp.down_proj"),
    ],
    epsilon: ("rms_norm_eps", 1e-5),
    window: Window::IfGiven,
    ..LLAMA
};

impl Family {
    /// Every family.
    pub const ALL: [Self; 4] = [Self::Phi, Self::Qwen2, Self::Llama, Self::Phi3];

    pub(crate) fn description(self) -> &'static Description {
        match self {
            Self::Phi => &PHI,
            Self::Qwen2 => &QWEN2,
            Self::Llama => &LLAMA,
            Self::Phi3 => &PHI3,
        }
    }

    /// The family with this `model_type`, of a language model or of an Imp with one (`imp` for Phi).
    pub fn by_model_type(name: &str) -> Option<Self> {
        let name = name.strip_prefix("imp_").unwrap_or(name);
        Self::ALL.into_iter().find(|family| family.description().model_types.contains(&name))
    }

    /// The `model_type` of the language model that is written.
    pub fn model_type(self) -> &'static str {
        self.description().model_types[0]
    }

    /// The linear layers of a block, in the order of files and of training.
    pub fn block_layers(self) -> &'static [Layer] {
        self.description().layers
    }

    /// The output layer.
    pub fn head(self) -> &'static Layer {
        &self.description().head
    }

    /// The block's layer or output layer with this function, if the family has one.
    pub fn layer(self, part: Part) -> Option<&'static Layer> {
        self.block_layers().iter().chain([self.head()]).find(|layer| layer.part == part)
    }

    /// Whether the family has a layer with this function.
    pub fn has(self, part: Part) -> bool {
        self.layer(part).is_some()
    }

    /// Whether the MLP is gated.
    pub fn is_gated(self) -> bool {
        self.has(Part::Gate) || self.has(Part::GateUp)
    }
}
