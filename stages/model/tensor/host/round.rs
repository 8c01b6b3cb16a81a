//! Rounds the operands of products to bf16. The values stay in f32, so that every product's loops serve both precisions.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{math::simd, pointwise::CHUNK};
use crate::{encoding::to_bf16, precision::Precision};

/// An operand in `precision`: itself, or a rounded copy.
pub(in crate::tensor) fn operand(values: &[f32], precision: Precision) -> Cow<'_, [f32]> {
    match precision {
        Precision::F32 => Cow::Borrowed(values),
        Precision::Bf16 => {
            let mut values = values.to_vec();
            values.par_chunks_mut(CHUNK).for_each(|values| round(values, precision));
            Cow::Owned(values)
        }
    }
}

/// Rounds an operand in place.
pub(in crate::tensor) fn round(values: &mut [f32], precision: Precision) {
    if precision == Precision::Bf16 {
        simd!(|| {
            for value in values.iter_mut() {
                *value = to_bf16(*value);
            }
        });
    }
}
