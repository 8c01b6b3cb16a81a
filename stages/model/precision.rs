//! How exactly matrix products are computed. Independent of the device that computes them.

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
        let all = [Precision::F32, Precision::Bf16];
        assert_eq!(serde_json::to_value(all).unwrap(), serde_json::json!(Precision::NAMES));
        assert_eq!(Precision::NAMES, ["f32", "bf16"]);
        assert!(Precision::F32.is_default() && !Precision::Bf16.is_default());
    }
}
