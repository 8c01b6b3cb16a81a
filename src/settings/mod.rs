//! The machine's settings: taken from the command line, else from the environment, else from `imp-flow.toml`, else detected. GPUs
//! are an exception: `gpus` of the file chooses among those that `CUDA_VISIBLE_DEVICES` shows.
//! Independent of pipelines: settings never change results.

mod cluster;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use imp_stages::{
    contract::{bytes::ByteSize, device::DeviceChoice, executor::Executor, setting::Setting},
    kinds,
};
use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor},
};

use cluster::SlurmTable;

use crate::{
    machine::{DevicePolicy, Elsewhere, Machine},
    remote::{Access, RemoteSettings},
};

/// `imp-flow.toml` in the current folder.
#[derive(Debug, Default)]
struct File {
    cache: Option<PathBuf>,
    artifacts: Option<PathBuf>,
    cpus: Option<usize>,
    gpus: Option<Vec<u32>>,
    device: Option<DeviceChoice>,
    memory: Option<ByteSize>,
    retries: Option<u32>,
    retry_seconds: Option<f64>,
    executor: Executor,
    slurm: SlurmTable,
    remote: Option<String>,
    remote_access: Access,
    remote_seconds: Option<f64>,
    /// The settings of kinds of stages.
    stages: Vec<(&'static Setting, String)>,
}

/// A key of the file.
#[derive(Debug, Clone, Copy)]
enum Key {
    Cache,
    Artifacts,
    Cpus,
    Gpus,
    Device,
    Memory,
    Retries,
    RetrySeconds,
    Executor,
    Slurm,
    Remote,
    RemoteAccess,
    RemoteSeconds,
    Stage(&'static Setting),
}

impl Key {
    /// All keys by name.
    fn all() -> impl Iterator<Item = (&'static str, Self)> {
        let own = [
            ("cache", Self::Cache),
            ("artifacts", Self::Artifacts),
            ("cpus", Self::Cpus),
            ("gpus", Self::Gpus),
            ("device", Self::Device),
            ("memory", Self::Memory),
            ("retries", Self::Retries),
            ("retry_seconds", Self::RetrySeconds),
            ("executor", Self::Executor),
            ("slurm", Self::Slurm),
            ("remote", Self::Remote),
            ("remote_access", Self::RemoteAccess),
            ("remote_seconds", Self::RemoteSeconds),
        ];
        own.into_iter().chain(kinds::settings().map(|setting| (setting.key, Self::Stage(setting))))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::all().find(|(known, _)| *known == name).map(|(_, key)| key).ok_or_else(|| {
            let known: Vec<String> = Self::all().map(|(known, _)| format!("`{known}`")).collect();
            de::Error::custom(format!("unknown field `{name}`, expected one of {}", known.join(", ")))
        })
    }
}

/// Written by hand, since a derived implementation can't include the keys of kinds.
impl<'de> Deserialize<'de> for File {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = File;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<File, M::Error> {
                let mut file = File::default();
                while let Some(key) = map.next_key()? {
                    match key {
                        Key::Cache => file.cache = map.next_value()?,
                        Key::Artifacts => file.artifacts = map.next_value()?,
                        Key::Cpus => file.cpus = map.next_value()?,
                        Key::Gpus => file.gpus = map.next_value()?,
                        Key::Device => file.device = map.next_value()?,
                        Key::Memory => file.memory = map.next_value()?,
                        Key::Retries => file.retries = map.next_value()?,
                        Key::RetrySeconds => file.retry_seconds = map.next_value()?,
                        Key::Executor => file.executor = map.next_value()?,
                        Key::Slurm => file.slurm = map.next_value()?,
                        Key::Remote => file.remote = map.next_value()?,
                        Key::RemoteAccess => file.remote_access = map.next_value()?,
                        Key::RemoteSeconds => file.remote_seconds = map.next_value()?,
                        Key::Stage(setting) => file.stages.push((setting, map.next_value()?)),
                    }
                }
                Ok(file)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The largest number of CPUs in the file: stages start a thread for each.
const MOST_CPUS: usize = 4096;
const RETRIES: u32 = 2;
const RETRY_SECONDS: f64 = 10.0;

/// The folders to use, the resources of the machine, and what stages get from the settings.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) cache: PathBuf,
    pub(crate) artifacts: PathBuf,
    pub(crate) machine: Machine,
    /// How many times a stage is retried after a transient failure.
    pub(crate) retries: u32,
    /// The pause before the first retry, in seconds.
    pub(crate) retry_seconds: f64,
    /// Environment variables for the processes of stages.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// The cache that other machines share, if there is one.
    pub(crate) remote: Option<RemoteSettings>,
}

impl Settings {
    /// Loads the settings. `cache` and `artifacts` come from the command line.
    ///
    /// # Errors
    /// If `imp-flow.toml` exists and can't be read.
    pub(crate) fn load(cache: Option<PathBuf>, artifacts: Option<PathBuf>) -> Result<Self, String> {
        let path = Path::new("imp-flow.toml");
        let file: File = match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| format!("imp-flow.toml: {error}"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => File::default(),
            Err(error) => return Err(format!("imp-flow.toml: {error}")),
        };
        if let Some(cpus) = file.cpus.filter(|cpus| *cpus > MOST_CPUS) {
            return Err(format!(
                "imp-flow.toml: `cpus` must be at most {MOST_CPUS}, and is {cpus}: give the number of CPUs of this machine, or \
                 remove it"
            ));
        }
        let remote = remote(std::env::var("IMP_FLOW_REMOTE").ok(), &file)?;
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        let (gpus, gpus_from) = gpus(file.gpus.as_deref(), visible.as_deref());
        let threads = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            cache: cache.or(file.cache.map(expand_home)).unwrap_or_else(|| "cache".into()),
            artifacts: artifacts.or(file.artifacts.map(expand_home)).unwrap_or_else(|| "artifacts".into()),
            machine: Machine {
                cpus: file.cpus.unwrap_or_else(threads).max(1),
                gpus,
                gpus_from,
                no_gpu: None,
                gpu_memory: None,
                memory: file.memory.map(|size| size.0).or_else(memory),
                device: DevicePolicy { all: None, others: file.device },
                elsewhere: Elsewhere { executor: file.executor, unusable: None, cluster: file.slurm.cluster() },
            },
            retries: file.retries.unwrap_or(RETRIES),
            retry_seconds: file
                .retry_seconds
                .filter(|seconds| seconds.is_finite())
                .unwrap_or(RETRY_SECONDS)
                .clamp(0.0, 3600.0),
            // Stages inherit the user's environment, which takes precedence over the file.
            environment: environment(file.stages, |variable| std::env::var_os(variable)),
            remote,
        })
    }
}

/// The remote cache that `variable`, of the environment, or else the file names. An empty name stands for none.
fn remote(variable: Option<String>, file: &File) -> Result<Option<RemoteSettings>, String> {
    let (from, name) = match variable {
        Some(name) => ("IMP_FLOW_REMOTE", Some(name)),
        None => ("imp-flow.toml", file.remote.clone()),
    };
    let Some(name) = name.filter(|name| !name.trim().is_empty()) else { return Ok(None) };
    let settings = RemoteSettings::new(&name, file.remote_access, file.remote_seconds);
    settings.map(Some).map_err(|what| format!("{from}: {what}"))
}

/// The environment variables for the settings of stages, except those that the user's environment has.
fn environment(
    settings: Vec<(&'static Setting, String)>,
    given: impl Fn(&str) -> Option<OsString>,
) -> Vec<(&'static str, String)> {
    let mut variables: Vec<_> = settings.into_iter().map(|(setting, value)| (setting.variable, value)).collect();
    variables.retain(|(variable, _)| given(variable).is_none());
    variables
}

/// Expands `~/x`, since no shell does it in `imp-flow.toml`.
fn expand_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

/// The GPUs that both the file and `visible`, the value of `CUDA_VISIBLE_DEVICES`, list; all that NVIDIA's driver lists if neither
/// does. Also what listed them. Both use the driver's numbers.
fn gpus(file: Option<&[u32]>, visible: Option<&str>) -> (Vec<String>, Option<&'static str>) {
    let listed = |gpus: &[u32]| gpus.iter().map(ToString::to_string).collect::<Vec<String>>();
    match (file.map(listed), visible.map(visible_gpus)) {
        (Some(listed), None) => (listed, Some("`gpus` in imp-flow.toml")),
        (Some(listed), Some(mut visible)) if !visible.is_empty() => {
            visible.retain(|gpu| listed.contains(gpu));
            (visible, Some("`gpus` in imp-flow.toml, of what CUDA_VISIBLE_DEVICES shows,"))
        }
        (_, Some(visible)) => (visible, Some("CUDA_VISIBLE_DEVICES")),
        (None, None) => {
            let found = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |entries| entries.flatten().count());
            ((0..found).map(|index| index.to_string()).collect(), None)
        }
    }
}

/// The GPUs that CUDA sees with this value of `CUDA_VISIBLE_DEVICES`: those before the first invalid one, such as `-1`.
fn visible_gpus(text: &str) -> Vec<String> {
    let listed = text.split(',').map(str::trim).filter(|gpu| !gpu.is_empty());
    listed.take_while(|gpu| !gpu.starts_with('-')).map(Into::into).collect()
}

/// Total memory in bytes; `None` on systems other than Linux.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use imp_stages::contract::executor::TimeLimit;

    use super::*;

    #[test]
    fn settings_of_stages_become_variables_unless_the_environment_has_them() {
        for setting in kinds::settings() {
            let file: File = toml::from_str(&format!("{} = \"x\"\ncpus = 3\nmemory = \"1GB\"", setting.key)).unwrap();
            assert_eq!((file.cpus, file.memory), (Some(3), Some(ByteSize(1_000_000_000))));
            assert_eq!(environment(file.stages.clone(), |_| None), [(setting.variable, "x".to_string())]);
            assert_eq!(environment(file.stages, |_| Some("y".into())), []);
        }
    }

    #[test]
    fn an_unknown_key_is_shown_with_all_known_ones() {
        let error = toml::from_str::<File>("cpus = 3\ncach = \"x\"").unwrap_err().to_string();
        let expected = "TOML parse error at line 2, column 1\n  |\n2 | cach = \"x\"\n  | ^^^^\nunknown field `cach`, expected \
                        one of `cache`, `artifacts`, `cpus`, `gpus`, `device`, `memory`, `retries`, `retry_seconds`, `executor`, `slurm`, \
                        `remote`, `remote_access`, `remote_seconds`, `judge_endpoint`\n";
        assert_eq!(error, expected);
        let error = toml::from_str::<File>("judge_endpoint = 3").unwrap_err().to_string();
        assert!(error.contains("line 1, column 18") && error.contains("expected a string"), "{error}");
        let error = toml::from_str::<File>("device = \"gpu\"").unwrap_err().to_string();
        assert!(error.contains("unknown variant `gpu`, expected one of `auto`, `cpu`, `cuda`"), "{error}");
    }

    #[test]
    fn a_cluster_is_described_in_a_table_with_tables_for_kinds() {
        let text = "executor = \"slurm\"\n[slurm]\npartition = \"gpu\"\ntime = \"12:00:00\"\npoll_seconds = 0\n\
                    arguments = [\"--constraint=a100\"]\n[slurm.kinds.eval]\ntime = \"30\"\n";
        let file: File = toml::from_str(text).unwrap();
        assert_eq!(file.executor, Executor::Slurm);
        let cluster = file.slurm.cluster();
        assert_eq!(cluster.options.partition.as_deref(), Some("gpu"));
        assert_eq!(cluster.kinds["eval"].time, Some(TimeLimit("30".into())));
        assert_eq!((cluster.poll, cluster.local), (Duration::from_secs(1), vec!["download".to_string()]));
        for (text, words) in [
            (
                "[slurm]\npartitoin = \"x\"",
                "line 2, column 1\n  |\n2 | partitoin = \"x\"\n  | ^^^^^^^^^\nunknown field `partitoin`",
            ),
            ("[slurm]\ntime = \"2h\"", "line 2, column 8"),
            ("[slurm]\narguments = [\"--array=1-9\"]", "stages that are ready together are an array anyway"),
            ("[slurm]\nlocal = [\"downlaod\"]", "unknown kind of stage `downlaod`"),
            ("executor = \"pbs\"", "unknown variant `pbs`, expected `local` or `slurm`"),
        ] {
            let error = toml::from_str::<File>(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_remote_cache_is_named_by_the_environment_or_the_file() {
        let file = |text: &str| toml::from_str::<File>(text).unwrap();
        let named = file("remote = \"s3://bucket/prefix/\"\nremote_access = \"read\"\nremote_seconds = 0");
        let found = remote(None, &named).unwrap().unwrap();
        assert_eq!((found.address.to_string().as_str(), found.access), ("s3://bucket/prefix", Access::Read));
        let found = remote(Some("file:///shared".into()), &named).unwrap().unwrap();
        assert_eq!(found.address.to_string(), "file:///shared");
        assert_eq!(remote(Some(String::new()), &named).unwrap(), None);
        assert_eq!(remote(None, &File::default()).unwrap(), None);
        assert_eq!(remote(None, &file("remote = \"s3://b\"")).unwrap().unwrap().access, Access::ReadWrite);
        let error = remote(None, &file("remote = \"shared\"")).unwrap_err();
        assert!(error.starts_with("imp-flow.toml: `remote` must be"), "{error}");
        let error = toml::from_str::<File>("remote_access = \"write\"").unwrap_err().to_string();
        assert!(error.contains("expected `read` or `read-write`"), "{error}");
    }

    #[test]
    fn the_file_chooses_among_the_visible_gpus() {
        for (file, visible, chosen) in [
            (Some(&[0, 2][..]), None, &["0", "2"][..]),
            (Some(&[0, 2]), Some("3,2,1"), &["2"]),
            (Some(&[0]), Some("3"), &[]),
            (Some(&[0]), Some(""), &[]),
            (None, Some("3,GPU-1a2b"), &["3", "GPU-1a2b"]),
        ] {
            assert_eq!(gpus(file, visible).0, chosen, "{file:?} {visible:?}");
        }
        assert_eq!(gpus(Some(&[0]), Some("")).1, Some("CUDA_VISIBLE_DEVICES"));
    }

    #[test]
    fn a_list_of_gpus_ends_where_cuda_stops_reading_it() {
        assert_eq!(visible_gpus("2, 0"), ["2", "0"]);
        assert_eq!(visible_gpus("GPU-1a2b,-1,0"), ["GPU-1a2b"]);
        assert_eq!([visible_gpus("-1"), visible_gpus("")], [[""; 0], [""; 0]]);
    }
}
