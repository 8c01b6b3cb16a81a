//! A matrix and its memory: values in a dfdx tensor. Independent of the tape.
#![allow(unsafe_code)]

use dfdx::prelude::{Cpu, HasShape, Tensor, TensorFromVec};

type Data = Tensor<(usize, usize), f32, Cpu>;

/// A matrix `[rows, cols]`, row-major, f32. Cloning shares the data.
#[derive(Clone, Debug)]
pub struct Mat {
    pub(super) data: Data,
    pub(super) needs_grad: bool,
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
        slice(&self.data)
    }

    /// One row.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values()[index * self.cols()..(index + 1) * self.cols()]
    }

    /// All values, to be changed in place (copied first if a clone shares them).
    pub fn values_mut(&mut self) -> &mut [f32] {
        slice_mut(&mut self.data)
    }
}

/// All values of a matrix.
fn slice(data: &Data) -> &[f32] {
    let length = length(data);
    if length == 0 {
        return &[];
    }
    let first: *const f32 = &raw const data[[0, 0]];
    // SAFETY: `Mat` is the only maker of these tensors and makes them from a `Vec` of exactly `length`
    // values with row-major strides, so they lie one after the other from the first. The shared borrow of
    // `data` keeps the buffer alive and unchanged: changing it takes `&mut` and copies a shared buffer first.
    unsafe { std::slice::from_raw_parts(first, length) }
}

/// All values of a matrix, to be changed. Copies them first if another matrix shares them.
fn slice_mut(data: &mut Data) -> &mut [f32] {
    let length = length(data);
    if length == 0 {
        return &mut [];
    }
    let first: *mut f32 = &raw mut data[[0, 0]];
    // SAFETY: as above; `IndexMut` has made the buffer this tensor's own (`Arc::make_mut`), and the
    // exclusive borrow of `data` keeps it so.
    unsafe { std::slice::from_raw_parts_mut(first, length) }
}

fn length(data: &Data) -> usize {
    let (rows, cols) = *data.shape();
    rows * cols
}
