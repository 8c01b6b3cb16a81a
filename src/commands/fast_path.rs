//! Recognises with a few file operations that a pipeline is up to date. A run that found everything cached writes a note of what
//! it read: the texts of the pipeline, and the folders that hold the results and the links to them. While these are unchanged,
//! all stages are still cached, so the next run neither parses the pipeline nor searches the store.
//!
//! The modification time of a folder changes whenever an entry is added, removed or replaced. Since the clocks of file systems are
//! coarse, a time less than two seconds old proves nothing, and no note is written.

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

/// What a run read, and its summary.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    texts: Vec<(PathBuf, Digest)>,
    /// Folders with their modification times, in nanoseconds since 1970.
    folders: Vec<(PathBuf, u64)>,
    summary: Summary,
}

/// Modification times must be at least this old to prove that nothing has changed since.
const MIN_AGE: Duration = Duration::from_secs(2);

/// The summary of the last run, if nothing has changed since then.
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

/// Writes a note of a run that began at `start`, if it found everything cached.
pub(super) fn note(session: &Session, summary: &Summary, start: SystemTime) {
    // The user's files have to be checked in every run.
    let own_files = session.pipeline.stages.iter().any(|stage| !stage.sources.is_empty());
    let cached = summary.ending == Ending::Done && summary.stages.iter().all(|stage| stage.state == StageState::Cached);
    if own_files || !cached {
        return;
    }
    // A missing note only makes the next run slower.
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
    let before = (start - MIN_AGE).duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64;
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

/// The path of the note. A note is valid for one request, one set of settings, one working folder and one build of the program.
fn path(request: &Request, settings: &Settings, store: &Store) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.metadata().ok()?;
    let built = program.modified().ok()?;
    let here = std::env::current_dir().ok()?;
    let question = format!("{:?}", (request, settings, here, program.len(), built));
    Some(store.note(Digest::of(question.as_bytes())))
}
