//! The streams of an emulated GPU: calls are queued, and run as early or as late as their order allows.
#![allow(unsafe_code)]

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{CStr, CString, c_char, c_void},
    ptr,
};

use super::{failed, memory::Buffer, product};
use crate::tensor::device::{
    driver::{Grid, MARKS, Parameter, Product, STREAMS, Stream},
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

/// Calls of a late stream that wait at most: what is freed stays until then.
const LATE: usize = 64;

/// A call, with what it was called with.
pub(super) enum Call {
    /// The buffer's memory becomes the stream's: what others wrote there before is lost.
    Take(u64),
    Write {
        to: u64,
        bytes: Vec<u8>,
    },
    /// From the device or another, or from locked host memory, whose content counts when this runs.
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// To locked host memory.
    Read {
        through: u64,
        from: u64,
        bytes: usize,
    },
    Launch {
        kernel: CString,
        grid: Grid,
        parameters: Vec<Parameter>,
    },
    Product {
        addresses: [u64; 3],
        product: Product,
    },
    Free(u64),
    /// The number of the mark, and how often it was set then.
    Mark(usize, u64),
    Wait(usize, u64),
}

/// The calls of all streams that have not run yet, and the buffers that they use.
#[derive(Default)]
pub(super) struct Streams {
    /// Of threads, and of the streams: see [`super::Emulated::new`].
    order: u32,
    /// Also those that were freed, until that call runs.
    pub(super) buffers: BTreeMap<u64, Buffer>,
    queues: [VecDeque<Call>; STREAMS.len()],
    marks: Marks,
}

/// How often each mark was set by calls, and by calls that have run.
struct Marks {
    called: [u64; MARKS],
    reached: [u64; MARKS],
}

impl Default for Marks {
    fn default() -> Self {
        Self { called: [0; MARKS], reached: [0; MARKS] }
    }
}

impl Streams {
    pub(super) fn new(order: u32) -> Self {
        Self { order, ..Self::default() }
    }

    /// Queues a call, and runs what is not to be late.
    pub(super) fn call(&mut self, stream: Stream, call: Call) -> Result<(), DeviceError> {
        self.queues[stream as usize].push_back(call);
        let early = match self.order {
            0 => stream == Stream::Compute,
            1 => stream != Stream::Compute,
            _ => false,
        };
        let late = if early { 0 } else { LATE };
        while self.queues[stream as usize].len() > late {
            self.run_next(stream)?;
        }
        Ok(())
    }

    pub(super) fn mark(&mut self, stream: Stream, mark: usize) -> Result<(), DeviceError> {
        self.marks.called[mark] += 1;
        self.call(stream, Call::Mark(mark, self.marks.called[mark]))
    }

    /// Lets a stream, or the host, wait for a mark as it is set now.
    pub(super) fn wait(&mut self, waiting: Option<Stream>, mark: usize) -> Result<(), DeviceError> {
        let set = self.marks.called[mark];
        match waiting {
            Some(stream) => self.call(stream, Call::Wait(mark, set)),
            None => self.reach(mark, set),
        }
    }

    /// Runs all that a stream has.
    pub(super) fn finish(&mut self, stream: Stream) -> Result<(), DeviceError> {
        while !self.queues[stream as usize].is_empty() {
            self.run_next(stream)?;
        }
        Ok(())
    }

    /// Runs what has to be done before a mark is reached.
    fn reach(&mut self, mark: usize, set: u64) -> Result<(), DeviceError> {
        let sets = |call: &Call| matches!(call, Call::Mark(number, count) if (*number, *count) == (mark, set));
        while self.marks.reached[mark] < set {
            let stream = STREAMS.into_iter().find(|of| self.queues[*of as usize].iter().any(sets));
            let Some(stream) = stream else { return Err(failed("wait", "the mark is lost")) };
            self.run_next(stream)?;
        }
        Ok(())
    }

    fn run_next(&mut self, stream: Stream) -> Result<(), DeviceError> {
        let Some(call) = self.queues[stream as usize].pop_front() else { return Ok(()) };
        match call {
            Call::Take(address) => {
                if let Some(buffer) = self.buffers.get(&address) {
                    buffer.forget();
                }
            }
            Call::Write { to, bytes } => {
                self.there(to)?;
                // SAFETY: `to` was checked when this was called, and is still there.
                unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
            }
            Call::Copy { to, from, bytes } => {
                self.there(to)?;
                // SAFETY: both were checked when this was called; `to` is still there, and so is `from`: memory of the device is
                // freed on the stream of the copies between places of the device, locked memory lives as long as the device, and
                // for another device the caller of `Driver::fetch` has seen to it.
                unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            }
            Call::Read { through, from, bytes } => {
                self.there(from)?;
                // SAFETY: `from` was checked when this was called, and is still there; locked memory lives as long as the device.
                unsafe { ptr::copy_nonoverlapping(from as *const u8, through as *mut u8, bytes) };
            }
            Call::Launch { kernel, grid, parameters } => launch(&kernel, grid, self.order, &parameters)?,
            // SAFETY: checked when this was called; memory is freed on the same stream.
            Call::Product { addresses, product } => unsafe { product::compute(addresses, &product) },
            Call::Free(address) => self.free(address),
            Call::Mark(mark, set) => self.marks.reached[mark] = set,
            Call::Wait(mark, set) => self.reach(mark, set)?,
        }
        Ok(())
    }

    /// Fails if the buffer with this address is gone.
    fn there(&self, address: u64) -> Result<(), DeviceError> {
        let within = |(start, buffer): (&u64, &Buffer)| address - start <= buffer.bytes as u64;
        let there = self.buffers.range(..=address).next_back().is_some_and(within);
        if there { Ok(()) } else { Err(failed("copy", "the memory was freed before this was done")) }
    }

    fn free(&mut self, address: u64) {
        let Some(buffer) = self.buffers.remove(&address) else { return };
        // A second panic would end the process without the words of the first.
        if !std::thread::panicking() {
            assert!(buffer.intact(), "something was written next to a buffer of {} bytes", buffer.bytes);
        }
    }
}

fn launch(kernel: &CStr, grid: Grid, order: u32, parameters: &[Parameter]) -> Result<(), DeviceError> {
    let mut pointers: Vec<*mut c_void> =
        parameters.iter().map(|parameter| parameter.as_ptr().cast_mut().cast()).collect();
    let blocks = grid.blocks.as_ptr();
    // SAFETY: the parameters are the kernel's, as the caller of `Driver::launch` said, and are only read; they, the name and the
    // grid live until it returns.
    let fault = unsafe {
        imp_emulated_launch(kernel.as_ptr(), blocks, grid.threads, grid.shared, order, pointers.as_mut_ptr())
    };
    if fault.is_null() {
        return Ok(());
    }
    // SAFETY: a constant of the emulation.
    Err(failed(&kernel.to_string_lossy(), &unsafe { CStr::from_ptr(fault) }.to_string_lossy()))
}
