//! Matrix products with the `gemm` crate, in tiles that depend on the shapes only.
#![allow(unsafe_code)]

use rayon::prelude::*;

use super::shared::Shared;

/// A strided matrix in a slice: element (i, j) is `values[i * row + j * col]`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    values: &'a [f32],
    row: usize,
    col: usize,
}

impl<'a> View<'a> {
    /// Row-major, with rows `stride` values apart.
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

/// Products with at most this many multiplications are not worth a second thread.
const SMALL: usize = 1 << 18;
/// Number of tiles of a product, if they are large enough.
const TILES: usize = 16;
/// Minimum number of multiplications of a tile.
const MIN_TILE: usize = 1 << 22;
/// Tiles with more multiplications are halved, so that many cores have work.
const MAX_TILE: usize = 1 << 28;

/// The size of the tiles of an `[m, n]` product over `k`. `gemm` packs the columns of `b` that a tile needs, so columns
/// are split first, to pack each only once. Depends only on the shape, so that results do not depend on the number of
/// threads.
fn tile(m: usize, n: usize, k: usize) -> (usize, usize) {
    // Multiples of the blocks of gemm's innermost loops: 64 columns, 6 rows.
    let tile_n = n.div_ceil(TILES).next_multiple_of(64).max(128).min(n);
    let down = TILES.div_ceil(n.div_ceil(tile_n));
    let mut tile_m = m.div_ceil(down).max(MIN_TILE.div_ceil(tile_n * k));
    while tile_m * tile_n * k > MAX_TILE && tile_m > 384 {
        tile_m = tile_m.div_ceil(2);
    }
    // All of about the same height, so that no thread waits for another.
    tile_m = m.div_ceil(m.div_ceil(tile_m));
    (tile_m.next_multiple_of(6).min(m), tile_n)
}

/// The product `c = alpha * a b`, or `c += alpha * a b`, with `a` `[m, k]`, `b` `[k, n]`, and `c` `[m, n]`, whose rows
/// are `stride` values apart.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) alpha: f32,
    /// Whether to add to `c` instead of overwriting it.
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

    /// Runs on all threads.
    pub(super) fn parallel(self, a: View<'_>, b: View<'_>, c: &mut [f32], stride: usize) {
        let Self { m, n, k, .. } = self;
        if m * n * k <= SMALL {
            return self.single(a, b, c, stride);
        }
        let (tile_m, tile_n) = tile(m, n, k);
        let (shared, length, across) = (Shared::new(c), c.len(), n.div_ceil(tile_n));
        (0..m.div_ceil(tile_m) * across).into_par_iter().with_max_len(1).for_each(|index| {
            let (i, j) = (index / across * tile_m, index % across * tile_n);
            let tile = Self { m: tile_m.min(m - i), n: tile_n.min(n - j), ..self };
            let offset = i * stride + j;
            tile.at(a.skip_rows(i), b.skip_cols(j), shared.at(offset), length - offset, stride);
        });
    }

    /// Runs on this thread.
    pub(super) fn single(self, a: View<'_>, b: View<'_>, c: &mut [f32], stride: usize) {
        self.at(a, b, c.as_mut_ptr(), c.len(), stride);
    }

    fn at(self, a: View<'_>, b: View<'_>, c: *mut f32, length: usize, stride: usize) {
        let Self { m, n, k, alpha, add } = self;
        if m == 0 || n == 0 {
            return;
        }
        assert!(a.holds(m, k) && b.holds(k, n) && (m - 1) * stride + n <= length, "the product exceeds its matrices");
        // SAFETY: the assertion above keeps all three matrices inside their buffers. `c` is either borrowed
        // exclusively, or a tile of `parallel` that no other thread writes.
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
