//! Products by the card against the same products in f32 on the host, for the shapes of the three families, of the encoder
//! and of adapters: the output, both gradients, and the speed of the output.
//!
//! Operands are values of bf16, so both sides multiply the same numbers. The gradient of the output is zeros and twos, by
//! dropout, whose mask is the same everywhere.

use std::{sync::Arc, time::Instant};

use imp_model::{
    Precision,
    encoding::Encoding,
    tensor::{self, Bytes, Device, Graph, Mat, Place, Stored, Weight},
};
use serde_json::json;

use crate::{
    cases::{random, wait},
    median, result,
    sizes::Sizes,
};

/// Rows of one sequence of 729 patches and 256 tokens: no multiple of anything that a card likes.
const SEQUENCE: usize = 985;
/// What may differ beside the rounding of what is stored, as a share of the root mean square: sums in f32 in another order.
/// Operands in TF32, which nobody asked for, would be off by several times as much.
const OTHER_ORDER: f64 = 1e-4;
/// The same for each product of a sum of bf16: tensor cores are said to cut off instead of rounding when they add to a sum, after
/// every 16 products (Fasi et al., Numerical behavior of NVIDIA tensor cores, 2021).
const CUT_OFF: f64 = 2.0 / 16.0 / (1 << 24) as f64;
/// Name, rows, inputs, outputs, and whether the weight trains.
type Shape = (&'static str, usize, usize, usize, bool);

const SHAPES: [Shape; 26] = [
    ("Phi-2 q, k, v, dense", SEQUENCE, 2560, 2560, false),
    ("Phi-2 fc1", SEQUENCE, 2560, 10240, false),
    ("Phi-2 fc2", SEQUENCE, 10240, 2560, false),
    ("Phi-2 head", 128, 2560, 51200, false),
    ("Phi-2 fc1, trained", 512, 2560, 10240, true),
    ("adapter A", SEQUENCE, 2560, 256, true),
    ("adapter A of fc2", SEQUENCE, 10240, 256, true),
    ("adapter B", SEQUENCE, 256, 2560, true),
    ("adapter B of fc1", SEQUENCE, 256, 10240, true),
    ("adapter A, rank 8", SEQUENCE, 2560, 8, true),
    ("Qwen1.5-1.8B q, k, v, o", SEQUENCE, 2048, 2048, false),
    ("Qwen1.5-1.8B gate, up", SEQUENCE, 2048, 5504, false),
    ("Qwen1.5-1.8B down", SEQUENCE, 5504, 2048, false),
    ("Qwen1.5-1.8B head", 64, 2048, 151_936, false),
    ("Phi-3-mini qkv", SEQUENCE, 3072, 9216, false),
    ("Phi-3-mini gate and up", SEQUENCE, 3072, 16384, false),
    ("Phi-3-mini down", SEQUENCE, 8192, 3072, false),
    ("SigLIP patches", 2187, 588, 1152, false),
    ("SigLIP q, k, v, out", 2187, 1152, 1152, false),
    ("SigLIP fc1", 2187, 1152, 4304, false),
    ("SigLIP fc2", 2187, 4304, 1152, false),
    ("projector", 729, 1152, 2560, true),
    // Sums whose length is odd and long, in the gradient of the weight: some versions of cuBLASLt lose their ends.
    ("adapter A, 1025 rows", 1025, 2560, 256, true),
    ("adapter A, 4097 rows", 4097, 2560, 256, true),
    ("one answer's step", 1, 2560, 10240, false),
    ("sixteen answers' step", 16, 10240, 2560, false),
];

/// Compares all shapes in both precisions.
pub(crate) fn compare(sizes: &Sizes) -> bool {
    let device = crate::card();
    let mut ok = true;
    for (index, shape) in SHAPES.into_iter().enumerate() {
        let shape = if sizes.tiny { smaller(shape) } else { shape };
        let operands = Operands::new(shape, index as u64);
        let exact = operands.compute(&Place::default());
        for precision in [Precision::Bf16, Precision::F32] {
            ok &= at(&operands, &exact, &device, precision);
        }
    }
    if !sizes.tiny {
        large(&device);
    }
    ok
}

fn smaller((name, rows, inputs, outputs, trains): Shape) -> Shape {
    let small = |size: usize| (size / 32).clamp(1, 100);
    (name, small(rows), small(inputs).max(8), small(outputs).max(8), trains)
}

/// Values of bf16.
fn rounded(seed: u64, count: usize) -> Vec<f32> {
    let values = random(seed, count);
    // The upper half of an f32 is a value of bf16.
    values.into_iter().map(|value| f32::from_bits(value.to_bits() & 0xffff_0000)).collect()
}

struct Operands {
    shape: Shape,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    stored: Arc<Stored>,
}

/// Output, gradient of the input, and if the weight trains of the weight.
type Results = [Vec<f32>; 3];

impl Operands {
    fn new(shape: Shape, seed: u64) -> Self {
        let (_, rows, inputs, outputs, _) = shape;
        let weight = rounded(seed * 3 + 1, outputs * inputs);
        let bytes = Encoding::Bf16.narrow(&weight);
        let bytes = Bytes::new(Arc::new(bytes), 0..2 * weight.len());
        let stored = Arc::new(Stored::plain(outputs, inputs, Encoding::Bf16, bytes));
        Self { shape, x: rounded(seed * 3, rows * inputs), weight, bias: rounded(seed * 3 + 2, outputs), stored }
    }

    /// Input, weight and bias at a place.
    fn at(&self, place: &Place) -> (Mat, Weight, Mat) {
        let (_, rows, inputs, outputs, trains) = self.shape;
        let mat = |rows, cols, values: &[f32]| Mat::from_host(rows, cols, values.to_vec()).to(place);
        let weight = if trains {
            Weight::Dense(mat(outputs, inputs, &self.weight).trainable())
        } else {
            Weight::Stored(Arc::clone(&self.stored)).to(place)
        };
        (mat(rows, inputs, &self.x).trainable(), weight, mat(1, outputs, &self.bias))
    }

    fn compute(&self, place: &Place) -> Results {
        let (_, rows, ..) = self.shape;
        let (x, weight, bias) = self.at(place);
        let graph = Graph::recording();
        let y = tensor::linear(&graph, &x, &weight, Some(&bias));
        let output = y.to_host().into_owned();
        let names: Arc<[u64]> = (0..rows as u64).collect();
        let mut gradients = graph.backward(&tensor::dropout(&graph, &y, 0.5, 1, &names));
        let dw = weight.trained().map(|weight| gradients.take(weight).to_host().into_owned());
        [output, gradients.take(&x).to_host().into_owned(), dw.unwrap_or_default()]
    }
}

fn at(operands: &Operands, exact: &Results, device: &Device, precision: Precision) -> bool {
    let (name, rows, inputs, outputs, trains) = operands.shape;
    let place = Place::device(device.clone(), precision);
    let first = operands.compute(&place);
    let again = operands.compute(&place) == first;
    let sums = [inputs, outputs, rows];
    let errors: Vec<f64> =
        first.iter().zip(exact).zip(sums).map(|((ours, exact), sum)| excess(ours, exact, precision, sum)).collect();
    let ok = again && errors.iter().all(|excess| *excess <= 1.0);
    result(&json!({
        "part": "products",
        "name": name,
        "shape": [rows, inputs, outputs],
        "trains": trains,
        "precision": precision,
        "ok": ok,
        // As a share of what is allowed.
        "output": errors[0],
        "input_gradient": errors[1],
        "weight_gradient": errors[2],
        "same_bits_again": again,
        "tflops": speed(operands, &place),
    }));
    ok
}

/// The largest difference of sums of `sum` products as a share of what is allowed. More than 1 is too much.
fn excess(ours: &[f32], exact: &[f32], precision: Precision, sum: usize) -> f64 {
    assert_eq!(ours.len(), exact.len());
    let squares: f64 = exact.iter().map(|value| f64::from(*value).powi(2)).sum();
    let size = (squares / exact.len().max(1) as f64).sqrt();
    // Half a unit in the last place of bf16, and a little for a value next to a tie.
    let (rounding, cut_off) = if precision == Precision::Bf16 { (1.0 / 256.0, CUT_OFF) } else { (1e-6, 0.0) };
    let share = |(ours, exact): (&f32, &f32)| {
        let (ours, exact) = (f64::from(*ours), f64::from(*exact));
        let allowed = rounding * exact.abs() + (OTHER_ORDER + cut_off * sum as f64) * size;
        // Not a number is never near.
        let share = (ours - exact).abs() / allowed.max(f64::MIN_POSITIVE);
        if share.is_finite() { share } else { f64::MAX }
    };
    ours.iter().zip(exact).map(share).fold(0.0, f64::max)
}

/// TFLOP/s of the output, with bias, without the gradients.
fn speed(operands: &Operands, place: &Place) -> f64 {
    let (_, rows, inputs, outputs, _) = operands.shape;
    let (x, weight, bias) = operands.at(place);
    // In the type of activations: otherwise each product would first convert them.
    let [x, bias] = [x, bias].map(|mat| tensor::activation(&Graph::inference(), &mat, tensor::Activation::GeluErf));
    2.0 * (rows * inputs * outputs) as f64
        / seconds(|| tensor::linear(&Graph::inference(), &x, &weight, Some(&bias)))
        / 1e12
}

/// The time of a product among many, without that of waiting for the last one.
fn seconds(product: impl Fn() -> Mat) -> f64 {
    const TOGETHER: f64 = 0.02;
    let timed = |count: usize| {
        let began = Instant::now();
        let last = (0..count).map(|_| product()).last().unwrap();
        wait(&last);
        let whole = began.elapsed().as_secs_f64();
        let began = Instant::now();
        wait(&last);
        (whole - began.elapsed().as_secs_f64()).max(f64::MIN_POSITIVE) / count as f64
    };
    timed(2);
    let count = (TOGETHER / timed(4)).clamp(4.0, 1000.0) as usize;
    median(&(0..5).map(|_| timed(count)).collect::<Vec<_>>())
}

/// What the card can do at best: a product of 8192 by 8192 by 8192.
fn large(device: &Device) {
    let size = 8192;
    let place = Place::device(device.clone(), Precision::Bf16);
    let bytes = Encoding::Bf16.narrow(&rounded(1, size * size));
    let weight = Stored::plain(size, size, Encoding::Bf16, Bytes::new(Arc::new(bytes), 0..2 * size * size));
    let weight = Weight::Stored(Arc::new(weight)).to(&place);
    let x = Mat::from_host(size, size, rounded(2, size * size)).to(&place);
    // In bf16 already, as activations are: otherwise each product would first convert it.
    let x = tensor::linear(&Graph::inference(), &x, &weight, None);
    let tflops =
        2.0 * (size as f64).powi(3) / seconds(|| tensor::linear(&Graph::inference(), &x, &weight, None)) / 1e12;
    result(
        &json!({ "part": "products", "name": "8192 x 8192 x 8192", "precision": "bf16", "ok": true, "tflops": tflops }),
    );
}
