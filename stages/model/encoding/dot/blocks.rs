//! Dot products of blocks of levels with words. Products of integers are exact; the sums of a block are multiplied with the scales of both
//! and added in f32, in sixteen lanes.
#![allow(
    clippy::inline_always,
    clippy::redundant_closure,
    reason = "loops vectorize only if what they call is inlined, as closures are and the addresses of functions are not"
)]

use super::{
    added,
    operand::{FINE, Part, Words},
    pairs::{Pairs, SUMS, WORDS, WithPairs},
};
use crate::{
    encoding::{
        Encoding, ggml,
        half::{factor, widen_finite},
        kquants, q4f16,
        search::lanes,
    },
    simd::{fetch_ahead, settle},
};

/// The words of a K-quant's block: parts of [`WORDS`].
const PARTS: usize = kquants::BLOCK / WORDS;
/// Scales that are converted side by side.
const SCALES: usize = 8;

/// A row in blocks that hold levels and scales.
pub(super) struct Blocks<'a> {
    pub(super) encoding: Encoding,
    pub(super) bytes: &'a [u8],
    pub(super) with: &'a Words,
}

impl WithPairs for Blocks<'_> {
    type Output = f32;

    #[inline(always)]
    fn with(self, pairs: impl Pairs) -> f32 {
        let Self { encoding, bytes, with } = self;
        match encoding {
            Encoding::Q4_0 => scaled(pairs, twice(bytes), with, |bytes| ggml::q4_0_levels(bytes)),
            Encoding::Q8_0 => scaled(pairs, twice(bytes), with, |bytes| ggml::q8_0_levels(bytes)),
            Encoding::Q4K => with_mins(pairs, bytes, with, |bytes| kquants::q4_levels(bytes)),
            Encoding::Q5K => with_mins(pairs, bytes, with, |bytes| kquants::q5_levels(bytes)),
            Encoding::Q6K => q6(pairs, bytes, with),
            _ => unreachable!("{encoding:?} has no words"),
        }
    }
}

/// A row in MLC's groups, whose scales are beside their levels.
pub(super) struct Groups<'a> {
    pub(super) levels: &'a [u8],
    pub(super) scales: &'a [u8],
    /// The words of a group are in the order of its levels.
    pub(super) with: &'a Words,
}

impl WithPairs for Groups<'_> {
    type Output = f32;

    #[inline(always)]
    fn with(self, pairs: impl Pairs) -> f32 {
        let scales = self.scales.as_chunks::<{ q4f16::SCALE_BYTES }>().0;
        scaled(pairs, (self.levels.as_chunks().0, scales), self.with, |levels| q4f16::levels(levels))
    }
}

/// Blocks of [`WORDS`] levels, with places that begin with their f16 scales.
#[inline(always)]
fn scaled<const BLOCK: usize, const PLACE: usize>(
    pairs: impl Pairs,
    (blocks, places): (&[[u8; BLOCK]], &[[u8; PLACE]]),
    with: &Words,
    levels: impl Fn(&[u8; BLOCK]) -> [i8; WORDS],
) -> f32 {
    let mut totals = [0.0; SUMS];
    let whole = blocks.len() / SCALES * SCALES;
    for start in (0..whole).step_by(SCALES) {
        let all = start..start + SCALES;
        let (blocks, places, parts) = (&blocks[all.clone()], &places[all.clone()], &with.parts[all.clone()]);
        let of_words = &with.scales[all];
        fetch_ahead(blocks.as_flattened());
        // Otherwise their bytes are gathered one by one.
        let mut halves: [u16; SCALES] = lanes(|i| u16::from_le_bytes([places[i][0], places[i][1]]));
        settle(&mut halves);
        let scales: [f32; SCALES] = lanes(|i| widen_finite(halves[i]) * of_words[i]);
        for i in 0..SCALES {
            let levels = levels(&blocks[i]);
            add(&mut totals, multiply(pairs, lanes(|i| i16::from(levels[i])), &parts[i]), scales[i]);
        }
    }
    for i in whole..blocks.len() {
        let levels = levels(&blocks[i]);
        let scale = factor(&places[i]) * with.scales[i];
        add(&mut totals, multiply(pairs, lanes(|i| i16::from(levels[i])), &with.parts[i]), scale);
    }
    added(totals)
}

/// Blocks of parts with scales and mins.
#[inline(always)]
fn with_mins<const BYTES: usize>(
    pairs: impl Pairs,
    bytes: &[u8],
    with: &Words,
    levels: impl Fn(&[u8; BYTES]) -> [i8; kquants::BLOCK],
) -> f32 {
    let (mut totals, mut below) = ([0.0; SUMS], 0.0);
    let of_block = with.parts.as_chunks::<PARTS>().0.iter().zip(with.sums.as_chunks::<PARTS>().0).zip(&with.scales);
    for (bytes, ((parts, sums_of_words), scale)) in bytes.as_chunks::<BYTES>().0.iter().zip(of_block) {
        fetch_ahead(bytes);
        let Some(head) = bytes.first_chunk() else { continue };
        let ((d, m), (scales, mins)) = (kquants::factors(head), kquants::scales_and_mins(head));
        let levels = levels(bytes);
        let mut sums = [[0; SUMS]; 2];
        for (part, words) in parts.iter().enumerate() {
            let scale = i16::from(scales[part]);
            let levels = lanes(|i| i16::from(levels[part * WORDS + i]) * scale);
            sums = sum(sums, multiply(pairs, levels, words));
        }
        add(&mut totals, sums, d * scale);
        let (mut high, mut low) = (0, 0);
        for (min, [sum_of_high, sum_of_low]) in mins.iter().zip(sums_of_words) {
            high += i32::from(*min) * sum_of_high;
            low += i32::from(*min) * sum_of_low;
        }
        below += m * scale * joined(high, low);
    }
    added(totals) - below
}

#[inline(always)]
fn q6(pairs: impl Pairs, bytes: &[u8], with: &Words) -> f32 {
    let mut totals = [0.0; SUMS];
    let of_block = with.parts.as_chunks::<PARTS>().0.iter().zip(&with.scales);
    for (bytes, (parts, scale)) in bytes.as_chunks::<{ kquants::Q6_BYTES }>().0.iter().zip(of_block) {
        fetch_ahead(bytes);
        let (scales, levels) = (kquants::q6_scales(bytes), kquants::q6_levels(bytes));
        let mut sums = [[0; SUMS]; 2];
        for (part, words) in parts.iter().enumerate() {
            let scales = lanes::<_, 2>(|half| i16::from(scales[2 * part + half]));
            let levels = lanes(|i| i16::from(levels[part * WORDS + i]) * scales[i / SUMS]);
            sums = sum(sums, multiply(pairs, levels, words));
        }
        add(&mut totals, sums, kquants::q6_factor(bytes) * scale);
    }
    added(totals)
}

/// Blocks that begin with their scale.
fn twice<const BYTES: usize>(bytes: &[u8]) -> (&[[u8; BYTES]], &[[u8; BYTES]]) {
    let blocks = bytes.as_chunks().0;
    (blocks, blocks)
}

/// The products with high and low words.
#[inline(always)]
fn multiply(pairs: impl Pairs, levels: [i16; WORDS], [high, low]: &Part) -> [[i32; SUMS]; 2] {
    [pairs.multiply(levels, high), pairs.multiply(levels, low)]
}

#[inline(always)]
fn sum(a: [[i32; SUMS]; 2], b: [[i32; SUMS]; 2]) -> [[i32; SUMS]; 2] {
    [lanes(|i| a[0][i] + b[0][i]), lanes(|i| a[1][i] + b[1][i])]
}

/// Adds the sums of a block to those of a row.
#[inline(always)]
fn add(totals: &mut [f32; SUMS], [high, low]: [[i32; SUMS]; 2], scale: f32) {
    for ((total, high), low) in totals.iter_mut().zip(high).zip(low) {
        *total += scale * joined(high, low);
    }
}

/// The sum of products with high and low words.
#[inline(always)]
fn joined(high: i32, low: i32) -> f32 {
    high as f32 + FINE * low as f32
}
