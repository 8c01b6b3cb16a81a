//! Rounds operands to bf16 and packs them.

use super::super::{math::simd, round::bf16_bits};

/// A matrix `[lanes, depth]` in f32, where `depth` is the length of the sum.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    pub(super) values: &'a [f32],
    pub(super) lanes: usize,
    pub(super) depth: usize,
    /// Whether it is stored `[lanes, depth]`; else it is `[depth, lanes]`.
    pub(super) along: bool,
}

impl<'a> Operand<'a> {
    /// Stored `[lanes, depth]`.
    pub(super) fn along(values: &'a [f32], lanes: usize, depth: usize) -> Self {
        assert_eq!(values.len(), lanes * depth, "an operand [{lanes}, {depth}]");
        Self { values, lanes, depth, along: true }
    }

    /// Stored `[depth, lanes]`.
    pub(super) fn across(values: &'a [f32], lanes: usize, depth: usize) -> Self {
        Self { along: false, ..Self::along(values, lanes, depth) }
    }

    /// Packs the lanes from `first` on, and `count` pairs along the sum from `pair` on, into panels of `width` lanes: `[panel, pair,
    /// lane]`. `out` has room for whole panels if the last is to be filled up with zeros, or just for the lanes.
    pub(super) fn pack(&self, first: usize, pair: usize, count: usize, width: usize, out: &mut [u32]) {
        simd!(|| {
            for (panel, out) in out.chunks_mut(width * count).enumerate() {
                let (lane, width) = (first + panel * width, out.len() / count);
                let real = width.min(self.lanes - lane);
                if self.along {
                    self.pack_along(lane, real, pair, width, out);
                } else {
                    self.pack_across(lane, real, pair, width, out);
                }
            }
        });
    }

    /// The sum runs along rows: blocks of words are transposed.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "loops vectorize only if they are inlined")]
    fn pack_along(&self, lane: usize, real: usize, pair: usize, width: usize, out: &mut [u32]) {
        const BLOCK: usize = 16;
        for (block, out) in out.chunks_mut(BLOCK * width).enumerate() {
            let (start, pairs) = (2 * (pair + block * BLOCK), out.len() / width);
            out.fill(0);
            for l in 0..real {
                let row = &self.values[(lane + l) * self.depth..][start..self.depth.min((lane + l + 1) * self.depth)];
                let mut words = [0; BLOCK];
                words_of(&row[..row.len().min(2 * pairs)], &mut words);
                for (out, word) in out.chunks_mut(width).zip(words) {
                    out[l] = word;
                }
            }
        }
    }

    /// The sum runs across rows: two rows are interleaved.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "loops vectorize only if they are inlined")]
    fn pack_across(&self, lane: usize, real: usize, pair: usize, width: usize, out: &mut [u32]) {
        for (p, out) in out.chunks_mut(width).enumerate() {
            let row = |depth: usize| {
                if depth < self.depth { &self.values[depth * self.lanes + lane..][..real] } else { &[] }
            };
            let depth = 2 * (pair + p);
            interleave(row(depth), row(depth + 1), out);
        }
    }
}

/// The words of neighbours in `values`; the last is one with zero if their number is odd.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
fn words_of(values: &[f32], words: &mut [u32]) {
    let (pairs, rest) = values.as_chunks::<2>();
    for (word, [even, odd]) in words.iter_mut().zip(pairs) {
        *word = bf16_bits(*even) >> 16 | bf16_bits(*odd) & 0xffff_0000;
    }
    if let ([last], Some(word)) = (rest, words.get_mut(pairs.len())) {
        *word = bf16_bits(*last) >> 16;
    }
}

/// The words of neighbours in two rows. What these don't have is zero.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
fn interleave(even: &[f32], odd: &[f32], words: &mut [u32]) {
    let (both, rest) = words.split_at_mut(even.len());
    rest.fill(0);
    if odd.is_empty() {
        for (word, even) in both.iter_mut().zip(even) {
            *word = bf16_bits(*even) >> 16;
        }
    }
    for ((word, even), odd) in both.iter_mut().zip(even).zip(odd) {
        *word = bf16_bits(*even) >> 16 | bf16_bits(*odd) & 0xffff_0000;
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn words_have_two_neighbours_along_the_sum() {
        let value =
            |lane: usize, depth: usize| if lane < 37 && depth < 51 { (lane * 100 + depth) as f32 + 0.3 } else { 0.0 };
        let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
        let along: Vec<f32> = (0..37 * 51).map(|i| value(i / 51, i % 51)).collect();
        let across: Vec<f32> = (0..37 * 51).map(|i| value(i % 37, i / 37)).collect();
        for operand in [Operand::along(&along, 37, 51), Operand::across(&across, 37, 51)] {
            // From lane 3 and pair 5 on: two panels of 20 lanes, the second filled up; and one that is just as wide as needed.
            for (width, lanes) in [(20, 40), (20, 34), (34, 34)] {
                let mut out = vec![7; lanes * 21];
                operand.pack(3, 5, 21, width, &mut out);
                for (index, word) in out.iter().enumerate() {
                    let (panel, within) = (index / (width * 21), index % (width * 21));
                    let width = width.min(lanes - panel * width);
                    let (pair, lane) = (5 + within / width, 3 + panel * 20 + within % width);
                    assert_eq!(*word, bits(value(lane, 2 * pair)) | bits(value(lane, 2 * pair + 1)) << 16, "{index}");
                }
            }
        }
    }
}
