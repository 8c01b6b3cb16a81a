//! Attention to a cache, for generation.

use bytemuck::{Pod, Zeroable};

use super::{Memory, TYPES, check, generator, grid, in_all_orders, launch, loaded, random, stored_bytes, suffix};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Cached {
    keys: [u64; 2],
    values: [u64; 2],
    counts: [i32; 2],
}

#[test]
fn two_pieces_are_one_sequence() {
    for (stored, [heads, group, dim]) in TYPES
        .into_iter()
        .flat_map(|stored| [[4, 2, 7], [2, 2, 72], [1, 1, 256], [3, 1, 1]].map(|shape| (stored, shape)))
    {
        // Fewer keys than warps; as many as one step of all warps; an empty first and an empty second piece.
        let counts = [[1_usize, 0], [0, 3], [7, 9], [20, 21], [33, 0]];
        let (rng, width, rows) = (&mut generator(dim as u64), heads / group * dim, counts.len());
        let q = random(rng, rows * heads * dim, 2.0, stored);
        let mut pieces = |range| -> Vec<[Vec<f32>; 2]> {
            counts.iter().map(|of| of.map(|count| random(rng, count * width, range, stored))).collect()
        };
        let (keys, values) = (pieces(2.0), pieces(1.0));
        let scale = 1.0 / (dim as f32).sqrt();
        let name = format!("attention_cached_{}", suffix(stored));
        let got = in_all_orders(&name, |device| {
            let on_device = |of: &[[Vec<f32>; 2]]| -> Vec<[Memory<'_>; 2]> {
                of.iter()
                    .map(|of| of.each_ref().map(|values| Memory::with(device, &stored_bytes(values, stored))))
                    .collect()
            };
            let (keys, values) = (on_device(&keys), on_device(&values));
            let table: Vec<Cached> = (0..rows)
                .map(|row| Cached {
                    keys: keys[row].each_ref().map(|memory| memory.address),
                    values: values[row].each_ref().map(|memory| memory.address),
                    counts: counts[row].map(|count| count as i32),
                })
                .collect();
            let (query, table) = (Memory::with(device, &stored_bytes(&q, stored)), Memory::with(device, &table));
            let out = Memory::new(device, q.len() * stored.size());
            let mut params: Vec<Vec<u8>> =
                [&query, &table, &out].iter().map(|memory| memory.address.to_ne_bytes().to_vec()).collect();
            params.extend([heads, group, dim, width].map(|n| (n as i32).to_ne_bytes().to_vec()));
            params.push(scale.to_ne_bytes().to_vec());
            launch(device, &name, grid([rows, heads], 128, 0), &params);
            vec![out.bytes()]
        });
        let mut want = Vec::new();
        for row in 0..rows {
            let [keys, values] = [&keys[row], &values[row]].map(|pieces| pieces.concat());
            for head in 0..heads {
                let (at, kv) = ((row * heads + head) * dim, head / group * dim);
                let weight = |key: usize| {
                    let dot: f64 = (0..dim).map(|i| f64::from(q[at + i]) * f64::from(keys[key * width + kv + i])).sum();
                    (dot * f64::from(scale)).exp()
                };
                let weights: Vec<f64> = (0..counts[row].iter().sum()).map(weight).collect();
                let total: f64 = weights.iter().sum();
                want.extend((0..dim).map(|i| {
                    let of = |(key, weight): (usize, &f64)| weight * f64::from(values[key * width + kv + i]);
                    weights.iter().enumerate().map(of).sum::<f64>() / total
                }));
            }
        }
        check(&name, &loaded(&got[0], stored), &want, stored, 1e-5);
    }
}
