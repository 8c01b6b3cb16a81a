//! What passes between devices, and to the host, beside what is computed: what arrives, and that every wait is needed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{
    ORDERS,
    forgetful::{Forgetful, Forgets},
};
use crate::{
    precision::Precision,
    tensor::{
        Mat, Place, Transfer, accumulate, connect,
        device::{
            Device,
            driver::Stream,
            exchange::{COPIED, DONE, POINTS},
            launch::zero,
            uploads::Sizes,
        },
    },
};

/// More than all slots hold.
const SHAPE: (usize, usize) = (130, 100);

/// Emulated devices with these orders.
fn devices(orders: [u32; 2], forgets: Forgets) -> [Place; 2] {
    orders.map(|order| {
        let driver = Box::new(Forgetful::new(order, forgets));
        Place::device(Device::new(driver, u64::MAX, Sizes::EMULATED), Precision::F32)
    })
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
        drop(transfer);
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
    drop(transfer);
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

#[test]
fn without_locked_memory_values_arrive_too() {
    assert!(arrives(&devices([2, 2], Forgets::Locked)));
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
            let places = devices(*orders, forgets);
            // What is left undone when a device is closed would end the test.
            std::mem::forget(places.clone());
            !catch_unwind(AssertUnwindSafe(|| arrives(&places))).unwrap_or(false)
        });
        assert_ne!(noticed.count(), 0, "number {number}");
    }
}
