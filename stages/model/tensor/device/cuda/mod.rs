//! A GPU through CUDA. Builds and starts without CUDA: its libraries are loaded when a device is opened.
#![allow(unsafe_code)]

mod graph;
mod library;
mod memory;
mod module;
mod probe;
mod product;

use std::{
    ffi::c_void,
    fmt::Display,
    ptr::null_mut,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cudarc::driver::{
    result::{self, DriverError},
    sys,
};

#[cfg(all(test, feature = "emulated"))]
pub(super) use module::KERNELS;
use module::Module;
pub use probe::{Card, Probe};
pub(super) use probe::{free_bytes, probe};
#[cfg(all(test, feature = "emulated"))]
pub(super) use product::ColumnMajor;
use product::{Products, WORKSPACE};

use super::{
    driver::{Call, Driver, Grid, MARKS, Parameter, Product, STREAMS, Stream},
    error::DeviceError,
};

/// A GPU.
///
/// Memory is taken and given back in the order of a stream (NVIDIA's "stream-ordered memory allocator"): memory that was freed on
/// one stream is given out on another only when the free is done, or with a wait for it that the driver inserts. So an
/// address that is new on a stream is not in use by what was called before, whichever stream that was on. What the driver does
/// not know is what another stream will do with it: that has to wait for a mark, which the callers of [`Driver`] see to.
pub(in crate::tensor) struct Cuda {
    /// `None` before `start` and while it is dropped.
    module: Option<Module>,
    /// `None` only while it is dropped.
    products: Mutex<Option<Products>>,
    workspace: u64,
    pool: sys::CUmemoryPool,
    /// By [`Stream`].
    streams: [sys::CUstream; STREAMS.len()],
    /// On which calls are only captured.
    capturing: sys::CUstream,
    graph: Mutex<graph::Graph>,
    /// The marks; null before `start`.
    events: [sys::CUevent; MARKS],
    /// Locked host memory.
    locked: Mutex<Vec<u64>>,
    context: sys::CUcontext,
    device: sys::CUdevice,
}

// SAFETY: the driver's handles can be used by any thread that has bound the context, which every call does.
unsafe impl Send for Cuda {}
// SAFETY: the driver's functions can be called by several threads at once; what can't is behind a mutex.
unsafe impl Sync for Cuda {}

fn failed(call: &str, reason: &impl Display) -> DeviceError {
    DeviceError::Failed { call: call.into(), reason: reason.to_string() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cuda {
    /// Opens the GPU with the given number.
    pub(in crate::tensor) fn open(index: usize) -> Result<Self, DeviceError> {
        library::driver().and(library::cublas()).map_err(DeviceError::Unavailable)?;
        let unavailable = |error: DriverError| DeviceError::Unavailable(format!("GPU {index} does not start: {error}"));
        let count = usize::try_from(result::device::get_count().map_err(unavailable)?).unwrap_or(0);
        if index >= count {
            return Err(DeviceError::Unavailable(format!("there is no GPU {index}: the driver knows {count}")));
        }
        let device = result::device::get(index as i32).map_err(unavailable)?;
        probe::usable(device)
            .map_err(|reason| DeviceError::Unavailable(format!("GPU {index} can't be used: {reason}")))?;
        // SAFETY: a device of the driver; the context is released when `cuda` is dropped.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(unavailable)?;
        let mut cuda = Self {
            module: None,
            products: Mutex::default(),
            workspace: 0,
            pool: null_mut(),
            streams: [null_mut(); STREAMS.len()],
            capturing: null_mut(),
            graph: Mutex::default(),
            events: [null_mut(); MARKS],
            locked: Mutex::default(),
            context,
            device,
        };
        cuda.start().map_err(unavailable)?;
        let module = Module::load();
        cuda.module =
            Some(module.map_err(|why| DeviceError::Unavailable(format!("GPU {index} can't be used: {why}")))?);
        cuda.workspace = cuda.alloc(Stream::Compute, WORKSPACE)?;
        let products = Products::new(cuda.workspace).map_err(|error| {
            let [cublas, driver] = [library::cublas(), library::driver()].map(Result::unwrap_or_default);
            DeviceError::Unavailable(format!("cuBLAS {cublas} does not start, with a driver for {driver}: {error}"))
        })?;
        *lock(&cuda.products) = Some(products);
        Ok(cuda)
    }

    /// Bytes of its memory.
    pub(in crate::tensor) fn total_bytes(&self) -> Result<u64, DeviceError> {
        // SAFETY: a device of the driver.
        unsafe { result::device::total_mem(self.device) }
            .map(|bytes| bytes as u64)
            .map_err(|error| failed("total_mem", &error))
    }

    /// Makes streams and marks, and sets up the memory pool.
    fn start(&mut self) -> Result<(), DriverError> {
        self.bind()?;
        for stream in self.streams.iter_mut().chain([&mut self.capturing]) {
            *stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        }
        for event in &mut self.events {
            *event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
        }
        let release = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        let mut keep = u64::MAX;
        // SAFETY: a device of the driver; the attribute is a number of 64 bits.
        unsafe {
            self.pool = result::device::get_default_mem_pool(self.device)?;
            // Else memory goes back to the system whenever something is waited for.
            result::mem_pool::set_attribute(self.pool, release, (&raw mut keep).cast())
        }
    }

    /// The context belongs to a thread.
    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: it is released only when `self` is dropped.
        unsafe { result::ctx::set_current(self.context) }
    }

    fn call(&self, name: &str, call: impl FnOnce() -> Result<(), DriverError>) -> Result<(), DeviceError> {
        self.bind().and_then(|()| call()).map_err(|error| failed(name, &error))
    }

    fn stream(&self, of: Stream) -> sys::CUstream {
        self.streams[of as usize]
    }

    /// A kernel that may have the shared memory of `grid`.
    fn function(&self, kernel: &str, grid: Grid) -> Result<sys::CUfunction, DeviceError> {
        let Some(module) = &self.module else { return Err(failed(kernel, &"the device is closed")) };
        module.function(kernel, grid.shared).map_err(|error| failed(kernel, &error))
    }

    /// Waits for all streams.
    fn finish_all(&self) -> Result<(), DriverError> {
        STREAMS.into_iter().try_for_each(|stream| self.finish(stream))
    }

    /// Waits for a stream.
    fn finish(&self, stream: Stream) -> Result<(), DriverError> {
        // SAFETY: a stream of `start`.
        unsafe { result::stream::synchronize(self.stream(stream)) }
    }
}

/// Starts a kernel.
///
/// # Safety
/// As for [`Driver::launch`]. The context of the stream must be the thread's.
unsafe fn start(
    function: sys::CUfunction,
    grid: Grid,
    parameters: &[Parameter],
    stream: sys::CUstream,
) -> Result<(), DriverError> {
    let [x, y, z] = grid.blocks;
    // The driver copies what they point at.
    let pointer = |parameter: &Parameter| parameter.as_ptr().cast_mut().cast::<c_void>();
    let mut pointers: Vec<*mut c_void> = parameters.iter().map(pointer).collect();
    // SAFETY: the parameters are the kernel's, as the caller says, and live until this returns.
    unsafe { result::launch_kernel(function, (x, y, z), (grid.threads, 1, 1), grid.shared, stream, &mut pointers) }
}

impl Driver for Cuda {
    fn alloc(&self, stream: Stream, bytes: usize) -> Result<u64, DeviceError> {
        self.bind().map_err(|error| failed("alloc", &error))?;
        // SAFETY: a stream of `start`.
        let take = || unsafe { result::malloc_async(self.stream(stream), bytes.max(1)) };
        self.with_memory("alloc", bytes, take)
    }

    fn free(&self, address: u64, _bytes: usize) {
        // SAFETY: an address of `alloc`. After a failed kernel the driver refuses, and all memory is lost anyway.
        let _ = self.call("free", || unsafe { result::free_async(address, self.stream(Stream::Compute)) });
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        if from.is_empty() {
            return Ok(());
        }
        self.call("upload", || {
            // SAFETY: `to` has as many bytes, and `from` is not touched before the wait. That ordinary memory is copied to a buffer of the
            // driver before this returns, NVIDIA says only of copies that are not asynchronous.
            unsafe { result::memcpy_htod_async(to, from, self.stream(Stream::Compute)) }?;
            self.finish(Stream::Compute)
        })
    }

    fn lock(&self, bytes: usize) -> Option<u64> {
        self.bind().ok()?;
        // SAFETY: freed when `self` is dropped.
        let address = unsafe { result::malloc_host(bytes, 0) }.ok()? as u64;
        lock(&self.locked).push(address);
        Some(address)
    }

    unsafe fn upload_through(&self, stream: Stream, to: u64, through: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.call("upload", || {
            let through = through as *mut u8;
            // SAFETY: `through` is locked memory with as many bytes, as the caller says, which nothing else reads or writes now.
            // The slice has no other use than to name these bytes. `to` has as many bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr(), through, from.len());
                let locked = std::slice::from_raw_parts(through, from.len());
                result::memcpy_htod_async(to, locked, self.stream(stream))
            }
        })
    }

    fn mark(&self, stream: Stream, mark: usize) -> Result<(), DeviceError> {
        // SAFETY: an event and a stream of `start`.
        self.call("mark", || unsafe { result::event::record(self.events[mark], self.stream(stream)) })
    }

    fn wait(&self, waiting: Option<Stream>, mark: usize) -> Result<(), DeviceError> {
        let event = self.events[mark];
        // SAFETY: an event and a stream of `start`. An event that was never recorded is not waited for.
        self.call("wait", || unsafe {
            match waiting {
                None => sys::cuEventSynchronize(event).result(),
                Some(stream) => {
                    let plain = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
                    result::stream::wait_event(self.stream(stream), event, plain)
                }
            }
        })
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.call("download", || {
            if !to.is_empty() {
                // SAFETY: `from` has as many bytes, and `to` is not touched before the wait below.
                unsafe { result::memcpy_dtoh_async(to, from, self.stream(Stream::Compute)) }?;
            }
            self.finish(Stream::Compute)
        })
    }

    unsafe fn download_through(&self, through: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.call("download", || {
            // SAFETY: locked memory with as many bytes, as the caller says, which nothing else reads or writes now. The slice has no
            // other use than to name these bytes.
            let locked = unsafe { std::slice::from_raw_parts_mut(through as *mut u8, bytes) };
            // SAFETY: `from` has as many bytes, and the caller does not touch `through` before it has waited.
            unsafe { result::memcpy_dtoh_async(locked, from, self.stream(Stream::Exchange)) }
        })
    }

    fn number(&self) -> i32 {
        self.device
    }

    fn let_in(&self, number: i32) -> Result<bool, DeviceError> {
        let mut reaches = 0;
        let location = sys::CUmemLocation { type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: number };
        let access =
            sys::CUmemAccessDesc { location, flags: sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        self.call("let_in", || {
            // SAFETY: two devices of the driver; one number is written.
            unsafe { sys::cuDeviceCanAccessPeer(&raw mut reaches, number, self.device) }.result()?;
            if reaches == 0 {
                return Ok(());
            }
            // SAFETY: the pool of `start`, and one description.
            unsafe { sys::cuMemPoolSetAccess(self.pool, &raw const access, 1) }.result()
        })?;
        Ok(reaches != 0)
    }

    unsafe fn fetch(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: `to` has as many bytes, and so has `from`, on a device that has let this one in: addresses are unified.
        self.call("fetch", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream(Stream::Exchange)) })
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: both places have as many bytes.
        self.call("copy", || unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream(Stream::Compute)) })
    }

    unsafe fn launch(
        &self,
        stream: Stream,
        kernel: &str,
        grid: Grid,
        parameters: &[Parameter],
    ) -> Result<(), DeviceError> {
        self.bind().map_err(|error| failed(kernel, &error))?;
        let (function, stream) = (self.function(kernel, grid)?, self.stream(stream));
        // SAFETY: as the caller says.
        self.with_memory(kernel, 0, || unsafe { start(function, grid, parameters, stream) })
    }

    unsafe fn product(&self, a: u64, b: u64, d: u64, product: &Product) -> Result<(), DeviceError> {
        let Product { m, n, k, .. } = *product;
        if m == 0 || n == 0 {
            return Ok(());
        }
        let name = || format!("a product of [{m}, {k}] by [{k}, {n}]");
        if k == 0 {
            return Err(failed(&name(), &"cuBLASLt takes no empty operands"));
        }
        self.bind().map_err(|error| failed(&name(), &error))?;
        let mut products = lock(&self.products);
        let Some(products) = products.as_mut() else { return Err(failed(&name(), &"the device is closed")) };
        // SAFETY: as the caller says; the context is bound.
        self.with_memory(&name(), 0, || unsafe { products.start(self.stream(Stream::Compute), [a, b, d], product) })
    }

    unsafe fn keep(&self, calls: &[Call]) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.capture(calls) }
    }

    unsafe fn repeat(&self) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.launch_graph() }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // What does not exist (yet) is null. Nothing can be done about errors.
        let _ = self.bind();
        if !self.streams.contains(&null_mut()) {
            let _ = self.finish_all();
        }
        lock(&self.graph).destroy();
        *lock(&self.products) = None;
        if self.workspace != 0 {
            self.free(self.workspace, WORKSPACE);
        }
        if let Some(module) = self.module.take() {
            module.unload();
        }
        if !self.pool.is_null() {
            // cuBLASLt may keep the context, and the pool all that was ever in use.
            let _ = self.give_back();
        }
        // SAFETY: made in `open` and `start`; nothing uses them after this.
        unsafe {
            for event in self.events.into_iter().filter(|event| !event.is_null()) {
                let _ = result::event::destroy(event);
            }
            for stream in self.streams.into_iter().chain([self.capturing]).filter(|stream| !stream.is_null()) {
                let _ = result::stream::destroy(stream);
            }
            for address in lock(&self.locked).drain(..) {
                let _ = result::free_host(address as *mut c_void);
            }
            let _ = result::ctx::set_current(null_mut());
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_cuda_says_what_is_missing() {
        let probe = probe();
        assert!(probe.driver.is_ok() || probe.cards.is_empty());
        if probe.cards.is_empty() || probe.cublaslt.is_err() {
            assert!(matches!(Cuda::open(0), Err(DeviceError::Unavailable(_))));
        }
    }
}
