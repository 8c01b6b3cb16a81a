//! Where a remote cache is, and what may be done with it. Independent of how it is reached.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

/// The address of a remote cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// `file:///shared/folder`.
    Folder(PathBuf),
    /// `s3://bucket/prefix`: what follows the scheme.
    Bucket(String),
}

/// What a remote cache is used for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Access {
    /// Results are only taken from it.
    Read,
    /// Results that are made here are sent to it.
    #[default]
    ReadWrite,
}

/// The settings of a remote cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteSettings {
    pub(crate) address: Address,
    pub(crate) access: Access,
    /// How long to wait for an answer, the first time; longer when it is tried again.
    pub(crate) patience: Duration,
}

/// How long to wait for the first answer by default, in seconds.
const SECONDS: f64 = 5.0;

impl RemoteSettings {
    /// The remote cache at the address `name`, or what the address should be.
    pub(crate) fn new(name: &str, access: Access, seconds: Option<f64>) -> Result<Self, String> {
        let address = Address::parse(name)?;
        let seconds = seconds.filter(|seconds| seconds.is_finite()).unwrap_or(SECONDS);
        Ok(Self { address, access, patience: Duration::from_secs_f64(seconds.clamp(0.1, 600.0)) })
    }
}

impl Address {
    /// Parses an address, or says what it should be.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        // A slash at its end means nothing.
        let plain = text.trim_end_matches('/');
        if let Some(path) = plain.strip_prefix("file://").filter(|path| path.len() > 1 && path.starts_with('/')) {
            return Ok(Self::Folder(Path::new(path).to_path_buf()));
        }
        if let Some(bucket) = plain.strip_prefix("s3://").filter(|bucket| imp_stages::bucket::is_address(bucket)) {
            return Ok(Self::Bucket(bucket.into()));
        }
        Err(format!(
            "`remote` must be `s3://BUCKET/PREFIX`, or `file:///FOLDER` with an absolute path, and is `{}`",
            text.escape_debug()
        ))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "file://{}", path.display()),
            Self::Bucket(bucket) => write!(f, "s3://{bucket}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_has_limits() {
        let patience =
            |seconds| RemoteSettings::new("s3://b", Access::Read, seconds).map(|found| found.patience.as_millis());
        let found = [None, Some(0.0), Some(-1.0), Some(2.5), Some(1e300), Some(f64::NAN)].map(patience);
        assert_eq!(found, [5000, 100, 100, 2500, 600_000, 5000].map(Ok));
    }

    #[test]
    fn addresses_are_read_as_they_are_shown() {
        for text in ["file:///shared/cache", "s3://bucket", "s3://my.bucket/a/b c"] {
            let read = Address::parse(&format!("{text}/"));
            assert_eq!(read.map(|address| address.to_string()).as_deref(), Ok(text));
        }
        for text in
            ["", "bucket", "/shared", "file://shared", "file:///", "s3://", "s3:///x", "s3://b/../c", "http://a.org"]
        {
            let error = Address::parse(text).err().unwrap_or_default();
            assert!(error.contains("must be `s3://BUCKET/PREFIX`"), "{text}: {error}");
        }
    }
}
