//! ggml's K-quants: blocks of 256 values whose parts have scales of their own, which share one f16 factor. Source: ggml's
//! `ggml-quants.c`, `dequantize_row_*_K`; `narrow` encodes them. `tests/fixtures/quant` has ggml's output.
//!
//! | encoding | value                          | parts     | bytes of a block                                    |
//! |----------|--------------------------------|-----------|-----------------------------------------------------|
//! | `q4_K`   | `d * scale * q - m * min`      | 8 of 32   | d, m, 12 bytes of scales and mins, 128 of nibbles   |
//! | `q5_K`   | `d * scale * q - m * min`      | 8 of 32   | d, m, 12 bytes, 32 of fifth bits, 128 of nibbles    |
//! | `q6_K`   | `d * scale * (q - 32)`         | 16 of 16  | 128 of nibbles, 64 of upper bits, 16 of scales, d   |
//!
//! Scales and mins of `q4_K` and `q5_K` have 6 bits, scales of `q6_K` are signed bytes.
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

mod narrow;

pub(super) use narrow::{narrow_q4, narrow_q5, narrow_q6};

use super::{half::factor, search::lanes};
use crate::simd::{one_round_at_a_time, simd};

/// Values per block.
pub(in crate::encoding) const BLOCK: usize = 256;
pub(in crate::encoding) const Q4_BYTES: usize = HEAD + BLOCK / 2;
pub(in crate::encoding) const Q5_BYTES: usize = Q4_BYTES + BLOCK / 8;
pub(in crate::encoding) const Q6_BYTES: usize = Q6_FACTOR + FACTOR;
/// Where the factor of `q6_K` is.
pub(in crate::encoding) const Q6_FACTOR: usize = BLOCK / 2 + BLOCK / 4 + BLOCK / Q6_PART;
const FACTOR: usize = 2;
/// Bytes before the levels of `q4_K` and `q5_K`.
const HEAD: usize = 2 * FACTOR + SCALES;
/// Bytes of eight scales and eight mins of 6 bits.
const SCALES: usize = 12;
/// Values per scale of `q4_K` and `q5_K`.
const PART: usize = 32;
const PARTS: usize = BLOCK / PART;
/// A number for each part of a block.
type Parts = [f32; PARTS];
/// Values per scale of `q6_K`.
const Q6_PART: usize = 16;
const Q6_PARTS: usize = BLOCK / Q6_PART;

/// The factors of all scales and of all mins.
#[inline(always)]
pub(in crate::encoding) fn factors(head: &[u8; HEAD]) -> (f32, f32) {
    (factor(head), factor(&head[FACTOR..]))
}

/// Scales and mins of all parts. The upper bits of the last four lie above those of the first four.
#[inline(always)]
pub(in crate::encoding) fn scales_and_mins(head: &[u8; HEAD]) -> ([u8; PARTS], [u8; PARTS]) {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    // Four bytes at a time: scales, mins, and the lower bits of the last four of both.
    let (scales, mins, last) = (word(4), word(8), word(12));
    let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x0303_0303);
    let join = |first: u32, last: u32| {
        let bytes = u64::from(first) | u64::from(last) << 32;
        bytes.to_le_bytes()
    };
    let scales_of_all = join(scales & six, (last & four) | (scales >> 6 & two) << 4);
    let mins_of_all = join(mins & six, (last >> 4 & four) | (mins >> 6 & two) << 4);
    (scales_of_all, mins_of_all)
}

pub(in crate::encoding) fn widen_q4(bytes: &[u8], to: &mut [f32]) {
    simd!(|| widen_with_mins::<Q4_BYTES>(bytes, to, q4_levels));
}

pub(in crate::encoding) fn widen_q5(bytes: &[u8], to: &mut [f32]) {
    simd!(|| widen_with_mins::<Q5_BYTES>(bytes, to, q5_levels));
}

#[inline(always)]
fn widen_with_mins<const BYTES: usize>(bytes: &[u8], to: &mut [f32], levels: impl Fn(&[u8; BYTES]) -> [i8; BLOCK]) {
    for (bytes, to) in bytes.as_chunks::<BYTES>().0.iter().zip(to.as_chunks_mut::<BLOCK>().0) {
        let Some(head) = bytes.first_chunk() else { continue };
        let ((d, m), (scales, mins), levels) = (factors(head), scales_and_mins(head), levels(bytes));
        let parts = to.as_chunks_mut::<PART>().0.iter_mut().zip(levels.as_chunks::<PART>().0);
        for ((to, levels), (scale, min)) in parts.zip(scales.into_iter().zip(mins)) {
            one_round_at_a_time();
            let (scale, min) = (d * f32::from(scale), m * f32::from(min));
            for (to, level) in to.iter_mut().zip(levels) {
                *to = scale * f32::from(*level) - min;
            }
        }
    }
}

/// The levels of a block of `q4_K`: of 32 bytes, the low nibbles are one part, the high ones the next.
#[inline(always)]
pub(in crate::encoding) fn q4_levels(bytes: &[u8; Q4_BYTES]) -> [i8; BLOCK] {
    let mut levels = [0; BLOCK];
    for pair in 0..PARTS / 2 {
        one_round_at_a_time();
        for i in 0..PART {
            let byte = bytes[HEAD + pair * PART + i];
            levels[2 * pair * PART + i] = (byte & 15).cast_signed();
            levels[(2 * pair + 1) * PART + i] = (byte >> 4).cast_signed();
        }
    }
    levels
}

/// The levels of a block of `q5_K`: nibbles as in `q4_K`, and bit `part` of each of 32 bytes.
#[inline(always)]
pub(in crate::encoding) fn q5_levels(bytes: &[u8; Q5_BYTES]) -> [i8; BLOCK] {
    let mut levels = [0; BLOCK];
    for pair in 0..PARTS / 2 {
        one_round_at_a_time();
        for i in 0..PART {
            let (byte, fifths) = (bytes[HEAD + PART + pair * PART + i], bytes[HEAD + i] >> (2 * pair));
            levels[2 * pair * PART + i] = (byte & 15 | (fifths & 1) << 4).cast_signed();
            levels[(2 * pair + 1) * PART + i] = (byte >> 4 | (fifths & 2) << 3).cast_signed();
        }
    }
    levels
}

pub(in crate::encoding) fn widen_q6(bytes: &[u8], to: &mut [f32]) {
    simd!(|| {
        for (bytes, to) in bytes.as_chunks::<Q6_BYTES>().0.iter().zip(to.as_chunks_mut::<BLOCK>().0) {
            let (d, scales, levels) = (q6_factor(bytes), q6_scales(bytes), q6_levels(bytes));
            let parts = to.as_chunks_mut::<Q6_PART>().0.iter_mut().zip(levels.as_chunks::<Q6_PART>().0);
            for ((to, levels), scale) in parts.zip(scales) {
                one_round_at_a_time();
                let scale = d * f32::from(scale);
                for (to, level) in to.iter_mut().zip(levels) {
                    *to = scale * f32::from(*level);
                }
            }
        }
    });
}

/// The factor of the scales of a block of `q6_K`.
#[inline(always)]
pub(in crate::encoding) fn q6_factor(bytes: &[u8; Q6_BYTES]) -> f32 {
    factor(&bytes[Q6_FACTOR..])
}

/// The scales of the parts of a block of `q6_K`.
#[inline(always)]
pub(in crate::encoding) fn q6_scales(bytes: &[u8; Q6_BYTES]) -> [i8; Q6_PARTS] {
    lanes(|part| bytes[BLOCK * 3 / 4 + part].cast_signed())
}

/// The levels of a block of `q6_K`, from -32 to 31; see [`q6_places`].
#[inline(always)]
pub(in crate::encoding) fn q6_levels(bytes: &[u8; Q6_BYTES]) -> [i8; BLOCK] {
    let mut levels = [0; BLOCK];
    for half in 0..2 {
        for i in 0..32 {
            let (low, next) = (bytes[half * 64 + i], bytes[half * 64 + 32 + i]);
            let upper = bytes[BLOCK / 2 + half * 32 + i];
            let at = half * 128 + i;
            levels[at] = (low & 15 | upper << 4 & 0x30).cast_signed() - 32;
            levels[at + 32] = (next & 15 | upper << 2 & 0x30).cast_signed() - 32;
            levels[at + 64] = (low >> 4 | upper & 0x30).cast_signed() - 32;
            levels[at + 96] = (next >> 4 | upper >> 2 & 0x30).cast_signed() - 32;
        }
    }
    levels
}

/// Byte and shift of the lower four and of the upper two bits of a value. Each half of a block has 64 bytes of nibbles, whose low
/// nibbles are the first 64 values, and 32 bytes of upper bits, two each of four values 32 apart.
fn q6_places(index: usize) -> ([usize; 2], [usize; 2]) {
    let (half, at) = (index / 128, index % 128);
    let low = half * 64 + at % 64;
    let high = BLOCK / 2 + half * 32 + at % 32;
    ([low, at / 64 * 4], [high, at / 32 * 2])
}
