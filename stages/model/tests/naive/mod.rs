//! Compares an operation with a naive f64 version: values, gradients (central differences in f64), and that the number
//! of threads does not change a bit. Independent of the operations.

use imp_model::tensor::{self, Graph, Mat, Weight};

/// The weight of output `index` in the scalar whose gradients are compared; different for each output.
fn weight_of(index: usize) -> f64 {
    (index as f64 * 0.7 + 0.3).sin()
}

/// Returns the values of `op`, and the tape's gradients of the weighted sum of the values with respect to `inputs`.
fn by_tape(inputs: &[Mat], op: impl Fn(&Graph, &[Mat]) -> Mat) -> (Vec<f32>, Vec<Vec<f32>>) {
    let graph = Graph::recording();
    let inputs: Vec<Mat> = inputs.iter().map(|input| input.clone().trainable()).collect();
    let y = op(&graph, &inputs);
    let values = y.to_host().into_owned();
    // The weighted sum as a linear layer from [1, count] to [1, 1].
    let weights = (0..values.len()).map(|i| weight_of(i) as f32).collect();
    let weights = Weight::Dense(Mat::from_host(1, values.len(), weights));
    let loss = tensor::linear(&graph, &flatten(&graph, &y), &weights, None);
    let mut gradients = graph.backward(&loss);
    (values, inputs.iter().map(|input| gradients.take(input).to_host().into_owned()).collect())
}

/// Reshapes to one row. A linear layer per row moves it to its columns; the rest is zeros.
fn flatten(graph: &Graph, y: &Mat) -> Mat {
    let (rows, cols) = (y.rows(), y.cols());
    let mut wide = Mat::zeros(1, rows * cols);
    for row in 0..rows {
        let one = tensor::pick_rows(graph, y, [row]); // [1, cols]
        let mut to = vec![0.0; rows * cols * cols]; // [rows * cols, cols]
        for col in 0..cols {
            to[(row * cols + col) * cols + col] = 1.0;
        }
        let to = Weight::Dense(Mat::from_host(rows * cols, cols, to));
        wide = tensor::add(graph, wide, &tensor::linear(graph, &one, &to, None));
    }
    wide
}

/// Compares values and gradients of `op` with those of `naive`, and the results of one thread with those of three.
/// `naive` maps the inputs' values to the output's values in f64.
pub(crate) fn check(
    inputs: &[Mat],
    op: impl Fn(&Graph, &[Mat]) -> Mat + Sync,
    naive: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    compare(inputs, by_tape(inputs, &op), naive);
    let threads = |count| rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
    let (one, three) = (threads(1).install(|| by_tape(inputs, &op)), threads(3).install(|| by_tape(inputs, &op)));
    assert_eq!(one, three, "one and three threads");
}

fn compare(inputs: &[Mat], (values, gradients): (Vec<f32>, Vec<Vec<f32>>), naive: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
    let exact: Vec<Vec<f64>> =
        inputs.iter().map(|input| input.to_host().iter().map(|v| f64::from(*v)).collect()).collect();
    let expected = naive(&exact);
    assert_eq!(values.len(), expected.len(), "number of outputs");
    for (ours, theirs) in values.iter().zip(expected) {
        assert!((f64::from(*ours) - theirs).abs() < 2e-5 * theirs.abs().max(1.0), "value {ours} instead of {theirs}");
    }
    let sum = |inputs: &[Vec<f64>]| naive(inputs).iter().enumerate().map(|(i, y)| y * weight_of(i)).sum::<f64>();
    assert_eq!(gradients.len(), exact.len(), "number of inputs");
    for (input, gradient) in gradients.iter().enumerate() {
        assert_eq!(gradient.len(), exact[input].len(), "number of values of input {input}");
        for (index, ours) in gradient.iter().enumerate() {
            let moved_by = |delta: f64| {
                let mut moved = exact.clone();
                moved[input][index] += delta;
                sum(&moved)
            };
            let theirs = (moved_by(1e-5) - moved_by(-1e-5)) / 2e-5;
            assert!(
                (f64::from(*ours) - theirs).abs() < 1e-4 * theirs.abs().max(1.0),
                "gradient {ours} instead of {theirs}"
            );
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
