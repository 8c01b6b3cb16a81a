//! What it means that a job has ended. Pure: what Slurm and the job have said is passed in.

use imp_stages::contract::event::Progress;

use super::{
    state::Seen,
    submission::{JobId, Submission},
};
use crate::executor::Outcome;

/// How following a job ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    Over(Outcome),
    /// The runner leaves, and the job goes on.
    Left,
    /// It has to be submitted again, and resumes: why, how far it has come, and how many times it came no further.
    Again {
        note: String,
        reached: Option<(String, u64)>,
        stuck: u32,
    },
}

/// What a job has said itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Started,
    /// That it stopped on request.
    Stopped,
}

/// What is known of a job that has ended.
#[derive(Debug)]
pub(super) struct Ended<'a> {
    pub(super) job: &'a JobId,
    pub(super) submission: &'a Submission,
    /// The last that Slurm said; `None` if it does not know the job any more.
    pub(super) seen: Option<&'a Seen>,
    /// Exit code and signal, if known.
    pub(super) exit: Option<(i32, i32)>,
    /// Whether the runner has cancelled it.
    pub(super) by_us: bool,
    pub(super) said: Said,
    pub(super) progress: Option<&'a Progress>,
    /// Whether its log says that it was ended because of its memory.
    pub(super) log_says_memory: bool,
}

/// How many times a job that was preempted before it came any further is submitted again.
const PREEMPTED: u32 = 5;

const RESUMES: &str = "the same command submits it again, and it resumes from its last checkpoint";

impl Ended<'_> {
    /// What follows from it. The job has not said itself that it is done or has failed.
    pub(super) fn end(&self) -> End {
        if self.by_us {
            return End::Over(Outcome::Cancelled);
        }
        let (job, on) = (self.job, self.seen.and_then(|seen| seen.node.as_deref()));
        let on = on.map(|node| format!(" on {node}")).unwrap_or_default();
        let state = self.seen.map_or("", |seen| seen.state.as_str());
        if state == "OUT_OF_MEMORY" || (self.log_says_memory && self.said != Said::Stopped) {
            return failed(
                format!("{job}{on} was ended because it used more memory than it had"),
                "give it more `memory` under [stages.NAME.runtime], or a smaller `micro_batch_size`; the same command resumes from the \
                 last checkpoint",
            );
        }
        match state {
            "TIMEOUT" => self.again(&format!("{job} ran out of its time{on}"), 0),
            "PREEMPTED" => self.again(&format!("{job} was preempted{on}"), PREEMPTED),
            "NODE_FAIL" | "BOOT_FAIL" => transient(
                format!("{job} ended because its node failed{on} ({state})"),
                "if the node fails again, leave it out with `arguments = [\"--exclude=NODE\"]` under [slurm] in imp-flow.toml",
            ),
            "CANCELLED" | "REVOKED" => {
                let by = self.seen.and_then(|seen| seen.reason.as_deref()).filter(|reason| reason.starts_with("by "));
                let by = by.map(|by| format!(" {}", by.replace("by ", "by user "))).unwrap_or_default();
                failed(format!("{job} was cancelled with `scancel`{by}"), RESUMES)
            }
            "DEADLINE" => {
                failed(format!("{job} did not end before its deadline"), "remove `--deadline` from `arguments`")
            }
            // By SIGTERM, before it could listen.
            _ if self.said == Said::Stopped || self.exit.is_some_and(|(_, signal)| signal == 15) => self.again(
                &format!("{job} was told to stop{on}, since its time is nearly up or it is in the way of others"),
                0,
            ),
            "" => transient(
                format!("Slurm does not know {job} any more, and it left no result"),
                "the same command submits it again",
            ),
            _ => self.died(&on),
        }
    }

    /// It ended by itself, without a word.
    fn died(&self, on: &str) -> End {
        let job = self.job;
        let (code, signal) = self.exit.unwrap_or_default();
        if signal == 9 {
            return failed(
                format!("the process of {job} was killed{on} (signal 9)"),
                "if nobody killed it, the node ran out of memory: give it `memory` under [stages.NAME.runtime], or try a smaller \
                 `micro_batch_size`; the same command resumes from the last checkpoint",
            );
        }
        let how = match (signal, self.exit) {
            (0, Some(_)) => format!(" (exit code {code})"),
            (0, None) => String::new(),
            (signal, _) => format!(" (signal {signal})"),
        };
        if self.said == Said::Nothing {
            return failed(
                format!("{job} ended{on} before the stage began{how}"),
                "see its log. If there is none: the node must see the cache and the program under the same paths as this machine",
            );
        }
        failed(format!("{job} ended{on} without a result{how}"), "see its log")
    }

    /// It is submitted again, unless it comes no further: then it would never end.
    fn again(&self, what: &str, patience: u32) -> End {
        let reached = self.progress.map(|progress| (progress.unit.clone(), progress.done));
        let before = self.submission.reached.as_ref();
        let further = match (&reached, before) {
            (Some((unit, done)), Some((unit_before, done_before))) => unit != unit_before || done > done_before,
            (Some((_, done)), None) => *done > 0,
            (None, _) => false,
        };
        let stuck = if further { 0 } else { self.submission.stuck + 1 };
        if stuck > patience {
            let message = match &reached {
                Some((unit, done)) if before.is_some() => {
                    format!("{what} and came no further than the attempt before it ({unit}: {done})")
                }
                _ => format!("{what} before it had come anywhere"),
            };
            return failed(
                format!("{message}\nit had {}", self.submission.asked),
                "give it a longer `time` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm], with room for `save_seconds` at its \
                 end, or let it save more often (`checkpoint_seconds`)",
            );
        }
        let note = match &reached {
            Some((unit, done)) => format!("{what} ({unit}: {done}): submitted again, to resume from its checkpoint"),
            None => format!("{what}: submitted again"),
        };
        End::Again { note, reached: reached.or_else(|| before.cloned()), stuck }
    }
}

fn failed(message: String, help: &str) -> End {
    End::Over(Outcome::Failed { message, help: Some(help.into()), transient: false })
}

fn transient(message: String, help: &str) -> End {
    End::Over(Outcome::Failed { message, help: Some(help.into()), transient: true })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn submission(reached: Option<u64>, stuck: u32) -> Submission {
        let reached = reached.map(|done| ("steps".to_string(), done));
        Submission {
            token: "t".into(),
            name: "n".into(),
            element: None,
            job: None,
            asked: "a time of 1".into(),
            reached,
            stuck,
        }
    }

    /// The end of a job in `state` that came to `done` steps, with `change` made to what is known.
    fn end(state: &str, done: usize, before: &Submission, change: impl FnOnce(&mut Ended)) -> End {
        let job = JobId { number: 12, element: None, cluster: None };
        let seen = Seen::parse(&format!("12|{state}||n1")).map(|(_, seen)| seen);
        let progress = Progress::new(done, 100, "steps");
        let mut ended = Ended {
            job: &job,
            submission: before,
            seen: seen.as_ref(),
            exit: None,
            by_us: false,
            said: Said::Started,
            progress: Some(&progress),
            log_says_memory: false,
        };
        change(&mut ended);
        ended.end()
    }

    fn message(end: End) -> (String, bool) {
        match end {
            End::Over(Outcome::Failed { message, transient, .. }) => (message, transient),
            other => (format!("{other:?}"), false),
        }
    }

    #[test]
    fn what_ran_out_of_time_goes_on_as_long_as_it_comes_further() {
        let again =
            |note: &str, done, stuck| End::Again { note: note.into(), reached: Some(("steps".into(), done)), stuck };
        let first = submission(None, 0);
        let note = "job 12 ran out of its time on n1 (steps: 5): submitted again, to resume from its checkpoint";
        assert_eq!(end("TIMEOUT", 5, &first, |_| {}), again(note, 5, 0));
        let stuck = message(end("TIMEOUT", 5, &submission(Some(5), 0), |_| {}));
        assert!(
            stuck.0.contains("came no further than the attempt before it (steps: 5)\nit had a time of 1"),
            "{stuck:?}"
        );
        assert!(
            message(end("TIMEOUT", 0, &first, |ended| ended.progress = None)).0.contains("before it had come anywhere")
        );
        // It was told before the end of its time, saved, and ended with an exit code.
        let saved = end("FAILED", 9, &submission(Some(5), 0), |ended| ended.said = Said::Stopped);
        assert!(matches!(&saved, End::Again { note, .. } if note.contains("its time is nearly up")), "{saved:?}");
        let early = end("FAILED", 9, &submission(Some(5), 0), |ended| ended.exit = Some((0, 15)));
        assert!(matches!(early, End::Again { .. }), "{early:?}");
        // A preempted one may have had no time to come further.
        assert!(matches!(end("PREEMPTED", 5, &submission(Some(5), 4), |_| {}), End::Again { stuck: 5, .. }));
        assert!(
            message(end("PREEMPTED", 5, &submission(Some(5), 5), |_| {})).0.contains("was preempted on n1 and came no")
        );
    }

    #[test]
    fn memory_nodes_and_people_are_told_apart() {
        let first = submission(None, 0);
        let said = |state: &str| message(end(state, 5, &first, |_| {}));
        assert_eq!(
            said("OUT_OF_MEMORY"),
            ("job 12 on n1 was ended because it used more memory than it had".into(), false)
        );
        let by_log = message(end("FAILED", 5, &first, |ended| ended.log_says_memory = true));
        assert!(by_log.0.contains("more memory than it had"), "{by_log:?}");
        assert_eq!(said("NODE_FAIL"), ("job 12 ended because its node failed on n1 (NODE_FAIL)".into(), true));
        assert_eq!(said("CANCELLED by 1000").0, "job 12 was cancelled with `scancel` by user 1000");
        assert_eq!(said("CANCELLED").0, "job 12 was cancelled with `scancel`");
        assert_eq!(end("CANCELLED", 5, &first, |ended| ended.by_us = true), End::Over(Outcome::Cancelled));
    }

    #[test]
    fn a_job_that_ends_without_a_word_is_described() {
        let first = submission(None, 0);
        let exit = |code| message(end("FAILED", 0, &first, |ended| ended.exit = Some(code))).0;
        assert_eq!(exit((3, 0)), "job 12 ended on n1 without a result (exit code 3)");
        assert_eq!(exit((0, 9)), "the process of job 12 was killed on n1 (signal 9)");
        assert_eq!(exit((0, 11)), "job 12 ended on n1 without a result (signal 11)");
        let mute = message(end("FAILED", 0, &first, |ended| ended.said = Said::Nothing)).0;
        assert_eq!(mute, "job 12 ended on n1 before the stage began");
        let gone = message(end("FAILED", 0, &first, |ended| ended.seen = None));
        assert_eq!(gone, ("Slurm does not know job 12 any more, and it left no result".into(), true));
    }
}
