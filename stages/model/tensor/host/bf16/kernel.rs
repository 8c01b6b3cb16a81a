//! The loops over packed panels.
#![allow(unsafe_code)]

use std::sync::OnceLock;

/// Rows of a tile in registers.
pub(super) const ROWS: usize = 14;
/// Columns of a tile in registers: two vectors of AVX-512.
pub(super) const COLS: usize = 32;

/// What computes a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tensor::host) enum Kernel {
    /// The processor's own product of bf16.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same chain of operations in f32.
    Portable,
    /// The same sums, the even product before the odd one.
    #[cfg(test)]
    EvenFirst,
}

/// Whether this processor multiplies bf16 by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Native {
    /// It does.
    Yes,
    /// It has no such instruction.
    No,
    /// It says so, but gives other sums than plain arithmetic; it is not used.
    Wrong,
}

/// Whether this processor multiplies bf16 by itself. The first call tries it.
pub fn native() -> Native {
    static NATIVE: OnceLock<Native> = OnceLock::new();
    *NATIVE.get_or_init(|| match Kernel::of_processor() {
        None => Native::No,
        Some(kernel) if agree(kernel, Kernel::Portable) => Native::Yes,
        Some(_) => Native::Wrong,
    })
}

impl Kernel {
    /// The processor's own, if it has one that gives right sums.
    pub(in crate::tensor::host) fn native() -> Option<Self> {
        Self::of_processor().filter(|_| native() == Native::Yes)
    }

    #[cfg(target_arch = "x86_64")]
    fn of_processor() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16");
        has.then_some(Self::Avx512)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn of_processor() -> Option<Self> {
        None
    }

    /// Computes a tile of `rows` (at most [`ROWS`]) and `to.cols` columns. `left` is a panel of as many lanes, `right` one of
    /// [`COLS`], of equally many pairs.
    ///
    /// # Safety
    /// `to` must be as its documentation says.
    pub(super) unsafe fn tile(self, rows: usize, left: &[u32], right: &[u32], to: Target<'_>) {
        assert!(rows <= ROWS && to.cols <= COLS && left.len() * COLS == right.len() * rows, "a tile's panels");
        match self {
            // SAFETY: the processor has what the function needs, or there would be no such kernel; the panels have the sizes
            // asserted above; `to` is the caller's.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { avx512::TILES[rows](left, right, to) },
            // SAFETY: as above.
            Self::Portable => unsafe { portable::<true>(rows, left, right, to) },
            // SAFETY: as above.
            #[cfg(test)]
            Self::EvenFirst => unsafe { portable::<false>(rows, left, right, to) },
        }
    }
}

/// Where a tile goes: `c = alpha * sum + (c or bias or 0)`.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// Its first element. Rows are `stride` apart, and each has `cols` elements that nothing else refers to.
    pub(super) c: *mut f32,
    pub(super) stride: usize,
    pub(super) cols: usize,
    pub(super) alpha: f32,
    /// Whether to add to what is there.
    pub(super) add: bool,
    /// Of these columns, in place of what is there.
    pub(super) bias: Option<&'a [f32]>,
    /// What will be read next, to be fetched in time.
    pub(super) next: [*const u32; 2],
}

/// Without the instruction: products of two bf16 are exact in f32, so only the sums are rounded.
///
/// # Safety
/// As [`Kernel::tile`].
unsafe fn portable<const ODD_FIRST: bool>(rows: usize, left: &[u32], right: &[u32], to: Target<'_>) {
    let mut sums = [[0.0_f32; COLS]; ROWS];
    for (left, right) in left.chunks(rows.max(1)).zip(right.chunks(COLS)) {
        for (sums, a) in sums.iter_mut().zip(left) {
            let (a_even, a_odd) = (f32::from_bits(a << 16), f32::from_bits(a & 0xffff_0000));
            for (sum, b) in sums.iter_mut().zip(right) {
                let odd = (a_odd, f32::from_bits(b & 0xffff_0000));
                let even = (a_even, f32::from_bits(b << 16));
                for (a, b) in if ODD_FIRST { [odd, even] } else { [even, odd] } {
                    *sum = a.mul_add(b, *sum);
                }
            }
        }
    }
    for (row, sums) in sums[..rows].iter().enumerate() {
        // SAFETY: a row of the tile, which belongs to it alone.
        let c = unsafe { std::slice::from_raw_parts_mut(to.c.add(row * to.stride), to.cols) };
        for (col, (c, sum)) in c.iter_mut().zip(sums).enumerate() {
            let old = if to.add { *c } else { to.bias.map_or(0.0, |bias| bias[col]) };
            *c = to.alpha.mul_add(*sum, old);
        }
    }
}

/// Whether two kernels give the same bits on some tiles.
fn agree(one: Kernel, other: Kernel) -> bool {
    let word = |index: usize, salt: usize| {
        // Values of all signs between 1/16 and 8.
        let bits = |mix: usize| (mix & 0x807f | (123 + (mix >> 16) % 7) << 7) as u32;
        let mix = (index + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits(mix >> 5) | bits(mix >> 29) << 16
    };
    [(ROWS, COLS, 37), (1, 1, 1), (5, 17, 64)].into_iter().all(|(rows, cols, pairs)| {
        let left: Vec<u32> = (0..pairs * rows).map(|index| word(index, 1)).collect();
        let right: Vec<u32> = (0..pairs * COLS).map(|index| word(index, 1 << 20)).collect();
        let bias: Vec<f32> = (0..cols).map(|col| col as f32 / 3.0).collect();
        [(1.0, false, None), (0.7, true, None), (1.0, false, Some(bias.as_slice()))].into_iter().all(
            |(alpha, add, bias)| {
                let of = |kernel: Kernel| {
                    let mut c: Vec<f32> = (0..rows * (cols + 3)).map(|index| index as f32 / 7.0).collect();
                    let next = [left.as_ptr(), right.as_ptr()];
                    let to = Target { c: c.as_mut_ptr(), stride: cols + 3, cols, alpha, add, bias, next };
                    // SAFETY: `c` has all rows, and is this call's alone.
                    unsafe { kernel.tile(rows, &left, &right, to) };
                    c.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
                };
                of(one) == of(other)
            },
        )
    })
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_dpbf16_ps, _mm512_fmadd_ps, _mm512_loadu_si512,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    };

    use super::{COLS, ROWS, Target};

    type Tile = unsafe fn(&[u32], &[u32], Target<'_>);

    /// The tiles by their number of rows.
    pub(super) const TILES: [Tile; ROWS + 1] = [
        tile::<0>, tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>, tile::<7>, tile::<8>, tile::<9>,
        tile::<10>, tile::<11>, tile::<12>, tile::<13>, tile::<14>,
    ];
    /// Pairs between two prefetches, which fetch a line each.
    const STEP: usize = 8;
    /// Words in a vector.
    const LANES: usize = 16;

    /// # Safety
    /// As [`super::Kernel::tile`], on a processor with AVX512-BF16.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn tile<const R: usize>(left: &[u32], right: &[u32], to: Target<'_>) {
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for (p, right) in right.as_chunks::<COLS>().0.iter().enumerate() {
            if p % STEP == 0 {
                // Any address may be prefetched.
                _mm_prefetch::<_MM_HINT_T1>(to.next[0].wrapping_add(p / STEP * LANES).cast());
                _mm_prefetch::<_MM_HINT_T1>(to.next[1].wrapping_add(p / STEP * LANES).cast());
            }
            // SAFETY: `right` has two vectors of words, and `left` R words for each pair, as the caller asserts. Words are vectors
            // of bf16 with the same bits.
            unsafe {
                let words = right.as_ptr();
                let b: [__m512bh; 2] = [
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(words.cast())),
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(words.add(LANES).cast())),
                ];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let word = *left.get_unchecked(p * R + r);
                    let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(word.cast_signed()));
                    sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
                }
            }
        }
        let alpha = _mm512_set1_ps(to.alpha);
        for half in 0..2 {
            // The columns in this half.
            let mask = (((1_u64 << to.cols) - 1) >> (LANES * half)) as u16;
            for (r, sums) in sums.iter().enumerate() {
                let c = to.c.wrapping_add(r * to.stride + LANES * half);
                // SAFETY: masked elements are neither read nor written; the others are the tile's, or of the bias.
                unsafe {
                    let old = match to.bias {
                        _ if to.add => _mm512_maskz_loadu_ps(mask, c),
                        Some(bias) => _mm512_maskz_loadu_ps(mask, bias.as_ptr().wrapping_add(LANES * half)),
                        None => _mm512_setzero_ps(),
                    };
                    _mm512_mask_storeu_ps(c, mask, _mm512_fmadd_ps(alpha, sums[half], old));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_s_own_is_used_if_it_agrees_to_the_bit() {
        assert!(agree(Kernel::Portable, Kernel::Portable));
        assert!(!agree(Kernel::EvenFirst, Kernel::Portable), "another order of sums is noticed");
        assert_ne!(native(), Native::Wrong, "the processor's product differs from plain arithmetic");
        assert_eq!(Kernel::native().is_some(), native() == Native::Yes);
    }
}
