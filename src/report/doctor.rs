//! The output of `imp-flow doctor`.

use std::{collections::BTreeMap, path::PathBuf};

use imp_stages::{
    contract::device::Device,
    place::{Card, Cpu, Native, Probe},
};

use super::{
    foreign::one_line,
    print::print,
    style::{DIM, GOOD, WARN},
    units,
};
use crate::{machine::Machine, store::Repository};

/// What was found on this machine.
pub(crate) struct Checkup {
    pub(crate) gpu: Probe,
    /// Bytes of the usable cards that are free now, by their number; or why one does not start.
    pub(crate) free_gpu_memory: BTreeMap<usize, Result<u64, String>>,
    pub(crate) cpu: Cpu,
    /// What the settings and the probe make of it.
    pub(crate) machine: Machine,
    /// Where a stage with `gpus = 1` computes, and why not on a GPU.
    pub(crate) device: Device,
    pub(crate) reason: Option<String>,
    /// Memory that is free now, in bytes.
    pub(crate) free_memory: Option<u64>,
    pub(crate) disk: Disk,
    pub(crate) versions: Versions,
}

/// The disk of the cache.
pub(crate) struct Disk {
    /// The cache.
    pub(crate) folder: PathBuf,
    pub(crate) exists: bool,
    /// Bytes that this user can write.
    pub(crate) free: Option<u64>,
    /// Whether something can be written, else why not. The others are known only then.
    pub(crate) writable: Result<(), String>,
    pub(crate) hard_links: Result<(), String>,
    pub(crate) locks: Result<(), String>,
}

/// Versions that decide what is computed.
pub(crate) struct Versions {
    pub(crate) imp_flow: &'static str,
    /// How it was built: `release` or `debug`.
    pub(crate) build: &'static str,
    /// The git repository of this folder, as runs of pipelines in it record it.
    pub(crate) repository: Option<Repository>,
    /// Operating system and processor architecture.
    pub(crate) system: String,
    /// The kinds of stages, with the versions of their results.
    pub(crate) kinds: Vec<(&'static str, u32)>,
}

/// Who has NVIDIA's driver.
const DRIVER_PACKAGE: &str = "It comes with NVIDIA's driver: `libnvidia-compute-NNN` on Ubuntu, `libcuda1` on Debian; start a \
                              container with `--gpus all`";
/// Who has cuBLASLt.
const CUBLASLT_PACKAGE: &str = "It is in `libcublas-12-9` of NVIDIA's repository and in `nvidia-cublas-cu12` of PyPI (add its folder \
                                `nvidia/cublas/lib` to LD_LIBRARY_PATH); 12.4.5 is the oldest that will do";
/// What is lost without hard links.
const NO_LINKS: &str = "Results are copied and take up their size twice; a cache on ext4, xfs or btrfs takes it once";
/// What is lost without locks.
const NO_LOCKS: &str = "Two runs with this cache could disturb each other: start one at a time, or use a local disk";
/// The width of advice.
const WIDTH: usize = 68;

/// Shows what was found.
pub(crate) fn doctor(checkup: &Checkup, json: bool) {
    if json {
        return print(&as_json(checkup).to_string());
    }
    print(&text(checkup));
}

/// Lines with a name in front, and advice below them.
#[derive(Default)]
struct Page(Vec<String>);

impl Page {
    fn line(&mut self, name: &str, value: impl std::fmt::Display) {
        self.0.push(format!("{DIM}{name:<11}{DIM:#} {value}"));
    }

    /// A line on something that is found or missing.
    fn finding(&mut self, name: &str, found: &Result<String, String>, help: &str) {
        match found {
            Ok(value) => self.line(name, value),
            Err(reason) => {
                let (what, help) = remedy(reason, help);
                self.line(name, format!("{WARN}{what}{WARN:#}"));
                self.0.extend(wrapped(help).into_iter().map(|line| format!("{:<11} {DIM}{line}{DIM:#}", "")));
            }
        }
    }
}

/// What is missing, and what to do: in the words of the reason if it goes on with that.
fn remedy<'a>(reason: &'a str, help: &'a str) -> (&'a str, &'a str) {
    reason.split_once(". ").unwrap_or((reason, help))
}

/// The lines of a text.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().filter(|line| line.is_empty() || line.len() + word.len() < WIDTH);
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => *line = format!("{line} {word}"),
            None => lines.push(word.into()),
        }
    }
    lines
}

fn text(checkup: &Checkup) -> String {
    let Checkup { gpu, cpu, machine, disk, versions, .. } = checkup;
    let mut page = Page::default();
    page.finding("GPU driver", &gpu.driver, DRIVER_PACKAGE);
    page.finding("cuBLASLt", &gpu.cublaslt, CUBLASLT_PACKAGE);
    if gpu.cards.is_empty() {
        page.line("GPUs", "none");
    }
    for card in &gpu.cards {
        page.line(&format!("GPU {}", card.index), card_text(card, checkup.free_gpu_memory.get(&card.index)));
    }
    let uses = match (&checkup.device, &checkup.reason) {
        (Device::Cuda, _) => {
            let number = units::count(machine.gpus.len(), "GPU");
            format!("{GOOD}runs on a GPU{GOOD:#}; {number} to share out: {}", machine.gpus.join(", "))
        }
        (Device::Cpu, Some(reason)) => format!("{WARN}runs on the CPU{WARN:#}: {reason}"),
        (Device::Cpu, None) => "runs on the CPU, as `device` says".into(),
    };
    page.line("gpus = 1", uses);
    let model = cpu.model.as_deref().unwrap_or(std::env::consts::ARCH);
    page.line("CPU", format!("{model}, {}, {} to share out", units::count(cpu.threads, "thread"), machine.cpus));
    for feature in &cpu.features {
        page.line("", format!("{}: {}", feature.name, if feature.found { "yes" } else { "no" }));
    }
    let bf16 = match cpu.bf16 {
        Native::Yes => "products by the processor's own instruction".into(),
        Native::No => "products in f32 after rounding: the processor has no instruction for them".into(),
        Native::Slow => "products in f32 after rounding: on this processor faster than its own instruction".into(),
        Native::Wrong => format!(
            "products {WARN}in f32{WARN:#}: the processor's own instruction gives other sums than plain arithmetic"
        ),
    };
    page.line("bf16", bf16);
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "an unknown amount".into(), units::bytes);
    page.line("memory", format!("{} to share out, {} free now", size(machine.memory), size(checkup.free_memory)));
    let new = if disk.exists { "" } else { " (does not exist yet)" };
    page.line("cache", format!("{}{new}, {} free", disk.folder.display(), size(disk.free)));
    if let Err(reason) = &disk.writable {
        page.finding("", &Err(format!("nothing can be written there: {reason}")), "name another folder with --cache");
    } else {
        let works = |result: &Result<(), String>| result.clone().map(|()| "work".to_string());
        page.finding("hard links", &works(&disk.hard_links), NO_LINKS);
        page.finding("locks", &works(&disk.locks), NO_LOCKS);
    }
    page.line("imp-flow", format!("{} ({}) on {}", versions.imp_flow, versions.build, versions.system));
    let kinds: Vec<String> = versions.kinds.iter().map(|(kind, version)| format!("{kind} {version}")).collect();
    if let Some(repository) = &versions.repository {
        page.line("commit here", one_line(&repository.to_string()));
    }
    page.line("kinds", kinds.join(", "));
    page.0.join("\n")
}

/// `NVIDIA H100 80GB HBM3, 85.0 GB, 84.1 GB free, compute capability 9.0`.
fn card_text(card: &Card, free: Option<&Result<u64, String>>) -> String {
    let mut parts = vec![card.name.clone()];
    if card.memory > 0 {
        parts.push(units::bytes(card.memory));
    }
    parts.extend(free.and_then(|free| free.as_ref().ok()).map(|free| format!("{} free", units::bytes(*free))));
    let (major, minor) = card.compute_capability;
    if major > 0 {
        parts.push(format!("compute capability {major}.{minor}"));
    }
    let text = parts.join(", ");
    match card.usable.as_ref().err().or(free.and_then(|free| free.as_ref().err())) {
        None => text,
        Some(reason) => format!("{text}: {WARN}{reason}{WARN:#}"),
    }
}

fn as_json(checkup: &Checkup) -> serde_json::Value {
    let Checkup { gpu, cpu, machine, disk, versions, .. } = checkup;
    let found = |result: &Result<String, String>, help: &str| match result {
        Ok(version) => serde_json::json!({"found": true, "version": version}),
        Err(reason) => {
            let (reason, help) = remedy(reason, help);
            serde_json::json!({"found": false, "reason": reason, "help": help})
        }
    };
    let works = |result: &Result<(), String>| match result {
        Ok(()) => serde_json::json!({"ok": true}),
        Err(reason) => serde_json::json!({"ok": false, "reason": reason}),
    };
    let known = |bytes: u64| Some(bytes).filter(|bytes| *bytes > 0);
    let card = |card: &Card| {
        let (major, minor) = card.compute_capability;
        serde_json::json!({
            "index": card.index, "name": card.name, "memory": known(card.memory),
            "free": checkup.free_gpu_memory.get(&card.index).and_then(|free| free.as_ref().ok()),
            "compute_capability": (major > 0).then(|| format!("{major}.{minor}")), "usable": works(&card.usable),
        })
    };
    let features: serde_json::Map<String, serde_json::Value> =
        cpu.features.iter().map(|feature| (feature.name.into(), feature.found.into())).collect();
    let bf16 = match cpu.bf16 {
        Native::Yes => "native",
        Native::No => "f32",
        Native::Slow => "f32, since the native ones are slower",
        Native::Wrong => "f32, since the native ones are wrong",
    };
    let kinds: serde_json::Map<String, serde_json::Value> =
        versions.kinds.iter().map(|(kind, version)| ((*kind).into(), (*version).into())).collect();
    serde_json::json!({
        "gpu": {
            "driver": found(&gpu.driver, DRIVER_PACKAGE), "cublaslt": found(&gpu.cublaslt, CUBLASLT_PACKAGE),
            "cards": gpu.cards.iter().map(card).collect::<Vec<_>>(),
        },
        "device": checkup.device, "reason": checkup.reason,
        "machine": {"cpus": machine.cpus, "gpus": machine.gpus, "memory": machine.memory},
        "cpu": {"model": cpu.model, "threads": cpu.threads, "features": features, "bf16_products": bf16},
        "free_memory": checkup.free_memory,
        "cache": {
            "folder": disk.folder, "exists": disk.exists, "free": disk.free, "writable": works(&disk.writable),
            "hard_links": works(&disk.hard_links), "locks": works(&disk.locks),
        },
        "versions": {
            "imp_flow": versions.imp_flow, "build": versions.build, "system": versions.system, "kinds": kinds,
        },
        "repository": versions.repository,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_that_of_the_reason_if_it_has_one() {
        assert_eq!(remedy("libcuda.so.1 is missing", "Help"), ("libcuda.so.1 is missing", "Help"));
        assert_eq!(remedy("libcuda.so.1 is missing. Install it", "Help"), ("libcuda.so.1 is missing", "Install it"));
        let lines = wrapped(CUBLASLT_PACKAGE);
        assert!(lines.len() > 2 && lines.iter().all(|line| line.len() <= WIDTH), "{lines:?}");
        assert_eq!(lines.join(" "), CUBLASLT_PACKAGE);
    }
}
