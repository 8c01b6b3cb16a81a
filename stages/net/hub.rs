//! The Hugging Face hub: its variables, and what it says of a repository. Independent of what is fetched or pushed.

use std::{
    env,
    ffi::OsString,
    fmt::{self, Write},
    fs,
    path::PathBuf,
};

use serde::{Deserialize, Deserializer};

use super::{
    address::redacted,
    http::Access,
    listing::{Commit, RemoteFile, bounded, is_safe_name, quoted},
    verify::Check,
};
use crate::StageError;

/// A hub, its local cache, and the token for it.
#[derive(Debug, Clone)]
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    /// The local cache of Hugging Face's own tools.
    pub(crate) cache: PathBuf,
    pub(crate) offline: bool,
    token: Option<String>,
}

impl Hub {
    /// Reads variables as Hugging Face's own tools do.
    pub(crate) fn of(var: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().trim().to_string());
        // Variables in an `.env` file keep a `~` that a shell would replace.
        let path = |name: &str| {
            let path = PathBuf::from(set(name)?);
            match (path.strip_prefix("~"), var("HOME")) {
                (Ok(rest), Some(home)) => Some(PathBuf::from(home).join(rest)),
                _ => Some(path),
            }
        };
        let home = path("HF_HOME").unwrap_or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")));
            cache.unwrap_or_default().join("huggingface")
        });
        // Written by `hf auth login`.
        let file = || fs::read_to_string(path("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"))).ok();
        let token = text("HF_TOKEN").or_else(file).map(|token| token.trim().to_string());
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Self {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub")),
            offline: ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
                .into_iter()
                .any(|name| text(name).is_some_and(|value| is_true(&value))),
            token: token.filter(|token| !token.is_empty()),
        }
    }

    /// Reads the environment.
    pub(crate) fn from_env() -> Self {
        Self::of(|name| env::var_os(name))
    }

    /// The authorisation of requests.
    pub(crate) fn access(&self) -> Access {
        let endpoint = self.endpoint.clone();
        self.token.clone().map_or(Access::Open, |token| Access::Token { token, endpoint })
    }
}

/// Whether Hugging Face's own tools take the value of a variable as true.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
}

/// [`bounded`], told from a list that is missing.
fn some<'de, D: Deserializer<'de>>(list: D) -> Result<Option<Vec<Sibling>>, D::Error> {
    bounded(list).map(Some)
}

/// The hub's description of a repository at a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default, deserialize_with = "some")]
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Reads the answer of the hub at `endpoint` on the repository `of`, whose files are below `path`: the commit and all files.
///
/// # Errors
/// If the hub's answer is no such description, or names what must not become a path or a part of an address.
pub(crate) fn listed(
    endpoint: &str,
    path: &str,
    of: &impl fmt::Display,
    answer: &str,
) -> Result<(Commit, Vec<RemoteFile>), StageError> {
    let info: Info = serde_json::from_str(answer).map_err(|error| {
        let help = "check that HF_ENDPOINT, if set, is a Hugging Face hub";
        StageError::failed(format!("{} doesn't answer like a Hugging Face hub: {error}", redacted(endpoint)), help)
    })?;
    let distrusted = |message: String| {
        let help = "check that HF_ENDPOINT, if set, is a Hugging Face hub that you trust";
        StageError::failed(format!("{} {message}", redacted(endpoint)), help)
    };
    let commit =
        Commit::try_from(info.sha).map_err(|what| distrusted(format!("names the commit of {of} as {what}")))?;
    let siblings = info.siblings.filter(|siblings| siblings.len() <= MOST_LISTED).ok_or_else(|| {
        let help = "clone it with git, or download it with Hugging Face's own tool, and set `source` to the folder";
        let message = format!(
            "the hub gives no list of {of} that has all files (of more than {MOST_LISTED} it may leave some out)"
        );
        StageError::failed(message, help)
    })?;
    if let Some(file) = siblings.iter().find(|file| !is_safe_name(&file.rfilename)) {
        return Err(distrusted(format!("lists a file outside the folder of {of}: {}", quoted(&file.rfilename))));
    }
    let base = format!("{endpoint}/{path}/resolve/{commit}");
    Ok((commit, siblings.into_iter().map(|file| file.remote(&base)).collect()))
}

/// Of repositories with more files, a hub may leave some out of its description (`VERY_LARGE_REPO_THRESHOLD` in `huggingface_hub`).
const MOST_LISTED: usize = 50_000;

/// Whether a text can be the name of an owner or of a repository.
pub(crate) fn is_part(part: &str) -> bool {
    !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

impl Sibling {
    fn remote(self, base: &str) -> RemoteFile {
        let url = format!("{base}/{}", escape(&self.rfilename, true));
        let (size, check) = match self.lfs {
            Some(lfs) => (lfs.size.or(self.size), lfs.sha256.map(Check::Sha256)),
            None => (self.size, self.blob_id.map(Check::GitBlob)),
        };
        RemoteFile { size, checks: check.into_iter().collect(), ..RemoteFile::new(&self.rfilename, url) }
    }
}

/// Percent-encodes characters that are not allowed in the path of a URL.
pub(crate) fn escape(text: &str, keep_slashes: bool) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (keep_slashes && byte == b'/') {
            escaped.push(char::from(byte));
        } else {
            // Writing into a string can't fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}
