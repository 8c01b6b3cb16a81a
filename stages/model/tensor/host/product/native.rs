//! Tiles by the instruction of AVX512-BF16.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_ps,
};

use super::kernel::{COLS, ROWS, Target};

type Tile = unsafe fn(&[u32], &[u32], Target<'_>);

/// The tiles of one row and more.
pub(super) const TILES: [Tile; ROWS] = [
    tile::<1>, tile::<2>, tile::<3>, tile::<4>, tile::<5>, tile::<6>, tile::<7>, tile::<8>, tile::<9>, tile::<10>,
    tile::<11>, tile::<12>, tile::<13>, tile::<14>,
];
/// Words in a vector.
const LANES: usize = 16;

/// # Safety
/// As [`super::kernel::Kernel::tile`], on a processor with AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile<const R: usize>(left: &[u32], right: &[u32], to: Target<'_>) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    to.fetch(R);
    for (p, right) in right.as_chunks::<COLS>().0.iter().enumerate() {
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
    // Copied, so that the sums themselves stay in registers.
    let tile = sums;
    // SAFETY: vectors of f32 are as many values; the rest is the caller's.
    unsafe { to.write(std::slice::from_raw_parts(tile.as_ptr().cast(), R * COLS), COLS) };
}
