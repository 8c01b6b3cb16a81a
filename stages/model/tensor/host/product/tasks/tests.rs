#![allow(clippy::unwrap_used)]
use half::bf16;
use pulp::Arch;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    encoding::{Encoding, q4f16},
    layers::uniform,
    tensor::{Bytes, Stored},
};

/// Numbers from -1 to 1.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    uniform(&mut ChaCha8Rng::seed_from_u64(seed), count, 1.0)
}

fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|index| values[index % rows * cols + index / rows]).collect()
}

fn on_threads<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

/// The sum in f64 for each element, and the sum of magnitudes.
fn exact(precision: Precision, a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<(f64, f64)> {
    let round = |value: f32| match precision {
        Precision::F32 => f64::from(value),
        Precision::Bf16 => f64::from(bf16::from_f32(value)),
    };
    let rounded = |values: &[f32]| values.iter().map(|value| round(*value)).collect::<Vec<f64>>();
    let (a, b) = (rounded(a), rounded(b));
    let element = |index: usize| {
        let terms = (0..k).map(|depth| a[index / n * k + depth] * b[index % n * k + depth]);
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    (0..m * n).map(element).collect()
}

/// All that this processor has. Without one rounding for a product and its sum, only those of bf16 are equal to the bit.
fn kernels(precision: Precision) -> Vec<Kernel> {
    let (best, mut all) = (Arch::new(), Vec::new());
    #[cfg(target_arch = "x86_64")]
    all.extend(pulp::x86::V3::try_new().map(|simd| Kernel::Values(Arch::V3(simd), precision)));
    all.push(Kernel::Values(best, precision));
    if precision == Precision::Bf16 {
        all.push(Kernel::Values(Arch::Scalar, precision));
        all.extend(Kernel::of_processor());
    }
    all
}

fn all_kernels() -> impl Iterator<Item = Kernel> {
    [Precision::F32, Precision::Bf16].into_iter().flat_map(kernels)
}

const SHAPES: [[usize; 3]; 13] = [
    [1, 1, 1],
    [3, 5, 7],
    [14, 32, 64],
    [15, 33, 65],
    [29, 70, 1281],
    [200, 130, 77],
    [1, 430, 961],
    [300, 40, 9000],
    [64, 100, 1100],
    // The last pass is as long as it can be: alone, in a part of its own, and with rows of two parts.
    [20, 40, 640],
    [300, 40, 1664],
    [840, 20, 640],
    [2, 3, 0],
];

/// Sums of f32 in any order differ from exact ones by about the square root of their length, in units of 6e-8 of the sum of
/// magnitudes.
#[test]
fn every_layout_number_of_threads_and_kernel_gives_the_same_bits() {
    for (precision, shape) in
        [Precision::F32, Precision::Bf16].into_iter().flat_map(|of| SHAPES.map(|shape| (of, shape)))
    {
        let [m, n, k] = shape;
        let (a, b, base, bias) = (noise(m * k, 1), noise(n * k, 2), noise(m * n, 3), noise(n, 4));
        let (a_across, b_across, exact) = (transposed(&a, m, k), transposed(&b, n, k), exact(precision, &a, &b, shape));
        for output in [
            Output { alpha: 1.0, add: false, bias: None },
            Output { alpha: 0.5, add: true, bias: None },
            Output { alpha: 1.0, add: false, bias: Some(&bias) },
        ] {
            let mut all: Vec<Vec<f32>> = Vec::new();
            for (kernel, threads) in
                kernels(precision).into_iter().flat_map(|kernel| [1, 2, 5].map(|threads| (kernel, threads)))
            {
                for left in [Operand::along(&a, m, k), Operand::across(&a_across, m, k)] {
                    for right in [Operand::along(&b, n, k), Operand::across(&b_across, n, k)] {
                        let mut c = base.clone();
                        on_threads(threads, || with(kernel, left, Right::Plain(right), &mut c, output));
                        all.push(c);
                    }
                }
            }
            for (index, ((sum, size), c)) in exact.iter().zip(&all[0]).enumerate() {
                let old =
                    f64::from(if output.add { base[index] } else { output.bias.map_or(0.0, |bias| bias[index % n]) });
                let error = (f64::from(*c) - (f64::from(output.alpha) * sum + old)).abs();
                assert!(error <= 2e-6 * (size + old.abs()), "{precision:?} {shape:?} at {index}: {error:e} of {size}");
            }
            assert!(all.iter().all(|c| *c == all[0]), "{precision:?} {shape:?}");
        }
    }
}

fn bytes(buffer: Vec<u8>) -> Bytes {
    let length = buffer.len();
    Bytes::new(std::sync::Arc::new(buffer), 0..length)
}

/// A matrix in encodings with blocks of 1, 32 and 256 values, if they fill rows, and in that of MLC.
fn stored(values: &[f32], rows: usize, cols: usize) -> impl Iterator<Item = Stored> {
    let (levels, scales) = q4f16::narrow(values, cols);
    let encodings = [Encoding::F16, Encoding::Bf16, Encoding::Q4_0, Encoding::Q4K];
    let fitting = encodings.into_iter().filter(move |encoding| encoding.bytes(cols).is_some());
    let plain = fitting.map(move |encoding| Stored::plain(rows, cols, encoding, bytes(encoding.narrow(values))));
    plain.chain([Stored::q4f16(rows, cols, bytes(levels), bytes(scales))])
}

#[test]
fn weights_of_files_give_the_bits_of_their_values() {
    let output = Output { alpha: 1.0, add: false, bias: None };
    // The sum has one pass, or more; the columns one block, or more. Not all rows of the last have whole blocks of 256.
    for [m, n, k] in [[15, 256, 512], [30, 768, 1536], [20, 250, 576], [20, 250, 577]] {
        let (a, values) = (noise(m * k, 5), noise(n * k, 6));
        for (along, kernel) in
            [true, false].into_iter().flat_map(|along| all_kernels().map(move |kernel| (along, kernel)))
        {
            let (rows, cols) = if along { (n, k) } else { (k, n) };
            for weight in stored(&values, rows, cols) {
                let plain = weight.to_f32();
                let right = if along { Operand::along(&plain, n, k) } else { Operand::across(&plain, n, k) };
                let of = |right: Right<'_>| {
                    let mut c = vec![0.0; m * n];
                    with(kernel, Operand::along(&a, m, k), right, &mut c, output);
                    c
                };
                assert!(of(Right::Plain(right)) == of(Right::Stored { weight: &weight, along }), "{weight:?} {along}");
            }
        }
    }
}

/// So that a result does not depend on how a batch is cut.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let [m, n, k] = [61, 100, 1500];
    let (a, b) = (noise(m * k, 7), noise(n * k, 8));
    let output = Output { alpha: 1.0, add: false, bias: None };
    for kernel in all_kernels() {
        let mut all = vec![0.0; m * n];
        with(kernel, Operand::along(&a, m, k), Right::Plain(Operand::along(&b, n, k)), &mut all, output);
        let mut some = vec![0.0; 3 * n];
        let rows = Operand::along(&a[20 * k..23 * k], 3, k);
        with(kernel, rows, Right::Plain(Operand::along(&b, n, k)), &mut some, output);
        assert!(some == all[20 * n..23 * n]);
    }
}

/// Also without columns, with few of them, and where rows and sums have several parts.
#[test]
fn products_of_one_left_operand_have_the_bits_of_each() {
    for ([m, k], threads) in [[40, 576], [900, 1664], [20, 3]].into_iter().flat_map(|of| [1, 3].map(|n| (of, n))) {
        let a = noise(m * k, 9);
        let widths = [300, 0, 31];
        let values = [10, 11, 12].map(|seed| noise(300 * k, seed));
        let bias = noise(31, 13);
        let stored = Stored::plain(300, k, Encoding::Bf16, bytes(Encoding::Bf16.narrow(&values[0])));
        let plain = |index: usize| Right::Plain(Operand::along(&values[index][..widths[index] * k], widths[index], k));
        let factors = [
            (Right::Stored { weight: &stored, along: true }, None),
            (plain(1), None),
            (plain(2), Some(bias.as_slice())),
        ];
        for precision in [Precision::F32, Precision::Bf16] {
            let a = Operand::along(&a, m, k);
            let all = on_threads(threads, || new_products(precision, a, factors));
            let each = factors.map(|(b, bias)| new_product(precision, a, b, bias));
            assert!(all == each, "{precision:?} [{m}, {k}] on {threads}");
            assert_eq!(all.map(|c| c.len()), widths.map(|width| m * width));
        }
    }
}

/// With one pass and with several.
#[test]
fn a_sum_that_is_empty_is_one_of_zeros() {
    for [m, n, k] in [[20, 40, 100], [300, 40, 1664]] {
        let (a, b) = (noise(m * k, 14), noise(n * k, 15));
        let (a, b) = (Operand::along(&a, m, k), Right::Plain(Operand::along(&b, n, k)));
        for precision in [Precision::F32, Precision::Bf16] {
            let [mut empty, mut zeros] = [Vec::new(), vec![0.0; m * n]];
            for sum in [&mut empty, &mut zeros] {
                add_product(precision, a, b, 0.7, sum);
                add_product(precision, a, b, -0.2, sum);
            }
            assert!(empty == zeros && empty.iter().any(|value| *value != 0.0), "{precision:?} [{m}, {n}, {k}]");
        }
    }
}
