//! `--on-end`: a command of the user's own at the end of a run, as one that sends a message. Its result changes nothing.

use std::{
    io,
    process::{Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::signal::unix::{SignalKind, signal};

use super::session::Session;
use crate::{scheduler::Ending, store::StageState};

/// How a run ended, for that command.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// `None` if the run could not go on.
    pub(super) ending: Option<Ending>,
    /// Its id.
    pub(super) run: String,
    pub(super) seconds: f64,
    /// Names of stages, and how each ended.
    pub(super) stages: Vec<(String, StageState)>,
}

/// Runs `command` in a shell, and waits for it. What it prints goes to standard error, so that it does not mix with results.
pub(super) fn on_end(command: &str, ended: &Ended, session: &Session) {
    let absolute = |path: &std::path::Path| std::path::absolute(path).unwrap_or_else(|_| path.into());
    let status = match ended.ending {
        Some(Ending::Done) => "done",
        Some(Ending::Interrupted) => "interrupted",
        Some(Ending::Failed) | None => "failed",
    };
    let failed = ended.stages.iter().filter(|(_, state)| *state == StageState::Failed).map(|(name, _)| name.as_str());
    let page = absolute(&session.artifacts.page());
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .env("IMP_FLOW_STATUS", status)
        .env("IMP_FLOW_RUN", &ended.run)
        .env("IMP_FLOW_PIPELINE", &session.pipeline.name)
        .env("IMP_FLOW_FILE", absolute(&session.request.file))
        .env("IMP_FLOW_SECONDS", format!("{:.1}", ended.seconds))
        .env("IMP_FLOW_FAILED", failed.collect::<Vec<_>>().join(" "))
        .env("IMP_FLOW_REPORT", if page.is_file() { page } else { std::path::PathBuf::new() })
        // An imp-flow that the command calls finds the same runs.
        .env("IMP_FLOW_CACHE", absolute(&session.settings.cache))
        .env("IMP_FLOW_ARTIFACTS", absolute(&session.settings.artifacts));
    shell.stdin(Stdio::null()).stdout(std::io::stderr());
    let problem = match wait(shell) {
        Ok(Some(status)) if status.success() => return,
        Ok(Some(status)) => format!("the command of --on-end failed: {status}"),
        Ok(None) => "the command of --on-end was ended before it was done".into(),
        Err(error) => format!("the command of --on-end can't be started: {error}"),
    };
    tracing::warn!("{problem}");
}

/// Waits for the command. Ctrl-C, SIGTERM and the end of the terminal end it, with all that it has started; then there is no status.
fn wait(mut shell: Command) -> io::Result<Option<ExitStatus>> {
    use std::os::unix::process::CommandExt;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut child = tokio::process::Command::from({
            shell.process_group(0);
            shell
        })
        .spawn()?;
        let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        tokio::select! {
            status = child.wait() => return status.map(Some),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        child.wait().await.map(|_| None)
    })
}
