//! `imp-flow status`.

use std::process::ExitCode;

use super::session::Session;
use crate::{
    cli::{Common, TargetArgs},
    failure::Failure,
    report::{self, Standing, StandingState},
    scheduler::{Selection, Verdict},
    store::{Digest, Store},
};

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
            (StandingState::Running, progress(store, *key))
        }
        Verdict::Hit { key } => {
            let made = store.receipt(*key)?;
            (StandingState::Cached, made.map(|receipt| report::made(&receipt)).unwrap_or_default())
        }
        Verdict::Run { key, .. } if let Some(message) = store.work(*key).failure() => {
            (StandingState::Failed, message.lines().next().unwrap_or_default().to_string())
        }
        Verdict::Run { key, .. } if store.work(*key).has_checkpoint() => {
            (StandingState::Stopped, "resumes from its checkpoint".to_string())
        }
        Verdict::Run { reason, .. } => (StandingState::ToRun, reason.to_string()),
        Verdict::After { stages, .. } => {
            let names: Vec<&str> = stages.iter().map(|from| session.pipeline.stages[*from].name.as_str()).collect();
            (StandingState::Waiting, format!("for {}", names.join(", ")))
        }
    };
    Ok(Standing { stage, state, detail })
}

/// How far a running stage is, and its figures.
fn progress(store: &Store, key: Digest) -> String {
    let work = store.work(key);
    let progress = work.progress().map(|progress| report::progress(&progress)).unwrap_or_default();
    let text = std::fs::read_to_string(work.metrics()).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let loss = last.and_then(|last| last.get("loss")?.as_f64());
    match loss {
        Some(loss) if !progress.contains("loss") => format!("{progress}, loss {loss:.4}"),
        _ => progress,
    }
}
