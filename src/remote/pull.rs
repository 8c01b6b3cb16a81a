//! Takes results from a remote cache: several objects at once, each from where it was cut off, and only those that are missing.

use std::{
    io::Read,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{
    Meter, Remote, Trouble, names, parallel,
    place::{Place, Small, lost_connection, read_small},
};
use crate::store::{
    Arrival, Digest, Incoming, LARGEST_LISTING, Manifest, Need, Receipt, Store, TreeFile, listing_from_elsewhere,
};

/// How often in a row a transfer may break off.
const MOST_BREAKS: u32 = 3;
/// Who brings less than this between two breaks has brought nothing: in bytes.
const WORTH: u64 = 64 << 10;
/// Garbage collection may take away what has just arrived.
const ROUNDS: usize = 3;
/// How often it is looked whether there is room now.
const A_WHILE: Duration = Duration::from_millis(200);
/// What stays free on the disk, in bytes.
const RESERVE: u64 = 64 << 20;

/// A result to take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want<'a> {
    pub(crate) key: Digest,
    /// The manifest of the key, if it is known.
    pub(crate) manifest: Option<&'a Manifest>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pulled {
    /// It is in the store now; so many bytes and objects were transferred.
    Taken { bytes: u64, objects: usize },
    /// The remote cache does not have it.
    Absent,
}

/// A result that a remote cache has.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) receipt: Receipt,
    pub(crate) files: Vec<TreeFile>,
    /// The objects that are missing here.
    pub(crate) missing: Vec<Need>,
}

impl Offer {
    /// The bytes that are missing here, as far as they are known: those of logs are not.
    pub(crate) fn bytes(&self) -> u64 {
        self.missing.iter().filter_map(|need| need.size).sum()
    }
}

impl Remote {
    /// Takes a result into the store, if the remote cache has it and it can be believed. `begun` is called with the bytes to transfer.
    pub(crate) fn pull(
        &self,
        store: &Store,
        want: Want<'_>,
        meter: &Meter,
        begun: &(dyn Fn(u64) + Sync),
    ) -> Result<Pulled, Trouble> {
        let Some(offer) = self.offer(store, want)? else { return Ok(Pulled::Absent) };
        let mut missing = offer.missing.clone();
        begun(offer.bytes());
        meter.total.fetch_add(offer.bytes(), Relaxed);
        let room = self.wait_for_room(store, offer.bytes(), meter)?;
        let (mut bytes, mut objects) = (0, 0);
        for _ in 0..ROUNDS {
            let before = meter.done.load(Relaxed);
            self.fetch(store, want.key, &missing, (meter, &room))?;
            bytes += meter.done.load(Relaxed) - before;
            objects += missing.len();
            let _here = meter.here();
            if store.take_in(&offer.receipt, &offer.files, &self.address())? {
                return Ok(Pulled::Taken { bytes, objects });
            }
            missing = lacking(store, &offer.receipt, &offer.files);
        }
        Err(Trouble::Result("what arrived was removed again".into()))
    }

    /// Waits while others that arrive may leave too little room.
    fn wait_for_room(&self, store: &Store, bytes: u64, meter: &Meter) -> Result<Room<'_>, Trouble> {
        let _here = meter.here();
        loop {
            if let Some(room) = Room::take(&self.arriving, store, bytes)? {
                return Ok(room);
            }
            if self.stop.load(Relaxed) {
                return Err(Trouble::Stopped);
            }
            std::thread::sleep(A_WHILE);
        }
    }

    /// What the remote cache has under a key, and what of it is missing here. Changes nothing.
    pub(crate) fn offer(&self, store: &Store, want: Want<'_>) -> Result<Option<Offer>, Trouble> {
        let Some(receipt) = self.receipt(want.key, want.manifest)? else { return Ok(None) };
        let listing = receipt.output.digest;
        let bytes = match std::fs::read(store.object(listing)) {
            Ok(bytes) if Digest::of(&bytes) == listing => bytes,
            _ => match read_small(&*self.place()?, &names::object(listing), LARGEST_LISTING)? {
                Some(Small::Whole(bytes)) => bytes,
                Some(Small::TooLarge) => return Err(self.distrust(want.key, "its list of files is too large")),
                None => return Err(self.distrust(want.key, "its list of files is missing")),
            },
        };
        let files = listing_from_elsewhere(&bytes, &receipt.output).map_err(|what| {
            self.health.distrust(listing);
            self.distrust(want.key, what)
        })?;
        let missing = lacking(store, &receipt, &files);
        Ok(Some(Offer { receipt, files, missing }))
    }

    /// Fetches objects of the result of `key`, several at once.
    fn fetch(&self, store: &Store, key: Digest, needs: &[Need], counts: (&Meter, &Room)) -> Result<(), Trouble> {
        let place = self.place()?;
        let fetched = parallel::for_each(needs, |need| self.fetch_one(store, key, &*place, *need, counts));
        if matches!(fetched, Err(Trouble::Result(_))) {
            // Where one is wrong, others may be. What is sent in their place is sent once more at worst.
            for need in needs {
                self.health.distrust(need.digest);
            }
        }
        fetched
    }

    fn fetch_one(
        &self,
        store: &Store,
        key: Digest,
        place: &dyn Place,
        need: Need,
        (meter, room): (&Meter, &Room),
    ) -> Result<(), Trouble> {
        // The beginning may have been left by a process that was killed, or by a machine that lost its power.
        for _ in 0..2 {
            let incoming = store.receive(need)?;
            let resumed = incoming.arrived() > 0;
            meter.done.fetch_add(incoming.arrived(), Relaxed);
            room.arrived(incoming.arrived());
            let Some(incoming) = self.transfer(place, need, incoming, (meter, room))? else {
                self.health.distrust(key);
                return Err(Trouble::Result("the remote cache lacks a file of it".into()));
            };
            let arrived = incoming.arrived();
            let _here = meter.here();
            match incoming.finish(store)? {
                Arrival::Stored => return Ok(()),
                Arrival::Wrong if resumed => drop(meter.done.fetch_sub(arrived, Relaxed)),
                Arrival::Wrong => break,
            }
        }
        self.health.distrust(key);
        Err(Trouble::Result("a file of it has other content than its name says, or was cut off".into()))
    }

    /// Transfers what is missing of an object. `None` if the remote cache does not have it.
    fn transfer(
        &self,
        place: &dyn Place,
        need: Need,
        mut incoming: Incoming,
        (meter, room): (&Meter, &Room),
    ) -> Result<Option<Incoming>, Trouble> {
        let name = names::object(need.digest);
        let (mut breaks, mut buffer) = (0, vec![0; 1 << 17]);
        loop {
            if need.size.is_some_and(|size| incoming.arrived() >= size) {
                return Ok(Some(incoming));
            }
            let before = incoming.arrived();
            let opened = match place.read(&name, before) {
                Ok(opened) => opened,
                Err(fault) => {
                    incoming.leave();
                    return Err(fault.into());
                }
            };
            let Some(mut reader) = opened else { return Ok(None) };
            let lost = loop {
                if self.stop.load(Relaxed) {
                    incoming.leave();
                    return Err(Trouble::Stopped);
                }
                match reader.read(&mut buffer) {
                    Ok(0) => return Ok(Some(incoming)),
                    Ok(bytes) => {
                        if !incoming.add(&buffer[..bytes])? {
                            // Too much: what arrived is judged as it is.
                            return Ok(Some(incoming));
                        }
                        meter.done.fetch_add(bytes as u64, Relaxed);
                        room.arrived(bytes as u64);
                    }
                    Err(error) => break error,
                }
            };
            breaks = if incoming.arrived() - before >= WORTH { 0 } else { breaks + 1 };
            if breaks >= MOST_BREAKS {
                incoming.leave();
                return Err(lost_connection(&lost).into());
            }
        }
    }
}

fn lacking(store: &Store, receipt: &Receipt, files: &[TreeFile]) -> Vec<Need> {
    receipt.needs(files).into_iter().filter(|need| !store.has(need)).collect()
}

/// The room on the disk for what is still to arrive of a result. Others that arrive at the same time don't count on it.
struct Room<'a> {
    /// Of all results.
    all: &'a AtomicU64,
    left: AtomicU64,
}

impl<'a> Room<'a> {
    /// Refuses what the disk has no room for, before anything of it is fetched. `None` if that depends on what others need.
    fn take(all: &'a AtomicU64, store: &Store, bytes: u64) -> Result<Option<Self>, Trouble> {
        let others = all.fetch_add(bytes, Relaxed);
        let room = Self { all, left: AtomicU64::new(bytes) };
        let Some(free) = store.room() else { return Ok(Some(room)) };
        let wanted = bytes.saturating_add(RESERVE);
        if wanted > free {
            let message = format!("it needs {bytes} bytes, and the disk of the cache has {free} free");
            return Err(Trouble::Result(message));
        }
        Ok((wanted <= free.saturating_sub(others)).then_some(room))
    }

    /// Notes that so many bytes are on the disk.
    fn arrived(&self, bytes: u64) {
        let before = self.left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(bytes)));
        let before = before.unwrap_or_else(|left| left);
        self.all.fetch_sub(before.min(bytes), Relaxed);
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.arrived(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn results_that_arrive_together_share_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (all, half) = (AtomicU64::new(0), store.room().unwrap() / 2 + RESERVE);
        let first = Room::take(&all, &store, half).unwrap().unwrap();
        assert!(Room::take(&all, &store, half).unwrap().is_none(), "it waits");
        let error = Room::take(&all, &store, 3 * half).err().unwrap().to_string();
        assert!(error.contains(&format!("it needs {} bytes", 3 * half)), "{error}");
        // What has arrived is no longer free anyway.
        first.arrived(half - 10);
        first.arrived(5);
        assert_eq!(all.load(Relaxed), 5);
        drop(Room::take(&all, &store, half).unwrap().unwrap());
        drop(first);
        assert_eq!(all.into_inner(), 0);
    }
}
