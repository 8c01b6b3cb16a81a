//! A product in tasks: a part of the left operand is packed for all, the right one in blocks of columns that stay in a core's
//! cache.
#![allow(unsafe_code)]

use std::{cell::RefCell, ops::Range};

use rayon::prelude::*;

use super::{
    super::shared::Shared,
    halves::{Block, Halves},
    kernel::{Kernel, ROWS, Target},
    pack::Operand,
};
use crate::{precision::Precision, simd::fetch, tensor::Stored};

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

/// A new matrix `a b + bias`, not set to zero first.
pub(in super::super) fn new_product(
    precision: Precision,
    a: Operand<'_>,
    b: Right<'_>,
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let length = a.lanes * b.shape().0;
    let mut c = Vec::with_capacity(length);
    let output = Output { alpha: 1.0, add: false, bias };
    compute(Kernel::new(precision), a, b, Shared::uninit(&mut c.spare_capacity_mut()[..length]), output);
    // SAFETY: every element is in a tile, whose first pass has written it, as nothing is added to what was there.
    unsafe { c.set_len(length) };
    c
}

/// Computes it with a kernel.
pub(super) fn with(kernel: Kernel, a: Operand<'_>, b: Right<'_>, c: &mut [f32], output: Output<'_>) {
    compute(kernel, a, b, Shared::new(c), output);
}

/// Computes `c`, whose elements are values only if it is added to them.
fn compute(kernel: Kernel, a: Operand<'_>, b: Right<'_>, c: Shared, output: Output<'_>) {
    let ((n, k), m) = (b.shape(), a.lanes);
    assert!(k == a.depth && c.len() == m * n, "a product [{m}, {}] by [{k}, {n}]", a.depth);
    assert!(output.bias.is_none_or(|bias| bias.len() == n), "one bias for each column");
    if m == 0 || n == 0 {
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
            Part { kernel, b, n, k, rows, passes, output }.compute(a, &mut left, c);
        }
    }
    LEFT.set(left);
}

/// Passes of a sum of `k` values. Without any there is still a bias.
fn passes(k: usize) -> usize {
    1 + k.div_ceil(2).saturating_sub(LAST).div_ceil(PAIRS)
}

/// The pairs of a pass.
fn pairs(k: usize, pass: usize) -> Range<usize> {
    pass * PAIRS..if pass + 1 == passes(k) { k.div_ceil(2) } else { (pass + 1) * PAIRS }
}

/// Pairs of the longest pass.
fn longest(k: usize) -> usize {
    k.div_ceil(2).min(PAIRS).max(pairs(k, passes(k) - 1).len())
}

/// Words that begin at a cache line. None are filled before they are used.
#[derive(Default)]
struct Lines(Vec<Line>);

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Lines {
    fn with_capacity(words: usize) -> Self {
        Self(Vec::with_capacity(words.div_ceil(16)))
    }

    fn get(&mut self, count: usize) -> &mut [u32] {
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

/// A part of a product: some rows of the result, and some passes of the sum.
#[derive(Clone, Copy)]
struct Part<'a> {
    kernel: Kernel,
    b: Right<'a>,
    n: usize,
    k: usize,
    rows: [usize; 2],
    passes: [usize; 2],
    output: Output<'a>,
}

impl Part<'_> {
    fn compute(self, a: Operand<'_>, left: &mut Lines, c: Shared) {
        let left = &*self.pack_left(a, left);
        let [top, bottom] = self.rows;
        let cut = Cut::new(self, (bottom - top) * self.n * 2 * self.pairs().len());
        let task = |task: usize| {
            let (rows, cols) = cut.task(task);
            let mut scratch = SCRATCH.take();
            Task { part: self, left, rows, cols }.compute(c, &mut scratch);
            SCRATCH.set(scratch);
        };
        match cut.tasks() {
            1 => task(0),
            tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
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

    fn passes(self) -> Range<usize> {
        self.passes[0]..self.passes[1]
    }

    /// The pairs of all its passes.
    fn pairs(self) -> Range<usize> {
        let [first, end] = self.passes;
        pairs(self.k, first).start..pairs(self.k, end - 1).end
    }

    /// Columns are cut at multiples of this: whole tiles, and where a part of a row can be decoded.
    fn step(self) -> usize {
        if matches!(self.b, Right::Stored { along: false, .. }) { PART } else { self.kernel.size().1 }
    }
}

/// How a part is cut into tasks. This changes no sum, so the number of threads may have a say.
struct Cut<'a> {
    part: Part<'a>,
    across: usize,
    down: usize,
}

impl<'a> Cut<'a> {
    fn new(part: Part<'a>, multiplications: usize) -> Self {
        let threads = rayon::current_num_threads();
        let worth = (multiplications / TASK).max(1);
        let wanted = worth.min(EACH * threads);
        let (steps, strips) =
            (part.n.div_ceil(part.step()), (part.rows[1] - part.rows[0]).div_ceil(part.kernel.size().0));
        let step = part.step() * longest(part.k).max(1) * part.kernel.format().words();
        let blocks = steps.div_ceil((BLOCK / step).max(1));
        // If there are enough columns, as many for each thread, so that none waits for the others.
        let across = blocks.max(wanted).next_multiple_of(if wanted < threads { 1 } else { threads }).min(steps);
        // Each strip packs the columns again, which is little work beside that of a few tiles.
        let down = worth.min(2 * threads).div_ceil(across).min(strips.div_ceil(4));
        Self { part, across, down }
    }

    fn tasks(&self) -> usize {
        self.across * self.down
    }

    /// The rows (of the part) and columns of a task.
    fn task(&self, task: usize) -> ([usize; 2], [usize; 2]) {
        let part = |index: usize, parts: usize, size: usize, step: usize| {
            let steps = size.div_ceil(step);
            [index, index + 1].map(|index| (index * steps / parts * step).min(size))
        };
        let Part { rows: [top, bottom], n, kernel, .. } = self.part;
        (
            part(task % self.down, self.down, bottom - top, kernel.size().0),
            part(task / self.down, self.across, n, self.part.step()),
        )
    }
}

/// A task: some rows and columns of a part.
struct Task<'a> {
    part: Part<'a>,
    left: &'a [u32],
    /// Of the part.
    rows: [usize; 2],
    cols: [usize; 2],
}

impl Task<'_> {
    fn compute(&self, c: Shared, (words, values): &mut (Lines, Vec<f32>)) {
        let Part { kernel, k, rows: [top, bottom], .. } = self.part;
        let (per, width) = (kernel.format().words(), (self.cols[1] - self.cols[0]).next_multiple_of(kernel.size().1));
        let lane = (bottom - top) * per;
        let start = self.part.pairs().start;
        for pass in self.part.passes() {
            let pairs = pairs(k, pass);
            let right = words.get(width * pairs.len() * per);
            self.pack(pairs.clone(), right, values);
            let left = &self.left[(pairs.start - start) * lane..(pairs.end - start) * lane];
            self.pass(pass, left, right, c);
        }
    }

    /// Fetches a part of what is packed for the next pass from memory: the `index`-th of `parts`. Not of rows across the sum, whose
    /// short pieces would push each other and the panels out of the cache.
    fn fetch(&self, next: &Range<usize>, index: usize, parts: usize) {
        const LINE: usize = 16;
        let (Right::Plain(operand), [first, end]) = (self.part.b, self.cols) else { return };
        let range = 2 * next.start..self.part.k.min(2 * next.end);
        let Some(row) = operand.row_part(range.clone()).filter(|_| !range.is_empty()) else { return };
        let rows = end - first;
        let lines = range.len().div_ceil(LINE);
        let [from, to] = [index, index + 1].map(|index| index * rows * lines / parts);
        let (mut at, mut line) = (from / lines, from % lines);
        for _ in from..to {
            fetch::<false, _>(row(first + at)[line * LINE..].as_ptr());
            line += 1;
            if line == lines {
                (at, line) = (at + 1, 0);
            }
        }
    }

    /// Packs the columns for these pairs.
    fn pack(&self, pairs: Range<usize>, out: &mut [u32], values: &mut Vec<f32>) {
        let (Part { kernel, k, .. }, [first, end]) = (self.part, self.cols);
        let (format, cols) = (kernel.format(), kernel.size().1);
        let (pair, count) = (pairs.start, pairs.len());
        if count == 0 {
            return;
        }
        let (weight, along) = match self.part.b {
            Right::Plain(operand) => return operand.pack(format, first, pair, count, cols, out),
            Right::Stored { weight, along } => (weight, along),
        };
        if let Some(halves) = Halves::of(weight, along) {
            return halves.pack(format, &Block { cols: first..end, pairs }, cols, out);
        }
        if along {
            // The part of each row, for one panel at a time.
            let (start, width) = (2 * pair, k.min(2 * (pair + count)) - 2 * pair);
            for (panel, out) in out.chunks_mut(cols * count * format.words()).enumerate() {
                let lane = first + panel * cols;
                let lanes = cols.min(end - lane);
                values.resize(lanes * width, 0.0);
                for (row, values) in values.chunks_mut(width).enumerate() {
                    weight.widen_part(lane + row, start, values);
                }
                Operand::along(values, lanes, width).pack(format, 0, 0, count, cols, out);
            }
        } else {
            // The part of each row that has these columns.
            let (depths, width) = (2 * pair..k.min(2 * (pair + count)), end - first);
            values.resize(depths.len() * width, 0.0);
            for (depth, values) in depths.clone().zip(values.chunks_mut(width)) {
                weight.widen_part(depth, first, values);
            }
            Operand::across(values, width, depths.len()).pack(format, 0, 0, count, cols, out);
        }
    }

    /// Adds the products of a pass.
    fn pass(&self, pass: usize, left: &[u32], right: &[u32], c: Shared) {
        let (Part { kernel, n, k, .. }, [top, bottom], [first, end]) = (self.part, self.rows, self.cols);
        let ((most, width), size) = (kernel.size(), pairs(k, pass).len() * kernel.format().words());
        let next = if pass + 1 < self.part.passes[1] { pairs(k, pass + 1) } else { 0..0 };
        let across = (end - first).div_ceil(width);
        let tiles = (bottom - top).div_ceil(most) * across;
        for row in (top..bottom).step_by(most) {
            let rows = most.min(bottom - row);
            let panel = &left[row * size..][..rows * size];
            for col in (first..end).step_by(width) {
                self.fetch(&next, (row - top) / most * across + (col - first) / width, tiles);
                let columns = &right[(col - first) * size..][..width * size];
                let cols = width.min(end - col);
                let Output { alpha, add, bias } = self.part.output;
                let to = Target {
                    c: c.at((self.part.rows[0] + row) * n + col),
                    stride: n,
                    cols,
                    alpha,
                    add: add || pass > 0,
                    bias: bias.map(|bias| &bias[col..col + cols]),
                };
                // SAFETY: the tile lies in the result, and tasks have separate rows and columns.
                unsafe { kernel.tile(rows, panel, columns, to) };
            }
        }
    }
}
#[cfg(test)]
mod tests;
