//! Calls that are made as one: a CUDA graph, captured from a stream of its own on which nothing else is called.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use cudarc::driver::{
    result,
    sys::{self, CUgraphInstantiate_flags as Flags, CUstreamCaptureMode as Mode},
};

use super::{Cuda, DeviceError, failed, lock, memory::refused, start};
use crate::tensor::device::driver::{Call, Stream};

/// A graph that can be launched, or null. NVIDIA wants one thread at a time to use it.
pub(super) struct Graph(sys::CUgraphExec);

// SAFETY: the driver's handles can be used by any thread that has bound the context.
unsafe impl Send for Graph {}

impl Default for Graph {
    fn default() -> Self {
        Self(null_mut())
    }
}

impl Graph {
    /// Gives it back, in its context. It must not be running.
    pub(super) fn destroy(&mut self) {
        let graph = std::mem::take(self).0;
        if !graph.is_null() {
            // SAFETY: made in `keep`, and not used after this.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }
}

impl Cuda {
    /// [`crate::tensor::device::driver::Driver::keep`].
    ///
    /// # Safety
    /// As for the calls, each time when they are made.
    pub(super) unsafe fn capture(&self, calls: &[Call]) -> Result<(), DeviceError> {
        let mut graph = lock(&self.graph);
        if !graph.0.is_null() {
            self.call("graph", || self.finish(Stream::Compute))?;
            graph.destroy();
        }
        if calls.is_empty() {
            return Ok(());
        }
        // Other threads may go on meanwhile: nothing that they call is on this stream.
        // SAFETY: the stream of `start`.
        self.call("capture", || unsafe {
            result::stream::begin_capture(self.capturing, Mode::CU_STREAM_CAPTURE_MODE_RELAXED)
        })?;
        // SAFETY: as the caller says.
        let called = calls.iter().try_for_each(|call| unsafe { self.call_on(self.capturing, call) });
        // The capture ends in any case.
        // SAFETY: the stream of `start`.
        let captured = unsafe { result::stream::end_capture(self.capturing) };
        let launchable = called.and_then(|()| {
            let captured = captured.map_err(|error| failed("capture", &error))?;
            // SAFETY: the graph of this capture.
            self.with_memory("instantiate", 0, || unsafe { result::graph::instantiate(captured, Flags(0)) })
        });
        if let Ok(captured) = captured {
            // SAFETY: as above. It is not needed any more.
            let _ = unsafe { result::graph::destroy(captured) };
        }
        *graph = Graph(launchable?);
        Ok(())
    }

    /// Makes a call on a stream.
    unsafe fn call_on(&self, stream: sys::CUstream, call: &Call) -> Result<(), DeviceError> {
        let name = || call.name();
        match call {
            Call::Launch { kernel, grid, parameters } => {
                let function = self.function(kernel, *grid)?;
                // SAFETY: as the caller says.
                unsafe { start(function, *grid, parameters, stream) }.map_err(|error| refused(&name(), 0, &error))
            }
            Call::Product { of, product } => {
                let mut products = lock(&self.products);
                let products = products.as_mut().ok_or_else(|| failed(&name(), &"the device is closed"))?;
                // SAFETY: as the caller says; the context is bound.
                unsafe { products.start(stream, *of, product) }.map_err(|error| refused(&name(), 0, &error))
            }
        }
    }

    /// [`crate::tensor::device::driver::Driver::repeat`].
    ///
    /// # Safety
    /// As for the calls.
    pub(super) unsafe fn launch_graph(&self) -> Result<(), DeviceError> {
        let graph = lock(&self.graph);
        if graph.0.is_null() {
            return Err(failed("graph", &"no calls are kept"));
        }
        self.bind().map_err(|error| failed("graph", &error))?;
        // SAFETY: a graph of `capture`; the caller vouches for its calls.
        self.with_memory("graph", 0, || unsafe { result::graph::launch(graph.0, self.stream(Stream::Compute)) })
    }
}
