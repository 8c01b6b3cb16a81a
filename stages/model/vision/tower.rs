//! A vision encoder as used by Imp: the features are the patches of one of the hidden states, without final norm and pooling.
//! Its last blocks may train. What tells SigLIP, CLIP and `DINOv2` apart is in `encoder.rs`. References: transformers' `modeling_siglip.py`,
//! `modeling_clip.py`, `modeling_dinov2.py` and `modeling_dinov2_with_registers.py`.

use super::{
    block::Block,
    positions::{Positions, axes_of},
};
use crate::{
    config::VisionConfig,
    error::{ModelError, Result},
    layers::{Norm, Parameter, Pass},
    tensor::{self, Graph, Mat, Place, Segments, Weight},
    weights::{NamedTensor, TensorFiles},
};

/// The vision encoder.
#[derive(Clone)]
pub struct VisionTower {
    /// The configuration.
    pub config: VisionConfig,
    prefix: String,
    /// `[hidden, 3 * patch * patch]`: a convolution whose stride equals its size is a linear layer on patches.
    patch_weight: Mat,
    /// `[1, hidden]`.
    patch_bias: Option<Mat>,
    /// The class token, `[1, hidden]`.
    class: Option<Mat>,
    /// The registers, `[registers, hidden]`.
    registers: Option<Mat>,
    positions: Positions,
    first_norm: Option<Norm>,
    blocks: Vec<Block>,
    /// Number of the last blocks that train.
    trained: usize,
}

impl VisionTower {
    /// Reads the layers up to the selected hidden state. `prefix` precedes all tensor names. Hidden state 0 is the embedded image,
    /// the others are the blocks' outputs. A negative `select_layer` counts from the end: -1 is the output of the last block, -2
    /// its input.
    ///
    /// # Errors
    /// If there is no such hidden state, or a tensor is missing or has the wrong shape or type.
    pub fn load(from: &TensorFiles, prefix: &str, config: VisionConfig, select_layer: i64) -> Result<Self> {
        let used = config.used_layers(select_layer).ok_or_else(|| {
            let message = format!(
                "mm_vision_select_layer {select_layer} is not a hidden state of an encoder with {} layers",
                config.num_hidden_layers
            );
            ModelError::file(&from.config_file(), message)
        })?;
        let description = config.encoder.description();
        let (width, pixels) = (config.hidden_size, 3 * config.patch_size * config.patch_size);
        let name = |part: &str| format!("{prefix}{part}");
        let names = &description.embeddings;
        let conv = name(names.patch);
        let shape = [width, 3, config.patch_size, config.patch_size];
        let blocks = (0..used)
            .map(|layer| Block::load(from, &format!("{prefix}{}.{layer}", description.blocks), &config))
            .collect::<Result<_>>()?;
        let class = names.class.map(|(token, axes)| from.mat(&name(token), &axes_of(axes, 1, width), 1, width));
        let registers = names.registers.filter(|_| config.registers > 0).map(|tokens| {
            let count = config.registers;
            from.mat(&name(tokens), &[1, count, width], count, width)
        });
        let first_norm =
            description.first_norm.map(|norm| Norm::layer(from, &name(norm), width, config.layer_norm_eps));
        let patch_bias = names.patch_bias.then(|| from.vector(&format!("{conv}.bias"), width));
        Ok(Self {
            patch_weight: from.mat(&format!("{conv}.weight"), &shape, width, pixels)?,
            patch_bias: patch_bias.transpose()?,
            class: class.transpose()?,
            registers: registers.transpose()?,
            positions: Positions::load(from, &name(names.position), &config)?,
            first_norm: first_norm.transpose()?,
            blocks,
            trained: 0,
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
        let tokens = [&mut self.patch_bias, &mut self.class, &mut self.registers];
        for mat in tokens.into_iter().flatten().chain([&mut self.patch_weight]) {
            *mat = mat.to(place);
        }
        self.positions.move_to(place);
        self.first_norm.iter_mut().for_each(|norm| norm.move_to(place));
        self.blocks.iter_mut().for_each(|block| block.move_to(place));
    }

    /// Sets the image size to `image_size` pixels, with interpolated positions. The reference never resizes.
    ///
    /// # Errors
    /// If images of this size are smaller than a patch.
    pub fn resize(&mut self, image_size: usize) -> Result<()> {
        if image_size < self.config.patch_size {
            let message =
                format!("images of {image_size} pixels are smaller than a patch of {}", self.config.patch_size);
            return Err(ModelError::file("config.json".as_ref(), message));
        }
        self.config.image_size = image_size;
        self.positions.resize(&self.config);
        Ok(())
    }

    /// Makes the last `count` blocks trainable, in f32.
    ///
    /// # Errors
    /// In words, if the features pass fewer blocks.
    pub fn unfreeze(&mut self, count: usize) -> std::result::Result<(), String> {
        check_trained(self.blocks.len(), count)?;
        let first = self.blocks.len() - count;
        self.blocks[first..].iter_mut().for_each(Block::unfreeze);
        self.trained = count;
        Ok(())
    }

    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        self.blocks.iter_mut().for_each(|block| block.trainable(visit));
    }

    /// Encodes images `[3, size, size]` of pixel values. Returns features `[images * patches, hidden]`; where blocks train, what
    /// these take, `[images * tokens, hidden]`, which [`VisionTower::finish`] makes into features.
    pub fn encode(&self, images: &[impl AsRef<[f32]>]) -> Mat {
        let frozen = &self.blocks[..self.blocks.len() - self.trained];
        let encoded = self.run(&Pass::inference(), frozen, self.embed(images), |_| {});
        if self.trained > 0 { encoded } else { self.patches(&Graph::inference(), encoded) }
    }

    /// Completes what [`VisionTower::encode`] has begun. Returns features `[images * patches, hidden]`.
    pub fn finish(&self, pass: &Pass, encoded: &Mat) -> Mat {
        if self.trained == 0 {
            return encoded.clone();
        }
        let trained = &self.blocks[self.blocks.len() - self.trained..];
        let encoded = self.run(pass, trained, encoded.clone(), |_| {});
        self.patches(&pass.graph, encoded)
    }

    /// Rows of [`VisionTower::encode`] for each image.
    pub fn encoded_rows(&self) -> usize {
        self.config.encoded_rows(self.trained)
    }

    /// Number of the last blocks that train.
    pub fn trained(&self) -> usize {
        self.trained
    }

    /// The patches among all tokens of images.
    fn patches(&self, g: &Graph, all: Mat) -> Mat {
        let (before, patches) = (self.config.tokens_before(), self.config.patches());
        if before == 0 {
            return all;
        }
        let rows = (0..all.rows() / (before + patches)).flat_map(|image| {
            let first = image * (before + patches) + before;
            first..first + patches
        });
        tensor::pick_rows(g, &all, rows)
    }

    /// Returns all hidden states `[images * tokens, hidden]`: the embedded images and the output of each used block. The patches of
    /// the last are the features; class token and registers precede those of each image.
    pub fn hidden_states(&self, images: &[impl AsRef<[f32]>]) -> Vec<Mat> {
        let embedded = self.embed(images);
        let mut all = vec![embedded.clone()];
        self.run(&Pass::inference(), &self.blocks, embedded, |x| all.push(x.clone()));
        all
    }

    fn run(&self, pass: &Pass, blocks: &[Block], x: Mat, mut after: impl FnMut(&Mat)) -> Mat {
        let tokens = self.config.tokens_before() + self.config.patches();
        let segments = Segments::new(std::iter::repeat_n(tokens, x.rows() / tokens));
        blocks.iter().fold(x, |x, block| {
            let x = block.forward(pass, &self.config, &x, &segments);
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
        let names = &self.config.encoder.description().embeddings;
        let name = |part: &str| format!("{}{part}", self.prefix);
        let conv = name(names.patch);
        let mut all =
            vec![NamedTensor::shaped(format!("{conv}.weight"), vec![width, 3, patch, patch], &self.patch_weight)];
        all.extend(self.patch_bias.iter().map(|bias| NamedTensor::flat(format!("{conv}.bias"), bias)));
        if let (Some((token, axes)), Some(class)) = (names.class, &self.class) {
            all.push(NamedTensor::shaped(name(token), axes_of(axes, 1, width), class));
        }
        if let (Some(tokens), Some(registers)) = (names.registers, &self.registers) {
            all.push(NamedTensor::shaped(name(tokens), vec![1, registers.rows(), width], registers));
        }
        all.push(self.positions.tensor(name(names.position), &self.config));
        self.first_norm.iter().for_each(|norm| norm.tensors(&mut all));
        self.blocks.iter().for_each(|block| block.tensors(&mut all));
        for NamedTensor { name, .. } in &mut all {
            *name = format!("{prefix}{}", name.strip_prefix(&self.prefix).unwrap_or(name));
        }
        all
    }

    /// Returns class tokens, registers and embedded patches of each image, with their positions added, `[images * tokens, hidden]`.
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
        let g = Graph::inference();
        let x = tensor::linear(&g, &patches, &weight, self.patch_bias.as_ref()); // [images * patches, hidden]
        let x = tensor::add_rows(&g, x, self.positions.of_patches());
        let x = self.with_tokens(&g, x, images.len());
        self.first_norm.iter().fold(x, |x, norm| norm.forward(&Pass::inference(), &x))
    }

    /// Puts class token and registers before the patches of each image.
    fn with_tokens(&self, g: &Graph, patches: Mat, images: usize) -> Mat {
        let Some(class) = &self.class else { return patches };
        // Addition in place would change the weight.
        let class = tensor::pick_rows(g, class, [0]);
        let class = match self.positions.of_class() {
            Some(position) => tensor::add_rows(g, class, position),
            None => class,
        };
        let (registers, each) = (self.registers.as_ref().map_or(0, Mat::rows), self.config.patches());
        let picks = (0..images).flat_map(|image| {
            let before = std::iter::once((0, 0)).chain((0..registers).map(|row| (1, row)));
            let source = if registers > 0 { 2 } else { 1 };
            before.chain((image * each..(image + 1) * each).map(move |row| (source, row)))
        });
        let sources: Vec<Weight> = [Some(&class), self.registers.as_ref(), Some(&patches)]
            .into_iter()
            .flatten()
            .cloned()
            .map(Weight::Dense)
            .collect();
        tensor::gather(g, &sources.iter().collect::<Vec<_>>(), picks.collect())
    }
}

/// Whether the last `count` of the `used` blocks that features pass can train.
///
/// # Errors
/// In words, if there are fewer.
pub fn check_trained(used: usize, count: usize) -> std::result::Result<(), String> {
    if count <= used {
        Ok(())
    } else {
        Err(format!("the features pass {used} blocks of the vision encoder, not {count}"))
    }
}
