//! Sends results to a remote cache: the objects that it lacks, several at once, and the receipt last.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{
    Meter, Remote, Trouble, lease, names, parallel,
    place::{Condition, Content, Place},
    pull::Want,
};
use crate::store::{Digest, Need, Receipt, Store};

/// What came of sending a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It is there now; so many bytes were transferred.
    Sent { bytes: u64 },
    /// It was there already.
    Known,
    /// It is not to be sent: it is gone or damaged here, or may lack something.
    Unfit,
    /// Garbage is collected there now, or was meanwhile, and might take away what a receipt will name: it has to be sent another time.
    Later,
}

impl Remote {
    /// Sends the result of `key`, unless the remote cache has it. Its receipt is written last, and never replaces another that can be
    /// believed. If `thorough`, what is there is looked at, and replaced if it is not complete.
    pub(crate) fn push(&self, store: &Store, key: Digest, thorough: bool, meter: &Meter) -> Result<Pushed, Trouble> {
        let (place, name) = (self.place()?, names::receipt(key));
        let Some(receipt) = store.receipt(key)?.filter(|receipt| !receipt.unchecked) else { return Ok(Pushed::Unfit) };
        let mut replace = self.health.is_distrusted(key);
        if !replace && place.size(&name)?.is_some() {
            if !thorough || self.is_complete(store, &*place, &receipt)? {
                return Ok(Pushed::Known);
            }
            replace = true;
        }
        let last = lease::last(&*place)?;
        if lease::is_taken(&*place)? {
            return Ok(Pushed::Later);
        }
        let Ok(files) = store.tree(receipt.output.digest) else { return Ok(Pushed::Unfit) };
        let needs = receipt.needs(&files);
        if !needs.iter().all(|need| store.has(need)) {
            return Ok(Pushed::Unfit);
        }
        let sizes = needs.iter().map(|need| Some((*need, store.object(need.digest).metadata().ok()?.len())));
        let Some(objects) = sizes.collect::<Option<Vec<_>>>() else { return Ok(Pushed::Unfit) };
        meter.total.fetch_add(objects.iter().map(|(_, size)| size).sum(), Relaxed);
        let Some(bytes) = self.send(store, &*place, &objects, meter)? else { return Ok(Pushed::Unfit) };
        if !send_receipt(&*place, &name, &receipt, replace)? {
            // Another machine was faster, and its receipt stays.
            return Ok(Pushed::Known);
        }
        self.health.trust(key);
        // Collecting that began meanwhile may not have seen the receipt, whether or not it has ended.
        let was_taken = lease::is_taken(&*place)? || lease::last(&*place)? != last;
        Ok(if was_taken { Pushed::Later } else { Pushed::Sent { bytes } })
    }

    /// Whether the remote cache has all objects of its result under the key of `receipt`, which may be that of another machine.
    fn is_complete(&self, store: &Store, place: &dyn Place, receipt: &Receipt) -> Result<bool, Trouble> {
        let want = Want { key: receipt.key(), manifest: Some(&receipt.manifest) };
        let offer = match self.offer(store, want) {
            Err(Trouble::Result(_)) => return Ok(false),
            offer => offer?,
        };
        let Some(offer) = offer else { return Ok(false) };
        let found = parallel::for_each(&offer.receipt.needs(&offer.files), |need| {
            let size = place.size(&names::object(need.digest)).map_err(|fault| Some(fault.into()))?;
            // Without a trouble, one is missing.
            size.filter(|size| need.size.is_none_or(|wanted| wanted == *size)).map(drop).ok_or(None)
        });
        match found {
            Ok(()) => Ok(true),
            Err(trouble) => trouble.map_or(Ok(false), Err),
        }
    }

    /// Sends objects, each with its size in bytes, several at once. Returns the bytes that were sent; `None` if an object is damaged
    /// here.
    fn send(
        &self,
        store: &Store,
        place: &dyn Place,
        objects: &[(Need, u64)],
        meter: &Meter,
    ) -> Result<Option<u64>, Trouble> {
        let sent = AtomicU64::new(0);
        let result: Result<(), Option<Trouble>> = parallel::for_each(objects, |(need, size)| {
            let bytes = self.send_one(store, place, need.digest, *size, meter).map_err(Some)?;
            // Without a trouble, it is unfit.
            sent.fetch_add(bytes.ok_or(None)?, Relaxed);
            Ok(())
        });
        match result {
            Ok(()) => Ok(Some(sent.into_inner())),
            Err(trouble) => trouble.map_or(Ok(None), Err),
        }
    }

    /// Sends an object, unless it is there. Returns the bytes that were sent; `None` if it is damaged here.
    fn send_one(
        &self,
        store: &Store,
        place: &dyn Place,
        object: Digest,
        size: u64,
        meter: &Meter,
    ) -> Result<Option<u64>, Trouble> {
        if self.stop.load(Relaxed) {
            return Err(Trouble::Stopped);
        }
        let (name, path) = (names::object(object), store.object(object));
        // One that was cut off has another size.
        if !self.health.is_distrusted(object) && place.size(&name)? == Some(size) {
            meter.done.fetch_add(size, Relaxed);
            return Ok(Some(0));
        }
        let here = meter.here();
        if !store.is_intact_object(object) {
            return Ok(None);
        }
        drop(here);
        let content = Content::File { path: &path, size, sent: meter.done.clone() };
        place.write(&name, &content, Condition::Always)?;
        self.health.trust(object);
        Ok(Some(size))
    }
}

/// Writes a receipt. False if there is one that stays.
fn send_receipt(place: &dyn Place, name: &str, receipt: &Receipt, replace: bool) -> Result<bool, Trouble> {
    let text = receipt.for_others().map_err(|error| Trouble::Place(error.to_string()))?;
    let condition = if replace { Condition::Always } else { Condition::New };
    Ok(place.write(name, &Content::Bytes(&text), condition)?)
}
