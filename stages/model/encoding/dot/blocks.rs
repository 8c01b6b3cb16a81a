//! Dot products of blocks of levels with digits. Products of integers are exact; the sums of four are multiplied with the scales of both
//! and added in f32, in sixteen lanes.
#![allow(
    clippy::inline_always,
    clippy::redundant_closure,
    reason = "loops vectorize only if what they call is inlined, as closures are and the addresses of functions are not"
)]

use super::{
    added,
    operand::{Digits, Form, PART, Part},
    quads::{LEVELS, Quads, SUMS, WithQuads},
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

/// The parts of a K-quant's block.
const PARTS: usize = kquants::BLOCK / LEVELS;
/// The parts of such a block with a scale and a min.
const SCALED: usize = kquants::BLOCK / PART;
/// Blocks of [`PART`] levels that are multiplied at once.
const PAIR: usize = LEVELS / PART;
/// Blocks whose scales are converted side by side.
const SCALES: usize = 8;

/// How the levels of each encoding are stored.
const Q4_0: Form = Form::narrow(8, PART);
const Q8_0: Form = Form::wide(128, PART);
/// Of `q4_K` and `q5_K`.
const WITH_MINS: Form = Form::narrow(0, kquants::BLOCK);
const Q6: Form = Form::narrow(32, kquants::BLOCK);
/// Of [`q4f16`].
pub(super) const GROUPS: Form = Form::narrow(7, q4f16::GROUP_SIZE);

/// The form of an encoding, if it has levels that are multiplied as integers.
pub(super) fn form(encoding: Encoding) -> Option<Form> {
    match encoding {
        Encoding::Q4_0 => Some(Q4_0),
        Encoding::Q8_0 => Some(Q8_0),
        Encoding::Q4K | Encoding::Q5K => Some(WITH_MINS),
        Encoding::Q6K => Some(Q6),
        _ => None,
    }
}

/// A row in blocks that hold levels and scales.
pub(super) struct Blocks<'a> {
    pub(super) encoding: Encoding,
    pub(super) bytes: &'a [u8],
    pub(super) with: &'a Digits,
}

impl WithQuads for Blocks<'_> {
    type Output = f32;

    #[inline(always)]
    fn with(self, quads: impl Quads) -> f32 {
        let Self { encoding, bytes, with } = self;
        match encoding {
            Encoding::Q4_0 => scaled::<{ Q4_0.bits }, { Q4_0.zero }, _, _>(quads, twice(bytes), with, |bytes| {
                ggml::q4_0_levels(bytes)
            }),
            Encoding::Q8_0 => scaled::<{ Q8_0.bits }, { Q8_0.zero }, _, _>(quads, twice(bytes), with, |bytes| {
                ggml::q8_0_levels(bytes)
            }),
            Encoding::Q4K => with_mins(quads, bytes, with, |bytes| kquants::q4_levels(bytes)),
            Encoding::Q5K => with_mins(quads, bytes, with, |bytes| kquants::q5_levels(bytes)),
            Encoding::Q6K => q6(quads, bytes, with),
            _ => unreachable!("{encoding:?} has no digits"),
        }
    }
}

/// A row in MLC's groups, whose scales are beside their levels.
pub(super) struct Groups<'a> {
    pub(super) levels: &'a [u8],
    pub(super) scales: &'a [u8],
    /// The digits of a group are in the order of its levels.
    pub(super) with: &'a Digits,
}

impl WithQuads for Groups<'_> {
    type Output = f32;

    #[inline(always)]
    fn with(self, quads: impl Quads) -> f32 {
        let scales = self.scales.as_chunks::<{ q4f16::SCALE_BYTES }>().0;
        let rows = (self.levels.as_chunks().0, scales);
        scaled::<{ GROUPS.bits }, { GROUPS.zero }, _, _>(quads, rows, self.with, |levels| q4f16::levels(levels))
    }
}

/// Blocks of [`PART`] levels, with places that begin with their f16 scales.
#[inline(always)]
fn scaled<const BITS: u32, const ZERO: u8, const BLOCK: usize, const PLACE: usize>(
    quads: impl Quads,
    (blocks, places): (&[[u8; BLOCK]], &[[u8; PLACE]]),
    with: &Digits,
    levels: impl Fn(&[u8; BLOCK]) -> [i8; PART],
) -> f32 {
    let mut totals = [0.0; SUMS];
    let (all, last) = blocks.as_chunks::<SCALES>();
    let (all_places, last_places) = places.as_chunks::<SCALES>();
    let (all_scales, last_scales) = with.scales.as_chunks::<SCALES>();
    let (all_parts, last_parts) = with.parts.split_at(all.len() * (SCALES / PAIR));
    let parts = all_parts.as_chunks::<{ SCALES / PAIR }>().0;
    for (((blocks, places), of_digits), parts) in all.iter().zip(all_places).zip(all_scales).zip(parts) {
        fetch_ahead(blocks.as_flattened());
        // Otherwise their bytes are gathered one by one.
        let mut halves: [u16; SCALES] = lanes(|i| u16::from_le_bytes([places[i][0], places[i][1]]));
        settle(&mut halves);
        let scales: [f32; SCALES] = lanes(|i| widen_finite(halves[i]) * of_digits[i]);
        for (number, part) in parts.iter().enumerate() {
            let levels = [levels(&blocks[PAIR * number]), levels(&blocks[PAIR * number + 1])];
            let products = multiply::<BITS, ZERO>(quads, lanes(|i| levels[i / PART][i % PART]), part);
            add(&mut totals, lanes(|i| products[i] * scales[PAIR * number + i / (SUMS / PAIR)]));
        }
    }
    let pairs = last.chunks(PAIR).zip(last_places.chunks(PAIR)).zip(last_scales.chunks(PAIR));
    for (((blocks, places), of_digits), part) in pairs.zip(last_parts) {
        // The digits beyond the last block are zeros, as is what it is paired with.
        let (mut pair, mut scales) = ([[0; PART]; PAIR], [0.0; PAIR]);
        for (i, block) in blocks.iter().enumerate() {
            (pair[i], scales[i]) = (levels(block), factor(&places[i]) * of_digits[i]);
        }
        let products = multiply::<BITS, ZERO>(quads, lanes(|i| pair[i / PART][i % PART]), part);
        add(&mut totals, lanes(|i| products[i] * scales[i / (SUMS / PAIR)]));
    }
    added(totals)
}

/// Blocks of parts with scales and mins.
#[inline(always)]
fn with_mins<const BYTES: usize>(
    quads: impl Quads,
    bytes: &[u8],
    with: &Digits,
    levels: impl Fn(&[u8; BYTES]) -> [i8; kquants::BLOCK],
) -> f32 {
    let (mut totals, mut below) = ([0.0; SUMS], [0.0; SCALED]);
    let of_block = with.parts.as_chunks::<PARTS>().0.iter().zip(with.sums.as_chunks::<SCALED>().0).zip(&with.scales);
    for (bytes, ((parts, sums), scale)) in bytes.as_chunks::<BYTES>().0.iter().zip(of_block) {
        fetch_ahead(bytes);
        let Some(head) = bytes.first_chunk() else { continue };
        let ((d, m), (scales, mut mins)) = (kquants::factors(head), kquants::scales_and_mins(head));
        let (scales, levels): ([f32; SCALED], _) = (lanes(|i| f32::from(scales[i])), levels(bytes));
        let mut of_parts = [0.0; SUMS];
        for (number, part) in parts.iter().enumerate() {
            let products =
                multiply::<{ WITH_MINS.bits }, { WITH_MINS.zero }>(quads, lanes(|i| levels[number * LEVELS + i]), part);
            add(&mut of_parts, lanes(|i| products[i] * scales[PAIR * number + i / (SUMS / PAIR)]));
        }
        let (scale, min) = (d * scale, m * scale);
        add(&mut totals, lanes(|i| of_parts[i] * scale));
        // Otherwise they are taken from the head one by one.
        settle(&mut mins);
        add(&mut below, lanes(|i| f32::from(mins[i]) * sums[i] * min));
    }
    added(totals) - added(below)
}

#[inline(always)]
fn q6(quads: impl Quads, bytes: &[u8], with: &Digits) -> f32 {
    let mut totals = [0.0; SUMS];
    let of_block = with.parts.as_chunks::<PARTS>().0.iter().zip(&with.scales);
    for (bytes, (parts, scale)) in bytes.as_chunks::<{ kquants::Q6_BYTES }>().0.iter().zip(of_block) {
        fetch_ahead(bytes);
        let (scales, levels) = (kquants::q6_scales(bytes), kquants::q6_levels(bytes));
        let scales: [f32; 16] = lanes(|i| f32::from(scales[i]));
        let mut of_parts = [0.0; SUMS];
        for (number, part) in parts.iter().enumerate() {
            let products = multiply::<{ Q6.bits }, { Q6.zero }>(quads, lanes(|i| levels[number * LEVELS + i]), part);
            add(&mut of_parts, lanes(|i| products[i] * scales[4 * number + i / 4]));
        }
        let factor = kquants::q6_factor(bytes) * scale;
        add(&mut totals, lanes(|i| of_parts[i] * factor));
    }
    added(totals)
}

/// Blocks that begin with their scale.
fn twice<const BYTES: usize>(bytes: &[u8]) -> (&[[u8; BYTES]], &[[u8; BYTES]]) {
    let blocks = bytes.as_chunks().0;
    (blocks, blocks)
}

/// The sums of the products of four levels with the values that digits of `BITS` bits stand for. Levels are stored with `ZERO` added to them.
#[inline(always)]
fn multiply<const BITS: u32, const ZERO: u8>(quads: impl Quads, levels: [i8; LEVELS], part: &Part) -> [f32; SUMS] {
    let levels: [u8; LEVELS] = lanes(|i| levels[i].cast_unsigned().wrapping_add(ZERO));
    let mut sums = [0_i32; SUMS];
    for digits in &part.digits {
        sums = quads.multiply_add(lanes(|i| sums[i] << BITS), &levels, digits);
    }
    if ZERO == 0 { lanes(|i| sums[i] as f32) } else { lanes(|i| (sums[i] - part.excess[i]) as f32) }
}

/// Adds to the sums of a row.
#[inline(always)]
fn add<const N: usize>(totals: &mut [f32; N], more: [f32; N]) {
    for (total, more) in totals.iter_mut().zip(more) {
        *total += more;
    }
}
