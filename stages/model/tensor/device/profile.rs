//! How long each kernel, product and copy takes, for benchmarks. Off unless one asks: then a call costs nothing more. While
//! it is on, the device is waited for before and after each call, so a step takes longer than the sum of its calls, and the
//! time of a short call is mostly that of starting it and waiting for it. Independent of which device it is.
//!
//! Always on: how often the host waits for the device, and how long.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Device, DeviceError, driver::Driver};

/// The calls of one name, once the profile is on.
pub(super) type Profile = OnceLock<Mutex<BTreeMap<String, (u64, Duration)>>>;

/// The time of all calls of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    /// The kernel, or the product with its shape.
    pub name: String,
    /// Number of calls.
    pub calls: u64,
    /// Time of all calls, with that of starting them and waiting for them.
    pub time: Duration,
}

/// How often the host waited for a device, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// Number of results that were read.
    pub count: u64,
    /// Time from the asking for a result until it is there: what was called before was not yet done.
    pub time: Duration,
}

#[derive(Default)]
pub(super) struct WaitCounter {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Device {
    /// How often and how long the host has waited for results since the device was opened.
    pub fn waits(&self) -> Waits {
        let WaitCounter { count, nanoseconds } = &self.0.waits;
        let time = Duration::from_nanos(nanoseconds.load(Ordering::Relaxed));
        Waits { count: count.load(Ordering::Relaxed), time }
    }

    /// Makes a call that waits for the device.
    pub(super) fn waiting<T>(&self, call: impl FnOnce(&dyn Driver) -> T) -> T {
        let driver = self.driver();
        let began = Instant::now();
        let result = call(driver);
        let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.0.waits.count.fetch_add(1, Ordering::Relaxed);
        self.0.waits.nanoseconds.fetch_add(took, Ordering::Relaxed);
        result
    }

    /// Times all calls from now on. It can't be turned off.
    pub fn profile(&self) {
        self.0.profile.get_or_init(Mutex::default);
    }

    /// Whether all calls are timed.
    pub(super) fn is_profiled(&self) -> bool {
        self.0.profile.get().is_some()
    }

    /// The calls since the last time that this was asked, the longest first. Empty unless [`Device::profile`] was called.
    pub fn spent(&self) -> Vec<Spent> {
        let Some(profile) = self.0.profile.get() else { return Vec::new() };
        let calls = std::mem::take(&mut *profile.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all: Vec<Spent> = calls.into_iter().map(|(name, (calls, time))| Spent { name, calls, time }).collect();
        all.sort_by_key(|entry| std::cmp::Reverse(entry.time));
        all
    }

    /// Makes a call, and times it if the profile is on.
    pub(super) fn timed(
        &self,
        name: impl FnOnce() -> String,
        call: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let Some(profile) = self.0.profile.get() else { return call() };
        self.wait()?;
        let began = Instant::now();
        call()?;
        self.wait()?;
        let time = began.elapsed();
        let mut calls = profile.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, sum) = calls.entry(name()).or_default();
        *count += 1;
        *sum += time;
        Ok(())
    }

    /// Waits until all calls are done.
    fn wait(&self) -> Result<(), DeviceError> {
        // A download waits, also one of nothing.
        self.driver().download(0, &mut [])
    }
}

#[cfg(all(test, feature = "emulated"))]
mod tests {
    use super::*;
    use crate::tensor::device::{DeviceMat, Type};

    #[test]
    fn calls_are_counted_by_name_once_one_asks() {
        let device = Device::emulated(0, u64::MAX);
        DeviceMat::zeros(&device, 2, 3, Type::F32);
        assert!(device.spent().is_empty());
        device.profile();
        for _ in 0..3 {
            DeviceMat::zeros(&device, 2, 3, Type::F32);
        }
        DeviceMat::from_host(&device, 1, 1, Type::F32, &[1.0]);
        let mut calls: Vec<_> = device.spent().into_iter().map(|spent| (spent.name, spent.calls)).collect();
        calls.sort();
        assert_eq!(calls, [("fill_zero".to_string(), 3), ("upload".to_string(), 1)]);
        assert!(device.spent().is_empty(), "they are told once");
    }
}
