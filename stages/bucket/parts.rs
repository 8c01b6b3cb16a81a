//! Large files, which are sent in parts: each is tried again by itself, and several go at once.

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::{Bucket, PART, header};
use crate::{
    StageError,
    net::{
        http::{Attempt, RequestError},
        order::Order,
        s3::Store,
    },
};

/// Parts of one file that are sent at once.
const CONNECTIONS: usize = 4;
/// The most parts of a file, a little below what S3 allows.
const MOST_PARTS: u64 = 9_000;
/// Time limit of the answer to a request about all parts: servers take minutes to join them.
const PATIENCE: Duration = Duration::from_mins(4);

impl Bucket {
    /// Sends a part of a file. Returns the server's name for it.
    pub(super) fn put(
        &self,
        attempt: &Attempt<'_>,
        url: &str,
        file: &Path,
        range: Range<u64>,
        sent: &Arc<AtomicU64>,
    ) -> Result<String, RequestError> {
        let here = Arc::new(AtomicU64::new(0));
        let order = Order::Put { file: file.to_path_buf(), range, sent: [here.clone(), sent.clone()] };
        let answer = self.order(attempt, url, &order, &[]).and_then(|response| attempt.check_status(url, response));
        let response = answer.inspect_err(|_| {
            // It will be sent again, or never.
            sent.fetch_sub(here.load(Relaxed), Relaxed);
        })?;
        Ok(header(&response, "etag").unwrap_or_default().into())
    }

    /// Writes a large file as an object.
    pub(super) fn write_parts(
        &self,
        name: &str,
        file: &Path,
        size: u64,
        sent: &Arc<AtomicU64>,
    ) -> Result<(), StageError> {
        let key = self.key(name);
        let begun = self.post(&self.store.begin_parts(&key), "")?;
        let upload = Store::upload_id(&begun).ok_or_else(|| odd("the server begins no upload in parts"))?;
        let written = self.send_parts(&key, &upload, file, size, sent).and_then(|etags| {
            let (url, body) = self.store.end_parts(&key, &upload, &etags);
            match self.post(&url, &body) {
                // The first of several requests has ended the upload, and its answer was lost.
                Err(error) if error.to_string().contains("NoSuchUpload") && self.size(name)? == Some(size) => Ok(()),
                ended => ended.map(drop),
            }
        });
        if written.is_err() {
            // Parts that nobody joins stay, and are paid for.
            let url = self.store.abort_parts(&key, &upload);
            let _ = self.client.retry(&self.waiting, |attempt| self.order(attempt, &url, &Order::Delete, &[]));
        }
        written
    }

    fn post(&self, url: &str, body: &str) -> Result<String, StageError> {
        let order = Order::Post { content_type: "application/xml", text: body.as_bytes().into() };
        self.client.retry(&self.waiting, |attempt| {
            let response = attempt.check_status(url, attempt.order(url, &order, &[], PATIENCE)?)?;
            let text = response.into_body().with_config().limit(1 << 20).read_to_string();
            match text {
                // The server says 200 before it knows.
                Ok(text) if text.contains("<Error>") => {
                    Err(RequestError::transient("the server could not join the parts of a file"))
                }
                Ok(text) => Ok(text),
                Err(error) => Err(RequestError::transient(format!("the connection was lost ({error})"))),
            }
        })
    }

    /// Sends all parts, and returns their names in order.
    fn send_parts(
        &self,
        key: &str,
        upload: &str,
        file: &Path,
        size: u64,
        sent: &Arc<AtomicU64>,
    ) -> Result<Vec<String>, StageError> {
        let parts = parts(size);
        let etags = Mutex::new(vec![String::new(); parts.len()]);
        let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
        let failure = || failed.lock().unwrap_or_else(PoisonError::into_inner);
        let work = || {
            while failure().is_none() {
                let at = next.fetch_add(1, Relaxed);
                let Some(range) = parts.get(at) else { return };
                let put = self.client.retry(&self.waiting, |attempt| {
                    let url = self.store.part(key, at as u16 + 1, upload);
                    self.put(attempt, &url, file, range.clone(), sent)
                });
                match put {
                    Ok(etag) => etags.lock().unwrap_or_else(PoisonError::into_inner)[at] = etag,
                    Err(error) => drop(failure().get_or_insert(error)),
                }
            }
        };
        thread::scope(|scope| {
            for _ in 0..CONNECTIONS.min(parts.len()) {
                scope.spawn(work);
            }
        });
        let error = failure().take();
        error.map_or_else(|| Ok(etags.into_inner().unwrap_or_else(PoisonError::into_inner)), Err)
    }
}

/// The parts of a file of `size` bytes.
fn parts(size: u64) -> Vec<Range<u64>> {
    let length = PART.max(size.div_ceil(MOST_PARTS));
    (0..size.div_ceil(length)).map(|at| at * length..((at + 1) * length).min(size)).collect()
}

fn odd(what: &str) -> StageError {
    StageError::failed(what, "check that the endpoint speaks S3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_make_the_file() {
        for size in [PART + 1, 3 * PART, 5 << 40] {
            let parts = parts(size);
            assert!(parts.len() as u64 <= MOST_PARTS && parts[0].start == 0);
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
            assert_eq!(parts.last().map(|part| part.end), Some(size));
        }
    }
}
