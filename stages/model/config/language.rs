//! The configuration of a language model, read from and written to `config.json`. Families and their defaults are in
//! `family.rs`.

use serde_json::{Value, json};

use super::{keys::Keys, rope};
use crate::{
    encoding::q4f16,
    error::Result,
    family::{Family, Layer, Widths, Window},
    rope::{Rope, RopeScaling},
    tensor::Activation,
};

/// The configuration of a language model.
#[derive(Clone, Debug, PartialEq)]
pub struct LanguageConfig {
    /// The architecture.
    pub family: Family,
    /// Rows of the embedding matrix.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; fewer than query heads in grouped-query attention (Ainslie et al. 2023).
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of dimensions of each head, from the first, to which the rotary position embedding applies.
    pub rotary_dims: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How these are scaled, if they are.
    pub rope_scaling: Option<RopeScaling>,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Activation function of the MLP.
    pub hidden_act: Activation,
    /// Whether the embedding matrix is also the weight of the output layer.
    pub tie_word_embeddings: bool,
    /// Width of the sliding window in positions, counting the query's own, in the layers from `max_window_layers` on.
    pub sliding_window: Option<usize>,
    /// Index of the first layer with a sliding window.
    pub max_window_layers: usize,
    /// The longest sequence that the model was trained for.
    pub max_position_embeddings: usize,
    /// The id of the token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The ids of the tokens that end a text.
    pub eos_token_id: Vec<u32>,
}

impl LanguageConfig {
    /// A configuration with the family's defaults and an MLP four times as wide as the residual stream.
    pub fn new(family: Family, vocab_size: usize, hidden_size: usize, layers: usize, heads: usize) -> Self {
        let (description, head_dim) = (family.description(), hidden_size / heads.max(1));
        Self {
            family,
            vocab_size,
            hidden_size,
            intermediate_size: 4 * hidden_size,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim,
            rotary_dims: rotary_dims(description.rotary_share, head_dim),
            rope_theta: 10_000.0,
            rope_scaling: None,
            norm_eps: description.epsilon.1,
            hidden_act: description.activation,
            tie_word_embeddings: false,
            sliding_window: None,
            max_window_layers: 0,
            max_position_embeddings: 2048,
            bos_token_id: None,
            eos_token_id: Vec::new(),
        }
    }

    /// A configuration with Phi's defaults and `rotary_dims` rotated dimensions per head (40% of a head in Phi-2).
    pub fn phi(vocab_size: usize, hidden_size: usize, layers: usize, heads: usize, rotary_dims: usize) -> Self {
        Self { rotary_dims, ..Self::new(Family::Phi, vocab_size, hidden_size, layers, heads) }
    }

    /// Reads the keys of `config.json`. Missing keys have transformers' defaults for the family.
    pub(super) fn read(keys: &Keys<'_>, family: Family) -> Result<Self> {
        let heads = keys.number("num_attention_heads", None)?;
        let hidden_size = keys.number("hidden_size", None)?;
        let head_dim = keys.number("head_dim", Some(hidden_size / heads.max(1)))?;
        let description = family.description();
        let share = keys.rotary("partial_rotary_factor", description.rotary_share)?;
        let (epsilon, usual) = description.epsilon;
        let sliding_window = Self::window(keys, description.window)?;
        let (dims, positions) = (rotary_dims(share, head_dim), keys.number("max_position_embeddings", Some(2048))?);
        let config = Self {
            family,
            vocab_size: keys.number("vocab_size", None)?,
            hidden_size,
            intermediate_size: keys.number("intermediate_size", None)?,
            num_hidden_layers: keys.number("num_hidden_layers", None)?,
            num_attention_heads: heads,
            num_key_value_heads: keys.number("num_key_value_heads", Some(heads))?,
            head_dim,
            rotary_dims: dims,
            rope_scaling: rope::read(keys, family, dims, positions)?,
            rope_theta: keys.rotary("rope_theta", 10_000.0)?,
            norm_eps: keys.float(epsilon, usual)?,
            hidden_act: keys.word("hidden_act", description.activation)?,
            tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
            sliding_window,
            max_window_layers: match (description.window, sliding_window) {
                (Window::IfUsed, Some(_)) => keys.number("max_window_layers", Some(28))?,
                _ => 0,
            },
            max_position_embeddings: positions,
            bos_token_id: keys.ids("bos_token_id")?.first().copied(),
            eos_token_id: keys.ids("eos_token_id")?,
        };
        config.check(keys, share)?;
        Ok(config)
    }

    fn window(keys: &Keys<'_>, window: Window) -> Result<Option<usize>> {
        let used = match window {
            Window::Never => false,
            Window::IfUsed => keys.flag("use_sliding_window", false)?,
            Window::IfGiven => keys.get("sliding_window").is_some(),
        };
        Ok(if used { Some(keys.number("sliding_window", Some(4096))?.max(1)) } else { None })
    }

    fn check(&self, keys: &Keys<'_>, share: f64) -> Result<()> {
        keys.positive(&[
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
        ])?;
        let own_head_dim = keys.get("head_dim").is_some();
        if !(own_head_dim || self.hidden_size.is_multiple_of(self.num_attention_heads))
            || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads)
        {
            return Err(keys.wrong(
                "hidden_size must be a multiple of num_attention_heads, and num_attention_heads of num_key_value_heads",
            ));
        }
        if !(0.0..=1.0).contains(&share) || !self.rotary_dims.is_multiple_of(2) {
            return Err(keys.wrong("partial_rotary_factor must be from 0 to 1 and give an even number of dimensions"));
        }
        if (self.hidden_act == Activation::Silu) != self.family.is_gated() {
            return Err(keys.wrong("`hidden_act` must be `silu` for a gated MLP, and a GELU for Phi"));
        }
        self.check_windows(keys)?;
        let method = keys.get("quantization_config").map(|value| &value["quant_method"]);
        if let Some(method) = method.filter(|method| method.as_str() != Some(q4f16::NAME)) {
            return Err(keys.wrong(format!(
                "`quantization_config` of the method {method} is not supported: give the model that was not quantized"
            )));
        }
        // Each of these changes the network in code for which it is meant.
        keys.only(&[
            ("num_experts", &[json!(0), json!(1)]),
            ("num_local_experts", &[json!(0), json!(1)]),
            ("attn_logit_softcapping", &[]),
            ("final_logit_softcapping", &[]),
            ("logit_scale", &[json!(1), json!(1.0)]),
            ("embedding_multiplier", &[json!(1), json!(1.0)]),
            ("residual_multiplier", &[json!(1), json!(1.0)]),
            ("logits_scaling", &[json!(1), json!(1.0)]),
            ("attention_multiplier", &[]),
            ("use_qk_norm", &[json!(false)]),
            ("alibi", &[json!(false)]),
            ("no_bias", &[json!(false)]),
            ("scale_attn_weights", &[json!(true)]),
            ("scale_attn_by_inverse_layer_idx", &[json!(false)]),
            ("parallel_attn", &[json!(self.family == Family::Phi)]),
            ("is_causal", &[json!(true)]),
            ("rope_interleaved", &[json!(false)]),
            ("use_mrope", &[json!(false)]),
        ])?;
        for unsupported in ["qk_layernorm", "mlp_bias"] {
            if keys.flag(unsupported, false)? {
                return Err(keys.wrong(format!("`{unsupported}` is not supported")));
            }
        }
        if !self.family.description().attention_bias && keys.flag("attention_bias", false)? {
            return Err(keys.wrong("`attention_bias` is not supported"));
        }
        Ok(())
    }

    /// Newer files also say of each layer whether it has a sliding window.
    fn check_windows(&self, keys: &Keys<'_>) -> Result<()> {
        let Some(types) = keys.get("layer_types").and_then(Value::as_array) else { return Ok(()) };
        for (layer, kind) in types.iter().take(self.num_hidden_layers).enumerate() {
            let slides = match kind.as_str() {
                Some("full_attention") => false,
                Some("sliding_attention") => true,
                _ => return Err(keys.wrong(format!("`layer_types` with {kind} is not supported"))),
            };
            if slides != self.window_of(layer).is_some() {
                return Err(keys.wrong(format!(
                    "`layer_types` says {kind} of layer {layer}, and the other keys of the sliding window say otherwise"
                )));
            }
        }
        Ok(())
    }

    /// The rotary position embeddings.
    pub(crate) fn rope(&self) -> Rope<'_> {
        Rope {
            dims: self.rotary_dims,
            theta: self.rope_theta,
            positions: self.max_position_embeddings,
            scaling: self.rope_scaling.as_ref(),
        }
    }

    /// The angle by which each pair of rotated dimensions turns from one position to the next, in a sequence of `length` positions.
    pub fn rope_frequencies(&self, length: usize) -> Vec<f32> {
        self.rope().frequencies(length)
    }

    /// The factor on queries and keys of scaled rotary position embeddings.
    pub fn rope_magnitude(&self) -> f32 {
        self.rope_scaling.as_ref().map_or(1.0, RopeScaling::magnitude) as f32
    }

    /// The longest sequence that an Imp with this language model can read: in longer ones, `rope_scaling` would change the rotations
    /// of all positions, also of those whose keys are cached. `None` if there is no such length.
    pub fn fixed_until(&self) -> Option<usize> {
        self.rope().fixed_until()
    }

    /// Checks that the context of an Imp, `positions`, is no longer than [`LanguageConfig::fixed_until`].
    ///
    /// # Errors
    /// In words, if it is.
    pub fn check_context(&self, positions: usize) -> std::result::Result<(), String> {
        match (self.fixed_until(), &self.rope_scaling) {
            (Some(limit), Some(scaling)) if positions > limit => Err(format!(
                "a context of {positions} positions (`max_length`) is longer than {limit}, beyond which `rope_scaling` of type `{}` turns \
                 all positions in another way: that is not supported",
                scaling.name()
            )),
            _ => Ok(()),
        }
    }

    /// Width of the sliding window of `layer` in positions, if it has one.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| layer >= self.max_window_layers)
    }

    /// Shape of a linear layer: outputs, inputs, and whether it has a bias.
    pub fn linear_shape(&self, layer: &Layer) -> (usize, usize, bool) {
        let (outputs, inputs) = layer.part.shape(Widths {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            inner: self.intermediate_size,
            queries: self.num_attention_heads * self.head_dim,
            keys: self.num_key_value_heads * self.head_dim,
        });
        (outputs, inputs, layer.bias)
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        let linear = |layer: &Layer| {
            let (outputs, inputs, bias) = self.linear_shape(layer);
            outputs * (inputs + usize::from(bias))
        };
        let norm = self.norm_parameters();
        let linears = self.family.block_layers().iter().map(linear).sum::<usize>();
        let block = linears + self.family.description().block_norms.len() * norm;
        let head = if self.tie_word_embeddings { 0 } else { linear(self.family.head()) };
        self.vocab_size * self.hidden_size + self.num_hidden_layers * block + norm + head
    }

    /// Number of parameters of a norm.
    pub(crate) fn norm_parameters(&self) -> usize {
        self.hidden_size * if self.family.description().rms_norms { 1 } else { 2 }
    }

    /// Converts to a `config.json` with the keys of published models.
    pub fn to_json(&self) -> Value {
        let description = self.family.description();
        let mut value = json!({
            "model_type": self.family.model_type(),
            "architectures": [description.architecture],
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
        value[description.epsilon.0] = json!(self.norm_eps);
        // Readers assume the family's default share, which is not 1 in every family.
        if self.rotary_dims != self.head_dim || self.rotary_dims != rotary_dims(description.rotary_share, self.head_dim)
        {
            value["partial_rotary_factor"] = json!(self.rotary_dims as f64 / self.head_dim as f64);
        }
        if self.head_dim * self.num_attention_heads != self.hidden_size {
            value["head_dim"] = json!(self.head_dim);
        }
        if let Some(scaling) = &self.rope_scaling {
            value["rope_scaling"] = rope::to_json(scaling);
            if let RopeScaling::LongRope { original, .. } = scaling {
                // Of a Phi-3, transformers reads it here only.
                value["original_max_position_embeddings"] = json!(original);
            }
        }
        if let Some(window) = self.sliding_window {
            value["sliding_window"] = json!(window);
            value["use_sliding_window"] = json!(true);
            value["max_window_layers"] = json!(self.max_window_layers);
        }
        value
    }
}

/// Number of dimensions of a head that are rotated.
fn rotary_dims(share: f64, head_dim: usize) -> usize {
    // Rounding may have made a share that was computed from a number of dimensions slightly too small.
    (share * head_dim as f64 + 1e-6) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::ConfigFile;

    #[test]
    fn the_rotary_share_round_trips_in_every_family() {
        for family in Family::ALL {
            for rotary_dims in [0, 2, 4, 6, 8] {
                let config = LanguageConfig { rotary_dims, ..LanguageConfig::new(family, 16, 32, 1, 4) };
                let json = config.to_json();
                let read = ConfigFile::parse(json.to_string().as_bytes(), "config.json".as_ref());
                assert_eq!(read.unwrap().language().unwrap().rotary_dims, rotary_dims, "{family:?}");
                // Whole heads are the default of all families but Phi, whose default of 0.5 is written nevertheless.
                let is_written = !json["partial_rotary_factor"].is_null();
                assert_eq!(is_written, rotary_dims != 8 || family == Family::Phi, "{family:?}");
            }
        }
    }
}
