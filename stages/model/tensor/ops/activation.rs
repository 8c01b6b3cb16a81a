//! Activation functions.

use serde::{Deserialize, Serialize};

use crate::tensor::{
    Graph, Mat, device,
    host::activation::{self as host, Function},
};

/// An activation function, serialized with its name in `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (Phi-2, SigLIP).
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))` (the projector).
    #[serde(rename = "gelu")]
    GeluErf,
    /// `x / (1 + e^-x)` (the gate of a gated MLP in Qwen, Llama, Phi-3).
    #[serde(rename = "silu", alias = "swish")]
    Silu,
    /// `x / (1 + e^(-1.702 x))` (CLIP as OpenAI trained it).
    #[serde(rename = "quick_gelu")]
    QuickGelu,
}

/// Applies `kind` to every value of `x`. Saves `x` for the backward pass.
pub fn activation(g: &Graph, x: &Mat, kind: Activation) -> Mat {
    if let Some(y) = device::ops::activation(g, x, kind) {
        return y;
    }
    match kind {
        Activation::GeluTanh => apply::<host::GeluTanh>(g, x),
        Activation::GeluErf => apply::<host::GeluErf>(g, x),
        Activation::Silu => apply::<host::Silu>(g, x),
        Activation::QuickGelu => apply::<host::QuickGelu>(g, x),
    }
}

fn apply<F: Function>(g: &Graph, x: &Mat) -> Mat {
    let y = g.output(x.rows(), x.cols(), host::forward::<F>(x.values()), &[x]);
    let x = x.clone();
    g.record(&y, move |mut dy, gradients| {
        host::times_derivative::<F>(x.values(), &mut dy);
        gradients.give(&x.ghost(), dy);
    });
    y
}
