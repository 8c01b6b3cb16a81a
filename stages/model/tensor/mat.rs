//! A matrix and its memory: a dfdx tensor, which has values and an identity for the tape. Independent of the tape.
#![allow(unsafe_code)]

use std::{borrow::Cow, ops::Range};

use dfdx::prelude::{Cpu, HasShape, Tensor, TensorFromVec};

type Data = Tensor<(usize, usize), f32, Cpu>;

/// A matrix `[rows, cols]`, row-major, f32. Clones share memory until one is modified.
#[derive(Clone, Debug)]
pub struct Mat {
    pub(super) data: Data,
    pub(super) needs_grad: bool,
}

impl Mat {
    /// A constant (not trainable) matrix of row-major values in host memory.
    ///
    /// # Panics
    /// If there are not `rows * cols` values, which is a bug in the caller.
    pub fn from_host(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "the number of values of a [{rows}, {cols}] matrix");
        Self { data: Cpu::default().tensor_from_vec(values, (rows, cols)), needs_grad: false }
    }

    /// A constant (not trainable) matrix of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self::from_host(rows, cols, vec![0.0; rows * cols])
    }

    /// All values in host memory, row-major; borrowed if they are already there.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(self.values())
    }

    /// The value of a `[1, 1]` matrix, such as a loss.
    ///
    /// # Panics
    /// If the matrix is not `[1, 1]`, which is a bug in the caller.
    pub fn item(&self) -> f32 {
        assert_eq!((self.rows(), self.cols()), (1, 1), "`item` requires a [1, 1] matrix");
        self.values()[0]
    }

    /// Replaces all values, row-major. Does not change clones.
    ///
    /// # Panics
    /// If the number of values differs, which is a bug in the caller.
    pub fn copy_from(&mut self, values: &[f32]) {
        self.values_mut().copy_from_slice(values);
    }

    /// The same matrix, trainable.
    #[must_use]
    pub fn trainable(mut self) -> Self {
        self.needs_grad = true;
        self
    }

    /// Whether the backward pass computes a gradient for this matrix.
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

    /// Number of values.
    pub fn count(&self) -> usize {
        self.rows() * self.cols()
    }
}

/// Memory access, for operations only.
impl Mat {
    /// All values, row-major.
    pub(super) fn values(&self) -> &[f32] {
        slice(&self.data)
    }

    /// All values, row-major and mutable. Copied first if a clone shares them.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        slice_mut(&mut self.data)
    }

    /// Copies `rows` into a new matrix.
    pub(super) fn copy_rows(&self, rows: Range<usize>) -> Self {
        let cols = self.cols();
        Self::from_host(rows.len(), cols, self.values()[rows.start * cols..rows.end * cols].to_vec())
    }

    /// Overwrites the rows from `start` with `rows` of `from`, which has the same width.
    pub(super) fn write_rows(&mut self, start: usize, from: &Self, rows: Range<usize>) {
        let cols = self.cols();
        let values = &from.values()[rows.start * cols..rows.end * cols];
        self.values_mut()[start * cols..start * cols + values.len()].copy_from_slice(values);
    }
}

/// All values of a tensor.
fn slice(data: &Data) -> &[f32] {
    let length = length(data);
    if length == 0 {
        return &[];
    }
    let first: *const f32 = &raw const data[[0, 0]];
    // SAFETY: only `Mat` creates these tensors, from a `Vec` of exactly `length` values with row-major strides, so the
    // values are contiguous from the first. The shared borrow of `data` keeps the buffer alive and unchanged: modifying
    // it takes `&mut` and copies a shared buffer first.
    unsafe { std::slice::from_raw_parts(first, length) }
}

/// All values of a tensor, mutable. Copied first if another tensor shares them.
fn slice_mut(data: &mut Data) -> &mut [f32] {
    let length = length(data);
    if length == 0 {
        return &mut [];
    }
    let first: *mut f32 = &raw mut data[[0, 0]];
    // SAFETY: as above; `IndexMut` has made the buffer unique (`Arc::make_mut`), and the exclusive borrow of `data`
    // keeps it unique.
    unsafe { std::slice::from_raw_parts_mut(first, length) }
}

fn length(data: &Data) -> usize {
    let (rows, cols) = *data.shape();
    rows * cols
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_values_until_one_is_modified() {
        let mut mat = Mat::from_host(2, 2, vec![1.0, 2.0, 3.0, 4.0]);
        let clone = mat.clone();
        assert_eq!(mat.to_host().as_ptr(), clone.to_host().as_ptr(), "no copy");
        mat.copy_from(&[5.0, 6.0, 7.0, 8.0]);
        assert_eq!((&*mat.to_host(), &*clone.to_host()), (&[5.0, 6.0, 7.0, 8.0][..], &[1.0, 2.0, 3.0, 4.0][..]));
        mat.write_rows(0, &clone, 1..2);
        assert_eq!(*mat.to_host(), [3.0, 4.0, 7.0, 8.0]);
        assert_eq!(*mat.copy_rows(1..2).to_host(), [7.0, 8.0]);
        assert_eq!(
            (Mat::zeros(0, 3).count(), Mat::from_host(1, 1, vec![9.0]).item().to_bits()),
            (0, 9.0_f32.to_bits())
        );
    }
}
