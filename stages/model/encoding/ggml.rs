//! ggml's quantized encodings: blocks of 32 values, each with an f16 scale `d`, and in `Q4_1` an f16 minimum `m`. Source:
//! ggml's `ggml-quants.c`, `dequantize_row_*` (widen) and `quantize_row_*_ref` (narrow).
//!
//! | encoding | value         | bytes of a block        | quantized with                      |
//! |----------|---------------|-------------------------|-------------------------------------|
//! | `q4_0`   | `(q - 8) * d` | d, 16 bytes of nibbles  | d = value of largest magnitude / -8 |
//! | `q4_1`   | `q * d + m`   | d, m, 16 bytes          | d = (max - min) / 15, m = min       |
//! | `q5_0`   | `(q - 16) * d` | d, 4 bytes of fifth bits, 16 of nibbles | d = value of largest magnitude / -16 |
//! | `q5_1`   | `q * d + m`   | d, m, 4 bytes of fifth bits, 16 of nibbles | d = (max - min) / 31, m = min |
//! | `q8_0`   | `q * d`       | d, 32 signed bytes      | d = max abs / 127                   |
//!
//! The low nibbles of the 16 bytes are the first 16 values, the high nibbles the last 16.
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

use half::f16;

use super::{
    half::factor,
    search::{calibrated_scale, columns, lanes},
};
use crate::simd::{one_round_at_a_time, simd};

/// Values per block.
pub(super) const BLOCK: usize = 32;
const FACTOR: usize = 2;
const NIBBLES: usize = BLOCK / 2;
pub(super) const Q4_0_BYTES: usize = FACTOR + NIBBLES;
pub(super) const Q4_1_BYTES: usize = 2 * FACTOR + NIBBLES;
pub(super) const Q5_0_BYTES: usize = FACTOR + FIFTHS + NIBBLES;
pub(super) const Q5_1_BYTES: usize = 2 * FACTOR + FIFTHS + NIBBLES;
pub(super) const Q8_0_BYTES: usize = FACTOR + BLOCK;
/// Bytes with the fifth bit of each value.
const FIFTHS: usize = BLOCK / 8;

pub(super) fn widen_q4_0(bytes: &[u8], to: &mut [f32]) {
    simd!(|| widen_scaled(bytes, to, q4_0_levels));
}

/// The levels of a block of `q4_0`, from -8 to 7.
#[inline(always)]
pub(super) fn q4_0_levels(bytes: &[u8; Q4_0_BYTES]) -> [i8; BLOCK] {
    let mut levels = [0; BLOCK];
    for i in 0..NIBBLES {
        let pair = bytes[FACTOR + i];
        levels[i] = (pair & 15).cast_signed() - 8;
        levels[NIBBLES + i] = (pair >> 4).cast_signed() - 8;
    }
    levels
}

/// The levels of a block of `q8_0`.
#[inline(always)]
pub(super) fn q8_0_levels(bytes: &[u8; Q8_0_BYTES]) -> [i8; BLOCK] {
    let mut levels = [0; BLOCK];
    for (level, byte) in levels.iter_mut().zip(&bytes[FACTOR..]) {
        *level = byte.cast_signed();
    }
    levels
}

/// Widens blocks that begin with their scale.
#[inline(always)]
fn widen_scaled<const BYTES: usize>(bytes: &[u8], to: &mut [f32], levels: impl Fn(&[u8; BYTES]) -> [i8; BLOCK]) {
    for (to, bytes) in blocks::<BYTES>(bytes, to) {
        let (levels, d) = (levels(bytes), factor(bytes));
        one_round_at_a_time();
        for (to, level) in to.iter_mut().zip(levels) {
            *to = f32::from(level) * d;
        }
    }
}

pub(super) fn widen_q4_1(bytes: &[u8], to: &mut [f32]) {
    simd!(|| {
        for (to, bytes) in blocks::<Q4_1_BYTES>(bytes, to) {
            widen_nibbles(&bytes[2 * FACTOR..], 0, factor(bytes), factor(&bytes[FACTOR..]), to);
        }
    });
}

pub(super) fn widen_q5_0(bytes: &[u8], to: &mut [f32]) {
    simd!(|| {
        for (to, bytes) in blocks::<Q5_0_BYTES>(bytes, to) {
            let d = factor(bytes);
            widen_fives(&bytes[FACTOR..], d, -16.0 * d, to);
        }
    });
}

pub(super) fn widen_q5_1(bytes: &[u8], to: &mut [f32]) {
    simd!(|| {
        for (to, bytes) in blocks::<Q5_1_BYTES>(bytes, to) {
            widen_fives(&bytes[2 * FACTOR..], factor(bytes), factor(&bytes[FACTOR..]), to);
        }
    });
}

/// Fifth bits, then nibbles.
#[inline(always)]
fn widen_fives(bytes: &[u8], scale: f32, shift: f32, to: &mut [f32; BLOCK]) {
    let (fifths, nibbles) = bytes.split_at(FIFTHS);
    let fifths = fifths.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
    widen_nibbles(nibbles, fifths, scale, shift, to);
}

pub(super) fn widen_q8_0(bytes: &[u8], to: &mut [f32]) {
    simd!(|| widen_scaled(bytes, to, q8_0_levels));
}

fn blocks<'a, const BYTES: usize>(
    bytes: &'a [u8],
    to: &'a mut [f32],
) -> impl Iterator<Item = (&'a mut [f32; BLOCK], &'a [u8; BYTES])> {
    to.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0)
}

/// The low nibbles, then the high ones; bit `i` of `fifths` is the fifth bit of value `i`.
#[inline(always)]
fn widen_nibbles(nibbles: &[u8], fifths: u32, scale: f32, shift: f32, to: &mut [f32; BLOCK]) {
    let mut levels = [0; BLOCK];
    let (first, second) = levels.split_at_mut(NIBBLES);
    for ((low, high), byte) in first.iter_mut().zip(second).zip(nibbles) {
        *low = byte & 15;
        *high = byte >> 4;
    }
    one_round_at_a_time();
    for (i, (to, level)) in to.iter_mut().zip(levels).enumerate() {
        *to = (u32::from(level) | (fifths >> i & 1) << 4) as f32 * scale + shift;
    }
}

pub(super) fn narrow_q4_0(values: &[f32], to: &mut [u8], importance: Option<&[f32]>) {
    simd!(|| {
        for (index, (values, to)) in blocks_mut::<Q4_0_BYTES>(values, to).enumerate() {
            let d = match columns(importance, index) {
                Some(columns) => calibrated_scale(values, columns, 8.0, 7.0),
                None => largest(values) / -8.0,
            };
            let inverse = inverse(d);
            to[..FACTOR].copy_from_slice(&f16::from_f32(d).to_le_bytes());
            narrow_nibbles(values, &mut to[FACTOR..], |value| value * inverse + 8.5);
        }
    });
}

/// The value of the largest magnitude; of several, the first, as in ggml.
#[inline(always)]
fn largest(values: &[f32; BLOCK]) -> f32 {
    let (least, most) = bounds(values);
    if most > -least {
        return most;
    }
    if most < -least {
        return least;
    }
    values.iter().copied().find(|value| value.abs() >= most && most > 0.0).unwrap_or(0.0)
}

/// The least and the largest value.
#[inline(always)]
fn bounds(values: &[f32; BLOCK]) -> (f32, f32) {
    let (mut least, mut most) = (*values, *values);
    let mut half = BLOCK / 2;
    while half > 0 {
        for i in 0..half {
            (least[i], most[i]) = (least[i].min(least[half + i]), most[i].max(most[half + i]));
        }
        half /= 2;
    }
    (least[0], most[0])
}

pub(super) fn narrow_q4_1(values: &[f32], to: &mut [u8]) {
    for (values, to) in blocks_mut::<Q4_1_BYTES>(values, to) {
        let least = values.iter().copied().fold(f32::INFINITY, f32::min);
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let d = (most - least) / 15.0;
        let inverse = inverse(d);
        to[..FACTOR].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        to[FACTOR..2 * FACTOR].copy_from_slice(&f16::from_f32(least).to_le_bytes());
        narrow_nibbles(values, &mut to[2 * FACTOR..], |value| (value - least) * inverse + 0.5);
    }
}

pub(super) fn narrow_q5_0(values: &[f32], to: &mut [u8]) {
    for (values, to) in blocks_mut::<Q5_0_BYTES>(values, to) {
        let d = largest(values) / -16.0;
        let inverse = inverse(d);
        to[..FACTOR].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        narrow_fives(values, &mut to[FACTOR..], |value| value * inverse + 16.5);
    }
}

pub(super) fn narrow_q5_1(values: &[f32], to: &mut [u8]) {
    for (values, to) in blocks_mut::<Q5_1_BYTES>(values, to) {
        let least = values.iter().copied().fold(f32::INFINITY, f32::min);
        let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let d = (most - least) / 31.0;
        let inverse = inverse(d);
        to[..FACTOR].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        to[FACTOR..2 * FACTOR].copy_from_slice(&f16::from_f32(least).to_le_bytes());
        narrow_fives(values, &mut to[2 * FACTOR..], |value| (value - least) * inverse + 0.5);
    }
}

/// Packs 32 values into fifth bits and nibbles. Of a value's level only the integer part is used.
fn narrow_fives(values: &[f32; BLOCK], to: &mut [u8], level: impl Fn(f32) -> f32) {
    to.fill(0);
    let (fifths, nibbles) = to.split_at_mut(FIFTHS);
    for (index, value) in values.iter().enumerate() {
        let level = whole(level(*value)).min(31);
        nibbles[index % NIBBLES] |= (level & 15) << (index / NIBBLES * 4);
        fifths[index / 8] |= (level >> 4) << (index % 8);
    }
}

pub(super) fn narrow_q8_0(values: &[f32], to: &mut [u8]) {
    for (values, to) in blocks_mut::<Q8_0_BYTES>(values, to) {
        let d = values.iter().fold(0.0_f32, |a, b| a.max(b.abs())) / 127.0;
        let inverse = inverse(d);
        to[..FACTOR].copy_from_slice(&f16::from_f32(d).to_le_bytes());
        for (to, value) in to[FACTOR..].iter_mut().zip(values) {
            *to = ((value * inverse).round() as i8).cast_unsigned();
        }
    }
}

fn blocks_mut<'a, const BYTES: usize>(
    values: &'a [f32],
    to: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32; BLOCK], &'a mut [u8; BYTES])> {
    values.as_chunks().0.iter().zip(to.as_chunks_mut().0)
}

/// `1 / d`, or 0 for a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// Packs 32 values into nibbles. `level` computes a value's level, of which only the integer part is used.
#[inline(always)]
fn narrow_nibbles(values: &[f32; BLOCK], to: &mut [u8], level: impl Fn(f32) -> f32) {
    let levels: [u8; BLOCK] = lanes(|i| whole(level(values[i])).min(15));
    for (i, to) in to.iter_mut().enumerate().take(NIBBLES) {
        *to = levels[i] | levels[NIBBLES + i] << 4;
    }
}

/// The integer part of a level, as `as u8`, in a way that vectorizes.
#[inline(always)]
fn whole(level: f32) -> u8 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, which then stands in the lowest bits
    let nearest = level + ROUND - ROUND;
    let below = if nearest > level { nearest - 1.0 } else { nearest };
    let level = if below > 0.0 { below } else { 0.0 };
    (level.min(255.0) + ROUND).to_bits() as u8
}
