//! Layer norm and RMS norm: `kernels/norm.cuh`.

use super::{ROWS_PER_PART, converted, parts, sum_parts};
use crate::tensor::{
    Gradients, Graph, Mat,
    device::{Buffer, DeviceMat, Type, launch::Kernel},
};

/// See [`crate::tensor::layer_norm`].
pub(in crate::tensor) fn layer_norm(g: &Graph, x: &Mat, weight: &Mat, bias: &Mat, epsilon: f32) -> Option<Mat> {
    norm(g, x, weight, Some(bias), epsilon)
}

/// See [`crate::tensor::rms_norm`].
pub(in crate::tensor) fn rms_norm(g: &Graph, x: &Mat, weight: &Mat, epsilon: f32) -> Option<Mat> {
    norm(g, x, weight, None, epsilon)
}

/// A norm whose kernels' names begin with `layer_norm` if it has a bias, else with `rms_norm`.
fn norm(g: &Graph, x: &Mat, weight: &Mat, bias: Option<&Mat>, epsilon: f32) -> Option<Mat> {
    let input = x.device_mat()?;
    let (kind, device) = (input.kind, input.device());
    let (w, b) = (weight.device_mat()?, bias.map(|bias| bias.device_mat()));
    debug_assert_eq!(w.kind, Type::F32, "the kernels take weights in f32");
    let y = DeviceMat::new(device, input.rows, input.cols, kind);
    let statistics = Buffer::new(device, input.rows * 8);
    let name = if bias.is_some() { "layer_norm" } else { "rms_norm" };
    let kernel = Kernel::of(device, name, kind).at(&input.buffer).at(&w.buffer);
    let kernel = if let Some(b) = b { kernel.at(&b?.buffer) } else { kernel };
    kernel.at(&y.buffer).at(&statistics).int(input.cols).value(epsilon).by_rows(input.rows);
    let inputs: Vec<&Mat> = [Some(x), Some(weight), bias].into_iter().flatten().collect();
    let y = g.device_output(y, &inputs);
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    g.record_on_device(&y, move |dy, gradients| {
        let (Some(input), Some(w)) = (x.device_mat(), weight.device_mat()) else { return };
        if x.needs_grad {
            let dx = gradients.slot(&input.ghost());
            let dy = converted(&dy, kind);
            Kernel::of(input.device(), &format!("{name}_gradient"), kind)
                .at(&input.buffer)
                .at(&w.buffer)
                .at(&statistics)
                .at(&dy.buffer)
                .at(&dx.mat.buffer)
                .int(input.cols)
                .adding(dx.add)
                .by_rows(input.rows);
        }
        weight_gradients(input, &statistics, &dy, [Some(&weight), bias.as_ref()], gradients);
    });
    Some(y)
}

/// Adds the gradients of weight and bias, as far as they are trainable.
fn weight_gradients(
    x: &DeviceMat,
    statistics: &Buffer,
    dy: &DeviceMat,
    weights: [Option<&Mat>; 2],
    gradients: &mut Gradients,
) {
    let trained = weights.map(|mat| mat.filter(|mat| mat.needs_grad).and_then(Mat::device_mat));
    if trained.iter().all(Option::is_none) {
        return;
    }
    let width = x.cols;
    let (parts, partial) = parts(x, 2 * width);
    let dy = converted(dy, x.kind);
    Kernel::of(x.device(), "norm_weight_gradient", x.kind)
        .at(&x.buffer)
        .at(statistics)
        .at(&dy.buffer)
        .at(&partial)
        .int(x.rows)
        .int(width)
        .int(ROWS_PER_PART)
        .run([width.div_ceil(256) as u32, parts as u32, 1], 256, 0);
    for (index, mat) in trained.into_iter().enumerate() {
        if let Some(mat) = mat {
            debug_assert_eq!(mat.gradient, Type::F32, "norms train in f32");
            sum_parts(&partial, parts, 2 * width, index * width, &gradients.slot(&mat.ghost()));
        }
    }
}
