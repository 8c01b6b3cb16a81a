//! Products: linear layers and adapters. Operands are converted to the type of the products before they are used.

use std::sync::Arc;

use super::{ROWS_PER_PART, converted, parts, sum_parts};
use crate::tensor::{
    Graph, Mat,
    device::{
        Buffer, DeviceGhost, DeviceMat, DeviceWeight, Type,
        driver::Product,
        launch::{Kernel, product},
    },
};

/// A weight `[rows, cols]` as an operand: a matrix that may train, or a frozen weight.
#[derive(Clone)]
pub(in crate::tensor) enum Operand {
    Mat(DeviceMat),
    Frozen(DeviceWeight),
}

impl Operand {
    fn buffer(&self, kind: Type) -> Arc<Buffer> {
        match self {
            Self::Mat(mat) => converted(mat, kind).buffer,
            Self::Frozen(weight) => weight.operand(kind),
        }
    }
}

/// The product of two matrices of `kind`, both as they lie in memory.
fn plain(m: usize, n: usize, k: usize, kind: Type, out: Type, add: bool) -> Product {
    let beta = if add { 1.0 } else { 0.0 };
    Product { m, n, k, a_transposed: false, b_transposed: false, alpha: 1.0, beta, operands: kind, out, bias: None }
}

/// See [`crate::tensor::linear`]: `outputs` is the height of the weight, `out` the type of the output.
pub(in crate::tensor) fn linear(
    g: &Graph,
    x: &Mat,
    (weight, trained): (Operand, Option<&Mat>),
    bias: Option<&Mat>,
    outputs: usize,
    out: Type,
) -> Option<Mat> {
    let kind = x.stored_as();
    let input = converted(x.device_mat()?, kind);
    let (rows, inputs) = (input.rows, input.cols);
    let mut y = DeviceMat::new(input.device(), rows, outputs, out);
    y.gradient = kind;
    let offset = match bias {
        Some(bias) => Some(converted(bias.device_mat()?, out)),
        None => None,
    };
    let of = Product {
        b_transposed: true,
        bias: offset.as_ref().map(|bias| bias.buffer.address()),
        ..plain(rows, outputs, inputs, kind, out, false)
    };
    product(&input.buffer, &weight.buffer(kind), &y.buffer, &of);
    let all: Vec<&Mat> = [Some(x), bias, trained].into_iter().flatten().collect();
    let y = g.device_output(y, &all);
    let (dx, db) = (of_trainable(Some(x)), of_trainable(bias));
    // Only the gradient of a trainable weight needs the input.
    let trained = of_trainable(trained).map(|mat| (mat, input));
    g.record_on_device(&y, move |dy, gradients| {
        let dy = converted(&dy, kind);
        if let Some(dx) = dx {
            let dx = gradients.slot(&dx);
            let of = plain(rows, inputs, outputs, kind, dx.mat.kind, dx.add);
            product(&dy.buffer, &weight.buffer(kind), &dx.mat.buffer, &of);
        }
        if let Some((weight, x)) = trained {
            let dw = gradients.slot(&weight);
            let of = Product { a_transposed: true, ..plain(outputs, inputs, rows, kind, dw.mat.kind, dw.add) };
            product(&dy.buffer, &x.buffer, &dw.mat.buffer, &of);
        }
        if let Some(bias) = db {
            bias_gradient(&dy, &gradients.slot(&bias));
        }
    });
    Some(y)
}

/// The gradient of a matrix on a device, if it needs one.
fn of_trainable(mat: Option<&Mat>) -> Option<DeviceGhost> {
    mat.filter(|mat| mat.needs_grad)?.device_mat().map(DeviceMat::ghost)
}

/// Adds the sums over rows of `dy`.
fn bias_gradient(dy: &DeviceMat, to: &crate::tensor::tape::Slot) {
    let width = dy.cols;
    let (parts, partial) = parts(dy, width);
    Kernel::of(dy.device(), "column_sums", dy.kind)
        .at(&dy.buffer)
        .at(&partial)
        .int(dy.rows)
        .int(width)
        .int(ROWS_PER_PART)
        .run([width.div_ceil(256) as u32, parts as u32, 1], 256, 0);
    sum_parts(&partial, parts, width, 0, to);
}

/// See [`crate::tensor::add_low_rank`].
pub(in crate::tensor) fn add_low_rank(g: &Graph, y: &mut Mat, low: &Mat, b: &Mat, scale: f32) -> Option<()> {
    let kind = y.stored_as();
    let (x, weight) = (converted(low.device_mat()?, kind), b.device_mat()?.clone());
    let (rows, rank, outputs) = (x.rows, x.cols, weight.rows);
    let to = y.device_mat_mut()?;
    let of = Product { b_transposed: true, alpha: scale, ..plain(rows, outputs, rank, kind, to.kind, true) };
    product(&x.buffer, &converted(&weight, kind).buffer, &to.buffer, &of);
    y.needs_grad |= g.records() && (low.needs_grad || b.needs_grad);
    let (d_low, d_b) = (of_trainable(Some(low)), of_trainable(Some(b)));
    g.record_in_place_on_device(y, move |dy, gradients| {
        let dy = converted(dy, kind);
        if let Some(low) = d_low {
            let to = gradients.slot(&low);
            let of = Product { alpha: scale, ..plain(rows, rank, outputs, kind, to.mat.kind, to.add) };
            product(&dy.buffer, &converted(&weight, kind).buffer, &to.mat.buffer, &of);
        }
        if let Some(b) = d_b {
            let to = gradients.slot(&b);
            let of = plain(outputs, rank, rows, kind, to.mat.kind, to.add);
            let of = Product { a_transposed: true, alpha: scale, ..of };
            product(&dy.buffer, &x.buffer, &to.mat.buffer, &of);
        }
    });
    Some(())
}
