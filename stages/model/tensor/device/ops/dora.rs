//! The norms of DoRA: `kernels/single.cuh` and `kernels/pointwise.cuh`.

use super::converted;
use crate::tensor::{
    Graph, Mat,
    device::{DeviceMat, Type, launch::Kernel},
};

/// See [`crate::tensor::row_norms`].
pub(in crate::tensor) fn row_norms(squares: &Mat, b: &Mat, wa: &Mat, ba: &Mat, scale: f32) -> Option<Mat> {
    let all = [squares, b, wa, ba];
    let [squares, b, wa, ba] = all.map(Mat::device_mat);
    let (squares, b, wa, ba) = (squares?, b?, wa?, ba?);
    debug_assert!([squares, b, wa, ba].iter().all(|mat| mat.kind == Type::F32), "the kernel takes f32");
    let norms = DeviceMat::new(squares.device(), 1, squares.cols, Type::F32);
    Kernel::new(squares.device(), "row_norms")
        .at(&squares.buffer)
        .at(&b.buffer)
        .at(&wa.buffer)
        .at(&ba.buffer)
        .at(&norms.buffer)
        .value(scale)
        .int(b.cols)
        .count(squares.cols)
        .by_elements(squares.cols);
    Some(Mat::on_device(norms, all[0].precision))
}

/// See [`crate::tensor::set_norms`].
pub(in crate::tensor) fn set_norms(g: &Graph, x: &Mat, m: &Mat, norms: &Mat) -> Option<Mat> {
    let input = x.device_mat()?;
    let (magnitudes, norms) = (m.device_mat()?.clone(), norms.device_mat()?.clone());
    let (count, width) = (input.count(), input.cols);
    let (own, own_norms) = (magnitudes.clone(), norms.clone());
    let scale = move |from: &DeviceMat, to: &DeviceMat, add| {
        Kernel::of(from.device(), "set_norms", from.kind)
            .at(&from.buffer)
            .at(&own.buffer)
            .at(&own_norms.buffer)
            .at(&to.buffer)
            .count(count)
            .count(width)
            .adding(add)
            .by_elements(count);
    };
    let mut y = DeviceMat::new(input.device(), input.rows, width, input.kind);
    y.gradient = input.gradient;
    scale(input, &y, false);
    let y = g.device_output(y, &[x, m]);
    let dx = x.needs_grad.then(|| input.ghost());
    let dm = m.needs_grad.then(|| (magnitudes.ghost(), input.clone()));
    g.record_on_device(&y, move |dy, gradients| {
        if let Some((dm, x)) = dm {
            let to = gradients.slot(&dm);
            Kernel::of(x.device(), "magnitude_gradient", x.kind)
                .at(&converted(&dy, x.kind).buffer)
                .at(&x.buffer)
                .at(&norms.buffer)
                .at(&to.mat.buffer)
                .count(count)
                .count(width)
                .adding(to.add)
                .by_elements(width);
        }
        if let Some(dx) = dx {
            let to = gradients.slot(&dx);
            scale(&converted(&dy, to.mat.kind), &to.mat, to.add);
        }
    });
    Some(y)
}
