//! Rows from several matrices, and the losses.

use bytemuck::{Pod, Zeroable};
use rand::Rng;

use super::{
    Memory, TYPES, added, array, by_row, check, generator, gradient_buffer, grid, in_all_orders, input, int, launch,
    loaded, output, random, rounded, run, stored_bytes, suffix, updated, value, wide,
};
use crate::tensor::device::driver::Type;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Source {
    data: u64,
    kind: i32,
    pad: i32,
}

#[test]
fn gathered_rows() {
    for (stored, width, count) in [(Type::F32, 5, 9), (Type::Bf16, 5, 9), (Type::Bf16, 600, 3), (Type::F32, 1, 1)] {
        let rng = &mut generator(width as u64);
        let sources = [
            (random(rng, 4 * width, 1.0, Type::F32), Type::F32),
            (random(rng, 3 * width, 1.0, Type::Bf16), Type::Bf16),
        ];
        let picks: Vec<[i32; 2]> = (0..count)
            .map(|_| {
                let source = rng.random_range(0..2);
                [source, rng.random_range(0..4 - source)]
            })
            .collect();
        let name = format!("gather_{}", suffix(stored));
        let got = in_all_orders(&name, |device| {
            let memory = sources.each_ref().map(|(values, kind)| Memory::with(device, &stored_bytes(values, *kind)));
            let table = [0, 1].map(|kind| Source { data: memory[kind].address, kind: kind as i32, pad: 0 });
            let (table, picks) = (Memory::with(device, &table), Memory::with(device, &picks));
            let y = Memory::new(device, count * width * stored.size());
            let mut params: Vec<Vec<u8>> =
                [&table, &picks, &y].iter().map(|memory| memory.address.to_ne_bytes().to_vec()).collect();
            params.push((width as i32).to_ne_bytes().to_vec());
            launch(device, &name, by_row(count), &params);
            vec![y.bytes()]
        });
        let row = |[source, row]: &[i32; 2]| sources[*source as usize].0[*row as usize * width..][..width].to_vec();
        let want: Vec<f32> = picks.iter().flat_map(row).map(|value| rounded(value, stored)).collect();
        assert_eq!(loaded(&got[0], stored), wide(&want), "{name}");
    }
}

#[test]
fn gathered_gradients_are_added_in_order() {
    for (from, to) in [(Type::F32, Type::F32), (Type::Bf16, Type::Bf16), (Type::Bf16, Type::F32)] {
        for width in [1, 7, 300] {
            let rng = &mut generator(width as u64);
            let (dy, before) = (random(rng, 6 * width, 1.0, from), random(rng, 5 * width, 1.0, to));
            let (rows, starts, list) = ([3_i32, 0, 4], [0_i32, 1, 1, 5], [5_i32, 0, 2, 2, 4]);
            let name =
                if from == to { format!("gather_gradient_{}", suffix(to)) } else { "gather_gradient_bf16_f32".into() };
            let got = run(
                &name,
                by_row(3),
                &[input(&dy, from), updated(&before, to), array(&rows), array(&starts), array(&list), int(width)],
            );
            let mut want = wide(&before);
            for (block, row) in rows.iter().enumerate() {
                for from in &list[starts[block] as usize..starts[block + 1] as usize] {
                    for i in 0..width {
                        want[*row as usize * width + i] += f64::from(dy[*from as usize * width + i]);
                    }
                }
            }
            check(&name, &got[0], &want, to, 1e-6);
        }
    }
}

#[test]
fn cross_entropy() {
    // Logits far from 0, so that exp() without the largest subtracted would overflow.
    for (rows, width, offset) in [(3, 5, 0.0), (2, 777, 500.0), (1, 1, 3.0), (4, 256, -500.0)] {
        let rng = &mut generator(width as u64);
        let logits: Vec<f32> = random(rng, rows * width, 5.0, Type::F32).iter().map(|x| x + offset).collect();
        let targets: Vec<u32> = (0..rows).map(|_| rng.random_range(0..width as u32)).collect();
        let got = run(
            "cross_entropy",
            by_row(rows),
            &[array(&logits), array(&targets), output(rows, Type::F32), output(rows, Type::F32), int(width)],
        );
        let log_totals: Vec<f64> = wide(&logits)
            .chunks(width)
            .map(|row| {
                let largest = row.iter().copied().fold(f64::MIN, f64::max);
                largest + row.iter().map(|x| (x - largest).exp()).sum::<f64>().ln()
            })
            .collect();
        let losses: Vec<f64> =
            (0..rows).map(|row| log_totals[row] - f64::from(logits[row * width + targets[row] as usize])).collect();
        // A log of 500 has steps of 3e-5 in f32, and so has the difference of two.
        check("losses", &got[0], &losses, Type::F32, if offset == 0.0 { 2e-6 } else { 6e-5 });
        check("log totals", &got[1], &log_totals, Type::F32, 2e-6);
        let totals: Vec<f32> = got[1].iter().map(|total| *total as f32).collect();
        for (stored, add) in TYPES.into_iter().flat_map(|stored| [(stored, false), (stored, true)]) {
            let before = random(rng, rows * width, 1.0, stored);
            let name = format!("cross_entropy_gradient_{}", suffix(stored));
            let got = run(
                &name,
                by_row(rows),
                &[
                    array(&logits),
                    array(&targets),
                    array(&totals),
                    array(&[2.0_f32]),
                    value(0.25_f32),
                    gradient_buffer(&before, stored, add),
                    int(width),
                    int(usize::from(add)),
                ],
            );
            let of = |i: usize| {
                let (row, column) = (i / width, i % width);
                let probability = (f64::from(logits[i]) - f64::from(totals[row])).exp();
                0.5 * (probability - f64::from(u8::from(column == targets[row] as usize)))
            };
            check(&name, &got[0], &added(&before, (0..rows * width).map(of).collect(), add), stored, 1e-6);
        }
    }
}

#[test]
fn sum_of_values() {
    for n in [1, 255, 1000] {
        let x = random(&mut generator(n as u64), n, 1.0, Type::F32);
        let args = [array(&x), output(1, Type::F32), int(n), value(0.5_f32)];
        let got = run("sum_values", grid([1, 1], 256, 0), &args);
        check("sum_values", &got[0], &[0.5 * wide(&x).iter().sum::<f64>()], Type::F32, 1e-7);
    }
}
