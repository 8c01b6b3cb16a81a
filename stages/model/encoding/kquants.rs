//! ggml's K-quants: blocks of 256 values whose parts have scales of their own, which share one f16 factor. Source: ggml's
//! `ggml-quants.c`, `dequantize_row_*_K` (widen) and `quantize_row_*_K_ref` (narrow); `tests/fixtures/quant` has ggml's output.
//!
//! | encoding | value                          | parts     | bytes of a block                                    |
//! |----------|--------------------------------|-----------|-----------------------------------------------------|
//! | `q4_K`   | `d * scale * q - m * min`      | 8 of 32   | d, m, 12 bytes of scales and mins, 128 of nibbles   |
//! | `q5_K`   | `d * scale * q - m * min`      | 8 of 32   | d, m, 12 bytes, 32 of fifth bits, 128 of nibbles    |
//! | `q6_K`   | `d * scale * (q - 32)`         | 16 of 16  | 128 of nibbles, 64 of upper bits, 16 of scales, d   |
//!
//! Scales and mins of `q4_K` and `q5_K` have 6 bits, scales of `q6_K` are signed bytes.

use half::f16;

use super::search::{columns, importance_weights, symmetric};
use crate::simd::simd;

/// Values per block.
pub(super) const BLOCK: usize = 256;
pub(super) const Q4_BYTES: usize = HEAD + BLOCK / 2;
pub(super) const Q5_BYTES: usize = Q4_BYTES + BLOCK / 8;
pub(super) const Q6_BYTES: usize = Q6_FACTOR + FACTOR;
/// Where the factor of `q6_K` is.
pub(super) const Q6_FACTOR: usize = BLOCK / 2 + BLOCK / 4 + BLOCK / Q6_PART;
const FACTOR: usize = 2;
/// Bytes before the levels of `q4_K` and `q5_K`.
const HEAD: usize = 2 * FACTOR + SCALES;
/// Bytes of eight scales and eight mins of 6 bits.
const SCALES: usize = 12;
/// Values per scale of `q4_K` and `q5_K`.
const PART: usize = 32;
const PARTS: usize = BLOCK / PART;
/// Values per scale of `q6_K`.
const Q6_PART: usize = 16;

fn factor(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

fn put(to: &mut [u8], value: f32) -> f32 {
    let rounded = f16::from_f32(value);
    to.copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

/// Scale and min of a part. The upper bits of the last four lie above those of the first four.
fn scale_and_min(bytes: &[u8], part: usize) -> (f32, f32) {
    let (scale, min) = if part < 4 {
        (bytes[part] & 63, bytes[part + 4] & 63)
    } else {
        let upper = |byte: u8| (byte >> 6) << 4;
        ((bytes[part + 4] & 15) | upper(bytes[part - 4]), (bytes[part + 4] >> 4) | upper(bytes[part]))
    };
    (f32::from(scale), f32::from(min))
}

fn put_scale_and_min(bytes: &mut [u8], part: usize, scale: u8, min: u8) {
    if part < 4 {
        bytes[part] |= scale;
        bytes[part + 4] |= min;
    } else {
        bytes[part + 4] = (scale & 15) | ((min & 15) << 4);
        bytes[part - 4] |= (scale >> 4) << 6;
        bytes[part] |= (min >> 4) << 6;
    }
}

pub(super) fn widen_q4(bytes: &[u8], to: &mut [f32]) {
    for (bytes, to) in bytes.as_chunks::<Q4_BYTES>().0.iter().zip(to.as_chunks_mut().0) {
        widen_with_mins(bytes, None, to);
    }
}

pub(super) fn widen_q5(bytes: &[u8], to: &mut [f32]) {
    for (bytes, to) in bytes.as_chunks::<Q5_BYTES>().0.iter().zip(to.as_chunks_mut().0) {
        // Bit `part` of byte `index` is the fifth bit of a part's value `index`.
        widen_with_mins(bytes, bytes[HEAD..].first_chunk(), to);
    }
}

/// Widens a block whose last bytes are its nibbles.
fn widen_with_mins(bytes: &[u8], fifths: Option<&[u8; PART]>, to: &mut [f32; BLOCK]) {
    let (d, m) = (factor(bytes), factor(&bytes[FACTOR..]));
    let nibbles = bytes[bytes.len() - BLOCK / 2..].as_chunks::<PART>().0;
    for (part, to) in to.as_chunks_mut::<PART>().0.iter_mut().enumerate() {
        let (scale, min) = scale_and_min(&bytes[2 * FACTOR..], part);
        let (scale, min) = (d * scale, m * min);
        let mut levels = nibbles[part / 2].map(|pair| if part % 2 == 0 { pair & 15 } else { pair >> 4 });
        if let Some(fifths) = fifths {
            let mask = 1 << part;
            for (level, fifth) in levels.iter_mut().zip(fifths) {
                *level |= if fifth & mask == 0 { 0 } else { 16 };
            }
        }
        simd(|| {
            for (to, level) in to.iter_mut().zip(levels) {
                *to = scale * f32::from(level) - min;
            }
        });
    }
}

pub(super) fn widen_q6(bytes: &[u8], to: &mut [f32]) {
    let blocks = bytes.as_chunks::<Q6_BYTES>().0.iter().zip(to.as_chunks_mut::<BLOCK>().0);
    for (bytes, to) in blocks {
        let d = factor(&bytes[Q6_FACTOR..]);
        for (part, to) in to.as_chunks_mut::<Q6_PART>().0.iter_mut().enumerate() {
            let scale = d * f32::from(bytes[BLOCK * 3 / 4 + part].cast_signed());
            let ([low, low_shift], [high, high_shift]) = q6_places(part * Q6_PART);
            let (low, high) = (&bytes[low..low + Q6_PART], &bytes[high..high + Q6_PART]);
            simd(|| {
                for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
                    let level = (low >> low_shift & 15) | (high >> high_shift & 3) << 4;
                    *to = scale * (f32::from(level) - 32.0);
                }
            });
        }
    }
}

/// Byte and shift of the lower four and of the upper two bits of a value. Each half of a block has 64 bytes of nibbles, whose low
/// nibbles are the first 64 values, and 32 bytes of upper bits, two each of four values 32 apart.
fn q6_places(index: usize) -> ([usize; 2], [usize; 2]) {
    let (half, at) = (index / 128, index % 128);
    let low = half * 64 + at % 64;
    let high = BLOCK / 2 + half * 32 + at % 32;
    ([low, at / 64 * 4], [high, at / 32 * 2])
}

pub(super) fn narrow_q4(values: &[f32], to: &mut [u8], importance: Option<&[f32]>) {
    let plain = Search { levels: 15, first: -1.0, step: 0.1, steps: 20 };
    narrow_with_mins::<Q4_BYTES>(values, to, &plain, importance);
}

pub(super) fn narrow_q5(values: &[f32], to: &mut [u8], importance: Option<&[f32]>) {
    let plain = Search { levels: 31, first: -0.5, step: 0.1, steps: 15 };
    narrow_with_mins::<Q5_BYTES>(values, to, &plain, importance);
}

fn narrow_with_mins<const BYTES: usize>(values: &[f32], to: &mut [u8], plain: &Search, importance: Option<&[f32]>) {
    // With weights that say more, ggml looks closer.
    let search = &importance.map_or(*plain, |_| Search { first: -0.9, step: 0.05, steps: 36, ..*plain });
    let blocks = values.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<BYTES>().0);
    for (index, (values, bytes)) in blocks.enumerate() {
        bytes.fill(0);
        let mut levels = [0_u8; BLOCK];
        let (mut scales, mut mins) = ([0.0_f32; PARTS], [0.0_f32; PARTS]);
        let weights = columns(importance, index).map(|columns| {
            let mean_square = values.iter().map(|x| x * x).sum::<f32>() / BLOCK as f32;
            importance_weights(values, columns, 2.0 * mean_square)
        });
        for (part, (values, levels)) in parts(values, &mut levels).enumerate() {
            let weights = weights.as_ref().map_or_else(|| magnitudes(values), |all| all.as_chunks().0[part]);
            (scales[part], mins[part]) = search.best(values, &weights, levels);
        }
        let largest = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
        let (most, deepest) = (largest(&scales), largest(&mins));
        let (d, m) = (put(&mut bytes[..FACTOR], most / 63.0), put(&mut bytes[FACTOR..2 * FACTOR], deepest / 63.0));
        let sixth = |value: f32, largest: f32| {
            let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
            (inverse * value).round_ties_even().clamp(0.0, 63.0) as u8
        };
        for (part, (values, levels)) in parts(values, &mut levels).enumerate() {
            let (scale, min) = (sixth(scales[part], most), sixth(mins[part], deepest));
            put_scale_and_min(&mut bytes[2 * FACTOR..HEAD], part, scale, min);
            let (scale, min) = (d * f32::from(scale), m * f32::from(min));
            if scale != 0.0 {
                for (level, value) in levels.iter_mut().zip(values) {
                    *level = search.clamp((value + min) / scale) as u8;
                }
            }
        }
        let (upper, nibbles) = bytes[HEAD..].split_at_mut(BYTES - Q4_BYTES);
        for (part, levels) in levels.chunks(PART).enumerate() {
            for (index, level) in levels.iter().enumerate() {
                nibbles[part / 2 * PART + index] |= (level & 15) << (part % 2 * 4);
                if let Some(upper) = upper.get_mut(index) {
                    *upper |= (level >> 4) << part;
                }
            }
        }
    }
}

fn parts<'a>(
    values: &'a [f32; BLOCK],
    levels: &'a mut [u8; BLOCK],
) -> impl Iterator<Item = (&'a [f32; PART], &'a mut [u8; PART])> {
    values.as_chunks::<PART>().0.iter().zip(levels.as_chunks_mut::<PART>().0)
}

/// Without calibration, larger values weigh more.
fn magnitudes(values: &[f32; PART]) -> [f32; PART] {
    let average = (values.iter().map(|x| x * x).sum::<f32>() / PART as f32).sqrt();
    values.map(|x| average + x.abs())
}

/// The search for the scale and min of a part that have the least weighted squared error.
#[derive(Clone, Copy)]
struct Search {
    /// The largest level.
    levels: i32,
    /// The first number of levels that is tried, relative to `levels`; the next ones are `step` more each.
    first: f32,
    step: f32,
    steps: usize,
}

impl Search {
    fn clamp(&self, level: f32) -> f32 {
        level.round_ties_even().clamp(0.0, self.levels as f32)
    }

    /// Returns scale and min (which is subtracted), and sets the levels.
    fn best(&self, values: &[f32; PART], weights: &[f32; PART], levels: &mut [u8; PART]) -> (f32, f32) {
        let least = values.iter().copied().fold(f32::INFINITY, f32::min).min(0.0);
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if most <= least {
            levels.fill(0);
            return (0.0, -least);
        }
        let (sum_w, sum_x) =
            values.iter().zip(weights).fold((0.0, 0.0), |(w, x), (value, weight)| (w + weight, x + weight * value));
        let inverse = self.levels as f32 / (most - least);
        let (mut scale, mut min) = (1.0 / inverse, least);
        let mut found = values.map(|x| self.clamp(inverse * (x - least)));
        let mut error = weighted_error(values, weights, &found, scale, min);
        for step in 0..=self.steps {
            // From the best min so far, as in ggml.
            let inverse = (self.first + self.step * step as f32 + self.levels as f32) / (most - min);
            let tried = values.map(|x| self.clamp(inverse * (x - min)));
            let (mut sum_l, mut sum_ll, mut sum_xl) = (0.0, 0.0, 0.0);
            for ((level, value), weight) in tried.iter().zip(values).zip(weights) {
                sum_l += weight * level;
                sum_ll += weight * level * level;
                sum_xl += weight * level * value;
            }
            // Least squares in scale and min for these levels.
            let determinant = sum_w * sum_ll - sum_l * sum_l;
            if determinant <= 0.0 {
                continue;
            }
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                (this_min, this_scale) = (0.0, sum_xl / sum_ll);
            }
            let this_error = weighted_error(values, weights, &tried, this_scale, this_min);
            if this_error < error {
                (error, scale, min, found) = (this_error, this_scale, this_min, tried);
            }
        }
        *levels = found.map(|level| level as u8);
        (scale, -min)
    }
}

fn weighted_error(values: &[f32; PART], weights: &[f32; PART], levels: &[f32; PART], scale: f32, min: f32) -> f32 {
    let terms = values.iter().zip(weights).zip(levels);
    terms.map(|((value, weight), level)| weight * (scale * level + min - value).powi(2)).sum()
}

pub(super) fn narrow_q6(values: &[f32], to: &mut [u8], importance: Option<&[f32]>) {
    let blocks = values.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<Q6_BYTES>().0);
    for (index, (values, bytes)) in blocks.enumerate() {
        bytes.fill(0);
        let mut levels = [0_u8; BLOCK];
        let mut scales = [0.0_f32; BLOCK / Q6_PART];
        // Without calibration, larger values weigh more.
        let weights = columns(importance, index).copied().unwrap_or_else(|| values.map(|x| x * x));
        let chunks = values.as_chunks::<Q6_PART>().0.iter().zip(levels.as_chunks_mut::<Q6_PART>().0);
        for (((values, levels), weights), scale) in chunks.zip(weights.as_chunks::<Q6_PART>().0).zip(&mut scales) {
            let (found, best) = symmetric(values, weights, 32.0, 31.0);
            (*scale, *levels) = (best, found.map(|level| (level + 32.0) as u8));
        }
        let largest = scales.iter().fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
        if largest.abs() < super::search::TINY {
            continue;
        }
        let inverse = -128.0 / largest;
        let d = put(&mut bytes[Q6_FACTOR..], 1.0 / inverse);
        let chunks = values.as_chunks::<Q6_PART>().0.iter().zip(levels.as_chunks_mut::<Q6_PART>().0);
        for (part, (values, levels)) in chunks.enumerate() {
            let scale = (inverse * scales[part]).round_ties_even().min(127.0) as i8;
            bytes[BLOCK * 3 / 4 + part] = scale.cast_unsigned();
            let scale = d * f32::from(scale);
            if scale != 0.0 {
                *levels = values.map(|x| ((x / scale).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8);
            }
        }
        for (index, level) in levels.iter().enumerate() {
            let ([low, low_shift], [high, high_shift]) = q6_places(index);
            bytes[low] |= (level & 15) << low_shift;
            bytes[high] |= (level >> 4) << high_shift;
        }
    }
}
