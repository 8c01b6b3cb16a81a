//! Compares an operation with a naive f64 version at every place: values, gradients (central differences in f64), and that
//! the number of threads does not change a bit. Independent of the operations.
//!
//! In bf16 the inputs and the gradient of the output are values that bf16 has, so that the naive version needs no rounding:
//! what is left are the roundings of intermediate results, each by at most 2^-8 of its size (bf16 has eight significant bits).

use half::bf16;
use imp_model::{
    Precision,
    tensor::{self, Graph, Mat, Place, Weight},
};

use crate::support::{other_orders, places};

/// The weight of output `index` in the scalar whose gradients are compared; different for each output, and a value of bf16.
fn weight_of(index: usize) -> f64 {
    bf16::from_f64((index as f64 * 0.7 + 0.3).sin()).to_f64()
}

/// Returns the values of `op`, and the tape's gradients of the weighted sum of the values with respect to `inputs`.
fn by_tape(inputs: &[Mat], op: impl Fn(&Graph, &[Mat]) -> Mat) -> (Vec<f32>, Vec<Vec<f32>>) {
    let graph = Graph::recording();
    let inputs: Vec<Mat> = inputs.iter().map(|input| input.clone().trainable()).collect();
    let y = op(&graph, &inputs);
    let values = y.to_host().into_owned();
    // The weighted sum as a linear layer from [1, count] to [1, 1].
    let weights = (0..values.len()).map(|i| weight_of(i) as f32).collect();
    let weights = Weight::Dense(Mat::from_host(1, values.len(), weights).to(&y.place()));
    let loss = tensor::linear(&graph, &flatten(&graph, &y), &weights, None);
    let mut gradients = graph.backward(&loss);
    (values, inputs.iter().map(|input| gradients.take(input).to_host().into_owned()).collect())
}

/// Reshapes to one row. A linear layer per row moves it to its columns; the rest is zeros.
fn flatten(graph: &Graph, y: &Mat) -> Mat {
    let (rows, cols) = (y.rows(), y.cols());
    let mut wide = Mat::zeros(1, rows * cols).to(&y.place());
    for row in 0..rows {
        let one = tensor::pick_rows(graph, y, [row]); // [1, cols]
        let mut to = vec![0.0; rows * cols * cols]; // [rows * cols, cols]
        for col in 0..cols {
            to[(row * cols + col) * cols + col] = 1.0;
        }
        let to = Weight::Dense(Mat::from_host(rows * cols, cols, to).to(&y.place()));
        wide = tensor::add(graph, wide, &tensor::linear(graph, &one, &to, None));
    }
    wide
}

/// How far values and gradients may be off, relative to the larger of 1 and themselves.
struct Tolerance {
    value: f64,
    gradient: f64,
}

impl Tolerance {
    /// In f32, sums of up to a few dozen values of size 1. In bf16, four roundings
    /// in a row of values of that size; of gradients, whose terms are larger, twice that.
    fn at(place: &Place) -> Self {
        match place.precision {
            Precision::F32 => Self { value: 2e-5, gradient: 1e-4 },
            Precision::Bf16 => Self { value: 4.0 / 256.0, gradient: 8.0 / 256.0 },
        }
    }
}

/// Compares values and gradients of `op` at every place with those of `naive`, which maps the inputs' values to the
/// output's values in f64.
pub(crate) fn check(
    inputs: &[Mat],
    op: impl Fn(&Graph, &[Mat]) -> Mat + Sync,
    naive: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    check_at(inputs, op, |inputs, _| naive(inputs));
}

/// Like [`check`], for an operation that adds up results of products, which may cancel. In bf16 its values are off by at most
/// four roundings of 2^-8 of what was added up: the magnitudes of all terms, which `naive` gives for the inputs' magnitudes.
pub(crate) fn check_sums(
    inputs: &[Mat],
    op: impl Fn(&Graph, &[Mat]) -> Mat + Sync,
    naive: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    check_within(
        inputs,
        op,
        |inputs, _| naive(inputs),
        |exact| {
            let magnitudes: Vec<Vec<f64>> =
                exact.iter().map(|values| values.iter().map(|v| v.abs()).collect()).collect();
            naive(&magnitudes).into_iter().map(|size| 4.0 / 256.0 * size).collect()
        },
    );
}

/// Like [`check`], for an operation with frozen weights, which `naive` rounds to the precision itself. Also compares, to the
/// bit, the results of one thread on the host with those of three, and those of a device for three orders of its threads.
pub(crate) fn check_at(
    inputs: &[Mat],
    op: impl Fn(&Graph, &[Mat]) -> Mat + Sync,
    naive: impl Fn(&[Vec<f64>], Precision) -> Vec<f64>,
) {
    let bound = Tolerance::at(&Place::host(Precision::Bf16)).value;
    check_within(inputs, op, &naive, |exact| {
        naive(exact, Precision::Bf16).into_iter().map(|value| bound * value.abs().max(1.0)).collect()
    });
}

/// `bound` gives how far each value may be off in bf16.
fn check_within(
    inputs: &[Mat],
    op: impl Fn(&Graph, &[Mat]) -> Mat + Sync,
    naive: impl Fn(&[Vec<f64>], Precision) -> Vec<f64>,
    bound: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    for (name, place) in places() {
        let inputs: Vec<Mat> = inputs
            .iter()
            .map(|input| {
                let values = input.to_host().iter().map(|value| rounded(*value, place.precision)).collect();
                Mat::from_host(input.rows(), input.cols(), values)
            })
            .collect();
        let at = |place: &Place| -> Vec<Mat> { inputs.iter().map(|input| input.to(place)).collect() };
        let result = by_tape(&at(&place), &op);
        if place.device.is_none() {
            let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
            let run = |count| threads(count).install(|| by_tape(&at(&place), &op));
            assert_eq!(run(1), run(3), "{name}: one and three threads");
        } else {
            for other in other_orders(&place) {
                assert_eq!(by_tape(&at(&other), &op), result, "{name}: orders of threads");
            }
        }
        let within = Tolerance::at(&place);
        let bounds = |exact: &[Vec<f64>], expected: &[f64]| match place.precision {
            Precision::F32 => expected.iter().map(|value| within.value * value.abs().max(1.0)).collect(),
            Precision::Bf16 => bound(exact),
        };
        compare(&name, &inputs, result, &|inputs| naive(inputs, place.precision), bounds, within.gradient);
    }
}

/// A value that `precision` has.
pub(crate) fn rounded(value: f32, precision: Precision) -> f32 {
    match precision {
        Precision::F32 => value,
        Precision::Bf16 => bf16::from_f32(value).to_f32(),
    }
}

fn compare(
    name: &str,
    inputs: &[Mat],
    (values, gradients): (Vec<f32>, Vec<Vec<f32>>),
    naive: &impl Fn(&[Vec<f64>]) -> Vec<f64>,
    bounds: impl Fn(&[Vec<f64>], &[f64]) -> Vec<f64>,
    within: f64,
) {
    let exact: Vec<Vec<f64>> =
        inputs.iter().map(|input| input.to_host().iter().map(|v| f64::from(*v)).collect()).collect();
    let expected = naive(&exact);
    assert_eq!(values.len(), expected.len(), "{name}: number of outputs");
    for ((ours, theirs), bound) in values.iter().zip(&expected).zip(bounds(&exact, &expected)) {
        assert!((f64::from(*ours) - theirs).abs() <= bound, "{name}: value {ours} instead of {theirs}");
    }
    let sum = |inputs: &[Vec<f64>]| naive(inputs).iter().enumerate().map(|(i, y)| y * weight_of(i)).sum::<f64>();
    assert_eq!(gradients.len(), exact.len(), "{name}: number of inputs");
    for (input, gradient) in gradients.iter().enumerate() {
        assert_eq!(gradient.len(), exact[input].len(), "{name}: number of values of input {input}");
        for (index, ours) in gradient.iter().enumerate() {
            let moved_by = |delta: f64| {
                let mut moved = exact.clone();
                moved[input][index] += delta;
                sum(&moved)
            };
            let theirs = (moved_by(1e-5) - moved_by(-1e-5)) / 2e-5;
            let close = (f64::from(*ours) - theirs).abs() < within * theirs.abs().max(1.0);
            assert!(close, "{name}: gradient {ours} instead of {theirs}");
        }
    }
}

/// The error function by its Taylor series, accurate to f64 rounding for the arguments in these tests.
pub(crate) fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
