//! The kind `command`: a program of the user's own as a stage. Independent of how its process is watched.

mod process;
#[cfg(test)]
mod tests;
mod words;

use std::{
    collections::BTreeMap,
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use self::{process::Running, words::Words};
use crate::{
    Job, Stage, StageError,
    contract::{
        figure::{Better, Figure},
        input::Input,
        keys::{Key, Keys, keys},
        stage::ConfigIssue,
    },
};

/// The kind `command`.
pub struct Command;

keys! {
    /// The keys of `command`.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Required. The program and its arguments, as in `["python3", "filter.py", "{input}", "{out}"]`. No shell reads them. These words are
        /// replaced: `{out}` (the output folder, in which it runs), `{input}` or `{inputs[0]}`, `{seed}`, `{threads}`, `{checkpoint}`,
        /// and each name in `files`.
        pub command: Vec<String>,
        /// Files and folders of yours that it reads, such as its script. Their content is part of the key.
        pub files: Vec<String>,
        /// Variables of its environment. They are part of the key. Of yours it gets `PATH`, `HOME`, `TMPDIR` and `CUDA_VISIBLE_DEVICES`.
        pub environment: BTreeMap<String, String>,
        /// Names of further variables that it gets from your environment. Their values are not part of the key.
        pub pass_environment: Vec<String>,
    }
}

/// The file beside the output folder whose lock lasts as long as the command.
const LOCK: &str = "process";
/// The input's name.
const INPUTS: &str = "inputs";
/// The largest file of figures.
const LARGEST_FIGURES: u64 = 1_000_000;

impl Stage for Command {
    const KIND: &'static str = "command";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "runs a program of your own, which reads folders and writes one";
    const INPUTS: &'static [Input] = &[Input::list(INPUTS, "folders that it reads")];
    const FIGURES: &'static [Figure] = &[Figure::headline("*", Better::Neither, "")];
    type Config = Config;

    fn keys() -> Vec<Key> {
        Config::keys(&serde_json::json!({}))
    }

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        let Some(program) = config.command.first().filter(|program| !program.is_empty()) else {
            return Err(ConfigIssue::new(
                "command",
                "must name a program, as in [\"python3\", \"filter.py\", \"{out}\"]",
            ));
        };
        if program.contains(char::is_whitespace) && config.command.len() == 1 {
            let message =
                "is a list of a program and its arguments, which no shell reads: [\"sh\", \"-c\", \"...\"] would";
            return Err(ConfigIssue::new("command", message));
        }
        if config.command.iter().any(|word| word.contains('\0')) {
            return Err(ConfigIssue::new("command", "must not contain NUL"));
        }
        if !program.contains('/') && !config.files.contains(program) && on_path(program).is_none() {
            return Err(ConfigIssue::new(
                "command",
                format!("names the program `{program}`, which is not in any folder of PATH"),
            ));
        }
        let names = config.environment.keys().chain(&config.pass_environment);
        if let Some(name) = names.into_iter().find(|name| !is_variable(name)) {
            return Err(ConfigIssue::new("environment", format!("`{}` is no name of a variable", name.escape_debug())));
        }
        Ok(())
    }

    fn check_inputs(config: &Config, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        words::check(&config.command, count(INPUTS)).map_err(|message| ConfigIssue::new("command", message))
    }

    fn sources(config: &Config) -> Vec<String> {
        let program = config.command.first().and_then(|program| source_of(program, &config.files));
        config.files.iter().cloned().chain(program).collect()
    }

    /// What it computes on is its own matter: it sees the GPUs that `runtime.gpus` reserves.
    fn uses_gpu(_config: &Config, _count: &dyn Fn(&str) -> usize) -> bool {
        true
    }

    fn uses_all_gpus() -> bool {
        true
    }

    fn prepare(work: &Path) -> Result<(), StageError> {
        process::end_all(work);
        Ok(())
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let words = words(config, job)?;
        let program = match config.command.first().and_then(|program| source_of(program, &config.files)) {
            Some(source) => job.source(&source)?.to_path_buf(),
            None => PathBuf::from(words.replace(config.command.first().map(String::as_str).unwrap_or_default())),
        };
        let mut command = std::process::Command::new(&program);
        command.args(config.command.iter().skip(1).map(|word| words.replace(word)));
        command.current_dir(job.output()).env_clear().envs(variables(config, &words));
        // Beside the checkpoint, in which nothing but a checkpoint may be.
        let checkpoint = job.checkpoint();
        let work = checkpoint.parent().unwrap_or(&checkpoint);
        let figures = work.join("figures.json");
        match fs::remove_file(&figures) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StageError::io(&figures)(error)),
            _ => {}
        }
        command.env("IMP_FLOW_FIGURES", &figures);
        let ended = Running::start(command, work)?.wait(job);
        ended.map_err(|error| with_hint(error, config))?;
        check_output(&job.output())?;
        report_figures(job, &figures)
    }
}

/// What a word of a command stands for.
fn words(config: &Config, job: &Job) -> Result<Words, StageError> {
    let inputs = job.inputs(INPUTS).map(Path::to_path_buf).collect();
    let files = config.files.iter().map(|name| Ok((name.clone(), job.source(name)?.to_path_buf())));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Words {
        out: job.output(),
        checkpoint: job.checkpoint(),
        inputs,
        files: files.collect::<Result<_, StageError>>()?,
        seed: job.seed(),
        threads: if job.runtime().cpus == 0 { threads } else { job.runtime().cpus },
    })
}

/// Points to what beginners forget: the command runs in its output folder.
fn with_hint(error: StageError, config: &Config) -> StageError {
    let StageError::Failed { message, help } = error else { return error };
    let is_script = |word: &&String| {
        let ending = Path::new(word).extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        ["py", "sh", "pl", "rb", "js", "r", "R", "jl", "toml", "json", "txt"].contains(&ending)
    };
    let forgotten = config.command.iter().skip(1).find(|word| {
        is_script(word) && !config.files.contains(word) && !Path::new(word).is_absolute() && !word.contains('{')
    });
    let help = match forgotten {
        Some(file) => {
            format!("{help}; if `{file}` is a file of yours, name it in `files`: the command runs in its output folder")
        }
        None => help,
    };
    StageError::Failed { message, help }
}

/// The file of a program, whose content is part of the key: a path, or where it lies on PATH. `None` if `files` has it.
fn source_of(program: &str, files: &[String]) -> Option<String> {
    if files.iter().any(|file| file == program) {
        return Some(program.into());
    }
    if program.contains('/') { Some(program.into()) } else { on_path(program) }
}

/// Where a program lies on PATH.
fn on_path(program: &str) -> Option<String> {
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0);
    let found = env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(runs)?;
    found.is_absolute().then(|| found.to_str().map(String::from)).flatten()
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// The environment of the program.
fn variables(config: &Config, words: &Words) -> BTreeMap<String, std::ffi::OsString> {
    let passed = ["PATH", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES"].into_iter().map(String::from);
    let passed = passed.chain(config.pass_environment.iter().cloned());
    let mut variables: BTreeMap<_, _> =
        passed.filter_map(|name| env::var_os(&name).map(|value| (name, value))).collect();
    variables.extend(config.environment.iter().map(|(name, value)| (name.clone(), words.replace(value))));
    for (name, word) in [("OUT", "{out}"), ("CHECKPOINT", "{checkpoint}"), ("SEED", "{seed}"), ("THREADS", "{threads}")]
    {
        variables.insert(format!("IMP_FLOW_{name}"), words.replace(word));
    }
    for (number, input) in words.inputs.iter().enumerate() {
        variables.insert(format!("IMP_FLOW_INPUT_{number}"), input.into());
    }
    variables
}

/// The output must be files that stay what they are.
fn check_output(out: &Path) -> Result<(), StageError> {
    let mut files = 0;
    let mut folders = vec![out.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(StageError::io(&folder))? {
            let entry = entry.map_err(StageError::io(&folder))?;
            let kind = entry.file_type().map_err(StageError::io(&entry.path()))?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files += 1;
            } else {
                let name = entry.path().strip_prefix(out).map(Path::to_path_buf).unwrap_or_default();
                let message =
                    format!("the command left {}, which is a link or another thing that is no file", name.display());
                return Err(StageError::failed(message, "copy the file instead of linking to it"));
            }
        }
    }
    if files == 0 {
        let help = "write into the folder that it runs in, which is also `{out}` and $IMP_FLOW_OUT";
        return Err(StageError::failed("the command has written no file", help));
    }
    Ok(())
}

/// Takes over the figures that the command has left, if any.
fn report_figures(job: &Job, file: &Path) -> Result<(), StageError> {
    let Ok(data) = file.metadata() else { return Ok(()) };
    let help = "write one JSON object of numbers, as in {\"kept\": 120}";
    let wrong =
        |message: String| StageError::failed(format!("the figures of the command (figures.json) {message}"), help);
    if !data.is_file() || data.len() > LARGEST_FIGURES {
        return Err(wrong(format!("are not a file of at most {LARGEST_FIGURES} bytes")));
    }
    let text = fs::read(file).map_err(StageError::io(file))?;
    let figures: BTreeMap<String, f64> =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("are not such: {error}")))?;
    for (name, value) in figures {
        if name.is_empty() || name.contains(char::is_control) {
            return Err(wrong(format!("have the name {name:?}")));
        }
        job.result(&name, value);
    }
    Ok(())
}
