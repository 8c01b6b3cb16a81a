//! Rounds the operands of products to bf16. The values stay in f32, so that every product's loops serve both precisions.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{math::simd, pointwise::CHUNK};
use crate::precision::Precision;

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

/// The nearest value of bf16.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
fn to_bf16(value: f32) -> f32 {
    f32::from_bits(bf16_bits(value) & 0xffff_0000)
}

/// The nearest value of bf16 in the upper half of the bits, ties to even, as `half::bf16::from_f32`; without branches, so that
/// it vectorizes. A NaN stays one.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(super) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if value.is_nan() { bits | 0x40_0000 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_type() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, 1.003_906_2];
        let spread = (0..1 << 16).map(|i: u32| f32::from_bits(i.wrapping_mul(65_537).wrapping_add(i >> 3)));
        for value in special.into_iter().chain(spread).filter(|value| !value.is_nan()) {
            let exact = half::bf16::from_f32(value).to_f32();
            assert_eq!(to_bf16(value).to_bits(), exact.to_bits(), "{value:e}");
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
            assert!(to_bf16(nan).is_nan());
        }
    }
}
