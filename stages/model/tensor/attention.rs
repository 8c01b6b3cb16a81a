//! Scaled dot-product attention (Vaswani et al. 2017), one block of rows at a time: the scores of a whole
//! sequence are never in memory together. The backward pass computes them again (Dao et al. 2022).

use rayon::prelude::*;

use super::{
    Graph, Mat, Segments,
    access::Shared,
    gemm::{Product, View},
    math,
    pointwise::accumulate,
};

/// Query rows that are worked on together.
const BLOCK: usize = 32;

/// What a position may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Itself and what comes before (language models).
    Causal,
    /// Its whole sequence (vision encoders).
    Full,
}

impl Mask {
    /// How many keys the rows before `end` may look at, of a sequence of `length`.
    fn limit(self, end: usize, length: usize) -> usize {
        if self == Self::Causal { end } else { length }
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
    let tasks: Vec<(usize, usize, usize)> = segments
        .iter()
        .flat_map(|range| range.clone().step_by(BLOCK).map(move |start| (range.start, range.end, start)))
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each_init(Vec::new, |scores, (first, last, start)| {
        let end = (start + BLOCK).min(last);
        let (rows, keys) = (end - start, mask.limit(end - first, last - first));
        for head in 0..shape.query {
            let key_offset = first * key_width + head / shape.group() * dim;
            scores.clear();
            scores.resize(rows * keys, 0.0);
            let queries = View::rows(&q.values()[start * width + head * dim..], width);
            let key_rows = View::rows(&k.values()[key_offset..], key_width);
            Product::new(rows, keys, dim).scaled(shape.scale()).single(queries, key_rows.t(), scores, keys);
            for (row, scores) in scores.chunks_mut(keys).enumerate() {
                let seen = mask.limit(start + row + 1 - first, keys);
                let total = softmax(&mut scores[..seen]);
                scores[seen..].fill(0.0);
                store(log_totals, (start + row) * shape.query + head, total);
            }
            let values = View::rows(&v.values()[key_offset..], key_width);
            Product::new(rows, dim, keys).tile(
                View::rows(scores, keys),
                values,
                out,
                start * width + head * dim,
                out_length,
                width,
            );
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
    range: std::ops::Range<usize>,
    key_head: usize,
    mask: Mask,
    targets: [Shared; 3],
) {
    let (width, key_width, dim) = (saved.q.cols(), saved.k.cols(), shape.dim);
    let [dq, dk, dv] = targets;
    let (query_length, key_length) = (saved.q.values().len(), saved.k.values().len());
    let (first, key_offset) = (range.start, range.start * key_width + key_head * dim);
    let key_rows = View::rows(&saved.k.values()[key_offset..], key_width);
    let value_rows = View::rows(&saved.v.values()[key_offset..], key_width);
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for head in key_head * shape.group()..(key_head + 1) * shape.group() {
        for start in range.clone().step_by(BLOCK) {
            let end = (start + BLOCK).min(range.end);
            let (rows, keys) = (end - start, mask.limit(end - first, range.len()));
            let offset = start * width + head * dim;
            p.clear();
            p.resize(rows * keys, 0.0);
            ds.clear();
            ds.resize(rows * keys, 0.0);
            let queries = View::rows(&saved.q.values()[offset..], width);
            let d_outs = View::rows(&saved.d_out[offset..], width);
            Product::new(rows, keys, dim).scaled(shape.scale()).single(queries, key_rows.t(), &mut p, keys);
            Product::new(rows, keys, dim).single(d_outs, value_rows.t(), &mut ds, keys);
            for row in 0..rows {
                let at = offset + row * width;
                let (d_out, out) = (&saved.d_out[at..at + dim], &saved.out.values()[at..at + dim]);
                let along = math::sum(dim, |i| d_out[i] * out[i]);
                let log_total = saved.log_totals[(start + row) * shape.query + head];
                let seen = mask.limit(start + row + 1 - first, keys);
                let (p, ds) = (&mut p[row * keys..(row + 1) * keys], &mut ds[row * keys..(row + 1) * keys]);
                let scale = shape.scale();
                math::simd(|| {
                    for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                        *p = math::exp(*p - log_total);
                        *ds = *p * (*ds - along) * scale;
                    }
                });
                p[seen..].fill(0.0);
                ds[seen..].fill(0.0);
            }
            let (p, ds) = (View::rows(&p, keys), View::rows(&ds, keys));
            Product::new(rows, dim, keys).adding().tile(ds, key_rows, dq, offset, query_length, width);
            Product::new(keys, dim, rows).adding().tile(ds.t(), queries, dk, key_offset, key_length, key_width);
            Product::new(keys, dim, rows).adding().tile(p.t(), d_outs, dv, key_offset, key_length, key_width);
        }
    }
}

/// Keys and values of one sequence in one layer, for generation.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// Adds positions, rows of `[.., kv_heads * head_dim]`.
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        self.keys.extend_from_slice(keys);
        self.values.extend_from_slice(values);
    }
}

/// Row `i` of `q`, the newest position of its sequence, looks at all of `caches[i]`. For inference.
pub fn attend_cached(q: &Mat, caches: &[&KvCache], heads: usize, kv_heads: usize) -> Mat {
    let dim = q.cols() / heads;
    let (width, scale, group) = (kv_heads * dim, 1.0 / (dim as f32).sqrt(), heads / kv_heads);
    let mut out = vec![0.0; q.values().len()];
    out.par_chunks_mut(dim).enumerate().for_each_init(Vec::new, |scores: &mut Vec<f32>, (index, out)| {
        let (row, head) = (index / heads, index % heads);
        let (query, cache, offset) = (&q.row(row)[head * dim..(head + 1) * dim], caches[row], head / group * dim);
        scores.clear();
        scores.extend(cache.keys.chunks(width).map(|key| {
            let key = &key[offset..offset + dim];
            math::sum(dim, |i| query[i] * key[i]) * scale
        }));
        softmax(scores);
        for (probability, value) in scores.iter().zip(cache.values.chunks(width)) {
            for (out, value) in out.iter_mut().zip(&value[offset..offset + dim]) {
                *out += probability * value;
            }
        }
    });
    Mat::new(q.rows(), q.cols(), out)
}
