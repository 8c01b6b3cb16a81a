//! Dot products of encoded values with f32, which are decoded in registers only. The sums are those of the decoded values in another
//! order: sixteen lanes, scales after the sum of a part, and mins times the sum of what they are multiplied with.
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

use super::{
    Encoding, ggml,
    half::{factor, widen_finite},
    kquants,
    search::lanes,
};
use crate::simd::simd;

/// Partial sums, which are added at the end.
const LANES: usize = 16;
/// Values of which the sum is needed once for all rows.
const PART: usize = 32;
/// Their number in a K-quant's block.
const PARTS: usize = kquants::BLOCK / PART;

/// What many rows are multiplied with.
#[derive(Clone, Debug)]
pub(crate) struct Operand<'a> {
    values: &'a [f32],
    /// The sums of [`PART`] consecutive values.
    sums: Vec<f32>,
}

impl<'a> Operand<'a> {
    pub(crate) fn new(values: &'a [f32]) -> Self {
        Self { values, sums: values.chunks(PART).map(|part| part.iter().sum()).collect() }
    }
}

impl Encoding {
    /// The dot product of an encoded row with as many values, or `None`: then the row has to be decoded.
    pub(crate) fn dot(self, bytes: &[u8], with: &Operand<'_>) -> Option<f32> {
        let (values, sums) = (with.values, with.sums.as_slice());
        debug_assert_eq!(self.bytes(values.len()), Some(bytes.len()), "a row, and as many values");
        Some(match self {
            Self::F16 => simd!(|| plain(bytes, values, widen_finite)),
            Self::Bf16 => simd!(|| plain(bytes, values, |bits| f32::from_bits(u32::from(bits) << 16))),
            Self::Q4_0 => simd!(|| scaled(bytes, values, ggml::q4_0_levels)),
            Self::Q8_0 => simd!(|| scaled(bytes, values, ggml::q8_0_levels)),
            Self::Q4K => simd!(|| with_mins(bytes, values, sums, kquants::q4_levels)),
            Self::Q5K => simd!(|| with_mins(bytes, values, sums, kquants::q5_levels)),
            Self::Q6K => simd!(|| q6(bytes, values)),
            Self::F32 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 => return None,
        })
    }
}

#[inline(always)]
fn plain(bytes: &[u8], values: &[f32], widen: impl Fn(u16) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let ((bytes, last), (values, rest)) = (bytes.as_chunks::<{ 2 * LANES }>(), values.as_chunks::<LANES>());
    for (bytes, values) in bytes.iter().zip(values) {
        for ((sum, bits), x) in sums.iter_mut().zip(bytes.as_chunks().0).zip(values) {
            *sum += widen(u16::from_le_bytes(*bits)) * x;
        }
    }
    let last = last.as_chunks().0.iter().zip(rest).map(|(bytes, x)| widen(u16::from_le_bytes(*bytes)) * x);
    sums.iter().sum::<f32>() + last.sum::<f32>()
}

/// Blocks that begin with an f16 scale.
#[inline(always)]
fn scaled<const BYTES: usize>(bytes: &[u8], values: &[f32], levels: impl Fn(&[u8; BYTES]) -> [i8; ggml::BLOCK]) -> f32 {
    let mut sums = [0.0; LANES];
    for (bytes, values) in bytes.as_chunks::<BYTES>().0.iter().zip(values.as_chunks().0) {
        add(&mut sums, &levels(bytes), values, factor(bytes));
    }
    sums.iter().sum()
}

/// Blocks of parts with scales and mins.
#[inline(always)]
fn with_mins<const BYTES: usize>(
    bytes: &[u8],
    values: &[f32],
    sums_of_values: &[f32],
    levels: impl Fn(&[u8; BYTES]) -> [i8; kquants::BLOCK],
) -> f32 {
    let (mut sums, mut below) = ([0.0; LANES], [0.0; PARTS]);
    let blocks = values.as_chunks::<{ kquants::BLOCK }>().0.iter().zip(sums_of_values.as_chunks::<PARTS>().0);
    for (bytes, (values, sums_of_values)) in bytes.as_chunks::<BYTES>().0.iter().zip(blocks) {
        let Some(head) = bytes.first_chunk() else { continue };
        let ((scales, mins), levels) = (kquants::scales_and_mins(head), levels(bytes));
        below = lanes(|i| below[i] + mins[i] * sums_of_values[i]);
        let parts = levels.as_chunks::<PART>().0.iter().zip(values.as_chunks::<PART>().0);
        for ((levels, values), scale) in parts.zip(scales) {
            add(&mut sums, levels, values, scale);
        }
    }
    sums.iter().sum::<f32>() - below.iter().sum::<f32>()
}

#[inline(always)]
fn q6(bytes: &[u8], values: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let blocks = values.as_chunks::<{ kquants::BLOCK }>().0;
    for (bytes, values) in bytes.as_chunks::<{ kquants::Q6_BYTES }>().0.iter().zip(blocks) {
        let (scales, levels) = (kquants::q6_scales(bytes), kquants::q6_levels(bytes));
        let parts = levels.as_chunks::<LANES>().0.iter().zip(values.as_chunks::<LANES>().0);
        for ((levels, values), scale) in parts.zip(scales) {
            for i in 0..LANES {
                sums[i] += scale * (f32::from(levels[i]) * values[i]);
            }
        }
    }
    sums.iter().sum()
}

#[inline(always)]
fn add(sums: &mut [f32; LANES], levels: &[i8; PART], values: &[f32; PART], scale: f32) {
    for (i, sum) in sums.iter_mut().enumerate() {
        let [first, second] = [i, LANES + i].map(|i| f32::from(levels[i]) * values[i]);
        *sum += scale * (first + second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of rows with and without values beyond the last sixteen: as the dot product of the decoded values in f64, to f32's rounding.
    #[test]
    fn products_are_those_of_the_decoded_values() {
        let noise = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0;
        for encoding in
            [Encoding::F16, Encoding::Bf16, Encoding::Q4_0, Encoding::Q8_0, Encoding::Q4K, Encoding::Q5K, Encoding::Q6K]
        {
            for width in [1024, if encoding.block().values == 1 { 1003 } else { 768 }] {
                let row: Vec<f32> = (0..width).map(|i| noise(i) * noise(i + 77)).collect();
                let values: Vec<f32> = (0..width).map(|i| noise(3 * i + 5) + 0.5).collect();
                let bytes = encoding.narrow(&row);
                let mut decoded = vec![0.0; width];
                encoding.widen(&bytes, &mut decoded);
                let terms = || decoded.iter().zip(&values).map(|(a, b)| f64::from(*a) * f64::from(*b));
                let found = encoding.dot(&bytes, &Operand::new(&values)).unwrap_or(f32::NAN);
                // Mins are subtracted at the end, so that sums are larger than the result by about the range of levels.
                let error = (f64::from(found) - terms().sum::<f64>()).abs();
                assert!(error < 2e-6 * terms().map(f64::abs).sum::<f64>(), "{encoding:?}, {width}: {error}");
            }
        }
    }
}
