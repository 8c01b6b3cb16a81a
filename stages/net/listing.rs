//! Files on another machine, as a source lists them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::verify::Check;

/// A file on another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteFile {
    /// Where it lies in the source, and will lie in the output.
    pub(crate) name: String,
    pub(crate) url: String,
    /// Bytes, if the source lists them.
    pub(crate) size: Option<u64>,
    /// The server's name for this content, if the source lists it.
    #[serde(default)]
    pub(crate) etag: Option<String>,
    /// What its content must hash to.
    pub(crate) checks: Vec<Check>,
}

impl RemoteFile {
    /// A file of which nothing else is known.
    pub(crate) fn new(name: &str, url: String) -> Self {
        Self { name: name.into(), url, size: None, etag: None, checks: Vec::new() }
    }
}

/// A list of files, kept with the checkpoint so that a download that goes on goes on with the same files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) files: Vec<RemoteFile>,
    /// The commit, on a hub.
    pub(crate) commit: Option<String>,
    /// Files of the hub's own local cache: name -> path.
    #[serde(skip)]
    pub(crate) local: Vec<(String, PathBuf)>,
}

impl Listing {
    pub(crate) fn of(files: Vec<RemoteFile>) -> Self {
        Self { files, commit: None, local: Vec::new() }
    }
}
