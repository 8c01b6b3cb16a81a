//! The final figures of training.

use crate::contract::figure::{Better, Figure};

/// The figures of every kind that trains. Speed is that of the process which ended the training, not of earlier ones.
pub(crate) const FIGURES: &[Figure] = &[
    Figure::headline("loss", Better::Lower, ""),
    Figure::headline("validation_loss", Better::Lower, ""),
    Figure::count("best_step", "steps"),
    Figure::detail("cut", Better::Lower, "records"),
    Figure::detail("masked", Better::Lower, "records"),
    Figure::detail("without_image_token", Better::Lower, "records"),
    Figure::detail("examples_per_second", Better::Higher, "examples/s"),
    Figure::detail("tokens_per_second", Better::Higher, "tokens/s"),
    Figure::detail("data_wait", Better::Lower, "s"),
];
