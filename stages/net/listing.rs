//! Files on another machine, as a source lists them. Independent of the kind of source.

use std::{fmt, marker::PhantomData, path::PathBuf};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor},
};

use super::verify::Check;
use crate::{StageError, contract::paths::stays_inside};

/// A file on another machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RemoteFile {
    /// Path in the source, and in the output.
    #[serde(deserialize_with = "safe_name")]
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

/// Reads a name that may become a path.
fn safe_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if is_safe_name(&name) { Ok(name) } else { Err(D::Error::custom(format!("{} is not a safe path", quoted(&name)))) }
}

/// Whether a name from a server may become a path below a folder, or the end of a URL.
pub(crate) fn is_safe_name(name: &str) -> bool {
    !name.is_empty() && name != "." && !name.ends_with('/') && !name.contains('\0') && stays_inside(name)
}

/// The most files that a source may list: ten times what the hub advises for a repository.
pub(crate) const MOST_FILES: usize = 1_000_000;

/// The error for a source that lists more than [`MOST_FILES`].
pub(crate) fn too_many_files(source: &impl fmt::Display) -> StageError {
    StageError::failed(
        format!("{source} lists more than {MOST_FILES} files, the limit for one download"),
        "name a smaller folder in `source`, or download an archive instead",
    )
}

/// Reads a list of at most [`MOST_FILES`].
pub(crate) fn bounded<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Files<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Files<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of files")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut files = Vec::new();
            while let Some(file) = list.next_element()? {
                if files.len() == MOST_FILES {
                    return Err(A::Error::custom(format!("it lists more than {MOST_FILES} files")));
                }
                files.push(file);
            }
            Ok(files)
        }
    }

    deserializer.deserialize_seq(Files(PhantomData))
}

/// A server's text, quoted, escaped and cut short for messages.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    let cut: String = text.chars().take(LONGEST).collect();
    let more = if cut.len() < text.len() { "..." } else { "" };
    format!("{cut:?}{more}")
}

/// A commit of a repository. It becomes part of paths and URLs, so it holds nothing but 40 or 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Commit(String);

impl Commit {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Commit {
    type Error = String;

    /// # Errors
    /// Text that continues "names ... as its commit".
    fn try_from(text: String) -> Result<Self, String> {
        let valid = matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if valid { Ok(Self(text)) } else { Err(format!("{}, which is not 40 or 64 hexadecimal digits", quoted(&text))) }
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A list of files. It is kept with the checkpoint, so that a resumed download continues with the same files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub(crate) files: Vec<RemoteFile>,
    /// The commit, for a repository on a hub.
    pub(crate) commit: Option<Commit>,
    /// Files that are already in the hub's local cache: name -> path.
    #[serde(skip)]
    pub(crate) local: Vec<(String, PathBuf)>,
}

impl Listing {
    pub(crate) fn of(files: Vec<RemoteFile>) -> Self {
        Self { files, commit: None, local: Vec::new() }
    }
}
