//! MLC's `q4f16_1`. Each group of [`GROUP_SIZE`] weights along a row has one f16 scale:
//!
//! ```text
//! scale = max|w| / 7        level = clamp(round(w / scale) + 7, 0, 14)        w' = (level - 7) * scale
//! ```
//!
//! With calibration the scale is the one with the least error in the weights that matter most. Levels have 4 bits, eight per little-endian u32, the first in the lowest bits; scales are in a separate tensor. Rows
//! whose width is not a multiple of the group size are padded with zeros. Source: mlc-llm's
//! `quantization/group_quantization.py`; `tests/fixtures/quant` has its output.

use half::f16;

use super::search::calibrated_scale;
use crate::simd::simd;

/// The name of the scheme, MLC's `quant_method`.
pub const NAME: &str = "q4f16_1";
/// Bits per weight, not counting the scale.
pub const BITS: usize = 4;
/// Weights per scale.
pub const GROUP_SIZE: usize = 32;
/// Size of a scale in bytes.
pub(super) const SCALE_BYTES: usize = 2;
/// Size of a group's levels in bytes.
const LEVEL_BYTES: usize = GROUP_SIZE * BITS / 8;
/// The level of zero, and half the largest level.
pub(crate) const ZERO: f32 = 7.0;

/// The scheme in the `quantization_config` of a `config.json`.
pub(crate) fn described() -> serde_json::Value {
    serde_json::json!({ "quant_method": NAME, "bits": BITS, "group_size": GROUP_SIZE })
}

/// Number of scales of a row of `cols` weights.
pub const fn scales_per_row(cols: usize) -> usize {
    cols.div_ceil(GROUP_SIZE)
}

/// Number of u32 words with the levels of a row of `cols` weights.
pub const fn words_per_row(cols: usize) -> usize {
    scales_per_row(cols) * LEVEL_BYTES / 4
}

/// Dequantizes the rows of `cols` weights from row `start` that fill `to`. `levels` and `scales` are whole tensors.
pub(crate) fn widen(levels: &[u8], scales: &[u8], cols: usize, start: usize, to: &mut [f32]) {
    let groups = scales_per_row(cols);
    for (row, to) in to.chunks_mut(cols).enumerate() {
        for (group, to) in to.chunks_mut(GROUP_SIZE).enumerate() {
            let index = (start + row) * groups + group;
            let scale = &scales[index * SCALE_BYTES..(index + 1) * SCALE_BYTES];
            let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
            let levels = &levels[index * LEVEL_BYTES..(index + 1) * LEVEL_BYTES];
            simd!(|| widen_group(levels, scale, to));
        }
    }
}

/// Dequantizes a group, which is shorter at the end of a row.
#[inline(always)]
#[allow(clippy::inline_always, reason = "it vectorizes only if it is inlined")]
fn widen_group(levels: &[u8], scale: f32, to: &mut [f32]) {
    let (pairs, last) = to.as_chunks_mut::<2>();
    for (to, byte) in pairs.iter_mut().zip(levels) {
        *to = [byte & 15, byte >> 4].map(|level| (f32::from(level) - ZERO) * scale);
    }
    if let ([last], Some(byte)) = (last, levels.get(pairs.len())) {
        *last = (f32::from(byte & 15) - ZERO) * scale;
    }
}

/// The levels of a group, from -7 to 8: those at even places, which have the low nibbles, then the others.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
pub(super) fn levels(bytes: &[u8; LEVEL_BYTES]) -> [i8; GROUP_SIZE] {
    let mut levels = [0; GROUP_SIZE];
    let (even, odd) = levels.split_at_mut(LEVEL_BYTES);
    for ((even, odd), byte) in even.iter_mut().zip(odd).zip(bytes) {
        *even = (byte & 15).cast_signed() - ZERO as i8;
        *odd = (byte >> 4).cast_signed() - ZERO as i8;
    }
    levels
}

/// Quantizes rows of `cols` weights. Returns levels and scales as bytes. Serial, as [`super::Encoding::narrow`].
pub fn narrow(weights: &[f32], cols: usize) -> (Vec<u8>, Vec<u8>) {
    narrow_calibrated(weights, cols, None)
}

/// Quantizes rows of `cols` weights with the least error in those that matter most, as [`super::Encoding::narrow_calibrated`].
pub fn narrow_calibrated(weights: &[f32], cols: usize, importance: Option<&[f32]>) -> (Vec<u8>, Vec<u8>) {
    let groups = scales_per_row(cols);
    let rows = weights.len() / cols.max(1);
    let mut levels = vec![0; rows * groups * LEVEL_BYTES];
    let mut scales = vec![0; rows * groups * SCALE_BYTES];
    levels
        .chunks_mut(groups.max(1) * LEVEL_BYTES)
        .zip(scales.chunks_mut(groups.max(1) * SCALE_BYTES))
        .zip(weights.chunks(cols.max(1)))
        .for_each(|((levels, scales), row)| {
            let groups = levels.chunks_mut(LEVEL_BYTES).zip(scales.chunks_mut(SCALE_BYTES)).zip(row.chunks(GROUP_SIZE));
            for (group, ((levels, scale), weights)) in groups.enumerate() {
                let of_group = importance.and_then(|importance| importance.get(group * GROUP_SIZE..));
                narrow_group(weights, of_group, levels, scale);
            }
        });
    (levels, scales)
}

fn narrow_group(weights: &[f32], importance: Option<&[f32]>, levels: &mut [u8], scale_bytes: &mut [u8]) {
    // MLC computes in f16, so scale, quotient and sum are each rounded to f16.
    let half = |x: f32| f16::from_f32(x);
    let largest = weights.iter().map(|w| half(*w).to_f32().abs()).fold(0.0, f32::max);
    // The last group of a row may be shorter: zeros have no error.
    let whole = |values: &[f32]| std::array::from_fn::<f32, GROUP_SIZE, _>(|i| values.get(i).copied().unwrap_or(0.0));
    let best = importance.map(|importance| calibrated_scale(&whole(weights), &whole(importance), ZERO, ZERO).abs());
    let scale = half(best.unwrap_or(largest / ZERO));
    scale_bytes.copy_from_slice(&scale.to_le_bytes());
    for (index, byte) in levels.iter_mut().enumerate() {
        let level = |offset: usize| {
            let w = weights.get(index * 2 + offset).copied().unwrap_or(0.0);
            if scale == f16::ZERO {
                return 0;
            }
            let quotient = half(half(w).to_f32() / scale.to_f32()).to_f32();
            half(quotient + ZERO).to_f32().round().clamp(0.0, 2.0 * ZERO) as u8
        };
        *byte = level(0) | (level(1) << 4);
    }
}
