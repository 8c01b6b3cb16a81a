//! The folder in which a stage runs: its paths, its progress and its last failure. Independent of what the stage does.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use imp_stages::contract::{
    event::Progress,
    job::{self, EVENTS},
    side_file,
};
use serde::{Deserialize, Serialize};

use super::{
    Digest, Store, disk,
    error::{Result, StoreError},
    files::{entries, look_up, modified, read, remove_all},
    now,
};

/// Files that only the runner writes.
const FAILURE: &str = "failure";
const PROGRESS: &str = "progress.json";
const STATE: &str = "state";
const SESSIONS: &str = "sessions.json";
/// There while a runner takes the output.
const TAKING: &str = "taking";
/// Of a stage that was sent to another machine, and goes on there whether or not its runner does. Who runs it writes the file and
/// knows what is in it; the store keeps everything that such a stage needs.
pub(crate) const SUBMISSION: &str = "submission.json";

/// The folder of all arrays of jobs, beside the work folders of their stages: in it a folder for each, with a link to the log of each of
/// its stages.
pub(crate) const ARRAYS: &str = "arrays";

/// How long the folder of an array is left alone in any case: a runner may be about to fill it.
const NEW_ARRAY: Duration = Duration::from_hours(1);

/// How long a stage of which nothing is heard is kept for whoever runs it.
const ABANDONED: Duration = Duration::from_hours(30 * 24);

/// How long a stage has worked in earlier sessions, which ended before it was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Sessions {
    pub(crate) count: u32,
    pub(crate) seconds: f64,
    /// When the present session began, in seconds since 1970.
    began: Option<f64>,
}

/// A work folder.
#[derive(Debug, Clone)]
pub(crate) struct Work {
    path: PathBuf,
}

impl Store {
    /// The work folder of the stage with this key. It may not exist yet.
    pub(crate) fn work(&self, key: Digest) -> Work {
        Work { path: self.root.join("work").join(key.hex()) }
    }

    /// Creates a work folder. Returns warnings about what was moved aside.
    pub(crate) fn create_work(&self, work: &Work) -> Result<Vec<String>> {
        let warnings = work.create()?;
        self.keep_private_folder(work.path())?;
        Ok(warnings)
    }
}

/// A work folder that was moved away. It is removed in the end.
pub(crate) struct Aside(tempfile::TempDir);

impl Aside {
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("work")
    }
}

impl Store {
    /// Moves a work folder away, all at once: what still is at work there finds neither its files nor those of the next attempt.
    /// `None` if there is none.
    pub(crate) fn set_aside(&self, work: &Work) -> Result<Option<Aside>> {
        let tmp = self.tmp()?;
        let aside = Aside(tempfile::TempDir::new_in(&tmp).map_err(StoreError::io(&tmp))?);
        match disk::rename(&work.path, &aside.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            moved => moved.map(|()| Some(aside)).map_err(StoreError::io(&work.path)),
        }
    }
}

/// The folders of arrays of which no stage is at work any more, among those beside the work folders in `works`.
pub(crate) fn idle_arrays(works: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let is_at_work = |link: &PathBuf| {
        fs::read_link(link).is_ok_and(|log| log.parent().is_some_and(|work| work.join(SUBMISSION).exists()))
    };
    let age = |folder: &PathBuf| {
        folder.metadata().and_then(|about| about.modified()).map(|at| at.elapsed().unwrap_or_default())
    };
    // What is removed is a folder of ours: no link, and no other name than a token's.
    let is_folder = |path: &Path| path.symlink_metadata().is_ok_and(|about| about.is_dir());
    let is_token = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.len() == 12 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit))
    };
    let is_idle =
        |folder: &PathBuf| age(folder).is_ok_and(|age| age >= NEW_ARRAY) && !entries(folder).iter().any(is_at_work);
    let arrays = works.join(ARRAYS);
    let mut idle = if is_folder(&arrays) { entries(&arrays) } else { Vec::new() };
    idle.retain(|folder| is_token(folder) && is_folder(folder) && is_idle(folder));
    idle
}

impl Sessions {
    /// With one more of so many seconds.
    fn and(self, seconds: f64) -> Self {
        Self { count: self.count.saturating_add(1), seconds: self.seconds + seconds, began: None }
    }
}

impl Work {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The job file.
    pub(crate) fn job(&self) -> PathBuf {
        self.path.join(job::JOB)
    }

    /// The folder of the output, until it moves into the store.
    pub(crate) fn out(&self) -> PathBuf {
        self.path.join(job::OUT)
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join(job::LOG)
    }

    pub(crate) fn metrics(&self) -> PathBuf {
        self.path.join(job::METRICS)
    }

    /// The metrics for TensorBoard.
    pub(crate) fn events(&self) -> PathBuf {
        self.path.join(EVENTS)
    }

    /// Whether the stage was started before and left a checkpoint.
    pub(crate) fn has_checkpoint(&self) -> bool {
        entries(&self.path.join(job::CHECKPOINT)).is_ok_and(|entries| !entries.is_empty())
    }

    /// Saves the error message of a failed stage until the next attempt.
    pub(crate) fn note_failure(&self, message: &str) {
        // If this fails, the log still has the message.
        let _ = fs::write(self.path.join(FAILURE), message);
    }

    /// Removes the error message of the last attempt.
    pub(crate) fn forget_failure(&self) {
        let _ = fs::remove_file(self.path.join(FAILURE));
    }

    /// The error message of the last attempt, if it failed.
    pub(crate) fn failure(&self) -> Option<String> {
        self.text(FAILURE)
    }

    /// Saves the progress of the stage, for `imp-flow status` in another process.
    pub(crate) fn note_progress(&self, progress: &Progress) {
        if let Ok(text) = serde_json::to_vec(progress) {
            // Not atomic: a reader that finds an incomplete file shows no progress until the next write.
            let _ = fs::write(self.path.join(PROGRESS), text);
        }
    }

    /// The progress of the stage, if it was saved.
    pub(crate) fn progress(&self) -> Option<Progress> {
        serde_json::from_slice(&read(&self.path.join(PROGRESS)).ok()?).ok()
    }

    /// Begins a session. Returns those before it: none if the stage was not `resumed`, since their work is lost.
    pub(crate) fn begin_session(&self, resumed: bool) -> Sessions {
        let mut sessions = if resumed { self.sessions() } else { Sessions::default() };
        // A session that was killed lasted until something was last heard of it.
        if let Some(began) = sessions.began.take() {
            let heard = [PROGRESS, job::METRICS, job::LOG].map(|name| modified(&self.path.join(name)));
            let last = heard.into_iter().max().unwrap_or_default();
            sessions = sessions.and((last as f64 - began).max(0.0));
        }
        self.note_sessions(Sessions { began: Some(now()), ..sessions });
        sessions
    }

    /// Ends a session of so many seconds whose stage is not done.
    pub(crate) fn end_session(&self, before: Sessions, seconds: f64) {
        self.note_sessions(before.and(seconds));
    }

    /// The sessions that were noted.
    pub(crate) fn sessions(&self) -> Sessions {
        read(&self.path.join(SESSIONS)).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn note_sessions(&self, sessions: Sessions) {
        // If this fails, only the time of the stage is too short.
        if let Ok(text) = serde_json::to_vec(&sessions) {
            let _ = fs::write(self.path.join(SESSIONS), text);
        }
    }

    /// Saves in words where the stage is, while that is another machine or its queue.
    pub(crate) fn note_state(&self, text: &str) {
        let _ = fs::write(self.path.join(STATE), text);
    }

    /// Where the stage is, if that was saved.
    pub(crate) fn state(&self) -> Option<String> {
        self.text(STATE)
    }

    fn text(&self, name: &str) -> Option<String> {
        read(&self.path.join(name)).ok().and_then(|bytes| String::from_utf8(bytes).ok())
    }

    /// Forgets where the stage was.
    pub(crate) fn forget_state(&self) {
        let _ = fs::remove_file(self.path.join(STATE));
    }

    /// Whether the stage was sent to another machine, and its result was not taken in yet.
    pub(crate) fn is_submitted(&self) -> bool {
        look_up(&self.path.join(SUBMISSION)).is_ok_and(|found| found.is_file())
    }

    /// Whether another machine may still need the folder and what the stage reads, although no run follows it.
    pub(super) fn may_be_running(&self) -> bool {
        let last = [SUBMISSION, job::LOG, job::METRICS].map(|name| modified(&self.path.join(name))).into_iter().max();
        self.is_submitted() && last.is_some_and(|last| now() < (last + ABANDONED.as_secs()) as f64)
    }

    /// The trees that the stage reads.
    pub(super) fn trees(&self) -> Vec<Digest> {
        let job = read(&self.job()).ok().and_then(|text| serde_json::from_slice::<job::JobSpec>(&text).ok());
        let inputs = job.into_iter().flat_map(|job| job.inputs.into_values());
        let digest = |path: &Path| {
            let [folder, rest] = [path.parent()?.file_name()?, path.file_name()?].map(|name| name.to_str());
            Digest::from_hex(&format!("{}{}", folder?, rest?))
        };
        inputs.filter_map(|input| digest(&input.path)).collect()
    }

    /// Creates the folder, and moves aside whatever is in the way of its files. Returns warnings about what was moved.
    fn create(&self) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let mut note = |path: &Path, moved: io::Result<bool>| {
            let moved = moved.map_err(StoreError::io(path))?;
            warnings.extend(moved.then(|| side_file::warning(path)));
            Ok(())
        };
        note(&self.path, side_file::make_room_for_folder(&self.path))?;
        disk::create_dir_all(&self.path).map_err(StoreError::io(&self.path))?;
        for path in [job::OUT, job::CHECKPOINT].map(|name| self.path.join(name)) {
            note(&path, side_file::make_room_for_folder(&path))?;
        }
        for path in [job::JOB, job::LOG, job::LOCK, job::METRICS, EVENTS].map(|name| self.path.join(name)) {
            note(&path, side_file::make_room(&path))?;
        }
        Ok(warnings)
    }

    /// Whether the stage that was started in it reads `folder`.
    pub(super) fn reads(&self, folder: &Path) -> bool {
        let job = read(&self.job()).ok().and_then(|text| serde_json::from_slice::<job::JobSpec>(&text).ok());
        job.is_some_and(|job| job.inputs.values().any(|input| input.path == folder))
    }

    /// Whether its checkpoint may be later than `until`, in seconds since 1970.
    pub(crate) fn is_outdated(&self, until: Option<u64>) -> bool {
        let saved = modified(&self.path.join(job::CHECKPOINT));
        until.is_none_or(|until| saved > until)
    }

    /// Removes the folder if its checkpoint may be later than `until`, in seconds since 1970.
    pub(super) fn clear_after(&self, until: Option<u64>) -> Result<()> {
        if self.is_outdated(until) { self.clear() } else { Ok(()) }
    }

    /// Notes that the output is about to be taken from the folder: from now on it may lack something.
    pub(crate) fn begin_taking(&self) -> Result<()> {
        let path = self.path.join(TAKING);
        std::fs::write(&path, "").map_err(StoreError::io(&path))
    }

    /// Whether a runner has begun to take the output, and has not come to the end.
    pub(crate) fn was_being_taken(&self) -> bool {
        look_up(&self.path.join(TAKING)).is_ok_and(|found| found.is_file())
    }

    /// Forgets what was sent to another machine and has ended: the stage begins again, from its checkpoint.
    pub(crate) fn forget_submission(&self) -> Result<()> {
        [SUBMISSION, TAKING].iter().try_for_each(|name| remove_all(&self.path.join(name)))
    }

    /// Removes the folder once its stage is done.
    pub(crate) fn clear(&self) -> Result<()> {
        // First what would be taken for the job of an unfinished stage.
        remove_all(&self.path.join(SUBMISSION))?;
        remove_all(&self.path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn folders_of_arrays_are_idle_and_what_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let old = std::time::SystemTime::now() - 2 * NEW_ARRAY;
        for name in ["arrays/0123456789ab", "arrays/0123456789ac", "arrays/notes", "of-a-person/0123456789ad"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::create_dir(path("stage")).unwrap();
        fs::write(path("stage").join(SUBMISSION), "").unwrap();
        std::os::unix::fs::symlink(path("stage/log"), path("arrays/0123456789ac/0")).unwrap();
        std::os::unix::fs::symlink(path("of-a-person"), path("arrays/0123456789ae")).unwrap();
        fs::write(path("arrays/0123456789af"), "").unwrap();
        assert!(idle_arrays(folder.path()).is_empty(), "a runner may be about to fill them");
        for name in ["0123456789ab", "0123456789ac", "notes", "0123456789af"] {
            fs::File::open(path("arrays").join(name)).unwrap().set_modified(old).unwrap();
        }
        fs::File::open(path("of-a-person")).unwrap().set_modified(old).unwrap();
        assert_eq!(idle_arrays(folder.path()), [path("arrays/0123456789ab")]);
        fs::rename(path("arrays"), path("elsewhere")).unwrap();
        std::os::unix::fs::symlink(path("elsewhere"), path("arrays")).unwrap();
        assert!(idle_arrays(folder.path()).is_empty(), "a link, which anybody may have made");
    }

    #[test]
    fn the_sessions_of_a_resumed_stage_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let work = store.work(Digest::of(b"key"));
        store.create_work(&work).unwrap();
        let first = work.begin_session(false);
        assert_eq!((first.count, first.seconds), (0, 0.0));
        work.end_session(first, 5.0);
        let second = work.begin_session(true);
        assert_eq!((second.count, second.seconds), (1, 5.0));
        // It is killed; 20 seconds after its beginning it last wrote its log.
        fs::write(work.log(), "").unwrap();
        let began = std::time::SystemTime::now() + Duration::from_secs(20);
        fs::File::options().write(true).open(work.log()).unwrap().set_modified(began).unwrap();
        let third = work.begin_session(true);
        assert!(third.count == 2 && (third.seconds - 25.0).abs() < 2.0, "{third:?}");
        // What begins anew has no time of before.
        assert_eq!(work.begin_session(false), Sessions::default());
        fs::write(work.path().join(SESSIONS), "{").unwrap();
        assert_eq!(work.begin_session(true), Sessions::default());
    }

    #[test]
    fn what_a_stage_on_another_machine_needs_is_known_without_its_run() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let work = store.work(Digest::of(b"key"));
        store.create_work(&work).unwrap();
        let tree = Digest::of(b"tree");
        let input = serde_json::json!({ "path": store.tree_path(tree), "origin": "x" });
        let job = serde_json::json!({
            "kind": "merge", "config": {}, "runtime": {}, "inputs": { "model": input }, "sources": {}, "work": "x", "seed": 0
        });
        fs::write(work.job(), job.to_string()).unwrap();
        assert!(!work.may_be_running() && work.trees() == [tree]);
        fs::write(work.path().join(SUBMISSION), "{}").unwrap();
        assert!(work.may_be_running());
        let file = fs::File::options().write(true).open(work.path().join(SUBMISSION)).unwrap();
        file.set_modified(std::time::SystemTime::now() - ABANDONED - Duration::from_hours(1)).unwrap();
        assert!(!work.may_be_running(), "nothing was heard for a month");
    }
}
