//! Where the process of a stage runs, and what a cluster is asked for it. Plain data: independent of how a job gets there.

use serde::{Deserialize, Deserializer, Serialize, de};

use super::keys::keys;

/// Where the process of a stage runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Executor {
    /// On this machine, as a child of the runner.
    #[default]
    Local,
    /// On a node of a cluster, as a job of Slurm.
    Slurm,
}

keys! {
    /// What Slurm is asked for. What is not given is left to the site's defaults.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct SlurmOptions {
        /// Partition to submit to.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub partition: Option<String> = None,
        /// Account to charge.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub account: Option<String> = None,
        /// Quality of service.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub qos: Option<String> = None,
        /// Time limit of a job, as Slurm writes it: `"30"` (minutes), `"12:00:00"`, `"2-00:00:00"`. A stage that needs longer is
        /// submitted again and resumes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub time: Option<TimeLimit> = None,
        /// Type of the GPUs, as in `--gres=gpu:TYPE:1`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub gpu_type: Option<String> = None,
        /// A folder on the node's own disk, such as `"$TMPDIR"`, where the output is written until it is complete; the job then takes it
        /// into the cache. Checkpoints, metrics and log stay in the cache, so that they outlive the job.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub work: Option<NodeFolder> = None,
        /// More arguments of `sbatch`, such as `["--constraint=a100"]`; those of several tables are added up.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        pub arguments: Vec<Argument> = Vec::new(),
    }
}

impl SlurmOptions {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These options with those of `over` laid over them.
    #[must_use]
    pub fn with(&self, over: &Self) -> Self {
        Self {
            partition: over.partition.as_ref().or(self.partition.as_ref()).cloned(),
            account: over.account.as_ref().or(self.account.as_ref()).cloned(),
            qos: over.qos.as_ref().or(self.qos.as_ref()).cloned(),
            time: over.time.as_ref().or(self.time.as_ref()).cloned(),
            gpu_type: over.gpu_type.as_ref().or(self.gpu_type.as_ref()).cloned(),
            work: over.work.as_ref().or(self.work.as_ref()).cloned(),
            arguments: [self.arguments.as_slice(), &over.arguments].concat(),
        }
    }
}

/// A time limit in one of Slurm's formats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct TimeLimit(pub String);

impl<'de> Deserialize<'de> for TimeLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (days, rest) = text.split_once('-').map_or((None, text.as_str()), |(days, rest)| (Some(days), rest));
        let is_number =
            |part: &str| !part.is_empty() && part.len() < 10 && part.bytes().all(|byte| byte.is_ascii_digit());
        let is_time = rest.split(':').count() <= 3 && rest.split(':').all(is_number) && days.is_none_or(is_number);
        if is_time || text.eq_ignore_ascii_case("unlimited") {
            return Ok(Self(text));
        }
        let formats = "\"30\" (minutes), \"12:00:00\" or \"2-00:00:00\" (days-hours:minutes:seconds)";
        Err(de::Error::custom(format!("`{text}` is not a time limit of Slurm: write {formats}")))
    }
}

/// A folder of a node. It may begin with or contain variables of the job, as in `$TMPDIR` or `/scratch/${USER}`, which a shell on the node
/// fills in: so it has no letters that mean more to a shell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct NodeFolder(pub String);

impl<'de> Deserialize<'de> for NodeFolder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let is_letter = |c: char| c.is_ascii_alphanumeric() || "/_-.".contains(c);
        let mut parts = text.split('$');
        let plain = parts.next().unwrap_or_default();
        let starts = text.starts_with(['/', '$']);
        let is_variable = |part: &str| {
            let (name, rest) = match part.strip_prefix('{') {
                Some(part) => part.split_once('}').unwrap_or_default(),
                None => {
                    part.split_at(part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len()))
                }
            };
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let named = name.chars().all(is_name) && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            named && rest.chars().all(is_letter)
        };
        if starts && plain.chars().all(is_letter) && parts.all(is_variable) {
            return Ok(Self(text));
        }
        Err(de::Error::custom(format!(
            "`{}` is not a folder of a node: write an absolute path, with variables of the job if you like, as in `$TMPDIR` or \
             `/scratch/${{USER}}`; letters, digits, `_`, `-`, `.` and `/` are allowed",
            text.escape_debug()
        )))
    }
}

/// One argument for `sbatch` that does not take the runner's job out of its hands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Argument(pub String);

/// Arguments that the runner sets itself, or that would change what it follows, in their long and short forms.
const RESERVED: &[(&str, &str, &str)] = &[
    ("--array", "-a", "stages that are ready together are an array anyway"),
    ("--chdir", "-D", "the work folder is that of the run"),
    ("--clusters", "-M", "set SLURM_CLUSTERS in the environment"),
    ("--error", "-e", "what it writes goes to the stage's log"),
    ("--job-name", "-J", "jobs are found again by their names"),
    ("--nodes", "-N", "a stage runs on one node; `gpus` under [stages.NAME.runtime] gives it several GPUs of that"),
    ("--ntasks", "-n", "a stage is one process; `cpus` under [stages.NAME.runtime] gives it threads"),
    ("--open-mode", "--open-mode", "the stage's log is appended to"),
    ("--output", "-o", "what it writes goes to the stage's log"),
    ("--parsable", "--parsable", "it is set already"),
    ("--signal", "-s", "set `save_seconds` under [slurm] in imp-flow.toml"),
    ("--test-only", "--test-only", "nothing would run"),
    ("--wait", "-W", "jobs are followed anyway"),
    ("--wrap", "--wrap", "the stage is what runs"),
];

impl<'de> Deserialize<'de> for Argument {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if !text.starts_with('-') || text.trim_start_matches('-').is_empty() || text.contains(char::is_control) {
            return Err(de::Error::custom(format!(
                "`{}` is not an argument of sbatch: write each with its value in one string, as in `--constraint=a100`",
                text.escape_debug()
            )));
        }
        let name = text.split('=').next().unwrap_or_default();
        let is = |(long, short, _): &&(&str, &str, &str)| {
            name == *long || (short.len() == 2 && !text.starts_with("--") && text.starts_with(short))
        };
        match RESERVED.iter().find(is) {
            // `-s` alone is `--oversubscribe`.
            Some(("--signal", ..)) if !text.starts_with("--") => Ok(Self(text)),
            Some((_, _, why)) => Err(de::Error::custom(format!("`{name}` can't be set here: {why}"))),
            None => Ok(Self(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn options(text: &str) -> Result<SlurmOptions, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_folder_of_a_node_means_nothing_more_to_a_shell() {
        let read = |text: &str| serde_json::from_value::<NodeFolder>(serde_json::json!(text)).is_ok();
        for good in ["$TMPDIR", "${TMPDIR}/a", "/scratch/$USER", "/scratch/${USER}-x/a.b", "$A$B"] {
            assert!(read(good), "{good}");
        }
        for bad in [
            "", "tmp", "~/x", "$", "${", "${}", "$1", "${A", "/a b", "/a;b", "/a\"b", "$(id)", "`id`", "/a\n",
            "${A:-b}",
        ] {
            assert!(!read(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_laid_over_wins_and_arguments_add_up() {
        let base = options(r#"{"partition": "cpu", "time": "1-00", "arguments": ["--exclude=n1"]}"#).unwrap();
        let over = options(r#"{"partition": "gpu", "gpu_type": "a100", "arguments": ["-C fast"]}"#).unwrap();
        let both = base.with(&over);
        assert_eq!((both.partition.as_deref(), both.time), (Some("gpu"), Some(TimeLimit("1-00".into()))));
        assert_eq!(both.arguments, ["--exclude=n1", "-C fast"].map(|text| Argument(text.into())));
        assert!(SlurmOptions::default().with(&SlurmOptions::default()).is_empty());
    }

    #[test]
    fn times_are_those_of_slurm() {
        for good in ["30", "30:00", "12:00:00", "2-00", "2-00:00:00", "UNLIMITED"] {
            assert!(options(&format!(r#"{{"time": "{good}"}}"#)).is_ok(), "{good}");
        }
        for bad in ["", "2h", "1:2:3:4", "-1", "1-", "99999999999", "1 --wrap=x"] {
            let error = options(&format!(r#"{{"time": "{bad}"}}"#)).unwrap_err();
            assert!(error.contains("is not a time limit of Slurm"), "{error}");
        }
    }

    #[test]
    fn arguments_that_would_lose_the_job_are_refused() {
        for good in ["--constraint=a100", "-C a100", "--exclusive", "-s", "--nodelist=n1", "--nice=10"] {
            assert!(options(&format!(r#"{{"arguments": ["{good}"]}}"#)).is_ok(), "{good}");
        }
        for bad in ["--array=1-3", "-a1-3", "--wrap=x", "--output=/dev/null", "-N2", "--nodes=2", "--signal=USR1"] {
            let error = options(&format!(r#"{{"arguments": ["{bad}"]}}"#)).unwrap_err();
            assert!(error.contains("can't be set here: "), "{error}");
        }
        for bad in ["gpu.sh", "", "--", "--x=\\n"] {
            let error = options(&format!(r#"{{"arguments": ["{bad}"]}}"#)).unwrap_err();
            assert!(error.contains("is not an argument of sbatch"), "{error}");
        }
    }
}
