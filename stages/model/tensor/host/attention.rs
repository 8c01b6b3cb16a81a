//! Attention, one block of query rows at a time, so that memory does not grow with the square of the sequence length.
#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::{
    gemm::{Product, View},
    math,
    round::{operand, round},
    shared::Shared,
};
use crate::{
    precision::Precision,
    tensor::{Mask, Segments},
};

/// Query rows per block.
const BLOCK: usize = 32;

/// Number of query heads and key heads, and width of a head.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Heads {
    pub(in crate::tensor) query: usize,
    pub(in crate::tensor) key: usize,
    pub(in crate::tensor) dim: usize,
}

impl Heads {
    /// Width of a row of queries.
    fn width(self) -> usize {
        self.query * self.dim
    }

    /// Width of a row of keys.
    fn key_width(self) -> usize {
        self.key * self.dim
    }

    /// Number of query heads per key head (grouped-query attention).
    fn group(self) -> usize {
        self.query / self.key
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// The inputs of attention.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Inputs<'a> {
    pub(in crate::tensor) q: &'a [f32],
    pub(in crate::tensor) k: &'a [f32],
    pub(in crate::tensor) v: &'a [f32],
    pub(in crate::tensor) heads: Heads,
    pub(in crate::tensor) segments: &'a Segments,
    pub(in crate::tensor) mask: Mask,
    /// The precision to which the operands of all products are rounded.
    pub(in crate::tensor) precision: Precision,
}

/// Query rows of one sequence, and the key rows to which any of them attends. All ranges are rows of the matrices.
struct Block {
    rows: Range<usize>,
    keys: Range<usize>,
    mask: Mask,
    sequence: Range<usize>,
}

impl Block {
    /// The blocks of a sequence.
    fn all(sequence: Range<usize>, mask: Mask) -> impl Iterator<Item = Self> {
        sequence.clone().step_by(BLOCK).map(move |start| {
            let (first, length) = (sequence.start, sequence.len());
            let end = (start + BLOCK).min(sequence.end);
            let keys = mask.visible(start - first, length).start..mask.visible(end - 1 - first, length).end;
            Self { rows: start..end, keys: first + keys.start..first + keys.end, mask, sequence: sequence.clone() }
        })
    }

    /// The keys to which `row` attends, as indices into `keys`.
    fn visible(&self, row: usize) -> Range<usize> {
        let first = self.sequence.start;
        let visible = self.mask.visible(row - first, self.sequence.len());
        first + visible.start - self.keys.start..first + visible.end - self.keys.start
    }
}

/// Returns the output and, per row and head, the log of the softmax's denominator, from which the backward pass
/// recomputes the probabilities.
pub(in crate::tensor) fn forward(of: Inputs<'_>) -> (Vec<f32>, Vec<f32>) {
    let Inputs { heads, segments, mask, precision, .. } = of;
    let [q, k, v] = [of.q, of.k, of.v].map(|values| operand(values, precision));
    let (width, key_width, dim) = (heads.width(), heads.key_width(), heads.dim);
    let (mut out, mut log_totals) = (vec![0.0; q.len()], vec![0.0; q.len() / dim]);
    let (to, totals) = (Shared::new(&mut out), Shared::new(&mut log_totals));
    let blocks: Vec<Block> = segments.iter().flat_map(|sequence| Block::all(sequence, mask)).collect();
    blocks.into_par_iter().with_max_len(1).for_each_init(Vec::new, |scores, block| {
        let (start, rows, keys) = (block.rows.start, block.rows.len(), block.keys.len());
        for head in 0..heads.query {
            let key_offset = block.keys.start * key_width + head / heads.group() * dim;
            scores.clear();
            scores.resize(rows * keys, 0.0);
            let queries = View::rows(&q[start * width + head * dim..], width);
            let key_rows = View::rows(&k[key_offset..], key_width);
            Product::new(rows, keys, dim).scaled(heads.scale()).single(queries, key_rows.t(), scores, keys);
            for (row, scores) in block.rows.clone().zip(scores.chunks_mut(keys)) {
                let visible = block.visible(row);
                let total = softmax(&mut scores[visible.clone()]);
                scores[..visible.start].fill(0.0);
                scores[visible.end..].fill(0.0);
                // SAFETY: each (row, head) is written by one task, and nothing reads before all tasks have ended.
                unsafe { totals.slice(row * heads.query + head, 1)[0] = total };
            }
            round(scores, precision);
            let values = View::rows(&v[key_offset..], key_width);
            let (probabilities, offset) = (View::rows(scores, keys), start * width + head * dim);
            Product::new(rows, dim, keys).tile(probabilities, values, to, offset, q.len(), width);
        }
    });
    (out, log_totals)
}

/// Softmax in place. Returns the log of the denominator.
fn softmax(scores: &mut [f32]) -> f32 {
    math::simd!(|| {
        let largest = math::max(scores);
        for score in scores.iter_mut() {
            *score = math::exp(*score - largest);
        }
        let total = math::sum([scores], |[score]| score);
        let inverse = 1.0 / total;
        for score in scores.iter_mut() {
            *score *= inverse;
        }
        largest + total.ln()
    })
}

/// What the backward pass reads besides the inputs: results of the forward pass, and the output's gradient.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Outputs<'a> {
    pub(in crate::tensor) out: &'a [f32],
    pub(in crate::tensor) log_totals: &'a [f32],
    pub(in crate::tensor) d_out: &'a [f32],
}

/// Returns the gradients of queries, keys and values.
pub(in crate::tensor) fn input_gradients(of: Inputs<'_>, outputs: Outputs<'_>) -> [Vec<f32>; 3] {
    let mut gradients = [of.q, of.k, of.v].map(|values| vec![0.0; values.len()]);
    let [q, k, v, d_out] = [of.q, of.k, of.v, outputs.d_out].map(|values| operand(values, of.precision));
    let of = Inputs { q: &q, k: &k, v: &v, ..of };
    let targets = gradients.each_mut().map(|gradient| Shared::new(gradient));
    let tasks: Vec<(usize, usize)> =
        (0..of.segments.len()).flat_map(|segment| (0..of.heads.key).map(move |head| (segment, head))).collect();
    tasks.into_par_iter().with_max_len(1).for_each(|(segment, key_head)| {
        head_gradients(of, outputs, &d_out, of.segments.range(segment), key_head, targets);
    });
    gradients
}

/// Adds the gradients of one sequence and one key head, with all its query heads, to `targets`. `d_out` is the output's
/// gradient as an operand.
fn head_gradients(
    of: Inputs<'_>,
    outputs: Outputs<'_>,
    d_out: &[f32],
    sequence: Range<usize>,
    key_head: usize,
    targets: [Shared; 3],
) {
    let Inputs { q, k, v, heads, mask, precision, .. } = of;
    let (width, key_width, dim) = (heads.width(), heads.key_width(), heads.dim);
    let [dq, dk, dv] = targets;
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for block in Block::all(sequence, mask) {
        let (rows, keys) = (block.rows.len(), block.keys.len());
        let key_offset = block.keys.start * key_width + key_head * dim;
        let key_rows = View::rows(&k[key_offset..], key_width);
        let value_rows = View::rows(&v[key_offset..], key_width);
        for head in key_head * heads.group()..(key_head + 1) * heads.group() {
            let offset = block.rows.start * width + head * dim;
            for buffer in [&mut p, &mut ds] {
                buffer.clear();
                buffer.resize(rows * keys, 0.0);
            }
            let queries = View::rows(&q[offset..], width);
            let d_outs = View::rows(&d_out[offset..], width);
            Product::new(rows, keys, dim).scaled(heads.scale()).single(queries, key_rows.t(), &mut p, keys);
            Product::new(rows, keys, dim).single(d_outs, value_rows.t(), &mut ds, keys);
            for (index, row) in block.rows.clone().enumerate() {
                let of_row = index * keys..(index + 1) * keys;
                score_gradients(outputs, heads, row, head, block.visible(row), &mut p[of_row.clone()], &mut ds[of_row]);
            }
            for operand in [&mut p, &mut ds] {
                round(operand, precision);
            }
            let (p, ds) = (View::rows(&p, keys), View::rows(&ds, keys));
            Product::new(rows, dim, keys).adding().tile(ds, key_rows, dq, offset, q.len(), width);
            Product::new(keys, dim, rows).adding().tile(ds.t(), queries, dk, key_offset, k.len(), key_width);
            Product::new(keys, dim, rows).adding().tile(p.t(), d_outs, dv, key_offset, v.len(), key_width);
        }
    }
}

/// For one row, turns scores (`p`) into probabilities and `d_out v^T` (`ds`) into gradients of the scores, in place.
fn score_gradients(
    outputs: Outputs<'_>,
    heads: Heads,
    row: usize,
    head: usize,
    visible: Range<usize>,
    p: &mut [f32],
    ds: &mut [f32],
) {
    let start = row * heads.width() + head * heads.dim;
    let (d_out, out) = (&outputs.d_out[start..start + heads.dim], &outputs.out[start..start + heads.dim]);
    let (log_total, scale) = (outputs.log_totals[row * heads.query + head], heads.scale());
    let (p_seen, ds_seen) = (&mut p[visible.clone()], &mut ds[visible.clone()]);
    math::simd!(|| {
        // The sum over keys of p * dp, needed by the gradient of the softmax.
        let mean = math::dot(d_out, out);
        for (p, ds) in p_seen.iter_mut().zip(ds_seen.iter_mut()) {
            *p = math::exp(*p - log_total);
            *ds = *p * (*ds - mean) * scale;
        }
    });
    for values in [p, ds] {
        values[..visible.start].fill(0.0);
        values[visible.end..].fill(0.0);
    }
}

/// The keys and values to which one row attends, in two parts.
pub(in crate::tensor) type Cached<'a> = [(&'a [f32], &'a [f32]); 2];

/// Attention of single rows of `q`, each to separate keys and values, which are already in `precision`.
pub(in crate::tensor) fn cached(q: &[f32], visible: &[Cached<'_>], heads: Heads, precision: Precision) -> Vec<f32> {
    let (width, dim, scale) = (heads.key_width(), heads.dim, heads.scale());
    let q = operand(q, precision);
    let mut out = vec![0.0; q.len()];
    out.par_chunks_mut(dim).zip(q.par_chunks(dim)).enumerate().for_each_init(
        Vec::new,
        |scores: &mut Vec<f32>, (index, (out, query))| {
            let (row, head) = (index / heads.query, index % heads.query);
            let offset = head / heads.group() * dim;
            scores.clear();
            scores.resize(visible[row].iter().map(|(keys, _)| keys.len() / width).sum(), 0.0);
            let all = scores.as_mut_slice();
            math::simd!(|| {
                let keys = visible[row].iter().flat_map(|(keys, _)| keys.chunks(width));
                for (score, key) in all.iter_mut().zip(keys) {
                    *score = math::dot(query, &key[offset..offset + dim]) * scale;
                }
            });
            softmax(scores);
            round(scores, precision);
            math::simd!(|| {
                let values = visible[row].iter().flat_map(|(_, values)| values.chunks(width));
                for (probability, value) in scores.iter().zip(values) {
                    for (out, value) in out.iter_mut().zip(&value[offset..offset + dim]) {
                        *out += probability * value;
                    }
                }
            });
        },
    );
    out
}
