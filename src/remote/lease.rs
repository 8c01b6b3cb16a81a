//! Who may collect garbage in a remote cache. All times are by the clock of the place where it lies, since the clocks of machines
//! differ. Independent of what is collected.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Trouble, names,
    place::{Condition, Content, Fault, Place, Small, read_small},
};
use crate::store::{Digest, now};

/// A lease that its owner has not renewed for so long is over, in seconds.
const LASTS: u64 = 30 * 60;
/// How often it is renewed, in seconds.
const RENEWED: u64 = 5 * 60;
/// The largest lease in bytes.
const LARGEST: u64 = 4096;

/// What is written into a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    /// The machine and the process.
    host: String,
    /// Differs for each lease.
    id: String,
}

/// The lease of this process, which ends when it is dropped.
pub(super) struct Lease<'a> {
    place: &'a dyn Place,
    owner: Owner,
    /// By the clock of this machine since it started.
    renewed: Duration,
    /// When it was taken, in seconds since 1970.
    pub(super) taken: u64,
}

impl<'a> Lease<'a> {
    /// Takes the lease, if nobody has it.
    pub(super) fn take(place: &'a dyn Place) -> Result<Self, Trouble> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let process = std::process::id();
        let id = Digest::of(format!("{host} {process} {:?}", now()).as_bytes()).short();
        let owner = Owner { host: format!("{host}, process {process}"), id };
        if let Some(age) = age(place)? {
            if age < LASTS {
                let who = read(place)?.map(|owner| owner.host).unwrap_or_default();
                let words = format!("garbage is being collected there by {who} (since {} min or less)", age / 60 + 1);
                return Err(Trouble::Place(words));
            }
            // Its owner was killed.
            place.remove(names::GC_LEASE)?;
        }
        let is_new = place.write(names::GC_LEASE, &Content::Bytes(&text(&owner)), Condition::New)?;
        // If the answer to the first request was lost, the second says that there is one: this one.
        if !is_new && read(place)?.as_ref() != Some(&owner) {
            return Err(Trouble::Place("another machine has just begun to collect garbage there".into()));
        }
        let mut lease = Self { place, owner, renewed: uptime(), taken: 0 };
        // Where the server knows no conditions, the last of two writers has it.
        lease.check()?;
        // Before anything is looked at, so that whoever writes a receipt that is not seen knows of it.
        place.write(names::LAST_LEASE, &Content::Bytes(lease.owner.id.as_bytes()), Condition::Always)?;
        lease.taken = written(place, names::GC_LEASE)?.unwrap_or_default();
        Ok(lease)
    }

    /// Renews it if that is due.
    ///
    /// # Errors
    /// If another machine has it now, or it is over, as after a sleep of this machine: what was looked at may have changed.
    pub(super) fn keep(&mut self) -> Result<(), Trouble> {
        if uptime().saturating_sub(self.renewed).as_secs() < RENEWED {
            return Ok(());
        }
        self.check()?;
        if !is_taken(self.place)? {
            return Err(Trouble::Place(
                "this machine was silent for too long while it collected garbage: try again".into(),
            ));
        }
        self.place.write(names::GC_LEASE, &Content::Bytes(&text(&self.owner)), Condition::Always)?;
        self.renewed = uptime();
        Ok(())
    }

    /// Whether it still is that of this process.
    fn check(&self) -> Result<(), Trouble> {
        match read(self.place)? {
            Some(owner) if owner == self.owner => Ok(()),
            _ => Err(Trouble::Place("another machine collects garbage there now".into())),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.check().is_ok() {
            // If it stays, it is over by itself.
            let _ = self.place.remove(names::GC_LEASE);
        }
    }
}

/// How long this machine has been up, asleep or not.
fn uptime() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let time = rustix::time::clock_gettime(clock);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The last lease that was taken, by whatever identifies it.
pub(super) fn last(place: &dyn Place) -> Result<Option<Vec<u8>>, Fault> {
    Ok(match read_small(place, names::LAST_LEASE, LARGEST)? {
        Some(Small::Whole(bytes)) => Some(bytes),
        _ => None,
    })
}

/// Whether garbage is being collected.
pub(super) fn is_taken(place: &dyn Place) -> Result<bool, Fault> {
    Ok(age(place)?.is_some_and(|age| age < LASTS))
}

/// How long ago the lease was taken or renewed, in seconds. `None` if there is none.
fn age(place: &dyn Place) -> Result<Option<u64>, Fault> {
    let Some(taken) = written(place, names::GC_LEASE)? else { return Ok(None) };
    // What is written now tells the time there.
    place.write(names::CLOCK, &Content::Bytes(b"now"), Condition::Always)?;
    let now = written(place, names::CLOCK)?.unwrap_or(taken);
    Ok(Some(now.saturating_sub(taken)))
}

/// When an object below `leases` was written, in seconds since 1970.
fn written(place: &dyn Place, name: &str) -> Result<Option<u64>, Fault> {
    let mut found = None;
    place.list(names::LEASES, &mut |listed| {
        if listed.name == name {
            found = Some(listed.modified);
        }
    })?;
    Ok(found)
}

fn read(place: &dyn Place) -> Result<Option<Owner>, Fault> {
    Ok(match read_small(place, names::GC_LEASE, LARGEST)? {
        Some(Small::Whole(bytes)) => serde_json::from_slice(&bytes).ok(),
        _ => None,
    })
}

fn text(owner: &Owner) -> Vec<u8> {
    serde_json::to_vec(owner).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, time::SystemTime};

    use super::*;
    use crate::remote::folder::Folder;

    #[test]
    fn one_machine_has_it_until_it_is_over() {
        let root = tempfile::tempdir().unwrap();
        let place = Folder::open(root.path()).unwrap();
        assert!(!is_taken(&place).unwrap());
        let mut lease = Lease::take(&place).unwrap();
        assert!(is_taken(&place).unwrap() && lease.taken > 0);
        let error = Lease::take(&place).err().unwrap().to_string();
        assert!(error.contains("garbage is being collected there by"), "{error}");
        lease.keep().unwrap();
        let first = last(&place).unwrap();
        drop(lease);
        assert!(!is_taken(&place).unwrap());
        assert_eq!(last(&place).unwrap(), first, "it stays");

        // One that was killed an hour ago, by the clock of the folder's disk.
        std::mem::forget(Lease::take(&place).unwrap());
        let file = fs::File::options().write(true).open(root.path().join(names::GC_LEASE)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
        assert!(!is_taken(&place).unwrap());
        let mut lease = Lease::take(&place).unwrap();
        assert!(first.is_some() && last(&place).unwrap() != first);
        // This machine slept.
        lease.renewed = Duration::ZERO;
        lease.keep().unwrap();
        lease.renewed = Duration::ZERO;
        let file = fs::File::options().write(true).open(root.path().join(names::GC_LEASE)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
        assert!(lease.keep().unwrap_err().to_string().contains("silent for too long"));
        // Another one takes it away nevertheless.
        fs::write(root.path().join(names::GC_LEASE), "{\"host\": \"x\", \"id\": \"y\"}").unwrap();
        assert!(lease.check().is_err());
        drop(lease);
        assert!(root.path().join(names::GC_LEASE).exists(), "it is that of the other");
    }
}
