//! The families of language models: what they are called, which linear layers and norms a block has, and the values that
//! transformers assumes where `config.json` is silent. Independent of how files are read and of the arithmetic.
//!
//! To add a family whose blocks are made of the [`Part`]s that there are:
//! 1. add a variant to [`Family`], and to [`Family::ALL`];
//! 2. write its [`Description`] below, from transformers' `modeling_*.py` and `configuration_*.py`;
//! 3. in imp-stages, where the compiler asks for it: its conversation template (`Template::of_family`);
//! 4. add it to `tests/families.rs` (against the oracle) and `tests/memory.rs` (forecast against the allocator).
//!
//! A new [`Part`] also needs its shape and its input here, and its arithmetic in `attention.rs` or `mlp.rs`.

use crate::tensor::Activation;

/// Which network a language model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Phi-1.5, Phi-2: attention and MLP side by side, layer norms, biases everywhere.
    Phi,
    /// Qwen1.5, Qwen2: RMS norms, a gated MLP, biases on queries, keys and values only.
    Qwen2,
    /// Llama, `TinyLlama`, `SmolLM2`, `MobileLLaMA`: Qwen2 without biases.
    Llama,
    /// Phi-3: Llama with q, k and v in one matrix, gate and up in another.
    Phi3,
}

/// A linear layer, by what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The rows of queries, keys and values in one matrix.
    Qkv,
    /// The output of attention.
    O,
    /// The gate of an MLP.
    Gate,
    /// Into an MLP.
    Up,
    /// The rows of gate and up in one matrix.
    GateUp,
    /// Out of an MLP.
    Down,
    /// The output layer.
    LmHead,
}

/// What a linear layer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The normed rows before attention.
    AttentionNorm,
    /// What attention gives.
    Attended,
    /// The normed rows before the MLP; in a family with one norm the same as before attention.
    MlpNorm,
    /// What the MLP's activation gives.
    Inner,
    /// The normed rows after the last block.
    FinalNorm,
}

impl Part {
    /// What it reads: layers with the same input share it.
    pub fn input(self) -> Input {
        match self {
            Self::Q | Self::K | Self::V | Self::Qkv => Input::AttentionNorm,
            Self::O => Input::Attended,
            Self::Gate | Self::Up | Self::GateUp => Input::MlpNorm,
            Self::Down => Input::Inner,
            Self::LmHead => Input::FinalNorm,
        }
    }

    /// Whether its output is added to the residual stream.
    pub fn ends_branch(self) -> bool {
        match self.input() {
            Input::Attended | Input::Inner => true,
            Input::AttentionNorm | Input::MlpNorm | Input::FinalNorm => false,
        }
    }

    /// Width of its output and of its input.
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

/// The widths that linear layers lie between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Widths {
    pub(crate) vocab: usize,
    /// Of the residual stream.
    pub(crate) hidden: usize,
    /// Inside the MLP.
    pub(crate) inner: usize,
    /// Of all query heads.
    pub(crate) queries: usize,
    /// Of all key heads, and of all value heads.
    pub(crate) keys: usize,
}

/// A linear layer of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// What it does.
    pub part: Part,
    /// Its name in files; of a block's layer, what follows `model.layers.N.`.
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

    /// The last part of its name, by which adapters choose layers (peft's `target_modules`).
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

/// Whether adapters go on the layer `short_name`: `targets` are such names; if there are none, all layers are meant.
pub(crate) fn is_target(targets: &[String], short_name: &str) -> bool {
    targets.is_empty() || targets.iter().any(|target| target == short_name)
}

/// When the attention of a family has a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// Never.
    Never,
    /// If `use_sliding_window` says so, from layer `max_window_layers` on: files name a width also where it is not used.
    IfUsed,
    /// If there is a `sliding_window`.
    IfGiven,
}

/// A family's row of the table.
#[derive(Debug)]
pub(crate) struct Description {
    /// `model_type` of the language model: the first is written, all are read.
    pub(crate) model_types: &'static [&'static str],
    /// `model_type` of an Imp on it.
    pub(crate) imp_model_type: &'static str,
    /// `architectures` of the language model, and of an Imp on it.
    pub(crate) architecture: &'static str,
    pub(crate) imp_architecture: &'static str,
    /// The linear layers of a block, in the order of files and of training.
    pub(crate) layers: &'static [Layer],
    pub(crate) head: Layer,
    /// Layer norms have a weight and a bias, RMS norms a weight.
    pub(crate) rms_norms: bool,
    /// The norms of a block. Where there is one, attention and MLP stand side by side and share it.
    pub(crate) block_norms: &'static [&'static str],
    pub(crate) final_norm: &'static str,
    /// The key of the norms' epsilon, and its default.
    pub(crate) epsilon: (&'static str, f64),
    /// The default nonlinearity of the MLP.
    pub(crate) activation: Activation,
    /// The default share of a head that is rotated.
    pub(crate) rotary_share: f64,
    pub(crate) window: Window,
    /// Whether `attention_bias` in a file is no reason to refuse it.
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

    /// By `model_type`: that of a language model, or of an Imp built on one. An Imp on Phi-2 is just `imp`.
    pub fn by_model_type(name: &str) -> Option<Self> {
        let name = name.strip_prefix("imp_").unwrap_or(name);
        Self::ALL.into_iter().find(|family| family.description().model_types.contains(&name))
    }

    /// `model_type` of the language model, as it is written.
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

    /// The layer of a block that does `part`, if the family has one, or the output layer.
    pub fn layer(self, part: Part) -> Option<&'static Layer> {
        self.block_layers().iter().chain([self.head()]).find(|layer| layer.part == part)
    }

    /// Whether there is such a layer.
    pub fn has(self, part: Part) -> bool {
        self.layer(part).is_some()
    }

    /// Whether the MLP has a gate.
    pub fn is_gated(self) -> bool {
        self.has(Part::Gate) || self.has(Part::GateUp)
    }
}
