//! A buffer between guard pages.
#![allow(unsafe_code)]

use std::{ffi::c_void, ptr, slice};

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::failed;
use crate::tensor::device::error::DeviceError;

/// Buffers begin at multiples of this, as far as they are aligned at all: a real device aligns to 256 bytes.
const ALIGNMENT: usize = 16;
/// What memory is filled with: a NaN in every type.
pub(super) const FILL: u8 = 0xff;

/// Pages of which the first and the last can't be accessed, and the bytes in use between them.
pub(super) struct Buffer {
    pages: *mut c_void,
    page: usize,
    /// Of all pages.
    size: usize,
    pub(super) address: *mut u8,
    pub(super) bytes: usize,
}

// SAFETY: the pages belong to the buffer alone; no thread has a reference to them between calls of the driver.
unsafe impl Send for Buffer {}

impl Buffer {
    pub(super) fn new(bytes: usize) -> Result<Self, DeviceError> {
        let page = rustix::param::page_size();
        let used = bytes.next_multiple_of(ALIGNMENT);
        let inner = used.next_multiple_of(page).max(page);
        let size = inner + 2 * page;
        // SAFETY: new pages at an address that the system chooses.
        let pages = unsafe { mmap_anonymous(ptr::null_mut(), size, ProtFlags::empty(), MapFlags::PRIVATE) }
            .map_err(|error| failed("alloc", &error.to_string()))?;
        let start = pages.wrapping_byte_add(page);
        let buffer = Self { pages, page, size, address: start.wrapping_byte_add(inner - used).cast(), bytes };
        // SAFETY: these pages are within those above, and nothing else knows of them.
        unsafe { mprotect(start, inner, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|error| failed("alloc", &error.to_string()))?;
        // SAFETY: they can be written now.
        unsafe { ptr::write_bytes(start.cast::<u8>(), FILL, inner) };
        Ok(buffer)
    }

    /// Makes the content undefined again.
    pub(super) fn forget(&self) {
        // SAFETY: these pages are writable, and no reference to them exists between calls of the driver.
        unsafe { ptr::write_bytes(self.address, FILL, self.bytes) };
    }

    /// Whether the accessible bytes before and after the buffer are as they were.
    pub(super) fn intact(&self) -> bool {
        let start = self.pages.wrapping_byte_add(self.page).cast::<u8>();
        // SAFETY: all pages but the first and the last are readable, and initialized.
        let all = unsafe { slice::from_raw_parts(start, self.size - 2 * self.page) };
        let before = self.address as usize - start as usize;
        all[..before].iter().chain(&all[before + self.bytes..]).all(|byte| *byte == FILL)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the pages of `new`; an address that was given out is not used once the buffer is freed.
        let _ = unsafe { munmap(self.pages, self.size) };
    }
}
