//! The search for the scale of a block of values, and what calibration adds to it: how much the error of each value counts.
//! Source: ggml's `ggml-quants.c`, `make_qx_quants` and the `quant_weights` of `quantize_row_*_impl`. Independent of how blocks are stored.

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

/// The levels from `-half` to `highest`, and their scale, with the least weighted squared error. The scale has the sign that gives the
/// value of the largest magnitude the level `-half`.
pub(super) fn symmetric<const N: usize>(
    values: &[f32; N],
    weights: &[f32; N],
    half: f32,
    highest: f32,
) -> ([f32; N], f32) {
    let largest = values.iter().fold(0.0_f32, |a, b| if b.abs() > a.abs() { *b } else { a });
    if largest.abs() < TINY {
        return ([-half; N], 0.0);
    }
    let attempt = |inverse: f32| {
        let found = values.map(|x| (inverse * x).round_ties_even().clamp(-half, highest));
        let terms = found.iter().zip(values).zip(weights);
        let sums = terms.fold((0.0_f32, 0.0_f32), |(xl, ll), ((level, x), weight)| {
            (xl + weight * x * level, ll + weight * level * level)
        });
        (found, sums)
    };
    let (mut found, (sum_xl, sum_ll)) = attempt(-half / largest);
    let mut scale = if sum_ll == 0.0 { 0.0 } else { sum_xl / sum_ll };
    let mut best = scale * sum_xl;
    for step in (-9..=9).filter(|step| *step != 0) {
        let (tried, (sum_xl, sum_ll)) = attempt(-(half + 0.1 * step as f32) / largest);
        if sum_ll > 0.0 && sum_xl * sum_xl > best * sum_ll {
            found = tried;
            scale = sum_xl / sum_ll;
            best = scale * sum_xl;
        }
    }
    (found, scale)
}

/// The scale of levels from `-half` to `highest` with the least error in the values that matter most.
pub(super) fn calibrated_scale<const N: usize>(
    values: &[f32; N],
    importance: &[f32; N],
    half: f32,
    highest: f32,
) -> f32 {
    let mean_square = values.iter().map(|x| x * x).sum::<f32>() / N as f32;
    symmetric(values, &importance_weights(values, importance, mean_square), half, highest).1
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
