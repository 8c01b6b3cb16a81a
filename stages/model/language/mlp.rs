//! The MLP of a block: plain (Phi), or gated (Shazeer 2020, arXiv 2002.05202).

use super::attention::load_linear;
use crate::{
    config::LanguageConfig,
    error::Result,
    family::Part,
    layers::{Linear, Pass},
    tensor::{self, Activation, Mat},
    weights::TensorFiles,
};

#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "a model has a few dozen of them")]
pub(super) enum Mlp {
    /// `down(gelu(up(x)))`.
    Plain { up: Linear, down: Linear, activation: Activation },
    /// `down(silu(gate(x)) * up(x))`.
    Gated { gate: Linear, up: Linear, down: Linear },
    /// Gated, with the rows of gate and up, in this order, in one matrix (Phi-3).
    GatedStacked { gate_up: Linear, down: Linear },
}

impl Mlp {
    /// Reads the layers whose names start with `prefix`.
    pub(super) fn load(from: &TensorFiles, config: &LanguageConfig, prefix: &str) -> Result<Self> {
        let linear = |part| load_linear(from, config, prefix, part);
        Ok(if config.family.has(Part::GateUp) {
            Self::GatedStacked { gate_up: linear(Part::GateUp)?, down: linear(Part::Down)? }
        } else if config.family.has(Part::Gate) {
            Self::Gated { gate: linear(Part::Gate)?, up: linear(Part::Up)?, down: linear(Part::Down)? }
        } else {
            Self::Plain { up: linear(Part::Up)?, down: linear(Part::Down)?, activation: config.hidden_act }
        })
    }

    /// Returns `[rows, hidden]` from normalized `x` `[rows, hidden]`.
    pub(super) fn forward(&self, pass: &Pass, x: &Mat) -> Mat {
        let g = &pass.graph;
        match self {
            Self::Plain { up, down, activation } => {
                down.forward(pass, &tensor::activation(g, &up.forward(pass, x), *activation))
            }
            Self::Gated { gate, up, down } => {
                let [gate, up] = Linear::forward_each(pass, x, [gate, up]);
                let inner = tensor::silu_gate(g, &gate, &up);
                // Without a tape, their memory is free again.
                drop((gate, up));
                down.forward(pass, &inner)
            }
            Self::GatedStacked { gate_up, down } => {
                let [gate, up] = {
                    let both = gate_up.forward(pass, x); // [rows, 2 * inner]
                    let inner = both.cols() / 2;
                    [0, inner].map(|start| tensor::columns(g, &both, start, inner))
                };
                let inner = tensor::silu_gate(g, &gate, &up);
                drop((gate, up));
                down.forward(pass, &inner)
            }
        }
    }

    pub(super) fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Plain { up, down, .. } => vec![up, down],
            Self::Gated { gate, up, down } => vec![gate, up, down],
            Self::GatedStacked { gate_up, down } => vec![gate_up, down],
        }
    }

    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Plain { up, down, .. } => vec![up, down],
            Self::Gated { gate, up, down } => vec![gate, up, down],
            Self::GatedStacked { gate_up, down } => vec![gate_up, down],
        }
    }
}
