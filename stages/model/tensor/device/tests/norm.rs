use super::{
    TYPES, added, array, by_element, by_row, check, generator, gradient_buffer, grid, input, int, output, random, run,
    suffix, value, wide,
};
use crate::tensor::device::driver::Type;

const EPSILON: f32 = 1e-5;
/// Odd, shorter and longer than a block, and single values.
const SHAPES: [(usize, usize); 7] = [(1, 1), (3, 1), (1, 7), (5, 33), (2, 256), (3, 641), (2, 1152)];

/// Mean and 1 / sqrt(variance + epsilon) of each row.
fn statistics(x: &[f64], width: usize, centered: bool) -> Vec<(f64, f64)> {
    let of = |row: &[f64]| {
        let mean = if centered { row.iter().sum::<f64>() / width as f64 } else { 0.0 };
        let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / width as f64;
        (mean, 1.0 / (variance + f64::from(EPSILON)).sqrt())
    };
    x.chunks(width).map(of).collect()
}

#[test]
fn forward() {
    for (stored, (rows, width), centered) in cases() {
        let rng = &mut generator(width as u64);
        let x: Vec<f32> =
            random(rng, rows * width, 2.0, stored).iter().map(|x| super::rounded(x + 3.0, stored)).collect();
        let (w, b) = (random(rng, width, 1.0, Type::F32), random(rng, width, 1.0, Type::F32));
        let name = format!("{}_{}", if centered { "layer_norm" } else { "rms_norm" }, suffix(stored));
        let mut args = vec![input(&x, stored), array(&w)];
        if centered {
            args.push(array(&b));
        }
        args.extend([output(rows * width, stored), output(rows * 2, Type::F32), int(width), value(EPSILON)]);
        let got = run(&name, by_row(rows), &args);
        let statistics = statistics(&wide(&x), width, centered);
        let y: Vec<f64> = (0..rows * width)
            .map(|i| {
                let ((mean, inverse), column) = (statistics[i / width], i % width);
                let bias = if centered { f64::from(b[column]) } else { 0.0 };
                (f64::from(x[i]) - mean) * inverse * f64::from(w[column]) + bias
            })
            .collect();
        // A row of one value has variance 0: differences of 1e-7 are multiplied by 1 / sqrt(epsilon).
        check(&name, &got[0], &y, stored, 2e-4);
        check(&name, &got[1], &statistics.iter().flat_map(|(m, i)| [*m, *i]).collect::<Vec<_>>(), Type::F32, 2e-6);
    }
}

fn cases() -> impl Iterator<Item = (Type, (usize, usize), bool)> {
    TYPES.into_iter().flat_map(|stored| {
        SHAPES
            .into_iter()
            .flat_map(move |shape| [true, false].into_iter().map(move |centered| (stored, shape, centered)))
    })
}

#[test]
fn input_gradient() {
    for ((stored, (rows, width), centered), add) in cases().zip([true, false, false, true, true].into_iter().cycle()) {
        let rng = &mut generator(width as u64 + 1);
        let n = rows * width;
        let [x, dy, before] = [2.0, 1.0, 1.0].map(|range| random(rng, n, range, stored));
        let w = random(rng, width, 1.0, Type::F32);
        let statistics = statistics(&wide(&x), width, centered);
        let stats: Vec<f32> = statistics.iter().flat_map(|(m, i)| [*m as f32, *i as f32]).collect();
        let name = format!("{}_gradient_{}", if centered { "layer_norm" } else { "rms_norm" }, suffix(stored));
        let got = run(
            &name,
            by_row(rows),
            &[
                input(&x, stored),
                array(&w),
                array(&stats),
                input(&dy, stored),
                gradient_buffer(&before, stored, add),
                int(width),
                int(usize::from(add)),
            ],
        );
        let mut want = Vec::new();
        for row in 0..rows {
            let (mean, inverse) = (f64::from(stats[row * 2]), f64::from(stats[row * 2 + 1]));
            let at = |values: &[f32], i: usize| f64::from(values[row * width + i]);
            let d: Vec<f64> = (0..width).map(|i| at(&dy, i) * f64::from(w[i])).collect();
            let z: Vec<f64> = (0..width).map(|i| (at(&x, i) - mean) * inverse).collect();
            let along = if centered { d.iter().sum::<f64>() / width as f64 } else { 0.0 };
            let across = d.iter().zip(&z).map(|(d, z)| d * z).sum::<f64>() / width as f64;
            want.extend((0..width).map(|i| inverse * (d[i] - along - z[i] * across)));
        }
        // Rows of one value, as above.
        let slack = if width == 1 { 2e-4 } else { 1e-5 };
        check(&name, &got[0], &added(&before, want, add), stored, slack);
    }
}

#[test]
fn weight_gradients_and_column_sums() {
    for (stored, (rows, width), per_part) in
        [(Type::F32, (5, 3), 2), (Type::Bf16, (7, 300), 3), (Type::F32, (1, 1), 64), (Type::Bf16, (65, 257), 64)]
    {
        let rng = &mut generator(rows as u64);
        let [x, dy] = [2.0, 1.0].map(|range| random(rng, rows * width, range, stored));
        let stats = random(rng, rows * 2, 1.0, Type::F32);
        let parts = rows.div_ceil(per_part);
        let blocks = grid([width.div_ceil(256), parts], 256, 0);
        let sizes = [int(rows), int(width), int(per_part)];
        let name = format!("norm_weight_gradient_{}", suffix(stored));
        let mut args = vec![input(&x, stored), array(&stats), input(&dy, stored), output(parts * 2 * width, Type::F32)];
        args.extend(sizes.clone());
        let got = run(&name, blocks, &args).remove(0);
        let column_args = [&[input(&dy, stored), output(parts * width, Type::F32)], &sizes[..]].concat();
        let columns = run(&format!("column_sums_{}", suffix(stored)), blocks, &column_args).remove(0);
        for part in 0..parts {
            for column in 0..width {
                let (mut dw, mut db) = (0.0, 0.0);
                for row in part * per_part..((part + 1) * per_part).min(rows) {
                    let at = row * width + column;
                    let centered = f64::from(x[at]) - f64::from(stats[row * 2]);
                    dw += f64::from(dy[at]) * centered * f64::from(stats[row * 2 + 1]);
                    db += f64::from(dy[at]);
                }
                let place = part * 2 * width + column;
                check(&name, &[got[place], got[place + width]], &[dw, db], Type::F32, 2e-5);
                check("column_sums", &[columns[part * width + column]], &[db], Type::F32, 2e-5);
            }
        }
    }
}

#[test]
fn sums_of_parts() {
    for (parts, count, stride, add) in [(1, 1, 1, false), (3, 300, 310, true), (5, 257, 600, false)] {
        let rng = &mut generator(count as u64);
        let partial = random(rng, (parts - 1) * stride + count, 1.0, Type::F32);
        let before = random(rng, count, 1.0, Type::F32);
        let got = run(
            "sum_parts",
            by_element(count),
            &[
                array(&partial),
                value(stride as i64),
                gradient_buffer(&before, Type::F32, add),
                int(parts),
                int(count),
                int(usize::from(add)),
            ],
        );
        let sum = |i| (0..parts).map(|part: usize| f64::from(partial[part * stride + i])).sum();
        check("sum_parts", &got[0], &added(&before, (0..count).map(sum).collect(), add), Type::F32, 1e-6);
    }
}
