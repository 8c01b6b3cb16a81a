//! Looks for NVIDIA's driver, its cards and cuBLASLt, without loading anything: from the files of the system.
//! Independent of who asks.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What there is for computing on GPUs.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The version of the driver, or what is missing.
    pub driver: Result<String, String>,
    /// The version of cuBLASLt, or what is missing.
    pub cublaslt: Result<String, String>,
    /// The cards that the driver shows.
    pub cards: Vec<Card>,
}

/// A card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its number among the visible cards.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Its memory in bytes; 0 if unknown.
    pub memory: u64,
    /// What of that is free; 0 if unknown.
    pub free: u64,
    /// Its compute capability; (0, 0) if unknown.
    pub compute_capability: (u32, u32),
    /// Why stages can't use it, if they can't.
    pub usable: Result<(), String>,
}

/// Where the driver describes itself.
const DRIVER: &str = "/proc/driver/nvidia";
const CUDA: &str = "libcuda.so.1";
const CUBLASLT: &str = "libcublasLt.so.12";
/// Where libraries are looked for, after `LD_LIBRARY_PATH`.
const FOLDERS: [&str; 9] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/run/opengl-driver/lib",
];

/// Looks at this machine.
pub fn probe() -> Probe {
    let path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from)).collect();
    probe_in(Path::new(DRIVER), &folders)
}

fn probe_in(driver: &Path, folders: &[PathBuf]) -> Probe {
    let found = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|path| path.exists());
    let version = fs::read_to_string(driver.join("version")).ok().and_then(|text| version(&text));
    Probe {
        driver: match found(CUDA) {
            Some(_) => Ok(version.unwrap_or_else(|| "of unknown version".into())),
            None => Err(format!("{CUDA} is missing")),
        },
        cublaslt: match found(CUBLASLT) {
            Some(path) => {
                Ok(fs::canonicalize(&path).ok().and_then(|path| suffix(&path)).unwrap_or_else(|| "12".into()))
            }
            None => Err(format!("{CUBLASLT} is missing")),
        },
        cards: cards(&driver.join("gpus")),
    }
}

/// The cards in the folder of the driver, which has a folder for each.
fn cards(folder: &Path) -> Vec<Card> {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    folders.sort();
    let card = |(index, folder): (usize, &PathBuf)| {
        let text = fs::read_to_string(folder.join("information")).unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("Model:")).map_or("NVIDIA GPU", str::trim);
        let usable = Err("this build of imp-flow can't compute on a GPU".into());
        Card { index, name: name.into(), memory: 0, free: 0, compute_capability: (0, 0), usable }
    };
    folders.iter().enumerate().map(card).collect()
}

/// `550.54.15` of `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar ...`.
fn version(text: &str) -> Option<String> {
    let is_version = |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    text.lines().next()?.split_whitespace().find(is_version).map(Into::into)
}

/// `12.4.5.8` of `libcublasLt.so.12.4.5.8`.
fn suffix(path: &Path) -> Option<String> {
    path.file_name()?.to_str()?.split_once(".so.").map(|(_, version)| version.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let root = tempfile::tempdir().unwrap();
        let probe = probe_in(&root.path().join("driver"), &[root.path().join("lib")]);
        assert_eq!(probe.driver, Err("libcuda.so.1 is missing".into()));
        assert_eq!(probe.cublaslt, Err("libcublasLt.so.12 is missing".into()));
        assert!(probe.cards.is_empty());
    }

    #[test]
    fn versions_and_cards_are_read() {
        let root = tempfile::tempdir().unwrap();
        let (driver, lib) = (root.path().join("driver"), root.path().join("lib"));
        for card in ["0000:01:00.0", "0000:02:00.0"] {
            fs::create_dir_all(driver.join("gpus").join(card)).unwrap();
        }
        let information = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 12\n";
        fs::write(driver.join("gpus/0000:01:00.0/information"), information).unwrap();
        let text =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:";
        fs::write(driver.join("version"), text).unwrap();
        fs::create_dir(&lib).unwrap();
        fs::write(lib.join("libcuda.so.1"), "").unwrap();
        fs::write(lib.join("libcublasLt.so.12.4.5.8"), "").unwrap();
        std::os::unix::fs::symlink("libcublasLt.so.12.4.5.8", lib.join("libcublasLt.so.12")).unwrap();
        let probe = probe_in(&driver, &[lib]);
        assert_eq!((probe.driver, probe.cublaslt), (Ok("550.54.15".into()), Ok("12.4.5.8".into())));
        let names: Vec<&str> = probe.cards.iter().map(|card| card.name.as_str()).collect();
        assert_eq!(names, ["NVIDIA H100 80GB HBM3", "NVIDIA GPU"]);
    }
}
