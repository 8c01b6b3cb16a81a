//! What passes between devices, and to the host, beside what is computed: what arrives, and that every wait is needed.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    ORDERS,
    forgetful::{Forgetful, Forgets},
};
use crate::{
    precision::Precision,
    tensor::{
        Mat, Place, Transfer, Unconnected, accumulate, connect,
        device::{
            Device,
            driver::Stream,
            exchange::{COPIED, DONE, POINTS},
            launch::zero,
            rounds::Rounds,
            uploads::Sizes,
        },
    },
};

/// More than all slots hold.
const SHAPE: (usize, usize) = (130, 100);

/// Emulated devices with these orders.
fn devices(orders: [u32; 2], forgets: Forgets) -> [Place; 2] {
    devices_later(orders, forgets, true).0
}

/// The same, and what makes them forget.
fn devices_later(orders: [u32; 2], forgets: Forgets, begins: bool) -> ([Place; 2], Arc<AtomicBool>) {
    let begins = Arc::new(AtomicBool::new(begins));
    let place = |order| {
        let driver = Box::new(Forgetful::later(order, forgets, Arc::clone(&begins)));
        Place::device(Device::new(driver, u64::MAX, Sizes::EMULATED, Rounds::default()), Precision::F32)
    };
    (orders.map(place), begins)
}

fn values(seed: usize) -> Vec<f32> {
    (0..SHAPE.0 * SHAPE.1).map(|index| ((index * 37 + seed * 101) % 997) as f32).collect()
}

/// Twice the values, as the device has computed them.
fn doubled(place: &Place, seed: usize) -> Mat {
    let mat = Mat::from_host(SHAPE.0, SHAPE.1, values(seed)).to(place);
    let mut doubled = Mat::from_host(SHAPE.0, SHAPE.1, values(seed)).to(place);
    accumulate(&mut doubled, &mat);
    doubled
}

/// Overwrites a matrix, also for those who share its memory.
fn spoil(mat: &Mat) {
    if let Some(mat) = mat.device_mat() {
        zero(&mat.buffer, mat.count() * 4);
    }
}

/// Adds up parts on both devices and on the host, and passes the sum on as a weight. Whether all arrives.
fn arrives(places: &[Place; 2]) -> bool {
    let [first, second] = places;
    let (mut on_device, mut on_host) = (None, None);
    let mut parts = Vec::new();
    for (seed, place) in [first, second, first, first, second].into_iter().enumerate() {
        let part = doubled(place, seed);
        let mut transfer = Transfer::after(&place.point());
        transfer.add(&mut on_device, part.clone(), second);
        transfer.add(&mut on_host, part.clone(), &Place::default());
        transfer.finish().unwrap();
        // Nobody reads it any more.
        spoil(&part);
        parts.push(part);
    }
    let (sum, on_host) = (on_device.unwrap(), on_host.unwrap());
    let mut weight = doubled(first, 7);
    let mut before = doubled(first, 8);
    accumulate(&mut before, &weight);
    let mut transfer = Transfer::after(&first.point());
    transfer.replace(&mut weight, &sum);
    transfer.finish().unwrap();
    let read = sum.to_host().into_owned();
    spoil(&sum);
    let expected: Vec<f32> =
        (0..5).map(values).reduce(|sum, part| sum.iter().zip(part).map(|(a, b)| a + b).collect()).unwrap();
    let expected: Vec<f32> = expected.into_iter().map(|value| 2.0 * value).collect();
    let old: Vec<f32> = values(7).iter().zip(values(8)).map(|(a, b)| 2.0 * (a + b)).collect();
    [&read[..], &on_host.to_host(), &weight.to_host()].iter().all(|found| **found == expected)
        && *before.to_host() == old
}

fn pairs() -> impl Iterator<Item = [u32; 2]> {
    ORDERS.into_iter().flat_map(|first| ORDERS.map(|second| [first, second]))
}

#[test]
fn values_arrive_in_every_order_of_the_streams() {
    for orders in pairs() {
        let places = devices(orders, Forgets::Nothing);
        connect(&places).unwrap();
        assert!(arrives(&places), "{orders:?}");
        for place in places {
            assert_eq!(place.device.unwrap().live_bytes(), 0, "{orders:?}");
        }
    }
}

/// A device that loses what it reads, or adds, is found out; values then pass through the host.
#[test]
fn devices_that_do_not_read_each_other_are_noticed() {
    for (forgets, words) in [
        (Forgets::Fetching, "other bytes arrived than were sent"),
        (Forgets::Exchanging, "other bytes arrived than were sent"),
        (Forgets::Permission, "the GPU failed in fetch: not permitted"),
    ] {
        let [first, _] = devices([0, 2], Forgets::Nothing);
        let [_, second] = devices([0, 2], forgets);
        let found = connect(&[first.clone(), second.clone()]).unwrap_err();
        assert_eq!(found, Unconnected { reader: 1, read: 0, reason: words.into(), is_fatal: false });
        assert!(!second.device.as_ref().unwrap().reaches(first.device.as_ref().unwrap()));
    }
    assert!(arrives(&devices([0, 2], Forgets::Nothing)), "without being connected");
}

/// It is the device that writes which fails, and not the one whose thread notices it.
#[test]
fn a_device_that_fails_is_named() {
    let [first, _] = devices([0, 2], Forgets::Nothing);
    let ([_, second], begins) = devices_later([0, 2], Forgets::Marking, false);
    connect(&[first.clone(), second.clone()]).unwrap();
    begins.store(true, Ordering::Relaxed);
    let mut transfer = Transfer::after(&first.point());
    let mut sum = None;
    transfer.add(&mut sum, doubled(&first, 1), &second);
    let fault = transfer.finish().unwrap_err();
    assert_eq!(fault.place.device, second.device);
    assert!(fault.error.to_string().contains("it fell off the bus"), "{}", fault.error);
}

#[test]
fn without_locked_memory_values_arrive_too() {
    let places = devices([2, 2], Forgets::Locked);
    connect(&places).unwrap();
    assert!(arrives(&places));
}

/// Each forgotten call is noticed in some order of the streams; else the wait would be of no use, or the emulation blind.
#[test]
fn a_wait_that_is_left_out_is_missed() {
    let forgotten = [
        Forgets::Mark(Stream::Compute),
        Forgets::Mark(Stream::Exchange),
        Forgets::HostWait(|mark| POINTS.contains(&mark)),
        Forgets::HostWait(|mark| COPIED.contains(&mark)),
        Forgets::HostWait(|mark| mark == DONE),
        Forgets::Taking,
    ];
    for (number, forgets) in forgotten.into_iter().enumerate() {
        let noticed = pairs().filter(|orders| {
            let (places, begins) = devices_later(*orders, forgets, false);
            connect(&places).unwrap();
            begins.store(true, Ordering::Relaxed);
            // What is left undone when a device is closed would end the test.
            std::mem::forget(places.clone());
            !catch_unwind(AssertUnwindSafe(|| arrives(&places))).unwrap_or(false)
        });
        assert_ne!(noticed.count(), 0, "number {number}");
    }
}
