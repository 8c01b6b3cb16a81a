//! What operations owe beyond sums in f64: how they round, transformers' values, masks, equal bits.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;

use half::bf16;
use imp_model::{
    Precision,
    tensor::{self, Activation, Graph, Mat, Place, Weight},
};
use support::random;

fn random_mat(rows: usize, cols: usize, seed: u64) -> Mat {
    Mat::from_host(rows, cols, random(seed, rows * cols))
}

/// In bf16 operands are rounded, to the nearest value and ties to even, and nothing else is: the product of the rounded
/// operands differs only by the order of the sum in f32.
#[test]
fn operands_are_rounded_to_nearest_even() {
    let (rows, inputs, outputs) = (11, 37, 5);
    let (x, w, v) = (random(1, rows * inputs), random(2, outputs * inputs), random(3, 2 * outputs));
    let round = |value: f64| f64::from(bf16::from_f32(value as f32).to_f32());
    let low = |values: &[f32]| values.iter().map(|value| round(f64::from(*value))).collect::<Vec<_>>();
    let (exact_x, exact_w, exact_v) = (low(&x), low(&w), low(&v));
    // The gradient of the sum of y V^T with respect to a row of y, which is an operand again.
    let exact_dy: Vec<f64> = (0..outputs).map(|out| round(exact_v[out] + exact_v[outputs + out])).collect();
    let place = Place::host(Precision::Bf16);
    let mat = |rows, cols, values: &[f32]| Mat::from_host(rows, cols, values.to_vec()).to(&place).trainable();
    let (x, w, v, graph) = (mat(rows, inputs, &x), mat(outputs, inputs, &w), mat(2, outputs, &v), Graph::recording());
    let y = tensor::linear(&graph, &x, &Weight::Dense(w.clone()), None);
    let near = |ours: &[f32], theirs: &dyn Fn(usize) -> f64| {
        for (index, ours) in ours.iter().enumerate() {
            assert!((f64::from(*ours) - theirs(index)).abs() < 2e-5, "{ours} instead of {}", theirs(index));
        }
    };
    let sum = |count: usize, f: &dyn Fn(usize) -> f64| (0..count).map(f).sum::<f64>();
    near(&y.to_host(), &|at| sum(inputs, &|i| exact_x[at / outputs * inputs + i] * exact_w[at % outputs * inputs + i]));
    let mut gradients = graph.backward(&tensor::linear(&graph, &y, &Weight::Dense(v), None));
    near(&gradients.take(&x).to_host(), &|at| sum(outputs, &|out| exact_dy[out] * exact_w[out * inputs + at % inputs]));
    near(&gradients.take(&w).to_host(), &|at| {
        sum(rows, &|row| exact_dy[at / inputs] * exact_x[row * inputs + at % inputs])
    });

    for place in support::places().into_iter().map(|(_, place)| place).filter(|p| p.precision == Precision::Bf16) {
        let ties = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0];
        let one = Weight::Dense(Mat::from_host(1, 1, vec![1.0]).to(&place));
        let y = tensor::linear(&Graph::inference(), &Mat::from_host(3, 1, ties.to_vec()), &one, None);
        assert_eq!(*y.to_host(), [1.0, 1.0 + 4.0 / 256.0, -1.0], "{place:?}");
    }
}

/// On values from -6 to 6.
#[test]
fn activations_equal_those_of_transformers() {
    let expected = support::Fixture::open("activations.safetensors");
    let x = expected.f32("x");
    for (name, kind) in [
        ("gelu_erf(projector)", Activation::GeluErf),
        ("gelu_new(phi)", Activation::GeluTanh),
        ("gelu_pytorch_tanh(siglip)", Activation::GeluTanh),
        ("silu(qwen2,phi3)", Activation::Silu),
    ] {
        let y = tensor::activation(&Graph::inference(), &Mat::from_host(1, x.len(), x.clone()), kind);
        support::assert_close(name, &y.to_host(), &expected.f32(name), 2e-6);
    }
    // The derivative of GELU (erf), against differences of its values with a wide step.
    let (graph, step) = (Graph::recording(), 1e-2);
    let moved_by = |delta: f32| {
        let moved = x.iter().map(|x| x + delta).collect();
        tensor::activation(&Graph::inference(), &Mat::from_host(1, x.len(), moved), Activation::GeluErf)
            .to_host()
            .into_owned()
    };
    let leaf = Mat::from_host(1, x.len(), x.clone()).trainable();
    let y = tensor::activation(&graph, &leaf, Activation::GeluErf);
    let loss = tensor::linear(&graph, &y, &Weight::Dense(Mat::from_host(1, x.len(), vec![1.0; x.len()])), None);
    let derivative: Vec<f32> =
        moved_by(step).iter().zip(moved_by(-step)).map(|(high, low)| (high - low) / (2.0 * step)).collect();
    support::assert_close("derivative", &graph.backward(&loss).take(&leaf).to_host(), &derivative, 1e-4);
}

#[test]
fn dropout_has_the_requested_rate_and_preserves_the_mean() {
    let x = Mat::from_host(100, 1000, vec![1.0; 100_000]);
    let drop = |x: &Mat, seed, rows: std::ops::Range<u64>| {
        tensor::dropout(&Graph::inference(), x, 0.3, seed, &rows.collect()).to_host().into_owned()
    };
    let y = drop(&x, 5, 0..100);
    let dropped = y.iter().filter(|value| **value == 0.0).count() as f64 / 1e5;
    let mean = y.iter().map(|value| f64::from(*value)).sum::<f64>() / 1e5;
    // Three standard deviations of the binomial share are 0.0043.
    assert!((dropped - 0.3).abs() < 0.005 && (mean - 1.0).abs() < 0.007, "{dropped} dropped, mean {mean}");
    assert_ne!(y, drop(&x, 6, 0..100), "a different seed gives a different mask");
    let part = Mat::from_host(40, 1000, vec![1.0; 40_000]);
    assert_eq!(y[30_000..70_000], drop(&part, 5, 30..70), "the mask of a row depends on its id only");
    assert_ne!(y[..1000], y[1000..2000], "rows have different masks");
}

/// Few rows, many, and weights that are small.
#[test]
fn linear_layers_of_one_input_give_the_bits_of_each() {
    for (rows, inputs, outputs) in [(3, 160, 128), (40, 160, 128), (40, 20, 30)] {
        for (name, place) in support::places() {
            let mat = |rows, cols, seed| random_mat(rows, cols, seed).to(&place).trainable();
            let [x, w, v] = [mat(rows, inputs, 1), mat(outputs, inputs, 2), mat(outputs, inputs, 3)];
            let bias = mat(1, outputs, 4);
            let frozen =
                Weight::Stored(Arc::new(support::stored(&random(5, outputs * inputs), outputs, inputs).remove(0)))
                    .to(&place);
            let layers = [(&Weight::Dense(w.clone()), Some(&bias)), (&frozen, None), (&Weight::Dense(v.clone()), None)];
            let run = |of: &dyn Fn(&Graph) -> [Mat; 3]| {
                let g = Graph::recording();
                let [a, b, c] = of(&g);
                let y = tensor::silu_gate(&g, &tensor::silu_gate(&g, &a, &b), &c);
                let mut gradients = g.backward(&y);
                let mut all = vec![y.to_host().into_owned()];
                all.extend([&x, &w, &v, &bias].map(|of| gradients.take(of).to_host().into_owned()));
                all
            };
            let each = run(&|g| layers.map(|(weight, bias)| tensor::linear(g, &x, weight, bias)));
            assert_eq!(
                run(&|g| tensor::linear_each(g, &x, layers, |_, y| y)),
                each,
                "{name} [{rows}, {inputs}] to {outputs}"
            );
        }
    }
}
