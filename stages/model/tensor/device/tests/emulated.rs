use std::ffi::{CString, c_char};

use super::{Memory, ORDERS, check, generator, gpu, grid, in_all_orders, loaded, random, stored_bytes};
use crate::tensor::device::{
    DeviceError,
    cuda::KERNELS,
    driver::{Driver, Product, Stream, Type},
    emulated::Emulated,
};

#[allow(unsafe_code)]
unsafe extern "C" {
    fn imp_emulated_has(name: *const c_char) -> i32;
    fn imp_emulated_count() -> i32;
}

#[test]
#[allow(unsafe_code)]
fn an_unknown_kernel_is_an_error() {
    for order in ORDERS {
        let device = Emulated::new(order);
        // SAFETY: nothing is launched.
        let result = unsafe { device.launch(Stream::Compute, "no_such_kernel", grid([1, 1], 256, 0), &[]) };
        assert_eq!(result.unwrap_err().to_string(), "the GPU failed in no_such_kernel: there is no such kernel");
        // SAFETY: as above.
        assert!(unsafe { device.launch(Stream::Compute, "fill_zero", grid([0, 1], 256, 0), &[]) }.is_err());
    }
}

#[test]
fn memory_is_counted_and_limited() {
    let device = Emulated::new(0).with_limit(1000);
    let first = Memory::new(&device, 600);
    assert!(first.bytes().iter().all(|byte| *byte == 0xff));
    assert_eq!(
        device.alloc(Stream::Compute, 401),
        Err(DeviceError::OutOfMemory { needed: 401, free: 400, total: 1000 })
    );
    let second = Memory::new(&device, 400);
    assert_eq!((device.live(), device.peak()), (1000, 1000));
    drop(first);
    assert_eq!((device.live(), device.peak()), (400, 1000));
    let mut bytes = [0; 8];
    assert!(device.download(second.address + 393, &mut bytes).is_err());
    assert!(device.upload(second.address - 1, &bytes).is_err());
    assert!(device.copy(second.address, second.address + 4, 8).is_err());
    device.upload(second.address, &[7; 8]).unwrap();
    device.copy(second.address + 392, second.address, 8).unwrap();
    assert_eq!(second.bytes()[392..], [7; 8]);
    // No bytes are a buffer too.
    assert_ne!(Memory::new(&device, 0).address, 0);
}

#[test]
#[should_panic(expected = "something was written next to a buffer of 5 bytes")]
#[allow(unsafe_code)]
fn a_write_beyond_a_buffer_is_noticed() {
    let device = Emulated::new(0);
    let memory = Memory::new(&device, 5);
    // SAFETY: the bytes after the buffer, up to 16, can be written.
    unsafe { ((memory.address + 5) as *mut u8).write(0) };
}

fn values(rows: usize, cols: usize, transposed: bool, at: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let (outer, inner) = if transposed { (cols, rows) } else { (rows, cols) };
    (0..outer * inner).map(|i| if transposed { at(i % inner, i / inner) } else { at(i / inner, i % inner) }).collect()
}

#[test]
#[allow(unsafe_code)]
fn products() {
    let shapes = [(1, 1, 1), (5, 7, 3), (33, 20, 65)];
    for (index, (m, n, k)) in shapes.into_iter().enumerate() {
        for bits in 0..32_u32 {
            let flag = |bit: u32| bits >> bit & 1 == 1;
            let (a_transposed, b_transposed) = (flag(0), flag(1));
            let (operands, out) =
                (if flag(2) { Type::F32 } else { Type::Bf16 }, if flag(3) { Type::F32 } else { Type::Bf16 });
            if (operands, out) == (Type::F32, Type::Bf16) && gpu().is_some() {
                // cuBLASLt has none, and nothing here asks for it.
                continue;
            }
            let rng = &mut generator(u64::from(bits) + index as u64 * 100);
            let (a, b) = (random(rng, m * k, 1.0, operands), random(rng, k * n, 1.0, operands));
            let (before, bias) = (random(rng, m * n, 1.0, out), random(rng, n, 1.0, out));
            let beta = if flag(4) { 0.5 } else { 0.0 };
            let got = in_all_orders("product", |device| {
                let [left, right] = [&a, &b].map(|values| Memory::with(device, &stored_bytes(values, operands)));
                let [d, bias] = [&before, &bias].map(|values| Memory::with(device, &stored_bytes(values, out)));
                if beta == 0.0 {
                    device.upload(d.address, &vec![0xff; d.bytes]).unwrap();
                }
                let bias = flag(4).then_some(bias.address);
                let product = Product { m, n, k, a_transposed, b_transposed, alpha: 2.0, beta, operands, out, bias };
                // SAFETY: the buffers have these shapes.
                unsafe { device.product(left.address, right.address, d.address, &product) }.unwrap();
                vec![d.bytes()]
            });
            let at = |values: &[f32], rows: usize, cols: usize, transposed: bool, i: usize, j: usize| {
                f64::from(if transposed { values[j * rows + i] } else { values[i * cols + j] })
            };
            let want = values(m, n, false, |i, j| {
                let sum: f64 =
                    (0..k).map(|l| at(&a, m, k, a_transposed, i, l) * at(&b, k, n, b_transposed, l, j)).sum();
                let more = f64::from(beta) * f64::from(before[i * n + j]) + f64::from(bias[j]);
                2.0 * sum + if flag(4) { more } else { 0.0 }
            });
            check("product", &loaded(&got[0], out), &want, out, 1e-5);
        }
    }
}

/// cuBLASLt does not say what it makes of empty operands.
#[test]
#[allow(unsafe_code)]
fn a_product_of_nothing_is_refused() {
    in_all_orders("product of nothing", |device| {
        let [left, right, d] = [4, 4, 24].map(|bytes| Memory::new(device, bytes));
        let product = Product {
            m: 2,
            n: 3,
            k: 0,
            a_transposed: false,
            b_transposed: false,
            alpha: 1.0,
            beta: 0.0,
            operands: Type::F32,
            out: Type::F32,
            bias: None,
        };
        // SAFETY: nothing is computed.
        assert!(unsafe { device.product(left.address, right.address, d.address, &product) }.is_err());
        Vec::new()
    });
}

#[test]
#[allow(unsafe_code)]
fn the_emulation_and_the_gpu_have_the_same_kernels() {
    let names: Vec<&str> =
        KERNELS.split(".entry ").skip(1).filter_map(|kernel| kernel.split_once('(')).map(|(name, _)| name).collect();
    assert!(names.len() >= 80);
    for name in &names {
        let name = CString::new(*name).unwrap();
        // SAFETY: a string that ends with a zero.
        assert_eq!(unsafe { imp_emulated_has(name.as_ptr()) }, 1, "{name:?} is not in host_table.h");
    }
    // SAFETY: nothing is passed.
    assert_eq!(unsafe { imp_emulated_count() } as usize, names.len(), "run .ci/ptx");
}
