//! The Hugging Face hub: lists the files of a repository at a commit. Independent of how files are transferred.

use std::fmt;

use super::cache;
use crate::{
    StageError,
    net::{
        http::{Client, Watch},
        hub::{self, Hub, escape, is_part},
        listing::{Commit, Listing},
        patterns::Patterns,
    },
};

/// `hf://owner/repo@revision`, or `hf://datasets/owner/repo@revision`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::download) struct HubSource {
    dataset: bool,
    repo: String,
    revision: Option<String>,
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
        let path = format!("{}{}", if self.dataset { "datasets/" } else { "" }, self.repo);
        let (commit, files) = hub::listed(endpoint, &path, self, answer)?;
        if files.is_empty() {
            return Err(StageError::failed(format!("{self} has no files"), "check `source`"));
        }
        let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        let files = files.into_iter().filter(|file| wanted.matches(&file.name)).collect();
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
