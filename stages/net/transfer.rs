//! Downloads files over several connections at once, in chunks that are requested again when a connection is lost, and
//! resumes what an earlier process began. Independent of the kind of server.

use std::{
    collections::VecDeque,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rayon::prelude::*;
use ureq::{Body, http::Response};

use super::{
    address::redacted,
    chunks::{Part, Plan, is_strong},
    http::{Attempt, Client, RequestError, Watch, cut_off},
    listing::RemoteFile,
    verify::verify,
};
use crate::{
    Job, StageError,
    contract::event::{BYTES, Progress},
};

/// Simultaneous requests.
const CONNECTIONS: usize = 8;
/// Time between two saves of the state on disk.
const SAVE_INTERVAL: Duration = Duration::from_secs(2);
/// Largest size in bytes that a server may report: 16 TiB. The state of a download takes 8 bytes for each chunk.
const LARGEST_FILE: u64 = 1 << 44;
/// Time that connections have to end.
const GRACE: Duration = Duration::from_secs(2);

/// What all connections share.
struct Shared {
    client: Client,
    parts: Vec<Part>,
    queue: Mutex<VecDeque<(usize, usize)>>,
    stop: AtomicBool,
}

/// A message from a connection.
enum Message {
    Warning(String),
    Failed(StageError),
}

/// The thread of a connection.
struct Worker {
    shared: Arc<Shared>,
    messages: Sender<Message>,
}

impl Watch for Worker {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn warn(&self, message: String) {
        // The receiver is gone once the stage has ended.
        let _ = self.messages.send(Message::Warning(message));
    }
}

/// Forgets a file that was fetched, at its path, so that it is fetched again.
pub(crate) fn forget(path: &Path) {
    for path in [path, &path.with_extension("json")] {
        // The file may not exist.
        let _ = fs::remove_file(path);
    }
}

/// Downloads all files into the checkpoint folder and verifies them. Returns each with its path.
pub(crate) fn fetch(
    job: &Job,
    client: Client,
    files: Vec<RemoteFile>,
) -> Result<Vec<(RemoteFile, PathBuf)>, StageError> {
    let chunk = client.policy.chunk;
    let mut parts = Vec::new();
    for file in files {
        job.check_cancelled()?;
        let part = Part::open(&job.checkpoint(), file, chunk, |file| {
            client.retry(job, |attempt| probe(attempt, file)).map_err(Failure)
        });
        parts.push(part.map_err(|Failure(error)| error)?);
    }
    let queue = parts.iter().enumerate().flat_map(|(number, part)| part.missing().map(move |index| (number, index)));
    let queue: VecDeque<_> = queue.collect();
    let connections = queue.len().min(CONNECTIONS);
    let shared = Arc::new(Shared { client, parts, queue: Mutex::new(queue), stop: AtomicBool::new(false) });
    let (messages, receiver) = mpsc::channel();
    // Threads are not scoped, so that a stage can stop without waiting for a server.
    for _ in 0..connections {
        let worker = Worker { shared: shared.clone(), messages: messages.clone() };
        thread::spawn(move || worker.run());
    }
    drop(messages);
    let outcome = watch(job, &shared, &receiver);
    shared.stop.store(true, Ordering::Relaxed);
    // The channel closes with the last connection. A connection that still waits for its server is abandoned.
    let deadline = Instant::now() + GRACE;
    while receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
    for part in &shared.parts {
        part.save().map_err(StageError::io(&part.path))?;
    }
    outcome?;
    shared.parts.par_iter().try_for_each(|part| check(job, part))?;
    Ok(shared.parts.iter().map(|part| (part.file.clone(), part.path.clone())).collect())
}

/// Carries a [`StageError`] through a function that can also fail with an I/O error.
struct Failure(StageError);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(StageError::failed(error.to_string(), "run the same command again"))
    }
}

/// Reports progress until all connections have ended.
fn watch(job: &Job, shared: &Shared, receiver: &mpsc::Receiver<Message>) -> Result<(), StageError> {
    let total: u64 = shared.parts.iter().map(|part| part.plan.size.unwrap_or_default()).sum();
    let known = shared.parts.iter().all(|part| part.plan.size.is_some());
    let mut saved = Instant::now();
    loop {
        let message = receiver.recv_timeout(Duration::from_millis(100));
        let bytes: u64 = shared.parts.iter().map(Part::bytes).sum();
        job.progress(Progress::new(bytes as usize, if known { total as usize } else { 0 }, BYTES));
        match message {
            Ok(Message::Warning(message)) => job.warn(message),
            Ok(Message::Failed(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                job.result("bytes", bytes as f64);
                return job.check_cancelled();
            }
        }
        job.check_cancelled()?;
        if saved.elapsed() > SAVE_INTERVAL {
            shared.parts.iter().try_for_each(|part| part.save().map_err(StageError::io(&part.path)))?;
            saved = Instant::now();
        }
    }
}

fn check(job: &Job, part: &Part) -> Result<(), StageError> {
    job.check_cancelled()?;
    if part.plan.size == Some(0) {
        fs::write(&part.path, []).map_err(StageError::io(&part.path))?;
    }
    verify(&part.path, &part.file.checks).map_err(|message| {
        part.discard();
        StageError::failed(
            format!("{}: {message}", redacted(&part.file.url)),
            "run the same command again to download it once more; if it still differs, the source has a different file",
        )
    })
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// The start of the range and the total size in `bytes 0-99/1000`.
fn content_range(response: &Response<Body>) -> Option<(u64, u64)> {
    let (range, total) = header(response, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Asks the server whether the file can be downloaded in chunks, and for its size.
pub(crate) fn probe(attempt: &Attempt<'_>, file: &RemoteFile) -> Result<Plan, RequestError> {
    let response = attempt.get(&file.url, &[("range", "bytes=0-0".into())])?;
    let etag = header(&response, "etag").filter(|etag| is_strong(etag)).map(Into::into);
    let modified = header(&response, "last-modified").filter(|date| !date.is_empty()).map(Into::into);
    let plan = match (response.status().as_u16(), content_range(&response)) {
        (206, Some((_, total))) => {
            let mut plan =
                Plan { url: file.url.clone(), size: Some(total), etag, modified, chunk: Some(attempt.chunk()) };
            // Chunks that may belong to different contents are not joined: one response has to bring the whole file.
            if !plan.has_validator() && file.checks.is_empty() {
                plan.chunk = None;
            }
            plan
        }
        // An empty file has no first byte. Of any other file, 416 says nothing: it is requested as a whole.
        (416, _) if header(&response, "content-range") == Some("bytes */0") => {
            Plan { url: file.url.clone(), size: Some(0), etag, modified, chunk: None }
        }
        (416, _) => Plan { url: file.url.clone(), size: file.size, etag, modified, chunk: None },
        _ => {
            let size = header(&response, "content-length").and_then(|length| length.parse().ok());
            Plan { url: file.url.clone(), size: size.or(file.size), etag, modified, chunk: None }
        }
    };
    if let Some(found) = plan.size.filter(|found| *found > LARGEST_FILE) {
        return Err(RequestError::Fatal(StageError::failed(
            format!(
                "{}: the server reports {found} bytes, more than the {LARGEST_FILE} that a file may have",
                redacted(&file.url)
            ),
            "check `source`: this is not the size of a file",
        )));
    }
    match (file.size, plan.size) {
        (Some(listed), Some(found)) if listed != found => Err(RequestError::Fatal(other_size(file, listed, found))),
        _ => Ok(plan),
    }
}

/// Whether a range belongs to the planned content, as far as its headers say. `If-Range` is sent with an `ETag` only: its
/// response may then omit the validators, and servers that know no such tag often refuse a date, too.
fn same_content(plan: &Plan, range: &Response<Body>) -> bool {
    match (&plan.etag, &plan.modified) {
        (Some(etag), _) => header(range, "etag").is_none_or(|found| found == etag),
        (None, Some(modified)) => header(range, "last-modified") == Some(modified),
        (None, None) => true,
    }
}

fn other_size(file: &RemoteFile, listed: u64, found: u64) -> StageError {
    StageError::failed(
        format!("{}: the server reports {found} bytes, but {listed} were expected", redacted(&file.url)),
        "the source has changed, or a proxy answered in its place: run the same command again",
    )
}

impl Worker {
    fn run(&self) {
        while !self.stopped() {
            let next = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((number, index)) = next else { return };
            let part = &self.shared.parts[number];
            let client = &self.shared.client;
            if let Err(error) = client.retry(self, |attempt| self.chunk(part, index, attempt)) {
                let _ = self.messages.send(Message::Failed(error));
                return;
            }
        }
    }

    /// Downloads the missing rest of a chunk.
    fn chunk(&self, part: &Part, index: usize, attempt: &mut Attempt<'_>) -> Result<(), RequestError> {
        let Part { file, plan, .. } = part;
        let range = plan.range(index);
        if !part.resumable() {
            part.set_arrived(index, 0);
        }
        let mut at = range.start + part.arrived(index);
        let mut response = if plan.chunk.is_some() {
            let mut headers = vec![("range", format!("bytes={at}-{}", range.end - 1))];
            headers.extend(plan.etag.clone().map(|etag| ("if-range", etag)));
            attempt.get(&file.url, &headers)?
        } else {
            attempt.get_whole(&file.url)?
        };
        let total = match (response.status().as_u16(), content_range(&response)) {
            (206, Some((start, total))) if start == at && same_content(plan, &response) => Some(total),
            // A file of one chunk may also arrive as a whole.
            (200, _) if range.start == 0 && plan.size.is_none_or(|size| size == range.end) => {
                part.set_arrived(index, 0);
                at = 0;
                header(&response, "content-length").and_then(|length| length.parse().ok())
            }
            _ => return Err(changed(part)),
        };
        if let (Some(size), Some(total)) = (plan.size, total)
            && size != total
        {
            return Err(if part.plan.has_validator() {
                changed(part)
            } else {
                RequestError::Fatal(other_size(file, size, total))
            });
        }
        let body = response.body_mut().as_reader();
        self.receive(part, index, at, body, &mut attempt.progress)
    }

    fn receive(
        &self,
        part: &Part,
        index: usize,
        mut at: u64,
        mut body: impl Read,
        progress: &mut bool,
    ) -> Result<(), RequestError> {
        let range = part.plan.range(index);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&part.path).map_err(disk(part))?;
        if !part.resumable() {
            file.set_len(0).map_err(disk(part))?;
        }
        let mut buffer = vec![0; 1 << 17];
        while !self.stopped() {
            let room = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            if room == 0 {
                return Ok(());
            }
            let bytes = body.read(&mut buffer[..room]).map_err(|error| cut_off(&part.file.url, &error))?;
            if bytes == 0 {
                break;
            }
            file.write_all_at(&buffer[..bytes], at).map_err(disk(part))?;
            at += bytes as u64;
            part.set_arrived(index, at - range.start);
            *progress = part.resumable();
        }
        if part.plan.size.is_none() || at == range.end {
            return Ok(());
        }
        Err(cut_off(&part.file.url, &io::Error::new(io::ErrorKind::UnexpectedEof, "it ended early")))
    }
}

fn disk(part: &Part) -> impl Fn(io::Error) -> RequestError + '_ {
    |error| RequestError::Fatal(StageError::Io { path: part.path.clone(), source: error })
}

/// The error for a file whose rest would belong to different content than the part that has arrived.
fn changed(part: &Part) -> RequestError {
    part.discard();
    RequestError::Fatal(StageError::failed(
        format!("{} changed during the download", redacted(&part.file.url)),
        "run the same command again: the download starts over",
    ))
}
