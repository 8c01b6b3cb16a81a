//! The commit: which way each file goes, and the message that names them all. Independent of how large files are uploaded.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use serde_json::json;

use super::{LocalFile, Push, is_same, json as post};
use crate::{
    StageError,
    net::{
        http::RequestError,
        listing::{Commit, quoted},
        order::Order,
        verify::sha256,
    },
};

/// The hub looks at the beginning of each file.
const SAMPLE: u64 = 512;
/// Files in one question.
const AT_ONCE: usize = 256;
/// The most bytes that a commit itself may hold: they are in memory, and the hub wants larger files in its other storage.
const MOST_IN_GIT: u64 = 100_000_000;

/// A file, and the way that it goes.
pub(super) struct Way<'a> {
    pub(super) file: &'a LocalFile,
    /// Uploaded beforehand, and named in the commit by its digest.
    pub(super) large: bool,
    /// Of a large file, in hexadecimal digits.
    pub(super) sha256: String,
}

#[derive(Deserialize)]
struct Answer {
    files: Vec<Mode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    #[serde(rename = "uploadMode")]
    way: String,
    #[serde(default)]
    should_ignore: bool,
}

impl Push<'_> {
    /// Asks which way each file goes.
    pub(super) fn ways<'a>(&self, files: &'a [LocalFile]) -> Result<Vec<Way<'a>>, StageError> {
        let mut modes = BTreeMap::new();
        for files in files.chunks(AT_ONCE) {
            let samples: Vec<_> = files.iter().map(sample).collect::<Result<_, _>>()?;
            let url = format!("{}/preupload/{}", self.api(), self.to.branch());
            let order = post(&json!({ "files": samples }));
            let answer = self.client.retry(self, |attempt| self.ask(attempt, &url, &order, &[]))?;
            let answer: Answer = serde_json::from_value(answer).map_err(|error| self.not_a_hub(&error.to_string()))?;
            modes.extend(answer.files.into_iter().map(|mode| (mode.path.clone(), mode)));
        }
        let ways = files.iter().map(|file| self.way(file, modes.get(&file.name)));
        let ways = ways.collect::<Result<Vec<_>, _>>()?;
        let in_git = ways.iter().filter(|way| !way.large).map(|way| way.file.bytes).sum::<u64>();
        if in_git > MOST_IN_GIT {
            let message =
                format!("{}: the hub wants {in_git} bytes in git itself, and {MOST_IN_GIT} are the limit", self.to);
            return Err(StageError::failed(
                message,
                "name the endings of large files in the repository's .gitattributes",
            ));
        }
        Ok(ways)
    }

    fn way<'a>(&self, file: &'a LocalFile, mode: Option<&Mode>) -> Result<Way<'a>, StageError> {
        let mode = mode.ok_or_else(|| self.not_a_hub(&format!("it says nothing of {}", quoted(&file.name))))?;
        if mode.should_ignore {
            let message = format!("{}: its .gitignore leaves out {}", self.to, quoted(&file.name));
            return Err(StageError::failed(message, "change .gitignore on the page of the repository"));
        }
        let large = match mode.way.as_str() {
            // The other storage holds no empty files.
            _ if file.bytes == 0 => false,
            "regular" => false,
            "lfs" => true,
            other => return Err(self.not_a_hub(&format!("{} is no way to upload", quoted(other)))),
        };
        let sha256 = if large { sha256(&file.path).map_err(StageError::io(&file.path))? } else { String::new() };
        Ok(Way { file, large, sha256 })
    }

    /// Makes the commit. Returns its page.
    pub(super) fn commit(
        &self,
        ways: &[Way<'_>],
        removed: &[String],
        parent: Option<&Commit>,
        message: &str,
    ) -> Result<String, StageError> {
        let url = format!("{}/commit/{}", self.api(), self.to.branch());
        let order = order(ways, removed, parent, message)?;
        let page = self.client.retry(self, |attempt| match self.ask(attempt, &url, &order, &[]) {
            Ok(answer) => Ok(answer["commitUrl"].as_str().map(String::from)),
            // It wants to be asked later, and not at once about something else.
            Err(error @ RequestError::Transient { after: Some(_), .. }) => Err(error),
            // The answer to an earlier try may have been lost.
            Err(_) if self.is_done(ways, removed)? => Ok(None),
            Err(error) => Err(error),
        })?;
        if !self.is_done(ways, removed).map_err(fatal)? {
            let message = format!("{}: the hub took the commit, and does not have its files", self.to);
            return Err(StageError::failed(message, "run the same command again"));
        }
        let page = page.filter(|page| page.starts_with(&self.hub.endpoint) && !page.contains(char::is_control));
        Ok(page.unwrap_or_else(|| format!("{}/{}", self.hub.endpoint, self.to.path())))
    }

    /// Whether the hub has the files, and none of those that were to be removed.
    fn is_done(&self, ways: &[Way<'_>], removed: &[String]) -> Result<bool, RequestError> {
        let Some((_, there)) = self.list().map_err(RequestError::Fatal)? else { return Ok(false) };
        let has = |file: &LocalFile| there.iter().any(|remote| remote.name == file.name && is_same(file, remote));
        Ok(ways.iter().all(|way| has(way.file)) && !there.iter().any(|remote| removed.contains(&remote.name)))
    }
}

fn fatal(error: RequestError) -> StageError {
    match error {
        RequestError::Fatal(error) => error,
        RequestError::Transient { what, .. } => StageError::transient(what, "run the same command again"),
    }
}

fn sample(file: &LocalFile) -> Result<serde_json::Value, StageError> {
    let mut bytes = Vec::new();
    let read = File::open(&file.path).and_then(|open| open.take(SAMPLE).read_to_end(&mut bytes));
    read.map_err(StageError::io(&file.path))?;
    Ok(json!({"path": file.name, "sample": BASE64_STANDARD.encode(bytes), "size": file.bytes}))
}

/// The request: one JSON object a line.
fn order(ways: &[Way<'_>], removed: &[String], parent: Option<&Commit>, message: &str) -> Result<Order, StageError> {
    let mut header = json!({"summary": message, "description": ""});
    if let Some(parent) = parent {
        header["parentCommit"] = parent.to_string().into();
    }
    let mut lines = json!({"key": "header", "value": header}).to_string() + "\n";
    for Way { file, large, sha256 } in ways {
        let line = if *large {
            json!({"key": "lfsFile", "value": {"path": file.name, "algo": "sha256", "oid": sha256, "size": file.bytes}})
        } else {
            let content = BASE64_STANDARD.encode(fs::read(&file.path).map_err(StageError::io(&file.path))?);
            json!({"key": "file", "value": {"path": file.name, "encoding": "base64", "content": content}})
        };
        lines += &(line.to_string() + "\n");
    }
    for name in removed {
        lines += &(json!({"key": "deletedFile", "value": {"path": name}}).to_string() + "\n");
    }
    Ok(Order::Post { content_type: "application/x-ndjson", text: lines.into_bytes().into() })
}
