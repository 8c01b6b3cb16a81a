use bytemuck::{Pod, Zeroable};

use super::{Memory, check, generator, grid, in_all_orders, launch, loaded, random, wide};
use crate::tensor::device::driver::{Driver, Type};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Update {
    w: u64,
    m: u64,
    v: u64,
    g: u64,
    n: i64,
    decay: f32,
    step_size: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Common {
    scale: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    root: f32,
    epsilon: f32,
}

const COUNTS: [usize; 4] = [1, 4096, 5000, 8193];
const VALUES_PER_BLOCK: usize = 4096;

/// The four arrays of each parameter: w, m, v, g.
fn parameters() -> Vec<[Vec<f32>; 4]> {
    let rng = &mut generator(1);
    let of = |n| {
        let mut arrays = [1.0, 0.1, 0.1, 1.0].map(|range| random(rng, n, range, Type::F32));
        arrays[2].iter_mut().for_each(|v| *v = v.abs());
        arrays
    };
    COUNTS.into_iter().map(of).collect()
}

fn blocks() -> Vec<[i32; 2]> {
    let of = |(update, n): (usize, &usize)| (0..n.div_ceil(VALUES_PER_BLOCK)).map(move |at| [update as i32, at as i32]);
    COUNTS.iter().enumerate().flat_map(of).collect()
}

fn on_device<'a>(device: &'a dyn Driver, parameters: &[[Vec<f32>; 4]]) -> (Vec<[Memory<'a>; 4]>, Memory<'a>) {
    let memory: Vec<[Memory<'_>; 4]> =
        parameters.iter().map(|arrays| arrays.each_ref().map(|values| Memory::with(device, values))).collect();
    let updates: Vec<Update> = memory
        .iter()
        .zip(COUNTS)
        .enumerate()
        .map(|(index, (arrays, n))| {
            let [w, m, v, g] = arrays.each_ref().map(|memory| memory.address);
            Update { w, m, v, g, n: n as i64, decay: 0.99, step_size: 0.01 * (index + 1) as f32 }
        })
        .collect();
    let updates = Memory::with(device, &updates);
    (memory, updates)
}

#[test]
fn adamw() {
    let (parameters, blocks) = (parameters(), blocks());
    let by = Common { scale: 0.5, new1: 0.1, beta2: 0.95, new2: 0.05, root: 0.7, epsilon: 1e-8 };
    let got = in_all_orders("adamw", |device| {
        let (memory, updates) = on_device(device, &parameters);
        let table = Memory::with(device, &blocks);
        let params = vec![
            updates.address.to_ne_bytes().to_vec(),
            table.address.to_ne_bytes().to_vec(),
            bytemuck::bytes_of(&by).to_vec(),
        ];
        launch(device, "adamw", grid([blocks.len(), 1], 256, 0), &params);
        memory.iter().flat_map(|arrays| arrays[..3].iter().map(Memory::bytes)).collect()
    });
    let by = [by.scale, by.new1, by.beta2, by.new2, by.root, by.epsilon].map(f64::from);
    let [scale, new1, beta2, new2, root, epsilon] = by;
    for (index, arrays) in parameters.iter().enumerate() {
        let [w, m, v, g] = arrays.each_ref().map(|values| wide(values));
        let step_size = f64::from(0.01_f32 * (index + 1) as f32);
        let (mut new_w, mut new_m, mut new_v) = (vec![], vec![], vec![]);
        for i in 0..w.len() {
            let g = g[i] * scale;
            let (m, v) = (m[i] + (g - m[i]) * new1, v[i] * beta2 + g * g * new2);
            new_w.push(w[i] * f64::from(0.99_f32) - step_size * m / (v.sqrt() / root + epsilon));
            new_m.push(m);
            new_v.push(v);
        }
        for (at, want) in [new_w, new_m, new_v].iter().enumerate() {
            check("adamw", &loaded(&got[index * 3 + at], Type::F32), want, Type::F32, 1e-6);
        }
    }
}

#[test]
fn sum_of_squares() {
    let (parameters, blocks) = (parameters(), blocks());
    let got = in_all_orders("sum_of_squares", |device| {
        let (_memory, updates) = on_device(device, &parameters);
        let table = Memory::with(device, &blocks);
        let partial = Memory::new(device, blocks.len() * 8);
        let params: Vec<Vec<u8>> =
            [&updates, &table, &partial].iter().map(|memory| memory.address.to_ne_bytes().to_vec()).collect();
        launch(device, "sum_of_squares", grid([blocks.len(), 1], 256, 0), &params);
        vec![partial.bytes()]
    });
    let got: Vec<f64> = got[0].as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    let want: Vec<f64> = parameters
        .iter()
        .flat_map(|arrays| arrays[3].chunks(VALUES_PER_BLOCK))
        .map(|part| wide(part).iter().map(|g| g * g).sum())
        .collect();
    // The sums are in f64 on both sides, in other orders.
    check("sum_of_squares", &got, &want, Type::F32, 1e-12);
}
