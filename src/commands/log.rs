//! `imp-flow log`.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

use super::session::{Session, never_ran, usage};
use crate::{
    cli::{Common, StageArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
    scheduler::Verdict,
    store::{Digest, RunRecord, Store, look_up},
};

/// Shows the log of a stage: that of the running or last unfinished attempt, else that of the last result.
pub(crate) fn log(args: &StageArgs, follow: bool, common: &Common) -> Result<ExitCode, Failure> {
    if common.json {
        let problem = Diagnostic::new("`log` prints a log as it is, and has no JSON", None);
        return Err(usage(
            problem.help("leave out --json; `imp-flow show STAGE --json` and `status --json` have fields"),
        ));
    }
    let (session, index) = Session::of_stage(args, common)?;
    let name = &session.pipeline.stages[index].name;
    let mut now = session.verdict(index)?;
    if follow && !matches!(now, Verdict::Hit { .. }) {
        now = wait_for_start(&session, index, now, common)?;
    }
    if let Verdict::Run { key, .. } = now {
        let path = session.store.work(key).log();
        if look_up(&path).is_ok_and(|found| found.is_file()) {
            return follow_log(&path, key, follow, &session.store);
        }
    }
    let receipt = session.receipt(index, &now)?.ok_or_else(|| never_ran(name))?;
    match receipt.log {
        Some(log) => print_from(&session.store.object(log), 0).map(drop)?,
        None => report::print("(the log is empty)"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until the stage starts, as long as a run is in progress. Returns the new verdict.
fn wait_for_start(session: &Session, index: usize, mut now: Verdict, common: &Common) -> Result<Verdict, Failure> {
    let mut reported = false;
    while session.store.runs()?.first().is_some_and(RunRecord::is_running) {
        match &now {
            Verdict::Hit { .. } => break,
            Verdict::Run { key, .. }
                if session.store.is_being_made(*key) && look_up(&session.store.work(*key).log()).is_ok() =>
            {
                break;
            }
            _ => {}
        }
        if !reported {
            report::note("note: the stage has not started yet, waiting for it", common.style());
            reported = true;
        }
        sleep(Duration::from_millis(300));
        now = session.verdict(index)?;
    }
    Ok(now)
}

/// Prints the log at `path`; with `follow`, until the stage ends.
fn follow_log(path: &Path, key: Digest, follow: bool, store: &Store) -> Result<ExitCode, Failure> {
    let mut at = 0;
    loop {
        // Checked before reading, so that the last lines are not missed.
        let is_running = store.is_being_made(key);
        match print_from(path, at) {
            Ok(end) => at = end,
            // The stage is done, so its log has moved into the store.
            Err(Failure::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                if let Some(log) = store.receipt(key)?.and_then(|receipt| receipt.log) {
                    print_from(&store.object(log), at)?;
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(failure) => return Err(failure),
        }
        if !follow || !is_running {
            return Ok(ExitCode::SUCCESS);
        }
        sleep(Duration::from_millis(200));
    }
}

/// Prints a file from offset `at`, and returns its length.
fn print_from(path: &Path, at: u64) -> Result<u64, Failure> {
    let failure = |source| Failure::Io { what: format!("can't read {}", path.display()), source };
    let mut file = File::open(path).map_err(failure)?;
    file.seek(SeekFrom::Start(at)).map_err(failure)?;
    let mut bytes = Vec::new();
    let read = file.read_to_end(&mut bytes).map_err(failure)? as u64;
    if read > 0 {
        report::print_log(&String::from_utf8_lossy(&bytes));
    }
    Ok(at + read)
}
