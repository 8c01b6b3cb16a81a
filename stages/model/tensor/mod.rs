//! Matrices and the tape: the only place that knows dfdx. dfdx holds data, identities and the tape of
//! backward operations; everything heavy is a fused operation of ours that records itself on that tape.
//!
//! All activations are matrices `[rows, width]` with one row a token (or image patch). Sequences of a batch
//! lie one after the other without padding; [`Segments`] says where each begins.
//!
//! No result depends on the number of threads: work is cut into tiles by the shapes alone, and sums run in a
//! fixed order.

mod access;
mod activation;
mod attention;
mod checkpoint;
mod gather;
mod gemm;
mod gemv;
mod linear;
mod loss;
mod math;
mod norm;
mod optimizer;
mod parts;
mod pointwise;
mod rotary;
mod stored;

use std::{cell::RefCell, rc::Rc};

use dfdx::prelude::{
    Backward, Cpu, Gradients as DfdxGradients, HasShape, NoneTape, OwnedTape, PutTape, Tape, Tensor, TensorFromVec,
    ZerosTensor,
};

pub use activation::{Activation, activation, silu_gate};
pub use attention::{KvCache, Mask, attend_cached, attention};
pub use checkpoint::checkpoint;
pub use gather::{columns, gather, pick_rows};
pub use linear::{Weight, add_low_rank, linear};
pub use loss::{IGNORE, cross_entropy};
pub use math::argmax;
pub use norm::{layer_norm, rms_norm};
pub use optimizer::{AdamW, Moments, global_norm};
pub use parts::sum_over_parts;
pub(crate) use pointwise::mix;
pub use pointwise::{accumulate, add, dropout};
pub use rotary::{Rotary, Rotation, rotate};
pub use stored::{Bytes, Stored};

type Data = Tensor<(usize, usize), f32, Cpu>;

/// Finds the gradient of a matrix without keeping its data alive. dfdx has a type for that, a ghost tensor,
/// but does not export its name: so the ghost hides in a closure.
#[derive(Clone)]
struct Ghost(Rc<FindGradient>);
type FindGradient = dyn Fn(&mut DfdxGradients<f32, Cpu>) -> &mut Vec<f32>;

/// A matrix `[rows, cols]`, row-major, f32. Cloning shares the data.
#[derive(Clone, Debug)]
pub struct Mat {
    data: Data,
    needs_grad: bool,
}

impl Mat {
    /// A constant from its values.
    ///
    /// # Panics
    /// If there are not `rows * cols` values: a bug of the caller's.
    pub fn new(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "a [{rows}, {cols}] matrix needs as many values");
        Self { data: Cpu::default().tensor_from_vec(values, (rows, cols)), needs_grad: false }
    }

    /// The same values as something that trains.
    #[must_use]
    pub fn trainable(mut self) -> Self {
        self.needs_grad = true;
        self
    }

    /// Whether a gradient flows here.
    pub fn needs_grad(&self) -> bool {
        self.needs_grad
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.shape().0
    }

    /// Width of a row.
    pub fn cols(&self) -> usize {
        self.data.shape().1
    }

    /// All values, row by row.
    pub fn values(&self) -> &[f32] {
        access::slice(&self.data)
    }

    /// One row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values()[index * self.cols()..(index + 1) * self.cols()]
    }

    /// All values, to be changed in place (copied first if a clone shares them).
    pub fn values_mut(&mut self) -> &mut [f32] {
        access::slice_mut(&mut self.data)
    }

    fn ghost(&self) -> Ghost {
        let ghost = self.data.ghost();
        Ghost(Rc::new(move |gradients| match gradients.get_or_alloc_mut(&ghost) {
            Ok(buffer) => &mut *buffer,
            // dfdx's CPU device can fail here only where `Vec` aborts anyway.
            Err(error) => panic!("out of memory for a gradient: {error:?}"),
        }))
    }
}

/// Where each sequence of a batch begins in the rows of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments(Vec<usize>);

impl Segments {
    /// Sequences of these lengths, one after the other.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            starts.push(end);
        }
        Self(starts)
    }

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// How many sequences.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows of each sequence.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + '_ {
        self.0.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The rows of sequence `index`.
    pub fn range(&self, index: usize) -> std::ops::Range<usize> {
        self.0[index]..self.0[index + 1]
    }

    /// For every row its sequence and its position there.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.iter().enumerate().flat_map(|(sequence, range)| (0..range.len()).map(move |position| (sequence, position)))
    }

    /// The position of every row in its sequence.
    pub fn positions(&self) -> Vec<usize> {
        self.places().map(|(_, position)| position).collect()
    }
}

/// Records what happens to matrices, or does not. A clone records on the same tape.
#[derive(Clone)]
pub struct Graph(Option<Rc<RefCell<OwnedTape<f32, Cpu>>>>);

impl Graph {
    /// Records, for training.
    pub fn recording() -> Self {
        Self(Some(Rc::default()))
    }

    /// Records nothing, for inference.
    pub fn inference() -> Self {
        Self(None)
    }

    /// The result of an operation on `inputs`: needs a gradient if one of them does.
    fn output(&self, rows: usize, cols: usize, values: Vec<f32>, inputs: &[&Mat]) -> Mat {
        let mut mat = Mat::new(rows, cols, values);
        mat.needs_grad = self.0.is_some() && inputs.iter().any(|input| input.needs_grad);
        mat
    }

    /// Adds the backward operation of `output`, which is given the output's gradient.
    fn record(&self, output: &Mat, backward: impl FnOnce(Vec<f32>, &mut Gradients) + 'static) {
        let Some(tape) = self.0.as_ref().filter(|_| output.needs_grad) else { return };
        let ghost = output.ghost();
        tape.borrow_mut().add_backward_op(move |gradients| {
            // The gradient of an output is needed once: its memory is free after this operation.
            let gradient = std::mem::take((ghost.0)(gradients));
            let mut lent = Gradients(std::mem::replace(gradients, DfdxGradients::leaky()));
            backward(gradient, &mut lent);
            *gradients = lent.0;
            Ok(())
        });
    }

    fn records(&self) -> bool {
        self.0.is_some()
    }

    /// The same for an operation that has changed `output` in place. What it leaves of the gradient goes on to
    /// the operation that made `output` before.
    fn record_in_place(&self, output: &Mat, backward: impl FnOnce(&mut Vec<f32>, &mut Gradients) + 'static) {
        let ghost = output.ghost();
        self.record(output, move |mut gradient, gradients| {
            backward(&mut gradient, gradients);
            *gradients.buffer(&ghost) = gradient;
        });
    }

    /// Goes back from a loss (of a larger matrix: the sum of its values) through everything that was recorded, and
    /// forgets it.
    ///
    /// # Panics
    /// On a graph that does not record: a bug of the caller's.
    pub fn backward(&self, loss: &Mat) -> Gradients {
        self.backward_from(loss, vec![1.0; loss.values().len()])
    }

    /// The same from the gradient of a matrix that is no loss yet.
    fn backward_from(&self, output: &Mat, gradient: Vec<f32>) -> Gradients {
        let Some(tape) = &self.0 else { panic!("backward on a graph for inference") };
        let mut tape = tape.take();
        let ghost = output.ghost();
        // Added last, so it runs first.
        tape.add_backward_op(move |gradients| {
            *(ghost.0)(gradients) = gradient;
            Ok(())
        });
        let root: Tensor<(), f32, Cpu, NoneTape> = Cpu::default().zeros();
        Gradients(root.put_tape(tape).backward())
    }
}

/// Gradients by matrix.
pub struct Gradients(DfdxGradients<f32, Cpu>);

impl Gradients {
    /// Takes the gradient of a trainable matrix; zeros if none came.
    pub fn take(&mut self, of: &Mat) -> Vec<f32> {
        std::mem::take(self.buffer(&of.ghost()))
    }

    /// The gradient to add to; zeros at first.
    fn buffer(&mut self, of: &Ghost) -> &mut Vec<f32> {
        (of.0)(&mut self.0)
    }
}
