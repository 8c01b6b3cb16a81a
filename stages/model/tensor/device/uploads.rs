//! Uploads through a ring of locked host memory: the host goes on as soon as the bytes are in the ring, and the device fetches
//! them from there. Independent of which device it is.
//!
//! Who waits for whom:
//! - **New memory with content** (pixels, token ids) is taken and written on [`Stream::Upload`], beside what is being computed.
//!   [`Stream::Compute`] waits for that before anything else is called on it, so all later uses, and the free, come after it.
//!   The upload itself waits for nothing: the memory is new on its own stream, so the allocator has seen to it that nothing
//!   called before, on whichever stream, still uses these bytes. Had it been taken on another stream, the copy could come
//!   before the memory's former user is done.
//! - **Memory that is there** is written on [`Stream::Compute`], in order with its uses; so are few bytes in new memory, since
//!   copying them takes less than two streams that wait for each other.
//! - **A slot of the ring** is written again only after the host has waited for all copies from it, on both streams.
//!
//! The emulated device has these orders too, and its tests leave out each wait to see that it is missed.

use std::sync::{Mutex, PoisonError};

use super::{
    DeviceError,
    driver::{Driver, Stream},
};

/// Slots of the ring: while one is filled, the others are being fetched.
const SLOTS: usize = 4;
/// The mark after the copies to new memory. Those before it are of the slots, one for each stream of each.
const NEW: usize = 2 * SLOTS;
/// The first mark that is not used here.
pub(super) const FREE: usize = NEW + 1;
/// Where uploads begin in a slot.
const ALIGNMENT: usize = 16;
/// Those with copies from the ring.
const STREAMS: [Stream; 2] = [Stream::Compute, Stream::Upload];

/// Sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Of a slot.
    pub(super) slot: usize,
    /// New memory of at least this size is written beside what is being computed.
    pub(super) beside: usize,
}

impl Sizes {
    /// Those of a GPU: 16 MB of locked memory; a bus with 25 GB/s takes 3 microseconds for 64 KB.
    pub(super) const GPU: Self = Self { slot: 4 << 20, beside: 64 << 10 };
    /// So small that the models of tests need many slots, and both streams.
    #[cfg(feature = "emulated")]
    pub(super) const EMULATED: Self = Self { slot: 4 << 10, beside: 256 };
}

/// The uploads of a device.
pub(super) struct Uploads {
    sizes: Sizes,
    /// `None` before the first upload.
    ring: Mutex<Option<Ring>>,
}

/// Locked memory; without slots, if none was to be had.
struct Ring {
    slots: Vec<Slot>,
    /// The slot that is being filled, and its bytes in use.
    current: usize,
    used: usize,
}

struct Slot {
    address: u64,
    /// The streams on which there are copies from it since the host last waited for them.
    copied_on: [bool; 2],
}

impl Uploads {
    pub(super) fn new(sizes: Sizes) -> Self {
        Self { sizes, ring: Mutex::default() }
    }

    /// The stream on which memory is to be taken for `bytes` bytes that [`Uploads::fill`] will write.
    pub(super) fn stream_for(&self, driver: &dyn Driver, bytes: usize) -> Stream {
        let small = bytes < self.sizes.beside;
        if small || self.with_ring(driver, |ring| ring.slots.is_empty()) { Stream::Compute } else { Stream::Upload }
    }

    /// Writes to memory that was just taken on `stream`, before anything else was called for it.
    pub(super) fn fill(&self, driver: &dyn Driver, stream: Stream, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.copy(driver, stream, to, from)?;
        if stream == Stream::Upload {
            // Another thread may set the mark again in between: then it comes later, and this copy is before it too.
            driver.mark(Stream::Upload, NEW)?;
            driver.wait(Some(Stream::Compute), NEW)?;
        }
        Ok(())
    }

    /// Writes to memory that is in use.
    pub(super) fn overwrite(&self, driver: &dyn Driver, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.copy(driver, Stream::Compute, to, from)
    }

    fn copy(&self, driver: &dyn Driver, stream: Stream, to: u64, from: &[u8]) -> Result<(), DeviceError> {
        self.with_ring(driver, |ring| {
            if ring.slots.is_empty() {
                return driver.upload(to, from);
            }
            let mut done = 0;
            while done < from.len() {
                let (through, room) = ring.room(driver, self.sizes.slot)?;
                let piece = &from[done..from.len().min(done + room)];
                ring.slots[ring.current].copied_on[stream as usize] = true;
                // SAFETY: the slot is locked memory as long as the driver lives, and has this room after what is in use. No copy
                // from there is under way: `room` has waited for all from this slot before it was used again.
                #[allow(unsafe_code)]
                unsafe { driver.upload_through(stream, to + done as u64, through, piece) }?;
                done += piece.len();
                ring.used = (ring.used + piece.len()).next_multiple_of(ALIGNMENT);
            }
            Ok(())
        })
    }

    fn with_ring<T>(&self, driver: &dyn Driver, use_it: impl FnOnce(&mut Ring) -> T) -> T {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        use_it(ring.get_or_insert_with(|| Ring::new(driver, self.sizes.slot)))
    }
}

impl Ring {
    /// As many slots as there is locked memory for.
    fn new(driver: &dyn Driver, slot: usize) -> Self {
        let addresses = (0..SLOTS).map_while(|_| driver.lock(slot));
        let slots = addresses.map(|address| Slot { address, copied_on: [false; 2] }).collect();
        Self { slots, current: 0, used: 0 }
    }

    /// Where the next bytes go, and how many there is room for. Goes on to the next slot if this one is full.
    fn room(&mut self, driver: &dyn Driver, slot: usize) -> Result<(u64, usize), DeviceError> {
        if self.used >= slot {
            self.each_stream_in_use(|mark, stream| driver.mark(stream, mark))?;
            self.current = (self.current + 1) % self.slots.len();
            self.each_stream_in_use(|mark, _| driver.wait(None, mark))?;
            self.slots[self.current].copied_on = [false; 2];
            self.used = 0;
        }
        Ok((self.slots[self.current].address + self.used as u64, slot - self.used))
    }

    /// Calls this with the mark and the stream of each stream with copies from the current slot.
    fn each_stream_in_use(&self, call: impl Fn(usize, Stream) -> Result<(), DeviceError>) -> Result<(), DeviceError> {
        let slot = &self.slots[self.current];
        let in_use = STREAMS.into_iter().filter(|stream| slot.copied_on[*stream as usize]);
        in_use.into_iter().try_for_each(|stream| call(2 * self.current + stream as usize, stream))
    }
}
