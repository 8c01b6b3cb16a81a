//! 16-bit floats. f16 (IEEE 754 binary16) has 1 sign, 5 exponent and 10 mantissa bits; bf16, the upper half of an f32,
//! has 1 sign, 8 exponent and 7 mantissa bits. Narrowing rounds to nearest, ties to even.

use half::{bf16, f16};

use crate::simd::simd;

/// Converts finite f16 to f32.
pub(super) fn widen_f16(bytes: &[u8], to: &mut [f32]) {
    simd!(|| {
        for (to, bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
            *to = widen_finite(u16::from_le_bytes(*bytes));
        }
    });
}

/// Converts bf16 to f32.
pub(super) fn widen_bf16(bytes: &[u8], to: &mut [f32]) {
    simd!(|| {
        for (to, bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
            *to = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    });
}

/// Converts a finite f16, subnormals included. Without branches, so that loops vectorize, and without subnormal f32, which processors compute
/// with a hundred times as slowly: the exponent's bias is raised from 15 to 127 by adding to its bits, and a subnormal's mantissa, which counts
/// units of 2^-24, is converted as an integer.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
pub(super) fn widen_finite(half: u16) -> f32 {
    const UNIT: f32 = f32::from_bits((127 - 24) << 23);
    let (sign, magnitude) = (u32::from(half & 0x8000) << 16, u32::from(half & 0x7fff));
    let normal = (magnitude << 13) + (112 << 23);
    let subnormal = magnitude.cast_signed() as f32 * UNIT;
    let bits = if magnitude < 1 << 10 { subnormal.to_bits() } else { normal };
    f32::from_bits(bits | sign)
}

/// The finite f16 that `bytes` begin with: a block's factor.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
pub(super) fn factor(bytes: &[u8]) -> f32 {
    widen_finite(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// The nearest value of bf16.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
pub(crate) fn to_bf16(value: f32) -> f32 {
    f32::from_bits(bf16_bits(value) & 0xffff_0000)
}

/// The nearest value of bf16 in the upper half of the bits, ties to even, as `half::bf16::from_f32`; without branches, so that
/// it vectorizes. A NaN stays one.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(crate) fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    if value.is_nan() { bits | 0x40_0000 } else { rounded }
}

pub(super) fn narrow_f16(values: &[f32], to: &mut [u8]) {
    for (to, value) in to.as_chunks_mut().0.iter_mut().zip(values) {
        *to = f16::from_f32(*value).to_le_bytes();
    }
}

pub(super) fn narrow_bf16(values: &[f32], to: &mut [u8]) {
    for (to, value) in to.as_chunks_mut().0.iter_mut().zip(values) {
        *to = bf16::from_f32(*value).to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_f16_is_widened_exactly_and_narrowed_back() {
        let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).filter(|half| half.is_finite()).collect();
        let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        let (mut wide, mut narrowed) = (vec![0.0; halves.len()], vec![0; bytes.len()]);
        widen_f16(&bytes, &mut wide);
        for (half, wide) in halves.iter().zip(&wide) {
            assert_eq!(wide.to_bits(), half.to_f32().to_bits(), "{half:?}");
        }
        narrow_f16(&wide, &mut narrowed);
        assert_eq!(narrowed, bytes);
    }

    #[test]
    fn every_finite_bf16_is_widened_exactly_and_narrowed_back() {
        let brains: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).filter(|brain| brain.is_finite()).collect();
        let bytes: Vec<u8> = brains.iter().flat_map(|brain| brain.to_le_bytes()).collect();
        let (mut wide, mut narrowed) = (vec![0.0; brains.len()], vec![0; bytes.len()]);
        widen_bf16(&bytes, &mut wide);
        for (brain, wide) in brains.iter().zip(&wide) {
            assert_eq!(wide.to_bits(), brain.to_f32().to_bits(), "{brain:?}");
        }
        narrow_bf16(&wide, &mut narrowed);
        assert_eq!(narrowed, bytes);
    }

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
