//! Scalar functions as short polynomials without branches, so that loops over them vectorize; sums in a fixed order.

pub(super) use crate::simd::simd;

/// Sums are in so many lanes.
const LANES: usize = 16;

/// e^x with a relative error of about 2e-7; the coefficients are Cephes' `expf`.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
pub(super) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer, which then stands in the lowest bits
    let x = x.clamp(-87.0, 88.0);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 5.0e-1;
    let y = p * r * r + r + 1.0;
    // 2^n from bits: `n as i32` would not vectorize, as it must take care of what no integer can hold.
    y * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()))
}

/// tanh through [`exp`].
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(super) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The error function with an absolute error of about 3e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(super) fn erf(x: f32) -> f32 {
    let magnitude = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * magnitude);
    let mut p = 1.061_405_4;
    p = p * t - 1.453_152;
    p = p * t + 1.421_413_7;
    p = p * t - 0.284_496_74;
    p = p * t + 0.254_829_6;
    (1.0 - p * t * exp(-magnitude * magnitude)).copysign(x)
}

/// The sum of `f` of the values that stand at the same place in slices of equal length, in sixteen lanes: a fixed order that
/// vectorizes.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(super) fn sum<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let length = slices.first().map_or(0, |slice| slice.len());
    let whole = length / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let mut chunks = [[0.0; N]; LANES];
        for (n, slice) in slices.iter().enumerate() {
            let chunk = &slice[start..start + LANES];
            chunks.iter_mut().zip(chunk).for_each(|(values, value)| values[n] = *value);
        }
        for (total, values) in lanes.iter_mut().zip(chunks) {
            *total += f(values);
        }
    }
    let rest = (whole..length).map(|i| {
        let mut values = [0.0; N];
        values.iter_mut().zip(slices).for_each(|(value, slice)| *value = slice[i]);
        f(values)
    });
    lanes.iter().sum::<f32>() + rest.sum::<f32>()
}

/// The dot product of two slices of equal length, in the order of [`sum`].
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for (total, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *total += a * b;
        }
    }
    lanes.iter().sum::<f32>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f32>()
}

/// The largest value.
#[inline(always)]
#[allow(clippy::inline_always, reason = "as above")]
pub(super) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

/// The index of the largest value, or of the first of several.
pub fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_accurate_to_f32() {
        for step in -4000..4000 {
            let x = f64::from(step) / 500.0;
            let relative = (f64::from(exp(x as f32)) / f64::from(x as f32).exp() - 1.0).abs();
            assert!(relative < 4e-7, "exp({x}): {relative}");
            assert!((f64::from(tanh(x as f32)) - f64::from(x as f32).tanh()).abs() < 4e-7, "tanh({x})");
        }
        // At the bounds, beyond them, and NaN with any payload.
        for (x, value) in
            [(-87.0_f32, -87.0_f64), (-1e30, -87.0), (f32::NEG_INFINITY, -87.0), (88.0, 88.0), (1e30, 88.0)]
        {
            assert!((f64::from(exp(x)) / value.exp() - 1.0).abs() < 4e-7, "exp({x}) = {}", exp(x));
        }
        for bits in [0x7fc0_0000, 0xffc0_0000, 0x7fc0_01ff, 0xffff_ffff, 0x7f80_0001] {
            assert!(exp(f32::from_bits(bits)).is_nan(), "exp of NaN {bits:x}");
        }
        // DLMF table 7.2(i) and its symmetry.
        for (x, value) in
            [(0.0, 0.0), (0.5, 0.520_499_9), (1.0, 0.842_700_8), (2.0, 0.995_322_3), (3.0, 0.999_977_9), (7.0, 1.0)]
        {
            assert!((erf(x) - value).abs() < 4e-7 && (erf(-x) + value).abs() < 4e-7, "erf({x}) = {}", erf(x));
        }
    }
}
