//! The attention of a block: projections to queries, keys and values, rotary position embedding, and output projection.
//! Independent of which positions a query attends to.

use crate::{
    config::LanguageConfig,
    error::{ModelError, Result},
    family::Part,
    layers::{Linear, Pass},
    tensor::{self, Mat, Rotation},
    weights::TensorFiles,
};

#[derive(Clone)]
pub(super) struct Attention {
    projections: Projections,
    out: Linear,
    head_dim: usize,
    /// `kv_heads * head_dim`.
    key_width: usize,
}

#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "a model has a few dozen of them")]
enum Projections {
    /// q, k, v.
    Separate([Linear; 3]),
    /// One matrix with the rows of q, k and v (Phi-3), and therefore one adapter.
    Stacked(Linear),
}

impl Attention {
    /// Reads the layers whose names start with `prefix`.
    pub(super) fn load(from: &TensorFiles, config: &LanguageConfig, prefix: &str) -> Result<Self> {
        let linear = |part| load_linear(from, config, prefix, part);
        let projections = if config.family.has(Part::Qkv) {
            Projections::Stacked(linear(Part::Qkv)?)
        } else {
            Projections::Separate([linear(Part::Q)?, linear(Part::K)?, linear(Part::V)?])
        };
        let key_width = config.num_key_value_heads * config.head_dim;
        Ok(Self { projections, out: linear(Part::O)?, head_dim: config.head_dim, key_width })
    }

    /// Returns the heads' values `[rows, heads * head_dim]` from normalized `x` `[rows, hidden]`. `attend` computes attention of q, k
    /// and v, to which the rotary position embedding has been applied.
    pub(super) fn heads(
        &self,
        pass: &Pass,
        x: &Mat,
        rotation: &Rotation,
        attend: &mut dyn FnMut(&Mat, &Mat, &Mat) -> Mat,
    ) -> Mat {
        let g = &pass.graph;
        let [q, k, v] = match &self.projections {
            Projections::Separate(layers) => Linear::forward_each(pass, x, layers.each_ref()),
            Projections::Stacked(qkv) => {
                let all = qkv.forward(pass, x); // [rows, queries + keys + values]
                let queries = all.cols() - 2 * self.key_width;
                [(0, queries), (queries, self.key_width), (queries + self.key_width, self.key_width)]
                    .map(|(start, width)| tensor::columns(g, &all, start, width))
            }
        };
        let q = tensor::rotate(g, q, self.head_dim, rotation);
        let k = tensor::rotate(g, k, self.head_dim, rotation);
        attend(&q, &k, &v)
    }

    /// The output projection of the heads' values: `[rows, hidden]`.
    pub(super) fn output(&self, pass: &Pass, heads: &Mat) -> Mat {
        self.out.forward(pass, heads)
    }

    pub(super) fn linears(&self) -> Vec<&Linear> {
        match &self.projections {
            Projections::Separate([q, k, v]) => vec![q, k, v, &self.out],
            Projections::Stacked(qkv) => vec![qkv, &self.out],
        }
    }

    pub(super) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match &mut self.projections {
            Projections::Separate([q, k, v]) => vec![q, k, v, &mut self.out],
            Projections::Stacked(qkv) => vec![qkv, &mut self.out],
        }
    }
}

/// Reads a linear layer of a block, with the shape given by the configuration.
pub(super) fn load_linear(from: &TensorFiles, config: &LanguageConfig, prefix: &str, part: Part) -> Result<Linear> {
    let layer = config.family.layer(part).ok_or_else(|| {
        ModelError::file(&from.config_file(), format!("{:?} has no layer for {part:?}", config.family))
    })?;
    let (outputs, inputs, bias) = config.linear_shape(layer);
    Linear::load(from, &format!("{prefix}{}", layer.name), outputs, inputs, bias)
}
