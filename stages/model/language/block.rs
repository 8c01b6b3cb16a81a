//! A transformer block of a language model. References: transformers' `modeling_phi.py`, `modeling_qwen2.py`,
//! `modeling_llama.py`, `modeling_phi3.py`.

use super::{attention::Attention, mlp::Mlp};
use crate::{
    config::LanguageConfig,
    error::Result,
    layers::{Linear, Norm, Parameter, Pass},
    tensor::{self, Mat, Place, Rotation},
    weights::{NamedTensor, TensorFiles},
};

#[derive(Clone)]
pub(super) struct Block {
    norm: Norm,
    attention: Attention,
    /// `None` in Phi, whose attention and MLP are parallel.
    norm2: Option<Norm>,
    mlp: Mlp,
}

impl Block {
    pub(super) fn load(from: &TensorFiles, config: &LanguageConfig, layer: usize) -> Result<Self> {
        let prefix = format!("model.layers.{layer}.");
        let norms = config.family.description().block_norms;
        let norm = |part: &str| load_norm(from, config, &format!("{prefix}{part}"));
        Ok(Self {
            norm: norm(norms[0])?,
            attention: Attention::load(from, config, &prefix)?,
            norm2: norms.get(1).map(|part| norm(part)).transpose()?,
            mlp: Mlp::load(from, config, &prefix)?,
        })
    }

    /// Phi: `x + attention(norm(x)) + mlp(norm(x))`. Others: `x += attention(norm(x))`, then `x += mlp(norm2(x))`. `x`
    /// is the residual stream `[rows, hidden]`. With `only`, all rows are attended to, but the output is that of these rows:
    /// what comes after attention takes each row by itself.
    pub(super) fn forward(
        &self,
        pass: &Pass,
        x: &Mat,
        rotation: &Rotation,
        only: Option<&[usize]>,
        attend: &mut dyn FnMut(&Mat, &Mat, &Mat) -> Mat,
    ) -> Mat {
        let n = self.norm.forward(pass, x); // [rows, hidden]
        let heads = self.attention.heads(pass, &n, rotation, attend);
        let Some(rows) = only else { return self.after_heads(pass, x, &n, &heads) };
        let [x, n, heads] = [x, &n, &heads].map(|mat| tensor::pick_rows(&pass.graph, mat, rows.iter().copied()));
        if rows.is_empty() { x } else { self.after_heads(&pass.on_some(rows), &x, &n, &heads) }
    }

    /// The rest of the block for residual stream `x`, its norm `n`, and the values of the attention's heads.
    fn after_heads(&self, pass: &Pass, x: &Mat, n: &Mat, heads: &Mat) -> Mat {
        let g = &pass.graph;
        let attended = self.attention.output(pass, heads);
        let Some(norm2) = &self.norm2 else {
            let fed_forward = self.mlp.forward(pass, n);
            return tensor::add(g, tensor::add(g, attended, &fed_forward), x);
        };
        let x = tensor::add(g, attended, x);
        let fed_forward = self.mlp.forward(pass, &norm2.forward(pass, &x));
        tensor::add(g, fed_forward, &x)
    }

    /// The norms, mutable.
    pub(super) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        [Some(&mut self.norm), self.norm2.as_mut()].into_iter().flatten()
    }

    /// Makes the norms trainable.
    pub(super) fn unfreeze_norms(&mut self) {
        self.norms_mut().for_each(Norm::unfreeze);
    }

    /// Moves all weights to `place`.
    pub(super) fn move_to(&mut self, place: &Place) {
        [Some(&mut self.norm), self.norm2.as_mut()].into_iter().flatten().for_each(|norm| norm.move_to(place));
        self.linears_mut().into_iter().for_each(|linear| linear.move_to(place));
    }

    /// The trainable matrices.
    pub(super) fn parameters(&self) -> Vec<Mat> {
        let norms = [Some(&self.norm), self.norm2.as_ref()].into_iter().flatten();
        norms.flat_map(Norm::parameters).chain(self.linears().into_iter().flat_map(Linear::parameters)).collect()
    }

    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub(super) fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        [Some(&mut self.norm), self.norm2.as_mut()].into_iter().flatten().for_each(|norm| norm.trainable(visit));
        self.linears_mut().into_iter().for_each(|linear| linear.trainable(visit));
    }

    /// Appends all tensors, adapters merged, to `all`.
    pub(super) fn tensors<'a>(&'a self, all: &mut Vec<NamedTensor<'a>>) {
        [Some(&self.norm), self.norm2.as_ref()].into_iter().flatten().for_each(|norm| norm.tensors(all));
        self.linears().into_iter().for_each(|linear| linear.tensors(all));
    }

    /// The linear layers in a fixed order.
    pub(super) fn linears(&self) -> Vec<&Linear> {
        self.attention.linears().into_iter().chain(self.mlp.linears()).collect()
    }

    /// The linear layers in the same order, mutable.
    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.attention.linears_mut().into_iter().chain(self.mlp.linears_mut()).collect()
    }
}

/// Reads a norm of the family's type.
pub(super) fn load_norm(from: &TensorFiles, config: &LanguageConfig, name: &str) -> Result<Norm> {
    let load = if config.family.description().rms_norms { Norm::rms } else { Norm::layer };
    load(from, name, config.hidden_size, config.norm_eps)
}
