//! Scaled dot-product attention (Vaswani et al. 2017), one block of rows at a time: the scores of a whole
//! sequence are never in memory together. The backward pass computes them again (Dao et al. 2022).

use std::{ops::Range, sync::Arc};

use rayon::prelude::*;

use crate::tensor::{
    Graph, Mat, Segments,
    host::shared::Shared,
    host::gemm::{Product, View},
    host::math,
    ops::pointwise::accumulate,
};

/// Query rows that are worked on together.
const BLOCK: usize = 32;

/// What a position may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Itself and what comes before (language models).
    Causal,
    /// The same, but no more than so many positions, itself included (sliding window).
    Window(usize),
    /// Its whole sequence (vision encoders).
    Full,
}

impl Mask {
    /// Causal, with a window if there is one.
    pub fn causal(window: Option<usize>) -> Self {
        window.map_or(Self::Causal, Self::Window)
    }

    /// The positions that `row` may look at, of a sequence of `length`.
    fn seen(self, row: usize, length: usize) -> Range<usize> {
        match self {
            Self::Causal => 0..row + 1,
            Self::Window(width) => (row + 1).saturating_sub(width)..row + 1,
            Self::Full => 0..length,
        }
    }
}

/// Some rows of one sequence, and the keys that any of them may look at.
struct Block {
    /// Rows of the matrix.
    rows: Range<usize>,
    /// Rows of the matrix.
    keys: Range<usize>,
    mask: Mask,
    sequence: Range<usize>,
}

impl Block {
    /// A sequence's blocks.
    fn all(sequence: Range<usize>, mask: Mask) -> impl Iterator<Item = Self> {
        sequence.clone().step_by(BLOCK).map(move |start| {
            let (first, length) = (sequence.start, sequence.len());
            let end = (start + BLOCK).min(sequence.end);
            let keys = mask.seen(start - first, length).start..mask.seen(end - 1 - first, length).end;
            Self { rows: start..end, keys: first + keys.start..first + keys.end, mask, sequence: sequence.clone() }
        })
    }

    /// Which of `keys` the row may look at, counted from the first of them.
    fn seen(&self, row: usize) -> Range<usize> {
        let first = self.sequence.start;
        let seen = self.mask.seen(row - first, self.sequence.len());
        first + seen.start - self.keys.start..first + seen.end - self.keys.start
    }
}

/// The shape of the heads.
#[derive(Clone, Copy)]
struct Heads {
    query: usize,
    key: usize,
    dim: usize,
}

impl Heads {
    fn of(q: &Mat, k: &Mat, heads: usize) -> Self {
        let dim = q.cols() / heads;
        Self { query: heads, key: k.cols() / dim, dim }
    }

    /// Query heads that share a key head (grouped-query attention).
    fn group(self) -> usize {
        self.query / self.key
    }

    fn scale(self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// `softmax(q k^T / sqrt(head_dim)) v` for every head of every sequence.
///
/// `q` `[rows, heads * head_dim]`, `k` and `v` `[rows, kv_heads * head_dim]`; heads lie side by side in a row.
pub fn attention(g: &Graph, q: &Mat, k: &Mat, v: &Mat, heads: usize, segments: &Segments, mask: Mask) -> Mat {
    let shape = Heads::of(q, k, heads);
    let mut out = vec![0.0; q.values().len()];
    // log of the softmax's denominator for each row and head: enough to compute probabilities again.
    let mut log_totals = vec![0.0; q.rows() * heads];
    forward(q, k, v, shape, segments, mask, &mut out, &mut log_totals);
    let out = g.output(q.rows(), q.cols(), out, &[q, k, v]);
    let (q, k, v, segments, result) = (q.clone(), k.clone(), v.clone(), segments.clone(), out.clone());
    g.record(&out, move |d_out, gradients| {
        // Buffers of their own: two of the inputs may be one and the same matrix.
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|mat| vec![0.0; mat.values().len()]);
        let saved = Saved { q: &q, k: &k, v: &v, out: &result, log_totals: &log_totals, d_out: &d_out };
        let targets = [Shared::new(&mut dq), Shared::new(&mut dk), Shared::new(&mut dv)];
        let tasks: Vec<(usize, usize)> =
            (0..segments.len()).flat_map(|segment| (0..shape.key).map(move |head| (segment, head))).collect();
        tasks.into_par_iter().with_max_len(1).for_each(|(segment, key_head)| {
            backward(&saved, shape, segments.range(segment), key_head, mask, targets);
        });
        for (mat, gradient) in [(&q, dq), (&k, dk), (&v, dv)] {
            accumulate(gradients.buffer(&mat.ghost()), &gradient, 1.0);
        }
    });
    out
}

#[allow(clippy::too_many_arguments, reason = "three matrices in, two buffers out, and their shape")]
fn forward(
    q: &Mat,
    k: &Mat,
    v: &Mat,
    shape: Heads,
    segments: &Segments,
    mask: Mask,
    out: &mut [f32],
    log_totals: &mut [f32],
) {
    let (width, key_width, dim) = (q.cols(), k.cols(), shape.dim);
    let (out_length, out, log_totals) = (out.len(), Shared::new(out), Shared::new(log_totals));
    let blocks: Vec<Block> = segments.iter().flat_map(|sequence| Block::all(sequence, mask)).collect();
    blocks.into_par_iter().with_max_len(1).for_each_init(Vec::new, |scores, block| {
        let (start, rows, keys) = (block.rows.start, block.rows.len(), block.keys.len());
        for head in 0..shape.query {
            let key_offset = block.keys.start * key_width + head / shape.group() * dim;
            scores.clear();
            scores.resize(rows * keys, 0.0);
            let queries = View::rows(&q.values()[start * width + head * dim..], width);
            let key_rows = View::rows(&k.values()[key_offset..], key_width);
            Product::new(rows, keys, dim).scaled(shape.scale()).single(queries, key_rows.t(), scores, keys);
            for (row, scores) in block.rows.clone().zip(scores.chunks_mut(keys)) {
                let seen = block.seen(row);
                let total = softmax(&mut scores[seen.clone()]);
                scores[..seen.start].fill(0.0);
                scores[seen.end..].fill(0.0);
                store(log_totals, row * shape.query + head, total);
            }
            let values = View::rows(&v.values()[key_offset..], key_width);
            let (from, at) = (View::rows(scores, keys), start * width + head * dim);
            Product::new(rows, dim, keys).tile(from, values, out, at, out_length, width);
        }
    });
}

/// Writes one value to a place that no other task writes to.
#[allow(unsafe_code)]
fn store(to: Shared, index: usize, value: f32) {
    // SAFETY: every (row, head) belongs to exactly one task, and nothing reads before all tasks have ended.
    unsafe { to.slice(index, 1)[0] = value };
}

/// Softmax in place; returns the log of its denominator.
fn softmax(scores: &mut [f32]) -> f32 {
    math::simd(|| {
        let largest = math::max(scores);
        for score in scores.iter_mut() {
            *score = math::exp(*score - largest);
        }
        let total = math::sum(scores.len(), |i| scores[i]);
        let inverse = 1.0 / total;
        for score in scores.iter_mut() {
            *score *= inverse;
        }
        largest + total.ln()
    })
}

/// What the backward pass reads.
struct Saved<'a> {
    q: &'a Mat,
    k: &'a Mat,
    v: &'a Mat,
    out: &'a Mat,
    log_totals: &'a [f32],
    d_out: &'a [f32],
}

/// The gradients of one sequence and one key head, with all query heads that share it.
fn backward(
    saved: &Saved<'_>,
    shape: Heads,
    sequence: Range<usize>,
    key_head: usize,
    mask: Mask,
    targets: [Shared; 3],
) {
    let (width, key_width, dim) = (saved.q.cols(), saved.k.cols(), shape.dim);
    let [dq, dk, dv] = targets;
    let (query_length, key_length) = (saved.q.values().len(), saved.k.values().len());
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for block in Block::all(sequence, mask) {
        let (rows, keys) = (block.rows.len(), block.keys.len());
        let key_offset = block.keys.start * key_width + key_head * dim;
        let key_rows = View::rows(&saved.k.values()[key_offset..], key_width);
        let value_rows = View::rows(&saved.v.values()[key_offset..], key_width);
        for head in key_head * shape.group()..(key_head + 1) * shape.group() {
            let offset = block.rows.start * width + head * dim;
            for buffer in [&mut p, &mut ds] {
                buffer.clear();
                buffer.resize(rows * keys, 0.0);
            }
            let queries = View::rows(&saved.q.values()[offset..], width);
            let d_outs = View::rows(&saved.d_out[offset..], width);
            Product::new(rows, keys, dim).scaled(shape.scale()).single(queries, key_rows.t(), &mut p, keys);
            Product::new(rows, keys, dim).single(d_outs, value_rows.t(), &mut ds, keys);
            for (index, row) in block.rows.clone().enumerate() {
                let of_row = index * keys..(index + 1) * keys;
                score_gradients(saved, shape, row, head, block.seen(row), &mut p[of_row.clone()], &mut ds[of_row]);
            }
            let (p, ds) = (View::rows(&p, keys), View::rows(&ds, keys));
            Product::new(rows, dim, keys).adding().tile(ds, key_rows, dq, offset, query_length, width);
            Product::new(keys, dim, rows).adding().tile(ds.t(), queries, dk, key_offset, key_length, key_width);
            Product::new(keys, dim, rows).adding().tile(p.t(), d_outs, dv, key_offset, key_length, key_width);
        }
    }
}

/// One row: from scores and `d_out v^T` to probabilities and the gradients of the scores, in place.
fn score_gradients(
    saved: &Saved<'_>,
    shape: Heads,
    row: usize,
    head: usize,
    seen: Range<usize>,
    p: &mut [f32],
    ds: &mut [f32],
) {
    let at = row * saved.q.cols() + head * shape.dim;
    let (d_out, out) = (&saved.d_out[at..at + shape.dim], &saved.out.values()[at..at + shape.dim]);
    let (log_total, scale) = (saved.log_totals[row * shape.query + head], shape.scale());
    math::simd(|| {
        let along = math::dot(d_out, out);
        for (p, ds) in p[seen.clone()].iter_mut().zip(&mut ds[seen.clone()]) {
            *p = math::exp(*p - log_total);
            *ds = *p * (*ds - along) * scale;
        }
    });
    for values in [p, ds] {
        values[..seen.start].fill(0.0);
        values[seen.end..].fill(0.0);
    }
}

/// Keys and values of one sequence in one layer, for generation. Sequences that begin alike share what they have of that.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    shared: Arc<KeysAndValues>,
    own: KeysAndValues,
}

#[derive(Clone, Debug, Default)]
struct KeysAndValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// Adds positions, rows of `[.., kv_heads * head_dim]`.
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        self.own.keys.extend_from_slice(keys);
        self.own.values.extend_from_slice(values);
    }

    /// The same as a beginning that copies of it share. It must not share one itself.
    ///
    /// # Panics
    /// If it does: a bug of the caller's.
    #[must_use]
    pub fn into_shared(self) -> Self {
        assert!(self.shared.keys.is_empty(), "a beginning of a beginning");
        Self { shared: Arc::new(self.own), own: KeysAndValues::default() }
    }

    /// The keys and values of some positions: the shared ones, then its own.
    fn seen(&self, positions: Range<usize>, width: usize) -> [(&[f32], &[f32]); 2] {
        let seen = positions.start * width..positions.end * width;
        let shared = self.shared.keys.len();
        let first = seen.start.min(shared)..seen.end.min(shared);
        let second = seen.start.max(shared) - shared..seen.end.max(shared) - shared;
        [
            (&self.shared.keys[first.clone()], &self.shared.values[first]),
            (&self.own.keys[second.clone()], &self.own.values[second]),
        ]
    }
}

/// Row `i` of `q`, which stands at `positions[i]` of its sequence, looks at what `mask` lets it see of `caches[i]`. For
/// inference.
pub fn attend_cached(
    q: &Mat,
    positions: &[usize],
    caches: &[&KvCache],
    heads: usize,
    kv_heads: usize,
    mask: Mask,
) -> Mat {
    let dim = q.cols() / heads;
    let (width, scale, group) = (kv_heads * dim, 1.0 / (dim as f32).sqrt(), heads / kv_heads);
    let mut out = vec![0.0; q.values().len()];
    out.par_chunks_mut(dim).enumerate().for_each_init(Vec::new, |scores: &mut Vec<f32>, (index, out)| {
        let (row, head) = (index / heads, index % heads);
        let (query, offset) = (&q.row(row)[head * dim..(head + 1) * dim], head / group * dim);
        let parts = caches[row].seen(mask.seen(positions[row], positions[row] + 1), width);
        scores.clear();
        math::simd(|| {
            for (keys, _) in parts {
                scores.extend(keys.chunks(width).map(|key| {
                    let key = &key[offset..offset + dim];
                    math::dot(query, key) * scale
                }));
            }
        });
        softmax(scores);
        math::simd(|| {
            let values = parts.iter().flat_map(|(_, values)| values.chunks(width));
            for (probability, value) in scores.iter().zip(values) {
                for (out, value) in out.iter_mut().zip(&value[offset..offset + dim]) {
                    *out += probability * value;
                }
            }
        });
    });
    Mat::new(q.rows(), q.cols(), out)
}
