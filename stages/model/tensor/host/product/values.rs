//! Tiles by products of f32, with the widest SIMD of the processor.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "loops vectorize only in the function that knows the processor")]

use pulp::{Arch, Simd, WithSimd};

use super::kernel::{ROWS, Target};
use crate::simd::on;

/// Vectors in a row of a tile.
const VECTORS: usize = 2;

/// The SIMD of a processor.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    /// Values in a vector.
    lanes: usize,
    registers: usize,
}

impl Lanes {
    pub(super) fn of(arch: Arch) -> Self {
        struct Ask;
        impl WithSimd for Ask {
            type Output = Lanes;
            #[inline(always)]
            fn with_simd<S: Simd>(self, _: S) -> Lanes {
                Lanes { lanes: S::F32_LANES, registers: S::REGISTER_COUNT }
            }
        }
        on(arch, Ask)
    }

    /// Rows and columns of a tile that fits into registers, beside the vectors that are multiplied.
    pub(super) fn tile(self) -> (usize, usize) {
        (((self.registers - VECTORS - 1) / VECTORS).min(ROWS), VECTORS * self.lanes)
    }
}

/// Computes a tile.
///
/// # Safety
/// As [`super::kernel::Kernel::tile`]; there is at least one row.
pub(super) unsafe fn values(arch: Arch, rows: usize, left: &[u32], right: &[u32], to: Target<'_>) {
    type Run = fn(Arch, &[f32], &[f32], Target<'_>);
    const RUN: [Run; ROWS] = [
        run::<1>, run::<2>, run::<3>, run::<4>, run::<5>, run::<6>, run::<7>, run::<8>, run::<9>, run::<10>, run::<11>,
        run::<12>, run::<13>, run::<14>,
    ];
    RUN[rows - 1](arch, bytemuck::cast_slice(left), bytemuck::cast_slice(right), to);
}

fn run<const R: usize>(arch: Arch, left: &[f32], right: &[f32], to: Target<'_>) {
    on(arch, Tile::<R> { left, right, to, fused: !matches!(arch, Arch::Scalar) });
}

struct Tile<'a, const R: usize> {
    left: &'a [f32],
    right: &'a [f32],
    to: Target<'a>,
    /// Whether the processor multiplies and adds with one rounding.
    fused: bool,
}

impl<const R: usize> WithSimd for Tile<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { left, right, to, fused } = self;
        let mul_add = |a: S::f32s, b: S::f32s, c: S::f32s| {
            if fused { simd.mul_add_f32s(a, b, c) } else { simd.add_f32s(simd.mul_f32s(a, b), c) }
        };
        let mut sums = [[simd.splat_f32s(0.0); VECTORS]; R];
        to.fetch(R);
        let right = S::as_simd_f32s(right).0.as_chunks::<VECTORS>().0;
        for (a, b) in left.as_chunks::<R>().0.iter().zip(right) {
            for r in 0..R {
                let a = simd.splat_f32s(a[r]);
                for v in 0..VECTORS {
                    sums[r][v] = mul_add(a, b[v], sums[r][v]);
                }
            }
        }
        // Copied, so that the sums themselves stay in registers.
        let tile = sums;
        // SAFETY: the caller's.
        unsafe { to.write(bytemuck::cast_slice(&tile), VECTORS * S::F32_LANES) };
    }
}
