//! Questions to Slurm about jobs, and what it is told of them. Independent of when they are asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Once,
};

use super::{
    call::call,
    gather::{Gather, Question},
    state::Seen,
    submission::JobId,
};

/// A name of jobs, and the place in an array where they are elements of one.
pub(super) type Named = (String, Option<u32>);
/// Those who look for a job by its name, or why Slurm can't tell.
pub(super) type LookUps = Gather<Named, Result<Option<JobId>, String>>;

/// The most names in one question: an argument has a greatest length (128 KiB on Linux).
const NAMES: usize = 500;

/// The fields of an answer, for each of the two programs: number, state, reason, node, partitions, name.
const OF_SQUEUE: &str = "--format=%i|%T|%r|%N|%P|%j";
const OF_SACCT: &str = "--format=JobID,State%40,Reason,NodeList,Partition,JobName%120";

/// The states of jobs: those of the last minutes from `squeue`, older ones from `sacct` where there is one.
pub(super) async fn states(cluster: Option<&str>, jobs: &[JobId]) -> Result<BTreeMap<JobId, Seen>, String> {
    let mut found = read(&squeue(cluster, &[&format!("--jobs={}", list(jobs))]).await?, cluster);
    let missing: Vec<JobId> = jobs.iter().filter(|job| !found.contains_key(job)).cloned().collect();
    if !missing.is_empty() {
        found.extend(read(&sacct(cluster, OF_SACCT, &format!("--jobs={}", list(&missing))).await, cluster));
    }
    Ok(found)
}

/// Tells those who look for jobs by their names which there are.
pub(super) async fn look_up(wanted: Vec<Question<Named, Result<Option<JobId>, String>>>) {
    let names: BTreeSet<&str> = wanted.iter().map(|question| question.about.0.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let mut found = BTreeMap::new();
    let mut silent = None;
    for names in names.chunks(NAMES) {
        // Anybody may have a job of that name. `sacct` tells of those of this user only.
        match squeue(None, &["--me", &format!("--name={}", names.join(","))]).await {
            Ok(answer) => found.extend(named(&answer)),
            Err(why) => silent = Some(why),
        }
    }
    if let Some(why) = silent {
        // What is not found may be there all the same.
        for question in wanted {
            question.answer(Err(why.clone()));
        }
        return;
    }
    // Also where others of the same array are listed: Slurm forgets each some minutes after its end.
    let is_missing = |question: &&Question<Named, _>| !found.contains_key(&question.about);
    let missing: BTreeSet<&str> = wanted.iter().filter(is_missing).map(|question| question.about.0.as_str()).collect();
    let missing: Vec<&str> = missing.into_iter().collect();
    for names in missing.chunks(NAMES) {
        for (name, job) in named(&sacct(None, OF_SACCT, &format!("--name={}", names.join(","))).await) {
            found.entry(name).or_insert(job);
        }
    }
    for question in wanted {
        let job = found.get(&question.about).cloned();
        question.answer(Ok(job));
    }
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

/// The jobs of an answer by their names.
fn named(text: &str) -> BTreeMap<Named, JobId> {
    let name = |line: &str| {
        let (job, seen) = Seen::parse(line)?;
        Some(((seen.name?, job.element), job))
    };
    text.lines().filter_map(name).collect()
}

async fn squeue(cluster: Option<&str>, which: &[&str]) -> Result<String, String> {
    // `--array`: a line for each element of an array, also of those that wait.
    let mut arguments = ["--noheader", "--array", "--states=all", OF_SQUEUE].map(String::from).to_vec();
    arguments.extend(which.iter().map(ToString::to_string));
    arguments.extend(on(cluster));
    let answer = call("squeue", &arguments, &[]).await?;
    // How it says that it has forgotten the only job that it was asked for.
    if answer.ok || answer.errors.contains("Invalid job id") { Ok(answer.out) } else { Err(answer.errors) }
}

/// Nothing where accounting is not set up.
async fn sacct(cluster: Option<&str>, format: &str, which: &str) -> String {
    // It lists the elements of an array by itself, those that wait in one line. Without a beginning, only jobs of today are searched.
    let mut arguments = ["--allocations", "--noheader", "--parsable2", "--starttime=now-60days", format, which]
        .map(String::from)
        .to_vec();
    arguments.extend(on(cluster));
    let why = match call("sacct", &arguments, &[]).await {
        Ok(answer) if answer.ok => return answer.out,
        Ok(answer) => answer.errors,
        Err(why) => why,
    };
    // Many sites have none, which is no fault.
    if why.contains("accounting storage is disabled") || why.contains("was not found") {
        tracing::debug!("sacct: {why}");
    } else {
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            tracing::warn!("sacct does not answer, so jobs that Slurm's controller has forgotten are unknown: {why}");
        });
    }
    String::new()
}

/// The exit code of a job that has ended and the signal that ended it, if Slurm still knows them.
pub(super) async fn exit_code(job: &JobId) -> Option<(i32, i32)> {
    let mut arguments = vec!["show".to_string(), "job".into(), "--oneliner".into(), job.of_slurm()];
    arguments.extend(on(job.cluster.as_deref()));
    let answer = call("scontrol", &arguments, &[]).await.ok().filter(|answer| answer.ok);
    let told =
        answer.and_then(|answer| code(answer.out.split_whitespace().find_map(|word| word.strip_prefix("ExitCode="))?));
    if told.is_some() {
        return told;
    }
    code(&sacct(job.cluster.as_deref(), "--format=ExitCode", &format!("--jobs={}", job.of_slurm())).await)
}

/// Reads `1:0`: an exit code and a signal.
fn code(text: &str) -> Option<(i32, i32)> {
    let (code, signal) = text.trim().split_once(':')?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_read_if_there_is_one() {
        assert_eq!(["0:9\n", "1:0", "", "0:x", "12|FAILED"].map(code), [Some((0, 9)), Some((1, 0)), None, None, None]);
    }

    #[test]
    fn jobs_are_told_apart_by_name_and_place() {
        let found =
            named("12_0|RUNNING|None|n1|p|a.b-1\n12_1|COMPLETED|None|n1|p|a.b-1\n13|PENDING|None||p,q|c|d\n14|X\n");
        let job = |name: &str, element| found.get(&(name.to_string(), element)).map(JobId::of_slurm);
        assert_eq!(job("a.b-1", Some(1)).as_deref(), Some("12_1"));
        assert_eq!((job("a.b-1", None), job("c|d", None).as_deref()), (None, Some("13")));
    }
}
