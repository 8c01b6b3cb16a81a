//! Encodes values as K-quants. Source: ggml's `ggml-quants.c`, `quantize_row_*_K_ref`.
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

use half::f16;

use super::{
    BLOCK, FACTOR, HEAD, PART, PARTS, Parts, Q4_BYTES, Q5_BYTES, Q6_BYTES, Q6_FACTOR, Q6_PART, Q6_PARTS, q6_places,
};
use crate::{
    encoding::search::{TINY, columns, each, importance_weights, lanes, side_by_side, symmetric},
    simd::simd,
};

pub(in crate::encoding) fn narrow_q4(values: &[f32], to: &mut [u8], importance: Option<&[f32]>) {
    let plain = Search { levels: 15, first: -1.0, step: 0.1, steps: 20 };
    narrow_with_mins::<Q4_BYTES>(values, to, &plain, importance);
}

pub(in crate::encoding) fn narrow_q5(values: &[f32], to: &mut [u8], importance: Option<&[f32]>) {
    let plain = Search { levels: 31, first: -0.5, step: 0.1, steps: 15 };
    narrow_with_mins::<Q5_BYTES>(values, to, &plain, importance);
}

fn narrow_with_mins<const BYTES: usize>(values: &[f32], to: &mut [u8], plain: &Search, importance: Option<&[f32]>) {
    // With weights that say more, ggml looks closer.
    let search = &importance.map_or(*plain, |_| Search { first: -0.9, step: 0.05, steps: 36, ..*plain });
    let blocks = values.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<BYTES>().0);
    for (index, (values, bytes)) in blocks.enumerate() {
        simd!(|| narrow_block_with_mins(values, bytes, search, columns(importance, index)));
    }
}

fn put(to: &mut [u8], value: f32) -> f32 {
    let rounded = f16::from_f32(value);
    to.copy_from_slice(&rounded.to_le_bytes());
    rounded.to_f32()
}

fn put_scale_and_min(bytes: &mut [u8], part: usize, scale: u8, min: u8) {
    if part < 4 {
        bytes[part] |= scale;
        bytes[part + 4] |= min;
    } else {
        bytes[part + 4] = (scale & 15) | ((min & 15) << 4);
        bytes[part - 4] |= (scale >> 4) << 6;
        bytes[part] |= (min >> 4) << 6;
    }
}

#[inline(always)]
fn narrow_block_with_mins<const BYTES: usize>(
    values: &[f32; BLOCK],
    bytes: &mut [u8; BYTES],
    search: &Search,
    importance: Option<&[f32; BLOCK]>,
) {
    bytes.fill(0);
    let across = side_by_side(parts(values));
    let weights = importance.map_or_else(
        || magnitudes(&across),
        |importance| {
            let mean_square = values.iter().map(|x| x * x).sum::<f32>() / BLOCK as f32;
            side_by_side(parts(&importance_weights(values, importance, 2.0 * mean_square)))
        },
    );
    let (searched, scales, mins) = search.best(&across, &weights);
    let largest = |values: &[f32]| values.iter().copied().fold(0.0, f32::max);
    let (most, deepest) = (largest(&scales), largest(&mins));
    let (d, m) = (put(&mut bytes[..FACTOR], most / 63.0), put(&mut bytes[FACTOR..2 * FACTOR], deepest / 63.0));
    let sixth = |value: f32, largest: f32| {
        let inverse = if largest > 0.0 { 63.0 / largest } else { 0.0 };
        (inverse * value).round_ties_even().clamp(0.0, 63.0) as u8
    };
    let mut levels = [[0_u8; PART]; PARTS];
    for (part, (values, levels)) in parts::<f32, PART, PARTS>(values).iter().zip(&mut levels).enumerate() {
        let (scale, min) = (sixth(scales[part], most), sixth(mins[part], deepest));
        put_scale_and_min(&mut bytes[2 * FACTOR..HEAD], part, scale, min);
        let (scale, min) = (d * f32::from(scale), m * f32::from(min));
        for (i, level) in levels.iter_mut().enumerate() {
            let found = if scale == 0.0 { searched[i][part] } else { search.clamp((values[i] + min) / scale) };
            *level = byte(found);
        }
    }
    let (upper, nibbles) = bytes[HEAD..].split_at_mut(BYTES - Q4_BYTES);
    for (part, levels) in levels.iter().enumerate() {
        for (index, level) in levels.iter().enumerate() {
            nibbles[part / 2 * PART + index] |= (level & 15) << (part % 2 * 4);
            if let Some(upper) = upper.get_mut(index) {
                *upper |= (level >> 4) << part;
            }
        }
    }
}

fn parts<T, const N: usize, const L: usize>(values: &[T; BLOCK]) -> &[[T; N]; L] {
    const { assert!(N * L == BLOCK) };
    // The sizes agree, so that there is a first.
    values.as_chunks().0.first_chunk().unwrap_or_else(|| unreachable!())
}

/// Without calibration, larger values weigh more.
#[inline(always)]
fn magnitudes(values: &[Parts; PART]) -> [Parts; PART] {
    let mut squares = [0.0_f32; PARTS];
    for x in values {
        for (square, x) in squares.iter_mut().zip(x) {
            *square += x * x;
        }
    }
    let averages = squares.map(|sum| (sum / PART as f32).sqrt());
    each(values, |i, x| averages[i] + x.abs())
}

/// A level as an integer, which it is: saturation would cost time.
#[inline(always)]
fn byte(level: f32) -> u8 {
    level as i32 as u8
}

/// The search for the scale and min of a part that have the least weighted squared error.
#[derive(Clone, Copy)]
struct Search {
    /// The largest level.
    levels: i32,
    /// The first number of levels that is tried, relative to `levels`; the next ones are `step` more each.
    first: f32,
    step: f32,
    steps: usize,
}

impl Search {
    #[inline(always)]
    fn clamp(&self, level: f32) -> f32 {
        level.round_ties_even().clamp(0.0, self.levels as f32)
    }

    /// The levels of all parts [`side_by_side`], their scales, and their mins (which are subtracted).
    #[inline(always)]
    fn best(&self, values: &[Parts; PART], weights: &[Parts; PART]) -> ([Parts; PART], Parts, Parts) {
        let (mut least, mut most) = ([0.0_f32; PARTS], [f32::NEG_INFINITY; PARTS]);
        let (mut sum_w, mut sum_x) = ([0.0_f32; PARTS], [0.0_f32; PARTS]);
        for (x, weight) in values.iter().zip(weights) {
            for i in 0..PARTS {
                least[i] = least[i].min(x[i]);
                most[i] = most[i].max(x[i]);
                sum_w[i] += weight[i];
                sum_x[i] += weight[i] * x[i];
            }
        }
        let span: Parts = lanes(|i| self.levels as f32 / (most[i] - least[i]));
        let (mut scale, mut min) = (lanes(|i| 1.0 / span[i]), least);
        let mut found = Levels { inverse: span, from: least };
        let mut error = weighted_error(values, weights, &self.round(values, &found), &scale, &min);
        for step in 0..=self.steps {
            // From the best min so far, as in ggml.
            let count = self.first + self.step * step as f32 + self.levels as f32;
            let tried = Levels { inverse: lanes(|i| count / (most[i] - min[i])), from: min };
            let levels = self.round(values, &tried);
            let (determinant, this_scale, this_min) = fit(values, weights, &levels, &sum_w, &sum_x);
            let this_error = weighted_error(values, weights, &levels, &this_scale, &this_min);
            for i in 0..PARTS {
                let better = determinant[i] > 0.0 && this_error[i] < error[i];
                let choose = |this: f32, best: f32| if better { this } else { best };
                error[i] = choose(this_error[i], error[i]);
                scale[i] = choose(this_scale[i], scale[i]);
                min[i] = choose(this_min[i], min[i]);
                found.inverse[i] = choose(tried.inverse[i], found.inverse[i]);
                found.from[i] = choose(tried.from[i], found.from[i]);
            }
        }
        // A part of one value, which is not above zero, has no scale.
        let flat = |i: usize| most[i] <= least[i];
        let levels = each(&self.round(values, &found), |i, level| if flat(i) { 0.0 } else { level });
        let scale = lanes(|i| if flat(i) { 0.0 } else { scale[i] });
        (levels, scale, lanes(|i| if flat(i) { -least[i] } else { -min[i] }))
    }

    #[inline(always)]
    fn round(&self, values: &[Parts; PART], of: &Levels) -> [Parts; PART] {
        each(values, |i, x| self.clamp(of.inverse[i] * (x - of.from[i])))
    }
}

/// Least squares in scale and min for given levels: the determinant, which is positive where there is a solution, scale and min.
/// `sum_w` has the sum of the weights, `sum_x` that of the weighted values.
#[inline(always)]
fn fit(
    values: &[Parts; PART],
    weights: &[Parts; PART],
    levels: &[Parts; PART],
    sum_w: &Parts,
    sum_x: &Parts,
) -> (Parts, Parts, Parts) {
    let (mut sum_l, mut sum_ll, mut sum_xl) = ([0.0; PARTS], [0.0; PARTS], [0.0; PARTS]);
    for ((level, x), weight) in levels.iter().zip(values).zip(weights) {
        for i in 0..PARTS {
            sum_l[i] += weight[i] * level[i];
            sum_ll[i] += weight[i] * level[i] * level[i];
            sum_xl[i] += weight[i] * level[i] * x[i];
        }
    }
    let determinant: Parts = lanes(|i| sum_w[i] * sum_ll[i] - sum_l[i] * sum_l[i]);
    let min: Parts = lanes(|i| (sum_ll[i] * sum_x[i] - sum_l[i] * sum_xl[i]) / determinant[i]);
    let scale = lanes(|i| {
        let with_min = (sum_w[i] * sum_xl[i] - sum_x[i] * sum_l[i]) / determinant[i];
        if min[i] > 0.0 { sum_xl[i] / sum_ll[i] } else { with_min }
    });
    (determinant, scale, min.map(|min| if min > 0.0 { 0.0 } else { min }))
}

/// The level of `x` is `inverse * (x - from)`, rounded.
struct Levels {
    inverse: Parts,
    from: Parts,
}

#[inline(always)]
fn weighted_error(
    values: &[Parts; PART],
    weights: &[Parts; PART],
    levels: &[Parts; PART],
    scale: &Parts,
    min: &Parts,
) -> Parts {
    let mut error = [0.0_f32; PARTS];
    for ((x, weight), level) in values.iter().zip(weights).zip(levels) {
        for i in 0..PARTS {
            let difference = scale[i] * level[i] + min[i] - x[i];
            error[i] += weight[i] * (difference * difference);
        }
    }
    error
}

pub(in crate::encoding) fn narrow_q6(values: &[f32], to: &mut [u8], importance: Option<&[f32]>) {
    let blocks = values.as_chunks::<BLOCK>().0.iter().zip(to.as_chunks_mut::<Q6_BYTES>().0);
    for (index, (values, bytes)) in blocks.enumerate() {
        // Without calibration, larger values weigh more.
        let weights = columns(importance, index).copied().unwrap_or_else(|| values.map(|x| x * x));
        simd!(|| narrow_block_q6(values, bytes, &weights));
    }
}

#[inline(always)]
fn narrow_block_q6(values: &[f32; BLOCK], bytes: &mut [u8; Q6_BYTES], weights: &[f32; BLOCK]) {
    bytes.fill(0);
    let (searched, scales) =
        symmetric(&side_by_side::<Q6_PART, Q6_PARTS>(parts(values)), &side_by_side(parts(weights)), 32.0, 31.0);
    let largest = scales.iter().fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
    if largest.abs() < TINY {
        return;
    }
    let inverse = -128.0 / largest;
    let d = put(&mut bytes[Q6_FACTOR..], 1.0 / inverse);
    for (part, values) in parts::<f32, Q6_PART, Q6_PARTS>(values).iter().enumerate() {
        let scale = (inverse * scales[part]).round_ties_even().min(127.0) as i8;
        bytes[BLOCK * 3 / 4 + part] = scale.cast_unsigned();
        let scale = d * f32::from(scale);
        let ([low, low_shift], [high, high_shift]) = q6_places(part * Q6_PART);
        for (place, x) in values.iter().enumerate() {
            let rounded = (x / scale).round_ties_even().clamp(-32.0, 31.0);
            let level = byte(if scale == 0.0 { searched[place][part] } else { rounded } + 32.0);
            bytes[low + place] |= (level & 15) << low_shift;
            bytes[high + place] |= (level >> 4) << high_shift;
        }
    }
}
