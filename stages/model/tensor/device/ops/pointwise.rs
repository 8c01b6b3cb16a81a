//! Sums, dropout and rotations: `kernels/pointwise.cuh`.

use super::{converted, table};
use crate::tensor::{
    Graph, Mat,
    device::{Buffer, DeviceMat, Type, launch::Kernel},
    host::dropout::Drop,
};

/// `to += scale * from`.
pub(in crate::tensor) fn accumulate(to: &DeviceMat, from: &DeviceMat, scale: f32) {
    let from = converted(from, to.kind);
    let count = to.count();
    Kernel::of(to.device(), "accumulate", to.kind)
        .at(&to.buffer)
        .at(&from.buffer)
        .value(scale)
        .count(count)
        .by_elements(count);
}

/// See [`crate::tensor::add`].
pub(in crate::tensor) fn add(g: &Graph, y: &mut Mat, x: &Mat) -> Option<()> {
    accumulate(y.device_mat_mut()?, x.device_mat()?, 1.0);
    y.needs_grad |= g.records() && x.needs_grad;
    if x.needs_grad {
        let x = x.device_mat()?.ghost();
        // The gradient of y is unchanged and passed to the operation that computed y.
        g.record_in_place_on_device(y, move |dy, gradients| gradients.give_on_device(&x, converted(dy, x.gradient)));
    }
    Some(())
}

/// See [`crate::tensor::add_rows`].
pub(in crate::tensor) fn add_rows(g: &Graph, y: &mut Mat, rows: &Mat) -> Option<()> {
    let (to, from) = (y.device_mat_mut()?, rows.device_mat()?);
    debug_assert_eq!(from.kind, Type::F32, "the kernel adds rows in f32, as weights are");
    let (count, period) = (to.count(), from.count());
    Kernel::of(to.device(), "add_rows", to.kind)
        .at(&to.buffer)
        .at(&from.buffer)
        .count(count)
        .count(period)
        .by_elements(count);
    y.needs_grad |= g.records() && rows.needs_grad;
    if rows.needs_grad {
        let rows = from.ghost();
        g.record_in_place_on_device(y, move |dy, gradients| {
            let d_rows = gradients.slot(&rows);
            Kernel::of(dy.device(), "add_rows_gradient", dy.kind)
                .at(&dy.buffer)
                .at(&d_rows.mat.buffer)
                .count(count)
                .count(period)
                .adding(d_rows.add)
                .by_elements(period);
        });
    }
    Some(())
}

/// See [`crate::tensor::scale_columns`].
pub(in crate::tensor) fn scale_columns(g: &Graph, x: &Mat, scale: &Mat) -> Option<Mat> {
    let (input, factors) = (x.device_mat()?, scale.device_mat()?);
    debug_assert_eq!(factors.kind, Type::F32, "the kernel reads factors in f32, as weights are");
    let (kind, count, width) = (input.kind, input.count(), input.cols);
    let launch = move |x: &DeviceMat, scale: &DeviceMat, y: &DeviceMat, add| {
        Kernel::of(x.device(), "scale_columns", x.kind)
            .at(&x.buffer)
            .at(&scale.buffer)
            .at(&y.buffer)
            .count(count)
            .count(width)
            .adding(add)
            .by_elements(count);
    };
    let y = DeviceMat::new(input.device(), input.rows, input.cols, kind);
    launch(input, factors, &y, false);
    let y = g.device_output(y, &[x, scale]);
    let (x, scale) = (x.clone(), scale.clone());
    g.record_on_device(&y, move |dy, gradients| {
        let (Some(input), Some(factors)) = (x.device_mat(), scale.device_mat()) else { return };
        if x.needs_grad {
            let dx = gradients.slot(&input.ghost());
            launch(&converted(&dy, dx.mat.kind), factors, &dx.mat, dx.add);
        }
        if scale.needs_grad {
            let (d_scale, dy) = (gradients.slot(&factors.ghost()), converted(&dy, kind));
            Kernel::of(input.device(), "scale_columns_gradient", kind)
                .at(&input.buffer)
                .at(&dy.buffer)
                .at(&d_scale.mat.buffer)
                .count(count)
                .count(width)
                .adding(d_scale.add)
                .by_elements(width);
        }
    });
    Some(y)
}

/// See [`crate::tensor::dropout`] and [`crate::tensor::dropout_rest`]; `keys` has the key of each row's random numbers.
pub(in crate::tensor) fn dropout(g: &Graph, x: &Mat, drop: Drop, keys: &[u64]) -> Option<Mat> {
    let input = x.device_mat()?;
    let keys = table(input, keys);
    let name = if drop.dropped > 0.0 { "dropout_rest" } else { "dropout" };
    let launch = move |x: &DeviceMat, y: &DeviceMat, keys: &Buffer, add| {
        Kernel::of(x.device(), name, x.kind)
            .at(&x.buffer)
            .at(&y.buffer)
            .at(keys)
            .int(x.cols)
            .value(drop.threshold)
            .value(drop.scale)
            .adding(add)
            .by_rows(x.rows);
    };
    let y = DeviceMat::new(input.device(), input.rows, input.cols, input.kind);
    launch(input, &y, &keys, false);
    let y = g.device_output(y, &[x]);
    let input = input.ghost();
    g.record_on_device(&y, move |dy, gradients| {
        let dx = gradients.slot(&input);
        launch(&converted(&dy, dx.mat.kind), &dx.mat, &keys, dx.add);
    });
    Some(y)
}

/// See [`crate::tensor::rotate`]; `table` has cos and sin for each row's `half` angles.
pub(in crate::tensor) fn rotate(
    g: &Graph,
    x: &mut Mat,
    head_dim: usize,
    half: usize,
    table: std::sync::Arc<Buffer>,
) -> Option<()> {
    let turn = move |x: &DeviceMat, table: &Buffer, direction: f32| {
        Kernel::of(x.device(), "rotate", x.kind)
            .at(&x.buffer)
            .at(table)
            .int(x.cols)
            .int(head_dim)
            .int(half)
            .value(direction)
            .by_rows(x.rows);
    };
    turn(x.device_mat_mut()?, &table, 1.0);
    // The gradient is multiplied by the transpose, which is the inverse rotation.
    g.record_in_place_on_device(x, move |dx, _| {
        dx.make_unique();
        turn(dx, &table, -1.0);
    });
    Some(())
}
