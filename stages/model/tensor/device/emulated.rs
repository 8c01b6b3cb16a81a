//! A GPU on the CPU, for tests: the same kernels, run by `kernels/host.h`.
//!
//! Memory begins as NaNs. Every buffer ends at a page that can't be accessed, and another one lies before it: a kernel
//! that reads or writes beyond a buffer ends the process. What is left of the pages in between is checked when the
//! buffer is freed. A freed buffer can't be accessed either.
//!
//! It has the streams of a GPU, of which one runs as early and others as late as the order of calls, marks and waits allows.
//! So what is not waited for is missing, or comes too late and destroys what is there.
//!
//! - `streams.rs`: the streams; `memory.rs`: a buffer; `product.rs`: products.
#![allow(unsafe_code)]

mod memory;
mod product;
mod streams;

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char},
    ptr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use memory::{Buffer, FILL};
use streams::{Call, Streams};

use super::{
    cuda::{Card, Probe},
    driver::{self, Driver, Grid, Parameter, Product, STREAMS, Stream},
    error::DeviceError,
};

unsafe extern "C" {
    fn imp_emulated_has(name: *const c_char) -> i32;
}

/// A GPU on the CPU.
pub(in crate::tensor) struct Emulated {
    number: i32,
    limit: u64,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// Bytes of the buffers that were not freed, by address.
    sizes: BTreeMap<u64, usize>,
    live: u64,
    peak: u64,
    streams: Streams,
    locked: Vec<Locked>,
    /// The calls of [`Driver::keep`].
    kept: Vec<driver::Call>,
}

/// Locked host memory, of a box that is put together again in the end.
struct Locked {
    address: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to this alone; no reference to it exists between calls of the driver.
unsafe impl Send for Locked {}

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: what was taken apart in `lock`.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(self.address, self.bytes)) });
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
    /// 1 descending with copies at once, others are random. Of the streams, that for computing is early with 0, the others
    /// with 1, none with others. Correct kernels and calls give the same bits in all of them.
    pub(in crate::tensor) fn new(order: u32) -> Self {
        static OPENED: AtomicI32 = AtomicI32::new(0);
        let memory = Memory { streams: Streams::new(order), ..Memory::default() };
        let number = OPENED.fetch_add(1, Ordering::Relaxed);
        Self { number, limit: u64::MAX, memory: Mutex::new(memory) }
    }

    /// The device with `limit` bytes of memory.
    pub(in crate::tensor) fn with_limit(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
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
}

impl Memory {
    /// Fails unless a live buffer has these bytes.
    fn check(&self, call: &str, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let inside =
            self.sizes.range(..=address).next_back().is_some_and(|(start, size)| {
                usize::try_from(address - start).is_ok_and(|offset| offset + bytes <= *size)
            });
        if inside || bytes == 0 { Ok(()) } else { Err(failed(call, "these bytes are not within a live buffer")) }
    }

    /// Fails unless these bytes are locked.
    fn check_locked(&self, address: u64, bytes: usize) -> Result<(), DeviceError> {
        let inside = |locked: &Locked| {
            let start = locked.address as u64;
            address >= start && address + bytes as u64 <= start + locked.bytes as u64
        };
        if self.locked.iter().any(inside) { Ok(()) } else { Err(failed("upload", "these bytes are not locked")) }
    }
}

impl Driver for Emulated {
    fn alloc(&self, stream: Stream, bytes: usize) -> Result<u64, DeviceError> {
        let needed = bytes as u64;
        let mut memory = self.memory();
        let free = self.limit - memory.live;
        if needed > free {
            return Err(DeviceError::OutOfMemory { needed, free, total: self.limit });
        }
        let buffer = Buffer::new(bytes)?;
        let address = buffer.address as u64;
        memory.sizes.insert(address, bytes);
        memory.streams.buffers.insert(address, buffer);
        memory.live += needed;
        memory.peak = memory.peak.max(memory.live);
        memory.streams.call(stream, Call::Take(address))?;
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        let mut memory = self.memory();
        let size = memory.sizes.remove(&address);
        memory.live -= size.map_or(0, |size| size as u64);
        let freed = memory.streams.call(Stream::Compute, Call::Free(address));
        drop(memory);
        // A second panic would end the process without the words of the first.
        if std::thread::panicking() {
            return;
        }
        assert_eq!(size, Some(bytes), "a buffer was freed that does not exist, or with another size than it has");
        if let Err(error) = freed {
            panic!("{error}");
        }
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        let mut memory = self.memory();
        memory.check("upload", to, from.len())?;
        memory.streams.call(Stream::Compute, Call::Write { to, bytes: from.to_vec() })
    }

    fn lock(&self, bytes: usize) -> Option<u64> {
        let address = Box::into_raw(vec![FILL; bytes].into_boxed_slice()).cast::<u8>();
        self.memory().locked.push(Locked { address, bytes });
        Some(address as u64)
    }

    unsafe fn upload_through(&self, stream: Stream, to: u64, through: u64, from: &[u8]) -> Result<(), DeviceError> {
        let mut memory = self.memory();
        memory.check("upload", to, from.len())?;
        memory.check_locked(through, from.len())?;
        // SAFETY: checked above.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), through as *mut u8, from.len()) };
        memory.streams.call(stream, Call::Copy { to, from: through, bytes: from.len() })
    }

    fn mark(&self, stream: Stream, mark: usize) -> Result<(), DeviceError> {
        self.memory().streams.mark(stream, mark)
    }

    fn wait(&self, waiting: Option<Stream>, mark: usize) -> Result<(), DeviceError> {
        self.memory().streams.wait(waiting, mark)
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        let mut memory = self.memory();
        memory.check("download", from, to.len())?;
        memory.streams.finish(Stream::Compute)?;
        // SAFETY: checked above.
        unsafe { ptr::copy_nonoverlapping(from as *const u8, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn download_through(&self, through: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        let mut memory = self.memory();
        memory.check("download", from, bytes)?;
        memory.check_locked(through, bytes)?;
        memory.streams.call(Stream::Exchange, Call::Read { through, from, bytes })
    }

    fn number(&self) -> i32 {
        self.number
    }

    fn let_in(&self, _: i32) -> Result<bool, DeviceError> {
        Ok(true)
    }

    unsafe fn fetch(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        let mut memory = self.memory();
        memory.check("fetch", to, bytes)?;
        memory.streams.call(Stream::Exchange, Call::Copy { to, from, bytes })
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        let mut memory = self.memory();
        memory.check("copy", from, bytes)?;
        memory.check("copy", to, bytes)?;
        if to.abs_diff(from) < bytes as u64 {
            return Err(failed("copy", "the two places overlap"));
        }
        memory.streams.call(Stream::Compute, Call::Copy { to, from, bytes })
    }

    unsafe fn launch(
        &self,
        stream: Stream,
        kernel: &str,
        grid: Grid,
        parameters: &[Parameter],
    ) -> Result<(), DeviceError> {
        if grid.blocks.contains(&0) {
            return Err(failed(kernel, "a grid without blocks"));
        }
        let name = CString::new(kernel).map_err(|error| failed(kernel, &error.to_string()))?;
        // SAFETY: a string that ends with a zero.
        if unsafe { imp_emulated_has(name.as_ptr()) } == 0 {
            return Err(failed(kernel, "there is no such kernel"));
        }
        let call = Call::Launch { kernel: name, grid, parameters: parameters.to_vec() };
        self.memory().streams.call(stream, call)
    }

    unsafe fn product(&self, a: u64, b: u64, d: u64, product: &Product) -> Result<(), DeviceError> {
        let Product { m, n, k, operands, out, bias, .. } = *product;
        if k == 0 {
            return Err(failed("product", "cuBLASLt takes no empty operands"));
        }
        let mut memory = self.memory();
        memory.check("product", a, m * k * operands.size())?;
        memory.check("product", b, k * n * operands.size())?;
        memory.check("product", bias.unwrap_or_default(), bias.map_or(0, |_| n * out.size()))?;
        memory.check("product", d, m * n * out.size())?;
        memory.streams.call(Stream::Compute, Call::Product { addresses: [a, b, d], product: *product })
    }

    unsafe fn keep(&self, calls: &[driver::Call]) -> Result<(), DeviceError> {
        self.memory().kept = calls.to_vec();
        Ok(())
    }

    unsafe fn repeat(&self) -> Result<(), DeviceError> {
        let kept = self.memory().kept.clone();
        if kept.is_empty() {
            return Err(failed("repeat", "no calls are kept"));
        }
        // SAFETY: as the caller says.
        kept.iter().try_for_each(|call| unsafe { call.make(self) })
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let streams = &mut self.memory.get_mut().unwrap_or_else(PoisonError::into_inner).streams;
        for stream in STREAMS {
            if let Err(error) = streams.finish(stream) {
                panic!("{error}");
            }
        }
    }
}
