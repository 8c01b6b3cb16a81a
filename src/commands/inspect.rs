//! `imp-flow why`, `show`, `log` and `status`: questions about the stages of a pipeline.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

use super::session::{Session, usage};
use crate::{
    cli::{Common, StageArgs, TargetArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report::{self, Standing},
    scheduler::{Selection, Verdict},
    store::{Digest, Receipt, RunRecord, Store},
};

/// Says why a stage ran, or would run.
pub(crate) fn why(args: &StageArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(args, common)?;
    report::why(&session.planner().why(index)?, common.json);
    Ok(ExitCode::SUCCESS)
}

/// Shows the receipt of a stage.
pub(crate) fn show(args: &StageArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(args, common)?;
    let stage = &session.pipeline.stages[index];
    let verdict = verdict(&session, index)?;
    let Some(receipt) = receipt(&session, index, &verdict)? else { return Err(never_ran(&stage.name)) };
    if !matches!(verdict, Verdict::Hit { .. }) {
        let text = format!("{} has not run as it is configured now: this is what it made the last time", stage.name);
        report::hint(&text, common.style());
    }
    let named = |from: &usize| session.pipeline.stages[*from].name.as_str();
    let inputs = stage.inputs.iter().map(|(input, from)| (input.as_str(), named(from))).collect();
    let files = session.store.tree(receipt.output.digest)?;
    report::receipt(&stage.name, &receipt, &inputs, &files, common.json);
    Ok(ExitCode::SUCCESS)
}

fn never_ran(stage: &str) -> Failure {
    usage(
        Diagnostic::new(format!("stage `{stage}` has not run yet"), None).help("`imp-flow why` says what it waits for"),
    )
}

/// What a stage made: as the pipeline is now, else the last time.
fn receipt(session: &Session, index: usize, verdict: &Verdict) -> Result<Option<Receipt>, Failure> {
    match verdict {
        Verdict::Hit { key } => Ok(session.store.receipt(*key)?),
        _ => Ok(session.planner().last_receipt(index)?),
    }
}

fn verdict(session: &Session, index: usize) -> Result<Verdict, Failure> {
    let verdicts = session.planner().plan(&Selection::everything(&session.pipeline))?;
    let found = verdicts.into_iter().find(|(at, _)| *at == index).map(|(_, verdict)| verdict);
    Ok(found.unwrap_or(Verdict::After { stages: Vec::new(), changes: Vec::new() }))
}

/// Shows the log of a stage: of the try that is under way or failed, else of the last time that it ran.
pub(crate) fn log(args: &StageArgs, follow: bool, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(args, common)?;
    let name = &session.pipeline.stages[index].name;
    let mut now = verdict(&session, index)?;
    if follow && !matches!(now, Verdict::Hit { .. }) {
        now = wait_for_start(&session, index, now, common)?;
    }
    if let Verdict::Run { key, .. } = now {
        let path = session.store.work(key).join("log");
        if path.is_file() {
            return follow_log(&path, key, follow, &session.store);
        }
    }
    let log = receipt(&session, index, &now)?.ok_or_else(|| never_ran(name))?.log;
    match log {
        Some(log) => print_from(&session.store.object(log), 0).map(drop)?,
        None => report::say("(its log is empty)"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for a stage of a run that goes on to start.
fn wait_for_start(session: &Session, index: usize, mut now: Verdict, common: &Common) -> Result<Verdict, Failure> {
    let mut told = false;
    while session.store.runs()?.first().is_some_and(RunRecord::is_running) {
        match &now {
            Verdict::Hit { .. } => break,
            Verdict::Run { key, .. }
                if session.store.is_being_made(*key) && session.store.work(*key).join("log").exists() =>
            {
                break;
            }
            _ => {}
        }
        if !told {
            report::hint("it has not started yet: waiting", common.style());
            told = true;
        }
        sleep(Duration::from_millis(300));
        now = verdict(session, index)?;
    }
    Ok(now)
}

fn follow_log(path: &Path, key: Digest, follow: bool, store: &Store) -> Result<ExitCode, Failure> {
    let mut at = 0;
    loop {
        let runs = store.is_being_made(key);
        // What was written before it ended is read after that was seen.
        match print_from(path, at) {
            Ok(end) => at = end,
            // The stage is done: its log has moved into the store.
            Err(Failure::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                if let Some(log) = store.receipt(key)?.and_then(|receipt| receipt.log) {
                    print_from(&store.object(log), at)?;
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Err(failure) => return Err(failure),
        }
        if !follow || !runs {
            return Ok(ExitCode::SUCCESS);
        }
        sleep(Duration::from_millis(200));
    }
}

/// Prints a file from a place on, and returns where it ends now.
fn print_from(path: &Path, at: u64) -> Result<u64, Failure> {
    let failure = |source| Failure::Io { what: format!("can't read {}", path.display()), source };
    let mut file = File::open(path).map_err(failure)?;
    file.seek(SeekFrom::Start(at)).map_err(failure)?;
    let mut bytes = Vec::new();
    let read = file.read_to_end(&mut bytes).map_err(failure)? as u64;
    if read > 0 {
        report::say_raw(&String::from_utf8_lossy(&bytes));
    }
    Ok(at + read)
}

/// Says where all stages stand.
pub(crate) fn status(args: &TargetArgs, common: &Common) -> Result<ExitCode, Failure> {
    let session = Session::of_target(args, common)?;
    let verdicts = session.planner().plan(&Selection::everything(&session.pipeline))?;
    let stages =
        verdicts.iter().map(|(index, verdict)| standing(&session, *index, verdict)).collect::<Result<Vec<_>, _>>();
    report::status(&session.pipeline.name, &stages?, common.json);
    Ok(ExitCode::SUCCESS)
}

fn standing(session: &Session, index: usize, verdict: &Verdict) -> Result<Standing, Failure> {
    let store = &session.store;
    let stage = session.pipeline.stages[index].name.clone();
    let (state, detail) = match verdict {
        // It may run again by force.
        Verdict::Hit { key } | Verdict::Run { key, .. } if store.is_being_made(*key) => {
            ("running", progress(store, *key))
        }
        Verdict::Hit { key } => {
            let made = store.receipt(*key)?;
            ("cached", made.map(|receipt| report::made(&receipt)).unwrap_or_default())
        }
        Verdict::Run { key, .. } if let Some(message) = store.failure(*key) => {
            ("failed", message.lines().next().unwrap_or_default().to_string())
        }
        Verdict::Run { key, .. } if store.has_checkpoint(*key) => {
            ("stopped", "goes on from its checkpoint".to_string())
        }
        Verdict::Run { reason, .. } => ("to run", reason.to_string()),
        Verdict::After { stages, .. } => {
            let names: Vec<&str> = stages.iter().map(|from| session.pipeline.stages[*from].name.as_str()).collect();
            ("waiting", format!("for {}", names.join(", ")))
        }
    };
    Ok(Standing { stage, state, detail })
}

/// How far a running stage is, and its figures.
fn progress(store: &Store, key: Digest) -> String {
    let progress = store.progress(key).map(|progress| report::progress(&progress)).unwrap_or_default();
    let text = std::fs::read_to_string(store.work(key).join("metrics.jsonl")).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let loss = last.and_then(|last| last.get("loss")?.as_f64());
    match loss {
        Some(loss) if !progress.contains("loss") => format!("{progress}, loss {loss:.4}"),
        _ => progress,
    }
}
