//! Attention of single rows to cached keys and values, in generation.

use rayon::prelude::*;

use super::{
    super::{
        math,
        round::{operand, round},
    },
    Heads,
};
use crate::precision::Precision;

/// The keys and values to which one row attends, in two parts.
pub(in crate::tensor) type Cached<'a> = [(&'a [f32], &'a [f32]); 2];

/// Attention of single rows of `q`, each to separate keys and values, which are already in `precision`.
pub(in crate::tensor) fn cached(q: &[f32], visible: &[Cached<'_>], heads: Heads, precision: Precision) -> Vec<f32> {
    let (width, dim, scale) = (heads.key_width(), heads.dim, heads.scale());
    let q = operand(q, precision);
    let mut out = vec![0.0; q.len()];
    out.par_chunks_mut(dim).zip(q.par_chunks(dim)).enumerate().for_each_init(
        Vec::new,
        |scores: &mut Vec<f32>, (index, (out, query))| {
            let (row, head) = (index / heads.query, index % heads.query);
            let offset = head / heads.group() * dim;
            scores.clear();
            scores.resize(visible[row].iter().map(|(keys, _)| keys.len() / width).sum(), 0.0);
            let all = scores.as_mut_slice();
            math::simd!(|| {
                let keys = visible[row].iter().flat_map(|(keys, _)| keys.chunks(width));
                for (score, key) in all.iter_mut().zip(keys) {
                    *score = math::dot(query, &key[offset..offset + dim]) * scale;
                }
            });
            softmax(scores);
            round(scores, precision);
            math::simd!(|| {
                let values = visible[row].iter().flat_map(|(_, values)| values.chunks(width));
                for (probability, value) in scores.iter().zip(values) {
                    for (out, value) in out.iter_mut().zip(&value[offset..offset + dim]) {
                        *out += probability * value;
                    }
                }
            });
        },
    );
    out
}

/// Softmax in place.
fn softmax(scores: &mut [f32]) {
    math::simd!(|| {
        let largest = math::max(scores);
        for score in scores.iter_mut() {
            *score = math::exp(*score - largest);
        }
        let inverse = 1.0 / math::sum([scores], |[score]| score);
        for score in scores.iter_mut() {
            *score *= inverse;
        }
    });
}
