//! Dot products of encoded rows with values, decoded in registers only.
//!
//! Floats are multiplied as they are. Levels are integers: so are the values that they are multiplied with ([`operand::Digits`]), and only
//! scales are floats. Sums are in another order than those of the decoded values.
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

mod blocks;
mod operand;
mod quads;

pub(crate) use operand::Operand;

use self::{
    blocks::{Blocks, GROUPS, Groups, form},
    operand::Digits,
    quads::on_quads,
};
use super::{
    Encoding,
    half::{to_bf16, widen_finite},
};
use crate::{
    precision::Precision,
    simd::{fetch_ahead, settle, simd},
};

impl Encoding {
    /// What rows in this encoding are multiplied with, or `None`: then they have to be decoded. `values` are already in the
    /// precision of the product.
    pub(crate) fn operand(self, values: &[f32], precision: Precision) -> Option<Operand<'_>> {
        match self {
            Self::F16 | Self::Bf16 => Some(Operand::Values(values, precision)),
            // Of weights that must be rounded to bf16, levels don't do.
            _ if precision == Precision::F32 => form(self).map(|form| Operand::Digits(Digits::new(values, form))),
            _ => None,
        }
    }

    /// The dot product of an encoded row with an operand for this encoding.
    pub(crate) fn dot(self, bytes: &[u8], with: &Operand<'_>) -> f32 {
        match with {
            Operand::Digits(with) => on_quads(Blocks { encoding: self, bytes, with }),
            Operand::Values(values, precision) => match (self, precision) {
                (Self::Bf16, _) => simd!(|| plain(bytes, values, |bits| f32::from_bits(u32::from(bits) << 16))),
                (_, Precision::F32) => simd!(|| plain(bytes, values, widen_finite)),
                (_, Precision::Bf16) => simd!(|| plain(bytes, values, |bits| to_bf16(widen_finite(bits)))),
            },
        }
    }
}

/// The same for rows in [`super::q4f16`].
pub(crate) fn q4f16_operand(values: &[f32], precision: Precision) -> Option<Operand<'static>> {
    let digits = || Operand::Digits(Digits::new(values, GROUPS).even_first(GROUPS));
    (precision == Precision::F32).then(digits)
}

/// The dot product of a row in [`super::q4f16`] with an operand for it.
pub(crate) fn q4f16_dot(levels: &[u8], scales: &[u8], with: &Operand<'_>) -> f32 {
    let Operand::Digits(with) = with else { unreachable!("digits for levels") };
    on_quads(Groups { levels, scales, with })
}

/// Sixteen bits for each value.
#[inline(always)]
fn plain(bytes: &[u8], values: &[f32], widen: impl Fn(u16) -> f32) -> f32 {
    // A line of memory at a time.
    const VALUES: usize = 32;
    let mut sums = [0.0; VALUES];
    let ((bytes, last), (values, rest)) = (bytes.as_chunks::<{ 2 * VALUES }>(), values.as_chunks::<VALUES>());
    for (bytes, values) in bytes.iter().zip(values) {
        fetch_ahead(bytes);
        for ((sum, bits), x) in sums.iter_mut().zip(bytes.as_chunks().0).zip(values) {
            *sum += widen(u16::from_le_bytes(*bits)) * x;
        }
    }
    let last = last.as_chunks().0.iter().zip(rest).map(|(bytes, x)| widen(u16::from_le_bytes(*bytes)) * x);
    added(sums) + last.sum::<f32>()
}

/// The sum of all lanes, by halves.
#[inline(always)]
fn added<const LANES: usize>(mut lanes: [f32; LANES]) -> f32 {
    settle(&mut lanes);
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[half + i];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use half::{bf16, f16};

    use super::*;
    use crate::encoding::{Block, q4f16};

    fn noise(i: usize) -> f32 {
        ((i.wrapping_mul(2_654_435_761) >> 7) % 2001) as f32 / 1000.0 - 1.0
    }

    /// Asserts that `found` is the dot product of `decoded` with `values`, but for the rounding of f32 where terms are
    /// added in sixteen lanes.
    fn check(found: f32, decoded: &[f32], values: &[f32], what: &str) {
        let terms = || decoded.iter().zip(values).map(|(a, b)| f64::from(*a) * f64::from(*b));
        let error = (f64::from(found) - terms().sum::<f64>()).abs() / terms().map(f64::abs).sum::<f64>();
        assert!(error < 3e-7, "{what}: {error}");
    }

    /// Of rows with and without values beyond the last sixteen: as the dot product of the decoded values in f64, to f32's rounding.
    #[test]
    fn products_are_those_of_the_decoded_values() {
        for encoding in
            [Encoding::F16, Encoding::Bf16, Encoding::Q4_0, Encoding::Q8_0, Encoding::Q4K, Encoding::Q5K, Encoding::Q6K]
        {
            let block = encoding.block().values;
            // Any number of blocks beyond those that are multiplied side by side.
            for width in (1..=17).map(|blocks| blocks * block).chain([if block == 1 { 1003 } else { 1024 }]) {
                let row: Vec<f32> = (0..width).map(|i| noise(i) * noise(i + 77)).collect();
                let values: Vec<f32> = (0..width).map(|i| noise(3 * i + 5) + 0.5).collect();
                let bytes = encoding.narrow(&row);
                let mut decoded = vec![0.0; width];
                encoding.widen(&bytes, &mut decoded);
                let found = encoding.dot(&bytes, &encoding.operand(&values, Precision::F32).unwrap());
                check(found, &decoded, &values, &format!("{encoding:?}, {width}"));
            }
        }
    }

    /// The last group of a row may be shorter.
    #[test]
    fn products_of_groups_are_those_of_the_decoded_values() {
        for width in (32..=544).step_by(32).chain([1024, 80, 4304]) {
            let row: Vec<f32> = (0..width).map(|i| noise(i) * noise(i + 77)).collect();
            let values: Vec<f32> = (0..width).map(|i| noise(3 * i + 5) + 0.5).collect();
            let (levels, scales) = q4f16::narrow(&row, width);
            let mut decoded = vec![0.0; width];
            q4f16::widen(&levels, &scales, width, 0, &mut decoded);
            let found = q4f16_dot(&levels, &scales, &q4f16_operand(&values, Precision::F32).unwrap());
            check(found, &decoded, &values, &format!("{width}"));
        }
    }

    /// With the largest levels and scales, too, sums of integers don't overflow.
    #[test]
    fn the_largest_sums_are_right() {
        for encoding in [Encoding::Q4K, Encoding::Q5K, Encoding::Q6K, Encoding::Q8_0, Encoding::Q4_0] {
            let Block { values: width, bytes } = encoding.block();
            for fill in [1, 0x7f, 0x80, 0xff] {
                let mut bytes = vec![fill; bytes];
                for at in encoding.factors() {
                    bytes[*at..at + 2].copy_from_slice(&f16::ONE.to_le_bytes());
                }
                let mut decoded = vec![0.0; width];
                encoding.widen(&bytes, &mut decoded);
                let values = vec![-3.0; width];
                let found = encoding.dot(&bytes, &encoding.operand(&values, Precision::F32).unwrap());
                // Mins are subtracted from sums that may be ten times as large as what is left.
                check(found, &decoded, &values, &format!("{encoding:?} of {fill:x}"));
            }
        }
    }

    /// All levels of `q6_K` are -32, and all scales -128.
    #[test]
    fn the_largest_weights_are_right() {
        let Block { values: width, bytes } = Encoding::Q6K.block();
        let mut row = vec![0; bytes];
        row[width * 3 / 4..][..width / 16].fill(0x80);
        row[Encoding::Q6K.factors()[0]..].copy_from_slice(&f16::ONE.to_le_bytes());
        let (mut decoded, values) = (vec![0.0; width], vec![1.0; width]);
        Encoding::Q6K.widen(&row, &mut decoded);
        assert_eq!(decoded, vec![4096.0; width]);
        let found = Encoding::Q6K.dot(&row, &Encoding::Q6K.operand(&values, Precision::F32).unwrap());
        check(found, &decoded, &values, "the largest");
    }

    /// Weights in f16 are rounded to bf16, where that is the precision; bf16 already is.
    #[test]
    fn floats_are_rounded_to_the_precision() {
        let row: Vec<f32> = (0..64).map(noise).collect();
        let values = vec![1.0; 64];
        for encoding in [Encoding::F16, Encoding::Bf16] {
            let bytes = encoding.narrow(&row);
            let mut decoded = vec![0.0; 64];
            encoding.widen(&bytes, &mut decoded);
            for value in &mut decoded {
                *value = bf16::from_f32(*value).to_f32();
            }
            let found = encoding.dot(&bytes, &encoding.operand(&values, Precision::Bf16).unwrap());
            check(found, &decoded, &values, &format!("{encoding:?}"));
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let mut values = vec![1.0; 256];
        values[100] = f32::NAN;
        for encoding in [Encoding::F16, Encoding::Q4_0, Encoding::Q4K] {
            let bytes = encoding.narrow(&[0.5; 256]);
            let found = encoding.dot(&bytes, &encoding.operand(&values, Precision::F32).unwrap());
            assert!(found.is_nan(), "{encoding:?}: {found}");
        }
    }
}
