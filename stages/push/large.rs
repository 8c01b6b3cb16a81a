//! Uploads a large file by the protocol of Git LFS, whole or in the parts that the hub asks for. Independent of the commit.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{PATIENCE, Push, commit::Way, header};
use crate::{
    StageError,
    net::{listing::quoted, order::Order},
};

const CONTENT_TYPE: &str = "application/vnd.git-lfs+json";
/// Parts of one file that are uploaded at once.
const CONNECTIONS: usize = 4;
/// The most parts of a file, as in object stores.
const MOST_PARTS: u64 = 10_000;

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    /// None if the content is there already.
    actions: Option<Actions>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, String>,
}

impl Push<'_> {
    /// Uploads a file, unless the hub has its content. Adds what was sent to `sent`, and in the end the whole size.
    pub(super) fn upload(&self, way: &Way<'_>, sent: &Arc<AtomicU64>) -> Result<(), StageError> {
        let before = sent.load(Relaxed);
        let size = way.file.bytes;
        if let Some(Actions { upload: Some(upload), verify }) = self.actions(way)? {
            self.check_address(&upload.href)?;
            if let Some(chunk) = upload.header.get("chunk_size") {
                self.upload_parts(way, &upload, chunk, sent)?;
            } else {
                let headers: Vec<_> =
                    upload.header.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
                self.put(way, &upload.href, 0..size, &headers, sent)?;
            }
            if let Some(verify) = verify {
                self.check_address(&verify.href)?;
                self.tell(&verify.href, &json!({"oid": way.sha256, "size": size}))?;
            }
        }
        sent.store(before + size, Relaxed);
        Ok(())
    }

    /// What the hub wants to be done for a file.
    fn actions(&self, way: &Way<'_>) -> Result<Option<Actions>, StageError> {
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.hub.endpoint, self.to.path());
        let order = lfs(&json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "objects": [{"oid": way.sha256, "size": way.file.bytes}],
        }));
        let accept = [("accept", CONTENT_TYPE.to_string())];
        let answer = self.client.retry(self, |attempt| self.ask(attempt, &url, &order, &accept))?;
        let batch: Batch = serde_json::from_value(answer).map_err(|error| self.not_a_hub(&error.to_string()))?;
        let object = batch.objects.into_iter().find(|object| object.oid == way.sha256);
        let object = object.ok_or_else(|| self.not_a_hub(&format!("it says nothing of {}", quoted(&way.file.name))))?;
        match object.error {
            None => Ok(object.actions),
            Some(error) => {
                let said = quoted(error["message"].as_str().unwrap_or("nothing more"));
                let message = format!("{}: the hub does not take {}, and says {said}", self.to, quoted(&way.file.name));
                Err(StageError::failed(message, "look at what the owner of the repository may store"))
            }
        }
    }

    /// Weights that go to the hub encrypted go to its storage encrypted, too.
    fn check_address(&self, url: &str) -> Result<(), StageError> {
        let scheme = if self.hub.endpoint.starts_with("https://") { "https://" } else { "http" };
        if url.starts_with(scheme) {
            Ok(())
        } else {
            Err(self.not_a_hub("it names an address for uploads that is not safe"))
        }
    }

    fn upload_parts(
        &self,
        way: &Way<'_>,
        upload: &Action,
        chunk: &str,
        sent: &Arc<AtomicU64>,
    ) -> Result<(), StageError> {
        let size = way.file.bytes;
        let parts =
            parts(&upload.header, chunk, size).ok_or_else(|| self.not_a_hub("its parts of a file don't make it"))?;
        for part in &parts {
            self.check_address(&part.url)?;
        }
        let (next, etags) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let work = || -> Result<(), StageError> {
            while let Some(part) = parts.get(next.fetch_add(1, Relaxed)) {
                let etag = self.put(way, &part.url, part.range.clone(), &[], sent)?;
                etags.lock().unwrap_or_else(PoisonError::into_inner).insert(part.number, etag);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..CONNECTIONS.min(parts.len())).map(|_| scope.spawn(work)).collect();
            let ended = workers.into_iter().map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err(StageError::failed("an upload ended early", "run the same command again")))
            });
            ended.collect::<Vec<_>>().into_iter().collect::<Result<(), StageError>>()
        })?;
        let etags = etags.into_inner().unwrap_or_else(PoisonError::into_inner);
        let parts: Vec<_> = etags.iter().map(|(number, etag)| json!({"partNumber": number, "etag": etag})).collect();
        self.tell(&upload.href, &json!({"oid": way.sha256, "parts": parts}))
    }

    /// Sends a part of a file. Returns the storage's name for it.
    fn put(
        &self,
        way: &Way<'_>,
        url: &str,
        range: Range<u64>,
        headers: &[(&str, String)],
        sent: &Arc<AtomicU64>,
    ) -> Result<String, StageError> {
        self.client.retry(self, |attempt| {
            let here = Arc::new(AtomicU64::new(0));
            let counts = [here.clone(), sent.clone()];
            let order = Order::Put { file: way.file.path.clone(), range: range.clone(), sent: counts };
            let answer = attempt.order(url, &order, headers, PATIENCE).and_then(|response| self.check(response));
            let response = answer.inspect_err(|_| {
                sent.fetch_sub(here.load(Relaxed), Relaxed);
            })?;
            Ok(header(&response, "etag").to_string())
        })
    }

    fn tell(&self, url: &str, what: &Value) -> Result<(), StageError> {
        let order = lfs(what);
        self.client.retry(self, |attempt| self.check(attempt.order(url, &order, &[], PATIENCE)?).map(drop))
    }
}

fn lfs(value: &Value) -> Order {
    Order::Post { content_type: CONTENT_TYPE, text: value.to_string().into_bytes().into() }
}

/// A part of a file, from 1 on.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    number: u64,
    url: String,
    range: Range<u64>,
}

/// The parts that the hub names for a file. `None` if they don't make a file of this size.
fn parts(header: &BTreeMap<String, String>, chunk: &str, size: u64) -> Option<Vec<Part>> {
    let chunk: u64 = chunk.parse().ok().filter(|chunk| *chunk > 0)?;
    let count = size.div_ceil(chunk);
    let numbered: BTreeMap<u64, &String> =
        header.iter().filter_map(|(name, url)| Some((name.parse().ok()?, url))).collect();
    if count > MOST_PARTS || !numbered.keys().copied().eq(1..=count) {
        return None;
    }
    let part = |(number, url): (u64, &String)| Part {
        number,
        url: url.clone(),
        range: (number - 1) * chunk..number.saturating_mul(chunk).min(size),
    };
    Some(numbered.into_iter().map(part).collect())
}
