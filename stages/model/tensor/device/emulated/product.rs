//! Products, in the place of cuBLASLt.
#![allow(unsafe_code)]

use std::slice;

use half::bf16;

use crate::tensor::device::driver::{Product, Type};

/// Computes a product.
///
/// # Safety
/// As for `Driver::product`; the bytes of operands and bias are initialized.
pub(super) unsafe fn compute([a, b, d]: [u64; 3], product: &Product) {
    let Product { m, n, k, alpha, beta, operands, out, bias, .. } = *product;
    // SAFETY: as the caller says.
    let (left, right, bias, old) = unsafe {
        let old = (beta != 0.0).then(|| read(d, m * n, out));
        (read(a, m * k, operands), read(b, k * n, operands), bias.map(|bias| read(bias, n, out)), old)
    };
    let mut sums = multiply(&left, &right, product);
    for (index, sum) in sums.iter_mut().enumerate() {
        let old = old.as_ref().map_or(0.0, |old| beta * old[index]);
        *sum = alpha * *sum + old + bias.as_ref().map_or(0.0, |bias| bias[index % n]);
    }
    // SAFETY: as the caller says.
    unsafe {
        match out {
            Type::F32 => slice::from_raw_parts_mut(d as *mut f32, m * n).copy_from_slice(&sums),
            Type::Bf16 => slice::from_raw_parts_mut(d as *mut bf16, m * n)
                .iter_mut()
                .zip(sums)
                .for_each(|(to, sum)| *to = bf16::from_f32(sum)),
        }
    }
}

/// Reads values as f32.
///
/// # Safety
/// So many values must be there, and initialized.
unsafe fn read(address: u64, count: usize, stored: Type) -> Vec<f32> {
    if count == 0 {
        return Vec::new();
    }
    // SAFETY: as the caller says; all bits are values of both types.
    unsafe {
        match stored {
            Type::F32 => slice::from_raw_parts(address as *const f32, count).to_vec(),
            Type::Bf16 => {
                slice::from_raw_parts(address as *const bf16, count).iter().map(|value| value.to_f32()).collect()
            }
        }
    }
}

/// `op(a) op(b)` in f32.
fn multiply(a: &[f32], b: &[f32], product: &Product) -> Vec<f32> {
    let Product { m, n, k, a_transposed, b_transposed, .. } = *product;
    let mut sums = vec![0.0_f32; m * n];
    // From column to column, and from row to row.
    let strides = |transposed, rows: usize, cols: usize| {
        if transposed { (rows as isize, 1_isize) } else { (1_isize, cols as isize) }
    };
    let (a_column, a_row) = strides(a_transposed, m, k);
    let (b_column, b_row) = strides(b_transposed, k, n);
    // SAFETY: `a` has m * k values, `b` k * n and `sums` m * n; `sums` is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            sums.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    sums
}
