//! `imp-flow doctor`.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use imp_stages::{
    KINDS, KindVisitor, Stage,
    contract::device::{Device, DeviceChoice},
    place::{Cpu, free_bytes, probe},
    visit,
};

use super::{
    gpus,
    origin::{repository, system},
    session::settings,
};
use crate::{
    cli::{Common, DeviceArgs},
    failure::Failure,
    report::{self, Checkup, Disk, Versions},
    store::try_locks,
};

/// Shows what this machine has for stages, and what is missing.
pub(crate) fn doctor(args: DeviceArgs, common: &Common) -> Result<ExitCode, Failure> {
    let settings = settings(common)?;
    let (gpu, mut machine) = (probe(), settings.machine);
    machine.device.all = args.device;
    gpus::look_here(&mut machine, &gpu);
    let wants = machine.device.all.or(machine.device.others) != Some(DeviceChoice::Cpu);
    let device = if wants && machine.no_gpu.is_none() { Device::Cuda } else { Device::Cpu };
    let reason = machine.no_gpu.clone().filter(|_| wants);
    let usable = gpu.cards.iter().filter(|card| card.usable.is_ok());
    let checkup = Checkup {
        free_gpu_memory: usable.map(|card| (card.index, free_bytes(card.index))).collect(),
        gpu,
        cpu: Cpu::detect(),
        machine,
        device,
        reason,
        free_memory: free_memory(),
        disk: disk(&settings.cache),
        versions: versions(),
    };
    report::doctor(&checkup, common.json);
    Ok(ExitCode::SUCCESS)
}

/// Memory that programs can still take, in bytes.
fn free_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Tries out the disk of the cache, and leaves nothing behind. Does not create the cache.
fn disk(cache: &Path) -> Disk {
    let folder = std::path::absolute(cache).unwrap_or_else(|_| cache.to_path_buf());
    let there = folder.ancestors().find(|folder| folder.is_dir()).map_or_else(|| PathBuf::from("/"), Into::into);
    let free = rustix::fs::statvfs(&there).ok().map(|disk| disk.f_bavail * disk.f_frsize);
    let exists = there == folder;
    let unknown = || Err("not tried".to_string());
    // A cache has a folder for files that may vanish.
    let temporary = there.join("tmp");
    let trial = tempfile::tempdir_in(if exists && temporary.is_dir() { &temporary } else { &there });
    match trial {
        Err(error) => {
            let reason = error.to_string();
            Disk { folder, exists, free, writable: Err(reason), hard_links: unknown(), locks: unknown() }
        }
        Ok(trial) => Disk {
            folder,
            exists,
            free,
            writable: fs::write(trial.path().join("file"), "x").map_err(|error| error.to_string()),
            hard_links: hard_links(trial.path()).map_err(|error| error.to_string()),
            locks: try_locks(trial.path()),
        },
    }
}

fn hard_links(folder: &Path) -> io::Result<()> {
    let (from, to) = (folder.join("from"), folder.join("to"));
    fs::write(&from, "x")?;
    fs::hard_link(&from, &to)
}

fn versions() -> Versions {
    struct Version;
    impl KindVisitor for Version {
        type Output = u32;

        fn visit<S: Stage>(self) -> u32 {
            S::VERSION
        }
    }
    Versions {
        imp_flow: env!("CARGO_PKG_VERSION"),
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        system: system(),
        repository: repository(Path::new(".")),
        kinds: KINDS.iter().filter_map(|kind| Some((*kind, visit(kind, Version)?))).collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_is_tried_out_and_left_as_it_was() {
        let root = tempfile::tempdir().unwrap();
        let cache = root.path().join("a/cache");
        let new = disk(&cache);
        assert!(!new.exists && new.free.is_some_and(|bytes| bytes > 0));
        assert_eq!([new.writable, new.hard_links, new.locks], [Ok(()), Ok(()), Ok(())]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        fs::create_dir_all(cache.join("tmp")).unwrap();
        assert!(disk(&cache).exists);
        assert_eq!(fs::read_dir(cache.join("tmp")).unwrap().count(), 0);
    }
}
