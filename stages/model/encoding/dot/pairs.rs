//! Products of integers of 16 bits, which processors compute in pairs. Exact, so the same everywhere.
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

use pulp::{Arch, NullaryFnOnce};

use crate::encoding::search::lanes;

/// Words that are multiplied at once.
pub(super) const WORDS: usize = 32;
/// Sums of their products.
pub(super) const SUMS: usize = WORDS / 2;

/// The multiplication of a processor.
pub(super) trait Pairs: Copy {
    /// The sums of the products of neighbours: `a[0] b[0] + a[1] b[1]`, and so on.
    fn multiply(self, a: [i16; WORDS], b: &[i16; WORDS]) -> [i32; SUMS];
}

/// Work that multiplies pairs.
pub(super) trait WithPairs {
    type Output;

    fn with(self, pairs: impl Pairs) -> Self::Output;
}

/// Runs work, compiled for the widest SIMD instructions of this processor.
#[inline(always)]
pub(super) fn on_pairs<W: WithPairs>(work: W) -> W::Output {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(simd) => simd.vectorize(Of(simd, work)),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(simd) => simd.vectorize(Of(simd, work)),
        arch => arch.dispatch(Of(AnyProcessor, work)),
    }
}

struct Of<P, W>(P, W);

impl<P: Pairs, W: WithPairs> NullaryFnOnce for Of<P, W> {
    type Output = W::Output;

    #[inline(always)]
    fn call(self) -> W::Output {
        self.1.with(self.0)
    }
}

#[derive(Clone, Copy)]
struct AnyProcessor;

impl Pairs for AnyProcessor {
    #[inline(always)]
    fn multiply(self, a: [i16; WORDS], b: &[i16; WORDS]) -> [i32; SUMS] {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        lanes(|i| product(2 * i) + product(2 * i + 1))
    }
}

#[cfg(target_arch = "x86_64")]
impl Pairs for pulp::x86::V4 {
    #[inline(always)]
    fn multiply(self, a: [i16; WORDS], b: &[i16; WORDS]) -> [i32; SUMS] {
        pulp::cast(self.multiply_wrapping_add_adjacent_i16x32(pulp::cast(a), pulp::cast(*b)))
    }
}

#[cfg(target_arch = "x86_64")]
impl Pairs for pulp::x86::V3 {
    #[inline(always)]
    fn multiply(self, a: [i16; WORDS], b: &[i16; WORDS]) -> [i32; SUMS] {
        let (a, b): ([pulp::i16x16; 2], [pulp::i16x16; 2]) = (pulp::cast(a), pulp::cast(*b));
        pulp::cast([0, 1].map(|half| self.multiply_wrapping_add_adjacent_i16x16(a[half], b[half])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Products([i16; WORDS], [i16; WORDS]);

    impl WithPairs for &Products {
        type Output = [i32; SUMS];

        fn with(self, pairs: impl Pairs) -> [i32; SUMS] {
            pairs.multiply(self.0, &self.1)
        }
    }

    #[test]
    fn processors_agree() {
        let words = |factor: i32| std::array::from_fn(|i| (i as i32 * factor % 65_536 - 32_768) as i16);
        for products in [
            Products(words(48_271), words(16_807)),
            Products([i16::MIN; WORDS], [i16::MAX; WORDS]),
            Products([i16::MAX; WORDS], [i16::MAX; WORDS]),
        ] {
            let expected: [i32; SUMS] = std::array::from_fn(|i| {
                let product = |i: usize| i64::from(products.0[i]) * i64::from(products.1[i]);
                i32::try_from(product(2 * i) + product(2 * i + 1)).unwrap_or(0)
            });
            assert_eq!(on_pairs(&products), expected);
            assert_eq!(products.with(AnyProcessor), expected);
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = pulp::x86::V3::try_new() {
                assert_eq!(simd.vectorize(Of(simd, &products)), expected);
            }
        }
    }
}
