//! The states of a job and the reasons for them, as Slurm names them, and what they mean. Independent of how they were asked for.

use super::submission::JobId;

/// What Slurm says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// `PENDING`, `RUNNING`, `COMPLETED`, ...
    pub(crate) state: String,
    /// Why it is in this state, if Slurm says it.
    pub(crate) reason: Option<String>,
    /// The node that it runs on.
    pub(crate) node: Option<String>,
    /// Its partition, or all that it may run in while it waits, with commas between them.
    partition: String,
    /// Its name, if Slurm says it.
    pub(crate) name: Option<String>,
}

impl Seen {
    /// Reads `12|PENDING|Priority||long,short|a` or `12_3|RUNNING|None|n1|long|a`: number and place in an array, state, reason, node,
    /// partitions, name.
    pub(crate) fn parse(line: &str) -> Option<(JobId, Self)> {
        let mut fields = line.split('|').map(str::trim);
        let job = JobId::parse_element(fields.next()?)?;
        // `sacct` says by whom a job was cancelled.
        let (state, by) = fields
            .next()?
            .split_once(' ')
            .map_or_else(|| (line.split('|').nth(1).unwrap_or_default().trim(), None), |(state, by)| (state, Some(by)));
        let state: String = state.chars().filter(|c| c.is_ascii_alphabetic() || *c == '_').collect();
        let given = |text: Option<&str>| {
            let text = text.unwrap_or_default();
            (!["", "None", "(null)", "None assigned", "n/a"].contains(&text)).then(|| text.to_string())
        };
        let reason = given(fields.next()).or(by.map(Into::into));
        let node = given(fields.next());
        let partition = fields.next().unwrap_or_default().into();
        // It may have this separator itself.
        let name = line.splitn(6, '|').nth(5).map(|name| name.trim().to_string());
        (!state.is_empty()).then_some((job, Self { state, reason, node, partition, name }))
    }

    pub(crate) fn is(&self, state: &str) -> bool {
        self.state == state
    }

    /// Whether the job has ended and does not come back.
    pub(crate) fn is_over(&self) -> bool {
        const OVER: [&str; 10] = [
            "BOOT_FAIL",
            "CANCELLED",
            "COMPLETED",
            "DEADLINE",
            "FAILED",
            "NODE_FAIL",
            "OUT_OF_MEMORY",
            "PREEMPTED",
            "REVOKED",
            "TIMEOUT",
        ];
        OVER.contains(&self.state.as_str())
    }

    /// `PENDING (Priority)` or `RUNNING on n1`.
    pub(crate) fn words(&self) -> String {
        match (&self.reason, &self.node) {
            (Some(reason), _) if self.is("PENDING") => format!("{} ({reason})", self.state),
            (_, Some(node)) => format!("{} on {node}", self.state),
            _ => self.state.clone(),
        }
    }

    /// Why a pending job does not start by itself, if so.
    pub(crate) fn hindrance(&self) -> Option<Hindrance> {
        let reason = self.reason.as_deref().filter(|_| self.is("PENDING"))?.replace('_', " ");
        let (name, never, what, help) = HINDRANCES.iter().find(|(name, ..)| reason.starts_with(name))?;
        // Of several partitions, another may take it: Slurm gives the reason of the one that it has tried last.
        let may_fit = self.partition.contains(',') && OF_PARTITIONS.iter().any(|part| name.contains(part));
        Some(Hindrance { never: *never && !may_fit, what, help })
    }
}

/// What keeps a job from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hindrance {
    /// Whether waiting can't help.
    pub(crate) never: bool,
    pub(crate) what: &'static str,
    pub(crate) help: &'static str,
}

const LIMITS: &str = "change `time`, `partition` or `qos` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]; `scontrol \
                      show partition` shows the limits";
const RESOURCES: &str =
    "request less under [stages.NAME.runtime], or another `partition`; `sinfo -Nel` shows what nodes have";
const RIGHTS: &str = "change `account`, `qos` or `partition` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]; `sacctmgr \
                      show associations user=$USER` lists yours";
const NODES: &str =
    "`sinfo -R` says why nodes are down; it starts once they are back, or choose another `partition` or node";
const HELD: &str = "`scontrol release` lets it go on";

/// Parts of the reasons that are those of one partition.
const OF_PARTITIONS: [&str; 2] = ["Partition", "NotAllowed"];

/// Beginnings of reasons, whether waiting can't help, what they mean, and what to do.
const HINDRANCES: &[(&str, bool, &str, &str)] = &[
    ("AccountNotAllowed", true, "this account may not use the partition", RIGHTS),
    ("BadConstraints", true, "no node fulfils its constraints", RESOURCES),
    ("DeadLine", true, "it can't end before its deadline", LIMITS),
    ("DependencyNeverSatisfied", true, "it waits for a job that failed", "remove `--dependency` from `arguments`"),
    ("InvalidAccount", true, "its account does not exist", RIGHTS),
    ("InvalidQOS", true, "its quality of service does not exist", RIGHTS),
    ("PartitionConfig", true, "it asks for more than its partition allows: of time, nodes, memory or GPUs", LIMITS),
    ("PartitionNodeLimit", false, "it asks for more nodes than its partition gives, or they are down", LIMITS),
    ("PartitionTimeLimit", true, "its time limit is beyond that of the partition", LIMITS),
    ("QOSNotAllowed", true, "its quality of service may not use the partition", RIGHTS),
    ("JobHeldAdmin", false, "an administrator holds it", "ask them; `scancel` gives it up"),
    ("JobHeldUser", false, "it is held", HELD),
    ("JobHoldMaxRequeue", false, "it was started too often, and is held", HELD),
    ("launch failed requeued held", false, "a node could not start it, and it is held", HELD),
    ("job requeued in held state", false, "it is held", HELD),
    ("Nodes required for job are DOWN", false, "the nodes that it needs are down, drained or reserved", NODES),
    ("PartitionDown", false, "its partition is down", NODES),
    ("PartitionInactive", false, "its partition is inactive", NODES),
    ("ReqNodeNotAvail", false, "a node that it asks for is not available", NODES),
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn seen(line: &str) -> Seen {
        Seen::parse(line).unwrap().1
    }

    #[test]
    fn answers_of_squeue_and_sacct_are_read() {
        assert_eq!(Seen::parse("12|RUNNING|None|n1").unwrap().0.of_slurm(), "12");
        assert_eq!(Seen::parse("12_3|RUNNING|None|n1").unwrap().0.of_slurm(), "12_3");
        assert!(Seen::parse("12_[0-3]|PENDING|None|").is_none());
        assert_eq!(seen("12|RUNNING|None|n1").words(), "RUNNING on n1");
        assert_eq!(seen("12|PENDING|Priority|").words(), "PENDING (Priority)");
        assert_eq!(seen("12|PENDING|None|").words(), "PENDING");
        assert_eq!(seen("12|RUNNING|None|n1|long|a|b").name.as_deref(), Some("a|b"));
        let cancelled = seen("12|CANCELLED by 1000||n1");
        assert!(cancelled.is("CANCELLED") && cancelled.is_over());
        assert_eq!(cancelled.reason.as_deref(), Some("by 1000"));
        for bad in ["", "x|RUNNING", "12", "12|", "12|\u{1b}[2J|"] {
            assert!(Seen::parse(bad).is_none_or(|(_, seen)| seen.state == "J"), "{bad}");
        }
    }

    #[test]
    fn jobs_that_never_start_are_told_from_those_that_may() {
        let never = |line: &str| seen(line).hindrance().map(|hindrance| hindrance.never);
        assert_eq!(never("1|PENDING|PartitionTimeLimit|"), Some(true));
        assert_eq!(never("1|PENDING|PartitionTimeLimit||long|a"), Some(true));
        for reason in ["PartitionTimeLimit", "PartitionConfig", "AccountNotAllowed", "QOSNotAllowed"] {
            assert_eq!(never(&format!("1|PENDING|{reason}||long,short|a")), Some(false), "another may take it");
        }
        assert_eq!(never("1|PENDING|InvalidAccount||long,short|a"), Some(true));
        assert_eq!(never("1|PENDING|PartitionNodeLimit||long|a"), Some(false), "they may be down");
        assert_eq!(never("1|PENDING|ReqNodeNotAvail, UnavailableNodes:n2|"), Some(false));
        let down =
            "1|PENDING|Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions|";
        assert_eq!(never(down), Some(false));
        assert_eq!([never("1|PENDING|Priority|"), never("1|RUNNING|PartitionTimeLimit|n1")], [None, None]);
    }
}
