//! A block of a vision encoder.

use crate::{
    config::VisionConfig,
    error::Result,
    layers::{Linear, Norm, Parameter, Pass, Role, Tower},
    tensor::{self, Mask, Mat, Place, Segments},
    weights::{NamedTensor, TensorFiles},
};

/// Norm, attention, norm, MLP.
#[derive(Clone)]
pub(super) struct Block {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    /// Factors of the output of attention, `[1, hidden]`.
    scale1: Option<Scale>,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
    /// Factors of the output of the MLP, `[1, hidden]`.
    scale2: Option<Scale>,
}

/// The factors of a branch, with their name in files.
#[derive(Clone)]
struct Scale {
    name: String,
    factors: Mat,
}

impl Block {
    pub(super) fn load(from: &TensorFiles, name: &str, config: &VisionConfig) -> Result<Self> {
        let (width, parts, shapes) = (config.hidden_size, &config.encoder.description().parts, config.linear_shapes());
        let linear = |index: usize| {
            let (outputs, inputs) = shapes[index];
            Linear::load(from, &format!("{name}.{}", parts.linears[index]), outputs, inputs, true)
        };
        let norm =
            |index: usize| Norm::layer(from, &format!("{name}.{}", parts.norms[index]), width, config.layer_norm_eps);
        let scale = |index: usize| {
            let scale = parts.scales.map(|names| {
                let name = format!("{name}.{}", names[index]);
                from.vector(&name, width).map(|factors| Scale { name, factors })
            });
            scale.transpose()
        };
        Ok(Self {
            norm1: norm(0)?,
            q: linear(0)?,
            k: linear(1)?,
            v: linear(2)?,
            out: linear(3)?,
            scale1: scale(0)?,
            norm2: norm(1)?,
            fc1: linear(4)?,
            fc2: linear(5)?,
            scale2: scale(1)?,
        })
    }

    pub(super) fn move_to(&mut self, place: &Place) {
        let Self { norm1, q, k, v, out, scale1, norm2, fc1, fc2, scale2 } = self;
        for norm in [norm1, norm2] {
            norm.move_to(place);
        }
        for linear in [q, k, v, out, fc1, fc2] {
            linear.move_to(place);
        }
        for scale in [scale1, scale2].into_iter().flatten() {
            scale.factors = scale.factors.to(place);
        }
    }

    /// Makes all weights trainable, in f32.
    pub(super) fn unfreeze(&mut self) {
        let Self { norm1, q, k, v, out, scale1, norm2, fc1, fc2, scale2 } = self;
        for norm in [norm1, norm2] {
            norm.unfreeze();
        }
        for linear in [q, k, v, out, fc1, fc2] {
            linear.unfreeze();
        }
        for scale in [scale1, scale2].into_iter().flatten() {
            scale.factors = scale.factors.clone().trainable();
        }
    }

    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub(super) fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        let mut visit = |parameter, mat: &mut Mat| visit(Parameter { tower: Tower::Vision, ..parameter }, mat);
        let Self { norm1, q, k, v, out, scale1, norm2, fc1, fc2, scale2 } = self;
        for norm in [norm1, norm2] {
            norm.trainable(&mut visit);
        }
        for linear in [q, k, v, out, fc1, fc2] {
            linear.trainable(&mut visit);
        }
        for Scale { name, factors } in [scale1, scale2].into_iter().flatten().filter(|scale| scale.factors.needs_grad())
        {
            visit(Parameter::new(name.clone(), Role::Matrix), factors);
        }
    }

    pub(super) fn tensors<'a>(&'a self, all: &mut Vec<NamedTensor<'a>>) {
        for norm in [&self.norm1, &self.norm2] {
            norm.tensors(all);
        }
        for linear in [&self.q, &self.k, &self.v, &self.out, &self.fc1, &self.fc2] {
            linear.tensors(all);
        }
        for scale in [&self.scale1, &self.scale2].into_iter().flatten() {
            all.push(NamedTensor::flat(scale.name.clone(), &scale.factors));
        }
    }

    /// Pre-norm block: `x += scale1 * attention(norm1(x))`, then `x += scale2 * mlp(norm2(x))`.
    pub(super) fn forward(&self, pass: &Pass, config: &VisionConfig, x: &Mat, segments: &Segments) -> Mat {
        let g = &pass.graph;
        let scaled = |branch: Mat, scale: &Option<Scale>| match scale {
            Some(scale) => tensor::scale_columns(g, &branch, &scale.factors),
            None => branch,
        };
        let n = self.norm1.forward(pass, x);
        let [q, k, v] = Linear::forward_each(pass, &n, [&self.q, &self.k, &self.v]);
        let attended = tensor::attention(g, &q, &k, &v, config.num_attention_heads, segments, Mask::Full);
        let x = tensor::add(g, scaled(self.out.forward(pass, &attended), &self.scale1), x);
        let n = self.norm2.forward(pass, &x);
        let inner = tensor::activation(g, &self.fc1.forward(pass, &n), config.hidden_act);
        tensor::add(g, scaled(self.fc2.forward(pass, &inner), &self.scale2), &x)
    }
}
