//! A product in tasks: a part of the left operand is packed for all, the right one in blocks of columns that stay in a core's
//! cache.
#![allow(unsafe_code)]

use std::{cell::RefCell, ops::Range};

use rayon::prelude::*;

use super::{
    super::shared::Shared,
    kernel::{Kernel, ROWS},
    pack::Operand,
    task::Task,
};
use crate::{precision::Precision, tensor::Stored};

/// Pairs along the sum that are added up before they enter the result, a pass. Blocks of all encodings divide twice as many
/// values.
const PAIRS: usize = 256;
/// Of the last pass, at most: a pass of few pairs would mostly read and write the result.
const LAST: usize = PAIRS + PAIRS / 4;
/// Words of a block of columns in a pass, so that two blocks fit into a core's second cache. As few columns as can be decoded may take
/// more.
const BLOCK: usize = 1 << 17;
/// Words of the left operand that are packed before its products begin.
const LEFT_WORDS: usize = 1 << 19;
/// A part of a row of any encoding can be decoded from multiples of this on.
const PART: usize = 256;
/// Panels of the left operand that are packed at once.
const GROUP: usize = 4;
/// Tasks for each thread, so that one that others have slowed down leaves some of its own to them.
const EACH: usize = 4;
/// A task of fewer multiplications is not worth another thread.
const TASK: usize = 1 << 20;
/// Nor is packing fewer words.
const PACKED: usize = 1 << 16;

/// The right operand `[n, k]`.
#[derive(Clone, Copy)]
pub(in super::super) enum Right<'a> {
    Plain(Operand<'a>),
    /// A weight `[n, k]`, or `[k, n]` if it is not `along`, decoded block by block.
    Stored {
        weight: &'a Stored,
        along: bool,
    },
}

impl Right<'_> {
    /// Columns of the result, and the length of the sum.
    fn shape(&self) -> (usize, usize) {
        match self {
            Self::Plain(operand) => (operand.lanes, operand.depth),
            Self::Stored { weight, along: true } => (weight.rows(), weight.cols()),
            Self::Stored { weight, along: false } => (weight.cols(), weight.rows()),
        }
    }
}

/// What is done to the result: `c = alpha * a b + (c or bias or 0)`.
#[derive(Clone, Copy)]
pub(in super::super) struct Output<'a> {
    pub(in super::super) alpha: f32,
    /// Whether to add to what is there.
    pub(in super::super) add: bool,
    /// A value for each column, in place of what is there.
    pub(in super::super) bias: Option<&'a [f32]>,
}

/// Computes `c` `[m, n]` from `a` `[m, k]` and `b` `[n, k]`, whose values are rounded to `precision`.
pub(in super::super) fn product(precision: Precision, a: Operand<'_>, b: Right<'_>, c: &mut [f32], output: Output<'_>) {
    with(Kernel::new(precision), a, b, c, output);
}

/// Adds `alpha a b` to `c`. One without values is all zeros, which are not written first.
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
            assert!(!output.add, "to what was never written");
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

/// Computes it with a kernel.
pub(super) fn with(kernel: Kernel, a: Operand<'_>, b: Right<'_>, c: &mut [f32], output: Output<'_>) {
    compute(kernel, a, &[Factor::new(b, Shared::new(c), output)]);
}

/// A right operand, and where its product goes. What is there are values only if the product is added to them.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) b: Right<'a>,
    /// Its columns, which are those of the product.
    pub(super) n: usize,
    pub(super) c: Shared,
    pub(super) output: Output<'a>,
}

impl<'a> Factor<'a> {
    fn new(b: Right<'a>, c: Shared, output: Output<'a>) -> Self {
        Self { b, n: b.shape().0, c, output }
    }

    /// Columns are cut at multiples of this: whole tiles, and where a part of a row can be decoded.
    fn step(&self, kernel: Kernel) -> usize {
        if matches!(self.b, Right::Stored { along: false, .. }) { PART } else { kernel.size().1 }
    }
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
            Part { kernel, k, rows, passes }.compute(a, factors, &mut left);
        }
    }
    LEFT.set(left);
}

/// Passes of a sum of `k` values. Without any there is still a bias.
pub(super) fn passes(k: usize) -> usize {
    1 + k.div_ceil(2).saturating_sub(LAST).div_ceil(PAIRS)
}

/// The pairs of a pass.
pub(super) fn pairs(k: usize, pass: usize) -> Range<usize> {
    pass * PAIRS..if pass + 1 == passes(k) { k.div_ceil(2) } else { (pass + 1) * PAIRS }
}

/// Pairs of the longest pass.
fn longest(k: usize) -> usize {
    k.div_ceil(2).min(PAIRS).max(pairs(k, passes(k) - 1).len())
}

/// Words that begin at a cache line. None are filled before they are used.
#[derive(Default)]
pub(super) struct Lines(Vec<Line>);

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Lines {
    fn with_capacity(words: usize) -> Self {
        Self(Vec::with_capacity(words.div_ceil(16)))
    }

    pub(super) fn get(&mut self, count: usize) -> &mut [u32] {
        if self.0.len() * 16 < count {
            self.0.resize(count.div_ceil(16), Line([0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..count]
    }
}

thread_local! {
    /// The left operand of the product that this thread has begun. Fresh memory costs more than packing it. As large as it can
    /// become, so that a step takes the same memory whatever came before; pages that are never used take none.
    static LEFT: RefCell<Lines> = RefCell::new(Lines::with_capacity(LEFT_WORDS + 2 * LAST * ROWS));
    /// What a task packs and decodes: a block, or the columns of a part, and its values.
    static SCRATCH: RefCell<(Lines, Vec<f32>)> =
        RefCell::new((Lines::with_capacity(2 * LAST * PART), Vec::with_capacity(2 * BLOCK)));
}

/// A part of products: some rows of the results, and some passes of the sums.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) kernel: Kernel,
    pub(super) k: usize,
    pub(super) rows: [usize; 2],
    pub(super) passes: [usize; 2],
}

impl Part {
    fn compute(self, a: Operand<'_>, factors: &[Factor], left: &mut Lines) {
        let left = &*self.pack_left(a, left);
        let cuts: Vec<Cut> = factors.iter().map(|factor| Cut::new(self, factor)).collect();
        let tasks: Vec<Task> = cuts.iter().flat_map(|cut| cut.tasks(left)).collect();
        let compute = |task: &Task| {
            let mut scratch = SCRATCH.take();
            task.compute(&mut scratch);
            SCRATCH.set(scratch);
        };
        match tasks.as_slice() {
            [one] => compute(one),
            all => all.par_iter().with_max_len(1).for_each(compute),
        }
    }

    /// Packs the left operand: `[pass, panel, pair, lane]`.
    fn pack_left<'a>(self, a: Operand<'_>, to: &'a mut Lines) -> &'a mut [u32] {
        let (format, width) = (self.kernel.format(), self.kernel.size().0);
        let [top, bottom] = self.rows;
        let lane = (bottom - top) * format.words();
        let start = self.pairs().start;
        let all = to.get(lane * self.pairs().len());
        for pass in self.passes() {
            let pairs = pairs(self.k, pass);
            let words = &mut all[(pairs.start - start) * lane..(pairs.end - start) * lane];
            let group = GROUP * width;
            let pack = |(index, words): (usize, &mut [u32])| {
                a.pack(format, top + index * group, pairs.start, pairs.len(), width, words);
            };
            let size = (group * pairs.len() * format.words()).max(1);
            if words.len() <= PACKED {
                words.chunks_mut(size).enumerate().for_each(pack);
            } else {
                words.par_chunks_mut(size).enumerate().for_each(pack);
            }
        }
        all
    }

    pub(super) fn passes(self) -> Range<usize> {
        self.passes[0]..self.passes[1]
    }

    /// The pairs of all its passes.
    pub(super) fn pairs(self) -> Range<usize> {
        let [first, end] = self.passes;
        pairs(self.k, first).start..pairs(self.k, end - 1).end
    }
}

/// How a part of a product is cut into tasks. This changes no sum, so the number of threads may have a say.
struct Cut<'a> {
    part: Part,
    factor: &'a Factor<'a>,
    across: usize,
    down: usize,
}

impl<'a> Cut<'a> {
    fn new(part: Part, factor: &'a Factor<'a>) -> Self {
        let (rows, threads) = (part.rows[1] - part.rows[0], rayon::current_num_threads());
        let worth = (rows * factor.n * 2 * part.pairs().len() / TASK).max(1);
        let wanted = worth.min(EACH * threads);
        let step = factor.step(part.kernel);
        let (steps, strips) = (factor.n.div_ceil(step), rows.div_ceil(part.kernel.size().0));
        let words = step * longest(part.k).max(1) * part.kernel.format().words();
        let blocks = steps.div_ceil((BLOCK / words).max(1));
        // If there are enough columns, as many for each thread, so that none waits for the others.
        let across = blocks.max(wanted).next_multiple_of(if wanted < threads { 1 } else { threads }).min(steps);
        // Each strip packs the columns again, which is little work beside that of a few tiles.
        let down = worth.min(2 * threads).div_ceil(across.max(1)).min(strips.div_ceil(4));
        Self { part, factor, across, down }
    }

    fn tasks(&self, left: &'a [u32]) -> impl Iterator<Item = Task<'a>> {
        let part = |index: usize, parts: usize, size: usize, step: usize| {
            let steps = size.div_ceil(step);
            [index, index + 1].map(|index| (index * steps / parts * step).min(size))
        };
        let Self { part: of, factor, across, down } = *self;
        let height = of.rows[1] - of.rows[0];
        (0..across * down).map(move |task| Task {
            part: of,
            factor,
            left,
            rows: part(task % down, down, height, of.kernel.size().0),
            cols: part(task / down, across, factor.n, factor.step(of.kernel)),
        })
    }
}

#[cfg(test)]
mod tests;
