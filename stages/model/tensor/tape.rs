//! The tape: what operations record, and the way back through it. All of dfdx except a matrix's memory is on this page:
//! its tape, its ghosts, its gradients. Independent of what the operations compute.

use std::{cell::RefCell, rc::Rc};

use dfdx::prelude::{
    Backward, Cpu, Gradients as DfdxGradients, NoneTape, OwnedTape, PutTape, Tape, Tensor, ZerosTensor,
};

use super::{Mat, host};

/// Finds the gradient of a matrix without keeping its values alive. dfdx has a type for that, a ghost tensor, but does
/// not export its name: so the ghost is behind a closure.
#[derive(Clone)]
pub(super) struct Ghost(Rc<FindGradient>);
type FindGradient = dyn Fn(&mut DfdxGradients<f32, Cpu>) -> &mut Vec<f32>;

impl Mat {
    /// What finds this matrix's gradient.
    pub(super) fn ghost(&self) -> Ghost {
        let ghost = self.data.ghost();
        Ghost(Rc::new(move |gradients| match gradients.get_or_alloc_mut(&ghost) {
            Ok(buffer) => &mut *buffer,
            // dfdx's CPU device can fail here only where `Vec` aborts anyway.
            Err(error) => panic!("out of memory for a gradient: {error:?}"),
        }))
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
    pub(super) fn output(&self, rows: usize, cols: usize, values: Vec<f32>, inputs: &[&Mat]) -> Mat {
        let mut mat = Mat::from_host(rows, cols, values);
        mat.needs_grad = self.0.is_some() && inputs.iter().any(|input| input.needs_grad);
        mat
    }

    /// Adds the backward operation of `output`, which is given the output's gradient.
    pub(super) fn record(&self, output: &Mat, backward: impl FnOnce(Vec<f32>, &mut Gradients) + 'static) {
        let Some(tape) = self.0.as_ref().filter(|_| output.needs_grad) else { return };
        let ghost = output.ghost();
        tape.borrow_mut().add_backward_op(move |gradients| {
            // The gradient of an output is needed once: its memory is free after this operation.
            let gradient = std::mem::take((ghost.0)(gradients));
            // `Gradients` owns them: lent to the operation, then put back.
            let mut lent = Gradients(std::mem::replace(gradients, DfdxGradients::leaky()));
            backward(gradient, &mut lent);
            *gradients = lent.0;
            Ok(())
        });
    }

    /// Whether operations are recorded.
    pub(super) fn records(&self) -> bool {
        self.0.is_some()
    }

    /// As [`Graph::record`], for an operation that has changed `output` in place. What it leaves of the gradient is passed
    /// to the operation that made `output` before.
    pub(super) fn record_in_place(&self, output: &Mat, backward: impl FnOnce(&mut Vec<f32>, &mut Gradients) + 'static) {
        let ghost = output.ghost();
        self.record(output, move |mut gradient, gradients| {
            backward(&mut gradient, gradients);
            *gradients.buffer(&ghost) = gradient;
        });
    }

    /// The gradients of a loss (of a larger matrix: of the sum of its values). Consumes what was recorded.
    ///
    /// # Panics
    /// On a graph that does not record: a bug of the caller's.
    pub fn backward(&self, loss: &Mat) -> Gradients {
        self.backward_from(loss, vec![1.0; loss.count()])
    }

    /// As [`Graph::backward`], from a matrix whose own gradient is known.
    pub(super) fn backward_from(&self, output: &Mat, gradient: Vec<f32>) -> Gradients {
        let Some(tape) = &self.0 else { panic!("backward on a graph for inference") };
        let mut tape = tape.take();
        let ghost = output.ghost();
        // Added last, so it runs first.
        tape.add_backward_op(move |gradients| {
            *(ghost.0)(gradients) = gradient;
            Ok(())
        });
        // dfdx runs a tape only from a scalar: any will do, as nothing is recorded of it.
        let root: Tensor<(), f32, Cpu, NoneTape> = Cpu::default().zeros();
        Gradients(root.put_tape(tape).backward())
    }
}

/// Gradients by matrix.
pub struct Gradients(DfdxGradients<f32, Cpu>);

impl Gradients {
    /// Takes the gradient of a trainable matrix, once; zeros if no operation gave one.
    pub fn take(&mut self, of: &Mat) -> Mat {
        Mat::from_host(of.rows(), of.cols(), std::mem::take(self.buffer(&of.ghost())))
    }

    /// The gradient to add to; zeros at first.
    pub(super) fn buffer(&mut self, of: &Ghost) -> &mut Vec<f32> {
        (of.0)(&mut self.0)
    }

    /// Adds `scale * values` to a gradient.
    pub(super) fn add(&mut self, to: &Ghost, values: &[f32], scale: f32) {
        host::pointwise::accumulate(self.buffer(to), values, scale);
    }
}
