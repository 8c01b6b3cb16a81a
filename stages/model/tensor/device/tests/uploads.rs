//! Uploads beside what is computed: what arrives, and that every wait is needed.

use std::sync::atomic::Ordering;

use super::{
    Memory, ORDERS,
    forgetful::{Forgetful, Forgets},
    launch,
};
use crate::tensor::device::{
    driver::{Driver, Grid, Stream},
    uploads::{Sizes, Uploads},
};

const SIZES: Sizes = Sizes { slot: 64, beside: 32 };

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
        // The marks of the slots, in pairs.
        Forgets::HostWait(|mark| mark % 2 == 0),
        Forgets::HostWait(|mark| mark % 2 == 1),
        Forgets::Mark(Stream::Compute),
        Forgets::Mark(Stream::Upload),
        Forgets::Taking,
    ];
    for (number, forgets) in forgotten.into_iter().enumerate() {
        let noticed = ORDERS.into_iter().filter(|order| {
            let driver = Forgetful::new(*order, forgets);
            // An upload to memory that was freed meanwhile ends in a panic.
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| arrives(&driver)));
            std::mem::forget(driver);
            !outcome.unwrap_or(false)
        });
        assert_ne!(noticed.count(), 0, "number {number}");
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
