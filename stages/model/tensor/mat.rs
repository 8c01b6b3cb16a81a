//! A matrix and its memory: a dfdx tensor, which has values and an identity for the tape, or a matrix on a device.
//! Independent of the tape.
#![allow(unsafe_code)]

use std::{borrow::Cow, ops::Range};

use dfdx::prelude::{Cpu, HasShape, Tensor, TensorFromVec};

use super::{
    Place,
    device::{DeviceMat, Type, ops::with_rounded, stored_as},
    host::{fresh, round},
    identity,
};
use crate::precision::Precision;

type HostData = Tensor<(usize, usize), f32, Cpu>;

/// Identity of a matrix's gradient, and number of its values. Backward passes that don't need the matrix's values keep only this.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ghost {
    pub(super) id: u64,
    pub(super) count: usize,
}

/// A matrix `[rows, cols]`, row-major. Clones share memory until one is modified.
#[derive(Clone, Debug)]
pub struct Mat {
    pub(super) data: Data,
    pub(super) precision: Precision,
    pub(super) needs_grad: bool,
}

/// Where the values are.
#[derive(Clone, Debug)]
pub(super) enum Data {
    /// In host memory, in f32, with the identity of the gradient. A modified matrix keeps it.
    Host(HostData, u64),
    /// On a device: activations in the precision of products, everything else in f32.
    Device(DeviceMat),
}

impl Mat {
    /// A constant (not trainable) matrix of row-major values in host memory.
    ///
    /// # Panics
    /// If there are not `rows * cols` values, which is a bug in the caller.
    pub fn from_host(rows: usize, cols: usize, values: Vec<f32>) -> Self {
        assert_eq!(values.len(), rows * cols, "the number of values of a [{rows}, {cols}] matrix");
        let data = Data::Host(Cpu::default().tensor_from_vec(values, (rows, cols)), identity::new());
        Self { data, precision: Precision::default(), needs_grad: false }
    }

    /// A constant (not trainable) matrix of zeros in host memory.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self::from_host(rows, cols, fresh::zeros(rows * cols))
    }

    /// A constant matrix of zeros in f32 where this matrix lies.
    pub(super) fn zeros_beside(&self, rows: usize, cols: usize) -> Self {
        match &self.data {
            Data::Host(..) => Self { precision: self.precision, ..Self::zeros(rows, cols) },
            Data::Device(mat) => Self::on_device(DeviceMat::zeros(mat.device(), rows, cols, Type::F32), self.precision),
        }
    }

    /// A constant matrix on a device.
    pub(super) fn on_device(mat: DeviceMat, precision: Precision) -> Self {
        Self { data: Data::Device(mat), precision, needs_grad: false }
    }

    /// All values in host memory, row-major; borrowed if they are already there.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        match &self.data {
            Data::Host(data, _) => Cow::Borrowed(slice(data)),
            Data::Device(mat) => Cow::Owned(mat.to_host()),
        }
    }

    /// The value of a `[1, 1]` matrix, such as a loss. Waits for a device to have computed it.
    ///
    /// # Panics
    /// If the matrix is not `[1, 1]`, which is a bug in the caller.
    pub fn item(&self) -> f32 {
        assert_eq!((self.rows(), self.cols()), (1, 1), "`item` requires a [1, 1] matrix");
        self.to_host()[0]
    }

    /// Replaces all values, row-major. Does not change clones.
    ///
    /// # Panics
    /// If the number of values differs, which is a bug in the caller.
    pub fn copy_from(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.count(), "the number of values");
        match &mut self.data {
            Data::Host(data, _) => slice_mut(data).copy_from_slice(values),
            Data::Device(mat) => mat.copy_from(values),
        }
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

    /// Where this matrix lies.
    pub fn place(&self) -> Place {
        let device = self.device_mat().map(|mat| mat.device().clone());
        Place { device, precision: self.precision }
    }

    /// The same matrix at `place`, as weights and other outside values lie there: in f32. Copied only if it lies
    /// elsewhere; then it is a new matrix, which has no part in what was recorded with this one.
    #[must_use]
    pub fn to(&self, place: &Place) -> Self {
        if self.place().device == place.device {
            return Self { precision: place.precision, ..self.clone() };
        }
        let values = self.to_host();
        let mat = match &place.device {
            None => Self::from_host(self.rows(), self.cols(), values.into_owned()),
            Some(device) => Self::on_device(
                DeviceMat::from_host(device, self.rows(), self.cols(), Type::F32, &values),
                place.precision,
            ),
        };
        Self { precision: place.precision, needs_grad: self.needs_grad, ..mat }
    }

    /// The same matrix, frozen, as an operand of products that are computed again and again: on a device in bf16 with a copy in that type.
    #[must_use]
    pub fn as_operand(self) -> Self {
        match self.data {
            Data::Device(mat) if self.precision == Precision::Bf16 && !self.needs_grad => {
                Self { data: Data::Device(with_rounded(mat)), ..self }
            }
            _ => self,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        match &self.data {
            Data::Host(data, _) => data.shape().0,
            Data::Device(mat) => mat.rows,
        }
    }

    /// Width of a row.
    pub fn cols(&self) -> usize {
        match &self.data {
            Data::Host(data, _) => data.shape().1,
            Data::Device(mat) => mat.cols,
        }
    }

    /// Number of values.
    pub fn count(&self) -> usize {
        self.rows() * self.cols()
    }
}

/// Memory access, for operations only.
impl Mat {
    /// The identity of this matrix's gradient in host memory.
    ///
    /// # Panics
    /// If the matrix lies on a device, whose gradients have other ghosts: a bug in the operation.
    pub(super) fn ghost(&self) -> Ghost {
        let Data::Host(_, id) = &self.data else { panic!("the host's gradient of a matrix on a device") };
        Ghost { id: *id, count: self.count() }
    }

    /// The identity of its gradient, wherever it lies.
    pub(super) fn gradient_id(&self) -> u64 {
        match &self.data {
            Data::Host(_, id) => *id,
            Data::Device(mat) => mat.id,
        }
    }

    /// The matrix on a device, if it lies on one.
    pub(super) fn device_mat(&self) -> Option<&DeviceMat> {
        if let Data::Device(mat) = &self.data { Some(mat) } else { None }
    }

    /// The matrix on a device, to be modified in place.
    pub(super) fn device_mat_mut(&mut self) -> Option<&mut DeviceMat> {
        if let Data::Device(mat) = &mut self.data {
            mat.make_unique();
            Some(mat)
        } else {
            None
        }
    }

    /// Makes the memory of a matrix on a device its own. In host memory this happens when it is modified.
    pub(super) fn make_unique(&mut self) {
        self.device_mat_mut();
    }

    /// The values in host memory, row-major.
    ///
    /// # Panics
    /// If the matrix lies on a device: an operation on the host was given one, which is a bug.
    pub(super) fn values(&self) -> &[f32] {
        match &self.data {
            Data::Host(data, _) => slice(data),
            Data::Device(_) => panic!("the values of a matrix on a device were accessed on the host"),
        }
    }

    /// All values, row-major and mutable. Copied first if a clone shares them.
    ///
    /// # Panics
    /// As [`Mat::values`].
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        match &mut self.data {
            Data::Host(data, _) => slice_mut(data),
            Data::Device(_) => panic!("the values of a matrix on a device were accessed on the host"),
        }
    }

    /// A matrix of the same place and type of storage, with undefined content on a device.
    pub(super) fn blank(&self, rows: usize, cols: usize) -> Self {
        match &self.data {
            Data::Host(..) => self.zeros_beside(rows, cols),
            Data::Device(mat) => Self::on_device(DeviceMat::new(mat.device(), rows, cols, mat.kind), self.precision),
        }
    }

    /// Copies `rows` into a new matrix.
    pub(super) fn copy_rows(&self, rows: Range<usize>) -> Self {
        let mut copy = self.blank(rows.len(), self.cols());
        copy.write_rows(0, self, rows);
        copy
    }

    /// Overwrites the rows from `start` with `rows` of `from`, which has the same width and place.
    pub(super) fn write_rows(&mut self, start: usize, from: &Self, rows: Range<usize>) {
        let cols = self.cols();
        if let (Some(to), Some(from)) = (self.device_mat_mut(), from.device_mat()) {
            let bytes = to.row_bytes();
            return to.buffer.copy(start * bytes, &from.buffer, rows.start * bytes, rows.len() * bytes);
        }
        let values = &from.values()[rows.start * cols..rows.end * cols];
        self.values_mut()[start * cols..start * cols + values.len()].copy_from_slice(values);
    }

    /// Rounds rows in host memory to the precision of products. On a device they are stored in it.
    pub(super) fn round_rows(&mut self, rows: Range<usize>) {
        if self.precision != Precision::F32 && self.device_mat().is_none() {
            let (cols, precision) = (self.cols(), self.precision);
            round::round(&mut self.values_mut()[rows.start * cols..rows.end * cols], precision);
        }
    }

    /// How activations that are computed from this matrix are stored on a device.
    pub(super) fn stored_as(&self) -> Type {
        stored_as(self.precision)
    }
}

/// All values of a tensor.
fn slice(data: &HostData) -> &[f32] {
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
fn slice_mut(data: &mut HostData) -> &mut [f32] {
    let length = length(data);
    if length == 0 {
        return &mut [];
    }
    let first: *mut f32 = &raw mut data[[0, 0]];
    // SAFETY: as above; `IndexMut` has made the buffer unique (`Arc::make_mut`), and the exclusive borrow of `data`
    // keeps it unique.
    unsafe { std::slice::from_raw_parts_mut(first, length) }
}

fn length(data: &HostData) -> usize {
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
