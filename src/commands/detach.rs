//! `run --detach` and `sweep --detach`: the run goes on without this terminal, as a process of this machine, or as a job where its stages
//! are jobs.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use super::session::{Session, usage};
use crate::{
    cli::Common,
    executor,
    failure::Failure,
    pipeline::Diagnostic,
    report::{self, Detached, Runner},
};

/// How long the process is watched: what goes wrong at once is told here.
const WATCHED: Duration = Duration::from_millis(500);

/// Starts the run that this one is the beginning of.
pub(super) fn start(session: &Session, common: &Common) -> Result<ExitCode, Failure> {
    let log = session.artifacts.run_log();
    let log = std::path::absolute(&log).unwrap_or(log);
    let failed = |source| Failure::Io { what: format!("can't start a run that writes to {}", log.display()), source };
    fs::create_dir_all(log.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).filter(|argument| argument != "--detach").collect();
    // Before it starts, so that this is not the run itself.
    let name = &session.pipeline.name;
    let other = session.store.runs()?.into_iter().find(|run| run.is_running() && run.pipeline == *name);
    let here = |stage| session.machine().runs_here(stage);
    let runner = if session.pipeline.stages.iter().all(here) {
        background(&program, arguments, &log).map_err(failed)?
    } else {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let cluster = &session.machine().elsewhere.cluster;
        let job = runtime.block_on(executor::detach(cluster, &session.pipeline.name, &program, &arguments, &log));
        Runner::Job(job.map_err(|(message, help)| usage(Diagnostic::new(message, None).help(help)))?.to_string())
    };
    if let Some(other) = other {
        let other = other.name.unwrap_or(other.id);
        let waits =
            format!("note: run {other} of {name} is running already: this one waits for the results that it is making");
        report::remark(&waits, common.style());
    }
    report::detached(&Detached { pipeline: name, runner, log: &log }, common.style());
    Ok(ExitCode::SUCCESS)
}

/// Starts the process, and sees that it does not end at once.
fn background(program: &Path, mut arguments: Vec<OsString>, log: &Path) -> io::Result<Runner> {
    arguments.push("--detached".into());
    // Opening a pipe would wait for whoever reads it.
    if fs::metadata(log).is_ok_and(|about| !about.is_file()) {
        return Err(io::Error::other("it is there already, and is no file: remove it"));
    }
    let output = OpenOptions::new().create(true).append(true).mode(0o600).open(log)?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.spawn()?;
    let start = Instant::now();
    while start.elapsed() < WATCHED {
        match child.try_wait()? {
            Some(status) if !status.success() => return Err(io::Error::other(format!("it has ended ({status})"))),
            Some(_) => return Ok(Runner::Ended),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    Ok(Runner::Process(child.id()))
}

/// Leaves the terminal that this process was started from: what is typed or closed there is not meant for it.
pub(super) fn leave_terminal() {
    // Only a leader of a group can't, which this process is not.
    let _ = rustix::process::setsid();
}
