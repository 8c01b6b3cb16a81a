//! What is asked of Slurm for a stage: arguments of `sbatch`, the lines of a script, and the same in words. Independent of how it is
//! submitted.

use std::{path::Path, time::Duration};

use imp_stages::contract::{bytes::ByteSize, executor::SlurmOptions, job};

use super::shell::quoted;
use crate::executor::local::KEEP_MEMORY;

/// What a stage needs.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(super) name: String,
    /// The site's default if `None`.
    pub(super) cpus: Option<usize>,
    pub(super) gpus: usize,
    pub(super) memory: Option<ByteSize>,
    pub(super) options: SlurmOptions,
    /// How long before the end of its time it is asked to save.
    pub(super) save: Duration,
}

impl Request {
    /// How a script begins. Only what it needs to find its way: the environment comes through `sbatch`.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut lines = vec![
            "#!/bin/sh".to_string(),
            "# Written by imp-flow, and submitted with sbatch.".into(),
            "export RAYON_NUM_THREADS=\"${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}\"".into(),
        ];
        if self.gpus == 0 {
            // What the runner sees is not there.
            lines.push("export CUDA_VISIBLE_DEVICES=''".into());
        }
        // The user's environment takes precedence.
        lines.extend(KEEP_MEMORY.iter().map(|(name, value)| format!("export {name}=\"${{{name}-{value}}}\"")));
        (lines.join("\n") + "\n").into_bytes()
    }

    /// The command that becomes the stage.
    pub(super) fn stage(&self, program: &Path, work: &Path, token: &str) -> Vec<u8> {
        let mut command = b"exec ".to_vec();
        command.extend(quoted(program.as_os_str()));
        command.extend(b" __stage ");
        command.extend(quoted(work.join(job::JOB).as_os_str()));
        command.extend(format!(" --attempt {token}").bytes());
        if let Some(folder) = &self.options.work {
            // Nothing in it means more to a shell than the variables.
            command.extend(format!(" --output \"{}\"", folder.0).bytes());
        }
        command
    }

    /// The batch script's process alone gets it: that asks the stage to save.
    pub(super) fn signal(&self) -> String {
        format!("B:TERM@{}", self.save_seconds())
    }

    /// All but the script.
    pub(super) fn arguments(&self, name: &str, log: &str, signal: &str) -> Vec<String> {
        let SlurmOptions { partition, account, qos, time, arguments, .. } = &self.options;
        let mut all = vec![
            "--parsable".to_string(),
            format!("--job-name={name}"),
            format!("--output={log}"),
            "--open-mode=append".into(),
            "--export=ALL".into(),
            "--requeue".into(),
            "--nodes=1".into(),
            "--ntasks=1".into(),
            format!("--signal={signal}"),
        ];
        all.extend(self.cpus.map(|cpus| format!("--cpus-per-task={cpus}")));
        all.extend(self.memory.map(|memory| format!("--mem={}M", memory.0.div_ceil(1 << 20))));
        all.extend(self.gres());
        all.extend(time.as_ref().map(|time| format!("--time={}", time.0)));
        let named = [("partition", partition), ("account", account), ("qos", qos)];
        all.extend(named.iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?))));
        all.extend(arguments.iter().map(|argument| argument.0.clone()));
        all
    }

    /// At most half of its time, so that it comes to work at all.
    pub(super) fn save_seconds(&self) -> u64 {
        let time = self.options.time.as_ref().and_then(|time| seconds(&time.0));
        time.map_or(self.save.as_secs(), |time| self.save.as_secs().min(time / 2))
    }

    fn gres(&self) -> Option<String> {
        let kind = self.options.gpu_type.as_ref().map(|kind| format!(":{kind}")).unwrap_or_default();
        (self.gpus > 0).then(|| format!("--gres=gpu{kind}:{}", self.gpus))
    }

    /// What was asked for, in words: `partition gpu, 8 CPUs, 1 GPU, 16 GB of memory, 12:00:00`.
    pub(super) fn asked(&self) -> String {
        let SlurmOptions { partition, account, qos, time, gpu_type, arguments, .. } = &self.options;
        let named = [("partition", partition), ("account", account), ("qos", qos)];
        let mut words: Vec<String> =
            named.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?))).collect();
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        words.extend(self.cpus.map(|cpus| count(cpus, "CPU")));
        let gpu = gpu_type.as_ref().map_or_else(|| "GPU".into(), |kind| format!("{kind} GPU"));
        words.extend((self.gpus > 0).then(|| count(self.gpus, &gpu)));
        words.extend(self.memory.map(|memory| format!("{memory} of memory")));
        words.extend(time.as_ref().map(|time| format!("a time of {}", time.0)));
        words.extend(arguments.iter().map(|argument| argument.0.clone()));
        if words.is_empty() { "the site's defaults".into() } else { words.join(", ") }
    }
}

/// A time as Slurm writes it, in seconds: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or
/// days-hours:minutes:seconds (<https://slurm.schedmd.com/sbatch.html#OPT_time>). `None` if there is no limit.
fn seconds(time: &str) -> Option<u64> {
    let numbers = |text: &str| text.split(':').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    let (days, units, rest) = if let Some((days, rest)) = time.split_once('-') {
        (days.parse().ok()?, &[3600, 60, 1][..], numbers(rest)?)
    } else {
        let rest = numbers(time)?;
        (0, if rest.len() == 3 { &[3600, 60, 1][..] } else { &[60, 1][..] }, rest)
    };
    Some(days * 86_400 + rest.iter().zip(units).map(|(number, unit)| number * unit).sum::<u64>())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::executor::slurm::shell::escaped;

    fn request(options: &str) -> Request {
        Request {
            name: "lora_rank=64/fine tune".into(),
            cpus: Some(8),
            gpus: 2,
            memory: Some(ByteSize((3 << 20) + 1)),
            options: serde_json::from_str(options).unwrap(),
            save: Duration::from_secs(90),
        }
    }

    #[test]
    fn everything_that_is_asked_for_is_an_argument_and_the_users_come_last() {
        let options = r#"{"partition": "gpu; rm -rf", "time": "1-00", "gpu_type": "a100", "arguments": ["--nice=10"]}"#;
        let arguments = request(options).arguments("name", &escaped(Path::new("/a%j/b/log")), "B:TERM@90");
        for expected in [
            "--parsable",
            "--output=/a%%j/b/log",
            "--open-mode=append",
            "--signal=B:TERM@90",
            "--cpus-per-task=8",
            "--mem=4M",
            "--gres=gpu:a100:2",
            "--time=1-00",
            "--partition=gpu; rm -rf",
        ] {
            assert!(arguments.iter().any(|argument| argument == expected), "{expected}: {arguments:?}");
        }
        assert_eq!(arguments.last().unwrap(), "--nice=10");
        let asked = "partition gpu; rm -rf, 8 CPUs, 2 a100 GPUs, 3.1 MB of memory, a time of 1-00, --nice=10";
        assert_eq!(request(options).asked(), asked);
        let least = Request { cpus: None, gpus: 0, memory: None, ..request("{}") };
        assert!(!least.arguments("n", "/w", "B:TERM@90").iter().any(|argument| argument.contains("gres")));
        assert_eq!(least.asked(), "the site's defaults");
    }

    #[test]
    fn a_short_job_is_asked_to_save_when_half_of_its_time_is_over() {
        for (time, expected) in [
            ("30", 1800),
            ("1:30", 90),
            ("2:00:00", 7200),
            ("1-12", 129_600),
            ("1-0:30", 88_200),
            ("2-00:00:01", 172_801),
        ] {
            assert_eq!(seconds(time), Some(expected), "{time}");
        }
        assert_eq!(seconds("UNLIMITED"), None);
        let save = |time: &str| request(&format!(r#"{{"time": "{time}"}}"#)).save_seconds();
        assert_eq!([save("1"), save("3"), save("UNLIMITED")], [30, 90, 90]);
    }
}
