//! A product in tasks: a part of the left operand is packed for all, the right one in blocks of columns that stay in a core's
//! cache.
#![allow(unsafe_code)]

use std::cell::RefCell;

use rayon::prelude::*;

use super::{
    super::shared::Shared,
    kernel::{Kernel, ROWS},
    pack::Operand,
    part::{DECODED, Factor, LAST, Lines, Output, Part, Right, longest, passes},
    task::Task,
};
use crate::precision::Precision;

/// Words of a block of columns in a pass, so that two blocks fit into a core's second cache. As few columns as can be decoded may take
/// more.
const BLOCK: usize = 1 << 17;
/// Words of the left operand that are packed before its products begin.
const LEFT_WORDS: usize = 1 << 19;
/// Tasks for each thread, so that one that others have slowed down leaves some of its own to them.
const EACH: usize = 4;
/// A task of fewer multiplications is not worth another thread.
const TASK: usize = 1 << 20;

/// Computes `c` `[m, n]` from `a` `[m, k]` and `b` `[n, k]`, whose values are rounded to `precision`.
pub(in super::super) fn product(precision: Precision, a: Operand<'_>, b: Right<'_>, c: &mut [f32], output: Output<'_>) {
    with(Kernel::new(precision), a, b, c, output);
}

/// Adds `alpha a b` to `c`. An empty `c` stands for zeros, which are not written first.
pub(in super::super) fn add_product(precision: Precision, a: Operand<'_>, b: Right<'_>, alpha: f32, c: &mut Vec<f32>) {
    if c.is_empty() {
        [*c] = fill(precision, a, [(b, Output { alpha, add: false, bias: None })]);
    } else {
        product(precision, a, b, c, Output { alpha, add: true, bias: None });
    }
}

/// A new matrix `a b + bias`, not set to zero first.
pub(in super::super) fn new_product(
    precision: Precision,
    a: Operand<'_>,
    b: Right<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let [c] = new_products(precision, a, [(b, bias)]);
    c
}

/// New matrices `a b + bias`, for each right operand and its bias one. `a` is packed once, and threads wait for each other only after
/// the last.
pub(in super::super) fn new_products<const N: usize>(
    precision: Precision,
    a: Operand<'_>,
    factors: [(Right<'_>, Option<&[f32]>); N],
) -> [Vec<f32>; N] {
    fill(precision, a, factors.map(|(b, bias)| (b, Output { alpha: 1.0, add: false, bias })))
}

/// New matrices, for each right operand and output one. Nothing is added to what was there.
fn fill<const N: usize>(precision: Precision, a: Operand<'_>, factors: [(Right<'_>, Output<'_>); N]) -> [Vec<f32>; N] {
    let lengths = factors.map(|(b, _)| a.lanes * b.shape().0);
    let mut all = lengths.map(Vec::with_capacity);
    let factors: Vec<Factor> = (all.iter_mut().zip(lengths).zip(factors))
        .map(|((c, length), (b, output))| {
            assert!(!output.add, "a new result has nothing to add to");
            Factor::new(b, Shared::uninit(&mut c.spare_capacity_mut()[..length]), output)
        })
        .collect();
    compute(Kernel::new(precision), a, &factors);
    for (c, length) in all.iter_mut().zip(lengths) {
        // SAFETY: every element is in a tile, whose first pass has written it, as nothing is added to what was there.
        unsafe { c.set_len(length) };
    }
    all
}

/// [`product`] with this kernel.
pub(super) fn with(kernel: Kernel, a: Operand<'_>, b: Right<'_>, c: &mut [f32], output: Output<'_>) {
    compute(kernel, a, &[Factor::new(b, Shared::new(c), output)]);
}

/// Computes all products of `a` `[m, k]`.
fn compute(kernel: Kernel, a: Operand<'_>, factors: &[Factor]) {
    let (m, k) = (a.lanes, a.depth);
    for Factor { b, n, c, output } in factors {
        assert!(b.shape().1 == k && c.len() == m * n, "a product [{m}, {k}] by {:?}", b.shape());
        assert!(output.bias.is_none_or(|bias| bias.len() == *n), "one bias for each column");
    }
    if m == 0 || factors.iter().all(|factor| factor.n == 0) {
        return;
    }
    let (passes, longest, words) = (passes(k), longest(k), kernel.format().words());
    let most = |size: usize| (LEFT_WORDS / words / size.max(1)).max(1);
    // As many rows as fit in one pass; as many passes as fit with these rows.
    let rows = most(longest).next_multiple_of(kernel.size().0).min(m);
    let deep = (most(rows) / longest.max(1)).max(1);
    // Taken, not borrowed: a thread that waits for others may begin another product.
    let mut left = LEFT.take();
    // Allocated by the first product, even if others compute its tasks.
    SCRATCH.with(|_| ());
    for top in (0..m).step_by(rows) {
        for first in (0..passes).step_by(deep) {
            let (rows, passes) = ([top, (top + rows).min(m)], [first, (first + deep).min(passes)]);
            compute_part(Part { kernel, k, rows, passes }, a, factors, &mut left);
        }
    }
    LEFT.set(left);
}

thread_local! {
    /// The left operand of the product that this thread has begun. Fresh memory costs more than packing it. As large as it can
    /// become, so that a step takes the same memory whatever came before; pages that are never used take none.
    static LEFT: RefCell<Lines> = RefCell::new(Lines::with_capacity(LEFT_WORDS + 2 * LAST * ROWS));
    /// What a task packs and decodes: a block, or the columns of a part, and its values.
    static SCRATCH: RefCell<(Lines, Vec<f32>)> =
        RefCell::new((Lines::with_capacity(2 * LAST * DECODED), Vec::with_capacity(2 * BLOCK)));
}

/// Computes a part of all products.
fn compute_part(part: Part, a: Operand<'_>, factors: &[Factor], left: &mut Lines) {
    let left = &*part.pack_left(a, left);
    let cuts: Vec<Cut> = factors.iter().map(|factor| Cut::new(part, factor)).collect();
    let tasks: Vec<Task> = cuts.iter().flat_map(|cut| cut.tasks(left)).collect();
    let run = |task: &Task| {
        let mut scratch = SCRATCH.take();
        task.compute(&mut scratch);
        SCRATCH.set(scratch);
    };
    if cuts.iter().map(|cut| cut.worth).sum::<usize>() > 1 {
        tasks.par_iter().with_max_len(1).for_each(run);
    } else {
        tasks.iter().for_each(run);
    }
}

/// How a part of a product is cut into tasks. This changes no sum, so the number of threads may have a say.
struct Cut<'a> {
    part: Part,
    factor: &'a Factor<'a>,
    /// Multiplications, in those that are worth a task.
    worth: usize,
    across: usize,
    down: usize,
}

impl<'a> Cut<'a> {
    fn new(part: Part, factor: &'a Factor<'a>) -> Self {
        let (rows, threads) = (part.rows[1] - part.rows[0], rayon::current_num_threads());
        let worth = rows * factor.n * 2 * part.pairs().len() / TASK;
        let wanted = worth.clamp(1, EACH * threads);
        let step = factor.step(part.kernel);
        let (steps, strips) = (factor.n.div_ceil(step), rows.div_ceil(part.kernel.size().0));
        let words = step * longest(part.k).max(1) * part.kernel.format().words();
        let blocks = steps.div_ceil((BLOCK / words).max(1));
        // If there are enough columns, as many for each thread, so that none waits for the others.
        let across = blocks.max(wanted).next_multiple_of(if wanted < threads { 1 } else { threads }).min(steps);
        // Each strip packs the columns again, which is little work beside that of a few tiles.
        let down = worth.clamp(1, 2 * threads).div_ceil(across.max(1)).min(strips.div_ceil(4));
        Self { part, factor, worth, across, down }
    }

    fn tasks(&self, left: &'a [u32]) -> impl Iterator<Item = Task<'a>> {
        let stretch = |index: usize, count: usize, size: usize, step: usize| {
            let steps = size.div_ceil(step);
            [index, index + 1].map(|index| (index * steps / count * step).min(size))
        };
        let Self { part, factor, across, down, .. } = *self;
        let height = part.rows[1] - part.rows[0];
        (0..across * down).map(move |task| Task {
            part,
            factor,
            left,
            rows: stretch(task % down, down, height, part.kernel.size().0),
            cols: stretch(task / down, across, factor.n, factor.step(part.kernel)),
        })
    }
}

#[cfg(test)]
mod tests;
