//! Checks at memory bandwidth that all values of a tensor are finite, by their exponent bits.

use rayon::prelude::*;

use crate::encoding::Encoding;

/// Bytes checked at a time; the search stops at the first chunk with a non-finite value.
const CHUNK: usize = 1 << 20;
/// The exponent bits of an f16.
const F16_EXPONENT: u16 = 0x7c00;

/// Whether all values are finite, or the factors of all blocks.
pub(super) fn all_finite(encoding: Encoding, bytes: &[u8]) -> bool {
    // Infinities and NaNs are the values whose exponent bits are all set.
    match encoding {
        Encoding::F32 => bytes.par_chunks(CHUNK).all(|bytes| {
            let exponent = |b: &[u8; 4]| u32::from_le_bytes(*b) & 0x7f80_0000;
            bytes.as_chunks().0.iter().map(exponent).fold(0, u32::max) < 0x7f80_0000
        }),
        Encoding::F16 => bytes.par_chunks(CHUNK).all(|bytes| largest_exponent(bytes, F16_EXPONENT) < F16_EXPONENT),
        Encoding::Bf16 => bytes.par_chunks(CHUNK).all(|bytes| largest_exponent(bytes, 0x7f80) < 0x7f80),
        _ => {
            let (block, factors) = (encoding.block().bytes, encoding.factors());
            let factors_are_finite = |block: &[u8]| {
                factors.iter().all(|at| largest_exponent(&block[*at..*at + 2], F16_EXPONENT) < F16_EXPONENT)
            };
            bytes.par_chunks(CHUNK / block * block).all(|bytes| bytes.chunks_exact(block).all(factors_are_finite))
        }
    }
}

fn largest_exponent(bytes: &[u8], mask: u16) -> u16 {
    bytes.as_chunks().0.iter().map(|b: &[u8; 2]| u16::from_le_bytes(*b) & mask).fold(0, u16::max)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn every_kind_of_non_finite_value_is_found() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for index in [0, 700_001, 1_999_999] {
                let mut values = vec![f32::MIN; 2_000_000];
                let encoded = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
                assert!(all_finite(Encoding::F32, &encoded(&values)));
                values[index] = bad;
                assert!(!all_finite(Encoding::F32, &encoded(&values)));
            }
            let (halves, brains) = (f16::from_f32(bad).to_le_bytes(), bf16::from_f32(bad).to_le_bytes());
            assert!(!all_finite(Encoding::F16, &[[0, 0], halves].concat()));
            assert!(!all_finite(Encoding::Bf16, &[brains, [0, 0]].concat()));
        }
        assert!(
            all_finite(Encoding::F16, &f16::MAX.to_le_bytes()) && all_finite(Encoding::Bf16, &bf16::MIN.to_le_bytes())
        );
        assert!(all_finite(Encoding::F32, &[]));
    }

    #[test]
    fn factors_of_blocks_must_be_finite() {
        for encoding in [Encoding::Q4_0, Encoding::Q5_1, Encoding::Q4K, Encoding::Q5K, Encoding::Q6K] {
            let whole = encoding.narrow(&[1.5; 1024]);
            assert!(all_finite(encoding, &whole), "{encoding:?}");
            for factor in encoding.factors() {
                let mut damaged = whole.clone();
                let last = whole.len() - encoding.block().bytes + factor;
                damaged[last..last + 2].copy_from_slice(&f16::INFINITY.to_le_bytes());
                assert!(!all_finite(encoding, &damaged), "{encoding:?}");
            }
        }
    }
}
