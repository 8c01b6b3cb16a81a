//! Recognises with a few file operations that there is nothing to do. A run that found everything cached notes what it looked at:
//! the texts of the pipeline, and the folders of the store and of links that hold what it found. While these are unchanged, so
//! is the answer: the pipeline is not parsed and the store is not searched.
//!
//! The modification time of a folder changes whenever an entry is added, removed or replaced. A time less than two seconds old
//! proves nothing, since the clocks of file systems are coarse: then no note is written.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::session::{Request, Session};
use crate::{
    scheduler::{Ending, Summary},
    settings::Settings,
    store::{Digest, StageState, Store},
};

/// What a run looked at, and what it found.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    texts: Vec<(PathBuf, Digest)>,
    /// With their modification times, in nanoseconds since 1970.
    folders: Vec<(PathBuf, u64)>,
    summary: Summary,
}

const SETTLED: Duration = Duration::from_secs(2);

/// The summary of the last run, if nothing has changed since.
pub(super) fn check(request: &Request, settings: &Settings) -> Option<Summary> {
    let start = Instant::now();
    let store = Store::existing(&settings.cache)?;
    let bytes = std::fs::read(path(request, settings, &store)?).ok()?;
    let mut note: Note = postcard::from_bytes(&bytes).ok()?;
    let same_text =
        |(path, digest): &(PathBuf, Digest)| std::fs::read(path).is_ok_and(|text| Digest::of(&text) == *digest);
    let same_time = |(path, time): &(PathBuf, u64)| changed(path) == Some(*time);
    if !note.texts.iter().all(same_text) || !note.folders.iter().all(same_time) {
        return None;
    }
    note.summary.seconds = start.elapsed().as_secs_f64();
    Some(note.summary)
}

/// Notes what a run that began at `start` looked at, if it found everything cached.
pub(super) fn note(session: &Session, summary: &Summary, start: SystemTime) {
    // The user's files have to be checked each time.
    let own_files = session.pipeline.stages.iter().any(|stage| !stage.sources.is_empty());
    let cached = summary.ending == Ending::Done && summary.stages.iter().all(|stage| stage.state == StageState::Cached);
    if own_files || !cached {
        return;
    }
    // Without a note the next run is slower, nothing else.
    let _ = write(session, summary, start);
}

fn write(session: &Session, summary: &Summary, start: SystemTime) -> Option<()> {
    let mut folders: Vec<PathBuf> = summary
        .stages
        .iter()
        .flat_map(|stage| {
            let found = stage.key.zip(stage.output).map(|(key, output)| session.store.folders_of(key, output.digest));
            let links = stage.link.as_deref().and_then(Path::parent).map(Path::to_path_buf);
            found.into_iter().flatten().chain(links)
        })
        .collect();
    let points = session.pipeline.points.iter().map(|point| session.artifacts.folder().join(&point.label));
    folders.extend(points);
    folders.sort_unstable();
    folders.dedup();
    let before = (start - SETTLED).duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64;
    let folders = folders.into_iter().map(|folder| {
        let time = changed(&folder).filter(|time| *time < before)?;
        Some((folder, time))
    });
    let note = Note { texts: session.texts(), folders: folders.collect::<Option<_>>()?, summary: summary.clone() };
    let path = path(&session.request, &session.settings, &session.store)?;
    session.store.write_derived(&path, &postcard::to_allocvec(&note).ok()?).ok()
}

/// The modification time of a folder, in nanoseconds since 1970.
fn changed(folder: &Path) -> Option<u64> {
    let time = folder.metadata().ok()?.modified().ok()?;
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64)
}

/// The path of the note: it holds for one request, one working folder and one build of the program.
fn path(request: &Request, settings: &Settings, store: &Store) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.metadata().ok()?;
    let built = program.modified().ok()?;
    let here = std::env::current_dir().ok()?;
    let question = format!("{:?}", (request, settings, here, program.len(), built));
    Some(store.note(Digest::of(question.as_bytes())))
}
