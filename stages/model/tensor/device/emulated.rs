//! A GPU on the CPU, for tests: the same kernels, run by `kernels/host.h`.
//!
//! Memory begins as NaNs. Every buffer ends at a page that can't be accessed, and another one lies before it: a kernel
//! that reads or writes beyond a buffer ends the process. What is left of the pages in between is checked when the
//! buffer is freed. A freed buffer can't be accessed either.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_void},
    ptr, slice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use half::bf16;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

use super::{
    cuda::{Card, Probe},
    driver::{Driver, Grid, Product, Type},
    error::DeviceError,
};

unsafe extern "C" {
    fn imp_emulated_launch(
        name: *const c_char,
        grid: *const u32,
        threads: u32,
        shared: u32,
        order: u32,
        params: *mut *mut c_void,
    ) -> *const c_char;
}

/// Buffers begin at multiples of this, as far as they are aligned at all: a real device aligns to 256 bytes.
const ALIGNMENT: usize = 16;
/// What memory is filled with: a NaN in every type.
const FILL: u8 = 0xff;

/// A GPU on the CPU.
pub(in crate::tensor) struct Emulated {
    order: u32,
    limit: u64,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    buffers: BTreeMap<u64, Buffer>,
    live: u64,
    peak: u64,
}

/// Pages of which the first and the last can't be accessed, and the bytes in use between them.
struct Buffer {
    pages: *mut c_void,
    page: usize,
    /// Of all pages.
    size: usize,
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the pages belong to the buffer alone; no thread has a reference to them between calls of the driver.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(bytes: usize) -> Result<Self, DeviceError> {
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

    /// Whether the accessible bytes before and after the buffer are as they were.
    fn intact(&self) -> bool {
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

fn failed(call: &str, reason: &str) -> DeviceError {
    DeviceError::Failed { call: call.into(), reason: reason.into() }
}

/// Emulated devices with so much memory each as a machine's GPUs.
pub(super) fn probe(memories: &[u64]) -> Probe {
    let name = || "emulated GPU".into();
    let card = |(index, memory): (usize, &u64)| Card {
        index,
        name: name(),
        memory: *memory,
        compute_capability: (8, 0),
        usable: Ok(()),
    };
    let cards = memories.iter().enumerate().map(card).collect();
    Probe { driver: Ok("emulated".into()), cublaslt: Ok("emulated".into()), cards }
}

impl Emulated {
    /// A device that runs threads in the given order: 0 is ascending with copies to shared memory as late as possible,
    /// 1 descending with copies at once, others are random. A correct kernel gives the same bits in all of them.
    pub(in crate::tensor) fn new(order: u32) -> Self {
        Self { order, limit: u64::MAX, memory: Mutex::default() }
    }

    /// The device with `limit` bytes of memory.
    pub(in crate::tensor) fn with_limit(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// Bytes that are allocated.
    #[cfg(test)]
    pub(in crate::tensor) fn live(&self) -> u64 {
        self.memory().live
    }

    /// The most bytes that were allocated at the same time.
    #[cfg(test)]
    pub(in crate::tensor) fn peak(&self) -> u64 {
        self.memory().peak
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails unless a live buffer has these bytes.
    fn check(&self, call: &str, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let memory = self.memory();
        let inside = memory.buffers.range(..=address).next_back().is_some_and(|(start, buffer)| {
            usize::try_from(address - start).is_ok_and(|offset| offset + bytes <= buffer.bytes)
        });
        if inside || bytes == 0 { Ok(()) } else { Err(failed(call, "these bytes are not within a live buffer")) }
    }

    /// Reads values as f32.
    fn read(&self, address: u64, count: usize, stored: Type) -> Result<Vec<f32>, DeviceError> {
        self.check("product", address, count * stored.size())?;
        if count == 0 {
            return Ok(Vec::new());
        }
        // SAFETY: checked above; buffers are initialized, and all bits are values of both types.
        Ok(unsafe {
            match stored {
                Type::F32 => slice::from_raw_parts(address as *const f32, count).to_vec(),
                Type::Bf16 => {
                    slice::from_raw_parts(address as *const bf16, count).iter().map(|value| value.to_f32()).collect()
                }
            }
        })
    }
}

impl Driver for Emulated {
    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError> {
        let needed = bytes as u64;
        let mut memory = self.memory();
        let free = self.limit - memory.live;
        if needed > free {
            return Err(DeviceError::OutOfMemory { needed, free, total: self.limit });
        }
        let buffer = Buffer::new(bytes)?;
        let address = buffer.address as u64;
        memory.buffers.insert(address, buffer);
        memory.live += needed;
        memory.peak = memory.peak.max(memory.live);
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        let mut memory = self.memory();
        let buffer = memory.buffers.remove(&address);
        memory.live -= buffer.as_ref().map_or(0, |buffer| buffer.bytes as u64);
        drop(memory);
        // A second panic would end the process without the words of the first.
        if std::thread::panicking() {
            return;
        }
        let Some(buffer) = buffer else { panic!("a buffer that does not exist was freed") };
        assert_eq!(buffer.bytes, bytes, "a buffer was freed with another size than it has");
        assert!(buffer.intact(), "something was written next to a buffer of {bytes} bytes");
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.check("upload", to, from.len())?;
        // SAFETY: checked above; host memory does not overlap the device's.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to as *mut u8, from.len()) };
        Ok(())
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.check("download", from, to.len())?;
        // SAFETY: as above.
        unsafe { ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.check("copy", from, bytes)?;
        self.check("copy", to, bytes)?;
        if to.abs_diff(from) < bytes as u64 {
            return Err(failed("copy", "the two places overlap"));
        }
        // SAFETY: checked above.
        unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, kernel: &str, grid: Grid, params: &mut [*mut c_void]) -> Result<(), DeviceError> {
        if grid.blocks.contains(&0) {
            return Err(failed(kernel, "a grid without blocks"));
        }
        let name = CString::new(kernel).map_err(|error| failed(kernel, &error.to_string()))?;
        let blocks = grid.blocks.as_ptr();
        // SAFETY: the parameters are the kernel's, as the caller says; the name and the grid live until it returns.
        let fault = unsafe {
            imp_emulated_launch(name.as_ptr(), blocks, grid.threads, grid.shared, self.order, params.as_mut_ptr())
        };
        if fault.is_null() {
            return Ok(());
        }
        // SAFETY: a constant of the emulation.
        Err(failed(kernel, &unsafe { CStr::from_ptr(fault) }.to_string_lossy()))
    }

    unsafe fn product(&self, a: u64, b: u64, d: u64, product: &Product) -> Result<(), DeviceError> {
        let Product { m, n, k, alpha, beta, operands, out, bias, .. } = *product;
        if k == 0 {
            return Err(failed("product", "cuBLASLt takes no empty operands"));
        }
        let left = self.read(a, m * k, operands)?;
        let right = self.read(b, k * n, operands)?;
        let bias = bias.map(|bias| self.read(bias, n, out)).transpose()?;
        self.check("product", d, m * n * out.size())?;
        let mut sums = multiply(&left, &right, product);
        let old = if beta == 0.0 { None } else { Some(self.read(d, m * n, out)?) };
        for (index, sum) in sums.iter_mut().enumerate() {
            let old = old.as_ref().map_or(0.0, |old| beta * old[index]);
            *sum = alpha * *sum + old + bias.as_ref().map_or(0.0, |bias| bias[index % n]);
        }
        match out {
            Type::F32 => self.upload(d, bytemuck::cast_slice(&sums)),
            Type::Bf16 => {
                let sums: Vec<bf16> = sums.into_iter().map(bf16::from_f32).collect();
                self.upload(d, bytemuck::cast_slice(&sums))
            }
        }
    }
}

/// `op(a) op(b)` in f32.
fn multiply(a: &[f32], b: &[f32], product: &Product) -> Vec<f32> {
    let Product { m, n, k, a_transposed, b_transposed, .. } = *product;
    let mut sums = vec![0.0_f32; m * n];
    // From column to column, and from row to row.
    let strides = |transposed, rows: usize, cols: usize| {
        if transposed { (rows as isize, 1_isize) } else { (1_isize, cols as isize) }
    };
    let (a_column, a_row) = strides(a_transposed, m, k);
    let (b_column, b_row) = strides(b_transposed, k, n);
    // SAFETY: `a` has m * k values, `b` k * n and `sums` m * n; `sums` is not read.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            sums.as_mut_ptr(),
            1,
            n as isize,
            false,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
    sums
}
