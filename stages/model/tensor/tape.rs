//! The tape: records operations and runs the backward pass. All uses of dfdx but a matrix's memory are in this file.
//! Independent of what the operations compute.
//!
//! One tape records operations on the host and on a device. The gradients of both are kept by the matrices' identities, not in
//! dfdx's `Gradients`, which is on the host only and sets each to zero on one thread before anything is added to it.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    rc::Rc,
};

use dfdx::prelude::{Backward, Cpu, NoneTape, OwnedTape, PutTape, Tape, Tensor, ZerosTensor};

use super::{
    Mat,
    device::{DeviceGhost, DeviceMat, ops},
    host::{fresh, pointwise},
    mat::Ghost,
};
use crate::precision::Precision;

/// Records operations on a tape for training, or nothing for inference. Clones share the tape.
#[derive(Clone)]
pub struct Graph(Option<Rc<Recording>>);

#[derive(Default)]
struct Recording {
    tape: RefCell<OwnedTape<f32, Cpu>>,
    /// While the backward pass runs.
    gradients: Rc<RefCell<Gradients>>,
}

impl Graph {
    /// A graph with a new tape, for training.
    pub fn recording() -> Self {
        Self(Some(Rc::default()))
    }

    /// A graph without tape, for inference.
    pub fn inference() -> Self {
        Self(None)
    }

    /// Whether operations are recorded.
    pub(super) fn records(&self) -> bool {
        self.0.is_some()
    }

    /// The output of an operation on `inputs` in host memory, which needs a gradient if one of them does. Products with
    /// it have the precision of the first input.
    pub(super) fn output(&self, rows: usize, cols: usize, values: Vec<f32>, inputs: &[&Mat]) -> Mat {
        self.derived(Mat::from_host(rows, cols, values), inputs)
    }

    /// The same for an output on a device.
    pub(super) fn device_output(&self, mat: DeviceMat, inputs: &[&Mat]) -> Mat {
        self.derived(Mat::on_device(mat, Precision::default()), inputs)
    }

    fn derived(&self, mut mat: Mat, inputs: &[&Mat]) -> Mat {
        mat.precision = inputs.first().map_or_else(Default::default, |input| input.precision);
        mat.needs_grad = self.records() && inputs.iter().any(|input| input.needs_grad);
        mat
    }

    /// Records `backward`, which takes the gradient of `output` in host memory. It does not run if nothing depends on the output.
    pub(super) fn record(&self, output: &Mat, backward: impl FnOnce(Vec<f32>, &mut Gradients) + 'static) {
        if !self.needs(output) {
            return;
        }
        let ghost = output.ghost();
        self.push(move |gradients| {
            // An output's gradient is used only once, so its memory is freed after this operation.
            if let Some(gradient) = gradients.take_on_host(&ghost) {
                backward(gradient, gradients);
            }
        });
    }

    /// Like [`Graph::record`], for an operation that modified `output` in place: `backward` may modify the gradient,
    /// which is then passed to the operation that computed `output`.
    pub(super) fn record_in_place(&self, output: &Mat, backward: impl FnOnce(&mut Vec<f32>, &mut Gradients) + 'static) {
        if !self.needs(output) {
            return;
        }
        let ghost = output.ghost();
        self.record(output, move |mut gradient, gradients| {
            backward(&mut gradient, gradients);
            gradients.on_host.insert(ghost.id, gradient);
        });
    }

    /// Records `backward`, which takes the gradient of `output` on a device. It does not run if nothing depends on the
    /// output.
    pub(super) fn record_on_device(&self, output: &Mat, backward: impl FnOnce(DeviceMat, &mut Gradients) + 'static) {
        let (true, Some(mat)) = (self.needs(output), output.device_mat()) else { return };
        let id = mat.id;
        self.push(move |gradients| {
            if let Some(gradient) = gradients.on_device.remove(&id) {
                backward(gradient, gradients);
            }
        });
    }

    /// [`Graph::record_in_place`] for an output on a device.
    pub(super) fn record_in_place_on_device(
        &self,
        output: &Mat,
        backward: impl FnOnce(&mut DeviceMat, &mut Gradients) + 'static,
    ) {
        let Some(id) = output.device_mat().map(|mat| mat.id) else { return };
        self.record_on_device(output, move |mut gradient, gradients| {
            backward(&mut gradient, gradients);
            gradients.on_device.insert(id, gradient);
        });
    }

    fn needs(&self, output: &Mat) -> bool {
        self.records() && output.needs_grad
    }

    fn push(&self, backward: impl FnOnce(&mut Gradients) + 'static) {
        let Some(recording) = &self.0 else { return };
        let gradients = Rc::clone(&recording.gradients);
        recording.tape.borrow_mut().add_backward_op(move |_| {
            backward(&mut gradients.borrow_mut());
            Ok(())
        });
    }

    /// Says that no operation recorded so far has used these trainable matrices: once the backward pass comes back to here, their
    /// gradients are final, and [`Graph::backward_to`] passes them on.
    pub fn finishes(&self, parameters: Vec<Mat>) {
        if self.records() && parameters.iter().any(Mat::needs_grad) {
            self.push(move |gradients| gradients.finish(&parameters));
        }
    }

    /// Like [`Graph::backward`]. Passes on the gradients of `parameters` with their numbers there, several at a time: those of matrices
    /// that [`Graph::finishes`] has named while the backward pass goes on, the others at its end.
    pub fn backward_to(&self, loss: &Mat, parameters: &[Mat], mut give: impl FnMut(Vec<(usize, Mat)>) + 'static) {
        let mut numbers: HashMap<u64, usize> =
            parameters.iter().enumerate().map(|(number, mat)| (mat.gradient_id(), number)).collect();
        let listener = move |some: &[Mat], gradients: &mut Gradients| {
            let final_one = |mat: &Mat| Some((numbers.remove(&mat.gradient_id())?, gradients.take(mat)));
            let found: Vec<_> = some.iter().filter_map(final_one).collect();
            if !found.is_empty() {
                give(found);
            }
        };
        let mut gradients = self.backward_with(loss, Some(Box::new(listener)));
        gradients.finish(parameters);
        debug_assert!(!parameters.iter().any(|mat| gradients.has(mat)), "a gradient that was final has changed");
    }

    /// Runs the backward pass from `loss`; for a larger matrix, from the sum of its values. Consumes the tape.
    ///
    /// # Panics
    /// If the graph has no tape, which is a bug in the caller.
    pub fn backward(&self, loss: &Mat) -> Gradients {
        self.backward_with(loss, None)
    }

    fn backward_with(&self, loss: &Mat, listener: Option<Listener>) -> Gradients {
        match loss.device_mat() {
            None => self.run(on_host(loss, vec![1.0; loss.count()]), listener),
            Some(mat) => {
                let ones = vec![1.0; loss.count()];
                let ones = DeviceMat::from_host(mat.device(), mat.rows, mat.cols, mat.gradient, &ones);
                self.run(on_device(loss, ones), listener)
            }
        }
    }

    /// Like [`Graph::backward`], from a matrix with a known gradient in host memory.
    pub(super) fn backward_from(&self, output: &Mat, gradient: Vec<f32>) -> Gradients {
        self.run(on_host(output, gradient), None)
    }

    /// The same on a device.
    pub(super) fn backward_from_device(&self, output: &Mat, gradient: DeviceMat) -> Gradients {
        self.run(on_device(output, gradient), None)
    }

    fn run(&self, start: impl FnOnce(&mut Gradients) + 'static, listener: Option<Listener>) -> Gradients {
        let Some(recording) = &self.0 else { panic!("backward pass of a graph without tape") };
        recording.gradients.borrow_mut().listener = listener;
        // The last operation on the tape runs first.
        self.push(start);
        let tape = recording.tape.take();
        // dfdx runs a tape only from a scalar. Any scalar works, since nothing about it was recorded.
        let root: Tensor<(), f32, Cpu, NoneTape> = Cpu::default().zeros();
        root.put_tape(tape).backward();
        recording.gradients.take()
    }
}

/// The gradient of a matrix with which a backward pass starts.
fn on_host(output: &Mat, gradient: Vec<f32>) -> impl FnOnce(&mut Gradients) + use<> {
    let ghost = output.ghost();
    move |gradients| {
        gradients.on_host.insert(ghost.id, gradient);
    }
}

/// The same on a device.
fn on_device(output: &Mat, gradient: DeviceMat) -> impl FnOnce(&mut Gradients) + use<> {
    let id = output.gradient_id();
    move |gradients| {
        gradients.on_device.insert(id, gradient);
    }
}

/// The gradients of a backward pass, by the matrices' identities.
#[derive(Default)]
pub struct Gradients {
    on_host: HashMap<u64, Vec<f32>>,
    on_device: HashMap<u64, DeviceMat>,
    /// Takes out what is final while the backward pass goes on.
    listener: Option<Listener>,
}

type Listener = Box<dyn FnMut(&[Mat], &mut Gradients)>;

/// Where an operation writes a gradient on a device.
pub(super) struct Slot {
    pub(super) mat: DeviceMat,
    /// Whether to add to what is there; otherwise the memory is undefined and must be overwritten.
    pub(super) add: bool,
}

impl Gradients {
    /// Takes the gradient of a trainable matrix, which is possible only once; zeros if the loss does not depend on it.
    pub fn take(&mut self, of: &Mat) -> Mat {
        let Some(mat) = of.device_mat() else {
            let gradient = self.take_on_host(&of.ghost());
            return Mat::from_host(of.rows(), of.cols(), gradient.unwrap_or_else(|| fresh::zeros(of.count())));
        };
        let zeros = || DeviceMat::zeros(mat.device(), mat.rows, mat.cols, mat.gradient);
        Mat::on_device(self.on_device.remove(&mat.id).unwrap_or_else(zeros), of.precision)
    }

    fn has(&self, of: &Mat) -> bool {
        let id = of.gradient_id();
        self.on_host.contains_key(&id) || self.on_device.contains_key(&id)
    }

    /// Tells the listener that the gradients of `parameters` are final.
    fn finish(&mut self, parameters: &[Mat]) {
        if let Some(mut listener) = self.listener.take() {
            listener(parameters, self);
            self.listener = Some(listener);
        }
    }

    /// The buffer in host memory to which operations add a gradient; initially zeros.
    pub(super) fn buffer(&mut self, of: &Ghost) -> &mut Vec<f32> {
        self.on_host.entry(of.id).or_insert_with(|| fresh::zeros(of.count))
    }

    /// Adds a gradient in host memory through `add`, which takes the sum so far, or an empty one that it must fill.
    pub(super) fn sum(&mut self, of: &Ghost, add: impl FnOnce(&mut Vec<f32>)) {
        let sum = self.on_host.entry(of.id).or_default();
        add(sum);
        debug_assert_eq!(sum.len(), of.count, "values of a gradient");
    }

    /// Adds a gradient in host memory. The first is kept as it is.
    pub(super) fn give(&mut self, to: &Ghost, gradient: Vec<f32>) {
        match self.on_host.entry(to.id) {
            Entry::Occupied(mut sum) => pointwise::accumulate(sum.get_mut(), &gradient, 1.0),
            Entry::Vacant(none) => {
                none.insert(gradient);
            }
        }
    }

    /// Adds `scale * values` to a gradient in host memory.
    pub(super) fn add(&mut self, to: &Ghost, values: &[f32], scale: f32) {
        match self.on_host.entry(to.id) {
            Entry::Occupied(mut sum) => pointwise::accumulate(sum.get_mut(), values, scale),
            Entry::Vacant(none) => {
                none.insert(pointwise::scaled(values, scale));
            }
        }
    }

    /// Like [`Gradients::take`], of a matrix in host memory by its ghost: `None` if nothing depends on it.
    pub(super) fn take_on_host(&mut self, of: &Ghost) -> Option<Vec<f32>> {
        self.on_host.remove(&of.id)
    }

    /// The memory for the gradient of a matrix on a device. The operation must fill it.
    pub(super) fn slot(&mut self, of: &DeviceGhost) -> Slot {
        if let Some(sum) = self.on_device.get_mut(&of.id) {
            sum.make_unique();
            return Slot { mat: sum.clone(), add: true };
        }
        let new = DeviceMat::new(&of.device, of.rows, of.cols, of.gradient);
        self.on_device.insert(of.id, new.clone());
        Slot { mat: new, add: false }
    }

    /// Adds a gradient on a device. The first is not copied; it may share its memory with others.
    pub(super) fn give_on_device(&mut self, to: &DeviceGhost, gradient: DeviceMat) {
        match self.on_device.get_mut(&to.id) {
            Some(sum) => {
                sum.make_unique();
                ops::accumulate(sum, &gradient, 1.0);
            }
            None => {
                self.on_device.insert(to.id, gradient);
            }
        }
    }

    /// Like [`Gradients::take`], of a matrix on a device by its identity: `None` if nothing depends on it.
    pub(super) fn take_on_device(&mut self, id: u64) -> Option<DeviceMat> {
        self.on_device.remove(&id)
    }
}
