//! What the rows of an encoded weight are multiplied with.

use super::pairs::WORDS;
use crate::{precision::Precision, simd::simd};

/// What many rows are multiplied with.
#[derive(Clone, Debug)]
pub(crate) enum Operand<'a> {
    /// Values in this precision, for rows of floats.
    Values(&'a [f32], Precision),
    /// Values as integers, for rows of levels.
    Words(Words),
}

/// Values in blocks, as integers with a common scale: `value = scale * (high + FINE * low)`, two words of 16 bits each. The largest of a
/// block is `scale * 32,767`. Beyond the rounding of a division in f32, errors are at most 2^-31 of the largest, which to values down to
/// 2^-7 of it is no more than f32's.
#[derive(Clone, Debug)]
pub(crate) struct Words {
    /// Whole blocks, filled up with zeros.
    pub(super) parts: Vec<Part>,
    /// The sums of the parts' words.
    pub(super) sums: Vec<[i32; 2]>,
    /// One of each block; NaN if not all of its values are finite, so that what is computed with it is NaN, too.
    pub(super) scales: Vec<f32>,
}

/// High and low words of consecutive values.
pub(super) type Part = [[i16; WORDS]; 2];

/// The largest magnitude of a high word. With it no sum of [`super::blocks`] exceeds 31 bits: the largest products are those of `q6_K`,
/// 32 * 128 * 32,767 for each of 16 values of a block that are added up in one place, which is 65,536 less than 2^31.
const MOST: f32 = 32_767.0;
/// What a low word counts: with it, they are at most half as large as high ones.
pub(super) const FINE: f32 = 1.0 / 32_768.0;

impl Words {
    /// Blocks of `block` values, a multiple of [`WORDS`].
    pub(super) fn new(values: &[f32], block: usize) -> Self {
        let mut parts = vec![[[0; WORDS]; 2]; values.len().next_multiple_of(block) / WORDS];
        let blocks = parts.chunks_mut(block / WORDS).zip(values.chunks(block));
        let scales = blocks.map(|(parts, values)| split(values, parts)).collect();
        let sum = |words: &[i16; WORDS]| words.iter().map(|word| i32::from(*word)).sum();
        let sums = parts.iter().map(|[high, low]| [sum(high), sum(low)]).collect();
        Self { parts, sums, scales }
    }

    /// The same with each part in another order: values at even places first.
    pub(super) fn even_first(mut self) -> Self {
        for words in self.parts.as_flattened_mut() {
            let in_order = *words;
            let (even, odd) = words.split_at_mut(WORDS / 2);
            for (pair, (even, odd)) in in_order.as_chunks::<2>().0.iter().zip(even.iter_mut().zip(odd)) {
                [*even, *odd] = *pair;
            }
        }
        self
    }
}

/// Turns a block into words and returns their scale.
fn split(values: &[f32], parts: &mut [Part]) -> f32 {
    if !values.iter().all(|value| value.is_finite()) {
        return f32::NAN;
    }
    let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
    let scale = largest / MOST;
    // Otherwise all values are so small that no scale tells them apart.
    if scale >= f32::MIN_POSITIVE {
        simd!(|| {
            for ([high, low], values) in parts.iter_mut().zip(values.chunks(WORDS)) {
                for ((high, low), value) in high.iter_mut().zip(low).zip(values) {
                    let exact = value / scale;
                    let (rounded, word) = nearest(exact);
                    *high = word;
                    *low = nearest((exact - rounded) / FINE).1;
                }
            }
        });
    }
    scale
}

/// The nearest integer, as a float and as a word.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
fn nearest(value: f32) -> (f32, i16) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, which then stands in the lowest bits
    let sum = value + ROUND;
    (sum - ROUND, sum.to_bits() as i16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_values_to_the_precision_of_f32() {
        let mut values: Vec<f32> = (0..300_i16).map(|i| (f32::from(i) * 0.37).sin() * 3.0).collect();
        values[7] = -5.0;
        let operand = Words::new(&values, 256);
        assert_eq!((operand.parts.len(), operand.scales.len(), operand.sums.len()), (16, 2, 16));
        assert_eq!(operand.parts[0].map(|words| words[7]), [-32_767, 0]);
        let word = |part: &Part, i: usize| f64::from(part[0][i]) + f64::from(part[1][i]) * f64::from(FINE);
        for (i, value) in values.iter().enumerate() {
            let found = word(&operand.parts[i / WORDS], i % WORDS) * f64::from(operand.scales[i / 256]);
            // Half a low word, and the rounding of the quotient and of the scale.
            let tolerance = 5.0 * f64::powi(2.0, -31) + f64::from(value.abs()) * f64::powi(2.0, -23);
            assert!((found - f64::from(*value)).abs() <= tolerance, "value {i}: {found} is not {value}");
        }
        for part in 0..2 {
            let sum = operand.parts[1][part].iter().map(|word| i32::from(*word)).sum::<i32>();
            assert_eq!(operand.sums[1][part], sum);
        }
        let reordered = operand.clone().even_first();
        for part in 0..2 {
            let (from, to) = (operand.parts[1][part], reordered.parts[1][part]);
            assert_eq!(to[..2], [from[0], from[2]]);
            assert_eq!(to[16..18], [from[1], from[3]]);
        }
    }

    #[test]
    fn values_without_a_scale() {
        assert_eq!(Words::new(&[0.0; 32], 32).scales, [0.0]);
        assert_eq!(Words::new(&[1e-44; 32], 32).sums, [[0; 2]]);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = [1.0; 64];
            values[40] = odd;
            let scales = Words::new(&values, 32).scales;
            assert!(scales[0] > 0.0 && scales[1].is_nan(), "{odd}: {scales:?}");
        }
    }
}
