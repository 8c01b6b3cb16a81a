//! A remote cache in a bucket. Independent of what is in it.

use std::{
    io::Read,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use imp_stages::{StageError, bucket::Bucket};

use super::place::{Condition, Content, Fault, Listed, Place};

/// A bucket.
pub(super) struct Objects(Bucket);

impl Objects {
    pub(super) fn open(address: &str, patience: Duration, stop: Arc<AtomicBool>) -> Result<Self, Fault> {
        Bucket::open(address, patience, stop).map(Self).map_err(|error| fault(&error))
    }
}

impl Place for Objects {
    fn size(&self, name: &str) -> Result<Option<u64>, Fault> {
        self.0.size(name).map_err(|error| fault(&error))
    }

    fn read(&self, name: &str, from: u64) -> Result<Option<Box<dyn Read + Send>>, Fault> {
        self.0.read(name, from).map_err(|error| fault(&error))
    }

    fn write(&self, name: &str, content: &Content<'_>, condition: Condition) -> Result<bool, Fault> {
        match content {
            Content::Bytes(bytes) => {
                self.0.write(name, bytes, condition == Condition::New).map_err(|error| fault(&error))
            }
            Content::File { path, size, sent } => {
                self.0.write_file(name, path, *size, sent).map_err(|error| fault(&error))?;
                Ok(true)
            }
        }
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Listed)) -> Result<(), Fault> {
        let list = self.0.list(folder, &mut |object| {
            let modified = object.modified.and_then(|time| time.parse::<jiff::Timestamp>().ok());
            let modified = modified.and_then(|time| u64::try_from(time.as_second()).ok());
            each(Listed { name: object.name, size: object.size, modified: modified.unwrap_or_default() });
        });
        list.map_err(|error| fault(&error))
    }

    fn remove(&self, name: &str) -> Result<(), Fault> {
        self.0.remove(name).map_err(|error| fault(&error))
    }
}

/// The message, with what to do. A download would name its own key.
fn fault(error: &StageError) -> Fault {
    let help = error.help().map(|help| help.replace("`source`", "`remote`"));
    Fault(help.map_or_else(|| error.to_string(), |help| format!("{error} ({help})")))
}
