//! What it means that `sbatch` gave no number: parts of its messages, and what to do about them. Independent of what was submitted.

use super::{call::Answer, submission::JobId};
use crate::executor::Outcome;

/// Why there is no number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// `sbatch` has heard nothing from Slurm. The job may exist all the same.
    Unheard(String),
    /// The queue takes no more jobs of this user now.
    Full(String),
    /// Not as an array, or as none of so many elements. Single jobs may be taken.
    Array(String),
    /// It would be refused again.
    Never(String),
}

impl Answer {
    /// The job that `sbatch` has made, or why there is none. Sites write greetings around its number.
    ///
    /// # Errors
    /// If it has not given a number.
    pub(super) fn job(&self) -> Result<JobId, Refusal> {
        if let Some(job) = self.out.lines().rev().find_map(JobId::parse).filter(|_| self.ok) {
            return Ok(job);
        }
        let errors = if self.errors.trim().is_empty() { "it gave no number" } else { self.errors.trim() };
        let has = |words: &[&str]| words.iter().any(|words| errors.contains(words));
        if self.ok || (has(&UNHEARD) && !has(&FULL)) {
            return Err(Refusal::Unheard(errors.into()));
        }
        let said = errors.replace("Batch job submission failed: ", "").replace('\n', "; ");
        Err(match () {
            () if has(&FULL) => Refusal::Full(said),
            () if has(&ARRAY) => Refusal::Array(said),
            () => Refusal::Never(said),
        })
    }
}

impl Refusal {
    /// Whether fewer stages at once may be taken.
    pub(super) fn is_for_fewer(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Array(_))
    }

    /// That `what`, which asked for `asked`, is not submitted, and what to do about it.
    pub(super) fn words(&self, what: &str, asked: &str) -> (String, Option<&'static str>) {
        match self {
            Self::Unheard(why) => (format!("{what} can't be submitted now: {why}"), None),
            Self::Full(why) | Self::Array(why) | Self::Never(why) => {
                (format!("Slurm refused {what}: {why}\nit asks for {asked}"), Some(meaning(why)))
            }
        }
    }

    /// How the stage ends that asked for `asked`, unless there may be room for it later.
    pub(super) fn outcome(&self, asked: &str) -> Outcome {
        let (message, help) = self.words("it", asked);
        failed(message, help, matches!(self, Self::Unheard(_)))
    }

    /// How another stage ends that asked for the same as the stage `first`, whose outcome says the rest.
    pub(super) fn outcome_beside(&self, first: &str) -> Outcome {
        match self {
            Self::Never(why) => failed(format!("Slurm refused it, as it refused `{first}`: {why}"), None, false),
            other => other.outcome("the same"),
        }
    }
}

fn failed(message: String, help: Option<&str>, transient: bool) -> Outcome {
    Outcome::Failed { message, help: help.map(Into::into), transient }
}

/// What to do about a refusal.
fn meaning(errors: &str) -> &'static str {
    let known = MEANINGS.iter().find(|(words, _)| errors.contains(words)).map(|(_, help)| *help);
    known.unwrap_or("`sbatch` said this; change [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]")
}

/// Parts of what is said when there is no answer.
const UNHEARD: [&str; 6] = [
    "Unable to contact slurm controller",
    "Connection refused",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "temporarily unable",
    "Connection timed out",
];
/// Parts of refusals that pass.
const FULL: [&str; 4] = ["MaxSubmitJob", "GrpSubmitJob", "MaxJobCount", "job queue full"];
/// Parts of refusals of arrays: `Invalid job array specification`, whether there are to be none or none of so many elements.
const ARRAY: [&str; 2] = ["job array", "MaxArraySize"];

/// Parts of refusals, and what to do about them.
const MEANINGS: &[(&str, &str)] = &[
    (
        "artition",
        "change `partition` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]; `sinfo` lists the partitions",
    ),
    ("account", "change `account` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    ("qos", "change `qos` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    ("ime limit", "change `time` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    (
        "configuration is not available",
        "no node of the partition has as much: request less under [stages.NAME.runtime], or another `partition`; `sinfo -Nel` shows \
         what nodes have",
    ),
    ("gres", "no node has such GPUs: change `gpu_type` or `gpus`; `sinfo -o '%P %G'` shows what nodes have"),
    ("emory", "request less `memory` under [stages.NAME.runtime]; `sinfo -Nel` shows what nodes have"),
    ("unrecognized option", "remove it from `arguments` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    ("invalid option", "remove it from `arguments` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn said(errors: &str) -> Refusal {
        let answer = Answer { ok: false, out: String::new(), errors: errors.into() };
        answer.job().err().unwrap_or(Refusal::Never("no refusal".into()))
    }

    #[test]
    fn refusals_are_told_from_silence() {
        let refusal = said("Batch job submission failed: Invalid partition name specified");
        let Outcome::Failed { message, help, transient: false } = refusal.outcome("1 CPU") else {
            panic!("{refusal:?}")
        };
        assert_eq!(message, "Slurm refused it: Invalid partition name specified\nit asks for 1 CPU");
        assert!(help.is_some_and(|help| help.contains("`sinfo` lists the partitions")));
        assert!(meaning("Requested node configuration is not available").contains("no node of the partition"));
        for full in ["QOSMaxSubmitJobPerUserLimit", "AssocGrpSubmitJobsLimit\nJob violates accounting/QOS policy"] {
            assert!(matches!(said(full), Refusal::Full(_)), "{full}: there is room later");
        }
        let table = "sbatch: Slurm job queue full, sleeping and retrying\nBatch job submission failed: Resource temporarily unavailable";
        assert!(matches!(said(table), Refusal::Full(_)), "the controller's table of jobs");
        let unheard = said("Unable to contact slurm controller (connect failure)");
        assert!(matches!(unheard.outcome(""), Outcome::Failed { transient: true, .. }), "{unheard:?}");
        let greeting = Answer { ok: true, out: "welcome\n12\n".into(), errors: String::new() };
        assert_eq!(greeting.job().map(|job| job.number), Ok(12));
    }

    #[test]
    fn only_what_is_said_of_arrays_counts_against_them() {
        assert!(matches!(said("Batch job submission failed: Invalid job array specification"), Refusal::Array(_)));
        let partition = said("Invalid partition name specified");
        assert!(!partition.is_for_fewer());
        let Outcome::Failed { message, .. } = partition.outcome_beside("a") else { panic!("{partition:?}") };
        assert_eq!(message, "Slurm refused it, as it refused `a`: Invalid partition name specified");
    }
}
