//! What a runner and a job that outlives it leave each other in the work folder. Independent of how jobs are submitted.
//!
//! ```text
//! submission.json      which attempt is the present one, and its job once Slurm has given it a number
//! slurm.sh             the script that was submitted
//! events-TOKEN.jsonl   what the job of that attempt reports, one event a line
//! stop-TOKEN           asks it to save a checkpoint and end
//! ```
//! A job that starts and finds another attempt in `submission.json` has been given up, and does nothing. So a job of which the
//! runner never heard, because one of them died at the wrong moment, does no harm.

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::store::{SUBMISSION, read};

/// The present attempt at a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Submission {
    /// Names the attempt, as in the names of its files.
    pub(crate) token: String,
    /// The name of the job. All elements of an array have the same.
    pub(crate) name: String,
    /// Its place in that array.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) element: Option<u32>,
    /// The job; `None` until Slurm has answered.
    pub(crate) job: Option<JobId>,
    /// What was asked for, in words, for messages.
    pub(crate) asked: String,
    /// How far the attempt before it had come: unit, and number done.
    #[serde(default)]
    pub(crate) reached: Option<(String, u64)>,
    /// How many attempts in a row came no further.
    #[serde(default)]
    pub(crate) stuck: u32,
}

/// The number of a job, its place in an array, and the cluster that has it where there are several.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct JobId {
    pub(crate) number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) element: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
}

impl JobId {
    /// Reads `12` or `12;cluster`, as `sbatch --parsable` writes it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (number, cluster) = text.trim().split_once(';').map_or((text.trim(), None), |(id, name)| (id, Some(name)));
        let is_name =
            |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && !name.starts_with('-');
        let cluster = cluster.filter(|name| !name.is_empty()).map(String::from);
        let valid = cluster.as_deref().is_none_or(is_name);
        let number = number.parse().ok().filter(|number| *number > 0 && valid)?;
        Some(Self { number, element: None, cluster })
    }

    /// Reads `12` or `12_3`, as `squeue` and `sacct` write it.
    pub(super) fn parse_element(text: &str) -> Option<Self> {
        let (number, element) = text.split_once('_').map_or((text, None), |(number, element)| (number, Some(element)));
        let element = element.map(|element| element.parse().ok());
        // More than one, as in `12_[1-3]`, is none.
        let element = element.map_or(Some(None), |element| element.map(Some))?;
        Some(Self { number: number.parse().ok()?, element, cluster: None })
    }

    /// `12` or `12_3`, as Slurm's programs take it.
    pub(super) fn of_slurm(&self) -> String {
        match self.element {
            Some(element) => format!("{}_{element}", self.number),
            None => self.number.to_string(),
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cluster {
            Some(cluster) => write!(f, "job {} on {cluster}", self.of_slurm()),
            None => write!(f, "job {}", self.of_slurm()),
        }
    }
}

impl Submission {
    /// The present attempt in a work folder, if there is one. A file that can't be read counts as none: it is replaced as a whole.
    pub(crate) fn at(work: &Path) -> Option<Self> {
        let found: Self = serde_json::from_slice(&read(&work.join(SUBMISSION)).ok()?).ok()?;
        // It becomes part of paths.
        let is_token = !found.token.is_empty() && found.token.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_token.then_some(found)
    }

    /// Whether `token` is the present attempt.
    pub(crate) fn is_present(work: &Path, token: &str) -> bool {
        Self::at(work).is_some_and(|present| present.token == token)
    }

    /// Whether it is certain that `token` is not the present attempt any more. A disk that can't be read now proves nothing.
    pub(crate) fn was_replaced(work: &Path, token: &str) -> bool {
        match read(&work.join(SUBMISSION)) {
            Ok(_) => Self::at(work).is_some_and(|present| present.token != token),
            Err(error) if error.kind() == io::ErrorKind::NotFound => work.parent().is_some_and(Path::is_dir),
            Err(_) => false,
        }
    }

    /// Makes this the present attempt.
    pub(super) fn write(&self, work: &Path) -> io::Result<()> {
        // Permissions follow the umask, since a cache may be shared.
        let mode = fs::Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().permissions(mode).tempfile_in(work)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(work.join(SUBMISSION)).map(drop).map_err(|error| error.error)
    }

    /// Ends the present attempt, if there is one, and removes its files.
    pub(super) fn forget(work: &Path) -> io::Result<()> {
        let is_ours = |name: &str| name == SUBMISSION || name.starts_with(EVENTS) || name.starts_with(STOP);
        let mut names: Vec<PathBuf> = fs::read_dir(work)?.flatten().map(|entry| entry.path()).collect();
        names.retain(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_ours));
        // The submission first: it is what the others belong to.
        names.sort_by_key(|path| !path.ends_with(SUBMISSION));
        for path in names {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn events(&self, work: &Path) -> PathBuf {
        events(work, &self.token)
    }

    pub(super) fn stop(&self, work: &Path) -> PathBuf {
        stop(work, &self.token)
    }
}

const EVENTS: &str = "events-";
const STOP: &str = "stop-";

/// The file to which the job of an attempt reports.
pub(crate) fn events(work: &Path, token: &str) -> PathBuf {
    work.join(format!("{EVENTS}{token}.jsonl"))
}

/// The file that asks the job of an attempt to stop.
pub(crate) fn stop(work: &Path, token: &str) -> PathBuf {
    work.join(format!("{STOP}{token}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_of_jobs_are_read_as_sbatch_writes_them() {
        assert_eq!(JobId::parse("12\n"), Some(JobId { number: 12, element: None, cluster: None }));
        let there = JobId { number: 12, element: None, cluster: Some("lab-1".into()) };
        assert_eq!(JobId::parse("12;lab-1\n"), Some(there));
        for bad in ["", "0", "12_3", "twelve", "12;--all", "12;a b", "Submitted batch job 12"] {
            assert_eq!(JobId::parse(bad), None, "{bad}");
        }
        let element = JobId { number: 12, element: Some(3), cluster: None };
        assert_eq!((JobId::parse_element("12_3").as_ref(), element.of_slurm().as_str()), (Some(&element), "12_3"));
        assert_eq!(JobId::parse_element("12").map(|job| job.to_string()).as_deref(), Some("job 12"));
        for bad in ["", "_", "12_", "12_[0-3]", "12_-1", "12_3.batch", "12_99999999999"] {
            assert_eq!(JobId::parse_element(bad), None, "{bad}");
        }
    }

    #[test]
    fn only_the_present_attempt_is_one_and_its_files_go_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path();
        let submission = |token: &str| Submission {
            token: token.into(),
            name: "a".into(),
            element: None,
            job: None,
            asked: String::new(),
            reached: None,
            stuck: 0,
        };
        assert_eq!(Submission::at(work), None);
        submission("a1").write(work).unwrap();
        submission("b2").write(work).unwrap();
        assert!(!Submission::is_present(work, "a1") && Submission::is_present(work, "b2"));
        for path in [events(work, "a1"), stop(work, "b2"), work.join("log")] {
            fs::write(path, "").unwrap();
        }
        Submission::forget(work).unwrap();
        let left: Vec<_> = fs::read_dir(work).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["log"]);
        for token in ["", "../../x", "a/b"] {
            submission(token).write(work).unwrap();
            assert_eq!(Submission::at(work), None, "{token}");
        }
        fs::write(work.join(SUBMISSION), "{\"tok").unwrap();
        assert_eq!(Submission::at(work), None);
    }
}
