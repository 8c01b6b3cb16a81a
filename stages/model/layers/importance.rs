//! Which weights of linear layers matter: those whose inputs are large over records of a kind that the model is for. Independent of
//! how weights are quantized.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{tensor::Mat, weights::NamedTensor};

/// The least importance of a column, relative to the mean of its layer: what these records never use may be used by others.
const LEAST: f64 = 1e-4;

/// Sees the inputs of linear layers while a model reads records.
#[derive(Debug, Default)]
pub struct Observer(Mutex<BTreeMap<String, Seen>>);

/// What a layer was given.
#[derive(Debug, Default)]
struct Seen {
    /// The sum of squares of each column of its inputs.
    squares: Vec<f64>,
    rows: u64,
}

impl Observer {
    /// Adds the inputs `[rows, in]` of the layer `name`.
    pub(super) fn see(&self, name: &str, inputs: &Mat) {
        let width = inputs.cols();
        let values = inputs.to_host();
        let mut squares = vec![0.0_f64; width];
        for row in values.chunks(width.max(1)) {
            squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(x * x));
        }
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = all.entry(name.into()).or_default();
        seen.squares.resize(width, 0.0);
        seen.squares.iter_mut().zip(squares).for_each(|(sum, more)| *sum += more);
        seen.rows += inputs.rows() as u64;
    }

    /// What was seen. Layers without any input, or with inputs that are not finite, are as if they had not been there.
    pub fn importance(&self) -> Importance {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let columns = |seen: &Seen| {
            let mean = seen.squares.iter().sum::<f64>() / seen.squares.len().max(1) as f64;
            let of_row = |sum: f64| (sum.max(mean * LEAST) / seen.rows.max(1) as f64) as f32;
            (mean > 0.0 && mean.is_finite()).then(|| seen.squares.iter().map(|sum| of_row(*sum)).collect())
        };
        Importance(all.iter().filter_map(|(name, seen)| Some((name.clone(), columns(seen)?))).collect())
    }
}

/// The importance matrix of a model: for each linear layer the mean square of each of its inputs, which is what the squared error
/// of a weight in that column is multiplied with in the layer's output. Source: llama.cpp's `imatrix` tool.
#[derive(Clone, Debug, Default)]
pub struct Importance(BTreeMap<String, Arc<[f32]>>);

impl Importance {
    /// Number of layers of which something is known.
    pub fn layers(&self) -> usize {
        self.0.len()
    }

    /// The same tensors, with what is known of each.
    pub(crate) fn noted<'a>(&self, tensors: Vec<NamedTensor<'a>>) -> Vec<NamedTensor<'a>> {
        let known = |tensor: &NamedTensor<'_>| {
            let columns = self.0.get(tensor.name.strip_suffix(".weight")?)?;
            (tensor.shape.last() == Some(&columns.len())).then(|| columns.clone())
        };
        tensors
            .into_iter()
            .map(|tensor| (known(&tensor), tensor))
            .map(|(known, tensor)| tensor.weighing(known))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_averaged_over_all_rows() {
        let observer = Observer::default();
        observer.see("layer", &Mat::from_host(2, 2, vec![1.0, 0.0, 3.0, 0.0]));
        observer.see("layer", &Mat::from_host(1, 2, vec![2.0, 1.0]));
        observer.see("empty", &Mat::from_host(1, 2, vec![0.0, 0.0]));
        let importance = observer.importance();
        assert_eq!(importance.layers(), 1);
        assert_eq!(importance.0["layer"][..], [14.0 / 3.0, 1.0 / 3.0]);
    }
}
