//! `imp-flow status`.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::session::Session;
use crate::{
    cli::{Common, TargetArgs},
    failure::Failure,
    report::{self, StageStatus, Status},
    scheduler::{Selection, Verdict},
    store::{Digest, Receipt, Store, read},
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
    let none = || json!({});
    let (state, detail, facts) = match verdict {
        // A cached stage may be running because of --force.
        Verdict::Hit { key } | Verdict::Run { key, .. } if store.is_being_made(*key) => {
            let (detail, facts) = progress(store, *key);
            (Status::Running, detail, facts)
        }
        Verdict::Run { key, .. } if store.work(*key).is_submitted() => {
            let (detail, facts) = progress(store, *key);
            let detail = format!("{detail}, when a run last followed it; `imp-flow run` follows it again");
            (Status::Running, detail, facts)
        }
        Verdict::Hit { key } => match store.receipt(*key)? {
            Some(receipt) => (Status::Cached, report::finished(&receipt), facts_of(&receipt)),
            None => (Status::Cached, String::new(), none()),
        },
        Verdict::Run { key, .. } if let Some(message) = store.work(*key).failure() => {
            (Status::Failed, message.lines().next().unwrap_or_default().to_string(), none())
        }
        Verdict::Run { key, .. } if store.work(*key).has_checkpoint() => {
            (Status::Stopped, "resumes from its checkpoint".to_string(), none())
        }
        // The state is that of this machine: no remote cache is asked for it.
        Verdict::Remote { .. } => (Status::ToRun, String::new(), none()),
        Verdict::Run { reason, .. } => (Status::ToRun, reason.to_string(), none()),
        Verdict::After { stages, .. } => {
            let names: Vec<&str> = stages.iter().map(|from| session.pipeline.stages[*from].name.as_str()).collect();
            (Status::Waiting, format!("for {}", names.join(", ")), json!({"waits_for": names}))
        }
    };
    Ok(StageStatus { stage, state, detail, facts })
}

/// When a stage finished (seconds since 1970), how many seconds it took, and the bytes of its output.
fn facts_of(receipt: &Receipt) -> Value {
    let (timing, bytes) = (&receipt.timing, receipt.output.bytes);
    json!({"finished": timing.finished, "seconds": timing.seconds, "bytes": bytes})
}

/// Where a running stage is, its progress and loss, in words and as fields.
fn progress(store: &Store, key: Digest) -> (String, Value) {
    let work = store.work(key);
    let now = work.progress();
    let words = now.as_ref().map(report::progress).unwrap_or_default();
    let text = read(&work.metrics()).map(|text| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default();
    let last = text.lines().rev().find_map(|line| serde_json::from_str::<Value>(line).ok());
    let loss = last.and_then(|last| last.get("loss")?.as_f64());
    let words = match loss {
        Some(loss) if words.is_empty() => format!("loss {loss:.4}"),
        Some(loss) if !words.contains("loss") => format!("{words}, loss {loss:.4}"),
        _ => words,
    };
    let state = work.state().filter(|text| !text.is_empty());
    let facts = json!({"progress": now, "loss": loss, "at": state});
    let words = state.into_iter().chain(Some(words).filter(|text| !text.is_empty())).collect::<Vec<_>>().join("; ");
    (words, facts)
}
