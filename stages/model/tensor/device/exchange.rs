//! What passes between devices, or from a device to the host, beside what is being computed. Independent of which devices they are.
//!
//! Who waits for whom:
//! - **What is read** was computed before a mark on its device's [`Stream::Compute`], for which the host has waited.
//! - **Memory that is read or written** stays until the host has waited for a mark after that on [`Stream::Exchange`] of the device
//!   that does it. Only then may others use it.
//! - **A slot of locked memory** is read by the host once it has waited for the mark after the copy to it, and is written again only
//!   after that.
//!
//! The users of [`Device`] don't see these rules: [`crate::tensor::Transfer`] keeps them.

use std::{
    collections::BTreeSet,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Buffer, Device, DeviceError, DeviceMat, Type,
    driver::{Driver, MARKS, Stream},
    launch::{Kernel, must},
    uploads,
};

/// Slots of locked memory: while one is read, the others are being filled.
const SLOTS: usize = 4;
/// The marks after the copies to the slots, and after everything on the stream.
pub(super) const COPIED: Range<usize> = uploads::FREE..uploads::FREE + SLOTS;
pub(super) const DONE: usize = COPIED.end;
/// The marks of points in what is computed, taken in turn. Who waits for one that was set again meanwhile, waits longer than it must.
pub(super) const POINTS: Range<usize> = DONE + 1..MARKS;

/// What a device needs to exchange values.
pub(super) struct Exchange {
    /// Bytes of a slot.
    slot: usize,
    /// Locked memory; `None` before it is needed, and without slots if none is to be had.
    slots: Mutex<Option<Vec<u64>>>,
    /// Points taken.
    points: AtomicUsize,
    settling: Mutex<()>,
    /// The numbers of the devices that are known to read this one's memory.
    readers: Mutex<BTreeSet<i32>>,
}

impl Exchange {
    pub(super) fn new(slot: usize) -> Self {
        Self {
            slot,
            slots: Mutex::default(),
            points: AtomicUsize::new(0),
            settling: Mutex::default(),
            readers: Mutex::default(),
        }
    }

    /// Copies bytes to the host, and gives it piece after piece, each with the place where it begins.
    fn download(
        &self,
        driver: &dyn Driver,
        from: u64,
        bytes: usize,
        mut give: impl FnMut(usize, &[u8]),
    ) -> Result<(), DeviceError> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = slots.get_or_insert_with(|| (0..SLOTS).map_while(|_| driver.lock(self.slot)).collect());
        let pieces: Vec<Range<usize>> =
            (0..bytes).step_by(self.slot).map(|start| start..bytes.min(start + self.slot)).collect();
        if slots.is_empty() {
            let mut piece = vec![0; self.slot.min(bytes)];
            return pieces.into_iter().try_for_each(|Range { start, end }| {
                driver.download(from + start as u64, &mut piece[..end - start])?;
                give(start, &piece[..end - start]);
                Ok(())
            });
        }
        let copy = |number: usize| {
            let Some(piece) = pieces.get(number) else { return Ok(()) };
            let slot = number % slots.len();
            // SAFETY: the slot is locked memory as long as the driver lives. It is not in use: see below.
            #[allow(unsafe_code)]
            unsafe { driver.download_through(slots[slot], from + piece.start as u64, piece.len()) }?;
            driver.mark(Stream::Exchange, COPIED.start + slot)
        };
        (0..slots.len()).try_for_each(copy)?;
        for (number, piece) in pieces.iter().enumerate() {
            let slot = number % slots.len();
            driver.wait(None, COPIED.start + slot)?;
            // SAFETY: the copy is done, and the next one to this slot is called after the piece was given.
            #[allow(unsafe_code)]
            give(piece.start, unsafe { std::slice::from_raw_parts(slots[slot] as *const u8, piece.len()) });
            copy(number + slots.len())?;
        }
        Ok(())
    }
}

impl Device {
    /// Marks the point that all that was computed so far comes before. Returns its number.
    pub(in crate::tensor) fn point(&self) -> usize {
        let number = self.0.exchange.points.fetch_add(1, Ordering::Relaxed);
        let mark = POINTS.start + number % POINTS.len();
        must(self.driver().mark(Stream::Compute, mark));
        mark
    }

    /// Waits until a point is reached.
    pub(in crate::tensor) fn reach(&self, point: usize) {
        must(self.waiting(|driver| driver.wait(None, point)));
    }

    /// Waits until all that it exchanges is done.
    pub(in crate::tensor) fn settle(&self) -> Result<(), DeviceError> {
        // By one at a time: the mark of another would be set while this one waits for it.
        let _alone = self.0.exchange.settling.lock().unwrap_or_else(PoisonError::into_inner);
        self.driver().mark(Stream::Exchange, DONE)?;
        self.driver().wait(None, DONE)
    }

    /// Lets another device use the memory of this one. False if it has no direct way to it.
    pub(in crate::tensor) fn let_in(&self, other: &Self) -> Result<bool, DeviceError> {
        self.driver().let_in(other.driver().number())
    }

    /// Whether another device, which this one has let in, copies and adds what this one has written; if so, it
    /// [reaches](Self::reaches) this one from now on. Some boards and drivers lose bytes on the way, without an error. `seed` makes
    /// the bytes unlike those of other trials, which may still lie about.
    pub(in crate::tensor) fn is_read_by(&self, other: &Self, seed: usize) -> Result<bool, DeviceError> {
        // Not a whole number of lines or pages.
        let count = self.0.exchange.slot / size_of::<f32>() - 3;
        let values =
            |seed: usize| -> Vec<f32> { (0..count).map(|index| ((index * 7 + seed) % 65_521) as f32).collect() };
        let (written, before) = (values(seed), values(seed + 1));
        let source = DeviceMat::from_host(self, 1, count, Type::F32, &written);
        let mut copy = DeviceMat::from_host(other, 1, count, Type::F32, &before);
        self.reach(self.point());
        other.reach(other.point());
        copy.fetch(&source);
        let fresh = source.fetched(other);
        other.settle()?;
        let (copied, fresh) = (copy.to_host(), fresh.to_host());
        copy.add_beside(&source);
        other.settle()?;
        let doubled = copy.to_host();
        let twice: Vec<f32> = written.iter().map(|value| 2.0 * value).collect();
        let is_right = [copied, fresh] == [&written[..], &written[..]] && doubled == twice;
        if is_right {
            self.0.exchange.readers.lock().unwrap_or_else(PoisonError::into_inner).insert(other.driver().number());
        }
        Ok(is_right)
    }

    /// Whether this device reads the memory of another.
    pub(in crate::tensor) fn reaches(&self, other: &Self) -> bool {
        let readers = other.0.exchange.readers.lock().unwrap_or_else(PoisonError::into_inner);
        self == other || readers.contains(&self.driver().number())
    }
}

/// What is called here is done when the device that does it is settled: see [`Device::settle`]. It must reach the other.
impl DeviceMat {
    /// A copy on another device, which this one's has let in.
    pub(in crate::tensor) fn fetched(&self, device: &Device) -> Self {
        let copy = Buffer::on(Stream::Exchange, device, self.bytes());
        let mut copy = Self::of_buffer(copy, self.rows, self.cols, self.kind);
        copy.fetch(self);
        copy
    }

    /// Whether it shares its memory with no other matrix.
    pub(in crate::tensor) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }

    /// Replaces all values by those of a matrix on another device. Does not change clones.
    pub(in crate::tensor) fn fetch(&mut self, from: &Self) {
        self.rounded = None;
        if !self.is_alone() {
            self.buffer = Arc::new(Buffer::on(Stream::Exchange, self.device(), self.bytes()));
        }
        assert_eq!((self.count(), self.kind), (from.count(), from.kind), "matrices of one shape");
        let (to, from, bytes) = (self.buffer.address(), from.buffer.address(), self.bytes());
        if bytes > 0 {
            // SAFETY: both are large enough. The users of this file see to the rest.
            #[allow(unsafe_code)]
            must(unsafe { self.device().driver().fetch(to, from, bytes) });
        }
    }

    /// Adds a matrix in f32, which may lie on another device, to this one.
    pub(in crate::tensor) fn add_beside(&self, from: &Self) {
        assert_eq!(
            (self.kind, from.kind, self.count()),
            (Type::F32, Type::F32, from.count()),
            "gradients of one shape"
        );
        let kernel = Kernel::of(self.device(), "accumulate", Type::F32).on(Stream::Exchange);
        kernel.at(&self.buffer).at(&from.buffer).value(1.0_f32).count(self.count()).by_elements(self.count());
    }

    /// Gives the values of a matrix in f32 to the host, piece after piece, each with the number of its first. This waits.
    pub(in crate::tensor) fn read_beside(&self, mut give: impl FnMut(usize, &[f32])) {
        assert_eq!(self.kind, Type::F32, "gradients");
        let (device, address) = (self.device(), self.buffer.address());
        must(device.waiting(|driver| {
            device.0.exchange.download(driver, address, self.bytes(), |start, piece| {
                give(start / size_of::<f32>(), bytemuck::cast_slice(piece));
            })
        }));
    }

    fn bytes(&self) -> usize {
        self.count() * self.kind.size()
    }
}
