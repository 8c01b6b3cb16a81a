//! Attention, one block of queries of one head at a time, so that memory does not grow with the square of the sequence length.
#![allow(unsafe_code)]

mod block;
mod cached;
mod multiply;

use std::ops::Range;

use rayon::prelude::*;

use self::{
    block::{Block, Columns, QUERIES, Scores, transpose},
    multiply::{Left, Right, multiply},
};
use super::{fresh::zeros, math, round::round, shared::Shared};
use crate::{
    precision::Precision,
    tensor::{Mask, Segments},
};

pub(in crate::tensor) use cached::{Cached, cached};

/// Number of query heads and key heads, and width of a head.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Heads {
    pub(in crate::tensor) query: usize,
    pub(in crate::tensor) key: usize,
    pub(in crate::tensor) dim: usize,
}

impl Heads {
    /// Width of a row of keys.
    fn key_width(self) -> usize {
        self.key * self.dim
    }

    /// Number of query heads per key head (grouped-query attention).
    fn group(self) -> usize {
        self.query / self.key
    }

    /// The query heads of a key head.
    fn queries_of(self, key_head: usize) -> Range<usize> {
        key_head * self.group()..(key_head + 1) * self.group()
    }

    /// The columns of a query head.
    fn query_columns(self, head: usize) -> Columns {
        Columns::of(head, self.query, self.dim)
    }

    /// The columns of a key head.
    fn key_columns(self, head: usize) -> Columns {
        Columns::of(head, self.key, self.dim)
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

/// A part of the queries of a key head in one sequence.
struct Task {
    sequence: Range<usize>,
    key_head: usize,
    blocks: Range<usize>,
}

/// Copies of what is multiplied, as operands; scores and results.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Copies,
    d_out: Copies,
    scores: Vec<Scores>,
    gradients: Vec<Scores>,
    result: Vec<f32>,
}

/// Rows of a block, and their transpose.
#[derive(Default)]
struct Copies {
    rows: Vec<f32>,
    columns: Vec<f32>,
}

impl Copies {
    fn fill(&mut self, values: &[f32], rows: Range<usize>, columns: Columns, precision: Precision) {
        columns.copy(values, rows, precision, &mut self.rows);
        transpose(&self.rows, columns.width(), &mut self.columns);
    }

    /// The transpose `[dim, rows]` as a right operand.
    fn across(&self, rows: usize) -> Right<'_> {
        Right { values: &self.columns, stride: QUERIES, cols: rows }
    }
}

/// Returns the output and, per row and head, the log of the softmax's denominator, from which the backward pass
/// recomputes the probabilities.
pub(in crate::tensor) fn forward(of: Inputs<'_>) -> (Vec<f32>, Vec<f32>) {
    let (mut out, mut log_totals) = (zeros(of.q.len()), zeros(of.q.len() / of.heads.dim));
    let (to, totals) = (Shared::new(&mut out), Shared::new(&mut log_totals));
    let pairs = (of.segments.len() * of.heads.key).max(1);
    // Enough tasks for all threads, as later parts see more keys. No result depends on how many there are.
    let wanted = 4 * rayon::current_num_threads();
    let parts = wanted.div_ceil(pairs);
    let tasks: Vec<Task> = of.segments.iter().flat_map(|sequence| tasks(sequence, of.heads.key, parts)).collect();
    let together = tasks.len().div_ceil(wanted);
    tasks.into_par_iter().with_max_len(together).for_each_init(Scratch::default, |scratch, task| {
        attend(of, &task, scratch, to, totals);
    });
    (out, log_totals)
}

/// A sequence in tasks, `parts` for each key head.
fn tasks(sequence: Range<usize>, key_heads: usize, parts: usize) -> impl Iterator<Item = Task> {
    let blocks = Block::count(&sequence);
    let step = blocks.div_ceil(parts.max(1)).max(1);
    (0..key_heads).flat_map(move |key_head| {
        let sequence = sequence.clone();
        (0..blocks).step_by(step).map(move |first| Task {
            sequence: sequence.clone(),
            key_head,
            blocks: first..blocks.min(first + step),
        })
    })
}

/// Computes the outputs of a task, and the logs of the denominators.
fn attend(of: Inputs<'_>, task: &Task, scratch: &mut Scratch, out: Shared, log_totals: Shared) {
    let Inputs { q, k, v, heads, mask, precision, .. } = of;
    let Scratch { keys, values, queries, scores, result, .. } = scratch;
    let columns = heads.key_columns(task.key_head);
    let (dim, width) = (heads.dim, columns.width());
    let blocks: Vec<Block> = task.blocks.clone().map(|index| Block::new(&task.sequence, index, mask)).collect();
    let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { return };
    let seen = first.keys.start..last.keys.end;
    columns.copy(k, seen.clone(), precision, keys);
    columns.copy(v, seen.clone(), precision, values);
    for block in &blocks {
        let (rows, count, skipped) = (block.rows.len(), block.keys.len(), (block.keys.start - seen.start) * width);
        scores.resize(count, [0.0; QUERIES]);
        result.resize(QUERIES * width, 0.0);
        for head in heads.queries_of(task.key_head) {
            let columns = heads.query_columns(head);
            queries.fill(q, block.rows.clone(), columns, precision);
            let of_keys = Left::along(&keys[skipped..], count, dim, width);
            multiply(of_keys, queries.across(rows), heads.scale(), false, scores.as_flattened_mut());
            let logs = block.softmax(scores);
            round(scores.as_flattened_mut(), precision);
            let probabilities = Left::across(scores.as_flattened(), rows, count, QUERIES);
            let right = Right { values: &values[skipped..], stride: width, cols: dim };
            multiply(probabilities, right, 1.0, false, result);
            // SAFETY: each (row, head) is written by one task, and nothing reads before all tasks have ended.
            unsafe { write(columns, block.rows.clone(), result, out) };
            for (row, log) in block.rows.clone().zip(logs) {
                // SAFETY: as above.
                unsafe { log_totals.slice(row * heads.query + head, 1)[0] = log };
            }
        }
    }
}

/// What the backward pass reads besides the inputs: results of the forward pass, and the output's gradient.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Outputs<'a> {
    pub(in crate::tensor) out: &'a [f32],
    pub(in crate::tensor) log_totals: &'a [f32],
    pub(in crate::tensor) d_out: &'a [f32],
}

impl Outputs<'_> {
    /// For each row of a head: the log of the denominator, and the sum over keys of probability times gradient of the probability.
    fn statistics(&self, rows: Range<usize>, head: usize, heads: Heads) -> (Scores, Scores) {
        let (mut logs, mut means) = ([0.0; QUERIES], [0.0; QUERIES]);
        let columns = heads.query_columns(head);
        for (row, (log, mean)) in rows.zip(logs.iter_mut().zip(&mut means)) {
            *log = self.log_totals[row * heads.query + head];
            let [d_out, out] = [self.d_out, self.out].map(|values| &values[columns.at(row)..][..heads.dim]);
            *mean = math::simd!(|| math::dot(d_out, out));
        }
        (logs, means)
    }
}

/// Returns the gradients of queries, keys and values.
pub(in crate::tensor) fn input_gradients(of: Inputs<'_>, outputs: Outputs<'_>) -> [Vec<f32>; 3] {
    let mut gradients = [of.q, of.k, of.v].map(|values| zeros(values.len()));
    let targets = gradients.each_mut().map(|gradient| Shared::new(gradient));
    // A task for each sequence and key head, since all of its queries add to the gradients of the same keys.
    let tasks: Vec<Task> = of.segments.iter().flat_map(|sequence| tasks(sequence, of.heads.key, 1)).collect();
    tasks.into_par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, task| {
        head_gradients(of, outputs, &task, scratch, targets);
    });
    gradients
}

/// Writes the gradients of one sequence and one key head, with all its query heads, to `targets`.
fn head_gradients(of: Inputs<'_>, outputs: Outputs<'_>, task: &Task, scratch: &mut Scratch, targets: [Shared; 3]) {
    let Inputs { q, k, v, heads, mask, precision, .. } = of;
    let Scratch { keys, values, queries, d_out, scores: p, gradients: ds, result } = scratch;
    let columns = heads.key_columns(task.key_head);
    let (dim, width) = (heads.dim, columns.width());
    columns.copy(k, task.sequence.clone(), precision, keys);
    columns.copy(v, task.sequence.clone(), precision, values);
    let [mut dk, mut dv] = [(); 2].map(|()| vec![0.0; keys.len()]);
    result.resize(QUERIES * width, 0.0);
    for block in task.blocks.clone().map(|index| Block::new(&task.sequence, index, mask)) {
        let (rows, count, skipped) =
            (block.rows.len(), block.keys.len(), (block.keys.start - task.sequence.start) * width);
        p.resize(count, [0.0; QUERIES]);
        ds.resize(count, [0.0; QUERIES]);
        for head in heads.queries_of(task.key_head) {
            let columns = heads.query_columns(head);
            queries.fill(q, block.rows.clone(), columns, precision);
            d_out.fill(outputs.d_out, block.rows.clone(), columns, precision);
            let [of_keys, of_values] =
                [&*keys, &*values].map(|values| Left::along(&values[skipped..], count, dim, width));
            multiply(of_keys, queries.across(rows), heads.scale(), false, p.as_flattened_mut());
            multiply(of_values, d_out.across(rows), 1.0, false, ds.as_flattened_mut());
            let (logs, means) = outputs.statistics(block.rows.clone(), head, heads);
            block.score_gradients(p, ds, (&logs, &means), heads.scale());
            for operand in [&mut *p, &mut *ds] {
                round(operand.as_flattened_mut(), precision);
            }
            let [p, ds] = [&*p, &*ds].map(|scores| scores.as_flattened());
            let right = |values| Right { values, stride: width, cols: dim };
            multiply(Left::across(ds, rows, count, QUERIES), right(&keys[skipped..]), 1.0, false, result);
            let of_scores = |scores| Left::along(scores, count, rows, QUERIES);
            multiply(of_scores(ds), right(&queries.rows), 1.0, true, &mut dk[skipped..]);
            multiply(of_scores(p), right(&d_out.rows), 1.0, true, &mut dv[skipped..]);
            // SAFETY: each row of a query head is written by one task.
            unsafe { write(columns, block.rows.clone(), result, targets[0]) };
        }
    }
    for (gradient, target) in [dk, dv].iter().zip([targets[1], targets[2]]) {
        // SAFETY: each row of a key head is written by one task.
        unsafe { write(columns, task.sequence.clone(), gradient, target) };
    }
}

/// Writes a head's values `[rows, width]` into the rows of a matrix.
///
/// # Safety
/// No other reference to these values may exist in any thread.
unsafe fn write(columns: Columns, rows: Range<usize>, values: &[f32], to: Shared) {
    for (row, values) in rows.zip(values.chunks(columns.width())) {
        // SAFETY: the caller's.
        unsafe { to.slice(columns.at(row), columns.dim) }.copy_from_slice(&values[..columns.dim]);
    }
}
