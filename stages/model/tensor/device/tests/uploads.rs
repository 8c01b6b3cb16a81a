//! Uploads beside what is computed: what arrives, and that every wait is needed.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Memory, ORDERS, launch};
use crate::tensor::device::{
    DeviceError,
    driver::{Driver, Grid, Parameter, Product, Stream},
    emulated::Emulated,
    uploads::{Sizes, Uploads},
};

const SIZES: Sizes = Sizes { slot: 64, beside: 32 };

/// A call that a driver forgets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Forgets {
    Nothing,
    /// The wait of a stream for a mark.
    Wait(Stream),
    /// The host's waits for marks that are set on a stream.
    HostWait(Stream),
    /// The marks of a stream.
    Mark(Stream),
    /// That memory is taken on the stream for uploads.
    Taking,
    /// That there is locked memory.
    Locked,
}

/// An emulated device that forgets some calls.
struct Forgetful {
    device: Emulated,
    forgets: Forgets,
    waits_of_host: AtomicUsize,
}

impl Forgetful {
    fn new(order: u32, forgets: Forgets) -> Self {
        Self { device: Emulated::new(order), forgets, waits_of_host: AtomicUsize::new(0) }
    }
}

#[allow(unsafe_code)]
impl Driver for Forgetful {
    fn alloc(&self, stream: Stream, bytes: usize) -> Result<u64, DeviceError> {
        self.device.alloc(if self.forgets == Forgets::Taking { Stream::Compute } else { stream }, bytes)
    }

    fn free(&self, address: u64, bytes: usize) {
        self.device.free(address, bytes);
    }

    fn upload(&self, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.device.upload(to, from)
    }

    fn lock(&self, bytes: usize) -> Option<u64> {
        if self.forgets == Forgets::Locked { None } else { self.device.lock(bytes) }
    }

    unsafe fn upload_through(&self, stream: Stream, to: u64, through: u64, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.device.upload_through(stream, to, through, from) }
    }

    fn mark(&self, stream: Stream, mark: usize) -> Result<(), DeviceError> {
        if self.forgets == Forgets::Mark(stream) { Ok(()) } else { self.device.mark(stream, mark) }
    }

    fn wait(&self, waiting: Option<Stream>, mark: usize) -> Result<(), DeviceError> {
        let forgotten = match (self.forgets, waiting) {
            (Forgets::Wait(stream), Some(waiting)) => stream == waiting,
            // The marks of the slots, in pairs.
            (Forgets::HostWait(stream), None) => mark % 2 == stream as usize,
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

    unsafe fn launch(&self, kernel: &str, grid: Grid, parameters: &[Parameter]) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.device.launch(kernel, grid, parameters) }
    }

    unsafe fn product(&self, a: u64, b: u64, d: u64, product: &Product) -> Result<(), DeviceError> {
        // SAFETY: as the caller says.
        unsafe { self.device.product(a, b, d, product) }
    }
}

/// New memory with this content.
fn new<'a>(uploads: &Uploads, driver: &'a Forgetful, content: &[u8]) -> Memory<'a> {
    let stream = uploads.stream_for(driver, content.len());
    let memory = Memory { device: driver, address: driver.alloc(stream, content.len()).unwrap(), bytes: content.len() };
    uploads.fill(driver, stream, memory.address, content).unwrap();
    memory
}

/// Copies of uploads of many sizes, more than the ring holds, as they are read at the end.
fn copies(driver: &Forgetful) -> Vec<(Vec<u8>, Vec<u8>)> {
    let uploads = Uploads::new(SIZES);
    let changed = Memory::new(driver, 40);
    let all: Vec<(Vec<u8>, Memory<'_>)> = (0..24_u8)
        .flat_map(|number| {
            // Below and above the size from which they are beside the others; some longer than a slot.
            let content = vec![number + 1; [8, 48, 31, 200, 32, 4][usize::from(number) % 6]];
            let uploaded = new(&uploads, driver, &content);
            let copy = Memory::new(driver, content.len());
            driver.copy(copy.address, uploaded.address, content.len()).unwrap();
            // In order: the copy has what was there then.
            let content_of_changed = vec![100 + number; 40];
            uploads.overwrite(driver, changed.address, &content_of_changed).unwrap();
            let changed_copy = Memory::new(driver, 40);
            driver.copy(changed_copy.address, changed.address, 40).unwrap();
            // What is computed in place of an upload is not overwritten by it later.
            launch(
                driver,
                "fill_zero",
                Grid { blocks: [1, 1, 1], threads: 32, shared: 0 },
                &[uploaded.address.to_ne_bytes().to_vec(), 1_i64.to_ne_bytes().to_vec()],
            );
            let mut zeroed = content.clone();
            zeroed[..4].fill(0);
            [(content, copy), (content_of_changed, changed_copy), (zeroed, uploaded)]
        })
        .collect();
    all.into_iter().map(|(content, memory)| (content, memory.bytes())).collect()
}

fn arrives(driver: &Forgetful) -> bool {
    copies(driver).iter().all(|(content, read)| content == read)
}

#[test]
fn uploads_arrive_in_every_order_of_the_streams() {
    for order in ORDERS {
        let driver = Forgetful::new(order, Forgets::Nothing);
        for (content, read) in copies(&driver) {
            assert_eq!(content, read, "order {order}");
        }
        assert_eq!(driver.device.live(), 0);
        assert!(driver.waits_of_host.load(Ordering::Relaxed) > 0, "the ring was full");
    }
}

/// Each forgotten call is noticed in some order of the streams; else the wait would be of no use, or the emulation blind.
#[test]
fn a_wait_that_is_left_out_is_missed() {
    let forgotten = [
        Forgets::Wait(Stream::Compute),
        Forgets::HostWait(Stream::Compute),
        Forgets::HostWait(Stream::Upload),
        Forgets::Mark(Stream::Compute),
        Forgets::Mark(Stream::Upload),
        Forgets::Taking,
    ];
    for forgets in forgotten {
        let noticed = ORDERS.into_iter().filter(|order| {
            let driver = Forgetful::new(*order, forgets);
            // An upload to memory that was freed meanwhile ends in a panic.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| arrives(&driver)));
            std::mem::forget(driver);
            !outcome.unwrap_or(false)
        });
        assert_ne!(noticed.count(), 0, "{forgets:?}");
    }
}

#[test]
fn without_locked_memory_uploads_are_in_order() {
    for order in ORDERS {
        let driver = Forgetful::new(order, Forgets::Locked);
        assert_eq!(Uploads::new(SIZES).stream_for(&driver, 1000), Stream::Compute);
        assert!(arrives(&driver));
        assert_eq!(driver.waits_of_host.load(Ordering::Relaxed), 0);
    }
}

/// As long as the ring has room, an upload waits for nothing.
#[test]
fn the_host_waits_only_when_the_ring_is_full() {
    let driver = Forgetful::new(2, Forgets::Nothing);
    let uploads = Uploads::new(SIZES);
    let waits = || driver.waits_of_host.load(Ordering::Relaxed);
    let first: Vec<Memory<'_>> = (0..4).map(|number| new(&uploads, &driver, &[number; 64])).collect();
    assert_eq!(waits(), 0, "four slots");
    let one_more = new(&uploads, &driver, &[4; 16]);
    assert_eq!(waits(), 1);
    for (number, memory) in first.iter().chain([&one_more]).enumerate() {
        assert!(memory.bytes().iter().all(|byte| usize::from(*byte) == number));
    }
}
