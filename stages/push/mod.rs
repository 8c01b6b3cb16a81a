//! Pushes files to a repository of a Hugging Face hub, in one commit. Independent of what the files are, and of how progress is shown.
//!
//! The requests are those of the `huggingface_hub` library (`_commit_api.py`, `lfs.py`): which files go into git and which into the
//! storage of large files is the hub's decision.

mod commit;
mod large;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use rayon::prelude::*;
use serde_json::Value;
use ureq::{Body, http::Response};

use crate::{
    StageError,
    net::{
        address::redacted,
        http::{Attempt, Client, Policy, RequestError, Watch},
        hub::{self, Hub, escape, is_part},
        listing::{Commit, RemoteFile, quoted},
        order::Order,
        verify::verify,
    },
};

/// The hub answers at once, but for the end of an upload and for a commit of many files.
const PATIENCE: Duration = Duration::from_mins(10);
/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: u64 = 64 << 20;
/// What a repository's card is called.
pub const CARD: &str = "README.md";

/// `hf://OWNER/REPO`, or `hf://OWNER/REPO@BRANCH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    owner: String,
    name: String,
    branch: Option<String>,
}

impl Repository {
    /// Parses the address of a model repository.
    ///
    /// # Errors
    /// In words, if it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let form = || format!("`{}` must be `hf://OWNER/REPO` or `hf://OWNER/REPO@BRANCH`", text.escape_debug());
        let rest = text.strip_prefix("hf://").ok_or_else(form)?;
        let (path, branch) = rest.split_once('@').map_or((rest, None), |(path, branch)| (path, Some(branch)));
        let (owner, name) =
            path.split_once('/').filter(|(owner, name)| is_part(owner) && is_part(name)).ok_or_else(form)?;
        if branch.is_some_and(|branch| branch.split('/').any(|part| !is_part(part))) {
            return Err(form());
        }
        Ok(Self { owner: owner.into(), name: name.into(), branch: branch.map(Into::into) })
    }

    fn path(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    fn branch(&self) -> String {
        escape(self.branch.as_deref().unwrap_or("main"), false)
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let branch = self.branch.as_ref().map(|branch| format!("@{branch}")).unwrap_or_default();
        write!(f, "hf://{}/{}{branch}", self.owner, self.name)
    }
}

/// A file that is to be in the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFile {
    /// Its path in the repository.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// What a push would do.
#[derive(Debug)]
pub struct Outlook {
    /// Whether the repository would be made.
    pub creates: bool,
    /// Whether a token was found.
    pub has_token: bool,
    /// Files that are not at the hub, or there with another content.
    pub changed: Vec<LocalFile>,
    /// The number of files that are there already.
    pub same: usize,
    /// The names of files that are at the hub only.
    pub stale: Vec<String>,
    /// The commit that this was compared with.
    parent: Option<Commit>,
}

/// What else a push does.
#[derive(Debug, Clone)]
pub struct Options {
    /// A repository that is made can be seen by its owner only.
    pub private: bool,
    /// Files that are at the hub only are removed.
    pub delete: bool,
    /// The first line of the commit.
    pub message: String,
}

/// A push to one repository.
pub struct Push<'a> {
    hub: Hub,
    to: Repository,
    client: Client,
    warn: &'a (dyn Fn(&str) + Sync),
}

impl Watch for Push<'_> {
    fn stopped(&self) -> bool {
        false
    }

    fn warn(&self, message: String) {
        (self.warn)(&message);
    }
}

impl<'a> Push<'a> {
    /// A push to `to`, to the hub and with the token that the environment names. `warn` is told what is tried again.
    ///
    /// # Errors
    /// If the environment forbids it, or its variables are not valid.
    pub fn new(to: Repository, warn: &'a (dyn Fn(&str) + Sync)) -> Result<Self, StageError> {
        Self::to_hub(Hub::from_env(), to, Policy::of_this_machine()?, warn)
    }

    fn to_hub(hub: Hub, to: Repository, policy: Policy, warn: &'a (dyn Fn(&str) + Sync)) -> Result<Self, StageError> {
        if hub.offline {
            return Err(StageError::failed("HF_HUB_OFFLINE forbids to push", "unset HF_HUB_OFFLINE"));
        }
        let client = Client::new(policy, hub.access());
        Ok(Self { hub, to, client, warn })
    }

    /// Compares `files` with those at the hub. Changes nothing there.
    ///
    /// # Errors
    /// If the hub can't be asked, or a file can't be read.
    pub fn outlook(&self, files: &[LocalFile]) -> Result<Outlook, StageError> {
        let there = self.list()?;
        let (parent, there) = there.map_or((None, Vec::new()), |(parent, files)| (Some(parent), files));
        let is_there = |file: &LocalFile| there.iter().any(|remote| remote.name == file.name && is_same(file, remote));
        let (same, changed): (Vec<_>, Vec<_>) = files.par_iter().cloned().partition(is_there);
        let is_ours = |name: &str| files.iter().any(|file| file.name == name);
        // Made by the hub, and by people.
        let stays = |name: &str| [".gitattributes", CARD].contains(&name);
        let stale = there.into_iter().map(|file| file.name).filter(|name| !is_ours(name) && !stays(name)).collect();
        Ok(Outlook {
            creates: parent.is_none(),
            has_token: self.client.has_token(),
            changed,
            same: same.len(),
            stale,
            parent,
        })
    }

    /// The card that is at the hub, if there is one.
    ///
    /// # Errors
    /// If the hub can't be asked.
    pub fn card(&self) -> Result<Option<String>, StageError> {
        let Some((commit, files)) = self.list()? else { return Ok(None) };
        if files.iter().all(|file| file.name != CARD) {
            return Ok(None);
        }
        let url = format!("{}/{}/resolve/{commit}/{CARD}", self.hub.endpoint, self.to.path());
        self.client.retry(self, |attempt| attempt.get_text(&url)).map(Some)
    }

    /// Does what `outlook` says, in one commit, and checks that the hub has it. Adds the uploaded bytes to `sent`. Returns the page of
    /// the commit. What was uploaded before an error is not uploaded again.
    ///
    /// # Errors
    /// If there is no token, the hub refuses, or the repository was changed meanwhile.
    pub fn run(&self, outlook: &Outlook, options: &Options, sent: &Arc<AtomicU64>) -> Result<String, StageError> {
        if !outlook.has_token {
            return Err(StageError::failed("there is no token for the hub", TOKEN_HELP));
        }
        let parent = if outlook.creates { self.create(options.private)? } else { outlook.parent.clone() };
        let ways = self.ways(&outlook.changed)?;
        for file in ways.iter().filter(|file| file.large) {
            self.upload(file, sent)?;
        }
        let removed = if options.delete { outlook.stale.as_slice() } else { &[] };
        self.commit(&ways, removed, parent.as_ref(), &options.message)
    }

    /// The head of the branch and its files; `None` if there is no such repository.
    fn list(&self) -> Result<Option<(Commit, Vec<RemoteFile>)>, StageError> {
        let url = format!("{}/revision/{}?blobs=true", self.api(), self.to.branch());
        self.client.retry(self, |attempt| {
            let response = attempt.order(&url, &Order::Get, &[], PATIENCE)?;
            let code = error_code(&response);
            if response.status() == 404 && code == "RevisionNotFound" {
                let message = format!("{}: there is no such branch", self.to);
                return Err(RequestError::Fatal(StageError::failed(message, "make it on the page of the repository")));
            }
            // Private repositories, and those that don't exist, look the same to others.
            if matches!(response.status().as_u16(), 401 | 404) && ["RepoNotFound", ""].contains(&code.as_str()) {
                return Ok(None);
            }
            let text = text(self.check(response)?)?;
            hub::listed(&self.hub.endpoint, &self.to.path(), &self.to, &text).map(Some).map_err(RequestError::Fatal)
        })
    }

    /// Makes the repository. Returns the commit that it begins with.
    fn create(&self, private: bool) -> Result<Option<Commit>, StageError> {
        let url = format!("{}/api/repos/create", self.hub.endpoint);
        let order = json(&serde_json::json!({
            "type": "model", "name": self.to.name, "organization": self.to.owner, "private": private,
        }));
        self.client.retry(self, |attempt| {
            let response = attempt.order(&url, &order, &[], PATIENCE)?;
            // Another push, or the answer to an earlier try was lost.
            if response.status() == 409 { Ok(()) } else { self.check(response).map(drop) }
        })?;
        Ok(self.list()?.map(|(commit, _)| commit))
    }

    fn api(&self) -> String {
        format!("{}/api/models/{}", self.hub.endpoint, self.to.path())
    }

    /// Sends a question in JSON and reads the answer.
    fn ask(
        &self,
        attempt: &Attempt<'_>,
        url: &str,
        order: &Order,
        headers: &[(&str, String)],
    ) -> Result<Value, RequestError> {
        let text = text(self.check(attempt.order(url, order, headers, PATIENCE)?)?)?;
        serde_json::from_str(&text).map_err(|error| RequestError::Fatal(self.not_a_hub(&error.to_string())))
    }

    fn not_a_hub(&self, what: &str) -> StageError {
        let message = format!("{} doesn't answer like a Hugging Face hub: {what}", redacted(&self.hub.endpoint));
        StageError::failed(message, "check that HF_ENDPOINT, if set, is a Hugging Face hub")
    }

    /// Refuses what the hub refuses, in its words.
    fn check(&self, response: Response<Body>) -> Result<Response<Body>, RequestError> {
        let status = response.status().as_u16();
        let help = match status {
            200..=299 => return Ok(response),
            408 | 429 | 500.. => {
                let message = format!("{} answered {}", redacted(&self.hub.endpoint), response.status());
                return Err(RequestError::not_now(message, response.headers()));
            }
            401 => TOKEN_HELP,
            402 | 403 => {
                "use a token with the right to write into this repository, and look at what its owner may store"
            }
            409 | 412 => "the repository was changed meanwhile: run the same command again, what was uploaded is kept",
            _ => "run the same command again, what was uploaded is kept; if it stays, ask the hub",
        };
        let words = error_words(response);
        let message = format!("{}: the hub refused with {status}{words}", self.to);
        Err(RequestError::Fatal(StageError::failed(message, help)))
    }
}

const TOKEN_HELP: &str =
    "set HF_TOKEN to a token with write access (huggingface.co/settings/tokens), or run `hf auth login`";

/// Whether a file at the hub has the content of a local one.
fn is_same(file: &LocalFile, remote: &RemoteFile) -> bool {
    let same_size = remote.size.is_none_or(|bytes| bytes == file.bytes);
    same_size && !remote.checks.is_empty() && verify(&file.path, &remote.checks).is_ok()
}

fn json(value: &Value) -> Order {
    Order::Post { content_type: "application/json", text: value.to_string().into_bytes().into() }
}

fn text(response: Response<Body>) -> Result<String, RequestError> {
    let mut body = response.into_body();
    body.with_config().limit(LONGEST_ANSWER).read_to_string().map_err(|error| match error {
        ureq::Error::BodyExceedsLimit(limit) => {
            let message = format!("the hub answered with more than {limit} bytes");
            RequestError::Fatal(StageError::failed(message, "check that HF_ENDPOINT, if set, is a Hugging Face hub"))
        }
        error => RequestError::transient(format!("the connection to the hub was lost ({error})")),
    })
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> &'r str {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn error_code(response: &Response<Body>) -> String {
    header(response, "x-error-code").into()
}

/// What the hub says of an error: in a header, or in the answer.
fn error_words(response: Response<Body>) -> String {
    const LONGEST: u64 = 10_000;
    let said = header(&response, "x-error-message").to_string();
    let said = if said.is_empty() {
        let text = response.into_body().with_config().limit(LONGEST).read_to_string().unwrap_or_default();
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        value["error"].as_str().unwrap_or_default().to_string()
    } else {
        said
    };
    if said.is_empty() { String::new() } else { format!(", and says {}", quoted(&said)) }
}
