//! Phi's output layer without its bias, which transformers' Llava has no place for: it is exactly absorbed by the norm before it.
//!
//! A layer norm's output before its scale and shift, `n`, sums to zero, so that one coordinate says nothing new. With scale `g`,
//! shift `b`, head `W` and bias `c`, and a coordinate `j`, the logits are
//!
//! ```text
//! W (n * g + b) + c  =  W' (n * g' + b'),   W'_i = (W_i g_i - W_j g_j) / g'_i   (i != j),   W'_j = W b + c,
//!                                           g'_j = 0,  b' = 0 but b'_j = 1;  any g'_i that is not 0 does.
//! ```

use std::{borrow::Cow, ops::Range};

use crate::layers::{Linear, Norm};

/// Rows of the head that are summed at a time.
const ROWS: usize = 256;
/// Smaller scales, as a share of the largest, would make columns of the head overflow.
const SMALLEST: f64 = 1e-2;

/// Norm and head whose bias is zero, and which give the same logits.
pub(super) struct Folded<'a> {
    head: &'a Linear,
    bias: Cow<'a, [f32]>,
    scale: Vec<f64>,
    shift: Vec<f64>,
    /// The coordinate that becomes 1.
    constant: usize,
    /// The new scale of the norm.
    pub(super) norm_weight: Vec<f32>,
    /// The new shift of the norm.
    pub(super) norm_bias: Vec<f32>,
}

impl<'a> Folded<'a> {
    /// `None` if there is no bias to absorb.
    pub(super) fn of(norm: &Norm, head: &'a Linear) -> Option<Self> {
        let (bias, shift) = (head.bias.as_ref()?.to_host(), norm.bias.as_ref()?.to_host());
        let widen = |values: &[f32]| values.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (scale, shift) = (widen(&norm.weight.to_host()), widen(&shift));
        let constant = least_column(head, &scale);
        let largest = scale.iter().fold(0.0_f64, |largest, scale| largest.max(scale.abs()));
        let smallest = if largest > 0.0 { SMALLEST * largest } else { 1.0 };
        let new_scale = |index: usize| match scale[index] {
            _ if index == constant => 0.0,
            tiny if tiny.abs() < smallest => smallest as f32,
            scale => scale as f32,
        };
        let norm_weight = (0..scale.len()).map(new_scale).collect();
        let norm_bias = (0..scale.len()).map(|index| if index == constant { 1.0 } else { 0.0 }).collect();
        Some(Self { head, bias, scale, shift, constant, norm_weight, norm_bias })
    }

    /// Some rows of the new head, computed in f64 and rounded once.
    pub(super) fn rows(&self, rows: Range<usize>) -> Vec<f32> {
        let old = self.head.merged_rows(rows.clone());
        let mut new = Vec::with_capacity(old.len());
        for (row, weights) in rows.zip(old.chunks(self.scale.len())) {
            let constant = f64::from(weights[self.constant]) * self.scale[self.constant];
            let start = new.len();
            new.extend(
                weights
                    .iter()
                    .zip(&self.scale)
                    .zip(&self.norm_weight)
                    .map(|((weight, scale), norm)| ((f64::from(*weight) * scale - constant) / f64::from(*norm)) as f32),
            );
            let shifted = weights.iter().zip(&self.shift).map(|(weight, shift)| f64::from(*weight) * shift);
            new[start + self.constant] = (shifted.sum::<f64>() + f64::from(self.bias[row])) as f32;
        }
        new
    }
}

/// The column of the head that matters least: moving it into the others then rounds least.
fn least_column(head: &Linear, scale: &[f64]) -> usize {
    let outputs = head.weight.outputs();
    let mut squares = vec![0.0_f64; scale.len()];
    for start in (0..outputs).step_by(ROWS) {
        let rows = head.merged_rows(start..(start + ROWS).min(outputs));
        for row in rows.chunks(scale.len()) {
            for ((square, weight), scale) in squares.iter_mut().zip(row).zip(scale) {
                *square += (f64::from(*weight) * scale).powi(2);
            }
        }
    }
    (0..scale.len()).min_by(|a, b| squares[*a].total_cmp(&squares[*b])).unwrap_or(0)
}
