//! A matrix and its memory: a dfdx tensor, which holds values and an identity. Independent of the tape.
#![allow(unsafe_code)]

use std::{borrow::Cow, ops::Range};

use dfdx::prelude::{Cpu, HasShape, Tensor, TensorFromVec};

type Data = Tensor<(usize, usize), f32, Cpu>;

/// A matrix `[rows, cols]`, row-major, f32. Cloning shares the data.
#[derive(Clone, Debug)]
pub struct Mat {
    pub(super) data: Data,
    pub(super) needs_grad: bool,
}

impl Mat {
    /// A constant from values in this machine's memory, row by row.
    ///
    /// # Panics
    /// If there are not `rows * cols` values: a bug of the caller's.
    pub fn from_host(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "a [{rows}, {cols}] matrix needs as many values");
        Self { data: Cpu::default().tensor_from_vec(values, (rows, cols)), needs_grad: false }
    }

    /// A constant of zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self::from_host(rows, cols, vec![0.0; rows * cols])
    }

    /// All values, row by row: borrowed where they already lie in this machine's memory.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(self.values())
    }

    /// The value of a `[1, 1]` matrix, such as a loss.
    ///
    /// # Panics
    /// If it has more or fewer values: a bug of the caller's.
    pub fn item(&self) -> f32 {
        assert_eq!((self.rows(), self.cols()), (1, 1), "only a [1, 1] matrix is one value");
        self.values()[0]
    }

    /// Replaces all values. Clones keep what they have.
    ///
    /// # Panics
    /// If there are more or fewer values than before: a bug of the caller's.
    pub fn copy_from(&mut self, values: &[f32]) {
        self.values_mut().copy_from_slice(values);
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

    /// Number of values.
    pub fn count(&self) -> usize {
        self.rows() * self.cols()
    }
}

/// The memory, for operations only.
impl Mat {
    /// All values, row by row.
    pub(super) fn values(&self) -> &[f32] {
        slice(&self.data)
    }

    /// All values, to be changed in place (copied first if a clone shares them).
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        slice_mut(&mut self.data)
    }

    /// Some rows as a matrix of their own.
    pub(super) fn copy_rows(&self, rows: Range<usize>) -> Self {
        let cols = self.cols();
        Self::from_host(rows.len(), cols, self.values()[rows.start * cols..rows.end * cols].to_vec())
    }

    /// Replaces the rows from `start` by `rows` of `from`, which has the same width.
    pub(super) fn write_rows(&mut self, start: usize, from: &Self, rows: Range<usize>) {
        let cols = self.cols();
        let values = &from.values()[rows.start * cols..rows.end * cols];
        self.values_mut()[start * cols..start * cols + values.len()].copy_from_slice(values);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_values_until_one_changes() {
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
