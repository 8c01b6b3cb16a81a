//! A product in tiles: the left operand is packed as a whole, the right one in blocks of columns that stay in a core's cache.
#![allow(unsafe_code)]

use std::cell::RefCell;

use rayon::prelude::*;

use super::{
    super::shared::Shared,
    kernel::{COLS, Kernel, ROWS, Target},
    pack::Operand,
};
use crate::tensor::Stored;

/// Pairs along the sum that are added up before they enter the result. Blocks of all encodings divide twice as many values.
pub(super) const PAIRS: usize = 512;
/// The most columns of a block, so that two blocks fit into a core's second cache.
const BLOCK: usize = 384;
/// A part of a row of any encoding can be decoded from multiples of this on.
const PART: usize = 256;
/// Lanes of the left operand that are packed at once.
const GROUP: usize = 16 * ROWS;
/// Products with at most this many multiplications are not worth a second thread.
const SMALL: usize = 1 << 18;

/// The right operand `[n, k]`.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
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

    /// Columns of the result are cut at multiples of this: where a part of a row can be decoded.
    fn step(&self) -> usize {
        if matches!(self, Self::Stored { along: false, .. }) { PART } else { COLS }
    }
}

/// What is done to the result: `c = alpha * a b + (c or bias or 0)`.
#[derive(Clone, Copy)]
pub(super) struct Output<'a> {
    pub(super) alpha: f32,
    /// Whether to add to what is there.
    pub(super) add: bool,
    /// A value for each column, in place of what is there.
    pub(super) bias: Option<&'a [f32]>,
}

/// Computes `c` `[m, n]` from `a` `[m, k]` and `b` `[n, k]`.
pub(super) fn product(kernel: Kernel, a: Operand<'_>, b: Right<'_>, c: &mut [f32], output: Output<'_>) {
    let ((n, k), m) = (b.shape(), a.lanes);
    assert!(k == a.depth && c.len() == m * n, "a product [{m}, {}] by [{k}, {n}]", a.depth);
    assert!(output.bias.is_none_or(|bias| bias.len() == n), "one bias for each column");
    if m == 0 || n == 0 {
        return;
    }
    // Taken, not borrowed: a thread that waits for others may begin another product.
    let mut words = LEFT.take();
    let left = &*packed(a, &mut words);
    let (cut, shared) = (Cut::new(m, n, b.step(), m * n * k <= SMALL), Shared::new(c));
    let task = |task: usize| {
        let (rows, cols) = cut.task(task);
        let mut scratch = SCRATCH.take();
        Block { kernel, left, b, shape: [m, n, k], rows, cols, output }.compute(shared, &mut scratch);
        SCRATCH.set(scratch);
    };
    match cut.tasks() {
        1 => task(0),
        tasks => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
    }
    LEFT.set(words);
}

/// How the result is cut into tasks. This changes no sum, so the number of threads may have a say.
struct Cut {
    m: usize,
    n: usize,
    /// Columns are cut at multiples of it.
    step: usize,
    across: usize,
    down: usize,
}

impl Cut {
    fn new(m: usize, n: usize, step: usize, small: bool) -> Self {
        let wanted = if small { 1 } else { 2 * rayon::current_num_threads() };
        let (steps, strips) = (n.div_ceil(step), m.div_ceil(ROWS));
        let across = steps.div_ceil(BLOCK / step).max(wanted.min(steps));
        // Each strip packs the columns again, which is little work beside that of a few tiles.
        let down = wanted.div_ceil(across).min(strips.div_ceil(4));
        Self { m, n, step, across, down }
    }

    fn tasks(&self) -> usize {
        self.across * self.down
    }

    /// The rows and columns of a task.
    fn task(&self, task: usize) -> ([usize; 2], [usize; 2]) {
        let part = |index: usize, parts: usize, size: usize, step: usize| {
            let steps = size.div_ceil(step);
            [index, index + 1].map(|index| (index * steps / parts * step).min(size))
        };
        (part(task % self.down, self.down, self.m, ROWS), part(task / self.down, self.across, self.n, self.step))
    }
}

/// Words that begin at a cache line.
#[derive(Default)]
struct Words(Vec<Line>);

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl Words {
    fn get(&mut self, count: usize) -> &mut [u32] {
        if self.0.len() * 16 < count {
            self.0.resize(count.div_ceil(16), Line([0; 16]));
        }
        &mut bytemuck::cast_slice_mut(&mut self.0)[..count]
    }
}

thread_local! {
    /// The left operand of the product that this thread has begun. Fresh memory costs more than packing it.
    static LEFT: RefCell<Words> = RefCell::default();
    /// What a task packs and decodes.
    static SCRATCH: RefCell<(Words, Vec<f32>)> = RefCell::default();
}

/// Packs the left operand: `[pass, panel, pair, lane]`.
fn packed<'a>(a: Operand<'_>, words: &'a mut Words) -> &'a mut [u32] {
    let pairs = a.depth.div_ceil(2);
    let words = words.get(a.lanes * pairs);
    for (pass, words) in words.chunks_mut((a.lanes * PAIRS).max(1)).enumerate() {
        let count = words.len() / a.lanes;
        let group = |(group, words): (usize, &mut [u32])| a.pack(group * GROUP, pass * PAIRS, count, ROWS, words);
        words.par_chunks_mut(GROUP * count).enumerate().for_each(group);
    }
    words
}

/// A task: some rows and columns of the result.
struct Block<'a> {
    kernel: Kernel,
    left: &'a [u32],
    b: Right<'a>,
    /// Of the product: m, n, k.
    shape: [usize; 3],
    rows: [usize; 2],
    cols: [usize; 2],
    output: Output<'a>,
}

impl Block<'_> {
    fn compute(&self, c: Shared, (words, values): &mut (Words, Vec<f32>)) {
        let ([m, _, k], [first, end]) = (self.shape, self.cols);
        let pairs = k.div_ceil(2);
        // Without a sum there is still a bias.
        for pair in (0..pairs.max(1)).step_by(PAIRS) {
            let count = PAIRS.min(pairs - pair);
            let right = words.get((end - first).next_multiple_of(COLS) * count);
            self.pack(pair, count, right, values);
            let left = &self.left[pair * m..][..m * count];
            self.pass(left, right, count, pair > 0, c);
        }
    }

    /// Packs the columns for `count` pairs from `pair` on.
    fn pack(&self, pair: usize, count: usize, out: &mut [u32], values: &mut Vec<f32>) {
        let ([_, _, k], [first, end]) = (self.shape, self.cols);
        if count == 0 {
            return;
        }
        let (weight, along) = match self.b {
            Right::Plain(operand) => return operand.pack(first, pair, count, COLS, out),
            Right::Stored { weight, along } => (weight, along),
        };
        if along {
            // The part of each row, for one panel at a time.
            let (start, width) = (2 * pair, k.min(2 * (pair + count)) - 2 * pair);
            for (panel, out) in out.chunks_mut(COLS * count).enumerate() {
                let lane = first + panel * COLS;
                let lanes = COLS.min(end - lane);
                values.resize(lanes * width, 0.0);
                for (row, values) in values.chunks_mut(width).enumerate() {
                    weight.widen_part(lane + row, start, values);
                }
                Operand::along(values, lanes, width).pack(0, 0, count, COLS, out);
            }
        } else {
            // The part of each row that has these columns.
            let (depths, width) = (2 * pair..k.min(2 * (pair + count)), end - first);
            values.resize(depths.len() * width, 0.0);
            for (depth, values) in depths.clone().zip(values.chunks_mut(width)) {
                weight.widen_part(depth, first, values);
            }
            Operand::across(values, width, depths.len()).pack(0, 0, count, COLS, out);
        }
    }

    /// Adds the products of `count` pairs. `later`: those of others have been.
    fn pass(&self, left: &[u32], right: &[u32], count: usize, later: bool, c: Shared) {
        let ([_, n, _], [top, bottom], [first, end]) = (self.shape, self.rows, self.cols);
        for row in (top..bottom).step_by(ROWS) {
            let rows = ROWS.min(bottom - row);
            let panel = &left[row * count..][..rows * count];
            for col in (first..end).step_by(COLS) {
                let at = (col - first) * count;
                let cols = COLS.min(end - col);
                let columns = &right[at..at + COLS * count];
                let Output { alpha, add, bias } = self.output;
                let to = Target {
                    c: c.at(row * n + col),
                    stride: n,
                    cols,
                    alpha,
                    add: add || later,
                    bias: bias.map(|bias| &bias[col..col + cols]),
                    next: [panel.as_ptr_range().end, columns.as_ptr_range().end],
                };
                // SAFETY: the tile lies in the result, and tasks have separate rows and columns.
                unsafe { self.kernel.tile(rows, panel, columns, to) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use half::bf16;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::{
        encoding::{Encoding, q4f16},
        layers::uniform,
        tensor::Bytes,
    };

    /// Numbers from -1 to 1.
    fn noise(count: usize, seed: u64) -> Vec<f32> {
        uniform(&mut ChaCha8Rng::seed_from_u64(seed), count, 1.0)
    }

    fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
        (0..rows * cols).map(|index| values[index % rows * cols + index / rows]).collect()
    }

    fn on_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
    }

    /// The sum in f64 for each element, and the sum of magnitudes.
    fn exact(a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<(f64, f64)> {
        let rounded =
            |values: &[f32]| values.iter().map(|value| f64::from(bf16::from_f32(*value))).collect::<Vec<f64>>();
        let (a, b) = (rounded(a), rounded(b));
        let element = |index: usize| {
            let terms = (0..k).map(|depth| a[index / n * k + depth] * b[index % n * k + depth]);
            terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
        };
        (0..m * n).map(element).collect()
    }

    fn kernels() -> impl Iterator<Item = Kernel> {
        [Some(Kernel::Portable), Kernel::native()].into_iter().flatten()
    }

    const SHAPES: [[usize; 3]; 9] = [
        [1, 1, 1],
        [3, 5, 7],
        [14, 32, 64],
        [15, 33, 65],
        [29, 70, 1281],
        [200, 130, 77],
        [1, 430, 961],
        [64, 100, 1100],
        [2, 3, 0],
    ];

    /// Sums of f32 in any order differ from exact ones by about the square root of their length, in units of 6e-8 of the sum of
    /// magnitudes.
    #[test]
    fn every_layout_number_of_threads_and_kernel_gives_the_same_bits() {
        for shape in SHAPES {
            let [m, n, k] = shape;
            let (a, b, base, bias) = (noise(m * k, 1), noise(n * k, 2), noise(m * n, 3), noise(n, 4));
            let (a_across, b_across, exact) = (transposed(&a, m, k), transposed(&b, n, k), exact(&a, &b, shape));
            for output in [
                Output { alpha: 1.0, add: false, bias: None },
                Output { alpha: 0.5, add: true, bias: None },
                Output { alpha: 1.0, add: false, bias: Some(&bias) },
            ] {
                let mut all: Vec<Vec<f32>> = Vec::new();
                for (kernel, threads) in kernels().flat_map(|kernel| [1, 2, 5].map(|threads| (kernel, threads))) {
                    for left in [Operand::along(&a, m, k), Operand::across(&a_across, m, k)] {
                        for right in [Operand::along(&b, n, k), Operand::across(&b_across, n, k)] {
                            let mut c = base.clone();
                            on_threads(threads, || product(kernel, left, Right::Plain(right), &mut c, output));
                            all.push(c);
                        }
                    }
                }
                for (index, ((sum, size), c)) in exact.iter().zip(&all[0]).enumerate() {
                    let old = f64::from(if output.add {
                        base[index]
                    } else {
                        output.bias.map_or(0.0, |bias| bias[index % n])
                    });
                    let error = (f64::from(*c) - (f64::from(output.alpha) * sum + old)).abs();
                    assert!(error <= 2e-6 * (size + old.abs()), "{shape:?} at {index}: {error:e} of {size}");
                }
                assert!(all.iter().all(|c| *c == all[0]), "{shape:?}");
            }
        }
    }

    fn bytes(buffer: Vec<u8>) -> Bytes {
        let length = buffer.len();
        Bytes::new(std::sync::Arc::new(buffer), 0..length)
    }

    /// A matrix in encodings with blocks of 1, 32 and 256 values, and in that of MLC.
    fn stored(values: &[f32], rows: usize, cols: usize) -> impl Iterator<Item = Stored> {
        let (levels, scales) = q4f16::narrow(values, cols);
        let plain = [Encoding::F16, Encoding::Q4_0, Encoding::Q4K]
            .map(|encoding| Stored::plain(rows, cols, encoding, bytes(encoding.narrow(values))));
        plain.into_iter().chain([Stored::q4f16(rows, cols, bytes(levels), bytes(scales))])
    }

    #[test]
    fn weights_of_files_give_the_bits_of_their_values() {
        let output = Output { alpha: 1.0, add: false, bias: None };
        // The sum has one part, or two; the columns one block, or two.
        for [m, n, k] in [[15, 256, 512], [30, 768, 1536]] {
            let (a, values) = (noise(m * k, 5), noise(n * k, 6));
            for (along, kernel) in
                [true, false].into_iter().flat_map(|along| kernels().map(move |kernel| (along, kernel)))
            {
                let (rows, cols) = if along { (n, k) } else { (k, n) };
                for weight in stored(&values, rows, cols) {
                    let plain = weight.to_f32();
                    let right = if along { Operand::along(&plain, n, k) } else { Operand::across(&plain, n, k) };
                    let of = |right: Right<'_>| {
                        let mut c = vec![0.0; m * n];
                        product(kernel, Operand::along(&a, m, k), right, &mut c, output);
                        c
                    };
                    assert!(
                        of(Right::Plain(right)) == of(Right::Stored { weight: &weight, along }),
                        "{weight:?} {along}"
                    );
                }
            }
        }
    }

    /// So that a result does not depend on how a batch is cut.
    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let [m, n, k] = [61, 100, 1500];
        let (a, b) = (noise(m * k, 7), noise(n * k, 8));
        let output = Output { alpha: 1.0, add: false, bias: None };
        for kernel in kernels() {
            let mut all = vec![0.0; m * n];
            product(kernel, Operand::along(&a, m, k), Right::Plain(Operand::along(&b, n, k)), &mut all, output);
            let mut some = vec![0.0; 3 * n];
            let rows = Operand::along(&a[20 * k..23 * k], 3, k);
            product(kernel, rows, Right::Plain(Operand::along(&b, n, k)), &mut some, output);
            assert!(some == all[20 * n..23 * n]);
        }
    }
}
