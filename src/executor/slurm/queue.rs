//! The states of all jobs of a run, asked for in one call, at a modest rate. Independent of stages.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{ask::states, state::Seen, submission::JobId};

/// The shortest time between two questions, for jobs of which nothing is known yet.
const SHORTEST: Duration = Duration::from_secs(1);
/// How many times in a row a job must be unknown to be gone.
const GONE: u32 = 2;

/// What is known of the jobs that are followed.
#[derive(Debug, Clone)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    poll: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: BTreeMap<JobId, Known>,
    asked: Option<Instant>,
    asking: bool,
    /// Why Slurm did not answer the last question.
    silent: Option<String>,
    /// Whether somebody waits for the end of a job.
    hurry: bool,
}

/// What is known of a job.
#[derive(Debug, Clone, Default)]
struct Known {
    seen: Option<Seen>,
    /// How many times in a row Slurm did not know it.
    missing: u32,
}

/// An answer about one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status {
    /// Nothing is known yet.
    Unknown,
    Seen(Seen),
    /// Slurm has forgotten it, or never had it.
    Gone,
}

impl Queue {
    pub(super) fn new(poll: Duration) -> Self {
        Self(Arc::new(Shared { poll: poll.max(SHORTEST), inner: Mutex::default() }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time between two questions.
    pub(super) fn poll(&self) -> Duration {
        self.0.poll
    }

    /// Asks again soon, since a job is about to end.
    pub(super) fn hurry(&self) {
        self.inner().hurry = true;
    }

    /// No longer asks for a job.
    pub(super) fn forget(&self, job: &JobId) {
        self.inner().jobs.remove(job);
    }

    /// Why Slurm did not answer when it was asked last, if so.
    pub(super) fn silent(&self) -> Option<String> {
        self.inner().silent.clone()
    }

    /// What was last heard of a job. Asks for all jobs in the background if that is due.
    pub(super) fn latest(&self, job: &JobId) -> Status {
        let mut inner = self.inner();
        let known = inner.jobs.entry(job.clone()).or_default().clone();
        let is_new = |known: &Known| known.seen.is_none() || known.missing > 0;
        let soon = inner.hurry || inner.jobs.values().any(is_new);
        // Where Slurm does not answer, asking more often does not help.
        let pause = if soon && inner.silent.is_none() { SHORTEST } else { self.0.poll };
        if !inner.asking && inner.asked.is_none_or(|at| at.elapsed() >= pause) {
            inner.asking = true;
            tokio::spawn(self.clone().ask());
        }
        match known {
            Known { missing, .. } if missing >= GONE => Status::Gone,
            Known { seen: Some(seen), .. } => Status::Seen(seen),
            Known { seen: None, .. } => Status::Unknown,
        }
    }

    async fn ask(self) {
        let mut clusters = BTreeMap::<Option<String>, Vec<JobId>>::new();
        for job in self.inner().jobs.keys() {
            clusters.entry(job.cluster.clone()).or_default().push(job.clone());
        }
        let mut silent = None;
        for (cluster, jobs) in clusters {
            match states(cluster.as_deref(), &jobs).await {
                Ok(found) => self.note(&jobs, &found),
                Err(why) => silent = Some(why),
            }
        }
        let mut inner = self.inner();
        (inner.asking, inner.hurry, inner.silent, inner.asked) = (false, false, silent, Some(Instant::now()));
    }

    fn note(&self, jobs: &[JobId], found: &BTreeMap<JobId, Seen>) {
        let mut inner = self.inner();
        for job in jobs {
            // It may have been forgotten meanwhile.
            let Some(known) = inner.jobs.get_mut(job) else { continue };
            match found.get(job) {
                Some(seen) => *known = Known { seen: Some(seen.clone()), missing: 0 },
                None => known.missing += 1,
            }
        }
    }
}
