//! One buffer that tasks on several threads fill, each its own values.
#![allow(unsafe_code)]

/// A pointer that the tiles of one matrix share between threads; each writes its own values.
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
