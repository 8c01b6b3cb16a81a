//! Values and gradients of every operation, on random shapes, against naive f64 versions.
#![allow(clippy::unwrap_used, missing_docs)]

mod naive;
mod support;

use std::sync::Arc;

use imp_model::tensor::{self, Activation, Graph, Mask, Mat, Rotation, Segments, Weight};
use naive::{check, check_at, check_sums, erf, rounded};
use proptest::prelude::*;
use support::{random, softmax, visible};

fn random_mat(rows: usize, cols: usize, seed: u64) -> Mat {
    Mat::from_host(rows, cols, random(seed, rows * cols))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn linear(rows in 1_usize..5, inputs in 1_usize..7, outputs in 1_usize..6, seed in 0_u64..100) {
        let mats = [
            random_mat(rows, inputs, seed),
            random_mat(outputs, inputs, seed + 1),
            random_mat(1, outputs, seed + 2),
        ];
        check(&mats, |g, m| tensor::linear(g, &m[0], &Weight::Dense(m[1].clone()), Some(&m[2])), |m| {
            (0..rows * outputs).map(|at| {
                let (row, out) = (at / outputs, at % outputs);
                m[2][out] + (0..inputs).map(|i| m[0][row * inputs + i] * m[1][out * inputs + i]).sum::<f64>()
            }).collect()
        });
    }

    #[test]
    fn layer_norm(rows in 1_usize..5, width in 2_usize..9, seed in 0_u64..100) {
        let mats = [
            random_mat(rows, width, seed),
            random_mat(1, width, seed + 1),
            random_mat(1, width, seed + 2),
        ];
        check(&mats, |g, m| tensor::layer_norm(g, &m[0], &m[1], &m[2], 1e-2), |m| {
            m[0].chunks(width).flat_map(|x| {
                let mean = x.iter().sum::<f64>() / width as f64;
                let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                let epsilon = f64::from(1e-2_f32);
                x.iter().enumerate().map(|(i, x)| (x - mean) / (variance + epsilon).sqrt() * m[1][i] + m[2][i]).collect::<Vec<_>>()
            }).collect()
        });
    }

    #[test]
    fn rms_norm(rows in 1_usize..5, width in 1_usize..40, seed in 0_u64..100) {
        let mats = [random_mat(rows, width, seed), random_mat(1, width, seed + 1)];
        check(&mats, |g, m| tensor::rms_norm(g, &m[0], &m[1], 1e-2), |m| {
            m[0].chunks(width).flat_map(|x| {
                let squares = x.iter().map(|x| x * x).sum::<f64>() / width as f64;
                x.iter().zip(&m[1]).map(move |(x, w)| x / (squares + f64::from(1e-2_f32)).sqrt() * w).collect::<Vec<_>>()
            }).collect()
        });
    }

    /// With two matrices, and with one matrix as gate and up.
    #[test]
    fn silu_gate(rows in 1_usize..5, width in 1_usize..9, seed in 0_u64..100) {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mats = [1, 2].map(|part| Mat::from_host(rows, width, random(seed + part, rows * width).iter().map(|x| x * 2.0).collect()));
        check(&mats, |g, m| tensor::silu_gate(g, &m[0], &m[1]), |m| {
            m[0].iter().zip(&m[1]).map(|(gate, up)| silu(*gate) * up).collect()
        });
        check(&mats[..1], |g, m| tensor::silu_gate(g, &m[0], &m[0]), |m| m[0].iter().map(|x| silu(*x) * x).collect());
    }

    #[test]
    fn columns(rows in 1_usize..4, widths in prop::collection::vec(1_usize..5, 1..4), seed in 0_u64..100) {
        let whole: usize = widths.iter().sum();
        let mats = [random_mat(rows, whole, seed)];
        let start = |part: usize| widths[..part].iter().sum::<usize>();
        for (part, width) in widths.iter().copied().enumerate() {
            check(&mats, |g, m| tensor::columns(g, &m[0], start(part), width), |m| {
                m[0].chunks(whole).flat_map(|row| row[start(part)..start(part) + width].to_vec()).collect()
            });
        }
    }

    /// With a trainable weight, and with an input that is used twice.
    #[test]
    fn recompute(rows in 1_usize..4, width in 1_usize..6, seed in 0_u64..100) {
        let mats = [random_mat(rows, width, seed), random_mat(width, width, seed + 1)];
        check_sums(&mats, |g, m| {
            let weight = m[1].clone();
            tensor::recompute(g, &m[0], vec![m[1].clone()], move |g, x| {
                let y = tensor::linear(g, x, &Weight::Dense(weight.clone()), None);
                tensor::add(g, tensor::activation(g, &y, Activation::Silu), x)
            })
        }, |m| {
            m[0].chunks(width).flat_map(|x| (0..width).map(|out| {
                let y: f64 = x.iter().zip(&m[1][out * width..]).map(|(x, w)| x * w).sum();
                y / (1.0 + (-y).exp()) + x[out]
            }).collect::<Vec<_>>()).collect()
        });
    }

    /// A frozen weight in every encoding: values, and gradients of input and bias.
    #[test]
    fn frozen_linear(rows in 1_usize..14, inputs in 1_usize..40, outputs in 1_usize..40, seed in 0_u64..100) {
        let weight = random(seed + 1, outputs * inputs);
        let mats = [random_mat(rows, inputs, seed), random_mat(1, outputs, seed + 2)];
        for stored in support::stored(&weight, outputs, inputs) {
            let exact = stored.to_f32();
            let stored = Weight::Stored(Arc::new(stored));
            check_at(&mats, |g, m| tensor::linear(g, &m[0], &stored.to(&m[0].place()), Some(&m[1])), |m, precision| {
                m[0].chunks(inputs).flat_map(|x| (0..outputs).map(|out| {
                    let weight = exact[out * inputs..].iter().map(|w| f64::from(rounded(*w, precision)));
                    m[1][out] + x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>()
                }).collect::<Vec<_>>()).collect()
            });
        }
    }

    #[test]
    fn attention(lengths in prop::collection::vec(1_usize..5, 1..3), groups in 1_usize..3, kv_heads in 1_usize..3,
                 mask in prop_oneof![Just(Mask::Causal), Just(Mask::Full), (1_usize..4).prop_map(Mask::Window)], seed in 0_u64..100) {
        let (dim, heads) = (3, groups * kv_heads);
        let segments = Segments::new(lengths.clone());
        let (rows, width, key_width) = (segments.rows(), heads * dim, kv_heads * dim);
        let mats = [
            random_mat(rows, width, seed),
            random_mat(rows, key_width, seed + 1),
            random_mat(rows, key_width, seed + 2),
        ];
        check(&mats, |g, m| tensor::attention(g, &m[0], &m[1], &m[2], heads, &segments, mask), |m| {
            let mut out = vec![0.0; rows * width];
            for range in segments.iter() {
                for (row, head) in range.clone().flat_map(|row| (0..heads).map(move |head| (row, head))) {
                    let (first, end) = visible(mask, row, &range);
                    let key = |j: usize, i: usize| j * key_width + head / groups * dim + i;
                    let scores: Vec<f64> = (first..end).map(|j| {
                        (0..dim).map(|i| m[0][row * width + head * dim + i] * m[1][key(j, i)]).sum::<f64>() / (dim as f64).sqrt()
                    }).collect();
                    for (p, j) in softmax(&scores).iter().zip(first..) {
                        for i in 0..dim {
                            out[row * width + head * dim + i] += p * m[2][key(j, i)];
                        }
                    }
                }
            }
            out
        });
    }

    #[test]
    fn rotary(rows in 1_usize..4, heads in 1_usize..3, half in 1_usize..3, rest in 0_usize..3, seed in 0_u64..100) {
        let (dims, head_dim) = (half * 2, half * 2 + rest);
        let width = heads * head_dim;
        let positions: Vec<usize> = (0..rows).map(|row| row * 3 + 1).collect();
        let mats = [random_mat(rows, width, seed)];
        let frequencies: Vec<f32> = (0..half).map(|i| 100.0_f32.powf(-2.0 * i as f32 / dims as f32)).collect();
        let rotation = Rotation::new(positions.iter().map(|position| (*position, &frequencies[..])), 1.5);
        check(&mats, |g, m| tensor::rotate(g, m[0].clone(), head_dim, &rotation), |m| {
            let mut out = m[0].clone();
            for (row, head, i) in (0..rows).flat_map(|r| (0..heads).flat_map(move |h| (0..half).map(move |i| (r, h, i)))) {
                let angle = positions[row] as f64 * 100.0_f64.powf(-2.0 * i as f64 / dims as f64);
                let (a, b) = (row * width + head * head_dim + i, row * width + head * head_dim + i + half);
                out[a] = 1.5 * (m[0][a] * angle.cos() - m[0][b] * angle.sin());
                out[b] = 1.5 * (m[0][b] * angle.cos() + m[0][a] * angle.sin());
            }
            out
        });
    }

    #[test]
    fn cross_entropy(rows in 1_usize..5, width in 2_usize..8, seed in 0_u64..100) {
        let mats = [random_mat(rows, width, seed)];
        let targets: Vec<u32> = (0..rows).map(|row| ((row * 7 + seed as usize) % width) as u32).collect();
        check(&mats, |g, m| tensor::cross_entropy(g, &m[0], targets.clone(), rows + 2), |m| {
            let loss: f64 = m[0].chunks(width).zip(&targets).map(|(row, t)| -softmax(row)[*t as usize].ln()).sum();
            vec![loss / (rows + 2) as f64]
        });
    }

    #[test]
    fn activations(count in 1_usize..20, seed in 0_u64..100) {
        let mats = [Mat::from_host(1, count, random(seed, count).iter().map(|x| x * 3.0).collect())];
        check(&mats, |g, m| tensor::activation(g, &m[0], Activation::Silu), |m| {
            m[0].iter().map(|x| x / (1.0 + (-x).exp())).collect()
        });
        check(&mats, |g, m| tensor::activation(g, &m[0], Activation::GeluTanh), |m| {
            m[0].iter().map(|x| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())).collect()
        });
        check(&mats, |g, m| tensor::activation(g, &m[0], Activation::GeluErf), |m| {
            m[0].iter().map(|x| 0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt()))).collect()
        });
    }

    /// A matrix of ones shows the mask.
    #[test]
    fn dropout(rows in 1_usize..5, width in 1_usize..9, rate in 0.1_f32..0.9, seed in 0_u64..100) {
        let names: Arc<[u64]> = (0..rows as u64).map(|row| row * 7 + 3).collect();
        let ones = Mat::from_host(rows, width, vec![1.0; rows * width]);
        let mask = tensor::dropout(&Graph::inference(), &ones, rate, seed, &names);
        let values = [0.0, 1.0 / (1.0 - rate)].map(f32::to_bits);
        assert!(mask.to_host().iter().all(|value| values.contains(&value.to_bits())));
        let mats = [random_mat(rows, width, seed)];
        check(&mats, |g, m| tensor::dropout(g, &m[0], rate, seed, &names), |m| {
            m[0].iter().zip(&*mask.to_host()).map(|(x, mask)| x * f64::from(*mask)).collect()
        });
        check(&mats, |g, m| tensor::dropout_rest(g, &m[0], rate, seed, &names), |m| {
            m[0].iter().zip(&*mask.to_host()).map(|(x, mask)| x - x * f64::from(*mask)).collect()
        });
    }

    /// The norms are constant: what trains does not go through them.
    #[test]
    fn set_norms(rows in 1_usize..5, width in 1_usize..40, seed in 0_u64..100) {
        let mats = [random_mat(rows, width, seed), random_mat(1, width, seed + 1)];
        let norms: Vec<f32> = random(seed + 2, width).iter().map(|norm| 2.0 + norm).collect();
        let constant = Mat::from_host(1, width, norms.clone());
        check(&mats, |g, m| tensor::set_norms(g, &m[0], &m[1], &constant.to(&m[0].place())), |m| {
            let factor = |i: usize| m[1][i % width] / f64::from(norms[i % width]);
            m[0].iter().enumerate().map(|(i, x)| x * factor(i)).collect()
        });
    }

    /// The norms of W + scale B A from products of A with W and with itself.
    #[test]
    fn row_norms(outputs in 1_usize..9, inputs in 1_usize..9, rank in 1_usize..5, seed in 0_u64..100) {
        let (w, a, b) = (random(seed, outputs * inputs), random(seed + 1, rank * inputs), random(seed + 2, outputs * rank));
        let scale = 0.7_f32;
        let product = |x: &[f32], y: &[f32], width: usize| -> Vec<f32> {
            let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32;
            x.chunks(width).flat_map(|x| y.chunks(width).map(move |y| dot(x, y))).collect()
        };
        let gram = product(&a, &a, inputs);
        let (wa, ba) = (product(&a, &w, inputs), product(&b, &gram, rank));
        let squares: Vec<f32> = w.chunks(inputs).map(|row| row.iter().map(|w| w * w).sum()).collect();
        let exact: Vec<f32> = (0..outputs).map(|row| {
            let adapted = |i: usize| {
                let delta: f64 = (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * inputs + i])).sum();
                f64::from(w[row * inputs + i]) + f64::from(scale) * delta
            };
            (0..inputs).map(|i| adapted(i).powi(2)).sum::<f64>().sqrt() as f32
        }).collect();
        for (name, place) in support::places() {
            let at = |rows: usize, values: &[f32]| Mat::from_host(rows, values.len() / rows, values.to_vec()).to(&place);
            let norms = tensor::row_norms(&at(1, &squares), &at(outputs, &b), &at(rank, &wa), &at(outputs, &ba), scale);
            // Small norms are differences of large squares.
            support::assert_close(&name, &norms.to_host(), &exact, 5e-3);
        }
    }

    /// Rows of a frozen and of a trainable matrix.
    #[test]
    fn gather_from_stored(rows in 1_usize..6, width in 1_usize..40, seed in 0_u64..100) {
        let table = random(seed + 1, rows * width);
        let mats = [random_mat(rows, width, seed)];
        let picks: Vec<(usize, usize)> = (0..2 * rows).map(|i| (i % 2, i * 3 % rows)).collect();
        for stored in support::stored(&table, rows, width) {
            let exact = stored.to_f32();
            let stored = Weight::Stored(Arc::new(stored));
            check(&mats, |g, m| tensor::gather(g, &[&stored.to(&m[0].place()), &Weight::Dense(m[0].clone())], picks.clone()), |m| {
                picks.iter().flat_map(|(source, row)| (0..width).map(|col| {
                    let at = row * width + col;
                    if *source == 0 { f64::from(exact[at]) } else { m[0][at] }
                }).collect::<Vec<_>>()).collect()
            });
        }
    }

    #[test]
    fn gather_and_sum(rows in 1_usize..4, width in 1_usize..4, seed in 0_u64..100) {
        let mats = [random_mat(rows, width, seed), random_mat(2, width, seed + 1)];
        let picks: Vec<(usize, usize)> = (0..rows + 3).map(|i| if i % 3 == 0 { (1, i % 2) } else { (0, i % rows) }).collect();
        check(&mats, |g, m| {
            let y = tensor::gather(g, &[&Weight::Dense(m[0].clone()), &Weight::Dense(m[1].clone())], picks.clone());
            let x = tensor::pick_rows(g, &m[0], (0..rows + 3).map(|i| i % rows));
            tensor::add(g, y, &x)
        }, |m| {
            picks.iter().enumerate().flat_map(|(i, (s, r))| {
                (0..width).map(move |col| m[*s][r * width + col] + m[0][i % rows * width + col])
            }).collect()
        });
    }

    /// In place on the output of an operation.
    #[test]
    fn add_rows(periods in 1_usize..4, period in 1_usize..4, width in 1_usize..5, seed in 0_u64..100) {
        let rows = periods * period;
        let mats = [random_mat(rows, width, seed), random_mat(period, width, seed + 1)];
        check(&mats, |g, m| {
            tensor::add_rows(g, tensor::activation(g, &m[0], Activation::Silu), &m[1])
        }, |m| {
            m[0].iter().enumerate().map(|(at, x)| x / (1.0 + (-x).exp()) + m[1][at % (period * width)]).collect()
        });
    }

    /// Also with a repeated part, an empty part, a single part and no part.
    #[test]
    fn concat(rows in 1_usize..4, width in 1_usize..4, seed in 0_u64..100) {
        let mats = [random_mat(rows, width, seed), random_mat(2, width, seed + 1)];
        check(&mats, |g, m| {
            let empty = Mat::zeros(0, width).to(&m[0].place());
            tensor::concat(g, width, &[&m[0], &m[1], &empty, &m[0]])
        }, |m| {
            [&m[0][..], &m[1], &m[0]].concat()
        });
        check(&mats[..1], |g, m| tensor::concat(g, width, &[&m[0]]), |m| m[0].clone());
        let none = tensor::concat(&Graph::inference(), width, &[]);
        assert_eq!((none.rows(), none.cols()), (0, width));
    }

    /// The loss in chunks of at most two rows, with a trainable weight.
    #[test]
    fn sum_over_chunks(rows in 1_usize..6, inputs in 1_usize..5, width in 2_usize..6, seed in 0_u64..100) {
        let mats = [random_mat(rows, inputs, seed), random_mat(width, inputs, seed + 1)];
        let targets: Vec<u32> = (0..rows).map(|row| ((row * 5 + seed as usize) % width) as u32).collect();
        check(&mats, |g, m| tensor::sum_over_chunks(g, &m[0], 2, &[m[1].clone()], |g, part, x| {
            let logits = tensor::linear(g, x, &Weight::Dense(m[1].clone()), None);
            tensor::cross_entropy(g, &logits, targets[part].to_vec(), rows)
        }), |m| {
            let logits = |x: &[f64]| m[1].chunks(inputs).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect::<Vec<f64>>();
            let losses = m[0].chunks(inputs).zip(&targets).map(|(x, t)| -softmax(&logits(x))[*t as usize].ln());
            vec![losses.sum::<f64>() / rows as f64]
        });
    }

    #[test]
    fn low_rank(rows in 1_usize..5, inputs in 1_usize..6, outputs in 1_usize..6, rank in 1_usize..4, seed in 0_u64..100) {
        let shapes = [(rows, inputs), (outputs, inputs), (rank, inputs), (outputs, rank)];
        let mats: Vec<Mat> =
            shapes.iter().enumerate().map(|(i, (r, c))| Mat::from_host(*r, *c, random(seed + i as u64, r * c))).collect();
        check_sums(&mats, |g, m| {
            let y = tensor::linear(g, &m[0], &Weight::Dense(m[1].clone()), None);
            let low = tensor::linear(g, &m[0], &Weight::Dense(m[2].clone()), None);
            tensor::add_low_rank(g, y, &low, &m[3], 0.5)
        }, |m| {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let mut y = Vec::new();
            for x in m[0].chunks(inputs) {
                let low: Vec<f64> = m[2].chunks(inputs).map(|a| dot(x, a)).collect();
                y.extend(m[1].chunks(inputs).zip(m[3].chunks(rank)).map(|(w, b)| dot(x, w) + 0.5 * dot(&low, b)));
            }
            y
        });
    }
}
