//! The language model, from token embeddings to logits.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::block::{Block, load_norm};
use crate::{
    config::LanguageConfig,
    error::{ModelError, Result},
    family::{Layer, is_target},
    layers::{Linear, LoraSettings, Norm, Parameter, Pass, Role},
    tensor::{self, KvCache, Mask, Mat, Place, Rotation, Segments, Weight},
    weights::{NamedTensor, TensorFiles},
};

/// A decoder of any [`crate::config::Family`]. Clones share memory until a weight is modified.
#[derive(Clone)]
pub struct Decoder {
    /// The configuration.
    pub config: LanguageConfig,
    /// `[vocab, hidden]`; `None` if it is tied to the output layer's weight.
    embedding: Option<Weight>,
    blocks: Vec<Block>,
    final_norm: Norm,
    lm_head: Linear,
}

/// The KV cache of a batch of sequences: `cache[layer][sequence]`.
pub type Cache = Vec<Vec<KvCache>>;

/// A row's position, and the length of its sequence.
type Row = (usize, usize);

/// The rows of whole sequences.
fn whole(segments: &Segments) -> Vec<Row> {
    let of_one = |range: std::ops::Range<usize>| (0..range.len()).map(move |position| (position, range.len()));
    segments.iter().flat_map(of_one).collect()
}

const EMBEDDING: &str = "model.embed_tokens";

impl Decoder {
    /// Reads the model from tensors with Hugging Face names.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type.
    pub fn load(from: &TensorFiles, config: LanguageConfig) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = from.weight(EMBEDDING, vocab, hidden)?;
        let blocks =
            (0..config.num_hidden_layers).map(|layer| Block::load(from, &config, layer)).collect::<Result<_>>()?;
        let final_norm = load_norm(from, &config, config.family.description().final_norm)?;
        let head = config.family.head();
        let (embedding, lm_head) = if config.tie_word_embeddings {
            // Files may contain the shared matrix a second time, under the output layer's name.
            from.accept(&format!("{}.weight", head.name));
            let bias = if head.bias { Some(from.vector(&format!("{}.bias", head.name), vocab)?) } else { None };
            (None, Linear { name: head.name.into(), weight: embedding, bias, lora: None })
        } else {
            (Some(embedding), Linear::load(from, head.name, vocab, hidden, head.bias)?)
        };
        Ok(Self { config, embedding, blocks, final_norm, lm_head })
    }

    /// The norm before the output layer.
    pub(crate) fn final_norm(&self) -> &Norm {
        &self.final_norm
    }

    /// The output layer.
    pub(crate) fn head(&self) -> &Linear {
        &self.lm_head
    }

    /// The token embedding, `[vocab, hidden]`.
    pub fn embedding(&self) -> &Weight {
        self.embedding.as_ref().unwrap_or(&self.lm_head.weight)
    }

    /// Returns hidden states after the final norm, `[rows, hidden]`, of embedded sequences `[rows, hidden]`.
    pub fn forward(&self, pass: &Pass, embedded: &Mat, segments: &Segments) -> Mat {
        self.run(pass, embedded, segments, None)
    }

    /// The given rows of [`Decoder::forward`]'s result. Of the other rows, the last block computes only what these attend to.
    pub fn forward_at(&self, pass: &Pass, embedded: &Mat, segments: &Segments, rows: &Arc<[usize]>) -> Mat {
        self.run(pass, embedded, segments, Some(rows))
    }

    fn run(&self, pass: &Pass, embedded: &Mat, segments: &Segments, only: Option<&Arc<[usize]>>) -> Mat {
        let rotation = self.rotation(&whole(segments));
        let mut x = embedded.clone(); // [rows, hidden]
        for (layer, block) in self.blocks.iter().enumerate() {
            let (mask, heads) = (self.mask(layer), self.config.num_attention_heads);
            let run = {
                // What the tape holds must not hold the tape.
                let pass = pass.recorded_by(&tensor::Graph::inference());
                let (block, rotation, segments) = (block.clone(), rotation.clone(), segments.clone());
                let only = self.for_last(layer, only).cloned();
                move |graph: &tensor::Graph, x: &Mat| {
                    block.forward(&pass.recorded_by(graph), x, &rotation, only.as_deref(), &mut |q, k, v| {
                        tensor::attention(graph, q, k, v, heads, &segments, mask)
                    })
                }
            };
            pass.graph.finishes(block.parameters());
            x = if pass.gradient_checkpointing() {
                tensor::recompute(&pass.graph, &x, block.parameters(), run)
            } else {
                run(&pass.graph, &x)
            };
        }
        if self.embedding.is_some() {
            // What is used after the blocks only.
            let norm = self.final_norm.parameters();
            pass.graph.finishes(norm.into_iter().chain(self.head_parameters()).collect());
        }
        self.final_norm.forward(pass, &x)
    }

    /// `rows` for the last block: which of its rows are asked for, if not all. The blocks before it give out all of theirs.
    fn for_last<T>(&self, layer: usize, rows: Option<T>) -> Option<T> {
        rows.filter(|_| layer + 1 == self.blocks.len())
    }

    /// Returns transformers' `hidden_states`, `[rows, hidden]` each: the embedded sequences, the output of every block
    /// but the last, and the output of the last block after the final norm.
    pub fn hidden_states(&self, embedded: &Mat, segments: &Segments) -> Vec<Mat> {
        let mut all = Vec::new();
        let last = self.infer(embedded, &whole(segments), None, |layer, x, q, k, v| {
            all.push(x.clone());
            self.attend(layer, q, k, v, segments)
        });
        all.push(last);
        all
    }

    /// Like [`Decoder::forward_at`], for inference. Also returns the KV cache of all positions.
    pub fn prefill(&self, embedded: &Mat, segments: &Segments, rows: &[usize]) -> (Mat, Cache) {
        let mut cache: Cache = vec![vec![KvCache::default(); segments.len()]; self.blocks.len()];
        let hidden = self.infer(embedded, &whole(segments), Some(rows), |layer, _, q, k, v| {
            for (cache, rows) in cache[layer].iter_mut().zip(segments.iter()) {
                cache.push(k, v, rows);
            }
            self.attend(layer, q, k, v, segments)
        });
        (hidden, cache)
    }

    /// Processes further positions and appends them to the cache. Row `i` of `embedded` `[rows, hidden]` is at
    /// `positions[i]` of the sequence `which[i]`, after all cached positions of that sequence. Returns hidden states
    /// `[rows, hidden]`, or of the rows in `only`.
    pub fn decode(
        &self,
        embedded: &Mat,
        positions: &[usize],
        which: &[usize],
        cache: &mut Cache,
        only: Option<&[usize]>,
    ) -> Mat {
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.num_key_value_heads);
        // What is cached has the frequencies of short sequences: see `LanguageConfig::fixed_until`.
        let short = self.config.fixed_until().unwrap_or(usize::MAX);
        let rows: Vec<Row> = positions.iter().map(|position| (*position, short.min(position + 1))).collect();
        self.infer(embedded, &rows, only, |layer, _, q, k, v| {
            let cache = &mut cache[layer];
            KvCache::append(cache, which, k, v);
            let caches: Vec<&KvCache> = which.iter().map(|sequence| &cache[*sequence]).collect();
            tensor::attend_cached(q, positions, &caches, heads, kv_heads, self.mask(layer))
        })
    }

    /// Returns hidden states after the final norm, of all rows or those in `only`, without a tape. `attend` takes the layer, its
    /// input, q, k and v.
    fn infer(
        &self,
        embedded: &Mat,
        rows: &[Row],
        only: Option<&[usize]>,
        mut attend: impl FnMut(usize, &Mat, &Mat, &Mat, &Mat) -> Mat + Send,
    ) -> Mat {
        self.lm_head.weight.place().run(|| {
            let (pass, rotation) = (Pass::inference(), self.rotation(rows));
            let mut x = embedded.clone();
            for (layer, block) in self.blocks.iter().enumerate() {
                let only = self.for_last(layer, only);
                x = block.forward(&pass, &x, &rotation, only, &mut |q, k, v| attend(layer, &x, q, k, v));
            }
            self.final_norm.forward(&pass, &x)
        })
    }

    fn attend(&self, layer: usize, q: &Mat, k: &Mat, v: &Mat, segments: &Segments) -> Mat {
        let heads = self.config.num_attention_heads;
        tensor::attention(&tensor::Graph::inference(), q, k, v, heads, segments, self.mask(layer))
    }

    /// Returns logits `[rows, vocab]` from hidden states `[rows, hidden]`.
    pub fn logits(&self, pass: &Pass, hidden: &Mat) -> Mat {
        self.lm_head.logits(pass, hidden)
    }

    /// The trainable matrices of [`Decoder::logits`].
    pub fn head_parameters(&self) -> Vec<Mat> {
        self.lm_head.parameters()
    }

    fn rotation(&self, rows: &[Row]) -> Rotation {
        let (rope, mut known) = (self.config.rope(), BTreeMap::new());
        for (_, length) in rows {
            known.entry(*length).or_insert_with(|| rope.frequencies(*length));
        }
        let rows = rows.iter().map(|(position, length)| (*position, known[length].as_slice()));
        Rotation::new(rows, self.config.rope_magnitude())
    }

    fn mask(&self, layer: usize) -> Mask {
        Mask::causal(self.config.window_of(layer))
    }
}

/// Training and writing.
impl Decoder {
    /// Makes all weights trainable.
    pub fn unfreeze(&mut self) {
        self.embedding = self.embedding.as_ref().map(Weight::trainable);
        self.blocks.iter_mut().for_each(Block::unfreeze_norms);
        self.final_norm.unfreeze();
        self.linears_mut().for_each(Linear::unfreeze);
    }

    /// Moves all weights to `place`.
    pub fn move_to(&mut self, place: &Place) {
        self.embedding.iter_mut().for_each(|embedding| *embedding = embedding.to(place));
        self.blocks.iter_mut().for_each(|block| block.move_to(place));
        self.final_norm.move_to(place);
        self.lm_head.move_to(place);
    }

    /// Attaches a new adapter to every linear layer whose name is in `targets` (`q_proj`, `lm_head`, ...), or to all,
    /// including `lm_head`, if `targets` is empty.
    ///
    /// # Errors
    /// If a target is not a linear layer of this model: a message that lists the layers.
    pub fn adapt(&mut self, settings: &LoraSettings, targets: &[String], seed: u64) -> std::result::Result<(), String> {
        let known = self.linear_names();
        if let Some(target) = targets.iter().find(|target| !known.contains(target.as_str())) {
            let known: Vec<&str> = known.into_iter().collect();
            return Err(format!("`{target}` is not a linear layer of this model, which has {}", known.join(", ")));
        }
        let is_targeted = |linear: &&mut Linear| is_target(targets, linear.kind());
        self.linears_mut().filter(is_targeted).for_each(|linear| linear.adapt(settings, seed));
        Ok(())
    }

    /// Merges all adapters into their weights and removes them.
    pub fn fold(&mut self) {
        self.untie_if_adapted();
        self.linears_mut().for_each(Linear::fold);
    }

    /// Removes all adapters.
    pub fn drop_adapters(&mut self) {
        self.linears_mut().for_each(|linear| linear.lora = None);
    }

    /// Unties the embedding from an adapted output layer, since merging the adapter into the shared weight would also
    /// change the embedding.
    fn untie_if_adapted(&mut self) {
        if self.embedding.is_none() && self.lm_head.lora.is_some() {
            self.embedding = Some(self.lm_head.weight.clone());
            self.config.tie_word_embeddings = false;
        }
    }

    /// Replaces the module `name` by the one that `from` has as `theirs`. Returns whether the model has such a module.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type, or the module shares its weight with another.
    pub(crate) fn replace_module(&mut self, name: &str, from: &TensorFiles, theirs: &str) -> Result<bool> {
        let (vocab, hidden) = (self.config.vocab_size, self.config.hidden_size);
        if self.embedding.is_none() && [EMBEDDING, &self.lm_head.name].contains(&name) {
            let message = format!(
                "it replaces `{name}`, whose weight the model uses both as embedding and as output layer, so that it isn't clear which \
                 of them is meant"
            );
            return Err(ModelError::file(from.path(), message));
        }
        if name == EMBEDDING {
            self.embedding = Some(from.weight(theirs, vocab, hidden)?);
            return Ok(true);
        }
        if let Some(linear) = self.linears_mut().find(|linear| linear.name == name) {
            let (outputs, inputs) = (linear.weight.outputs(), linear.weight.inputs());
            let Linear { weight, bias, .. } = Linear::load(from, theirs, outputs, inputs, linear.bias.is_some())?;
            (linear.weight, linear.bias) = (weight, bias);
            return Ok(true);
        }
        let norm = self.norms_mut().find(|norm| norm.name == name);
        norm.map_or(Ok(false), |norm| norm.replace(from, theirs).map(|()| true))
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.blocks.iter_mut().flat_map(Block::norms_mut).chain([&mut self.final_norm])
    }

    /// All linear layers, including the output layer, in a fixed order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears).chain([&self.lm_head])
    }

    /// All linear layers in the same order, mutable.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).chain([&mut self.lm_head])
    }

    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        if let Some(Weight::Dense(mat)) = &mut self.embedding
            && mat.needs_grad()
        {
            visit(Parameter::new(format!("{EMBEDDING}.weight"), Role::Matrix), mat);
        }
        self.blocks.iter_mut().for_each(|block| block.trainable(visit));
        self.final_norm.trainable(visit);
        self.lm_head.trainable(visit);
    }

    /// The configuration for [`Decoder::tensors`]: untied if the output layer has an adapter.
    pub fn merged_config(&self) -> LanguageConfig {
        let tied = self.embedding.is_none() && self.lm_head.lora.is_none();
        LanguageConfig { tie_word_embeddings: tied, ..self.config.clone() }
    }

    /// All tensors in f32 with Hugging Face names, adapters merged.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let embedding = self.embedding();
        let (rows, cols) = (embedding.outputs(), embedding.inputs());
        let mut all = vec![NamedTensor::matrix(EMBEDDING, rows, cols, |rows| embedding.read_once(rows))];
        self.blocks.iter().for_each(|block| block.tensors(&mut all));
        self.final_norm.tensors(&mut all);
        if !self.merged_config().tie_word_embeddings {
            self.lm_head.tensors(&mut all);
        } else if let Some(bias) = &self.lm_head.bias {
            all.push(NamedTensor::flat(format!("{}.bias", self.lm_head.name), bias));
        }
        all
    }

    /// The short names of the linear layers: peft's `target_modules`.
    pub fn linear_names(&self) -> BTreeSet<&'static str> {
        let family = self.config.family;
        family.block_layers().iter().chain([family.head()]).map(Layer::short_name).collect()
    }
}
