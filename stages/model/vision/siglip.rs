//! SigLIP's vision tower (Zhai et al. 2023), as far as Imp uses it: the features are one of the hidden states,
//! with no norm, pooling or head after it. It never trains. Reference: transformers' `modeling_siglip.py`.

use crate::{
    config::SiglipConfig,
    error::{ModelError, Result},
    layers::{LayerNorm, Linear, Pass},
    save::NamedTensor,
    tensor::{self, Mask, Mat, Segments, Weight},
    weights::Checkpoint,
};

/// The vision encoder.
pub struct Siglip {
    /// Its sizes.
    pub config: SiglipConfig,
    prefix: String,
    /// `[hidden, 3 * patch * patch]`: a convolution whose stride is its size is a linear layer on patches.
    patch_weight: Mat,
    /// `[1, hidden]`.
    patch_bias: Mat,
    /// `[patches, hidden]`.
    position: Mat,
    blocks: Vec<Block>,
}

struct Block {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Siglip {
    /// Reads the layers that are used. `prefix` stands before `embeddings` and `encoder` in the names;
    /// `select_layer` counts hidden states from the end, so -2 leaves out the last block.
    pub fn load(from: &Checkpoint, prefix: &str, config: SiglipConfig, select_layer: i64) -> Result<Self> {
        let used = config.num_hidden_layers as i64 + 1 + select_layer;
        if used < 0 || select_layer >= 0 {
            return Err(ModelError::Missing {
                file: "config.json".into(),
                tensor: format!("mm_vision_select_layer {select_layer}"),
            });
        }
        let (width, pixels) = (config.hidden_size, 3 * config.patch_size * config.patch_size);
        let conv = format!("{prefix}embeddings.patch_embedding");
        let shape = [width, 3, config.patch_size, config.patch_size];
        let blocks = (0..used)
            .map(|layer| Block::load(from, &format!("{prefix}encoder.layers.{layer}"), &config))
            .collect::<Result<_>>()?;
        let position = format!("{prefix}embeddings.position_embedding.weight");
        Ok(Self {
            patch_weight: from.mat(&format!("{conv}.weight"), &shape, width, pixels)?,
            patch_bias: from.vector(&format!("{conv}.bias"), width)?,
            position: from.mat(&position, &[config.patches(), width], config.patches(), width)?,
            blocks,
            prefix: prefix.into(),
            config,
        })
    }

    /// Features `[images * patches, hidden]` of images `[3, size, size]` with values in -1..1.
    pub fn encode(&self, images: &[impl AsRef<[f32]>]) -> Mat {
        let pass = Pass::inference();
        let segments = Segments::new(images.iter().map(|_| self.config.patches()));
        let mut x = self.embed(images); // [images * patches, hidden]
        for block in &self.blocks {
            x = block.forward(&pass, &self.config, &x, &segments);
        }
        x
    }

    /// The tensors that are used, in f32, under `prefix`.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor<'_>> {
        let (width, patch) = (self.config.hidden_size, self.config.patch_size);
        let name = |part: &str| format!("{}embeddings.{part}", self.prefix);
        let mut all = vec![
            NamedTensor::of(name("patch_embedding.weight"), vec![width, 3, patch, patch], self.patch_weight.values()),
            NamedTensor::vector(name("patch_embedding.bias"), self.patch_bias.values()),
            NamedTensor::of(
                name("position_embedding.weight"),
                vec![self.config.patches(), width],
                self.position.values(),
            ),
        ];
        for block in &self.blocks {
            for norm in [&block.norm1, &block.norm2] {
                norm.tensors(&mut all);
            }
            for linear in [&block.q, &block.k, &block.v, &block.out, &block.fc1, &block.fc2] {
                linear.tensors(&mut all);
            }
        }
        for NamedTensor { name, .. } in &mut all {
            *name = format!("{prefix}{}", name.strip_prefix(&self.prefix).unwrap_or(name));
        }
        all
    }

    fn embed(&self, images: &[impl AsRef<[f32]>]) -> Mat {
        let (size, patch, grid) = (self.config.image_size, self.config.patch_size, self.config.grid());
        let pixels = 3 * patch * patch;
        let mut patches = Vec::with_capacity(images.len() * grid * grid * pixels);
        for image in images {
            let image = image.as_ref();
            for (row, col) in (0..grid * grid).map(|index| (index / grid, index % grid)) {
                for (channel, y) in (0..3 * patch).map(|index| (index / patch, index % patch)) {
                    let start = (channel * size + row * patch + y) * size + col * patch;
                    patches.extend_from_slice(&image[start..start + patch]);
                }
            }
        }
        let patches = Mat::new(images.len() * grid * grid, pixels, patches);
        let weight = Weight::Dense(self.patch_weight.clone());
        let mut x = tensor::linear(&tensor::Graph::inference(), &patches, &weight, Some(&self.patch_bias));
        for image in x.values_mut().chunks_mut(self.position.values().len()) {
            image.iter_mut().zip(self.position.values()).for_each(|(x, position)| *x += position);
        }
        x
    }
}

impl Block {
    fn load(from: &Checkpoint, name: &str, config: &SiglipConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, outputs, inputs| Linear::load(from, &format!("{name}.{part}"), outputs, inputs, true);
        let norm = |part: &str| LayerNorm::load(from, &format!("{name}.{part}"), width, config.layer_norm_eps);
        Ok(Self {
            norm1: norm("layer_norm1")?,
            q: linear("self_attn.q_proj", width, width)?,
            k: linear("self_attn.k_proj", width, width)?,
            v: linear("self_attn.v_proj", width, width)?,
            out: linear("self_attn.out_proj", width, width)?,
            norm2: norm("layer_norm2")?,
            fc1: linear("mlp.fc1", inner, width)?,
            fc2: linear("mlp.fc2", width, inner)?,
        })
    }

    /// Attention, then MLP, each after a norm and with a residual.
    fn forward(&self, pass: &Pass, config: &SiglipConfig, x: &Mat, segments: &Segments) -> Mat {
        let g = &pass.graph;
        let n = self.norm1.forward(pass, x);
        let (q, k, v) = (self.q.forward(pass, &n), self.k.forward(pass, &n), self.v.forward(pass, &n));
        let attended = tensor::attention(g, &q, &k, &v, config.num_attention_heads, segments, Mask::Full);
        let x = tensor::add(g, self.out.forward(pass, &attended), x);
        let n = self.norm2.forward(pass, &x);
        let inner = tensor::activation(g, &self.fc1.forward(pass, &n), config.hidden_act);
        tensor::add(g, self.fc2.forward(pass, &inner), &x)
    }
}
