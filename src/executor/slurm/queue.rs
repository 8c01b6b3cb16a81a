//! The states of all jobs of a run, asked for in one call, at a modest rate. Independent of stages.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{call::call, state::Seen, submission::JobId};

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

/// The states of jobs: those of the last minutes from `squeue`, older ones from `sacct` where there is one.
async fn states(cluster: Option<&str>, jobs: &[JobId]) -> Result<BTreeMap<JobId, Seen>, String> {
    let mut found = squeue(cluster, &format!("--jobs={}", list(jobs))).await?;
    let missing: Vec<JobId> = jobs.iter().filter(|job| !found.contains_key(job)).cloned().collect();
    if !missing.is_empty() {
        found.extend(sacct(cluster, &format!("--jobs={}", list(&missing))).await);
    }
    Ok(found)
}

fn list(jobs: &[JobId]) -> String {
    jobs.iter().map(JobId::of_slurm).collect::<Vec<_>>().join(",")
}

fn on(cluster: Option<&str>) -> Option<String> {
    cluster.map(|name| format!("--clusters={name}"))
}

fn read(text: &str, cluster: Option<&str>) -> BTreeMap<JobId, Seen> {
    let of_cluster = |(job, seen)| (JobId { cluster: cluster.map(Into::into), ..job }, seen);
    text.lines().filter_map(Seen::parse).map(of_cluster).collect()
}

async fn squeue(cluster: Option<&str>, which: &str) -> Result<BTreeMap<JobId, Seen>, String> {
    // `--array`: a line for each element of an array, also of those that wait.
    let mut arguments =
        ["--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N", which].map(String::from).to_vec();
    arguments.extend(on(cluster));
    let answer = call("squeue", &arguments, &[]).await?;
    // How it says that it has forgotten the only job that it was asked for.
    if answer.ok || answer.errors.contains("Invalid job id") {
        Ok(read(&answer.out, cluster))
    } else {
        Err(answer.errors)
    }
}

/// Nothing where accounting is not set up.
async fn sacct(cluster: Option<&str>, which: &str) -> BTreeMap<JobId, Seen> {
    let format = "--format=JobID,State%40,Reason,NodeList";
    // Without a beginning, only jobs of today are searched.
    let mut arguments =
        ["--allocations", "--array", "--noheader", "--parsable2", "--starttime=now-60days", format, which]
            .map(String::from)
            .to_vec();
    arguments.extend(on(cluster));
    match call("sacct", &arguments, &[]).await {
        Ok(answer) if answer.ok => read(&answer.out, cluster),
        _ => BTreeMap::new(),
    }
}

/// The job of this name and this place in an array, if Slurm has one.
pub(super) async fn by_name(name: &str, element: Option<u32>) -> Result<Option<JobId>, String> {
    let which = format!("--name={name}");
    let found = squeue(None, &which).await?;
    let found = if found.is_empty() { sacct(None, &which).await } else { found };
    Ok(found.into_keys().find(|job| job.element == element))
}

/// The exit code of a job that has ended and the signal that ended it, if Slurm still knows them.
pub(super) async fn exit_code(job: &JobId) -> Option<(i32, i32)> {
    let mut arguments = vec!["show".to_string(), "job".into(), "--oneliner".into(), job.of_slurm()];
    arguments.extend(on(job.cluster.as_deref()));
    let answer = call("scontrol", &arguments, &[]).await.ok().filter(|answer| answer.ok)?;
    let code = answer.out.split_whitespace().find_map(|word| word.strip_prefix("ExitCode="))?;
    let (code, signal) = code.split_once(':')?;
    Some((code.parse().ok()?, signal.parse().ok()?))
}

/// Ends a job, or with `more` does to it what that says.
pub(super) async fn scancel(job: &JobId, more: &[&str]) -> Result<(), String> {
    let mut arguments: Vec<String> = more.iter().map(ToString::to_string).collect();
    arguments.extend(on(job.cluster.as_deref()));
    arguments.push(job.of_slurm());
    let answer = call("scancel", &arguments, &[]).await?;
    // A job that has ended already is as good.
    let ended = ["Invalid job id", "already completing or completed"];
    if answer.ok || ended.iter().any(|words| answer.errors.contains(words)) { Ok(()) } else { Err(answer.errors) }
}
