//! The gated activation of an MLP, `SwiGLU` (Shazeer 2020, arXiv 2002.05202).

use crate::tensor::{Graph, Mat, device, host::activation as host};

/// `silu(gate) * up`, with `gate` and `up` `[rows, width]`. Saves both for the backward pass.
///
/// # Panics
/// If the shapes differ, which is a bug in the caller.
pub fn silu_gate(g: &Graph, gate: &Mat, up: &Mat) -> Mat {
    assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "shapes of gate and up");
    if let Some(y) = device::ops::silu_gate(g, gate, up) {
        return y;
    }
    let y = g.output(gate.rows(), gate.cols(), host::silu_gate(gate.values(), up.values()), &[gate, up]);
    let (gate, up) = (gate.clone(), up.clone());
    g.record(&y, move |mut dy, gradients| {
        if up.needs_grad {
            gradients.give(&up.ghost(), host::silu_gate(gate.values(), &dy));
        }
        if gate.needs_grad {
            host::gate_gradient(gate.values(), up.values(), &mut dy);
            gradients.give(&gate.ghost(), dy);
        }
    });
    y
}
