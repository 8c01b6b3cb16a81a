//! Runs Slurm's own programs. Independent of what they are asked.

use std::{io, process::Stdio, time::Duration};

use tokio::process::Command;

/// How long Slurm may take to answer.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long `sbatch` may: while the controller's table of jobs is full, it tries again for two minutes by itself.
const PATIENCE_OF_SBATCH: Duration = Duration::from_secs(150);

/// What a program answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) ok: bool,
    pub(super) out: String,
    /// Without the program's name before each line.
    pub(super) errors: String,
}

/// Runs `program`, and waits for its answer.
///
/// # Errors
/// If it is not there, or takes too long, in words.
pub(super) async fn call(
    program: &str,
    arguments: &[String],
    environment: &[(&'static str, String)],
) -> Result<Answer, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Ctrl-C on the terminal must not reach it.
    command.process_group(0).envs(environment.iter().map(|(name, value)| (name, value)));
    // A runner may itself be a job. What that one was given is not for others.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SLURM_") && !["SLURM_CONF", "SLURM_CLUSTERS"].contains(&&*text) {
            command.env_remove(&name);
        }
    }
    let patience = if program == "sbatch" { PATIENCE_OF_SBATCH } else { PATIENCE };
    let output = match tokio::time::timeout(patience, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Err(format!("`{program}` was not found")),
        Ok(Err(error)) => return Err(format!("can't run `{program}`: {error}")),
        Err(_) => return Err(format!("`{program}` did not answer within {} seconds", patience.as_secs())),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let prefix = format!("{program}: ");
    let strip = |line: &str| line.trim_start_matches(&prefix).trim_start_matches("error: ").to_string();
    let errors: Vec<String> = text(&output.stderr).lines().map(strip).collect();
    Ok(Answer { ok: output.status.success(), out: text(&output.stdout), errors: errors.join("\n") })
}
