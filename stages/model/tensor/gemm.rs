//! Matrix products through the `gemm` crate, cut into tiles that depend on the shapes alone.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::access::Shared;

/// A matrix as strides over a slice: element (i, j) is `values[i * row + j * col]`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    values: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> View<'a> {
    /// Row-major with `stride` values from row to row.
    pub(super) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, row: stride, col: 1 }
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        Self { values: self.values, row: self.col, col: self.row }
    }

    fn skip_rows(self, count: usize) -> Self {
        Self { values: &self.values[(count * self.row).min(self.values.len())..], ..self }
    }

    fn skip_cols(self, count: usize) -> Self {
        Self { values: &self.values[(count * self.col).min(self.values.len())..], ..self }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.values.len()
    }
}

/// Below this many multiplications a product is not worth a second thread.
const SMALL: usize = 1 << 18;
/// Into how many tiles a large product is cut at most. Fixed, so that results are.
const TILES: usize = 16;

/// `c = beta * c + alpha * a b`, with `a` `[m, k]`, `b` `[k, n]` and `c` `[m, n]` with rows `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) alpha: f32,
    /// Add to `c` instead of replacing it.
    pub(super) add: bool,
}

impl Product {
    pub(super) fn new(m: usize, n: usize, k: usize) -> Self {
        Self { m, n, k, alpha: 1.0, add: false }
    }

    pub(super) fn adding(self) -> Self {
        Self { add: true, ..self }
    }

    pub(super) fn scaled(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// On all cores.
    pub(super) fn parallel(self, a: View<'_>, b: View<'_>, c: &mut [f32], stride: usize) {
        let Self { m, n, k, .. } = self;
        if m * n * k <= SMALL {
            return self.single(a, b, c, stride);
        }
        let by_rows = m >= n;
        let (whole, unit) = if by_rows { (m, 16) } else { (n, 16) };
        let step = whole.div_ceil(TILES).next_multiple_of(unit).max(32);
        let (shared, length) = (Shared::new(c), c.len());
        (0..whole.div_ceil(step)).into_par_iter().with_max_len(1).for_each(|tile| {
            let (start, end) = (tile * step, (tile * step + step).min(whole));
            let (part, a, b, offset) = if by_rows {
                (Self { m: end - start, ..self }, a.skip_rows(start), b, start * stride)
            } else {
                (Self { n: end - start, ..self }, a, b.skip_cols(start), start)
            };
            part.at(a, b, shared.at(offset), length - offset, stride);
        });
    }

    /// On this thread.
    pub(super) fn single(self, a: View<'_>, b: View<'_>, c: &mut [f32], stride: usize) {
        self.at(a, b, c.as_mut_ptr(), c.len(), stride);
    }

    /// On this thread, into columns from `start` of a matrix that other threads fill elsewhere.
    pub(super) fn tile(self, a: View<'_>, b: View<'_>, c: Shared, start: usize, length: usize, stride: usize) {
        self.at(a, b, c.at(start), length - start, stride);
    }

    fn at(self, a: View<'_>, b: View<'_>, c: *mut f32, length: usize, stride: usize) {
        let Self { m, n, k, alpha, add } = self;
        if m == 0 || n == 0 {
            return;
        }
        assert!(
            a.holds(m, k) && b.holds(k, n) && (m - 1) * stride + n <= length,
            "a product reaches outside its matrices"
        );
        // SAFETY: the assertion above keeps all three inside their buffers. `c` is either exclusive, or one of
        // the tiles of `parallel`, which are disjoint ranges of rows or of columns.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c,
                1,
                stride as isize,
                add,
                a.values.as_ptr(),
                a.col as isize,
                a.row as isize,
                b.values.as_ptr(),
                b.col as isize,
                b.row as isize,
                1.0,
                alpha,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}
