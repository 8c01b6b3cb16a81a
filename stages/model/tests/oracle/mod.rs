//! A second, slow implementation of the language models in f64, from the formulas in transformers' `modeling_*.py`: one
//! position, one head, one sum at a time. Shares no code with the crate.

use std::collections::HashMap;

/// Sizes, and properties that differ between families.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
    pub(crate) inner: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) theta: f64,
    pub(crate) epsilon: f64,
    pub(crate) window: Option<usize>,
}

/// Weights by name, `[out, in]`, row-major.
pub(crate) type Weights = HashMap<String, Vec<f64>>;

/// A model with RMS norms and a gated MLP. The names of the weights determine whether it is a Phi-3, Qwen2 or Llama.
pub(crate) struct Oracle<'a> {
    pub(crate) sizes: Sizes,
    pub(crate) weights: &'a Weights,
}

impl Oracle<'_> {
    /// Returns logits `[tokens][vocab]`.
    pub(crate) fn logits(&self, ids: &[i32]) -> Vec<Vec<f64>> {
        let (s, w) = (self.sizes, self.weights);
        let embedding = &w["model.embed_tokens.weight"];
        let mut x: Vec<Vec<f64>> =
            ids.iter().map(|id| embedding[*id as usize * s.hidden..(*id as usize + 1) * s.hidden].to_vec()).collect();
        for layer in 0..s.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let normed: Vec<_> = x.iter().map(|x| self.norm(x, &name("input_layernorm"))).collect();
            let attended = self.attention(&normed, &name("self_attn"));
            for (x, a) in x.iter_mut().zip(attended) {
                *x = sum(x, &self.linear(&a, &name("self_attn.o_proj"), s.hidden));
                let n = self.norm(x, &name("post_attention_layernorm"));
                *x = sum(x, &self.mlp(&n, &name("mlp")));
            }
        }
        let tied = !w.contains_key("lm_head.weight");
        let head = if tied { "model.embed_tokens" } else { "lm_head" };
        x.iter().map(|x| self.linear(&self.norm(x, "model.norm"), head, s.vocab)).collect()
    }

    /// Returns the mean next-token cross-entropy.
    pub(crate) fn loss(&self, ids: &[i32]) -> f64 {
        let logits = self.logits(ids);
        let nll = |(logits, next): (&Vec<f64>, &i32)| {
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|x| (x - largest).exp()).sum();
            largest + total.ln() - logits[*next as usize]
        };
        logits.iter().zip(&ids[1..]).map(nll).sum::<f64>() / (ids.len() - 1) as f64
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let squares = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let weight = &self.weights[&format!("{name}.weight")];
        x.iter().zip(weight).map(|(x, w)| w * x / (squares + self.sizes.epsilon).sqrt()).collect()
    }

    fn linear(&self, x: &[f64], name: &str, outputs: usize) -> Vec<f64> {
        let weight = &self.weights[&format!("{name}.weight")];
        assert_eq!(weight.len(), x.len() * outputs, "{name}");
        let mut y: Vec<f64> = weight.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        if let Some(bias) = self.weights.get(&format!("{name}.bias")) {
            y = sum(&y, bias);
        }
        y
    }

    fn mlp(&self, x: &[f64], name: &str) -> Vec<f64> {
        let inner = self.sizes.inner;
        let (gate, up) = if self.weights.contains_key(&format!("{name}.gate_up_proj.weight")) {
            let both = self.linear(x, &format!("{name}.gate_up_proj"), 2 * inner);
            (both[..inner].to_vec(), both[inner..].to_vec())
        } else {
            (self.linear(x, &format!("{name}.gate_proj"), inner), self.linear(x, &format!("{name}.up_proj"), inner))
        };
        let gated: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        self.linear(&gated, &format!("{name}.down_proj"), self.sizes.hidden)
    }

    fn attention(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let s = self.sizes;
        let (queries, keys) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let project = |x: &Vec<f64>| {
            if self.weights.contains_key(&format!("{name}.qkv_proj.weight")) {
                let all = self.linear(x, &format!("{name}.qkv_proj"), queries + 2 * keys);
                [all[..queries].to_vec(), all[queries..queries + keys].to_vec(), all[queries + keys..].to_vec()]
            } else {
                [("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]
                    .map(|(part, width)| self.linear(x, &format!("{name}.{part}"), width))
            }
        };
        let projected: Vec<[Vec<f64>; 3]> = x.iter().map(project).collect();
        let head = |part: usize, row: usize, head: usize| {
            let values = &projected[row][part][head * s.head_dim..(head + 1) * s.head_dim];
            if part < 2 { rotated(values, row, s.theta) } else { values.to_vec() }
        };
        let mut out = vec![vec![0.0; queries]; x.len()];
        for (row, h) in (0..x.len()).flat_map(|row| (0..s.heads).map(move |h| (row, h))) {
            let key_head = h / (s.heads / s.kv_heads);
            let query = head(0, row, h);
            let visible: Vec<usize> =
                (0..=row).filter(|key| s.window.is_none_or(|window| row - key < window)).collect();
            let scores: Vec<f64> = visible
                .iter()
                .map(|key| query.iter().zip(head(1, *key, key_head)).map(|(q, k)| q * k).sum::<f64>())
                .map(|dot| (dot / (s.head_dim as f64).sqrt()).exp())
                .collect();
            let total: f64 = scores.iter().sum();
            for (score, key) in scores.iter().zip(&visible) {
                for (i, v) in head(2, *key, key_head).iter().enumerate() {
                    out[row][h * s.head_dim + i] += score / total * v;
                }
            }
        }
        out
    }
}

/// `x cos + rotate_half(x) sin`.
fn rotated(x: &[f64], position: usize, theta: f64) -> Vec<f64> {
    let half = x.len() / 2;
    (0..x.len())
        .map(|i| {
            let angle = position as f64 / theta.powf((2 * (i % half)) as f64 / x.len() as f64);
            let other = if i < half { -x[i + half] } else { x[i - half] };
            x[i] * angle.cos() + other * angle.sin()
        })
        .collect()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}
