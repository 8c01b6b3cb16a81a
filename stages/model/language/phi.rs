//! Phi-2 (Microsoft 2023): attention and MLP side by side from one layer norm, biases everywhere, rotary
//! positions on a part of each head. Reference: transformers' `modeling_phi.py`.

use std::collections::BTreeSet;

use crate::{
    config::PhiConfig,
    error::Result,
    layers::{LayerNorm, Linear, LoraSettings, Pass},
    save::NamedTensor,
    tensor::{self, KvCache, Mask, Mat, Rotary, Segments},
    weights::Checkpoint,
};

/// The language model, from embeddings to logits.
pub struct Phi {
    /// Its sizes.
    pub config: PhiConfig,
    /// `[vocab, hidden]`.
    pub embedding: Mat,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    lm_head: Linear,
}

struct Block {
    norm: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    fc1: Linear,
    fc2: Linear,
}

/// Keys and values of a batch of sequences: `cache[layer][sequence]`.
pub type Cache = Vec<Vec<KvCache>>;

impl Phi {
    /// Reads the model from tensors under their Hugging Face names.
    pub fn load(from: &Checkpoint, config: PhiConfig) -> Result<Self> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = match from.weight("model.embed_tokens", vocab, hidden)? {
            tensor::Weight::Dense(mat) => mat,
            tensor::Weight::Stored(stored) => Mat::new(vocab, hidden, stored.to_f32()),
        };
        let blocks =
            (0..config.num_hidden_layers).map(|layer| Block::load(from, &config, layer)).collect::<Result<_>>()?;
        let final_norm = LayerNorm::load(from, "model.final_layernorm", hidden, config.layer_norm_eps)?;
        let lm_head = Linear::load(from, "lm_head", vocab, hidden, true)?;
        Ok(Self { config, embedding, blocks, final_norm, lm_head })
    }

    /// Hidden states after the final norm, `[rows, hidden]`, of embedded sequences.
    pub fn forward(&self, pass: &Pass, embedded: &Mat, segments: &Segments) -> Mat {
        let positions = segments.positions();
        let attend = |q: &Mat, k: &Mat, v: &Mat, _: usize| {
            tensor::attention(&pass.graph, q, k, v, self.config.num_attention_heads, segments, Mask::Causal)
        };
        self.run(pass, embedded, &positions, attend)
    }

    /// The same for inference, keeping keys and values of all positions.
    pub fn prefill(&self, embedded: &Mat, segments: &Segments) -> (Mat, Cache) {
        let pass = Pass::inference();
        let mut cache = self.empty_cache(segments.len());
        let hidden = self.run(&pass, embedded, &segments.positions(), |q, k, v, layer| {
            let width = k.cols();
            for (cache, range) in cache[layer].iter_mut().zip(segments.iter()) {
                let range = range.start * width..range.end * width;
                cache.push(&k.values()[range.clone()], &v.values()[range]);
            }
            tensor::attention(&pass.graph, q, k, v, self.config.num_attention_heads, segments, Mask::Causal)
        });
        (hidden, cache)
    }

    /// One more position for each of the sequences `which`: `embedded` has a row for each.
    pub fn decode(&self, embedded: &Mat, positions: &[usize], which: &[usize], cache: &mut Cache) -> Mat {
        let pass = Pass::inference();
        self.run(&pass, embedded, positions, |q, k, v, layer| {
            for (row, sequence) in which.iter().enumerate() {
                cache[layer][*sequence].push(k.row(row), v.row(row));
            }
            let caches: Vec<&KvCache> = which.iter().map(|sequence| &cache[layer][*sequence]).collect();
            tensor::attend_cached(q, &caches, self.config.num_attention_heads, self.config.num_key_value_heads)
        })
    }

    fn empty_cache(&self, sequences: usize) -> Cache {
        (0..self.blocks.len()).map(|_| vec![KvCache::default(); sequences]).collect()
    }

    fn run(
        &self,
        pass: &Pass,
        embedded: &Mat,
        positions: &[usize],
        mut attend: impl FnMut(&Mat, &Mat, &Mat, usize) -> Mat,
    ) -> Mat {
        let mut x = embedded.clone(); // [rows, hidden]
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(pass, &self.config, &x, positions, |q, k, v| attend(q, k, v, layer));
        }
        self.final_norm.forward(pass, &x)
    }

    /// `[rows, vocab]` from hidden states.
    pub fn logits(&self, pass: &Pass, hidden: &Mat) -> Mat {
        self.lm_head.forward(pass, hidden)
    }

    /// What trains in [`Phi::logits`].
    pub fn head_parameters(&self) -> Vec<Mat> {
        self.lm_head.parameters()
    }

    /// Lets all weights train.
    pub fn unfreeze(&mut self) {
        self.embedding = self.embedding.clone().trainable();
        for block in &mut self.blocks {
            block.norm.unfreeze();
        }
        self.final_norm.unfreeze();
        self.linears_mut().for_each(Linear::unfreeze);
    }

    /// Puts an adapter on every linear layer, `lm_head` included.
    pub fn adapt(&mut self, settings: &LoraSettings, seed: u64) {
        self.linears_mut().for_each(|linear| linear.adapt(settings, seed));
    }

    /// All linear layers in a fixed order.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(Block::linears).chain([&self.lm_head])
    }

    /// The same, to be changed.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).chain([&mut self.lm_head])
    }

    /// Every matrix that trains, with its name, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(String, &mut Mat)) {
        if self.embedding.needs_grad() {
            visit("model.embed_tokens.weight".into(), &mut self.embedding);
        }
        for block in &mut self.blocks {
            block.norm.trainable(visit);
            block.linears_mut().into_iter().for_each(|linear| linear.trainable(visit));
        }
        self.final_norm.trainable(visit);
        self.lm_head.trainable(visit);
    }

    /// All tensors in f32 by their Hugging Face names, adapters merged.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let embedding = &self.embedding;
        let shape = vec![embedding.rows(), embedding.cols()];
        let mut all = vec![NamedTensor::of("model.embed_tokens.weight", shape, embedding.values())];
        for block in &self.blocks {
            block.norm.tensors(&mut all);
            block.linears().into_iter().for_each(|linear| linear.tensors(&mut all));
        }
        self.final_norm.tensors(&mut all);
        self.lm_head.tensors(&mut all);
        all
    }

    /// The last parts of the linear layers' names: peft's `target_modules`.
    pub fn linear_names(&self) -> BTreeSet<&'static str> {
        ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2", "lm_head"].into()
    }
}

impl Block {
    fn load(from: &Checkpoint, config: &PhiConfig, layer: usize) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let key_width = config.num_key_value_heads * config.head_dim();
        let linear = |part: &str, outputs, inputs| {
            Linear::load(from, &format!("model.layers.{layer}.{part}"), outputs, inputs, true)
        };
        Ok(Self {
            norm: LayerNorm::load(
                from,
                &format!("model.layers.{layer}.input_layernorm"),
                hidden,
                config.layer_norm_eps,
            )?,
            q: linear("self_attn.q_proj", hidden, hidden)?,
            k: linear("self_attn.k_proj", key_width, hidden)?,
            v: linear("self_attn.v_proj", key_width, hidden)?,
            out: linear("self_attn.dense", hidden, hidden)?,
            fc1: linear("mlp.fc1", inner, hidden)?,
            fc2: linear("mlp.fc2", hidden, inner)?,
        })
    }

    /// `x + attention(norm(x)) + mlp(norm(x))`.
    fn forward(
        &self,
        pass: &Pass,
        config: &PhiConfig,
        x: &Mat,
        positions: &[usize],
        attend: impl FnOnce(&Mat, &Mat, &Mat) -> Mat,
    ) -> Mat {
        let g = &pass.graph;
        let head_dim = config.head_dim();
        let rotary = Rotary { dims: config.rotary_dims(), theta: config.rope_theta };
        let n = self.norm.forward(pass, x);
        let q = tensor::rotate(g, self.q.forward(pass, &n), head_dim, rotary, positions);
        let k = tensor::rotate(g, self.k.forward(pass, &n), head_dim, rotary, positions);
        let v = self.v.forward(pass, &n);
        let attended = self.out.forward(pass, &attend(&q, &k, &v));
        let inner = tensor::activation(g, &self.fc1.forward(pass, &n), config.hidden_act);
        let fed_forward = self.fc2.forward(pass, &inner);
        tensor::add(g, tensor::add(g, attended, &fed_forward), x)
    }

    fn linears(&self) -> [&Linear; 6] {
        [&self.q, &self.k, &self.v, &self.out, &self.fc1, &self.fc2]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 6] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.out, &mut self.fc1, &mut self.fc2]
    }
}
