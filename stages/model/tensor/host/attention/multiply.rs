//! Products of matrices that fit into a core's cache: read as they lie, without packing.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "loops vectorize only in the function that knows the processor")]

use pulp::{Arch, Simd, WithSimd};

use crate::simd;

/// Rows of right operands and of results have a multiple of so many values: whole vectors on every processor.
pub(super) const LANES: usize = 16;

/// A left operand `[lanes, depth]`, where `depth` is the length of the sum.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    values: &'a [f32],
    lanes: usize,
    depth: usize,
    /// From a lane to the next, and from a value along the sum to the next.
    steps: [usize; 2],
}

impl<'a> Left<'a> {
    /// Stored `[lanes, stride]`, of which the first `depth` columns count.
    pub(super) fn along(values: &'a [f32], lanes: usize, depth: usize, stride: usize) -> Self {
        Self { values, lanes, depth, steps: [stride, 1] }
    }

    /// Stored `[depth, stride]`, of which the first `lanes` columns count.
    pub(super) fn across(values: &'a [f32], lanes: usize, depth: usize, stride: usize) -> Self {
        Self { values, lanes, depth, steps: [1, stride] }
    }
}

/// A right operand `[depth, stride]`, and the number of its first columns that are multiplied.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) cols: usize,
}

/// `out = alpha * left right`, or `out += alpha * left right`, with `out` `[lanes, stride]`. Columns up to the next multiple of
/// [`LANES`] are computed, too.
///
/// Each value of the result is a chain of operations along the sum, whatever the processor: with one rounding for multiplying and
/// adding where it can do that.
pub(super) fn multiply(left: Left<'_>, right: Right<'_>, alpha: f32, add: bool, out: &mut [f32]) {
    let Right { values, stride, cols } = right;
    if left.lanes == 0 || cols == 0 {
        return;
    }
    let last = left.steps[0] * (left.lanes - 1) + left.steps[1] * left.depth.saturating_sub(1);
    assert!(left.depth == 0 || last < left.values.len(), "the left operand of a product");
    assert!(stride.is_multiple_of(LANES) && cols <= stride, "whole vectors in a row");
    assert!(
        values.len() >= left.depth * stride && out.len() >= left.lanes * stride,
        "the right operand and the result"
    );
    let arch = Arch::new();
    let fused = !matches!(arch, Arch::Scalar);
    simd::on(arch, Product { left, right, alpha, add, out: out.as_mut_ptr(), fused });
}

/// The pointers of `out`, `left` and `right` are valid for the whole product.
#[derive(Clone, Copy)]
struct Product<'a> {
    left: Left<'a>,
    right: Right<'a>,
    alpha: f32,
    add: bool,
    out: *mut f32,
    /// Whether the processor multiplies and adds with one rounding.
    fused: bool,
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let vectors = self.right.cols.div_ceil(S::F32_LANES);
        for vector in (0..vectors).step_by(2) {
            if vector + 1 < vectors {
                self.columns::<S, 2>(simd, vector * S::F32_LANES);
            } else {
                self.columns::<S, 1>(simd, vector * S::F32_LANES);
            }
        }
    }
}

impl Product<'_> {
    /// Computes `V` vectors of all rows, from column `col` on.
    #[inline(always)]
    fn columns<S: Simd, const V: usize>(self, simd: S, col: usize) {
        // As many sums as registers hold, beside the vectors that are multiplied.
        let most = if S::REGISTER_COUNT >= 32 { 8 } else { 6 };
        let lanes = self.left.lanes;
        for lane in (0..lanes).step_by(most) {
            // SAFETY: `multiply` has checked that all lanes and columns lie in the matrices.
            unsafe {
                match most.min(lanes - lane) {
                    1 => self.tile::<S, V, 1>(simd, lane, col),
                    2 => self.tile::<S, V, 2>(simd, lane, col),
                    3 => self.tile::<S, V, 3>(simd, lane, col),
                    4 => self.tile::<S, V, 4>(simd, lane, col),
                    5 => self.tile::<S, V, 5>(simd, lane, col),
                    6 => self.tile::<S, V, 6>(simd, lane, col),
                    7 => self.tile::<S, V, 7>(simd, lane, col),
                    _ => self.tile::<S, V, 8>(simd, lane, col),
                }
            }
        }
    }

    /// # Safety
    /// `R` lanes from `lane` on, and `V` vectors of columns from `col` on, must lie in the matrices.
    #[inline(always)]
    unsafe fn tile<S: Simd, const V: usize, const R: usize>(self, simd: S, lane: usize, col: usize) {
        let Self { left: Left { values, depth, steps, .. }, right, alpha, add, out, fused } = self;
        let stride = right.stride;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        for d in 0..depth {
            let mut vectors = [simd.splat_f32s(0.0); V];
            for (v, vector) in vectors.iter_mut().enumerate() {
                // SAFETY: the caller's; S::f32s are plain values.
                *vector =
                    unsafe { right.values.as_ptr().add(d * stride + col).cast::<S::f32s>().add(v).read_unaligned() };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's.
                let a = simd.splat_f32s(unsafe { *values.as_ptr().add((lane + r) * steps[0] + d * steps[1]) });
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = if fused {
                        simd.mul_add_f32s(a, vector, *sum)
                    } else {
                        simd.add_f32s(simd.mul_f32s(a, vector), *sum)
                    };
                }
            }
        }
        // Copied, so that the sums themselves stay in registers.
        let tile = sums;
        for (r, sums) in tile.iter().enumerate() {
            // SAFETY: the caller's; `out` is this product's alone.
            let to = unsafe { out.add((lane + r) * stride + col).cast::<S::f32s>() };
            for (v, sum) in sums.iter().enumerate() {
                let scaled = simd.mul_f32s(simd.splat_f32s(alpha), *sum);
                // SAFETY: as above.
                unsafe {
                    let to = to.add(v);
                    to.write_unaligned(if add { simd.add_f32s(scaled, to.read_unaligned()) } else { scaled });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All numbers of lanes around those of a tile, both layouts, and columns that end within a vector.
    #[test]
    fn products_are_exact_for_small_whole_numbers() {
        let value = |i: usize| (i * 7 % 11) as f32 - 5.0;
        for (lanes, depth, cols, stride) in
            (0..20).flat_map(|lanes| [(lanes, 5, 16, 16), (lanes, 37, 35, 48), (lanes, 0, 32, 32), (lanes, 1, 1, 64)])
        {
            let right: Vec<f32> = (0..depth * stride).map(value).collect();
            let wide = lanes + 3;
            let stored: Vec<f32> = (0..wide * (depth + 2)).map(|i| value(3 * i + 1)).collect();
            for across in [false, true] {
                let (left, at): (_, &dyn Fn(usize, usize) -> usize) = if across {
                    (Left::across(&stored, lanes, depth, wide), &|lane, d| d * wide + lane)
                } else {
                    (Left::along(&stored, lanes, depth, depth + 2), &|lane, d| lane * (depth + 2) + d)
                };
                for (alpha, add) in [(1.0, false), (0.5, true)] {
                    let mut out = vec![3.0; lanes * stride];
                    multiply(left, Right { values: &right, stride, cols }, alpha, add, &mut out);
                    for (lane, col) in (0..lanes).flat_map(|lane| (0..stride).map(move |col| (lane, col))) {
                        let sum: f32 = (0..depth).map(|d| stored[at(lane, d)] * right[d * stride + col]).sum();
                        let expected = alpha * sum + if add { 3.0 } else { 0.0 };
                        let found = out[lane * stride + col];
                        // Whole numbers and halves: nothing is rounded.
                        let is = |value: f32| (found - value).abs() < 1e-6;
                        let right = if col < cols { is(expected) } else { is(expected) || is(3.0) };
                        assert!(right, "{lanes} {depth} {cols} {across}: [{lane}, {col}] is {found}, not {expected}");
                    }
                }
            }
        }
    }
}
