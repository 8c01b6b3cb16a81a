//! The row- to column-major translation, by what cuBLAS is documented to compute.

use super::{Memory, check, generator, loaded, random, wide};
use crate::tensor::device::{
    cuda::ColumnMajor,
    driver::{Driver, Product, Type},
    emulated::Emulated,
};

/// `alpha op(first) op(second) + beta d + bias`, all column-major; the bias goes along the rows.
fn column_major([first, second, bias]: [&[f32]; 3], d: &mut [f64], call: &ColumnMajor, [alpha, beta]: [f64; 2]) {
    let [first_transposed, second_transposed] = call.transposed;
    let (rows, cols) = (call.result.rows, call.result.cols);
    let turned = |transposed, rows, cols| if transposed { (cols, rows) } else { (rows, cols) };
    let (first_rows, sums) = turned(first_transposed, call.first.rows, call.first.cols);
    assert_eq!(first_rows, rows);
    assert_eq!(turned(second_transposed, call.second.rows, call.second.cols), (sums, cols));
    assert_eq!(bias.len(), rows);
    for (row, bias) in bias.iter().enumerate() {
        for col in 0..cols {
            let mut sum = 0.0;
            for at in 0..sums {
                let (i, j) = turned(first_transposed, row, at);
                let (k, l) = turned(second_transposed, at, col);
                sum += f64::from(first[i + j * call.first.rows]) * f64::from(second[k + l * call.second.rows]);
            }
            let place = row + col * rows;
            d[place] = alpha * sum + beta * d[place] + f64::from(*bias);
        }
    }
}

#[test]
#[allow(unsafe_code)]
fn cublas_is_asked_for_our_product() {
    let device = Emulated::new(0);
    let (m, n, k) = (5, 7, 3);
    for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
        let rng = &mut generator(1);
        let [a, b, before, bias] = [m * k, k * n, m * n, n].map(|count| random(rng, count, 1.0, Type::F32));
        let memory = [&a, &b, &before, &bias].map(|values| Memory::with(&device, values));
        let [a_at, b_at, d_at, bias_at] = memory.each_ref().map(|memory| memory.address);
        let (operands, out) = (Type::F32, Type::F32);
        let product =
            Product { m, n, k, a_transposed, b_transposed, alpha: 0.5, beta: 2.0, operands, out, bias: Some(bias_at) };
        // SAFETY: the buffers have these shapes.
        unsafe { device.product(a_at, b_at, d_at, &product) }.unwrap();
        let mut want = wide(&before);
        column_major([&b, &a, &bias], &mut want, &ColumnMajor::of(&product), [0.5, 2.0]);
        check("product", &loaded(&memory[2].bytes(), Type::F32), &want, Type::F32, 1e-6);
    }
}
