//! Packs operands into panels, and rounds them on the way.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "loops vectorize only in the function that knows the processor")]

use std::ops::Range;

use super::super::math::simd;
use crate::{encoding::bf16_bits, precision::Precision, simd::fetch};

/// A matrix `[lanes, depth]` in f32, where `depth` is the length of the sum.
#[derive(Clone, Copy)]
pub(in super::super) struct Operand<'a> {
    values: &'a [f32],
    pub(super) lanes: usize,
    pub(super) depth: usize,
    /// Whether it is stored `[lanes, depth]`; else it is `[depth, lanes]`.
    along: bool,
}

impl<'a> Operand<'a> {
    /// Stored `[lanes, depth]`.
    pub(in super::super) fn along(values: &'a [f32], lanes: usize, depth: usize) -> Self {
        assert_eq!(values.len(), lanes * depth, "an operand [{lanes}, {depth}]");
        Self { values, lanes, depth, along: true }
    }

    /// Stored `[depth, lanes]`.
    pub(in super::super) fn across(values: &'a [f32], lanes: usize, depth: usize) -> Self {
        Self { along: false, ..Self::along(values, lanes, depth) }
    }

    /// A part of each lane, if the sum runs along rows.
    pub(super) fn row_part(&self, range: Range<usize>) -> Option<impl Fn(usize) -> &'a [f32]> {
        let Self { values, along, depth, .. } = *self;
        along.then_some(move |lane: usize| &values[lane * depth..][range.clone()])
    }

    /// Packs the lanes from `first` on, and `count` pairs along the sum from `pair` on, into panels of `width` lanes. `out` has
    /// room for whole panels if the last is to be filled up with zeros, or just for the lanes.
    pub(super) fn pack(&self, format: Format, first: usize, pair: usize, count: usize, width: usize, out: &mut [u32]) {
        match format {
            Format::Words => self.panels::<Words>(first, pair, count, width, out),
            Format::Values(Precision::Bf16) => self.panels::<Values<true>>(first, pair, count, width, out),
            Format::Values(Precision::F32) => self.panels::<Values<false>>(first, pair, count, width, out),
        }
    }

    fn panels<L: Layout>(&self, first: usize, pair: usize, count: usize, width: usize, out: &mut [u32]) {
        let size = width * count * L::WORDS;
        let of = |panel: usize, out: &[u32]| {
            let (lane, width) = (first + panel * width, out.len() / count / L::WORDS);
            (lane, width.min(self.lanes - lane), width)
        };
        if self.along {
            for (panel, out) in out.chunks_mut(size).enumerate() {
                let (lane, real, width) = of(panel, out);
                simd!(|| match width {
                    // Loops of a known length for whole panels.
                    32 => self.pack_along::<L>(lane, real, pair, 32, out),
                    16 => self.pack_along::<L>(lane, real, pair, 16, out),
                    14 => self.pack_along::<L>(lane, real, pair, 14, out),
                    _ => self.pack_along::<L>(lane, real, pair, width, out),
                });
            }
            return;
        }
        // Row by row, as they lie in memory.
        simd!(|| {
            for p in 0..count {
                for (panel, out) in out.chunks_mut(size).enumerate() {
                    let (lane, real, width) = of(panel, out);
                    let pair = pair + p;
                    let row = |depth: usize| {
                        if depth < self.depth { &self.values[depth * self.lanes + lane..][..real] } else { &[] }
                    };
                    let out = &mut out[p * width * L::WORDS..][..width * L::WORDS];
                    let rows = [row(2 * pair), row(2 * pair + 1)];
                    match width {
                        32 => interleave::<L, 32>(rows, out),
                        16 => interleave::<L, 16>(rows, out),
                        14 => interleave::<L, 14>(rows, out),
                        _ => L::interleave(rows, width, out),
                    }
                }
            }
        });
    }

    /// The sum runs along rows: some lanes are transposed at once, while the next are fetched. Rows are far apart, and processors fetch by
    /// themselves only what follows.
    #[inline(always)]
    fn pack_along<L: Layout>(&self, lane: usize, real: usize, pair: usize, width: usize, out: &mut [u32]) {
        for (stretch, out) in out.chunks_mut(STRETCH / 2 * width * L::WORDS).enumerate() {
            let start = 2 * pair + stretch * STRETCH;
            let length = STRETCH.min(self.depth - start);
            if real < width || length < STRETCH {
                out.fill(0);
            }
            let row = |l: usize| &self.values[(lane + l) * self.depth + start..][..length];
            for l in (0..real).step_by(LANES) {
                (l + LANES..real.min(l + 2 * LANES)).for_each(|l| fetch_all(row(l)));
                // The last lanes again with the rest, as groups are faster.
                let l = l.min(real.saturating_sub(LANES));
                let lanes = LANES.min(real);
                let mut words = [[0; STRETCH]; LANES];
                for (i, words) in words[..lanes].iter_mut().enumerate() {
                    match row(l + i).as_array::<STRETCH>() {
                        Some(values) => L::words(values, words),
                        None => L::words(row(l + i), words),
                    }
                }
                transpose::<L>(&words, lanes, l, width, out);
            }
        }
    }
}

/// Fetches values for reading them soon.
#[inline(always)]
fn fetch_all(values: &[f32]) {
    const LINE: usize = 16;
    values.chunks(LINE).for_each(|line| fetch::<true, _>(line.as_ptr()));
}

/// [`Layout::interleave`], with loops of a known length for whole panels of `W` lanes.
#[inline(always)]
fn interleave<L: Layout, const W: usize>(pair: [&[f32]; 2], out: &mut [u32]) {
    match (pair.map(<[f32]>::as_array::<W>), out.split_at_mut_checked(W * L::WORDS)) {
        ([Some(even), Some(odd)], Some((out, []))) => L::interleave([even, odd], W, out),
        _ => L::interleave(pair, W, out),
    }
}

/// Values along the sum that are read of a lane before the next lanes are, so that what is written stays in the nearest cache.
const STRETCH: usize = 128;
/// Lanes that are transposed at once.
pub(super) const LANES: usize = 4;

/// Writes the words of `lanes` from `lane` on, as many as `out` has of each.
#[inline(always)]
fn transpose<L: Layout>(words: &[[u32; STRETCH]; LANES], lanes: usize, lane: usize, width: usize, out: &mut [u32]) {
    assert!(lane + lanes <= width, "lanes of the panel");
    let whole = if lanes == LANES { out.len() / width / LANES * LANES } else { 0 };
    let (blocks, rest) = out.split_at_mut(whole * width);
    let [a, b, c, d] = words.each_ref().map(|words| words.as_chunks::<LANES>().0);
    for ((((a, b), c), d), out) in a.iter().zip(b).zip(c).zip(d).zip(blocks.chunks_exact_mut(LANES * width)) {
        let rows = transposed([*a, *b, *c, *d]);
        for row in 0..LANES {
            out[row * width + lane..][..LANES].copy_from_slice(&rows[L::place(row)]);
        }
    }
    for (row, out) in rest.chunks_mut(width).enumerate() {
        for (out, words) in out[lane..lane + lanes].iter_mut().zip(words) {
            *out = words[L::place(whole + row)];
        }
    }
}

/// The transpose of a square.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(in super::super) fn transposed(rows: [[u32; LANES]; LANES]) -> [[u32; LANES]; LANES] {
    use std::arch::x86_64::{__m128i, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64};
    let [a, b, c, d]: [__m128i; LANES] = bytemuck::cast(rows);
    // SAFETY: every processor of this architecture has these instructions.
    unsafe {
        let [ab, cd] = [_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d)];
        let low = [_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)];
        let [ab, cd] = [_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d)];
        let high = [_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd)];
        bytemuck::cast([low, high])
    }
}

/// The transpose of a square.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(in super::super) fn transposed(rows: [[u32; LANES]; LANES]) -> [[u32; LANES]; LANES] {
    std::array::from_fn(|i| rows.map(|row| row[i]))
}

/// What a panel `[pair, ...]` has for a pair of neighbours along the sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    /// A word for each lane, of two bf16, the even one in the lower half.
    Words,
    /// The odd values of all lanes, then the even ones, in f32, rounded to this precision.
    Values(Precision),
}

impl Format {
    /// Words for a lane and a pair.
    pub(super) fn words(self) -> usize {
        match self {
            Self::Words => Words::WORDS,
            Self::Values(_) => Values::<true>::WORDS,
        }
    }
}

trait Layout {
    /// For a pair.
    const WORDS: usize;

    /// Of the words of a lane, the one that stands at `row` of a panel.
    fn place(row: usize) -> usize;

    /// The words of a lane's values along the sum.
    fn words(values: &[f32], words: &mut [u32; STRETCH]);

    /// Writes a pair of all lanes. What the rows don't have is zero.
    fn interleave(pair: [&[f32]; 2], width: usize, out: &mut [u32]);
}

struct Words;

impl Layout for Words {
    const WORDS: usize = 1;

    #[inline(always)]
    fn place(row: usize) -> usize {
        row
    }

    #[inline(always)]
    fn words(values: &[f32], words: &mut [u32; STRETCH]) {
        let (pairs, rest) = values.as_chunks();
        for (word, [even, odd]) in words.iter_mut().zip(pairs) {
            *word = rounded(*even) >> 16 | rounded(*odd);
        }
        if let [last] = rest {
            words[pairs.len()] = rounded(*last) >> 16;
        }
    }

    #[inline(always)]
    fn interleave([even, odd]: [&[f32]; 2], _: usize, out: &mut [u32]) {
        let (both, rest) = out.split_at_mut(even.len());
        rest.fill(0);
        if odd.is_empty() {
            for (word, even) in both.iter_mut().zip(even) {
                *word = rounded(*even) >> 16;
            }
        }
        for ((word, even), odd) in both.iter_mut().zip(even).zip(odd) {
            *word = rounded(*even) >> 16 | rounded(*odd);
        }
    }
}

struct Values<const ROUND: bool>;

impl<const ROUND: bool> Values<ROUND> {
    #[inline(always)]
    fn word(value: f32) -> u32 {
        if ROUND { rounded(value) } else { value.to_bits() }
    }
}

impl<const ROUND: bool> Layout for Values<ROUND> {
    const WORDS: usize = 2;

    #[inline(always)]
    fn place(row: usize) -> usize {
        row ^ 1
    }

    #[inline(always)]
    fn words(values: &[f32], words: &mut [u32; STRETCH]) {
        for (word, value) in words.iter_mut().zip(values) {
            *word = Self::word(*value);
        }
    }

    #[inline(always)]
    fn interleave([even, odd]: [&[f32]; 2], width: usize, out: &mut [u32]) {
        for (row, out) in [odd, even].into_iter().zip(out.chunks_mut(width)) {
            let (real, rest) = out.split_at_mut(row.len());
            for (word, value) in real.iter_mut().zip(row) {
                *word = Self::word(*value);
            }
            rest.fill(0);
        }
    }
}

/// The nearest value of bf16, as f32.
#[inline(always)]
fn rounded(value: f32) -> u32 {
    bf16_bits(value) & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn panels_have_two_neighbours_along_the_sum() {
        let value =
            |lane: usize, depth: usize| if lane < 37 && depth < 51 { (lane * 100 + depth) as f32 + 0.3 } else { 0.0 };
        let bits = |value: f32| u32::from(bf16::from_f32(value).to_bits());
        let along: Vec<f32> = (0..37 * 51).map(|i| value(i / 51, i % 51)).collect();
        let across: Vec<f32> = (0..37 * 51).map(|i| value(i % 37, i / 37)).collect();
        let formats = [Format::Words, Format::Values(Precision::Bf16), Format::Values(Precision::F32)];
        for format in formats {
            for operand in [Operand::along(&along, 37, 51), Operand::across(&across, 37, 51)] {
                // From lane 3 and pair 5 on: two panels of 20 lanes, the second filled up; and one just as wide as needed.
                for (width, lanes) in [(20, 40), (20, 34), (34, 34)] {
                    let mut out = vec![7; lanes * 21 * format.words()];
                    operand.pack(format, 3, 5, 21, width, &mut out);
                    for lane in 0..lanes {
                        let (panel, within) = (lane / width, lane % width);
                        let (start, width) = (panel * width, width.min(lanes - panel * width));
                        for p in 0..21 {
                            let at = (start * 21 + p * width) * format.words();
                            let [even, odd] = [0, 1].map(|part| value(3 + lane, 2 * (5 + p) + part));
                            match format {
                                Format::Words => assert_eq!(out[at + within], bits(even) | bits(odd) << 16),
                                Format::Values(precision) => {
                                    let of = |value: f32| match precision {
                                        Precision::F32 => value.to_bits(),
                                        Precision::Bf16 => bits(value) << 16,
                                    };
                                    assert_eq!([out[at + within], out[at + width + within]], [of(odd), of(even)]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
