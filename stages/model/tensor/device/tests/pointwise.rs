use half::f16;
use rand::Rng;

use super::{
    Arg, TYPES, added, array, by_element, by_row, check, generator, gradient_buffer, input, int, long, output, random,
    rounded, run, suffix, updated, value, wide,
};
use crate::tensor::device::driver::Type;

/// One value, a part of a block, a block, and a bit more than blocks.
const COUNTS: [usize; 4] = [1, 77, 256, 1027];

/// By the Taylor series, whose terms reach e^(x^2): exact enough for arguments up to 4.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn activate(kind: i32, x: f64) -> f64 {
    match kind {
        0 => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh()),
        1 => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        2 => x * sigmoid(x),
        _ => x * sigmoid(1.702 * x),
    }
}

/// The derivative by differences: independent of the formulas of the kernels. Its error is about 1e-9.
fn derivative(kind: i32, x: f64) -> f64 {
    let step = 1e-5;
    (activate(kind, x + step) - activate(kind, x - step)) / (2.0 * step)
}

#[test]
fn activations() {
    for stored in TYPES {
        for (kind, n) in [0, 1, 2, 3].into_iter().flat_map(|kind| COUNTS.map(|n| (kind, n))) {
            let rng = &mut generator(n as u64);
            let [x, dy, before] = [4.0, 1.0, 1.0].map(|range| random(rng, n, range, stored));
            let name = format!("activation_{}", suffix(stored));
            let y = run(&name, by_element(n), &[value(kind), input(&x, stored), output(n, stored), long(n)]);
            let want: Vec<f64> = x.iter().map(|x| activate(kind, f64::from(*x))).collect();
            check(&name, &y[0], &want, stored, 1e-6);
            for add in [false, true] {
                let name = format!("activation_gradient_{}", suffix(stored));
                let got = run(
                    &name,
                    by_element(n),
                    &[
                        value(kind),
                        input(&x, stored),
                        input(&dy, stored),
                        gradient_buffer(&before, stored, add),
                        long(n),
                        int(usize::from(add)),
                    ],
                );
                let d = x.iter().zip(&dy).map(|(x, dy)| f64::from(*dy) * derivative(kind, f64::from(*x))).collect();
                check(&name, &got[0], &added(&before, d, add), stored, 1e-6);
            }
        }
    }
}

#[test]
fn large_arguments_do_not_overflow() {
    let x = [-1e4, -200.0, -90.0, 0.0, 90.0, 200.0, 1e4];
    for kind in 0..4 {
        let n = x.len();
        let y =
            run("activation_f32", by_element(n), &[value(kind), input(&x, Type::F32), output(n, Type::F32), long(n)]);
        check("activation_f32", &y[0], &x.map(|x| f64::from(x.max(0.0))), Type::F32, 1e-6);
        let ones = [1.0; 7];
        let d = run(
            "activation_gradient_f32",
            by_element(n),
            &[value(kind), input(&x, Type::F32), input(&ones, Type::F32), output(n, Type::F32), long(n), int(0)],
        );
        let want = [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0];
        check("activation_gradient_f32", &d[0], &want, Type::F32, 1e-6);
    }
}

#[test]
fn silu_gates() {
    for (stored, n) in TYPES.into_iter().flat_map(|stored| COUNTS.map(|n| (stored, n))) {
        let rng = &mut generator(n as u64);
        let [gate, up, dy, before] = [4.0, 1.0, 1.0, 1.0].map(|range| random(rng, n, range, stored));
        let all = |of: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
            (0..n).map(|i| of(gate[i].into(), up[i].into(), dy[i].into())).collect()
        };
        let [gate_in, up_in, dy_in] = [&gate, &up, &dy].map(|values| input(values, stored));
        let args = [gate_in.clone(), up_in.clone(), output(n, stored), long(n)];
        let y = run(&format!("silu_gate_{}", suffix(stored)), by_element(n), &args);
        check("silu_gate", &y[0], &all(&|gate, up, _| activate(2, gate) * up), stored, 1e-6);
        for add in [false, true] {
            let end = [gradient_buffer(&before, stored, add), long(n), int(usize::from(add))];
            let args = [&[gate_in.clone(), up_in.clone(), dy_in.clone()], &end[..]].concat();
            let got = run(&format!("silu_gate_gradient_{}", suffix(stored)), by_element(n), &args);
            let want = all(&|gate, up, dy| dy * up * derivative(2, gate));
            check("silu_gate_gradient", &got[0], &added(&before, want, add), stored, 1e-6);
            let args = [&[gate_in.clone(), dy_in.clone()], &end[..]].concat();
            let got = run(&format!("silu_up_gradient_{}", suffix(stored)), by_element(n), &args);
            let want = all(&|gate, _, dy| dy * activate(2, gate));
            check("silu_up_gradient", &got[0], &added(&before, want, add), stored, 1e-6);
        }
    }
}

#[test]
fn accumulation() {
    for (stored, n) in TYPES.into_iter().flat_map(|stored| COUNTS.map(|n| (stored, n))) {
        let rng = &mut generator(n as u64);
        let [to, from] = [1.0, 1.0].map(|range| random(rng, n, range, stored));
        let scaled: Vec<f64> = from.iter().map(|from| f64::from(*from) * 0.375).collect();
        let name = format!("accumulate_{}", suffix(stored));
        let got = run(&name, by_element(n), &[updated(&to, stored), input(&from, stored), value(0.375_f32), long(n)]);
        check(&name, &got[0], &added(&to, scaled.clone(), true), stored, 1e-6);
        for add in [false, true] {
            let name = format!("accumulate_by_{}", suffix(stored));
            let got = run(
                &name,
                by_element(n),
                &[
                    gradient_buffer(&to, stored, add),
                    input(&from, stored),
                    array(&[0.375_f32]),
                    long(n),
                    int(usize::from(add)),
                ],
            );
            check(&name, &got[0], &added(&to, scaled.clone(), add), stored, 1e-6);
        }
    }
}

#[test]
fn added_rows() {
    for (stored, repeats, period) in
        [(Type::F32, 1, 1), (Type::Bf16, 3, 1), (Type::F32, 3, 77), (Type::Bf16, 5, 300), (Type::Bf16, 1, 256)]
    {
        let rng = &mut generator(period as u64);
        let n = repeats * period;
        let y = random(rng, n, 1.0, stored);
        let [rows, before] = [1.0, 1.0].map(|range| random(rng, period, range, Type::F32));
        let name = format!("add_rows_{}", suffix(stored));
        let got = run(&name, by_element(n), &[updated(&y, stored), array(&rows), long(n), long(period)]);
        let want = (0..n).map(|i| f64::from(rows[i % period])).collect();
        check(&name, &got[0], &added(&y, want, true), stored, 1e-6);
        for add in [false, true] {
            let name = format!("add_rows_gradient_{}", suffix(stored));
            let got = run(
                &name,
                by_element(period),
                &[
                    input(&y, stored),
                    gradient_buffer(&before, Type::F32, add),
                    long(n),
                    long(period),
                    int(usize::from(add)),
                ],
            );
            let sum = |i| (0..repeats).map(|repeat| f64::from(y[repeat * period + i])).sum();
            check(&name, &got[0], &added(&before, (0..period).map(sum).collect(), add), Type::F32, 1e-6);
        }
    }
}

#[test]
fn scaled_columns() {
    for (stored, rows, width) in [(Type::F32, 1, 1), (Type::Bf16, 3, 77), (Type::F32, 5, 300)] {
        let (rng, n) = (&mut generator(width as u64), rows * width);
        let [x, dy, before] = [1.0, 1.0, 1.0].map(|range| random(rng, n, range, stored));
        let [scale, d_before] = [1.0, 1.0].map(|range| random(rng, width, range, Type::F32));
        for add in [false, true] {
            let name = format!("scale_columns_{}", suffix(stored));
            let y = gradient_buffer(&before, stored, add);
            let got = run(
                &name,
                by_element(n),
                &[input(&x, stored), array(&scale), y, long(n), long(width), int(usize::from(add))],
            );
            let want = (0..n).map(|i| f64::from(x[i]) * f64::from(scale[i % width])).collect();
            check(&name, &got[0], &added(&before, want, add), stored, 1e-6);
            let name = format!("scale_columns_gradient_{}", suffix(stored));
            let d_scale = gradient_buffer(&d_before, Type::F32, add);
            let got = run(
                &name,
                by_element(width),
                &[input(&x, stored), input(&dy, stored), d_scale, long(n), long(width), int(usize::from(add))],
            );
            let product = |i: usize| f64::from(x[i]) * f64::from(dy[i]);
            let want = (0..width).map(|i| (0..rows).map(|row| product(row * width + i)).sum()).collect();
            check(&name, &got[0], &added(&d_before, want, add), Type::F32, 1e-6);
        }
    }
}

/// The norms of DoRA: factors of columns, the gradient of the magnitudes, and the norms themselves.
#[test]
fn norms_of_adapted_rows() {
    for (stored, rows, width) in [(Type::F32, 3, 301), (Type::Bf16, 70, 64), (Type::Bf16, 1, 1)] {
        let (n, rng) = (rows * width, &mut generator(width as u64));
        let [x, dy, before] = [1.0, 1.0, 1.0].map(|range| random(rng, n, range, stored));
        let [magnitudes, norms] = [1.0, 1.0].map(|range| -> Vec<f32> {
            random(rng, width, range, Type::F32).iter().map(|value| value + 2.5).collect()
        });
        let factor = |i: usize| f64::from(magnitudes[i % width]) / f64::from(norms[i % width]);
        for add in [false, true] {
            let name = format!("set_norms_{}", suffix(stored));
            let to = gradient_buffer(&before, stored, add);
            let sizes = [long(n), long(width), int(usize::from(add))];
            let args = [&[input(&x, stored), array(&magnitudes), array(&norms), to], &sizes[..]].concat();
            let want = x.iter().enumerate().map(|(i, x)| f64::from(*x) * factor(i)).collect();
            check(&name, &run(&name, by_element(n), &args)[0], &added(&before, want, add), stored, 1e-6);

            let name = format!("magnitude_gradient_{}", suffix(stored));
            let to = gradient_buffer(&before[..width], Type::F32, add);
            let args = [&[input(&dy, stored), input(&x, stored), array(&norms), to], &sizes[..]].concat();
            let sum = |i: usize| {
                (0..rows).map(|row| f64::from(dy[row * width + i]) * f64::from(x[row * width + i])).sum::<f64>()
            };
            let want = (0..width).map(|i| sum(i) / f64::from(norms[i])).collect();
            check(
                &name,
                &run(&name, by_element(width), &args)[0],
                &added(&before[..width], want, add),
                Type::F32,
                1e-5,
            );
        }
        let rank = 5;
        let [b, wa, ba] = [0.3, 0.3, 0.3].map(|range| random(rng, width * rank, range, Type::F32));
        let arrays = [&norms, &b, &wa, &ba].map(|values| array(values));
        let rest = [output(width, Type::F32), value(0.7_f32), int(rank), long(width)];
        let got = run("row_norms", by_element(width), &[&arrays[..], &rest[..]].concat());
        let want = crate::tensor::host::dora::row_norms(&norms, &b, &wa, &ba, 0.7);
        check("row_norms", &got[0], &wide(&want), Type::F32, 1e-5);
    }
}

/// The mask must be that of the CPU, bit for bit.
#[test]
fn dropout_has_the_mask_of_the_cpu() {
    for (stored, rows, width, add) in [(Type::F32, 3, 301, false), (Type::Bf16, 2, 64, true), (Type::Bf16, 1, 1, false)]
    {
        let (seed, rate) = (7, 0.3_f32);
        let rng = &mut generator(width as u64);
        let [x, before] = [1.0, 1.0].map(|range| random(rng, rows * width, range, stored));
        let ids: Vec<u64> = (0..rows as u64).map(|row| row * 1000 + 5).collect();
        let drop = crate::tensor::host::dropout::Drop::new(rate);
        let [mut want, mut rest] = [x.clone(), x.clone()];
        crate::tensor::host::dropout::drop_values(&mut want, drop, seed, &ids);
        crate::tensor::host::dropout::drop_values(&mut rest, drop.rest(), seed, &ids);
        let mix = crate::tensor::host::dropout::mix;
        let keys: Vec<u64> = ids.iter().map(|id| mix(seed ^ mix(*id))).collect();
        let threshold = (f64::from(rate) * f64::from(u32::MAX)) as u32;
        for (name, scale, want) in
            [("dropout", 1.0 / (1.0 - rate), &want), ("dropout_rest", 1.0 - 1.0 / (1.0 - rate), &rest)]
        {
            let name = format!("{name}_{}", suffix(stored));
            let got = run(
                &name,
                by_row(rows),
                &[
                    input(&x, stored),
                    gradient_buffer(&before, stored, add),
                    array(&keys),
                    int(width),
                    value(threshold),
                    value(scale),
                    int(usize::from(add)),
                ],
            );
            if !add && stored == Type::F32 {
                assert_eq!(got[0], wide(want), "{name}");
            }
            check(&name, &got[0], &added(&before, wide(want), add), stored, 1e-6);
        }
    }
}

#[test]
fn rotation() {
    for (stored, rows, heads, head_dim, half) in
        [(Type::F32, 3, 2, 10, 5), (Type::Bf16, 2, 5, 80, 16), (Type::Bf16, 1, 1, 2, 1), (Type::F32, 2, 3, 7, 2)]
    {
        let (rng, width) = (&mut generator(rows as u64), heads * head_dim);
        let x = random(rng, rows * width, 1.0, stored);
        let table: Vec<f32> = (0..rows * half).flat_map(|i| [(i as f32 * 0.7).cos(), (i as f32 * 0.7).sin()]).collect();
        for direction in [1.0_f32, -1.0] {
            let name = format!("rotate_{}", suffix(stored));
            let got = run(
                &name,
                by_row(rows),
                &[updated(&x, stored), array(&table), int(width), int(head_dim), int(half), value(direction)],
            );
            let mut want = wide(&x);
            for (row, head, i) in all([rows, heads, half]) {
                let low = row * width + head * head_dim + i;
                let at = (row * half + i) * 2;
                let (cosine, sine) = (f64::from(table[at]), f64::from(table[at + 1] * direction));
                let (a, b) = (f64::from(x[low]), f64::from(x[low + half]));
                (want[low], want[low + half]) = (a * cosine - b * sine, b * cosine + a * sine);
            }
            check(&name, &got[0], &want, stored, 1e-6);
        }
    }
}

fn all([a, b, c]: [usize; 3]) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |l| (i, j, l))))
}

#[test]
fn conversions() {
    for n in COUNTS {
        let rng = &mut generator(n as u64);
        let mut x = random(rng, n, 3.0, Type::F32);
        // A tie, which goes to the even neighbour, and values beyond those of bf16.
        x[0] = f32::from_bits(0x3f80_8000);
        if n > 3 {
            (x[1], x[2]) = (f32::from_bits(0x3f81_8000), f32::MAX);
        }
        let narrow = run("to_bf16", by_element(n), &[input(&x, Type::F32), output(n, Type::Bf16), long(n)]);
        let want: Vec<f32> = x.iter().map(|x| rounded(*x, Type::Bf16)).collect();
        assert_eq!(narrow[0], wide(&want));
        let back = run("to_f32", by_element(n), &[input(&want, Type::Bf16), output(n, Type::F32), long(n)]);
        assert_eq!(back[0], wide(&want));
        let zeros = run("fill_zero", by_element(n), &[output(n, Type::F32), long(n)]);
        assert!(zeros[0].iter().all(|zero| zero.to_bits() == 0));
    }
}

#[test]
fn columns() {
    for (stored, rows, whole, start, width) in
        [(Type::F32, 3, 7, 2, 3), (Type::Bf16, 2, 700, 1, 333), (Type::Bf16, 1, 1, 0, 1), (Type::F32, 2, 5, 4, 1)]
    {
        let rng = &mut generator(whole as u64);
        let [x, before] = [1.0, 1.0].map(|range| random(rng, rows * whole, range, stored));
        let dy = random(rng, rows * width, 1.0, stored);
        let sizes = [int(whole), int(start), int(width)];
        let args = [&[input(&x, stored), output(rows * width, stored)], &sizes[..]].concat();
        let got = run(&format!("columns_{}", suffix(stored)), by_row(rows), &args);
        let want: Vec<f32> = x.chunks(whole).flat_map(|row| &row[start..start + width]).copied().collect();
        assert_eq!(got[0], wide(&want));
        for add in [false, true] {
            let mut args: Vec<Arg> = vec![input(&dy, stored), gradient_buffer(&before, stored, add)];
            args.extend(sizes.clone());
            args.push(int(usize::from(add)));
            let got = run(&format!("columns_gradient_{}", suffix(stored)), by_row(rows), &args);
            let of = |i: usize| {
                let (row, column) = (i / whole, i % whole);
                let inside = column >= start && column < start + width;
                if inside { f64::from(dy[row * width + column - start]) } else { 0.0 }
            };
            let want = added(&before, (0..rows * whole).map(of).collect(), add);
            check("columns_gradient", &got[0], &want, stored, 1e-6);
        }
    }
}

#[test]
fn four_bit_weights() {
    for (rows, cols) in [(3, 32), (2, 75), (1, 1), (4, 320)] {
        let rng = &mut generator(cols as u64);
        let weights = random(rng, rows * cols, 1.0, Type::F32);
        let (levels, mut scales) = crate::encoding::q4f16::narrow(&weights, cols);
        // A scale below the normal numbers of f16.
        scales[..2].copy_from_slice(&f16::from_bits(rng.random_range(1..1000)).to_le_bytes());
        let mut want = vec![0.0; rows * cols];
        crate::encoding::q4f16::widen(&levels, &scales, cols, 0, &mut want);
        for stored in TYPES {
            let name = format!("widen_q4_{}", suffix(stored));
            let got = run(
                &name,
                by_row(rows),
                &[
                    array(&levels),
                    array(&scales),
                    output(rows * cols, stored),
                    int(cols),
                    int(crate::encoding::q4f16::words_per_row(cols)),
                    int(crate::encoding::q4f16::scales_per_row(cols)),
                ],
            );
            let want: Vec<f32> = want.iter().map(|value| rounded(*value, stored)).collect();
            assert_eq!(got[0], wide(&want), "{name}");
        }
    }
}
