//! The search for the scale of a block of values, and what calibration adds to it: how much the error of each value counts.
//! Source: ggml's `ggml-quants.c`, `make_qx_quants` and the `quant_weights` of `quantize_row_*_impl`. Independent of how blocks are stored.
#![allow(clippy::inline_always, reason = "loops vectorize only if what they call is inlined")]

/// Smaller scales count as zero.
pub(super) const TINY: f32 = 1e-15;

/// The importance of the values in block `index`, of blocks of `N` in consecutive rows. `importance` is that of the values of a row.
pub(super) fn columns<const N: usize>(importance: Option<&[f32]>, index: usize) -> Option<&[f32; N]> {
    let of_row = importance?;
    of_row.get(index * N % of_row.len().max(1)..)?.first_chunk()
}

/// The weights of the squared errors of `values`: `importance * sqrt(spread + x^2)`, so that among equally important values larger
/// ones count more.
pub(super) fn importance_weights<const N: usize>(values: &[f32; N], importance: &[f32; N], spread: f32) -> [f32; N] {
    let mut weights = *importance;
    for (weight, x) in weights.iter_mut().zip(values) {
        *weight *= (spread + x * x).sqrt();
    }
    weights
}

/// Turns `L` blocks of `N` values into `N` places with a value of each block.
///
/// What is searched for a block takes sums one value after the other, so that results are the same bits everywhere. Blocks side by side
/// fill SIMD lanes nevertheless.
#[inline(always)]
pub(super) fn side_by_side<const N: usize, const L: usize>(blocks: &[[f32; N]; L]) -> [[f32; L]; N] {
    let mut places = [[0.0; L]; N];
    for (lane, block) in blocks.iter().enumerate() {
        for (place, value) in places.iter_mut().zip(block) {
            place[lane] = *value;
        }
    }
    places
}

/// A value for each block.
#[inline(always)]
pub(super) fn lanes<T: Copy + Default, const L: usize>(of: impl Fn(usize) -> T) -> [T; L] {
    let mut all = [T::default(); L];
    for (i, lane) in all.iter_mut().enumerate() {
        *lane = of(i);
    }
    all
}

/// The lanes of each place, from those of `values`.
#[inline(always)]
pub(super) fn each<const N: usize, const L: usize>(
    values: &[[f32; L]; N],
    of: impl Fn(usize, f32) -> f32,
) -> [[f32; L]; N] {
    let mut all = [[0.0; L]; N];
    for (to, x) in all.iter_mut().zip(values) {
        for i in 0..L {
            to[i] = of(i, x[i]);
        }
    }
    all
}

/// The levels from `-half` to `highest`, and their scale, with the least weighted squared error, of `L` blocks [`side_by_side`]. The scale
/// has the sign that gives the value of the largest magnitude the level `-half`.
#[inline(always)]
pub(super) fn symmetric<const N: usize, const L: usize>(
    values: &[[f32; L]; N],
    weights: &[[f32; L]; N],
    half: f32,
    highest: f32,
) -> ([[f32; L]; N], [f32; L]) {
    let level = |inverse: f32, x: f32| (inverse * x).round_ties_even().clamp(-half, highest);
    let mut largest = [0.0_f32; L];
    for x in values {
        largest = lanes(|i| if x[i].abs() > largest[i].abs() { x[i] } else { largest[i] });
    }
    let sums = |inverse: &[f32; L]| {
        let (mut xl, mut ll) = ([0.0_f32; L], [0.0_f32; L]);
        for (x, weight) in values.iter().zip(weights) {
            for i in 0..L {
                let level = level(inverse[i], x[i]);
                xl[i] += weight[i] * x[i] * level;
                ll[i] += weight[i] * level * level;
            }
        }
        (xl, ll)
    };
    let mut found = lanes(|i| -half / largest[i]);
    let (xl, ll) = sums(&found);
    let mut scale: [f32; L] = lanes(|i| if ll[i] == 0.0 { 0.0 } else { xl[i] / ll[i] });
    let mut best: [f32; L] = lanes(|i| scale[i] * xl[i]);
    for step in (-9..=9).filter(|step| *step != 0) {
        let inverse = lanes(|i| -(half + 0.1 * step as f32) / largest[i]);
        let (xl, ll) = sums(&inverse);
        for i in 0..L {
            let better = ll[i] > 0.0 && xl[i] * xl[i] > best[i] * ll[i];
            let this_scale = xl[i] / ll[i];
            found[i] = if better { inverse[i] } else { found[i] };
            scale[i] = if better { this_scale } else { scale[i] };
            best[i] = if better { this_scale * xl[i] } else { best[i] };
        }
    }
    let zero = |i: usize| largest[i].abs() < TINY;
    let levels = each(values, |i, x| if zero(i) { -half } else { level(found[i], x) });
    (levels, lanes(|i| if zero(i) { 0.0 } else { scale[i] }))
}

/// The scale of levels from `-half` to `highest` with the least error in the values that matter most.
pub(super) fn calibrated_scale<const N: usize>(
    values: &[f32; N],
    importance: &[f32; N],
    half: f32,
    highest: f32,
) -> f32 {
    let mean_square = values.iter().map(|x| x * x).sum::<f32>() / N as f32;
    let weights = importance_weights(values, importance, mean_square);
    let [scale] = symmetric(&side_by_side(&[*values]), &side_by_side(&[weights]), half, highest).1;
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a block with one large value that nothing is multiplied with, the others keep more of theirs.
    #[test]
    fn what_matters_is_kept_better() {
        let values: [f32; 32] = std::array::from_fn(|i| if i == 5 { 9.0 } else { (i as f32 * 0.7).sin() });
        let importance: [f32; 32] = std::array::from_fn(|i| if i == 5 { 1e-6 } else { 1.0 });
        let error = |scale: f32| -> f32 {
            let of = |x: f32| ((x / scale).round().clamp(-8.0, 7.0) * scale - x).powi(2);
            values.iter().enumerate().filter(|(i, _)| *i != 5).map(|(_, x)| of(*x)).sum()
        };
        let even = calibrated_scale(&values, &[1.0; 32], 8.0, 7.0);
        assert!(error(calibrated_scale(&values, &importance, 8.0, 7.0)) < 0.9 * error(even));
    }

    #[test]
    fn blocks_take_the_columns_of_their_row() {
        let row: Vec<f32> = (0..96).map(|column| column as f32).collect();
        let first = |block: usize| columns::<32>(Some(&row), block).map(|columns| columns[0]);
        assert_eq!([first(0), first(2), first(3), first(5)], [Some(0.0), Some(64.0), Some(0.0), Some(64.0)]);
        assert_eq!(columns::<32>(None, 0), None);
    }
}
