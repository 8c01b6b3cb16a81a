//! Encodings of numbers in files: block sizes, dequantization or conversion to f32 (`widen`) and from f32 (`narrow`).
//! Independent of file formats, names and shapes.
//!
//! Formulas: f16 and bf16 in `half`, ggml's blocks in `ggml` and `kquants`, MLC's 4-bit weights in [`q4f16`]. The last is not an
//! [`Encoding`], because it stores levels and scales in two tensors.

mod dot;
mod ggml;
mod half;
mod kquants;
pub mod q4f16;
mod search;

pub(crate) use dot::{Operand, q4f16_dot, q4f16_operand};
pub(crate) use half::{bf16_bits, to_bf16};

/// An encoding of consecutive values, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// 32-bit floats.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// ggml: 4 bits with a scale per block, `(q - 8) * d`.
    Q4_0,
    /// ggml: 4 bits with scale and minimum per block, `q * d + m`.
    Q4_1,
    /// ggml: 5 bits with a scale per block, `(q - 16) * d`.
    Q5_0,
    /// ggml: 5 bits with scale and minimum per block, `q * d + m`.
    Q5_1,
    /// ggml: 8 bits with a scale per block, `q * d`.
    Q8_0,
    /// ggml: 4 bits with scale and minimum per 32 values of a block of 256.
    Q4K,
    /// ggml: 5 bits with scale and minimum per 32 values of a block of 256.
    Q5K,
    /// ggml: 6 bits with a scale per 16 values of a block of 256.
    Q6K,
}

/// The size of the smallest unit that is encoded together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Number of values.
    pub values: usize,
    /// Number of bytes.
    pub bytes: usize,
}

impl Encoding {
    /// The smallest unit of the encoding: one value, or one block with a common scale.
    pub const fn block(self) -> Block {
        match self {
            Self::F32 => Block { values: 1, bytes: 4 },
            Self::F16 | Self::Bf16 => Block { values: 1, bytes: 2 },
            Self::Q4_0 => Block { values: ggml::BLOCK, bytes: ggml::Q4_0_BYTES },
            Self::Q4_1 => Block { values: ggml::BLOCK, bytes: ggml::Q4_1_BYTES },
            Self::Q5_0 => Block { values: ggml::BLOCK, bytes: ggml::Q5_0_BYTES },
            Self::Q5_1 => Block { values: ggml::BLOCK, bytes: ggml::Q5_1_BYTES },
            Self::Q8_0 => Block { values: ggml::BLOCK, bytes: ggml::Q8_0_BYTES },
            Self::Q4K => Block { values: kquants::BLOCK, bytes: kquants::Q4_BYTES },
            Self::Q5K => Block { values: kquants::BLOCK, bytes: kquants::Q5_BYTES },
            Self::Q6K => Block { values: kquants::BLOCK, bytes: kquants::Q6_BYTES },
        }
    }

    /// Where the f16 factors of a block are, in bytes from its beginning.
    pub(crate) const fn factors(self) -> &'static [usize] {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => &[],
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q6K => &[kquants::Q6_FACTOR],
        }
    }

    /// Size of `count` values in bytes; `None` if they do not fill whole blocks or the size overflows.
    pub fn bytes(self, count: usize) -> Option<usize> {
        let block = self.block();
        count.is_multiple_of(block.values).then(|| (count / block.values).checked_mul(block.bytes))?
    }

    /// Decodes `to.len()` values, which must be finite and fill whole blocks.
    pub fn widen(self, bytes: &[u8], to: &mut [f32]) {
        match self {
            Self::F32 => {
                for (to, bytes) in to.iter_mut().zip(bytes.as_chunks().0) {
                    *to = f32::from_le_bytes(*bytes);
                }
            }
            Self::F16 => half::widen_f16(bytes, to),
            Self::Bf16 => half::widen_bf16(bytes, to),
            Self::Q4_0 => ggml::widen_q4_0(bytes, to),
            Self::Q4_1 => ggml::widen_q4_1(bytes, to),
            Self::Q5_0 => ggml::widen_q5_0(bytes, to),
            Self::Q5_1 => ggml::widen_q5_1(bytes, to),
            Self::Q8_0 => ggml::widen_q8_0(bytes, to),
            Self::Q4K => kquants::widen_q4(bytes, to),
            Self::Q5K => kquants::widen_q5(bytes, to),
            Self::Q6K => kquants::widen_q6(bytes, to),
        }
    }

    /// Encodes values, which must fill whole blocks. Serial: who has much to write encodes pieces of it on all cores.
    pub fn narrow(self, values: &[f32]) -> Vec<u8> {
        self.narrow_calibrated(values, None)
    }

    /// Encodes rows of values with the least error in those that matter most. `importance` has a number for each value of a row, that of
    /// a weight being the mean square of the input that it is multiplied with; ggml's blocks of 4, 5 and 6 bits per weight with a search
    /// for their scales heed it (`q4_0`, `q4_K`, `q5_K`, `q6_K`), other encodings don't.
    pub fn narrow_calibrated(self, values: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
        let block = self.block();
        let mut bytes = vec![0; values.len() / block.values * block.bytes];
        let to = bytes.as_mut_slice();
        match self {
            Self::F32 => {
                for (to, value) in to.as_chunks_mut().0.iter_mut().zip(values) {
                    *to = value.to_le_bytes();
                }
            }
            Self::F16 => half::narrow_f16(values, to),
            Self::Bf16 => half::narrow_bf16(values, to),
            Self::Q4_0 => ggml::narrow_q4_0(values, to, importance),
            Self::Q4_1 => ggml::narrow_q4_1(values, to),
            Self::Q5_0 => ggml::narrow_q5_0(values, to),
            Self::Q5_1 => ggml::narrow_q5_1(values, to),
            Self::Q8_0 => ggml::narrow_q8_0(values, to),
            Self::Q4K => kquants::narrow_q4(values, to, importance),
            Self::Q5K => kquants::narrow_q5(values, to, importance),
            Self::Q6K => kquants::narrow_q6(values, to, importance),
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With more than one chunk, the last of which is not full.
    #[test]
    fn values_round_trip_within_tolerance() {
        // Multiples of 1/8 up to 15/8, which are exact in the encodings without a scale.
        let values: Vec<f32> = (0..(1 << 14) + 256).map(|i| ((i * 7) % 31) as f32 / 8.0 - 15.0 / 8.0).collect();
        for (encoding, tolerance) in [
            (Encoding::F32, 0.0),
            (Encoding::F16, 0.0),
            (Encoding::Bf16, 0.0),
            (Encoding::Q4_0, 15.0 / 8.0 / 8.0),
            (Encoding::Q4_1, 30.0 / 8.0 / 30.0 * 1.01),
            (Encoding::Q5_0, 15.0 / 8.0 / 16.0),
            (Encoding::Q5_1, 30.0 / 8.0 / 62.0 * 1.01),
            (Encoding::Q8_0, 15.0 / 8.0 / 254.0 * 1.01),
            // Half a level, and what scales of 6 and 7 bits add.
            (Encoding::Q4K, 30.0 / 8.0 / 30.0 * 1.3),
            (Encoding::Q5K, 30.0 / 8.0 / 62.0 * 1.6),
            (Encoding::Q6K, 15.0 / 8.0 / 64.0 * 1.3),
        ] {
            let bytes = encoding.narrow(&values);
            assert_eq!(Some(bytes.len()), encoding.bytes(values.len()), "{encoding:?}");
            let mut decoded = vec![f32::NAN; values.len()];
            encoding.widen(&bytes, &mut decoded);
            let worst = values.iter().zip(&decoded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance && decoded.iter().all(|value| value.is_finite()), "{encoding:?}: {worst}");
            assert_eq!(encoding.narrow(&decoded).len(), bytes.len());
        }
    }

    /// The error in what a layer puts out, if its inputs are as large as `importance` says, gets smaller. Weights are drawn as those of
    /// trained layers are: near zero, with a few that are large.
    #[test]
    fn calibration_lowers_the_error_that_matters() {
        const WIDTH: usize = 512;
        let noise = |i: usize| ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0;
        let values: Vec<f32> = (0..16 * WIDTH).map(|i| noise(i) * noise(i + 77) * noise(3 * i + 5)).collect();
        let importance: Vec<f32> = (0..WIDTH).map(|column| noise(column * 31).powi(4) + 0.01).collect();
        let error = |decoded: &[f32]| -> f32 {
            let columns = importance.iter().cycle();
            values.iter().zip(decoded).zip(columns).map(|((a, b), weight)| weight * (a - b).powi(2)).sum()
        };
        let ggml = |encoding: Encoding, importance: Option<&[f32]>| {
            let mut decoded = vec![0.0; values.len()];
            encoding.widen(&encoding.narrow_calibrated(&values, importance), &mut decoded);
            error(&decoded)
        };
        let mlc = |importance: Option<&[f32]>| {
            let (levels, scales) = q4f16::narrow_calibrated(&values, WIDTH, importance);
            let mut decoded = vec![0.0; values.len()];
            q4f16::widen(&levels, &scales, WIDTH, 0, &mut decoded);
            error(&decoded)
        };
        for encoding in [Encoding::Q4_0, Encoding::Q4K, Encoding::Q5K, Encoding::Q6K] {
            let (plain, calibrated) = (ggml(encoding, None), ggml(encoding, Some(&importance)));
            assert!(calibrated < 0.95 * plain, "{encoding:?}: {plain} and {calibrated}");
        }
        assert!(mlc(Some(&importance)) < 0.95 * mlc(None), "{} and {}", mlc(None), mlc(Some(&importance)));
    }

    #[test]
    fn sizes_are_of_whole_blocks() {
        assert_eq!(Encoding::Q4_0.bytes(64), Some(36));
        assert_eq!(Encoding::Q8_0.bytes(33), None);
        assert_eq!(Encoding::F32.bytes(usize::MAX), None, "the size overflows");
    }
}
