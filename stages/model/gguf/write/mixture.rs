//! Which encoding each tensor of a quantized model gets: llama.cpp's mixtures. Source: llama.cpp's `llama-quant.cpp`.
//!
//! | mixture  | output layer | embedding | `attn_v`, `ffn_down`      | `attn_qkv` | other matrices |
//! |----------|--------------|-----------|---------------------------|------------|----------------|
//! | `q4_0`   | `q6_K`       | `q4_0`    | `q4_0`                    | `q4_0`     | `q4_0`         |
//! | `q4_K_M` | `q6_K`       | `q4_K`    | `q6_K` in half the layers, else `q4_K` | `q5_K` | `q4_K` |
//! | `q6_K`   | `q6_K`       | `q6_K`    | `q6_K`                    | `q6_K`     | `q6_K`         |
//! | `q8_0`   | `q8_0`       | `q8_0`    | `q8_0`                    | `q8_0`     | `q8_0`         |
//!
//! Norms and biases stay in f32. Rows that a block does not divide fall back to smaller blocks, and at last to f16.

use crate::encoding::Encoding;

/// A mixture of encodings, as llama.cpp names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixture {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 8.5 bits per weight.
    Q8_0,
    /// 6.6 bits per weight.
    Q6K,
    /// About 4.8 bits per weight.
    Q4KM,
    /// About 4.5 bits per weight.
    Q4_0,
}

impl Mixture {
    /// Whether weights lose digits that a float of 16 bits has.
    pub fn rounds(self) -> bool {
        !matches!(self, Self::F32 | Self::F16)
    }
}

/// What a matrix is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The output layer, or an embedding that is also the output layer.
    Output,
    Embedding,
    /// Values, or the second layer of an MLP, in a layer of a model with `layers`.
    Delicate {
        layer: usize,
        layers: usize,
    },
    /// Queries, keys and values in one.
    Fused,
    Other,
}

impl Mixture {
    /// Its number in llama.cpp's `enum llama_ftype`.
    pub(super) fn number(self) -> usize {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4KM => 15,
            Self::Q6K => 18,
        }
    }

    /// The encoding of a matrix whose rows have `width` values.
    pub(super) fn encoding(self, role: Role, width: usize) -> Encoding {
        let wanted = self.wanted(role);
        let fits = |encoding: &Encoding| encoding.bytes(width).is_some();
        [wanted, fallback(wanted)].into_iter().find(fits).unwrap_or(Encoding::F16)
    }

    /// The encoding of a matrix whose rows any block divides.
    pub(super) fn wanted(self, role: Role) -> Encoding {
        match (self, role) {
            (Self::F32, _) => Encoding::F32,
            (Self::F16, _) => Encoding::F16,
            (Self::Q8_0, _) => Encoding::Q8_0,
            (Self::Q6K, _) | (Self::Q4_0 | Self::Q4KM, Role::Output) => Encoding::Q6K,
            (Self::Q4_0, _) => Encoding::Q4_0,
            (Self::Q4KM, Role::Fused) => Encoding::Q5K,
            (Self::Q4KM, Role::Delicate { layer, layers }) if gets_more(layer, layers) => Encoding::Q6K,
            (Self::Q4KM, _) => Encoding::Q4K,
        }
    }
}

/// The layers that get more bits: the first eighth, the last, and every third between.
fn gets_more(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// What an encoding in blocks of 256 is replaced with where they don't fit.
fn fallback(encoding: Encoding) -> Encoding {
    match encoding {
        Encoding::Q6K => Encoding::Q8_0,
        Encoding::Q5K => Encoding::Q5_1,
        Encoding::Q4K => Encoding::Q5_0,
        _ => Encoding::F16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_more_bits_are_those_of_llama_cpp() {
        let more = |layers: usize| (0..layers).filter(|layer| gets_more(*layer, layers)).collect::<Vec<_>>();
        assert_eq!(more(32), [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!(more(24), [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]);
    }

    #[test]
    fn rows_that_blocks_do_not_divide_fall_back() {
        let role = Role::Delicate { layer: 0, layers: 24 };
        assert_eq!(Mixture::Q4KM.encoding(role, 5504), Encoding::Q8_0);
        assert_eq!(Mixture::Q4KM.encoding(Role::Other, 5504), Encoding::Q5_0);
        assert_eq!(Mixture::Q4KM.encoding(Role::Fused, 1152), Encoding::Q5_1);
        assert_eq!(Mixture::Q4_0.encoding(Role::Other, 1152), Encoding::Q4_0);
        assert_eq!(Mixture::Q4_0.encoding(Role::Output, 48), Encoding::F16);
        assert_eq!(Mixture::Q4_0.encoding(Role::Other, 4304), Encoding::F16);
    }
}
