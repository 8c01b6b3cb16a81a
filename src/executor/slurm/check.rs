//! Whether jobs can be submitted from here at all, and whether the cache lies on a disk that does what nodes need of it. Independent
//! of jobs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::store::try_locks;

/// What is needed of Slurm.
const PROGRAMS: [&str; 3] = ["sbatch", "squeue", "scancel"];

/// Why no job can be submitted with a cache in this folder, and what to do about it.
pub(crate) fn usable(cache: &Path) -> Result<(), (String, String)> {
    if let Some(missing) = PROGRAMS.iter().find(|program| !is_on_path(program)) {
        return Err((
            format!("stages can't be submitted to Slurm: `{missing}` was not found"),
            "run this on a login node of the cluster, add Slurm's programs to PATH, or set `executor = \"local\"`"
                .into(),
        ));
    }
    disk(cache).map_err(|why| {
        (
            format!("the cache {} can't be shared with the nodes of a cluster: {why}", cache.display()),
            "choose a folder of a file system that all nodes see and that has locks, such as NFS version 4 or Lustre mounted with \
             `flock`, with --cache or `cache` in imp-flow.toml (docs/CLUSTER.md)"
                .into(),
        )
    })
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Why the disk of the cache won't do, if so.
fn disk(cache: &Path) -> Result<(), String> {
    let folder = std::path::absolute(cache).unwrap_or_else(|_| cache.to_path_buf());
    let there = folder.ancestors().find(|folder| folder.is_dir()).map_or_else(|| PathBuf::from("/"), Into::into);
    let there = there.canonicalize().unwrap_or(there);
    if let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") {
        mounted(&mounts, &there)?;
    }
    let trial = tempfile::tempdir_in(&there).map_err(|error| error.to_string())?;
    try_locks(trial.path()).map_err(|why| format!("locks don't work there: {why}"))?;
    renames(trial.path()).map_err(|why| format!("files can't be renamed there: {why}"))
}

/// Tries out whether a file takes the place of another one at once.
fn renames(folder: &Path) -> Result<(), String> {
    let [from, to] = ["from", "to"].map(|name| folder.join(name));
    let tried = fs::write(&to, "old").and_then(|()| fs::write(&from, "new")).and_then(|()| fs::rename(&from, &to));
    tried.map_err(|error| error.to_string())?;
    match fs::read(&to) {
        Ok(text) if text == b"new" && !from.exists() => Ok(()),
        Ok(_) => Err("the old file stays".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Why locks in `folder` do not reach other machines, by how its file system is mounted.
fn mounted(mounts: &str, folder: &Path) -> Result<(), String> {
    let mut best: Option<(usize, &str, String)> = None;
    for line in mounts.lines() {
        // `36 35 98:0 /root /mount options - type source options`
        let Some((head, tail)) = line.split_once(" - ") else { continue };
        let (Some(at), own) = (head.split(' ').nth(4), head.split(' ').nth(5).unwrap_or_default()) else { continue };
        let at = at.replace("\\040", " ");
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next().unwrap_or_default(), tail.nth(1).unwrap_or_default());
        // Of two mounts at one place, the later hides the earlier.
        if folder.starts_with(&at) && best.as_ref().is_none_or(|(length, ..)| at.len() >= *length) {
            best = Some((at.len(), kind, format!("{own},{options}")));
        }
    }
    let Some((_, kind, options)) = best else { return Ok(()) };
    let has = |wanted: &str| options.split(',').any(|option| option == wanted);
    let only_here =
        |option: &str| Err(format!("its locks hold on one machine only (it is {kind}, mounted with `{option}`)"));
    match kind {
        "nfs" | "nfs4" => match ["nolock", "local_lock=all", "local_lock=flock"].into_iter().find(|option| has(option))
        {
            Some(option) => only_here(option),
            None => Ok(()),
        },
        "lustre" if has("localflock") => only_here("localflock"),
        "lustre" if !has("flock") => Err("it is Lustre, mounted without `flock`".into()),
        "ramfs" | "proc" | "sysfs" => Err(format!("it is {kind}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_whose_locks_stay_on_one_machine_is_refused() {
        let mounts = "1 0 0:1 / / rw - ext4 /dev/sda rw\n\
                      2 1 0:2 / /old rw - nfs srv:/x rw,vers=3,nolock\n\
                      3 1 0:3 / /nfs rw - nfs4 srv:/x rw,vers=4.2,local_lock=none\n\
                      4 1 0:4 / /with\\040space rw - nfs srv:/x rw,vers=3,local_lock=flock\n\
                      5 1 0:5 / /lustre rw,flock - lustre mgs:/fs rw\n\
                      6 1 0:6 / /lustre/bare rw - lustre mgs:/fs rw,lazystatfs\n";
        let refused = |folder: &str| mounted(mounts, Path::new(folder)).err();
        for good in ["/home", "/nfs/cache", "/lustre/cache", "/oldest"] {
            assert_eq!(refused(good), None, "{good}");
        }
        let words = "its locks hold on one machine only (it is nfs, mounted with `nolock`)";
        assert_eq!(refused("/old/cache").as_deref(), Some(words));
        assert!(refused("/with space/cache").unwrap().contains("local_lock=flock"));
        assert_eq!(refused("/lustre/bare/x").as_deref(), Some("it is Lustre, mounted without `flock`"));
    }

    #[test]
    fn a_disk_is_tried_out_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        disk(&folder.path().join("not/yet/there")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
