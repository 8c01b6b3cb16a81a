//! The objects of a bucket that speaks S3, as a place for a program's own data: read from any byte on, written as a whole, listed,
//! removed. Each call tries again what may pass. Independent of what the objects are.

mod parts;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

use std::{
    io::{self, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ureq::{Body, http::Response};

use crate::{
    StageError,
    net::{
        http::{Access, Attempt, Client, Policy, RequestError, Watch},
        order::Order,
        s3::{S3Source, Store},
    },
};

/// Time limit of an answer to what was sent, and of a body that arrives; another request fetches what is still missing.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Tries of a request.
const ATTEMPTS: u32 = 3;
/// The most pages of a list, of usually 1000 objects each.
const MOST_PAGES: usize = 100_000;
/// Larger files are sent in parts of at least this size, in bytes.
const PART: u64 = 64 << 20;

/// A bucket, and what the names of all objects begin with.
#[derive(Clone)]
pub struct Bucket {
    client: Arc<Client>,
    store: Store,
    name: String,
    prefix: String,
    waiting: Waiting,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Without the prefix.
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// When it was last written, as ISO 8601, by the server's clock.
    pub modified: Option<String>,
}

/// The caller.
#[derive(Clone)]
struct Waiting {
    stop: Arc<AtomicBool>,
}

impl Watch for Waiting {
    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Whoever calls says what became of it.
    fn warn(&self, _message: String) {}
}

/// Whether `BUCKET/PREFIX`, or `BUCKET` alone, can be the address of objects.
pub fn is_address(text: &str) -> bool {
    S3Source::parse(text).is_ok() && !text.contains(['?', '#']) && !text.contains(char::is_control)
}

impl Bucket {
    /// The objects below `BUCKET/PREFIX`. Credentials, region, endpoint and proxies are those of the environment. An answer is waited
    /// for as long as `patience`, and longer with each try. All calls end soon once `stop` is set.
    ///
    /// # Errors
    /// If the address or the environment is not valid. Nothing is asked of the server yet.
    pub fn open(address: &str, patience: Duration, stop: Arc<AtomicBool>) -> Result<Self, StageError> {
        let source = S3Source::parse(address).map_err(|message| StageError::failed(message, "correct the address"))?;
        let store = Store::from_env(&source)?;
        let policy = Policy {
            first_pause: patience.min(Duration::from_millis(500)),
            longest_pause: Duration::from_secs(5),
            longest_wait: Duration::from_secs(10),
            attempts: ATTEMPTS,
            timeout: TIMEOUT.max(patience),
            patience,
            ..Policy::of_this_machine()?
        };
        Ok(Self::with(source, store, policy, stop))
    }

    fn with(source: S3Source, store: Store, policy: Policy, stop: Arc<AtomicBool>) -> Self {
        let client = Arc::new(Client::new(policy, Access::Signed(store.clone())));
        let prefix =
            if source.key.is_empty() { String::new() } else { format!("{}/", source.key.trim_end_matches('/')) };
        Self { client, store, name: source.bucket, prefix, waiting: Waiting { stop } }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn url(&self, name: &str) -> String {
        format!("s3://{}/{}", self.name, self.key(name))
    }

    fn order(
        &self,
        attempt: &Attempt<'_>,
        url: &str,
        order: &Order,
        headers: &[(&str, String)],
    ) -> Result<Response<Body>, RequestError> {
        attempt.order(url, order, headers, self.client.policy.timeout)
    }

    /// The size of an object in bytes. `None` if there is none.
    pub fn size(&self, name: &str) -> Result<Option<u64>, StageError> {
        let url = self.url(name);
        self.client.retry(&self.waiting, |attempt| {
            let response = self.order(attempt, &url, &Order::Head, &[])?;
            if response.status() == 404 {
                return Ok(None);
            }
            let response = attempt.check_status(&url, response)?;
            let size = header(&response, "content-length").and_then(|length| length.parse().ok());
            size.map(Some).ok_or_else(|| RequestError::transient("the server does not say how large an object is"))
        })
    }

    /// An object from the byte `from` on. `None` if there is none.
    pub fn read(&self, name: &str, from: u64) -> Result<Option<Box<dyn Read + Send>>, StageError> {
        let url = self.url(name);
        let range = (from > 0).then(|| ("range", format!("bytes={from}-")));
        self.client.retry(&self.waiting, |attempt| {
            let mut response = self.order(attempt, &url, &Order::Get, range.as_slice())?;
            match response.status().as_u16() {
                404 => return self.absent(&url, &mut response).map(|()| None),
                // There is nothing from there on.
                416 => return Ok(Some(Box::new(io::empty()) as Box<dyn Read + Send>)),
                _ => {}
            }
            let response = attempt.check_status(&url, response)?;
            let begins = match response.status().as_u16() {
                206 => header(&response, "content-range").and_then(beginning),
                _ => Some(0),
            };
            let skip = begins.and_then(|begins| from.checked_sub(begins));
            let skip = skip.ok_or_else(|| RequestError::transient("the server sent another part of an object"))?;
            let mut body = response.into_body().into_reader();
            // A server that knows no ranges sends all.
            let skipped = io::copy(&mut body.by_ref().take(skip), &mut io::sink());
            skipped.map_err(|error| RequestError::transient(format!("the connection was lost ({error})")))?;
            Ok(Some(Box::new(body)))
        })
    }

    /// Tells an object that is not there from a bucket that is not there.
    fn absent(&self, url: &str, response: &mut Response<Body>) -> Result<(), RequestError> {
        let text = response.body_mut().with_config().limit(1 << 16).read_to_string().unwrap_or_default();
        if text.contains("<Code>NoSuchBucket</Code>") {
            let message = format!("there is no bucket `{}`", self.name);
            return Err(RequestError::Fatal(StageError::failed(message, "create it, or correct the address")));
        }
        tracing::debug!("{url} is not there");
        Ok(())
    }

    /// Writes an object. If it is to be `new`, false if there is one already: of several writers at once, one succeeds, if the server
    /// knows conditions.
    pub fn write(&self, name: &str, bytes: &[u8], new: bool) -> Result<bool, StageError> {
        let (url, order) = (self.url(name), Order::Store { bytes: bytes.into() });
        let condition = new.then(|| ("if-none-match", "*".to_string()));
        let written = self.client.retry(&self.waiting, |attempt| {
            let response = self.order(attempt, &url, &order, condition.as_slice())?;
            match response.status().as_u16() {
                412 if new => Ok(Some(false)),
                409 if new => Err(RequestError::transient("another machine writes the same object")),
                // It knows no conditions.
                400 | 501 if new => Ok(None),
                _ => attempt.check_status(&url, response).map(|_| Some(true)),
            }
        })?;
        match written {
            Some(written) => Ok(written),
            None if self.size(name)?.is_some() => Ok(false),
            None => self.write(name, bytes, false),
        }
    }

    /// Writes a file of `size` bytes as an object, and adds what has left to `sent`.
    pub fn write_file(&self, name: &str, file: &Path, size: u64, sent: &Arc<AtomicU64>) -> Result<(), StageError> {
        if size > PART {
            return self.write_parts(name, file, size, sent);
        }
        let url = self.url(name);
        self.client.retry(&self.waiting, |attempt| self.put(attempt, &url, file, 0..size, sent).map(drop))
    }

    /// Calls `each` for all objects whose names begin with `folder` and a slash.
    pub fn list(&self, folder: &str, each: &mut dyn FnMut(Listed)) -> Result<(), StageError> {
        let prefix = self.key(&format!("{folder}/"));
        let mut after = None;
        for _ in 0..MOST_PAGES {
            let page =
                self.client.retry(&self.waiting, |attempt| self.store.page(attempt, &prefix, after.as_deref()))?;
            for object in page.contents {
                if let Some(name) = object.key.strip_prefix(&self.prefix) {
                    each(Listed {
                        name: name.into(),
                        size: object.size.unwrap_or_default(),
                        modified: object.last_modified,
                    });
                }
            }
            after = page.next_continuation_token.filter(|token| !token.is_empty());
            if after.is_none() {
                return Ok(());
            }
            if self.waiting.stopped() {
                return Err(StageError::Cancelled);
            }
        }
        Err(StageError::failed("the server's list of objects does not end", "check the endpoint"))
    }

    /// Removes an object, if there is one.
    pub fn remove(&self, name: &str) -> Result<(), StageError> {
        let url = self.url(name);
        self.client.retry(&self.waiting, |attempt| {
            let response = self.order(attempt, &url, &Order::Delete, &[])?;
            if response.status() == 404 { Ok(()) } else { attempt.check_status(&url, response).map(drop) }
        })
    }
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The first byte in `bytes 5-99/1000`.
fn beginning(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}
