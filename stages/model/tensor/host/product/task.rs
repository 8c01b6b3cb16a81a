//! A task of a product: packs its columns pass by pass, and adds up their products with the rows.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{
    halves::{Block, Halves},
    kernel::Target,
    pack::Operand,
    part::{Factor, Lines, Output, Part, Right, pairs},
};
use crate::simd::fetch;

/// Some rows and columns of a part.
pub(super) struct Task<'a> {
    pub(super) part: Part,
    pub(super) factor: &'a Factor<'a>,
    /// The part's left operand: `[pass, panel, pair, lane]`.
    pub(super) left: &'a [u32],
    /// Of the part.
    pub(super) rows: [usize; 2],
    pub(super) cols: [usize; 2],
}

impl Task<'_> {
    pub(super) fn compute(&self, (words, values): &mut (Lines, Vec<f32>)) {
        let Part { kernel, k, rows: [top, bottom], .. } = self.part;
        let (per, width) = (kernel.format().words(), (self.cols[1] - self.cols[0]).next_multiple_of(kernel.size().1));
        let lane = (bottom - top) * per;
        let start = self.part.pairs().start;
        for pass in self.part.passes() {
            let pairs = pairs(k, pass);
            let right = words.get(width * pairs.len() * per);
            self.pack(pairs.clone(), right, values);
            let left = &self.left[(pairs.start - start) * lane..(pairs.end - start) * lane];
            self.pass(pass, left, right);
        }
    }

    /// Fetches a part of what is packed for the next pass from memory: the `index`-th of `parts`. Not of rows across the sum, whose
    /// short pieces would push each other and the panels out of the cache.
    fn fetch(&self, next: &Range<usize>, index: usize, parts: usize) {
        const LINE: usize = 16;
        let (Right::Plain(operand), [first, end]) = (self.factor.b, self.cols) else { return };
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
        let (weight, along) = match self.factor.b {
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
    fn pass(&self, pass: usize, left: &[u32], right: &[u32]) {
        let (Part { kernel, k, .. }, [top, bottom], [first, end]) = (self.part, self.rows, self.cols);
        let Factor { n, c, output: Output { alpha, add, bias }, .. } = *self.factor;
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
