//! The sizes of a language model, of any of the families that Imp is built on.

use serde_json::{Value, json};

use super::keys::Keys;
use crate::{error::Result, tensor::Activation};

/// Which network the sizes belong to.
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

impl Family {
    /// By `model_type`: that of a language model, or of an Imp built on one. An Imp on Phi-2 is just `imp`.
    pub fn by_model_type(name: &str) -> Option<Self> {
        match name.strip_prefix("imp_").unwrap_or(name) {
            "imp" | "phi" | "phi2" | "phi-msft" | "" => Some(Self::Phi),
            "qwen2" | "qwen1.5" | "qwen1_5" => Some(Self::Qwen2),
            "llama" => Some(Self::Llama),
            "phi3" => Some(Self::Phi3),
            _ => None,
        }
    }

    /// `model_type` of the language model, of an Imp on it, and `architectures` of both.
    pub(super) fn names(self) -> [&'static str; 4] {
        match self {
            Self::Phi => ["phi", "imp", "PhiForCausalLM", "ImpForCausalLM"],
            Self::Qwen2 => ["qwen2", "imp_qwen2", "Qwen2ForCausalLM", "ImpQwen2ForCausalLM"],
            Self::Llama => ["llama", "imp_llama", "LlamaForCausalLM", "ImpLlamaForCausalLM"],
            Self::Phi3 => ["phi3", "imp_phi3", "Phi3ForCausalLM", "ImpPhi3ForCausalLM"],
        }
    }

    /// The key of the norms' epsilon, and its default in transformers.
    fn epsilon(self) -> (&'static str, f64) {
        match self {
            Self::Phi => ("layer_norm_eps", 1e-5),
            Self::Qwen2 | Self::Llama => ("rms_norm_eps", 1e-6),
            Self::Phi3 => ("rms_norm_eps", 1e-5),
        }
    }
}

/// A language model.
#[derive(Clone, Debug, PartialEq)]
pub struct LanguageConfig {
    /// The network.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads: fewer than query heads in grouped-query attention (Ainslie et al. 2023).
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Dimensions of each head that are rotated, from the first.
    pub rotary_dims: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Nonlinearity of the MLP.
    pub hidden_act: Activation,
    /// Whether the embedding is the output layer, too.
    pub tie_word_embeddings: bool,
    /// A position sees so many, itself included, in the layers from `max_window_layers` on.
    pub sliding_window: Option<usize>,
    /// Layers before this one see everything.
    pub max_window_layers: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The token that begins a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_id: Vec<u32>,
}

impl LanguageConfig {
    /// Phi-2's choices at other sizes: 0.4 of each head is rotated in Phi-2, `rotary_dims` here.
    pub fn phi(vocab_size: usize, hidden_size: usize, layers: usize, heads: usize, rotary_dims: usize) -> Self {
        Self {
            family: Family::Phi,
            vocab_size,
            hidden_size,
            intermediate_size: 4 * hidden_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: hidden_size / heads.max(1),
            rotary_dims,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            hidden_act: Activation::GeluTanh,
            tie_word_embeddings: false,
            sliding_window: None,
            max_window_layers: 0,
            max_position_embeddings: 2048,
            bos_token_id: None,
            eos_token_id: Vec::new(),
        }
    }

    /// Reads the keys of `config.json`; missing ones have transformers' defaults for the family.
    pub(super) fn read(keys: &Keys<'_>, family: Family) -> Result<Self> {
        let heads = keys.number("num_attention_heads", None)?;
        let hidden_size = keys.number("hidden_size", None)?;
        let head_dim = keys.number("head_dim", Some(hidden_size / heads.max(1)))?;
        let share = keys.rotary("partial_rotary_factor", if family == Family::Phi { 0.5 } else { 1.0 })?;
        let (epsilon, usual) = family.epsilon();
        let sliding_window = Self::window(keys, family)?;
        let act = if family == Family::Phi { Activation::GeluTanh } else { Activation::Silu };
        let config = Self {
            family,
            vocab_size: keys.number("vocab_size", None)?,
            hidden_size,
            intermediate_size: keys.number("intermediate_size", None)?,
            num_hidden_layers: keys.number("num_hidden_layers", None)?,
            num_attention_heads: heads,
            num_key_value_heads: keys.number("num_key_value_heads", Some(heads))?,
            head_dim,
            // A share that was computed from a number of dimensions may fall just short of it.
            rotary_dims: (share * head_dim as f64 + 1e-6) as usize,
            rope_theta: keys.rotary("rope_theta", 10_000.0)?,
            norm_eps: keys.float(epsilon, usual)?,
            hidden_act: keys.word("hidden_act", act)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            sliding_window,
            max_window_layers: match (family, sliding_window) {
                (Family::Qwen2, Some(_)) => keys.number("max_window_layers", Some(28))?,
                _ => 0,
            },
            max_position_embeddings: keys.number("max_position_embeddings", Some(2048))?,
            bos_token_id: keys.ids("bos_token_id")?.first().copied(),
            eos_token_id: keys.ids("eos_token_id")?,
        };
        config.check(keys, share)?;
        Ok(config)
    }

    /// Qwen2's files name a window also where none is used; Llama has none.
    fn window(keys: &Keys<'_>, family: Family) -> Result<Option<usize>> {
        let used = match family {
            Family::Phi | Family::Llama => false,
            Family::Qwen2 => keys.flag("use_sliding_window", false)?,
            Family::Phi3 => keys.get("sliding_window").is_some(),
        };
        Ok(if used { Some(keys.number("sliding_window", Some(4096))?.max(1)) } else { None })
    }

    fn check(&self, keys: &Keys<'_>, share: f64) -> Result<()> {
        keys.positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ])?;
        keys.plain_rotary()?;
        let own_head_dim = keys.get("head_dim").is_some();
        if !(own_head_dim || self.hidden_size.is_multiple_of(self.num_attention_heads))
            || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads)
        {
            return Err(
                keys.wrong("hidden_size must be a multiple of num_attention_heads, and that of num_key_value_heads")
            );
        }
        if !(0.0..=1.0).contains(&share) || !self.rotary_dims.is_multiple_of(2) {
            return Err(keys.wrong("partial_rotary_factor must be a share that gives an even number of dimensions"));
        }
        if (self.hidden_act == Activation::Silu) == (self.family == Family::Phi) {
            return Err(keys.wrong("`hidden_act` must be `silu` for a gated MLP, and a GELU for Phi"));
        }
        for unsupported in ["qk_layernorm", "mlp_bias"] {
            if keys.flag(unsupported, false)? {
                return Err(keys.wrong(format!("`{unsupported}` is not supported")));
            }
        }
        if self.family != Family::Qwen2 && keys.flag("attention_bias", false)? {
            return Err(keys.wrong("`attention_bias` is not supported"));
        }
        Ok(())
    }

    /// How many positions a row of `layer` sees, if not all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| layer >= self.max_window_layers)
    }

    /// Whether the norms are RMS norms.
    pub fn has_rms_norm(&self) -> bool {
        self.family != Family::Phi
    }

    /// The name of the norm after the last block.
    pub fn final_norm(&self) -> &'static str {
        if self.family == Family::Phi { "model.final_layernorm" } else { "model.norm" }
    }

    /// The norms of a block, by their names after `model.layers.N.`.
    pub fn block_norms(&self) -> &'static [&'static str] {
        // Phi's attention and MLP share one.
        if self.family == Family::Phi { &["input_layernorm"] } else { &["input_layernorm", "post_attention_layernorm"] }
    }

    /// The linear layers of a block, by their names after `model.layers.N.`.
    pub fn block_linears(&self) -> &'static [&'static str] {
        match self.family {
            Family::Phi => {
                &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"]
            }
            Family::Qwen2 | Family::Llama => &[
                "self_attn.q_proj",
                "self_attn.k_proj",
                "self_attn.v_proj",
                "self_attn.o_proj",
                "mlp.gate_proj",
                "mlp.up_proj",
                "mlp.down_proj",
            ],
            Family::Phi3 => &["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
        }
    }

    /// Outputs, inputs and whether there is a bias, of a linear layer by its name.
    pub fn linear_shape(&self, name: &str) -> (usize, usize, bool) {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let (queries, keys) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let (phi, qwen) = (self.family == Family::Phi, self.family == Family::Qwen2);
        match name {
            "self_attn.q_proj" => (queries, hidden, phi || qwen),
            "self_attn.k_proj" | "self_attn.v_proj" => (keys, hidden, phi || qwen),
            "self_attn.qkv_proj" => (queries + 2 * keys, hidden, false),
            "self_attn.dense" | "self_attn.o_proj" => (hidden, queries, phi),
            "mlp.fc2" | "mlp.down_proj" => (hidden, inner, phi),
            "mlp.gate_up_proj" => (2 * inner, hidden, false),
            "lm_head" => (self.vocab_size, hidden, phi),
            _ => (inner, hidden, phi),
        }
    }

    /// How many weights it has.
    pub fn parameters(&self) -> usize {
        let linear = |name: &&str| {
            let (outputs, inputs, bias) = self.linear_shape(name);
            outputs * (inputs + usize::from(bias))
        };
        let norm = self.hidden_size * if self.has_rms_norm() { 1 } else { 2 };
        let block = self.block_linears().iter().map(linear).sum::<usize>() + self.block_norms().len() * norm;
        let head = if self.tie_word_embeddings { 0 } else { linear(&"lm_head") };
        self.vocab_size * self.hidden_size + self.num_hidden_layers * block + norm + head
    }

    /// As a `config.json`, with the keys of published checkpoints.
    pub fn to_json(&self) -> Value {
        let [model_type, _, architecture, _] = self.family.names();
        let mut value = json!({
            "model_type": model_type,
            "architectures": [architecture],
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "rope_theta": self.rope_theta,
            "hidden_act": self.hidden_act,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": match self.eos_token_id.as_slice() {
                [one] => json!(one),
                all => json!(all),
            },
        });
        value[self.family.epsilon().0] = json!(self.norm_eps);
        if self.rotary_dims != self.head_dim {
            value["partial_rotary_factor"] = json!(self.rotary_dims as f64 / self.head_dim as f64);
        }
        if self.head_dim * self.num_attention_heads != self.hidden_size {
            value["head_dim"] = json!(self.head_dim);
        }
        if let Some(window) = self.sliding_window {
            value["sliding_window"] = json!(window);
            value["use_sliding_window"] = json!(true);
            value["max_window_layers"] = json!(self.max_window_layers);
        }
        value
    }
}
