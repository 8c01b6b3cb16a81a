//! The Hugging Face hub: lists the files of a repository at a commit. Independent of how files are transferred.

use std::{
    env,
    ffi::OsString,
    fmt::{self, Write},
    fs,
    path::PathBuf,
};

use serde::Deserialize;

use super::cache;
use crate::{
    StageError,
    net::{
        address::redacted,
        http::{Access, Client, Watch},
        listing::{Commit, Listing, RemoteFile, bounded, is_safe_name, quoted},
        patterns::Patterns,
        verify::Check,
    },
};

/// `hf://owner/repo@revision`, or `hf://datasets/owner/repo@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::download) struct HubSource {
    dataset: bool,
    repo: String,
    revision: Option<String>,
}

/// A hub, its local cache, and the token for it.
#[derive(Debug, Clone)]
pub(super) struct Hub {
    endpoint: String,
    /// The local cache of Hugging Face's own tools.
    pub(super) cache: PathBuf,
    pub(super) offline: bool,
    token: Option<String>,
}

impl Hub {
    /// Reads variables as Hugging Face's own tools do.
    pub(super) fn of(var: impl Fn(&str) -> Option<OsString>) -> Self {
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
    pub(super) fn from_env() -> Self {
        Self::of(|name| env::var_os(name))
    }

    /// The authorisation of requests.
    pub(super) fn access(&self) -> Access {
        let endpoint = self.endpoint.clone();
        self.token.clone().map_or(Access::Open, |token| Access::Token { token, endpoint })
    }
}

/// Whether Hugging Face's own tools take the value of a variable as true.
fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_lowercase().as_str())
}

/// The hub's description of a repository at a revision.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default, deserialize_with = "bounded")]
    siblings: Vec<Sibling>,
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

impl HubSource {
    /// Parses what follows `hf://`.
    pub(in crate::download) fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "must be `hf://OWNER/REPO@REVISION` or `hf://datasets/OWNER/REPO@REVISION`";
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let (dataset, repo) = name.strip_prefix("datasets/").map_or((false, name), |repo| (true, repo));
        let is_part = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let parts: Vec<&str> = repo.split('/').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_part(part)) || revision.is_some_and(str::is_empty) {
            return Err(FORM.into());
        }
        Ok(Self { dataset, repo: repo.into(), revision: revision.map(Into::into) })
    }

    /// The requested revision: a commit, a branch or a tag.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The same repository at `commit`, as written in `source`.
    pub(super) fn pinned(&self, commit: &Commit) -> String {
        Self { revision: Some(commit.to_string()), ..self.clone() }.to_string()
    }

    /// The repository's folder in the local cache.
    pub(super) fn folder(&self) -> String {
        let kind = if self.dataset { "datasets" } else { "models" };
        format!("{kind}--{}", self.repo.replace('/', "--"))
    }

    /// Lists the files that match `patterns`; all files if there are none.
    pub(super) fn list(
        &self,
        hub: &Hub,
        patterns: &[String],
        client: &Client,
        watch: &impl Watch,
    ) -> Result<Listing, StageError> {
        let wanted = Patterns::new(patterns)?;
        if hub.offline {
            return cache::list(hub, self, &wanted);
        }
        let endpoint = &hub.endpoint;
        let kind = if self.dataset { "datasets" } else { "models" };
        let revision = escape(self.revision(), false);
        let url = format!("{endpoint}/api/{kind}/{}/revision/{revision}?blobs=true", self.repo);
        let text = client.retry(watch, |attempt| attempt.get_text(&url))?;
        self.listing(endpoint, &text, &wanted)
    }

    /// What the hub at `endpoint` has answered: the files that are wanted.
    pub(in crate::download) fn listing(
        &self,
        endpoint: &str,
        answer: &str,
        wanted: &Patterns,
    ) -> Result<Listing, StageError> {
        let info: Info = serde_json::from_str(answer).map_err(|error| {
            let help = "check that HF_ENDPOINT, if set, is a Hugging Face hub";
            StageError::failed(format!("{} doesn't answer like a Hugging Face hub: {error}", redacted(endpoint)), help)
        })?;
        let distrusted = |message: String| {
            let help = "check that HF_ENDPOINT, if set, is a Hugging Face hub that you trust";
            StageError::failed(format!("{} {message}", redacted(endpoint)), help)
        };
        let commit =
            Commit::try_from(info.sha).map_err(|what| distrusted(format!("names the commit of {self} as {what}")))?;
        if let Some(file) = info.siblings.iter().find(|file| !is_safe_name(&file.rfilename)) {
            return Err(distrusted(format!("lists a file outside the folder of {self}: {}", quoted(&file.rfilename))));
        }
        let prefix = if self.dataset { "datasets/" } else { "" };
        let base = format!("{endpoint}/{prefix}{}/resolve/{commit}", self.repo);
        let names: Vec<String> = info.siblings.iter().map(|file| file.rfilename.clone()).collect();
        let files: Vec<_> = info
            .siblings
            .into_iter()
            .filter(|file| wanted.matches(&file.rfilename))
            .map(|file| file.remote(&base))
            .collect();
        wanted.all_used(&names, self)?;
        Ok(Listing { commit: Some(commit), ..Listing::of(files) })
    }
}

impl fmt::Display for HubSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = self.revision.as_ref().map(|revision| format!("@{revision}")).unwrap_or_default();
        write!(f, "hf://{}{}{revision}", if self.dataset { "datasets/" } else { "" }, self.repo)
    }
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
fn escape(text: &str, keep_slashes: bool) -> String {
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
