//! Runs a job as a child process on this machine.

use std::{fs::OpenOptions, io, os::unix::process::ExitStatusExt, path::Path, process::Stdio};

use imp_stages::{event::Event, job};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::watch,
};

use super::{Outcome, StopSignal};
use crate::machine::Grant;

/// Runs the job in `work/job.json` to its end, passing on what it says.
///
/// The child's standard input is a line to the runner: `stop` asks it to save a checkpoint and end, and its
/// closing means that the runner is gone. Its standard error is the stage's log.
pub(crate) async fn run(
    work: &Path,
    grant: &Grant,
    environment: &[(&'static str, String)],
    mut stop: watch::Receiver<StopSignal>,
    mut on_event: impl FnMut(Event),
) -> io::Result<Outcome> {
    let mut child = spawn(work, grant, environment)?;
    let mut stdin = child.stdin.take();
    let Some(stdout) = child.stdout.take() else { return Err(io::Error::other("the child has no standard output")) };
    let mut lines = BufReader::new(stdout).lines();
    let mut outcome = None;
    let mut asked = StopSignal::None;
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                Some(line) => match serde_json::from_str(&line) {
                    Ok(Event::Done) => outcome = Some(Outcome::Done),
                    Ok(Event::Cancelled) => outcome = Some(Outcome::Cancelled),
                    Ok(Event::Failed { message, help, transient }) => outcome = Some(Outcome::Failed { message, help, transient }),
                    Ok(event) => on_event(event),
                    Err(_) => tracing::debug!(%line, "a stage wrote this to its standard output"),
                },
                None => break,
            },
            () = changed(&mut stop, asked) => {
                asked = *stop.borrow();
                match asked {
                    StopSignal::Stop => if let Some(stdin) = &mut stdin {
                        // A child that is gone already needs no word.
                        let _ = stdin.write_all(b"stop\n").await;
                    },
                    StopSignal::Kill => child.start_kill()?,
                    StopSignal::None => {}
                }
            }
        }
    }
    let status = child.wait().await?;
    if asked == StopSignal::Kill && outcome != Some(Outcome::Done) {
        return Ok(Outcome::Cancelled);
    }
    Ok(outcome.unwrap_or_else(|| died(status)))
}

async fn changed(stop: &mut watch::Receiver<StopSignal>, asked: StopSignal) {
    // An error means that nobody can stop any more.
    if stop.wait_for(|now| *now != asked).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Settings of glibc's allocator that make it keep freed memory and join what lies side by side. The next layer needs the
/// memory that this one has just given back: pages that went to the system in between would have to be cleared again, which
/// was half of a training step.
const KEEP_MEMORY: [(&str, &str); 3] =
    [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000"), ("MALLOC_TOP_PAD_", "67108864")];

fn spawn(work: &Path, grant: &Grant, environment: &[(&'static str, String)]) -> io::Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(work.join(job::LOG))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("__stage")
        .arg(work.join(job::JOB))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .env("RAYON_NUM_THREADS", grant.cpus.to_string())
        .env("CUDA_VISIBLE_DEVICES", grant.gpus.join(","))
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .kill_on_drop(true);
    // A person's own settings stand.
    command.envs(KEEP_MEMORY.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()));
    // Its own process group, so that Ctrl-C on the terminal reaches the runner only, which then asks politely.
    command.process_group(0);
    command.spawn()
}

/// The child ended without a word.
fn died(status: std::process::ExitStatus) -> Outcome {
    let (message, help) = match status.signal() {
        Some(9) => (
            "its process was killed (signal 9)".to_string(),
            "if nobody did so, the machine ran out of memory: try a smaller `micro_batch_size` under [stages.NAME.runtime]; \
             the same command goes on from the last checkpoint",
        ),
        Some(signal) => {
            (format!("its process was ended by signal {signal}"), "the same command goes on from the last checkpoint")
        }
        None => (format!("its process ended without a result ({status})"), "its log says more"),
    };
    Outcome::Failed { message, help: Some(help.into()), transient: false }
}
