//! The precision of matrix products.

use serde::{Deserialize, Serialize};

/// How the operands of matrix products are rounded. Sums, norms, softmax, loss, trainable weights and the optimizer's
/// state are in f32 in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Not at all.
    #[default]
    F32,
    /// To bf16, to the nearest value, ties to even.
    Bf16,
}
