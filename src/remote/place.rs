//! What a remote cache needs of the place where it lies: objects by name, each whole or not at all. Independent of what is in them.

use std::{
    io::{self, Read},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

/// A place for named objects. Names are relative, with `/` as separator. Each call returns when it succeeded or when trying again is of
/// no use.
pub(crate) trait Place: Send + Sync {
    /// The size of an object in bytes. `None` if there is none.
    fn size(&self, name: &str) -> Result<Option<u64>, Fault>;

    /// An object from the byte `from` on. Reading it may fail in the middle, and then goes on by another call. `None` if there is none.
    fn read(&self, name: &str, from: u64) -> Result<Option<Box<dyn Read + Send>>, Fault>;

    /// Writes an object as a whole. False if `condition` does not hold.
    fn write(&self, name: &str, content: &Content<'_>, condition: Condition) -> Result<bool, Fault>;

    /// Calls `each` for all objects whose names begin with `folder` and a slash.
    fn list(&self, folder: &str, each: &mut dyn FnMut(Listed)) -> Result<(), Fault>;

    /// Removes an object, if there is one.
    fn remove(&self, name: &str) -> Result<(), Fault>;
}

/// What is written.
pub(crate) enum Content<'a> {
    Bytes(&'a [u8]),
    /// A file of this size in bytes. What has left is added to `sent`.
    File {
        path: &'a Path,
        size: u64,
        sent: Arc<AtomicU64>,
    },
}

/// Whether to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Only if there is no object of this name: of several writers at once, one succeeds.
    New,
    /// In place of what is there.
    Always,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// In bytes.
    pub(crate) size: u64,
    /// When it was last written, by the clock of the place, in seconds since 1970.
    pub(crate) modified: u64,
}

/// Why a place can't be used, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault(pub(crate) String);

/// The content of an object of at most `most` bytes. `None` if there is none.
pub(super) fn read_small(place: &dyn Place, name: &str, most: u64) -> Result<Option<Small>, Fault> {
    /// Connections that may be lost in a row.
    const TRIES: usize = 3;
    let mut lost = None;
    for _ in 0..TRIES {
        let Some(reader) = place.read(name, 0)? else { return Ok(None) };
        let mut bytes = Vec::new();
        match reader.take(most + 1).read_to_end(&mut bytes) {
            Ok(_) if bytes.len() as u64 > most => return Ok(Some(Small::TooLarge)),
            Ok(_) => return Ok(Some(Small::Whole(bytes))),
            Err(error) => lost = Some(error),
        }
    }
    Err(lost_connection(&lost.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())))
}

/// A small object.
pub(super) enum Small {
    Whole(Vec<u8>),
    TooLarge,
}

/// The fault of reading that was cut off too often.
pub(super) fn lost_connection(error: &io::Error) -> Fault {
    Fault(format!("the connection was lost ({error})"))
}
