//! Garbage collection in a remote cache: keeps what the last runs of each pipeline used, and everything of the last days. Runs on one
//! machine at a time, under a lease. Whatever happens to it, no receipt is left that names what is gone: receipts go first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    sync::Mutex,
};

use serde::Serialize;

use super::{
    Remote, Trouble,
    folder::TMP,
    lease::Lease,
    names, parallel,
    place::{Listed, Place, Small, read_small},
    uses,
};
use crate::store::{Digest, LARGEST_LISTING, LARGEST_RECEIPT, Receipt, Store, now, parse_listing};

/// Objects between which the lease is renewed, if that is due.
const AT_ONCE: usize = 256;
/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// What to keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keep {
    /// What so many last runs of each pipeline used.
    pub(crate) runs: usize,
    /// What was written, or used by a run, in so many last days. At least one: what is being sent has no receipt yet.
    pub(crate) days: u64,
}

/// What was deleted, or would be.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RemoteGc {
    pub(crate) results: usize,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Records of what runs used.
    pub(crate) runs: usize,
    pub(crate) kept_results: usize,
    pub(crate) kept_bytes: u64,
    /// Results that could not be used, among those that were deleted.
    pub(crate) damaged: usize,
}

/// Everything that is there.
#[derive(Default)]
struct Inventory {
    receipts: Vec<(Digest, Listed)>,
    objects: Vec<(Digest, Listed)>,
    runs: Vec<Listed>,
    /// What was being written to a folder.
    temporary: Vec<Listed>,
}

impl Inventory {
    fn of(place: &dyn Place, lease: &mut Option<Lease<'_>>) -> Result<Self, Trouble> {
        let mut found = Self::default();
        place.list(names::RUNS, &mut |listed| found.runs.push(listed))?;
        place.list(TMP, &mut |listed| found.temporary.push(listed))?;
        place.list(names::RECEIPTS, &mut |listed| {
            found.receipts.extend(names::digest(&listed.name, names::RECEIPTS).map(|key| (key, listed)));
        })?;
        keep(lease)?;
        place.list(names::OBJECTS, &mut |listed| {
            found.objects.extend(names::digest(&listed.name, names::OBJECTS).map(|digest| (digest, listed)));
        })?;
        Ok(found)
    }
}

impl Remote {
    /// Deletes everything that is not to be kept. `store` saves reading lists of files that are here, too.
    pub(crate) fn gc(&self, store: &Store, keep: Keep, dry_run: bool) -> Result<RemoteGc, Trouble> {
        let place = self.place()?;
        let place = &*place;
        let mut lease = if dry_run { None } else { Some(Lease::take(place)?) };
        let now = lease.as_ref().map_or_else(|| now() as u64, |lease| lease.taken);
        let since = now.saturating_sub(keep.days.max(1).saturating_mul(DAY));
        let is_young = |listed: &Listed| listed.modified >= since;
        let found = Inventory::of(place, &mut lease)?;

        self::keep(&mut lease)?;
        let (kept_runs, old_runs, used) = runs(place, &found.runs, keep.runs, since)?;
        let (candidates, mut gone): (Vec<_>, Vec<_>) =
            found.receipts.iter().partition(|(key, listed)| used.contains(key) || is_young(listed));
        let needed = needed(place, store, &candidates, &mut lease)?;
        let mut report = RemoteGc::default();
        gone.extend(candidates.iter().filter(|(key, _)| !needed.contains_key(key)));
        report.damaged = candidates.len() - needed.len();
        let objects: HashSet<Digest> = needed.values().flatten().copied().collect();
        let is_garbage = |(digest, listed): &&(Digest, Listed)| !objects.contains(digest) && !is_young(listed);
        let garbage: Vec<&(Digest, Listed)> = found.objects.iter().filter(is_garbage).collect();

        (report.results, report.kept_results) = (gone.len(), needed.len());
        (report.files, report.runs) = (garbage.len(), old_runs.len());
        report.bytes = garbage.iter().map(|(_, listed)| listed.size).sum();
        report.kept_bytes = found.objects.iter().map(|(_, listed)| listed.size).sum::<u64>() - report.bytes;
        debug_assert!(kept_runs + old_runs.len() == found.runs.len());
        let Some(lease) = &mut lease else { return Ok(report) };
        remove(place, lease, &gone.iter().map(|(_, listed)| listed).collect::<Vec<_>>())?;
        remove(place, lease, &garbage.iter().map(|(_, listed)| listed).collect::<Vec<_>>())?;
        remove(place, lease, &old_runs)?;
        remove(place, lease, &found.temporary.iter().filter(|listed| !is_young(listed)).collect::<Vec<_>>())?;
        Ok(report)
    }
}

/// Renews the lease, if there is one, and that is due.
fn keep(lease: &mut Option<Lease<'_>>) -> Result<(), Trouble> {
    lease.as_mut().map_or(Ok(()), Lease::keep)
}

/// The number of records of runs to keep, the other records, and the keys that the kept ones used.
fn runs<'a>(
    place: &dyn Place,
    listed: &'a [Listed],
    keep: usize,
    since: u64,
) -> Result<(usize, Vec<&'a Listed>, HashSet<Digest>), Trouble> {
    let mut newest: Vec<&Listed> = listed.iter().collect();
    newest.sort_by_key(|listed| Reverse(listed.modified));
    let read = Mutex::new(HashMap::new());
    parallel::for_each(&newest, |listed| {
        let uses = uses::read(place, &listed.name)?;
        read.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(listed.name.clone(), uses);
        Ok::<(), Trouble>(())
    })?;
    let mut read = read.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (mut kept, mut old, mut used) = (0, Vec::new(), HashSet::new());
    let mut seen = BTreeMap::<String, usize>::new();
    for listed in newest {
        let uses = read.remove(&listed.name).flatten();
        let rank = uses.as_ref().map(|uses| {
            let rank = seen.entry(uses.pipeline.clone()).or_default();
            *rank += 1;
            *rank
        });
        if listed.modified >= since || rank.is_some_and(|rank| rank <= keep) {
            kept += 1;
            used.extend(uses.into_iter().flat_map(|uses| uses.keys));
        } else {
            old.push(listed);
        }
    }
    Ok((kept, old, used))
}

/// The objects that results need, by key. Those that can't be used are left out.
fn needed(
    place: &dyn Place,
    store: &Store,
    receipts: &[&(Digest, Listed)],
    lease: &mut Option<Lease<'_>>,
) -> Result<HashMap<Digest, Vec<Digest>>, Trouble> {
    let found = Mutex::new(HashMap::new());
    for some in receipts.chunks(AT_ONCE) {
        keep(lease)?;
        parallel::for_each(some, |(key, listed)| {
            if let Some(objects) = objects_of(place, store, &listed.name)? {
                found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(*key, objects);
            }
            Ok::<(), Trouble>(())
        })?;
    }
    Ok(found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn objects_of(place: &dyn Place, store: &Store, name: &str) -> Result<Option<Vec<Digest>>, Trouble> {
    let Some(Small::Whole(bytes)) = read_small(place, name, LARGEST_RECEIPT)? else { return Ok(None) };
    let Some(receipt) = Receipt::of_others(&bytes) else { return Ok(None) };
    let listing = receipt.output.digest;
    let files = match store.tree(listing) {
        Ok(files) => files,
        Err(_) => match read_small(place, &names::object(listing), LARGEST_LISTING)? {
            Some(Small::Whole(bytes)) if Digest::of(&bytes) == listing => match parse_listing(&bytes) {
                Some(files) => files,
                None => return Ok(None),
            },
            _ => return Ok(None),
        },
    };
    Ok(Some(receipt.needs(&files).into_iter().map(|need| need.digest).collect()))
}

/// Removes objects, as long as the lease is that of this process.
fn remove(place: &dyn Place, lease: &mut Lease<'_>, listed: &[&Listed]) -> Result<(), Trouble> {
    for some in listed.chunks(AT_ONCE) {
        lease.keep()?;
        parallel::for_each(some, |listed| place.remove(&listed.name))?;
    }
    Ok(())
}
