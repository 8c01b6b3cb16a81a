//! Activation functions and the gated activation: `kernels/pointwise.cuh`.

use super::converted;
use crate::tensor::{
    Activation, Graph, Mat,
    device::{DeviceMat, launch::Kernel},
};

/// The kernels' number of a function.
fn number(kind: Activation) -> i32 {
    match kind {
        Activation::GeluTanh => 0,
        Activation::GeluErf => 1,
        Activation::Silu => 2,
        Activation::QuickGelu => 3,
    }
}

/// See [`crate::tensor::activation`].
pub(in crate::tensor) fn activation(g: &Graph, x: &Mat, function: Activation) -> Option<Mat> {
    let input = x.device_mat()?;
    let kind = input.kind;
    let y = DeviceMat::new(input.device(), input.rows, input.cols, kind);
    Kernel::of(input.device(), "activation", kind)
        .value(number(function))
        .at(&input.buffer)
        .at(&y.buffer)
        .count(y.count())
        .by_elements(y.count());
    let y = g.device_output(y, &[x]);
    let x = x.clone();
    g.record_on_device(&y, move |dy, gradients| {
        let Some(input) = x.device_mat() else { return };
        let (dx, dy) = (gradients.slot(&input.ghost()), converted(&dy, kind));
        Kernel::of(input.device(), "activation_gradient", kind)
            .value(number(function))
            .at(&input.buffer)
            .at(&dy.buffer)
            .at(&dx.mat.buffer)
            .count(input.count())
            .adding(dx.add)
            .by_elements(input.count());
    });
    Some(y)
}

/// See [`crate::tensor::silu_gate`].
pub(in crate::tensor) fn silu_gate(g: &Graph, gate: &Mat, up: &Mat) -> Option<Mat> {
    let (gate_mat, up_mat) = (gate.device_mat()?, up.device_mat()?);
    let (kind, device, count) = (gate_mat.kind, gate_mat.device(), gate_mat.count());
    let y = DeviceMat::new(device, gate_mat.rows, gate_mat.cols, kind);
    Kernel::of(device, "silu_gate", kind)
        .at(&gate_mat.buffer)
        .at(&up_mat.buffer)
        .at(&y.buffer)
        .count(count)
        .by_elements(count);
    let y = g.device_output(y, &[gate, up]);
    let (gate, up) = (gate.clone(), up.clone());
    g.record_on_device(&y, move |dy, gradients| {
        let (Some(gate_mat), Some(up_mat)) = (gate.device_mat(), up.device_mat()) else { return };
        let (device, dy) = (gate_mat.device(), converted(&dy, kind));
        if gate.needs_grad {
            let d_gate = gradients.slot(&gate_mat.ghost());
            let kernel = Kernel::of(device, "silu_gate_gradient", kind).at(&gate_mat.buffer).at(&up_mat.buffer);
            let kernel = kernel.at(&dy.buffer).at(&d_gate.mat.buffer).count(count).adding(d_gate.add);
            kernel.by_elements(count);
        }
        if up.needs_grad {
            let d_up = gradients.slot(&up_mat.ghost());
            let kernel = Kernel::of(device, "silu_up_gradient", kind).at(&gate_mat.buffer).at(&dy.buffer);
            kernel.at(&d_up.mat.buffer).count(count).adding(d_up.add).by_elements(count);
        }
    });
    Some(y)
}
