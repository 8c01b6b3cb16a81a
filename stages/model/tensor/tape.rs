//! The tape: records operations and runs the backward pass. All uses of dfdx but a matrix's memory are in this file:
//! tape, ghosts and gradients. Independent of what the operations compute.

use std::{cell::RefCell, rc::Rc};

use dfdx::prelude::{
    Backward, Cpu, Gradients as DfdxGradients, NoneTape, OwnedTape, PutTape, Tape, Tensor, ZerosTensor,
};

use super::{Mat, host};

/// Identifies the gradient of a matrix without keeping its values alive: a dfdx ghost tensor, behind a closure because
/// dfdx does not export its type.
#[derive(Clone)]
pub(super) struct Ghost(Rc<FindGradient>);
type FindGradient = dyn Fn(&mut DfdxGradients<f32, Cpu>) -> &mut Vec<f32>;

impl Mat {
    /// The identity of this matrix's gradient.
    pub(super) fn ghost(&self) -> Ghost {
        let ghost = self.data.ghost();
        Ghost(Rc::new(move |gradients| match gradients.get_or_alloc_mut(&ghost) {
            Ok(buffer) => &mut *buffer,
            // dfdx's CPU device fails only if memory is exhausted, where `Vec` would abort.
            Err(error) => panic!("out of memory for a gradient: {error:?}"),
        }))
    }
}

/// Records operations on a tape for training, or nothing for inference. Clones share the tape.
#[derive(Clone)]
pub struct Graph(Option<Rc<RefCell<OwnedTape<f32, Cpu>>>>);

impl Graph {
    /// A graph with a new tape, for training.
    pub fn recording() -> Self {
        Self(Some(Rc::default()))
    }

    /// A graph without tape, for inference.
    pub fn inference() -> Self {
        Self(None)
    }

    /// The output of an operation on `inputs`, which needs a gradient if one of them does.
    pub(super) fn output(&self, rows: usize, cols: usize, values: Vec<f32>, inputs: &[&Mat]) -> Mat {
        let mut mat = Mat::from_host(rows, cols, values);
        mat.needs_grad = self.0.is_some() && inputs.iter().any(|input| input.needs_grad);
        mat
    }

    /// Records `backward`, which takes the gradient of `output`.
    pub(super) fn record(&self, output: &Mat, backward: impl FnOnce(Vec<f32>, &mut Gradients) + 'static) {
        let Some(tape) = self.0.as_ref().filter(|_| output.needs_grad) else { return };
        let ghost = output.ghost();
        tape.borrow_mut().add_backward_op(move |gradients| {
            // An output's gradient is used only once, so its memory is freed after this operation.
            let gradient = std::mem::take((ghost.0)(gradients));
            // `Gradients` owns its buffers, so they are moved there and back.
            let mut moved = Gradients(std::mem::replace(gradients, DfdxGradients::leaky()));
            backward(gradient, &mut moved);
            *gradients = moved.0;
            Ok(())
        });
    }

    /// Whether operations are recorded.
    pub(super) fn records(&self) -> bool {
        self.0.is_some()
    }

    /// Like [`Graph::record`], for an operation that modified `output` in place: `backward` may modify the gradient,
    /// which is then passed to the operation that computed `output`.
    pub(super) fn record_in_place(&self, output: &Mat, backward: impl FnOnce(&mut Vec<f32>, &mut Gradients) + 'static) {
        let ghost = output.ghost();
        self.record(output, move |mut gradient, gradients| {
            backward(&mut gradient, gradients);
            *gradients.buffer(&ghost) = gradient;
        });
    }

    /// Runs the backward pass from `loss`; for a larger matrix, from the sum of its values. Consumes the tape.
    ///
    /// # Panics
    /// If the graph has no tape, which is a bug in the caller.
    pub fn backward(&self, loss: &Mat) -> Gradients {
        self.backward_from(loss, vec![1.0; loss.count()])
    }

    /// Like [`Graph::backward`], from a matrix with a known gradient.
    pub(super) fn backward_from(&self, output: &Mat, gradient: Vec<f32>) -> Gradients {
        let Some(tape) = &self.0 else { panic!("backward pass of a graph without tape") };
        let mut tape = tape.take();
        let ghost = output.ghost();
        // The last operation on the tape runs first.
        tape.add_backward_op(move |gradients| {
            *(ghost.0)(gradients) = gradient;
            Ok(())
        });
        // dfdx runs a tape only from a scalar. Any scalar works, since nothing about it was recorded.
        let root: Tensor<(), f32, Cpu, NoneTape> = Cpu::default().zeros();
        Gradients(root.put_tape(tape).backward())
    }
}

/// The gradients of a backward pass.
pub struct Gradients(DfdxGradients<f32, Cpu>);

impl Gradients {
    /// Takes the gradient of a trainable matrix, which is possible only once; zeros if the loss does not depend on it.
    pub fn take(&mut self, of: &Mat) -> Mat {
        Mat::from_host(of.rows(), of.cols(), std::mem::take(self.buffer(&of.ghost())))
    }

    /// The buffer to which operations add a gradient; initially zeros.
    pub(super) fn buffer(&mut self, of: &Ghost) -> &mut Vec<f32> {
        (of.0)(&mut self.0)
    }

    /// Adds `scale * values` to a gradient.
    pub(super) fn add(&mut self, to: &Ghost, values: &[f32], scale: f32) {
        host::pointwise::accumulate(self.buffer(to), values, scale);
    }
}
