//! Packs weights in bf16, which are rounded already: two neighbours along a row are one word of the file.
#![allow(clippy::inline_always, reason = "loops vectorize only in the function that knows the processor")]

use std::ops::Range;

use super::{
    super::math::simd,
    pack::{Format, LANES, transposed},
};
use crate::{encoding::Encoding, tensor::Stored};

/// Pairs of a lane that are read before those of the next lanes are, so that what is written stays in the nearest cache.
const STRETCH: usize = 64;
/// Bytes of a lane that are transposed at once.
const BYTES: usize = 4 * LANES;

/// A weight in bf16.
pub(super) struct Halves<'a> {
    /// `[rows, columns]`.
    bytes: &'a [u8],
    columns: usize,
    /// Whether the sum runs along its rows.
    along: bool,
}

/// What is packed into panels: the columns of the right operand, and the pairs of the sum.
pub(super) struct Block {
    pub(super) cols: Range<usize>,
    pub(super) pairs: Range<usize>,
}

impl<'a> Halves<'a> {
    /// The weight, if it is in bf16 and its rows can be transposed without a rest.
    pub(super) fn of(weight: &'a Stored, along: bool) -> Option<Self> {
        let (bytes, columns) = (weight.raw(Encoding::Bf16)?, weight.cols());
        (!along || columns.is_multiple_of(BYTES / 2)).then_some(Self { bytes, columns, along })
    }

    /// Packs panels of `width` columns as [`Operand::pack`](super::pack::Operand::pack) does with their values. What the last panel has
    /// beyond the block is not specified.
    pub(super) fn pack(&self, format: Format, block: &Block, width: usize, out: &mut [u32]) {
        simd!(|| match (format, width) {
            (Format::Words, 32) => self.panels::<false, 32>(block, out),
            (Format::Values(_), 32) => self.panels::<true, 32>(block, out),
            (Format::Values(_), 16) => self.panels::<true, 16>(block, out),
            (Format::Values(_), 8) => self.panels::<true, 8>(block, out),
            _ => unreachable!("tiles have two vectors in a row"),
        });
    }

    /// Panels of `W` columns. `SPLIT`: a pair is a row of odd values and one of even ones, in f32.
    #[inline(always)]
    fn panels<const SPLIT: bool, const W: usize>(&self, block: &Block, out: &mut [u32]) {
        let Block { cols, pairs } = block;
        let per = if SPLIT { 2 * W } else { W };
        let panels = || cols.clone().step_by(W);
        if self.along {
            for (first, out) in panels().zip(out.chunks_exact_mut(pairs.len() * per)) {
                let col = |index: usize| self.part((first + index).min(cols.end - 1), 2 * pairs.start..2 * pairs.end);
                transpose::<SPLIT, W>(std::array::from_fn(col), out);
            }
            return;
        }
        // Row by row, as they lie in memory.
        for (index, pair) in pairs.clone().enumerate() {
            let [even, odd] = [2 * pair, 2 * pair + 1].map(|row| self.part(row, cols.clone()).as_chunks().0);
            for (first, out) in panels().zip(out.chunks_exact_mut(pairs.len() * per)) {
                let of = |row: &'a [[u8; 2]]| row.get(first - cols.start..).unwrap_or_default();
                interleave::<SPLIT, W>(of(even), of(odd), &mut out[index * per..][..per]);
            }
        }
    }

    /// The bytes of a part of a row; none of one that the weight does not have.
    fn part(&self, row: usize, cols: Range<usize>) -> &'a [u8] {
        let [first, end] = [cols.start, cols.end].map(|col| 2 * (row * self.columns + col));
        self.bytes.get(first..end).unwrap_or_default()
    }
}

/// Packs a panel of rows along the sum.
#[inline(always)]
fn transpose<const SPLIT: bool, const W: usize>(rows: [&[u8]; W], out: &mut [u32]) {
    let per = if SPLIT { 2 * W } else { W };
    for (stretch, out) in out.chunks_mut(STRETCH * per).enumerate() {
        let bytes = out.len() / per * 4;
        let part = |lane: usize| rows[lane][4 * STRETCH * stretch..][..bytes].as_chunks::<BYTES>().0;
        for lane in (0..W).step_by(LANES) {
            let [a, b, c, d] = [part(lane), part(lane + 1), part(lane + 2), part(lane + 3)];
            for ((((a, b), c), d), out) in a.iter().zip(b).zip(c).zip(d).zip(out.chunks_exact_mut(LANES * per)) {
                let words = transposed([*a, *b, *c, *d].map(bytemuck::cast));
                for (words, out) in words.iter().zip(out.chunks_exact_mut(per)) {
                    write::<SPLIT>(words, lane, out);
                }
            }
        }
    }
}

/// Writes the words of some lanes.
#[inline(always)]
fn write<const SPLIT: bool>(words: &[u32], lane: usize, out: &mut [u32]) {
    if !SPLIT {
        return out[lane..][..words.len()].copy_from_slice(words);
    }
    let (odd, even) = out.split_at_mut(out.len() / 2);
    let lanes = odd[lane..].iter_mut().zip(&mut even[lane..]);
    for (word, (odd, even)) in words.iter().zip(lanes) {
        (*odd, *even) = (word & 0xffff_0000, word << 16);
    }
}

/// Packs a pair of a panel from rows across the sum.
#[inline(always)]
fn interleave<const SPLIT: bool, const W: usize>(even: &[[u8; 2]], odd: &[[u8; 2]], out: &mut [u32]) {
    let word =
        |even: [u8; 2], odd: [u8; 2]| u32::from(u16::from_le_bytes(even)) | u32::from(u16::from_le_bytes(odd)) << 16;
    let (Some(even), Some(odd)) = (even.first_chunk::<W>(), odd.first_chunk::<W>()) else {
        // The sum or the rows end here.
        let of = |row: &[[u8; 2]], lane: usize| row.get(lane).copied().unwrap_or_default();
        return (0..W).for_each(|lane| write::<SPLIT>(&[word(of(even, lane), of(odd, lane))], lane, out));
    };
    let mut words = [0; W];
    for (to, (even, odd)) in words.iter_mut().zip(even.iter().zip(odd)) {
        *to = word(*even, *odd);
    }
    write::<SPLIT>(&words, 0, out);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::super::pack::Operand;
    use super::*;
    use crate::{precision::Precision, tensor::Bytes};

    /// Also in the format of processors that this one may not be.
    #[test]
    fn panels_are_those_of_the_decoded_values() {
        let (rows, cols) = (41, 80);
        let values: Vec<f32> = (0..rows * cols).map(|index| (index as f32 * 0.37).sin()).collect();
        let bytes = Encoding::Bf16.narrow(&values);
        let length = bytes.len();
        let weight = Stored::plain(rows, cols, Encoding::Bf16, Bytes::new(Arc::new(bytes), 0..length));
        let values = weight.to_f32();
        let formats = [(Format::Words, 32), (Format::Values(Precision::Bf16), 32), (Format::Values(Precision::F32), 8)];
        for (along, (format, width)) in [true, false].into_iter().flat_map(|along| formats.map(|of| (along, of))) {
            let halves = Halves::of(&weight, along).unwrap();
            // All pairs from the second group on: along 80 values, across 41. The last panel lacks some columns.
            let (operand, lanes, pairs): (_, usize, _) = if along {
                (Operand::along(&values, rows, cols), 41, 4..40)
            } else {
                (Operand::across(&values, cols, rows), 80, 4..21)
            };
            let size = width * pairs.len() * format.words();
            let [mut ours, mut theirs] = [7, 9].map(|fill| vec![fill; lanes.div_ceil(width) * size]);
            halves.pack(format, &Block { cols: 0..lanes, pairs: pairs.clone() }, width, &mut ours);
            operand.pack(format, 0, pairs.start, pairs.len(), width, &mut theirs);
            for (index, (one, other)) in ours.iter().zip(&theirs).enumerate() {
                let lane = index / size * width + index % width;
                assert!(lane >= lanes || one == other, "{along} {format:?} at {index}: {one:x} and {other:x}");
            }
        }
    }
}
