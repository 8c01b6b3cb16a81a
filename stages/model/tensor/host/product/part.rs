//! What is multiplied and how it is cut: right operands with their results, passes over the sum, and parts of a product, whose left
//! operand is packed for all tasks.

use std::ops::Range;

use rayon::prelude::*;

use super::{super::shared::Shared, kernel::Kernel, pack::Operand};
use crate::tensor::Stored;

/// Pairs along the sum that are added up before they enter the result, a pass. Blocks of all encodings divide twice as many
/// values.
const PAIRS: usize = 256;
/// Of the last pass, at most: a pass of few pairs would mostly read and write the result.
pub(super) const LAST: usize = PAIRS + PAIRS / 4;
/// A part of a row of any encoding can be decoded from multiples of this on.
pub(super) const DECODED: usize = 256;
/// Panels of the left operand that are packed at once.
const GROUP: usize = 4;
/// Packing fewer words is not worth another thread.
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
    pub(super) fn shape(&self) -> (usize, usize) {
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

/// A right operand, and where its product goes. `c` need not be initialised unless the product is added to it.
#[derive(Clone, Copy)]
pub(super) struct Factor<'a> {
    pub(super) b: Right<'a>,
    /// Its columns, which are those of the product.
    pub(super) n: usize,
    pub(super) c: Shared,
    pub(super) output: Output<'a>,
}

impl<'a> Factor<'a> {
    pub(super) fn new(b: Right<'a>, c: Shared, output: Output<'a>) -> Self {
        Self { b, n: b.shape().0, c, output }
    }

    /// Columns are cut at multiples of this: whole tiles, and where a part of a row can be decoded.
    pub(super) fn step(&self, kernel: Kernel) -> usize {
        if matches!(self.b, Right::Stored { along: false, .. }) { DECODED } else { kernel.size().1 }
    }
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
pub(super) fn longest(k: usize) -> usize {
    k.div_ceil(2).min(PAIRS).max(pairs(k, passes(k) - 1).len())
}

/// Words that begin at a cache line. None are filled before they are used.
#[derive(Default)]
pub(super) struct Lines(Vec<Line>);

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Lines {
    pub(super) fn with_capacity(words: usize) -> Self {
        Self(Vec::with_capacity(words.div_ceil(16)))
    }

    pub(super) fn get(&mut self, count: usize) -> &mut [u32] {
        if self.0.len() * 16 < count {
            self.0.resize(count.div_ceil(16), Line([0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..count]
    }
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
    /// Packs the left operand: `[pass, panel, pair, lane]`.
    pub(super) fn pack_left<'a>(self, a: Operand<'_>, to: &'a mut Lines) -> &'a mut [u32] {
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
