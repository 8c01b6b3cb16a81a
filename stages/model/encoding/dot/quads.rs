//! Products of levels with digits, four neighbours at a time, as processors compute them in bytes. Exact, so the same everywhere.
#![allow(unsafe_code)]
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

use pulp::{Arch, NullaryFnOnce};

use crate::encoding::search::lanes;

/// Levels that are multiplied at once.
pub(super) const LEVELS: usize = 64;
/// Sums of their products.
pub(super) const SUMS: usize = LEVELS / 4;

/// The multiplication of a processor.
pub(super) trait Quads: Copy {
    /// Adds to each sum the products of four neighbours: `levels[0] digits[0] + ... + levels[3] digits[3]`, and so on. The sum of two
    /// neighbouring products must fit an `i16`.
    fn multiply_add(self, sums: [i32; SUMS], levels: &[u8; LEVELS], digits: &[i8; LEVELS]) -> [i32; SUMS];
}

/// Work that multiplies quads.
pub(super) trait WithQuads {
    type Output;

    fn with(self, quads: impl Quads) -> Self::Output;
}

/// Runs work, compiled for the widest SIMD instructions of this processor.
#[inline(always)]
pub(super) fn on_quads<W: WithQuads>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512vnni") && matches!(Arch::new(), Arch::V4(_)) {
        // SAFETY: the processor has these instructions.
        return unsafe { x86::with_vnni(work) };
    }
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => simd.vectorize(Of(simd, work)),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(simd) => simd.vectorize(Of(simd, work)),
        arch => arch.dispatch(Of(AnyProcessor, work)),
    }
}

struct Of<Q, W>(Q, W);

impl<Q: Quads, W: WithQuads> NullaryFnOnce for Of<Q, W> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.1.with(self.0)
    }
}

#[derive(Clone, Copy)]
struct AnyProcessor;

impl Quads for AnyProcessor {
    #[inline(always)]
    fn multiply_add(self, sums: [i32; SUMS], levels: &[u8; LEVELS], digits: &[i8; LEVELS]) -> [i32; SUMS] {
        let product = |i: usize| i32::from(levels[i]) * i32::from(digits[i]);
        lanes(|i| sums[i] + product(4 * i) + product(4 * i + 1) + product(4 * i + 2) + product(4 * i + 3))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256i, __m512i, _mm256_add_epi32, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_set1_epi16,
        _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_madd_epi16, _mm512_maddubs_epi16, _mm512_set1_epi16,
    };

    use pulp::cast;

    use super::{LEVELS, Quads, SUMS, WithQuads};

    /// A processor with AVX512-VNNI.
    #[derive(Clone, Copy)]
    struct Vnni(());

    /// # Safety
    /// The processor must have these instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512vnni,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
    pub(super) unsafe fn with_vnni<W: WithQuads>(work: W) -> W::Output {
        work.with(Vnni(()))
    }

    impl Quads for Vnni {
        #[inline(always)]
        fn multiply_add(self, sums: [i32; SUMS], levels: &[u8; LEVELS], digits: &[i8; LEVELS]) -> [i32; SUMS] {
            let (sums, levels, digits): (__m512i, __m512i, __m512i) = (cast(sums), cast(*levels), cast(*digits));
            // SAFETY: there is a value of this type only where the processor has the instruction.
            cast(unsafe { _mm512_dpbusd_epi32(sums, levels, digits) })
        }
    }

    impl Quads for pulp::x86::V4 {
        #[inline(always)]
        fn multiply_add(self, sums: [i32; SUMS], levels: &[u8; LEVELS], digits: &[i8; LEVELS]) -> [i32; SUMS] {
            let (sums, levels, digits): (__m512i, __m512i, __m512i) = (cast(sums), cast(*levels), cast(*digits));
            // SAFETY: there is a value of this type only where the processor has these instructions.
            cast(unsafe {
                let pairs = _mm512_maddubs_epi16(levels, digits);
                _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))
            })
        }
    }

    impl Quads for pulp::x86::V3 {
        #[inline(always)]
        fn multiply_add(self, sums: [i32; SUMS], levels: &[u8; LEVELS], digits: &[i8; LEVELS]) -> [i32; SUMS] {
            let (sums, levels, digits): ([__m256i; 2], [__m256i; 2], [__m256i; 2]) =
                (cast(sums), cast(*levels), cast(*digits));
            // SAFETY: there is a value of this type only where the processor has these instructions.
            cast([0, 1].map(|half| unsafe {
                let pairs = _mm256_maddubs_epi16(levels[half], digits[half]);
                _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
            }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Products([u8; LEVELS], [i8; LEVELS]);

    impl WithQuads for &Products {
        type Output = [i32; SUMS];

        fn with(self, quads: impl Quads) -> [i32; SUMS] {
            quads.multiply_add([7; SUMS], &self.0, &self.1)
        }
    }

    #[test]
    fn processors_agree() {
        for products in [
            Products(
                std::array::from_fn(|i| (i * 41 % 64) as u8),
                std::array::from_fn(|i| (i as i32 * 97 % 256 - 128) as i8),
            ),
            Products([63; LEVELS], [i8::MIN; LEVELS]),
            Products([63; LEVELS], [i8::MAX; LEVELS]),
            Products([255; LEVELS], [-64; LEVELS]),
            Products([255; LEVELS], [63; LEVELS]),
        ] {
            let product = |i: usize| i32::from(products.0[i]) * i32::from(products.1[i]);
            let expected: [i32; SUMS] = std::array::from_fn(|i| 7 + (4 * i..4 * i + 4).map(product).sum::<i32>());
            assert_eq!(on_quads(&products), expected);
            assert_eq!(products.with(AnyProcessor), expected);
            #[cfg(target_arch = "x86_64")]
            {
                if let Some(simd) = pulp::x86::V3::try_new() {
                    assert_eq!(simd.vectorize(Of(simd, &products)), expected);
                }
                if let Some(simd) = pulp::x86::V4::try_new() {
                    assert_eq!(simd.vectorize(Of(simd, &products)), expected);
                }
            }
        }
    }
}
