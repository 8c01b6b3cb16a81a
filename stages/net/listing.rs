//! Files on another machine, as a source lists them. Independent of the kind of source.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::verify::Check;

/// A file on another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteFile {
    /// Path in the source, and in the output.
    pub(crate) name: String,
    pub(crate) url: String,
    /// Size in bytes, if the source lists it.
    pub(crate) size: Option<u64>,
    /// The server's `ETag` for this content, if the source lists it.
    #[serde(default)]
    pub(crate) etag: Option<String>,
    /// The hashes that its content must have.
    pub(crate) checks: Vec<Check>,
}

impl RemoteFile {
    /// A file about which nothing else is known.
    pub(crate) fn new(name: &str, url: String) -> Self {
        Self { name: name.into(), url, size: None, etag: None, checks: Vec::new() }
    }
}

/// A list of files. It is kept with the checkpoint, so that a resumed download continues with the same files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) files: Vec<RemoteFile>,
    /// The commit, for a repository on a hub.
    pub(crate) commit: Option<String>,
    /// Files that are already in the hub's local cache: name -> path.
    #[serde(skip)]
    pub(crate) local: Vec<(String, PathBuf)>,
}

impl Listing {
    pub(crate) fn of(files: Vec<RemoteFile>) -> Self {
        Self { files, commit: None, local: Vec::new() }
    }
}
