//! Attention over packed sequences: the kernels for tensor cores and those for any type and width.
//!
//! Tensor cores take probabilities and gradients of scores in bf16: each is off by up to 2^-8 of itself. So the bound of
//! an output is 2^-8 of the sum of the magnitudes that were added up, which the plain computation returns with the value.

use bytemuck::{Pod, Zeroable};

use super::{Arg, array, generator, grid, input, int, output, random, run, suffix, value};
use crate::tensor::device::driver::{Grid, Type};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Shape {
    heads: i32,
    group: i32,
    dim: i32,
    q_stride: i32,
    kv_stride: i32,
    causal: i32,
    window: i32,
    scale: f32,
}

#[derive(Clone, Debug)]
struct Case {
    lengths: Vec<usize>,
    heads: usize,
    group: usize,
    dim: usize,
    /// Columns that belong to no head, in every row.
    extra: usize,
    causal: bool,
    window: usize,
    stored: Type,
    scale: f32,
}

/// What the kernels read.
struct Inputs {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

/// A matrix, and for each of its values the sum of the magnitudes that were added up for it.
#[derive(Clone)]
struct Sums {
    values: Vec<f64>,
    magnitudes: Vec<f64>,
}

impl Sums {
    fn new(count: usize) -> Self {
        Self { values: vec![0.0; count], magnitudes: vec![0.0; count] }
    }

    fn add(&mut self, at: usize, value: f64) {
        self.values[at] += value;
        self.magnitudes[at] += value.abs();
    }
}

struct Expected {
    out: Sums,
    lse: Vec<f64>,
    delta: Vec<f64>,
    dq: Sums,
    dk: Sums,
    dv: Sums,
}

impl Case {
    fn rows(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn q_stride(&self) -> usize {
        self.heads * self.dim + self.extra
    }

    fn kv_stride(&self) -> usize {
        self.heads / self.group * self.dim + self.extra
    }

    fn shape(&self) -> Shape {
        let [heads, group, dim, q_stride, kv_stride, window] =
            [self.heads, self.group, self.dim, self.q_stride(), self.kv_stride(), self.window].map(|n| n as i32);
        Shape { heads, group, dim, q_stride, kv_stride, causal: self.causal.into(), window, scale: self.scale }
    }

    fn inputs(&self, range: f32) -> Inputs {
        let rng = &mut generator(self.dim as u64);
        let mut matrix = |stride: usize, range| {
            let mut values = random(rng, self.rows() * stride, range, self.stored);
            // What belongs to no head must not be read.
            for row in values.chunks_mut(stride) {
                row[stride - self.extra..].fill(f32::NAN);
            }
            values
        };
        let (q, k) = (matrix(self.q_stride(), range), matrix(self.kv_stride(), range));
        Inputs { q, k, v: matrix(self.kv_stride(), 1.0), d_out: matrix(self.q_stride(), 1.0) }
    }

    /// First row and end of the sequence of each row.
    fn spans(&self) -> Vec<[usize; 2]> {
        let mut spans = Vec::new();
        for length in &self.lengths {
            let start = spans.len();
            spans.extend(std::iter::repeat_n([start, start + length], *length));
        }
        spans
    }

    fn sees(&self, query: usize, key: usize) -> bool {
        if self.window > 0 { key <= query && query - key < self.window } else { !self.causal || key <= query }
    }

    fn expected(&self, of: &Inputs) -> Expected {
        let (q_stride, kv_stride, dim) = (self.q_stride(), self.kv_stride(), self.dim);
        let mut all = Expected {
            out: Sums::new(of.q.len()),
            lse: vec![],
            delta: vec![],
            dq: Sums::new(of.q.len()),
            dk: Sums::new(of.k.len()),
            dv: Sums::new(of.v.len()),
        };
        for (row, span) in self.spans().into_iter().enumerate() {
            for head in 0..self.heads {
                let q_at = row * q_stride + head * dim;
                let kv_at = |key: usize| key * kv_stride + head / self.group * dim;
                let dot = |a: &[f32], b: &[f32]| (0..dim).map(|i| f64::from(a[i]) * f64::from(b[i])).sum::<f64>();
                let keys: Vec<usize> = (span[0]..span[1]).filter(|key| self.sees(row, *key)).collect();
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|key| {
                        dot(&of.q[q_at..], &of.k[kv_at(*key)..]) * f64::from(self.scale) * std::f64::consts::LOG2_E
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let lse = largest + scores.iter().map(|score| (score - largest).exp2()).sum::<f64>().log2();
                all.lse.push(lse);
                let p: Vec<f64> = scores.iter().map(|score| (score - lse).exp2()).collect();
                let g: Vec<f64> = keys.iter().map(|key| dot(&of.d_out[q_at..], &of.v[kv_at(*key)..])).collect();
                let delta = p.iter().zip(&g).map(|(p, g)| p * g).sum::<f64>();
                all.delta.push(delta);
                for (index, key) in keys.iter().enumerate() {
                    let ds = p[index] * (g[index] - delta) * f64::from(self.scale);
                    for i in 0..dim {
                        let (q, kv) = (q_at + i, kv_at(*key) + i);
                        all.out.add(q, p[index] * f64::from(of.v[kv]));
                        all.dv.add(kv, p[index] * f64::from(of.d_out[q]));
                        all.dq.add(q, ds * f64::from(of.k[kv]));
                        all.dk.add(kv, ds * f64::from(of.q[q]));
                    }
                }
            }
        }
        all
    }

    /// Compares a matrix whose last `extra` columns must be as they were, NaN.
    fn check(&self, name: &str, got: &[f64], want: &Sums, stride: usize, products_in_bf16: bool, slack: f64) {
        for (index, (got, value)) in got.iter().zip(&want.values).enumerate() {
            if index % stride >= stride - self.extra {
                assert!(got.is_nan(), "{name} {self:?}: a column of no head was written");
                continue;
            }
            let rounding = if self.stored == Type::Bf16 { value.abs() / 256.0 } else { 0.0 };
            let products = if products_in_bf16 { want.magnitudes[index] / 256.0 } else { 0.0 };
            let bound = rounding + products + slack;
            let place = (index / stride, index % stride);
            assert!((got - value).abs() <= bound, "{name} {self:?}: {place:?} is {got} and not {value}, by {bound}");
        }
    }
}

/// Which kernels compute a case: for tensor cores with a width in shared memory, or for any type and width.
#[derive(Clone, Copy)]
enum Kernels {
    Tiles(usize),
    Any,
}

impl Kernels {
    fn name(self, pass: &str, stored: Type) -> String {
        match (self, pass) {
            (Self::Tiles(width), _) => format!("attention_{pass}_{width}"),
            (Self::Any, "forward") => format!("attention_any_{}", suffix(stored)),
            (Self::Any, _) => format!("attention_any_{pass}_{}", suffix(stored)),
        }
    }

    /// The grid, and the places of the sequences as the kernel takes them.
    fn launch(self, case: &Case, heads: usize, tiles_in_memory: usize, more: usize) -> (Grid, Arg) {
        let spans = case.spans();
        match self {
            Self::Tiles(width) => {
                let mut tiles: Vec<i32> = Vec::new();
                for (row, [start, end]) in spans.into_iter().enumerate() {
                    if (row - start) % 64 == 0 {
                        tiles.extend([start, row, end].map(|n| n as i32));
                    }
                }
                let shared = tiles_in_memory * 64 * (width + 8) * 2 + more;
                (grid([tiles.len() / 3, heads], 128, shared), array(&tiles))
            }
            Self::Any => {
                let spans: Vec<i32> = spans.into_iter().flatten().map(|n| n as i32).collect();
                (grid([(case.rows() * heads).div_ceil(4), 1], 128, 0), array(&spans))
            }
        }
    }

    /// The parameters at the end.
    fn end(self, case: &Case) -> Vec<Arg> {
        match self {
            Self::Tiles(_) => vec![value(case.shape())],
            Self::Any => vec![int(case.rows()), value(case.shape())],
        }
    }
}

/// Runs forward and backward. `slack`: the error of sums in f32 and of exp2.
fn check(case: &Case, kernels: Kernels, range: f32, slack: f64) {
    let (of, stored) = (case.inputs(range), case.stored);
    let want = case.expected(&of);
    let in_bf16 = matches!(kernels, Kernels::Tiles(_));
    let (q_stride, kv_stride) = (case.q_stride(), case.kv_stride());
    let [q, k, v, d_out] = [&of.q, &of.k, &of.v, &of.d_out].map(|values| input(values, stored));
    let (q_out, kv_out) = (output(of.q.len(), stored), output(of.k.len(), stored));

    let name = kernels.name("forward", stored);
    let (grid, places) = kernels.launch(case, case.heads, 3, 0);
    let lse_out = output(case.rows() * case.heads, Type::F32);
    let mut args = vec![q.clone(), k.clone(), v.clone(), places, q_out.clone(), lse_out];
    args.extend(kernels.end(case));
    let got = run(&name, grid, &args);
    case.check(&name, &got[0], &want.out, q_stride, in_bf16, slack);
    super::check(&name, &got[1], &want.lse, Type::F32, slack);

    let [lse, delta] = [&want.lse, &want.delta].map(|values| values.iter().map(|x| *x as f32).collect::<Vec<f32>>());
    let before = [q, k, v, d_out, array(&lse), array(&delta)];
    let name = kernels.name("dq", stored);
    let (grid, places) = kernels.launch(case, case.heads, 4, 0);
    let args = [&before[..], &[places, q_out], &kernels.end(case)].concat();
    case.check(&name, &run(&name, grid, &args)[0], &want.dq, q_stride, in_bf16, slack * 4.0);

    let name = kernels.name("dkv", stored);
    let (grid, places) = kernels.launch(case, case.heads / case.group, 4, 512);
    let args = [&before[..], &[places, kv_out.clone(), kv_out], &kernels.end(case)].concat();
    let got = run(&name, grid, &args);
    case.check(&name, &got[0], &want.dk, kv_stride, in_bf16, slack * 4.0);
    case.check(&name, &got[1], &want.dv, kv_stride, in_bf16, slack * 4.0);
}

fn case(lengths: &[usize], [heads, group, dim]: [usize; 3], causal: bool, window: usize) -> Case {
    let scale = 1.0 / (dim as f32).sqrt();
    Case { lengths: lengths.to_vec(), heads, group, dim, extra: 0, causal, window, stored: Type::Bf16, scale }
}

#[test]
fn tiles_of_all_widths() {
    for (width, dim) in [(32, 32), (32, 8), (64, 64), (64, 40), (80, 80), (80, 72), (96, 96), (128, 128), (128, 104)] {
        check(&case(&[70, 1], [2, 1, dim], true, 0), Kernels::Tiles(width), 1.5, 1e-5);
        check(&case(&[5, 65], [2, 2, dim], false, 0), Kernels::Tiles(width), 1.5, 1e-5);
    }
}

#[test]
fn tiles_with_several_sequences_and_shared_keys() {
    for causal in [false, true] {
        check(&case(&[64, 1, 130, 63], [6, 3, 16], causal, 0), Kernels::Tiles(32), 1.5, 1e-5);
        // Rows that are wider than their heads.
        let case = Case { extra: 8, ..case(&[3, 66], [2, 2, 40], causal, 0) };
        check(&case, Kernels::Tiles(64), 1.5, 1e-5);
    }
}

#[test]
fn tiles_with_windows() {
    for window in [1, 2, 63, 64, 65, 100, i32::MAX as usize] {
        check(&case(&[9, 200], [2, 2, 24], true, window), Kernels::Tiles(32), 1.5, 1e-5);
    }
}

#[test]
fn large_scores() {
    // Scores of several hundred: errors of their sums count fully in the exponent.
    let tiles = Case { scale: 1.0, ..case(&[150], [1, 1, 32], true, 0) };
    check(&tiles, Kernels::Tiles(32), 6.0, 2e-3);
    check(&Case { stored: Type::F32, ..tiles }, Kernels::Any, 6.0, 2e-3);
}

#[test]
fn any_type_and_width() {
    for stored in [Type::F32, Type::Bf16] {
        for (dim, heads, group) in [(1, 1, 1), (7, 4, 2), (33, 2, 2), (72, 3, 1), (256, 2, 1)] {
            for (causal, window) in [(false, 0), (true, 0), (true, 1), (true, 5), (true, i32::MAX as usize)] {
                let case = Case { stored, extra: dim % 3, ..case(&[1, 13, 6], [heads, group, dim], causal, window) };
                check(&case, Kernels::Any, 1.5, 1e-5);
            }
        }
    }
}

#[test]
fn delta() {
    for (stored, pairs, dim) in [(Type::F32, 5, 7), (Type::Bf16, 4, 72), (Type::Bf16, 1, 1), (Type::F32, 9, 300)] {
        let rng = &mut generator(dim as u64);
        let (out, d_out) = (random(rng, pairs * dim, 1.0, stored), random(rng, pairs * dim, 1.0, stored));
        let name = format!("attention_delta_{}", suffix(stored));
        let got = run(
            &name,
            grid([pairs.div_ceil(4), 1], 128, 0),
            &[input(&out, stored), input(&d_out, stored), output(pairs, Type::F32), int(pairs), int(dim)],
        );
        let sum = |i: usize| (0..dim).map(|j| f64::from(out[i * dim + j]) * f64::from(d_out[i * dim + j])).sum();
        super::check(&name, &got[0], &(0..pairs).map(sum).collect::<Vec<f64>>(), Type::F32, 1e-5);
    }
}
