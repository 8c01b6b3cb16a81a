//! Files come over several connections at once, in chunks that are asked for again when a connection is cut.
//! Goes on where an earlier process was stopped.

use std::{
    collections::VecDeque,
    fs::{self, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
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
    chunks::{Part, Plan},
    http::{Client, Trouble, Watch, cut, shown},
    listing::RemoteFile,
    verify::verify,
};
use crate::{Job, StageError, contract::event::Progress};

/// Requests at a time.
const CONNECTIONS: usize = 8;
/// Time between two notes of what has arrived.
const REMEMBER: Duration = Duration::from_secs(2);

/// Time that connections have to end.
const LEAVE: Duration = Duration::from_secs(2);

/// What all connections share.
struct Shared {
    client: Client,
    parts: Vec<Part>,
    queue: Mutex<VecDeque<(usize, usize)>>,
    stop: AtomicBool,
}

/// What a connection says.
enum Said {
    Warning(String),
    Failed(StageError),
}

/// A connection's view.
struct Worker {
    shared: Arc<Shared>,
    said: Sender<Said>,
}

impl Watch for Worker {
    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    fn warn(&self, message: String) {
        // Nobody listens any more once the stage has ended.
        let _ = self.said.send(Said::Warning(message));
    }
}

/// Brings all files into the checkpoint folder, checked.
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
            client.patiently(job, |_| ask(&client, file)).map_err(Failure)
        });
        parts.push(part.map_err(|Failure(error)| error)?);
    }
    let queue = parts.iter().enumerate().flat_map(|(number, part)| part.missing().map(move |index| (number, index)));
    let queue: VecDeque<_> = queue.collect();
    let connections = queue.len().min(CONNECTIONS);
    let shared = Arc::new(Shared { client, parts, queue: Mutex::new(queue), stop: AtomicBool::new(false) });
    let (said, hear) = mpsc::channel();
    // Not scoped: a stage that is stopped need not wait for a server.
    for _ in 0..connections {
        let worker = Worker { shared: shared.clone(), said: said.clone() };
        thread::spawn(move || worker.run());
    }
    drop(said);
    let outcome = watch(job, &shared, &hear);
    shared.stop.store(true, Ordering::Relaxed);
    // The channel closes with the last connection; one that waits for its server is left behind.
    let patience = Instant::now() + LEAVE;
    while hear.recv_timeout(patience.saturating_duration_since(Instant::now())).is_ok() {}
    for part in &shared.parts {
        part.remember().map_err(StageError::io(&part.path))?;
    }
    outcome?;
    shared.parts.par_iter().try_for_each(|part| check(job, part))?;
    Ok(shared.parts.iter().map(|part| (part.file.clone(), part.path.clone())).collect())
}

/// Carries a [`StageError`] through a function that also has errors of its own.
struct Failure(StageError);

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self(StageError::failed(error.to_string(), "run it again"))
    }
}

/// Shows how far it is until all connections have ended.
fn watch(job: &Job, shared: &Shared, hear: &mpsc::Receiver<Said>) -> Result<(), StageError> {
    let total: u64 = shared.parts.iter().map(|part| part.plan.size.unwrap_or_default()).sum();
    let known = shared.parts.iter().all(|part| part.plan.size.is_some());
    let mut remembered = Instant::now();
    loop {
        let heard = hear.recv_timeout(Duration::from_millis(100));
        let bytes: u64 = shared.parts.iter().map(Part::bytes).sum();
        job.progress(Progress::new(bytes as usize, if known { total as usize } else { 0 }, "bytes"));
        match heard {
            Ok(Said::Warning(message)) => job.warn(message),
            Ok(Said::Failed(error)) => return Err(error),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                job.result("bytes", bytes as f64);
                return job.check_cancelled();
            }
        }
        job.check_cancelled()?;
        if remembered.elapsed() > REMEMBER {
            shared.parts.iter().try_for_each(|part| part.remember().map_err(StageError::io(&part.path)))?;
            remembered = Instant::now();
        }
    }
}

fn check(job: &Job, part: &Part) -> Result<(), StageError> {
    job.check_cancelled()?;
    if part.plan.size == Some(0) {
        fs::write(&part.path, []).map_err(StageError::io(&part.path))?;
    }
    verify(&part.path, &part.file.checks).map_err(|message| {
        part.forget();
        StageError::failed(
            format!("{}: {message}", shown(&part.file.url)),
            "run it again to download it anew; if it differs again, it is not the file that was meant",
        )
    })
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Start and total of `bytes 0-99/1000`.
fn content_range(response: &Response<Body>) -> Option<(u64, u64)> {
    let (range, total) = header(response, "content-range")?.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()?))
}

/// Finds out whether a file can be had in chunks, and how large it is.
pub(crate) fn ask(client: &Client, file: &RemoteFile) -> Result<Plan, Trouble> {
    let response = client.get(&file.url, &[("range", "bytes=0-0".into())])?;
    let etag = header(&response, "etag").filter(|etag| !etag.starts_with("W/")).map(Into::into);
    let plan = match (response.status().as_u16(), content_range(&response)) {
        (206, Some((_, total))) => {
            Plan { url: file.url.clone(), size: Some(total), etag, chunk: Some(client.policy.chunk) }
        }
        // An empty file has no first byte.
        (416, _) => Plan { url: file.url.clone(), size: Some(0), etag, chunk: None },
        _ => {
            let size = header(&response, "content-length").and_then(|length| length.parse().ok());
            Plan { url: file.url.clone(), size: size.or(file.size), etag, chunk: None }
        }
    };
    match (file.size, plan.size) {
        (Some(listed), Some(found)) if listed != found => Err(Trouble::Fatal(other_size(file, listed, found))),
        _ => Ok(plan),
    }
}

fn other_size(file: &RemoteFile, listed: u64, found: u64) -> StageError {
    StageError::failed(
        format!("{}: the server has {found} bytes, and must have {listed}", shown(&file.url)),
        "the source changed, or something between here and there answers in its place: run it again",
    )
}

impl Worker {
    fn run(&self) {
        while !self.stopped() {
            let next = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((number, index)) = next else { return };
            let part = &self.shared.parts[number];
            let client = &self.shared.client;
            if let Err(error) = client.patiently(self, |progress| self.chunk(part, index, progress)) {
                let _ = self.said.send(Said::Failed(error));
                return;
            }
        }
    }

    /// Brings what is missing of a chunk.
    fn chunk(&self, part: &Part, index: usize, progress: &mut bool) -> Result<(), Trouble> {
        let Part { file, plan, .. } = part;
        let range = plan.range(index);
        if plan.chunk.is_none() {
            part.set_arrived(index, 0);
        }
        let mut at = range.start + part.arrived(index);
        let mut response = if plan.chunk.is_some() {
            let mut headers = vec![("range", format!("bytes={at}-{}", range.end - 1))];
            headers.extend(plan.etag.clone().map(|etag| ("if-range", etag)));
            self.shared.client.get(&file.url, &headers)?
        } else {
            self.shared.client.get_whole(&file.url)?
        };
        let total = match (response.status().as_u16(), content_range(&response)) {
            (206, Some((start, total))) if start == at => Some(total),
            // A file of one chunk may as well come whole.
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
            return Err(if part.plan.etag.is_some() {
                changed(part)
            } else {
                Trouble::Fatal(other_size(file, size, total))
            });
        }
        let body = response.body_mut().as_reader();
        self.receive(part, index, at, body, progress)
    }

    fn receive(
        &self,
        part: &Part,
        index: usize,
        mut at: u64,
        mut body: impl Read,
        progress: &mut bool,
    ) -> Result<(), Trouble> {
        let range = part.plan.range(index);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&part.path).map_err(disk(part))?;
        if part.plan.chunk.is_none() {
            file.set_len(0).map_err(disk(part))?;
        }
        let mut buffer = vec![0; 1 << 17];
        while !self.stopped() {
            let room = buffer.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            if room == 0 {
                return Ok(());
            }
            let bytes = body.read(&mut buffer[..room]).map_err(|error| cut(&part.file.url, &error))?;
            if bytes == 0 {
                break;
            }
            file.write_all_at(&buffer[..bytes], at).map_err(disk(part))?;
            at += bytes as u64;
            part.set_arrived(index, at - range.start);
            *progress = part.plan.chunk.is_some();
        }
        if part.plan.size.is_none() || at == range.end {
            return Ok(());
        }
        Err(cut(&part.file.url, &io::Error::new(io::ErrorKind::UnexpectedEof, "it ended early")))
    }
}

fn disk(part: &Part) -> impl Fn(io::Error) -> Trouble + '_ {
    |error| Trouble::Fatal(StageError::Io { path: part.path.clone(), source: error })
}

/// What has arrived is of another content than what would follow.
fn changed(part: &Part) -> Trouble {
    part.forget();
    Trouble::Fatal(StageError::failed(
        format!("{} changed while it was downloaded", shown(&part.file.url)),
        "run it again: it begins anew",
    ))
}
