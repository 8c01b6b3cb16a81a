//! Checks at memory bandwidth that all values of a tensor are finite, by their exponent bits.

use rayon::prelude::*;
use safetensors::Dtype;

use crate::encoding::Encoding;

/// Bytes checked at a time; the search stops at the first chunk with a non-finite value.
const CHUNK: usize = 1 << 20;

/// Whether all values are finite; always true of integers.
pub(super) fn all_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    // Infinities and NaNs are the values whose exponent bits are all set.
    let finite: fn(&[u8]) -> bool = match dtype {
        Dtype::F32 => |bytes| {
            let exponent = |b: &[u8; 4]| u32::from_le_bytes(*b) & 0x7f80_0000;
            bytes.as_chunks().0.iter().map(exponent).fold(0, u32::max) < 0x7f80_0000
        },
        Dtype::F16 => |bytes| largest_exponent(bytes, 0x7c00) < 0x7c00,
        Dtype::BF16 => |bytes| largest_exponent(bytes, 0x7f80) < 0x7f80,
        _ => return true,
    };
    bytes.par_chunks(CHUNK).all(finite)
}

/// Whether narrowing to `encoding` has made no infinity: of a value, or of the factor of a block.
pub(super) fn all_narrowed(encoding: Encoding, bytes: &[u8]) -> bool {
    match encoding {
        // F32 is what values come in, so it can hold all of them.
        Encoding::F32 => true,
        Encoding::F16 => all_finite(Dtype::F16, bytes),
        Encoding::Bf16 => all_finite(Dtype::BF16, bytes),
        _ => bytes
            .par_chunks(encoding.block().bytes)
            .all(|block| encoding.factors().iter().all(|at| largest_exponent(&block[*at..*at + 2], 0x7c00) < 0x7c00)),
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
                assert!(all_finite(Dtype::F32, &encoded(&values)));
                values[index] = bad;
                assert!(!all_finite(Dtype::F32, &encoded(&values)));
            }
            let (halves, brains) = (f16::from_f32(bad).to_le_bytes(), bf16::from_f32(bad).to_le_bytes());
            assert!(!all_finite(Dtype::F16, &[[0, 0], halves].concat()));
            assert!(!all_finite(Dtype::BF16, &[brains, [0, 0]].concat()));
        }
        assert!(all_finite(Dtype::F16, &f16::MAX.to_le_bytes()) && all_finite(Dtype::BF16, &bf16::MIN.to_le_bytes()));
        assert!(all_finite(Dtype::U32, &[255; 8]) && all_finite(Dtype::F32, &[]));
    }
}
