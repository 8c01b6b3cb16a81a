//! What runs used of a remote cache: a small object for each run, so that garbage collection keeps it. Independent of runs.

use serde::{Deserialize, Serialize};

use super::{
    Remote, Trouble, names,
    place::{Condition, Content, Fault, Place, Small, read_small},
};
use crate::store::Digest;

/// The largest record in bytes.
const LARGEST: u64 = 4 << 20;

/// What a run used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Uses {
    pub(crate) pipeline: String,
    pub(crate) keys: Vec<Digest>,
}

impl Remote {
    /// Records what the run `id` used. Replaces an earlier record of the same run.
    pub(crate) fn record_uses(&self, id: &str, uses: &Uses) -> Result<(), Trouble> {
        let text = serde_json::to_vec(uses).map_err(|error| Trouble::Place(error.to_string()))?;
        self.place()?.write(&names::run(id), &Content::Bytes(&text), Condition::Always)?;
        Ok(())
    }
}

/// Reads a record. `None` if it is gone.
///
/// # Errors
/// If it is damaged: nobody knows what it would have kept.
pub(super) fn read(place: &dyn Place, name: &str) -> Result<Option<Uses>, Fault> {
    let damaged = || Fault(format!("{name} can't be read, and says what a run uses: remove it if nobody needs that"));
    match read_small(place, name, LARGEST)? {
        Some(Small::Whole(bytes)) => serde_json::from_slice(&bytes).map(Some).map_err(|_| damaged()),
        Some(_) => Err(damaged()),
        None => Ok(None),
    }
}
