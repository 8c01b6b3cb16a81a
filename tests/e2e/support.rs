//! A folder for each test, with short ways to write files and to run the program in it. Independent of the tests.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A folder in which the program runs. It is deleted after the test.
pub(crate) struct Space {
    folder: tempfile::TempDir,
}

/// The result of running the program.
pub(crate) struct Output {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Space {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A folder that several tests share. It is below `target/`, since nothing deletes it before the next time.
    pub(crate) fn shared(name: &str) -> Self {
        let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let _ = fs::remove_dir_all(root.join(name));
        Self { folder: tempfile::Builder::new().prefix(name).rand_bytes(0).tempdir_in(root).unwrap() }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub(crate) fn write(&self, relative: &str, text: impl AsRef<[u8]>) -> &Self {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    pub(crate) fn read(&self, relative: &str) -> String {
        fs::read_to_string(self.path(relative)).unwrap()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imp-flow"));
        command.args(args).current_dir(self.folder.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        for name in ["IMP_FLOW_CACHE", "IMP_FLOW_ARTIFACTS", "IMP_FLOW_DEVICE", "IMP_FLOW_REMOTE", "RUST_LOG"] {
            command.env_remove(name);
        }
        // The servers of the tests are on this machine, where no proxy leads to.
        command.env("no_proxy", "127.0.0.1");
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.output(&mut self.command(args))
    }

    pub(crate) fn output(&self, command: &mut Command) -> Output {
        let output = command.output().unwrap();
        // The folder's path differs each time.
        let here = self.folder.path().canonicalize().unwrap();
        let clean = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes)
                .replace(&*here.to_string_lossy(), "HERE")
                .replace(&*self.folder.path().to_string_lossy(), "HERE")
        };
        Output { code: output.status.code(), stdout: clean(&output.stdout), stderr: clean(&output.stderr) }
    }

    /// Runs the program, which must succeed.
    pub(crate) fn succeed(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert_eq!(output.code, Some(0), "{args:?}\n{}\n{}", output.stdout, output.stderr);
        output
    }

    pub(crate) fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The name, state and output digest of each stage in the last run of `pipeline`.
    pub(crate) fn record(&self, pipeline: &str) -> Vec<(String, String, String)> {
        let record: serde_json::Value =
            serde_json::from_str(&self.read(&format!("artifacts/{pipeline}/run.json"))).unwrap();
        record["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|stage| {
                let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
                (text(&stage["name"]), text(&stage["state"]), text(&stage["output"]["digest"]))
            })
            .collect()
    }

    /// The names of the stages whose last run ended in `state`.
    pub(crate) fn stages_in(&self, pipeline: &str, state: &str) -> Vec<String> {
        self.record(pipeline).into_iter().filter(|stage| stage.1 == state).map(|stage| stage.0).collect()
    }

    /// The digest of each stage's output in the last run.
    pub(crate) fn digests(&self, pipeline: &str) -> Vec<(String, String)> {
        self.record(pipeline).into_iter().map(|(name, _, digest)| (name, digest)).collect()
    }
}

/// A pipeline with all seven kinds of stage that takes seconds in a debug build.
pub(crate) const SMALL: &str = include_str!("small.toml");

/// The files below a folder, without links, sorted.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort_unstable();
    found
}

/// Copies a folder recursively.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::write(target, fs::read(entry.path()).unwrap()).unwrap();
        }
    }
}

/// The pipeline `a -> b -> d` and `a -> c -> d`.
pub(crate) const DIAMOND: &str = r#"
name = "diamond"
[stages.a]
kind = "synthetic"
text = "a"
[stages.b]
kind = "synthetic"
after = "a"
text = "b"
[stages.c]
kind = "synthetic"
after = "a"
text = "c"
[stages.d]
kind = "synthetic"
after = ["b", "c"]
text = "d"
score = 3.5
"#;

pub(crate) fn diamond() -> Space {
    let space = Space::new();
    space.write("p.toml", DIAMOND);
    space
}

/// Runs the program. Returns the sorted names of the stages that ran.
pub(crate) fn ran(space: &Space, args: &[&str]) -> Vec<String> {
    let output = space.succeed(&[&["--json"], args].concat());
    finished(&output)
}

fn finished(output: &Output) -> Vec<String> {
    let events = output.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let finished = events.filter(|event| event["event"] == "finished");
    let mut names: Vec<String> = finished.map(|event| event["stage"].as_str().unwrap().to_string()).collect();
    names.sort_unstable();
    names
}
