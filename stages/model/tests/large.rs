//! Shapes with several tiles and blocks: correct, and equal on any number of threads.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::sync::Arc;

use imp_model::tensor::{self, Graph, Mask, Mat, Segments, Weight};
use support::{random, softmax, visible};

/// Large enough for several tiles in every operation.
#[test]
fn large_shapes_are_the_same_on_any_number_of_threads() {
    let run = || {
        let graph = Graph::recording();
        let (rows, width) = (300, 96);
        let segments = Segments::new([100, 30, 170]);
        let x = Mat::from_host(rows, width, random(1, rows * width)).trainable();
        let w = Mat::from_host(width, width, random(2, width * width)).trainable();
        let n = Mat::from_host(1, width, random(3, width)).trainable();
        let q = tensor::linear(&graph, &x, &Weight::Dense(w.clone()), Some(&n));
        let a = tensor::attention(&graph, &q, &x, &x.clone(), 4, &segments, Mask::Causal);
        let y = tensor::layer_norm(&graph, &tensor::dropout(&graph, &a, 0.1, 9, &(0..300).collect()), &n, &n, 1e-5);
        let loss = tensor::cross_entropy(&graph, &y, (0..rows as u32).map(|row| row % 96).collect(), rows);
        let mut gradients = graph.backward(&loss);
        (loss.item(), [&x, &w, &n].map(|mat| gradients.take(mat).to_host().into_owned()))
    };
    assert_eq!(on_threads(1, run), on_threads(4, run));
}

fn on_threads<T: Send>(count: usize, run: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap().install(run)
}

/// The same for the operations of a gated MLP with frozen weights, recomputed in the backward pass, and a chunked loss.
#[test]
fn large_gated_blocks_are_the_same_on_any_number_of_threads() {
    let (rows, width, inner) = (300, 96, 700);
    let (up, down) = (random(1, 2 * inner * width), random(2, inner * width));
    let downs = support::stored(&down, width, inner).into_iter().map(Arc::new);
    for (up, down) in support::stored(&up, 2 * inner, width).into_iter().map(Arc::new).zip(downs) {
        let run = || {
            let graph = Graph::recording();
            let x = Mat::from_host(rows, width, random(3, rows * width)).trainable();
            let n = Mat::from_host(1, width, random(4, width)).trainable();
            let (up, down, norm) = (Weight::Stored(up.clone()), Weight::Stored(down.clone()), n.clone());
            let y = tensor::recompute(&graph, &x, vec![n.clone()], move |g, x| {
                let both = tensor::linear(g, &tensor::rms_norm(g, x, &norm, 1e-5), &up, None);
                let [gate, up] = [0, inner].map(|start| tensor::columns(g, &both, start, inner));
                tensor::add(g, tensor::linear(g, &tensor::silu_gate(g, &gate, &up), &down, None), x)
            });
            let loss = tensor::sum_over_chunks(&graph, &y, 77, &[], |g, part, y| {
                tensor::cross_entropy(g, y, part.map(|row| (row % width) as u32).collect(), rows)
            });
            let mut gradients = graph.backward(&loss);
            (loss.item(), [&x, &n].map(|mat| gradients.take(mat).to_host().into_owned()))
        };
        assert_eq!(on_threads(1, run), on_threads(4, run));
    }
}

/// Few rows, as in generation, for which the weight is split instead.
#[test]
fn few_rows_are_the_same_on_any_number_of_threads() {
    let (inputs, outputs) = (700, 1500);
    for stored in support::stored(&random(1, outputs * inputs), outputs, inputs).into_iter().map(Arc::new) {
        for rows in [1, 3, 8] {
            let x = random(2, rows * inputs);
            let run = || {
                let x = Mat::from_host(rows, inputs, x.clone());
                tensor::linear(&Graph::inference(), &x, &Weight::Stored(stored.clone()), None).to_host().into_owned()
            };
            assert_eq!(on_threads(1, run), on_threads(4, run));
        }
    }
}

/// Products with tiles in both directions, and widths that are not multiples of the tile size.
#[test]
fn large_products_are_correct() {
    for (rows, inputs, outputs) in [(777, 130, 515), (70, 1030, 300), (1500, 70, 67), (5, 900, 1111)] {
        let mats = [(rows, inputs), (outputs, inputs), (1, outputs)]
            .map(|(r, c)| Mat::from_host(r, c, random(r as u64, r * c)).trainable());
        let graph = Graph::recording();
        let y = tensor::linear(&graph, &mats[0], &Weight::Dense(mats[1].clone()), Some(&mats[2]));
        let [x, w, b] = mats.each_ref().map(Mat::to_host);
        let y_values = y.to_host();
        let dot = |a: &dyn Fn(usize) -> f32, b: &dyn Fn(usize) -> f32, n: usize| {
            (0..n).map(|i| f64::from(a(i)) * f64::from(b(i))).sum::<f64>()
        };
        let near = |ours: f32, theirs: f64, n: usize| {
            let allowed = 1e-6 * n as f64;
            assert!(
                (f64::from(ours) - theirs).abs() < allowed,
                "{ours} instead of {theirs} in [{rows}, {inputs}, {outputs}]"
            );
        };
        for (row, out) in (0..rows).flat_map(|row| (0..outputs).map(move |out| (row, out))).step_by(7) {
            let sum = dot(&|i| x[row * inputs + i], &|i| w[out * inputs + i], inputs);
            near(y_values[row * outputs + out], sum + f64::from(b[out]), inputs);
        }
        // The gradient of the cross-entropy is the softmax minus one at the target.
        let targets: Vec<u32> = (0..rows).map(|row| (row * 31 % outputs) as u32).collect();
        let loss = tensor::cross_entropy(&graph, &y, targets.clone(), 1);
        let mut gradients = graph.backward(&loss);
        let dy: Vec<f32> = (0..rows)
            .flat_map(|row| {
                let exact: Vec<f64> =
                    y_values[row * outputs..(row + 1) * outputs].iter().map(|v| f64::from(*v)).collect();
                let mut p = softmax(&exact);
                p[targets[row] as usize] -= 1.0;
                p.into_iter().map(|p| p as f32)
            })
            .collect();
        let [dx, dw] = [0, 1].map(|at| gradients.take(&mats[at]).to_host().into_owned());
        for at in (0..rows * inputs).step_by(11) {
            let (row, i) = (at / inputs, at % inputs);
            near(dx[at], dot(&|o| dy[row * outputs + o], &|o| w[o * inputs + i], outputs), outputs);
        }
        for at in (0..outputs * inputs).step_by(13) {
            let (out, i) = (at / inputs, at % inputs);
            near(dw[at], dot(&|r| dy[r * outputs + out], &|r| x[r * inputs + i], rows), rows + inputs);
        }
    }
}

/// Sequences of several blocks of rows.
#[test]
fn attention_over_several_blocks_is_correct() {
    let (segments, heads, dim) = (Segments::new([131, 1, 70]), 2, 8);
    let width = heads * dim;
    let [q, k, v] = [1, 2, 3].map(|seed| Mat::from_host(202, width, random(seed, 202 * width)));
    for mask in [Mask::Causal, Mask::Full, Mask::Window(1), Mask::Window(40)] {
        let out = tensor::attention(&Graph::inference(), &q, &k, &v, heads, &segments, mask);
        for range in segments.iter() {
            for (row, head) in range.clone().flat_map(|row| (0..heads).map(move |head| (row, head))) {
                let (first, end) = visible(mask, row, &range);
                let at = |mat: &Mat, row: usize, i: usize| f64::from(mat.to_host()[row * width + head * dim + i]);
                let scores: Vec<f64> = (first..end)
                    .map(|j| (0..dim).map(|i| at(&q, row, i) * at(&k, j, i)).sum::<f64>() / (dim as f64).sqrt())
                    .collect();
                let p = softmax(&scores);
                for i in 0..dim {
                    let exact: f64 = p.iter().zip(first..).map(|(p, j)| p * at(&v, j, i)).sum();
                    assert!((at(&out, row, i) - exact).abs() < 1e-5, "row {row}, head {head}");
                }
            }
        }
    }
}
