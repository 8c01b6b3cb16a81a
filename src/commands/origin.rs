//! Finds out what a run is started with. Nothing fails here: what can't be found is left out.

use std::{
    io::Read,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use imp_stages::place::Cpu;

use crate::store::{Origin, Repository};

/// How long `git` may take: on a slow disk it is not worth waiting for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of its answer: the head, and the first file that differs.
const ANSWER: u64 = 4096;

/// Finds out, on a thread of its own, what a run of a pipeline in `folder` is started with: a large repository takes a while.
pub(super) fn ask(folder: &Path) -> mpsc::Receiver<Origin> {
    let (found, answer) = mpsc::channel();
    let folder = folder.to_path_buf();
    thread::spawn(move || {
        // The run may be over.
        let _ = found.send(origin(&folder));
    });
    answer
}

fn origin(folder: &Path) -> Origin {
    let cpu = Cpu::detect();
    Origin {
        repository: repository(folder),
        build: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
        instructions: cpu.found().map(Into::into).collect(),
        threads: cpu.threads,
        cpu: cpu.model.unwrap_or_else(|| std::env::consts::ARCH.into()),
        system: system(),
    }
}

/// Operating system and processor architecture.
pub(super) fn system() -> String {
    let system = rustix::system::uname();
    let [name, release, machine] =
        [system.sysname(), system.release(), system.machine()].map(|part| part.to_string_lossy().into_owned());
    format!("{name} {release}, {machine}")
}

/// The repository that `folder` lies in, as `git` has it.
pub(super) fn repository(folder: &Path) -> Option<Repository> {
    // A relative name without folders.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut git = Command::new("git");
    // Only reads: it writes no index, and starts no program that the repository names.
    git.arg("-C").arg(folder).args(["--no-optional-locks", "-c", "core.fsmonitor=false", "status"]);
    git.args(["--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=dirty"]);
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        git.env_remove(variable);
    }
    git.env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = git.spawn().ok()?;
    let answer = answer(&mut child);
    // It may still be writing, or waiting for a disk.
    let _ = child.kill();
    let _ = child.wait();
    read(&answer?)
}

/// The beginning of what a program says, if it says it in time.
fn answer(child: &mut Child) -> Option<String> {
    let output = child.stdout.take()?;
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let read = output.take(ANSWER).read_to_end(&mut text);
        let _ = said.send(read.map(|_| String::from_utf8_lossy(&text).into_owned()));
    });
    let start = Instant::now();
    let text = heard.recv_timeout(PATIENCE).ok()?.ok()?;
    // Half an answer of a program that failed would look like a clean repository.
    if (text.len() as u64) < ANSWER {
        while child.try_wait().ok()?.is_none() {
            if start.elapsed() > PATIENCE {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        child.wait().ok().filter(std::process::ExitStatus::success)?;
    }
    Some(text)
}

/// Reads `git status --porcelain=v2 --branch`.
fn read(text: &str) -> Option<Repository> {
    let head = |name: &str| text.lines().find_map(|line| line.strip_prefix(&format!("# branch.{name} ")));
    let commit = head("oid").filter(|commit| commit.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    Some(Repository {
        commit: commit.into(),
        branch: head("head").filter(|branch| *branch != "(detached)").map(Into::into),
        changed: text.lines().any(|line| !line.starts_with('#')),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_git_says_is_read() {
        let head = "# branch.oid 7f7a373af09c\n# branch.head main\n";
        let found = read(head).unwrap();
        assert_eq!((found.changed, found.to_string().as_str()), (false, "7f7a373af09c of main"));
        let changed = read(&format!("{head}1 .M N... 100644 100644 100644 a b src/x.rs\n")).unwrap();
        assert_eq!(changed.to_string(), "7f7a373af09c of main, with changes");
        assert_eq!(read("# branch.oid 7f7a\n# branch.head (detached)\n").unwrap().branch, None);
        // Before the first commit.
        assert_eq!(read("# branch.oid (initial)\n# branch.head main\n"), None);
        assert_eq!(read(""), None);
    }

    #[test]
    fn a_folder_in_no_repository_has_none() {
        assert_eq!(repository(tempfile::tempdir().unwrap().path()), None);
        assert_eq!(repository(Path::new("/does/not/exist")), None);
    }
}
