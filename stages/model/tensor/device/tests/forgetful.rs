//! An emulated device that forgets some calls: what depends on them must be missed.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::tensor::device::{
    DeviceError,
    driver::{Call, Driver, Grid, Parameter, Product, Stream},
    emulated::Emulated,
};

/// A call that a driver forgets.
#[derive(Clone, Copy)]
pub(super) enum Forgets {
    Nothing,
    /// The wait of a stream for a mark.
    Wait(Stream),
    /// The host's waits for some of the marks.
    HostWait(fn(usize) -> bool),
    /// The marks of a stream.
    Mark(Stream),
    /// That memory is taken on the stream for uploads.
    Taking,
    /// That there is locked memory.
    Locked,
    /// What it fetches from other devices.
    Fetching,
    /// What it computes on the stream for exchanges.
    Exchanging,
    /// That it may fetch at all.
    Permission,
    /// How to mark the stream for exchanges: it fails.
    Marking,
    /// How to keep calls: it fails.
    Keeping,
}

/// An emulated device that forgets some calls.
pub(super) struct Forgetful {
    pub(super) device: Emulated,
    will_forget: Forgets,
    /// Until then it forgets nothing.
    begins: Arc<AtomicBool>,
    pub(super) waits_of_host: AtomicUsize,
}

impl Forgetful {
    pub(super) fn new(order: u32, forgets: Forgets) -> Self {
        Self::later(order, forgets, Arc::new(AtomicBool::new(true)))
    }

    /// One that forgets once `begins` is true.
    pub(super) fn later(order: u32, forgets: Forgets, begins: Arc<AtomicBool>) -> Self {
        Self { device: Emulated::new(order), will_forget: forgets, begins, waits_of_host: AtomicUsize::new(0) }
    }

    fn forgets(&self) -> Forgets {
        if self.begins.load(Ordering::Relaxed) { self.will_forget } else { Forgets::Nothing }
    }
}

#[allow(unsafe_code)]
impl Driver for Forgetful {
    fn alloc(&self, stream: Stream, bytes: usize) -> Result<u64, DeviceError> {
        self.device.alloc(if matches!(self.forgets(), Forgets::Taking) { Stream::Compute } else { stream }, bytes)
    }

    fn free(&self, address: u64, bytes: usize) {
        self.device.free(address, bytes);
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.device.upload(to, from)
    }

    fn lock(&self, bytes: usize) -> Option<u64> {
        if matches!(self.forgets(), Forgets::Locked) { None } else { self.device.lock(bytes) }
    }

    unsafe fn upload_through(&self, stream: Stream, to: u64, through: u64, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.device.upload_through(stream, to, through, from) }
    }

    fn mark(&self, stream: Stream, mark: usize) -> Result<(), DeviceError> {
        if stream == Stream::Exchange && matches!(self.forgets(), Forgets::Marking) {
            return Err(DeviceError::Failed { call: "mark".into(), reason: "it fell off the bus".into() });
        }
        let forgotten = matches!(self.forgets(), Forgets::Mark(of) if of == stream);
        if forgotten { Ok(()) } else { self.device.mark(stream, mark) }
    }

    fn wait(&self, waiting: Option<Stream>, mark: usize) -> Result<(), DeviceError> {
        let forgotten = match (self.forgets(), waiting) {
            (Forgets::Wait(stream), Some(waiting)) => stream == waiting,
            (Forgets::HostWait(of), None) => of(mark),
            _ => false,
        };
        self.waits_of_host.fetch_add(usize::from(waiting.is_none()), Ordering::Relaxed);
        if forgotten { Ok(()) } else { self.device.wait(waiting, mark) }
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<(), DeviceError> {
        self.device.download(from, to)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        self.device.copy(to, from, bytes)
    }

    unsafe fn download_through(&self, through: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.device.download_through(through, from, bytes) }
    }

    fn number(&self) -> i32 {
        self.device.number()
    }

    fn let_in(&self, number: i32) -> Result<bool, DeviceError> {
        self.device.let_in(number)
    }

    unsafe fn fetch(&self, to: u64, from: u64, bytes: usize) -> Result<(), DeviceError> {
        match self.forgets() {
            Forgets::Fetching => Ok(()),
            Forgets::Permission => Err(DeviceError::Failed { call: "fetch".into(), reason: "not permitted".into() }),
            // SAFETY: as the caller says.
            _ => unsafe { self.device.fetch(to, from, bytes) },
        }
    }

    unsafe fn launch(
        &self,
        stream: Stream,
        kernel: &str,
        grid: Grid,
        parameters: &[Parameter],
    ) -> Result<(), DeviceError> {
        if stream == Stream::Exchange && matches!(self.forgets(), Forgets::Exchanging) {
            return Ok(());
        }
        // SAFETY: as the caller says.
        unsafe { self.device.launch(stream, kernel, grid, parameters) }
    }

    unsafe fn product(&self, a: u64, b: u64, d: u64, product: &Product) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.device.product(a, b, d, product) }
    }

    unsafe fn keep(&self, calls: &[Call]) -> Result<(), DeviceError> {
        if matches!(self.forgets(), Forgets::Keeping) {
            return Err(DeviceError::Failed { call: "keep".into(), reason: "it has no graphs".into() });
        }
        // SAFETY: as the caller says.
        unsafe { self.device.keep(calls) }
    }

    unsafe fn repeat(&self) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.device.repeat() }
    }
}
