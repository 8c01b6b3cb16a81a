//! SigLIP's vision encoder (Zhai et al. 2023, arXiv 2303.15343) as used by Imp: the features are one of the hidden
//! states, without final norm and pooling. Always frozen. Reference: transformers' `modeling_siglip.py`.

use crate::{
    config::SiglipConfig,
    error::{ModelError, Result},
    layers::{Linear, Norm, Pass},
    tensor::{self, Mask, Mat, Place, Segments, Weight},
    weights::{NamedTensor, TensorFiles},
};

/// The vision encoder.
pub struct Siglip {
    /// The configuration.
    pub config: SiglipConfig,
    prefix: String,
    /// `[hidden, 3 * patch * patch]`: a convolution whose stride equals its size is a linear layer on patches.
    patch_weight: Mat,
    /// `[1, hidden]`.
    patch_bias: Mat,
    /// `[patches, hidden]`.
    position: Mat,
    blocks: Vec<Block>,
}

struct Block {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

impl Siglip {
    /// Reads the layers up to the selected hidden state. `prefix` precedes `embeddings` and `encoder` in the tensor
    /// names. Hidden state 0 is the embedded image, the others are the blocks' outputs. A negative `select_layer`
    /// counts from the end: -1 is the output of the last block, -2 its input.
    ///
    /// # Errors
    /// If there is no such hidden state, or a tensor is missing or has the wrong shape or type.
    pub fn load(from: &TensorFiles, prefix: &str, config: SiglipConfig, select_layer: i64) -> Result<Self> {
        let used = used_layers(config.num_hidden_layers, select_layer).ok_or_else(|| {
            let message = format!(
                "mm_vision_select_layer {select_layer} is not a hidden state of an encoder with {} layers",
                config.num_hidden_layers
            );
            ModelError::file(&from.config_file(), message)
        })?;
        let (width, pixels) = (config.hidden_size, 3 * config.patch_size * config.patch_size);
        let conv = format!("{prefix}embeddings.patch_embedding");
        let shape = [width, 3, config.patch_size, config.patch_size];
        let blocks = (0..used)
            .map(|layer| Block::load(from, &format!("{prefix}encoder.layers.{layer}"), &config))
            .collect::<Result<_>>()?;
        let position = format!("{prefix}embeddings.position_embedding");
        Ok(Self {
            patch_weight: from.mat(&format!("{conv}.weight"), &shape, width, pixels)?,
            patch_bias: from.vector(&format!("{conv}.bias"), width)?,
            position: from.table(&position, config.patches(), width)?,
            blocks,
            prefix: prefix.into(),
            config,
        })
    }

    /// Where the weights lie.
    pub fn place(&self) -> Place {
        self.patch_weight.place()
    }

    /// Moves all weights to `place`.
    pub fn move_to(&mut self, place: &Place) {
        for mat in [&mut self.patch_weight, &mut self.patch_bias, &mut self.position] {
            *mat = mat.to(place);
        }
        self.blocks.iter_mut().for_each(|block| block.move_to(place));
    }

    /// Sets the image size to `image_size` pixels, with bicubic interpolation of the position embedding as in
    /// transformers' `interpolate_pos_encoding`. The reference never resizes.
    ///
    /// # Errors
    /// If images of this size are smaller than a patch.
    pub fn resize(&mut self, image_size: usize) -> Result<()> {
        let (from, to) = (self.config.grid(), image_size / self.config.patch_size);
        if to == 0 {
            let message =
                format!("images of {image_size} pixels are smaller than a patch of {}", self.config.patch_size);
            return Err(ModelError::file("config.json".as_ref(), message));
        }
        let width = self.config.hidden_size;
        let learned = self.position.to_host();
        let mut values = Vec::with_capacity(to * to * width);
        for (row, col) in (0..to * to).map(|index| (index / to, index % to)) {
            let (rows, cols) = (cubic_taps(row, from, to), cubic_taps(col, from, to));
            for channel in 0..width {
                let position = |(y, x): (usize, usize)| learned[(y * from + x) * width + channel];
                let line = |y: usize| cols.iter().map(|(x, weight)| weight * position((y, *x))).sum::<f32>();
                values.push(rows.iter().map(|(y, weight)| weight * line(*y)).sum());
            }
        }
        self.position = Mat::from_host(to * to, width, values).to(&self.position.place());
        self.config.image_size = image_size;
        Ok(())
    }

    /// Encodes images `[3, size, size]` with values in [-1, 1]. Returns features `[images * patches, hidden]`.
    pub fn encode(&self, images: &[impl AsRef<[f32]>]) -> Mat {
        let embedded = self.embed(images);
        self.run(embedded, |_| {})
    }

    /// Returns all hidden states `[images * patches, hidden]`: the embedded images and the output of each used block.
    /// The last are the features.
    pub fn hidden_states(&self, images: &[impl AsRef<[f32]>]) -> Vec<Mat> {
        let embedded = self.embed(images);
        let mut all = vec![embedded.clone()];
        self.run(embedded, |x| all.push(x.clone()));
        all
    }

    fn run(&self, embedded: Mat, mut after: impl FnMut(&Mat)) -> Mat {
        let (pass, patches) = (Pass::inference(), self.config.patches());
        let segments = Segments::new(std::iter::repeat_n(patches, embedded.rows() / patches));
        self.blocks.iter().fold(embedded, |x, block| {
            let x = block.forward(&pass, &self.config, &x, &segments);
            after(&x);
            x
        })
    }

    /// Number of layers that compute the features.
    pub(crate) fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// The used tensors in f32, named with `prefix`.
    pub fn tensors(&self, prefix: &str) -> Vec<NamedTensor<'_>> {
        let (width, patch) = (self.config.hidden_size, self.config.patch_size);
        let name = |part: &str| format!("{}embeddings.{part}", self.prefix);
        let mut all = vec![
            NamedTensor::shaped(name("patch_embedding.weight"), vec![width, 3, patch, patch], &self.patch_weight),
            NamedTensor::flat(name("patch_embedding.bias"), &self.patch_bias),
            NamedTensor::of_mat(name("position_embedding.weight"), &self.position),
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

    /// Returns patch embeddings with position embeddings added, `[images * patches, hidden]`.
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
        let patches = Mat::from_host(images.len() * grid * grid, pixels, patches);
        let weight = Weight::Dense(self.patch_weight.clone());
        let g = tensor::Graph::inference();
        let x = tensor::linear(&g, &patches, &weight, Some(&self.patch_bias)); // [images * patches, hidden]
        tensor::add_rows(&g, x, &self.position)
    }
}

/// The four points of a line of `from` points, with weights, that interpolate point `index` of a line of `to` points:
/// cubic convolution (Keys 1981) with a = -0.75 as in PyTorch, aligned pixel centres and repeated edges.
fn cubic_taps(index: usize, from: usize, to: usize) -> [(usize, f32); 4] {
    const A: f32 = -0.75;
    let centre = (index as f32 + 0.5) * from as f32 / to as f32 - 0.5;
    let first = centre.floor();
    [-1.0, 0.0, 1.0, 2.0].map(|offset: f32| {
        let x = (centre - first - offset).abs();
        let weight = if x <= 1.0 {
            ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
        } else {
            ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
        };
        ((first + offset).clamp(0.0, (from - 1) as f32) as usize, weight)
    })
}

/// Number of blocks that compute hidden state `select`; `None` if it does not exist.
fn used_layers(layers: usize, select: i64) -> Option<usize> {
    let state = if select < 0 { layers as i64 + 1 + select } else { select };
    usize::try_from(state).ok().filter(|state| *state <= layers)
}

impl Block {
    fn load(from: &TensorFiles, name: &str, config: &SiglipConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, outputs, inputs| Linear::load(from, &format!("{name}.{part}"), outputs, inputs, true);
        let norm = |part: &str| Norm::layer(from, &format!("{name}.{part}"), width, config.layer_norm_eps);
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

    fn move_to(&mut self, place: &Place) {
        let Self { norm1, q, k, v, out, norm2, fc1, fc2 } = self;
        for norm in [norm1, norm2] {
            norm.move_to(place);
        }
        for linear in [q, k, v, out, fc1, fc2] {
            linear.move_to(place);
        }
    }

    /// Pre-norm block: `x += attention(norm1(x))`, then `x += mlp(norm2(x))`.
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
