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

/// Converts a finite f16, subnormals included: an f32 with its exponent and mantissa bits is too small by 2^112, where
/// 112 = 127 - 15 is the difference of the exponent biases. Without branches, so that loops vectorize.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
pub(super) fn widen_finite(half: u16) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = f32::from_bits(u32::from(half & 0x7fff) << 13) * SCALE;
    f32::from_bits(magnitude.to_bits() | sign)
}

/// The finite f16 that `bytes` begin with: a block's factor.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
pub(super) fn factor(bytes: &[u8]) -> f32 {
    widen_finite(u16::from_le_bytes([bytes[0], bytes[1]]))
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
}
