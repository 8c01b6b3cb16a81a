//! The table `[slurm]` of `imp-flow.toml`.

use std::{collections::BTreeMap, time::Duration};

use imp_stages::{
    KINDS, KindVisitor, Stage,
    contract::executor::{Argument, NodeFolder, SlurmOptions, TimeLimit},
    visit,
};
use serde::{Deserialize, Deserializer, de};

use crate::machine::Cluster;

/// `[slurm]`. The keys of [`SlurmOptions`] are listed, since messages of a flattened table have no position.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SlurmTable {
    partition: Option<String>,
    account: Option<String>,
    qos: Option<String>,
    time: Option<TimeLimit>,
    gpu_type: Option<String>,
    work: Option<NodeFolder>,
    arguments: Vec<Argument>,
    cpus: Option<usize>,
    jobs: Option<usize>,
    poll_seconds: Option<f64>,
    save_seconds: Option<u64>,
    local: Option<Vec<Kind>>,
    kinds: BTreeMap<Kind, SlurmOptions>,
    runner: SlurmOptions,
}

/// The name of a kind of stage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind(String);

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IsKnown;
        impl KindVisitor for IsKnown {
            type Output = ();

            fn visit<S: Stage>(self) {}
        }
        let name = String::deserialize(deserializer)?;
        match visit(&name, IsKnown) {
            Some(()) => Ok(Self(name)),
            None => {
                Err(de::Error::custom(format!("unknown kind of stage `{name}`, expected one of {}", KINDS.join(", "))))
            }
        }
    }
}

impl SlurmTable {
    pub(super) fn cluster(self) -> Cluster {
        let Self { partition, account, qos, time, gpu_type, work, arguments, .. } = self;
        let usual = Cluster::default();
        let poll = self.poll_seconds.filter(|seconds| seconds.is_finite()).map(|seconds| seconds.clamp(1.0, 3600.0));
        Cluster {
            options: SlurmOptions { partition, account, qos, time, gpu_type, work, arguments },
            kinds: self.kinds.into_iter().map(|(kind, options)| (kind.0, options)).collect(),
            runner: self.runner,
            local: self.local.map_or(usual.local, |kinds| kinds.into_iter().map(|kind| kind.0).collect()),
            cpus: self.cpus.filter(|cpus| *cpus > 0),
            jobs: self.jobs.unwrap_or(usual.jobs).max(1),
            poll: poll.map_or(usual.poll, Duration::from_secs_f64),
            // Slurm takes at most 65535.
            save: self.save_seconds.map_or(usual.save, |seconds| Duration::from_secs(seconds.min(65_535))),
        }
    }
}
