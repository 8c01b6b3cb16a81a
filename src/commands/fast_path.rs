//! Recognises with a few file operations that a pipeline is up to date. A run that found everything cached writes a note of what
//! it read: the texts of the pipeline, the receipts, and the folders of the results and of the links to them. While these are
//! unchanged, all stages are still cached, so the next run neither parses the pipeline nor searches the store.
//!
//! The times of a folder change whenever an entry is added, removed or replaced. Since the clocks of file systems are coarse, a
//! time less than two seconds old proves nothing, and no note is written. What is written into a file of a result does not change
//! its folder: it is found when a stage needs that file, and by `cache verify`.

use std::{
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::session::{Request, Session};
use crate::{
    scheduler::{Ending, Summary},
    settings::Settings,
    store::{Digest, StageState, Stamp, Store},
};

/// What a run read, and its summary.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    texts: Vec<(PathBuf, Digest)>,
    /// Receipts and folders.
    stamps: Vec<(PathBuf, Stamp)>,
    summary: Summary,
}

/// The summary of the last run, if nothing has changed since then.
pub(super) fn check(request: &Request, settings: &Settings) -> Option<Summary> {
    let start = Instant::now();
    let store = Store::existing(&settings.cache)?;
    // A run that does everything sends what an earlier one could not.
    if settings.remote.as_ref().is_some_and(|remote| !store.unsent_to(&remote.address.to_string()).is_empty()) {
        return None;
    }
    let bytes = std::fs::read(path(request, settings, &store)?).ok()?;
    let mut note: Note = postcard::from_bytes(&bytes).ok()?;
    let same_text =
        |(path, digest): &(PathBuf, Digest)| std::fs::read(path).is_ok_and(|text| Digest::of(&text) == *digest);
    let same_stamp = |(path, stamp): &(PathBuf, Stamp)| Stamp::of_target(path) == Some(*stamp);
    if !note.texts.iter().all(same_text) || !note.stamps.iter().all(same_stamp) {
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
    let store = &session.store;
    let mut stamps = Vec::new();
    let mut paths: Vec<PathBuf> =
        session.pipeline.points.iter().map(|point| session.artifacts.folder().join(&point.label)).collect();
    for stage in &summary.stages {
        let (Some(key), Some(output)) = (stage.key, stage.output) else { continue };
        paths.extend(store.places_of(key, output.digest));
        paths.extend(stage.link.as_deref().and_then(Path::parent).map(Path::to_path_buf));
        stamps.extend(store.folders_of_tree(output.digest)?);
    }
    paths.sort_unstable();
    paths.dedup();
    for path in paths {
        let stamp = Stamp::of_target(&path)?;
        stamps.push((path, stamp));
    }
    if !stamps.iter().all(|(_, stamp)| stamp.is_settled(start)) {
        return None;
    }
    let note = Note { texts: session.texts(), stamps, summary: summary.clone() };
    let path = path(&session.request, &session.settings, store)?;
    store.write_derived(&path, &postcard::to_allocvec(&note).ok()?).ok()
}

/// The path of the note. A note is valid for one request, one set of settings, one working folder and one build of the program.
fn path(request: &Request, settings: &Settings, store: &Store) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?.metadata().ok()?;
    let built = program.modified().ok()?;
    let here = std::env::current_dir().ok()?;
    let question = format!("{:?}", (request, settings, here, program.len(), built));
    Some(store.note(Digest::of(question.as_bytes())))
}
