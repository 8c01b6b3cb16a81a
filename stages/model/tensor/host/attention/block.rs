//! A block of queries: which keys they see, and what is done to their scores. Scores stand `[keys, queries]`, so that each operation
//! has the queries side by side.

#![allow(clippy::inline_always, reason = "loops vectorize only in the function that knows the processor")]

use std::ops::Range;

use super::{
    super::{
        math::{self, simd},
        product::transposed,
        round::round,
    },
    multiply::LANES,
};
use crate::{precision::Precision, simd::one_round_at_a_time, tensor::Mask};

/// Queries in a block.
pub(super) const QUERIES: usize = 32;

/// The scores of all queries for one key.
pub(super) type Scores = [f32; QUERIES];

/// Queries of one sequence, and the keys that any of them sees.
pub(super) struct Block {
    /// Rows of the matrices.
    pub(super) rows: Range<usize>,
    /// Rows of the matrices.
    pub(super) keys: Range<usize>,
    /// Of `keys`, the first that each query sees, and the first after that which it doesn't; none for queries that are not there.
    seen: [[u32; QUERIES]; 2],
}

impl Block {
    /// Number of blocks in a sequence.
    pub(super) fn count(sequence: &Range<usize>) -> usize {
        sequence.len().div_ceil(QUERIES)
    }

    /// A block of a sequence.
    pub(super) fn new(sequence: &Range<usize>, index: usize, mask: Mask) -> Self {
        let (first, length) = (sequence.start, sequence.len());
        let positions = index * QUERIES..length.min((index + 1) * QUERIES);
        let visible = |position| mask.visible(position, length);
        let keys = visible(positions.start).start..visible(positions.end - 1).end;
        let mut seen = [[0; QUERIES]; 2];
        for (query, position) in positions.clone().enumerate() {
            let of_query = visible(position);
            seen[0][query] = (of_query.start - keys.start) as u32;
            seen[1][query] = (of_query.end - keys.start) as u32;
        }
        Self { rows: first + positions.start..first + positions.end, keys: first + keys.start..first + keys.end, seen }
    }

    /// Softmax over the keys that each query sees; others get zero. Returns the logs of the denominators.
    pub(super) fn softmax(&self, scores: &mut [Scores]) -> Scores {
        let (mut logs, mut totals) = ([f32::NEG_INFINITY; QUERIES], [0.0_f32; QUERIES]);
        let (all_largest, all_totals) = (&mut logs, &mut totals);
        simd!(|| {
            for part in 0..PARTS {
                let (seen, mut largest) = (lanes(&self.seen, part), [f32::NEG_INFINITY; LANES]);
                for (key, scores) in (0..).zip(scores.iter()) {
                    let scores = scores.as_chunks::<LANES>().0[part];
                    for i in 0..LANES {
                        let larger = (scores[i] > largest[i]) & sees(seen, i, key);
                        largest[i] = if larger { scores[i] } else { largest[i] };
                    }
                }
                let mut total = [0.0_f32; LANES];
                for (key, scores) in (0..).zip(scores.iter_mut()) {
                    let scores = &mut scores.as_chunks_mut::<LANES>().0[part];
                    for i in 0..LANES {
                        let value = math::exp(scores[i] - largest[i]);
                        scores[i] = if sees(seen, i, key) { value } else { 0.0 };
                        total[i] += scores[i];
                    }
                }
                all_largest.as_chunks_mut().0[part] = largest;
                all_totals.as_chunks_mut().0[part] = total;
            }
            let mut inverse = *all_totals;
            inverse.iter_mut().zip(all_totals.iter()).for_each(|(inverse, total)| *inverse = 1.0 / total);
            for scores in scores.iter_mut() {
                one_round_at_a_time();
                scores.iter_mut().zip(&inverse).for_each(|(score, inverse)| *score *= inverse);
            }
        });
        logs.iter_mut().zip(totals).for_each(|(log, total)| *log += total.ln());
        logs
    }

    /// Turns scores (`p`) into probabilities, and `d_out v^T` (`ds`) into gradients of the products of queries and keys. `means` are
    /// the sums over keys of `p * ds`, which the gradient of the softmax needs.
    pub(super) fn score_gradients(
        &self,
        p: &mut [Scores],
        ds: &mut [Scores],
        (log_totals, means): (&Scores, &Scores),
        scale: f32,
    ) {
        simd!(|| {
            for part in 0..PARTS {
                let (seen, log_totals, means) = (
                    lanes(&self.seen, part),
                    &log_totals.as_chunks::<LANES>().0[part],
                    &means.as_chunks::<LANES>().0[part],
                );
                for (key, (p, ds)) in (0..).zip(p.iter_mut().zip(ds.iter_mut())) {
                    let both =
                        p.as_chunks_mut::<LANES>().0[part].iter_mut().zip(&mut ds.as_chunks_mut::<LANES>().0[part]);
                    for (i, (p, ds)) in both.enumerate() {
                        let value = math::exp(*p - log_totals[i]);
                        *p = if sees(seen, i, key) { value } else { 0.0 };
                        *ds = *p * (*ds - means[i]) * scale;
                    }
                }
            }
        });
    }
}

/// Parts of a block's queries, which loops keep in a register each.
const PARTS: usize = QUERIES / LANES;

/// A part of what each query sees.
#[inline(always)]
fn lanes(seen: &[[u32; QUERIES]; 2], part: usize) -> [[u32; LANES]; 2] {
    [seen[0].as_chunks().0[part], seen[1].as_chunks().0[part]]
}

#[inline(always)]
#[allow(clippy::needless_bitwise_bool, reason = "with a branch, loops over it would not vectorize")]
fn sees(seen: [[u32; LANES]; 2], query: usize, key: u32) -> bool {
    (seen[0][query] <= key) & (key < seen[1][query])
}

/// Where a head's values lie in the rows of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// Width of a row.
    pub(super) stride: usize,
    pub(super) first: usize,
    /// Width of the head.
    pub(super) dim: usize,
}

impl Columns {
    /// The columns of a head in rows of `heads`.
    pub(super) fn of(head: usize, heads: usize, dim: usize) -> Self {
        Self { stride: heads * dim, first: head * dim, dim }
    }

    /// Width of a row of a copy.
    pub(super) fn width(self) -> usize {
        self.dim.next_multiple_of(LANES)
    }

    /// Where a row of the head begins.
    pub(super) fn at(self, row: usize) -> usize {
        row * self.stride + self.first
    }

    /// Copies the head's `rows` as operands of products: `[rows, width]`, with zeros beyond the head's own width. `to` is empty or an
    /// earlier copy of the same width.
    pub(super) fn copy(self, values: &[f32], rows: Range<usize>, precision: Precision, to: &mut Vec<f32>) {
        let width = self.width();
        to.resize(rows.len() * width, 0.0);
        let row = |row: usize| values[self.at(row)..][..self.dim].as_chunks::<LANES>();
        // Vector by vector, each in all rows: row by row it would become a call for each row's few values.
        for vector in 0..self.dim / LANES {
            for (to, from) in to.chunks_exact_mut(width).zip(rows.clone()) {
                to.as_chunks_mut::<LANES>().0[vector] = row(from).0[vector];
            }
        }
        let rest = self.dim % LANES;
        if rest > 0 {
            for (to, from) in to.chunks_exact_mut(width).zip(rows) {
                to[self.dim - rest..self.dim].copy_from_slice(row(from).1);
            }
        }
        round(to, precision);
    }
}

/// Transposes a copy of at most [`QUERIES`] rows: `[width, QUERIES]`. Columns of rows that are not there are undefined.
pub(super) fn transpose(rows: &[f32], width: usize, to: &mut Vec<f32>) {
    const SIDE: usize = 4;
    to.resize(width * QUERIES, 0.0);
    for (group, rows) in rows.chunks(SIDE * width).enumerate() {
        for col in (0..width).step_by(SIDE) {
            let mut square = [[0; SIDE]; SIDE];
            for (square, row) in square.iter_mut().zip(rows.chunks(width)) {
                square.copy_from_slice(bytemuck::cast_slice(&row[col..col + SIDE]));
            }
            for (i, values) in transposed(square).into_iter().enumerate() {
                to[(col + i) * QUERIES + group * SIDE..][..SIDE].copy_from_slice(bytemuck::cast_slice(&values));
            }
        }
    }
}
