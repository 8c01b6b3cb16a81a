//! A buffer that tasks on several threads fill, each writing separate values.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Pointer and length of a buffer that several threads write, each to separate values.
#[derive(Clone, Copy)]
pub(super) struct Shared(*mut f32, usize);

// SAFETY: `Shared` is only an address; every access is in an `unsafe` block that explains why the values are disjoint.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(values: &mut [f32]) -> Self {
        Self(values.as_mut_ptr(), values.len())
    }

    /// One whose values are yet to be written.
    pub(super) fn uninit(values: &mut [MaybeUninit<f32>]) -> Self {
        Self(values.as_mut_ptr().cast(), values.len())
    }

    /// How many values.
    pub(super) fn len(self) -> usize {
        self.1
    }

    /// The `length` values from index `start`.
    ///
    /// # Safety
    /// No other reference to these values may exist in any thread, and they must be values.
    pub(super) unsafe fn slice<'a>(self, start: usize, length: usize) -> &'a mut [f32] {
        debug_assert!(start + length <= self.1);
        // SAFETY: inside the buffer passed to `new`; the caller guarantees exclusive access.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), length) }
    }

    /// The address of index `start`, for matrix products.
    pub(super) fn at(self, start: usize) -> *mut f32 {
        debug_assert!(start <= self.1);
        self.0.wrapping_add(start)
    }
}
