//! Runs a job as a child process on this machine. Independent of what the job does.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use imp_stages::contract::{event::Event, job};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Outcome, STOP, StopSignal};
use crate::machine::Allocation;

#[cfg(test)]
mod tests;

/// Runs the job in `work/job.json` to its end, passing on its events.
pub(crate) async fn run(
    work: &Path,
    allocation: &Allocation,
    environment: &[(&'static str, String)],
    stop: watch::Receiver<StopSignal>,
    on_event: impl FnMut(Event),
) -> io::Result<Outcome> {
    follow(command(work, allocation, environment)?.spawn()?, stop, on_event).await
}

/// Follows a child to its end.
///
/// The child writes one event per line to its standard output. The runner writes [`STOP`] to the child's standard input to request
/// a checkpoint and a clean end. If that input closes, the runner is gone.
async fn follow(
    mut child: Child,
    mut stop: watch::Receiver<StopSignal>,
    mut on_event: impl FnMut(Event),
) -> io::Result<Outcome> {
    let mut stdin = child.stdin.take();
    let Some(stdout) = child.stdout.take() else { return Err(io::Error::other("the child has no standard output")) };
    // Bytes, not text: libraries and other programs may write anything.
    let mut lines = BufReader::new(stdout).split(b'\n');
    let mut outcome = None;
    let (mut sent, mut killed) = (StopSignal::None, None);
    loop {
        tokio::select! {
            line = lines.next_segment() => match line? {
                Some(line) => match serde_json::from_slice(&line) {
                    Ok(Event::Done) => outcome = Some(Outcome::Done),
                    Ok(Event::Cancelled) => outcome = Some(Outcome::Cancelled),
                    Ok(Event::Failed { message, help, transient }) => {
                        outcome = Some(Outcome::Failed { message, help, transient });
                    }
                    Ok(event) => on_event(event),
                    Err(_) => {
                        let line = String::from_utf8_lossy(&line);
                        tracing::debug!(%line, "a stage wrote this to its standard output");
                    }
                },
                None => break,
            },
            () = changed(&mut stop, sent) => {
                sent = *stop.borrow();
                match sent {
                    StopSignal::Stop | StopSignal::Leave => if let Some(stdin) = &mut stdin {
                        // Writing fails if the child has ended. Then it needs no request.
                        let _ = stdin.write_all(format!("{STOP}\n").as_bytes()).await;
                    },
                    StopSignal::Kill => {
                        child.start_kill()?;
                        killed = Some(Instant::now());
                    }
                    StopSignal::None => {}
                }
            }
            // The kernel can't end a process that waits for a broken disk. The run must not wait for it, too.
            () = after(killed) => return Ok(Outcome::Cancelled),
        }
    }
    let status = child.wait().await?;
    if sent == StopSignal::Kill && outcome != Some(Outcome::Done) {
        return Ok(Outcome::Cancelled);
    }
    Ok(outcome.unwrap_or_else(|| died(status)))
}

/// How long a killed process may take to end.
const AFTER_KILL: Duration = Duration::from_secs(10);

/// Waits until a process that was killed should have ended.
async fn after(killed: Option<Instant>) {
    match killed {
        Some(at) => sleep_until(at + AFTER_KILL).await,
        None => std::future::pending().await,
    }
}

/// Waits until the signal differs from the one that was sent last.
async fn changed(stop: &mut watch::Receiver<StopSignal>, sent: StopSignal) {
    // An error means that no more signals can come.
    if stop.wait_for(|now| *now != sent).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Settings of glibc's allocator that make it keep freed memory and join neighbouring blocks. Each layer needs the memory that the
/// one before has just freed. If pages went back to the system in between, the system would have to clear them again, which took
/// half of the time of a training step.
pub(super) const KEEP_MEMORY: [(&str, &str); 3] =
    [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000"), ("MALLOC_TOP_PAD_", "67108864")];

/// The command that runs the job with this program. Its standard error goes to the stage's log.
fn command(work: &Path, allocation: &Allocation, environment: &[(&'static str, String)]) -> io::Result<Command> {
    let log = OpenOptions::new().create(true).append(true).open(work.join(job::LOG))?;
    let mut command = Command::new(this_program()?);
    command.arg("__stage").arg(work.join(job::JOB)).stderr(log);
    command
        .env("RAYON_NUM_THREADS", allocation.cpus.to_string())
        .env("CUDA_VISIBLE_DEVICES", allocation.gpus.join(","))
        .envs(environment.iter().map(|(name, value)| (name, value)));
    // The user's environment takes precedence.
    command.envs(KEEP_MEMORY.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()));
    connect(&mut command);
    Ok(command)
}

/// This very program, also if another one has been installed in its place since it was started.
fn this_program() -> io::Result<PathBuf> {
    const RUNNING: &str = "/proc/self/exe";
    let installed = std::env::current_exe()?;
    let file = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    let running = file(Path::new(RUNNING));
    Ok(if running.is_some() && file(&installed) != running { RUNNING.into() } else { installed })
}

/// Connects the input and output of a command to the runner, and separates it from the terminal.
fn connect(command: &mut Command) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    // Its own process group, so that Ctrl-C on the terminal reaches the runner only, which then requests a stop.
    command.process_group(0);
}

/// The outcome of a child that ended without reporting one.
fn died(status: ExitStatus) -> Outcome {
    let (message, help) = match status.signal() {
        Some(9) => (
            "its process was killed (signal 9)".to_string(),
            "if you did not kill it, the machine ran out of memory: try a smaller `micro_batch_size` under \
             [stages.NAME.runtime]; the same command resumes from the last checkpoint",
        ),
        Some(signal) => {
            (format!("its process was ended by signal {signal}"), "the same command resumes from the last checkpoint")
        }
        None => (format!("its process ended without a result ({status})"), "see its log"),
    };
    Outcome::Failed { message, help: Some(help.into()), transient: false }
}
