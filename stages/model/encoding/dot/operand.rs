//! What the rows of an encoded weight are multiplied with.

use super::quads::{LEVELS, SUMS};
use crate::{encoding::search::lanes, precision::Precision, simd::simd};

/// What many rows are multiplied with.
#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    /// Values in this precision, for rows of floats.
    Values(&'a [f32], Precision),
    /// Values as integers, for rows of levels.
    Digits(Digits),
}

/// Digits of a value.
const COUNT: usize = 3;
/// Values per sum that mins are multiplied with.
pub(super) const PART: usize = 32;

/// How levels are stored, which bounds the digits that they are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// What stands for zero: levels are stored without a sign.
    pub(super) zero: u8,
    /// Levels per scale of the values: a block.
    pub(super) block: usize,
    /// Bits of a digit.
    pub(super) bits: u32,
}

impl Form {
    /// Levels of up to six bits with digits of eight: two products are at most 2 * 63 * 128, which 16 bits hold, and the sum of four values
    /// 4 * 63 * 8,355,711, which 31 bits hold.
    pub(super) const fn narrow(zero: u8, block: usize) -> Self {
        Self { zero, block, bits: 8 }
    }

    /// Levels of eight bits with digits of seven: at most 2 * 255 * 64, and 4 * 255 * 1,040,319.
    pub(super) const fn wide(zero: u8, block: usize) -> Self {
        Self { zero, block, bits: 7 }
    }

    /// The largest magnitude of a value as an integer: all digits are the largest.
    const fn most(self) -> i32 {
        let base = 1 << self.bits;
        (base / 2 - 1) * (base * base + base + 1)
    }
}

/// Values in blocks, as integers with a common scale, in digits with a sign: `value = scale * (digits[0] * base^2 + digits[1] * base +
/// digits[2])`. The largest of a block has 23 bits (20 with levels of eight bits), so an error is at most about 2^-24 (2^-21) of it, where f32's
/// rounding is 2^-24 of each value. llama.cpp takes one digit of eight bits.
#[derive(Clone, Debug)]
pub(crate) struct Digits {
    /// Whole blocks, and whole parts, filled up with zeros.
    pub(super) parts: Vec<Part>,
    /// The sums of each [`PART`] values as integers.
    pub(super) sums: Vec<f32>,
    /// One of each block; NaN if not all of its values are finite, so that what is computed with it is NaN, too.
    pub(super) scales: Vec<f32>,
}

/// What [`LEVELS`] levels are multiplied with.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// The highest digits of all values, then the others.
    pub(super) digits: [[i8; LEVELS]; COUNT],
    /// For each sum of four products, what it has too much because levels have no sign.
    pub(super) excess: [i32; SUMS],
}

impl Digits {
    pub(super) fn new(values: &[f32], form: Form) -> Self {
        let mut integers = vec![0; values.len().next_multiple_of(form.block).next_multiple_of(LEVELS)];
        let blocks = integers.chunks_mut(form.block).zip(values.chunks(form.block));
        let scales = blocks.map(|(integers, values)| split(values, form.most(), integers)).collect();
        let sums = integers.chunks(PART).map(|part| part.iter().sum::<i32>() as f32).collect();
        let parts = integers.as_chunks::<LEVELS>().0.iter().map(|integers| part(integers, form)).collect();
        Self { parts, sums, scales }
    }

    /// The same with the digits of each [`PART`] values in another order: values at even places first.
    pub(super) fn even_first(mut self, form: Form) -> Self {
        for part in &mut self.parts {
            for digits in part.digits.iter_mut().flat_map(|digits| digits.as_chunks_mut::<PART>().0) {
                let in_order = *digits;
                *digits = lanes(|i| in_order[if i < PART / 2 { 2 * i } else { 2 * i + 1 - PART }]);
            }
            part.excess = excess(&part.digits, form);
        }
        self
    }
}

/// Turns a block into integers of at most `most` and returns their scale.
fn split(values: &[f32], most: i32, integers: &mut [i32]) -> f32 {
    // Adding it rounds to an integer, which then stands in the lowest bits.
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    if !values.iter().all(|value| value.is_finite()) {
        return f32::NAN;
    }
    let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let scale = largest / most as f32;
    // Otherwise all values are so small that no scale tells them apart.
    if scale >= f32::MIN_POSITIVE {
        let scale = f64::from(scale);
        simd!(|| {
            for (integer, value) in integers.iter_mut().zip(values) {
                let nearest = (f64::from(*value) / scale + ROUND).to_bits() as i32;
                // The scale is rounded, so the largest may be one too large.
                *integer = nearest.clamp(-most, most);
            }
        });
    }
    scale
}

fn part(integers: &[i32; LEVELS], form: Form) -> Part {
    let (mut rest, half) = (*integers, 1 << (form.bits - 1));
    let mut digits = [[0; LEVELS]; COUNT];
    for digits in digits.iter_mut().rev() {
        for (digit, rest) in digits.iter_mut().zip(&mut rest) {
            let lowest = ((*rest + half) & (2 * half - 1)) - half;
            *digit = lowest as i8;
            *rest = (*rest - lowest) >> form.bits;
        }
    }
    Part { digits, excess: excess(&digits, form) }
}

fn excess(digits: &[[i8; LEVELS]; COUNT], form: Form) -> [i32; SUMS] {
    let value = |i: usize| digits.iter().fold(0, |value, digits| (value << form.bits) + i32::from(digits[i]));
    lanes(|sum| i32::from(form.zero) * (4 * sum..4 * sum + 4).map(value).sum::<i32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that digits stand for, as an integer.
    fn integer(digits: &Digits, form: Form, i: usize) -> i32 {
        let of_value = digits.parts[i / LEVELS].digits.map(|digits| i32::from(digits[i % LEVELS]));
        of_value.into_iter().fold(0, |value, digit| (value << form.bits) + digit)
    }

    #[test]
    fn digits_are_values_to_a_fraction_of_the_largest() {
        let mut values: Vec<f32> = (0..300_i16).map(|i| (f32::from(i) * 0.37).sin() * 3.0).collect();
        values[7] = -5.0;
        for (form, most) in [(Form::narrow(8, 256), 8_355_711), (Form::wide(128, 32), 1_040_319)] {
            assert_eq!(form.most(), most);
            let operand = Digits::new(&values, form);
            let whole = 300_usize.next_multiple_of(form.block).next_multiple_of(LEVELS);
            assert_eq!((operand.parts.len(), operand.sums.len()), (whole / LEVELS, whole / PART));
            assert_eq!(operand.scales.len(), 300_usize.div_ceil(form.block));
            assert_eq!(integer(&operand, form, 7), -most);
            for (i, value) in values.iter().enumerate() {
                let scale = operand.scales[i / form.block];
                let found = f64::from(integer(&operand, form, i)) * f64::from(scale);
                // Half a unit, and the rounding of the scale.
                let tolerance = f64::from(scale) / 2.0 + f64::from(value.abs()) * f64::powi(2.0, -24);
                assert!((found - f64::from(*value)).abs() <= tolerance, "value {i}: {found} is not {value}");
            }
            let part: Vec<i32> = (32..64).map(|i| integer(&operand, form, i)).collect();
            assert_eq!(operand.sums[1].to_string(), (part.iter().sum::<i32>() as f32).to_string());
            let quad = part[4..8].iter().sum::<i32>();
            assert_eq!(operand.parts[0].excess[9], i32::from(form.zero) * quad);
            let reordered = operand.clone().even_first(form);
            let places: Vec<i32> = [0, 1, 15, 16, 17, 31].map(|i| integer(&reordered, form, 32 + i)).to_vec();
            assert_eq!(places, [0, 2, 30, 1, 3, 31].map(|i| part[i]));
            let even: i32 = [0, 2, 4, 6].map(|i| part[i]).iter().sum();
            assert_eq!(reordered.parts[0].excess[8], i32::from(form.zero) * even);
        }
    }

    #[test]
    fn values_without_a_scale() {
        let form = Form::narrow(8, 32);
        assert_eq!(Digits::new(&[0.0; 32], form).scales, [0.0]);
        assert_eq!(Digits::new(&[1e-44; 32], form).sums, [0.0; 2]);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 64];
            values[40] = odd;
            let scales = Digits::new(&values, form).scales;
            assert!(scales[0] > 0.0 && scales[1].is_nan(), "{odd}: {scales:?}");
        }
    }
}
