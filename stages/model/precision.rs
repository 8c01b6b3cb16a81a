//! How exactly matrix products are computed. Independent of the device that computes them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How exactly matrix products are computed. Everything else is in f32: sums, norms, softmax, the loss, the weights that train
/// and the optimizer's moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Operands are f32.
    #[default]
    F32,
    /// Operands of matrix products are rounded to bf16 (to nearest even), sums and everything else are in f32.
    Bf16,
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("`{text}` is none of {}", Self::NAMES.join(", "))),
        }
    }
}

impl Precision {
    /// All names, as they are written.
    pub const NAMES: [&'static str; 2] = ["f32", "bf16"];

    /// Bytes of an operand.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Whether it is the default. Configurations leave the default out, so that their keys are those of versions without a
    /// choice.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_those_of_pipelines() {
        let name = |precision: Precision| serde_json::to_string(&precision).unwrap();
        assert_eq!([Precision::F32, Precision::Bf16].map(name), ["\"f32\"", "\"bf16\""]);
        assert_eq!(Precision::NAMES.map(|name| name.parse::<Precision>().unwrap()), [Precision::F32, Precision::Bf16]);
        assert_eq!("f16".parse::<Precision>(), Err("`f16` is none of f32, bf16".into()));
        assert!(Precision::F32.is_default() && !Precision::Bf16.is_default());
    }
}
