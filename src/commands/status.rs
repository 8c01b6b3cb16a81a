//! `imp-flow status`.

use std::process::ExitCode;

use super::session::Session;
use crate::{
    cli::{Common, TargetArgs},
    failure::Failure,
    report::{self, StageStatus, Status},
    scheduler::{Selection, Verdict},
    store::{Digest, Store},
};

/// Shows the state of each stage.
pub(crate) fn status(args: &TargetArgs, common: &Common) -> Result<ExitCode, Failure> {
    let session = Session::of_target(args, common)?;
    let verdicts = session.planner().plan(&Selection::everything(&session.pipeline))?;
    let stages =
        verdicts.iter().map(|(index, verdict)| status_of(&session, *index, verdict)).collect::<Result<Vec<_>, _>>();
    report::status(&session.pipeline.name, &stages?, common.json);
    Ok(ExitCode::SUCCESS)
}

/// The state of a stage, with details.
fn status_of(session: &Session, index: usize, verdict: &Verdict) -> Result<StageStatus, Failure> {
    let store = &session.store;
    let stage = session.pipeline.stages[index].name.clone();
    let (state, detail) = match verdict {
        // A cached stage may be running because of --force.
        Verdict::Hit { key } | Verdict::Run { key, .. } if store.is_being_made(*key) => {
            (Status::Running, progress(store, *key))
        }
        Verdict::Run { key, .. } if store.work(*key).is_submitted() => (
            Status::Running,
            format!("{}, when a run last followed it; `imp-flow run` follows it again", progress(store, *key)),
        ),
        Verdict::Hit { key } => {
            let receipt = store.receipt(*key)?;
            (Status::Cached, receipt.map(|receipt| report::finished(&receipt)).unwrap_or_default())
        }
        Verdict::Run { key, .. } if let Some(message) = store.work(*key).failure() => {
            (Status::Failed, message.lines().next().unwrap_or_default().to_string())
        }
        Verdict::Run { key, .. } if store.work(*key).has_checkpoint() => {
            (Status::Stopped, "resumes from its checkpoint".to_string())
        }
        Verdict::Run { reason, .. } => (Status::ToRun, reason.to_string()),
        Verdict::After { stages, .. } => {
            let names: Vec<&str> = stages.iter().map(|from| session.pipeline.stages[*from].name.as_str()).collect();
            (Status::Waiting, format!("for {}", names.join(", ")))
        }
    };
    Ok(StageStatus { stage, state, detail })
}

/// Where a running stage is, its progress and loss.
fn progress(store: &Store, key: Digest) -> String {
    let work = store.work(key);
    let progress = work.progress().map(|progress| report::progress(&progress)).unwrap_or_default();
    let text = std::fs::read_to_string(work.metrics()).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let loss = last.and_then(|last| last.get("loss")?.as_f64());
    let done = match loss {
        Some(loss) if progress.is_empty() => format!("loss {loss:.4}"),
        Some(loss) if !progress.contains("loss") => format!("{progress}, loss {loss:.4}"),
        _ => progress,
    };
    let state = work.state().filter(|text| !text.is_empty());
    state.into_iter().chain(Some(done).filter(|text| !text.is_empty())).collect::<Vec<_>>().join("; ")
}
