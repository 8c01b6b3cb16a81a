//! The data of a dfdx tensor as a slice. dfdx shows single elements only; its tensors made by this crate are
//! contiguous, so the first element's address and the length give them all.
#![allow(unsafe_code)]

use dfdx::prelude::HasShape;

use super::Data;

/// All values of a matrix.
pub(super) fn slice(data: &Data) -> &[f32] {
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
pub(super) fn slice_mut(data: &mut Data) -> &mut [f32] {
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

/// A pointer that tiles of one matrix share between threads; each writes to places of its own.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32, usize);

// SAFETY: `Shared` only carries the address; every use of it is an `unsafe` block that says why tiles are apart.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr(), values.len())
    }

    /// `length` values from `start`.
    ///
    /// # Safety
    /// No other slice of these values may be alive, in any thread.
    pub(super) unsafe fn slice<'a>(self, start: usize, length: usize) -> &'a mut [f32] {
        debug_assert!(start + length <= self.1);
        // SAFETY: inside the buffer that `new` was given; the caller answers for the rest.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }

    /// The address of value `start`, for the matrix product.
    pub(super) fn at(self, start: usize) -> *mut f32 {
        debug_assert!(start <= self.1);
        self.0.wrapping_add(start)
    }
}
