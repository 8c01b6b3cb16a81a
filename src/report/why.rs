//! The output of `imp-flow why`.

use std::fmt::Write;

use super::{
    foreign::{indented, one_line},
    print::print,
    style::{DIM, GOOD, WARN},
    units,
};
use crate::scheduler::{MissReason, Why, WhyState};

/// Explains why a stage ran or would run.
pub(crate) fn why(why: &Why, json: bool) {
    if json {
        return print(&serde_json::json!(why).to_string());
    }
    let mut text = String::new();
    write_why(&mut text, why, 0);
    print(text.trim_end());
}

/// Writes an explanation, and the explanations of its causes indented below it.
fn write_why(text: &mut String, why: &Why, depth: usize) {
    let indent = "  ".repeat(depth);
    let Why { stage, state, reason, last, is_running, now, causes } = why;
    let reason = reason.as_deref().map(self::reason);
    let _ = match state {
        WhyState::Cached => writeln!(text, "{indent}{stage} {DIM}is cached{DIM:#}"),
        WhyState::Runs => {
            let runs = if *is_running { "is running" } else { "would run" };
            writeln!(
                text,
                "{indent}{stage} {GOOD}{runs}{GOOD:#}: {}",
                reason.unwrap_or_else(|| self::reason(MissReason::NEW))
            )
        }
        WhyState::Waits if causes.is_empty() => {
            writeln!(text, "{indent}{stage} {WARN}waits{WARN:#}, {}", reason.unwrap_or_default())
        }
        WhyState::Waits => {
            let names: Vec<&str> = causes.iter().map(|cause| cause.stage.as_str()).collect();
            let own = reason.map(|reason| format!(", and would run anyway: {reason}")).unwrap_or_default();
            writeln!(text, "{indent}{stage} {WARN}waits{WARN:#} for {}{own}", names.join(", "))
        }
        WhyState::Changed => {
            let reason = reason.unwrap_or_else(|| "the record of its earlier run is gone".into());
            writeln!(text, "{indent}{stage} {WARN}produced different content{WARN:#}: {reason}")
        }
    };
    if let Some(now) = now.as_ref().filter(|_| !is_running) {
        let _ = writeln!(text, "{indent}  {WARN}{}{WARN:#}", indented(now, &format!("{indent}    ")));
    }
    if let Some(last) = last {
        let because = match last.reason.as_str() {
            "" => String::new(),
            reason => format!(": {}", self::reason(reason)),
        };
        let (at, took) = (units::time(last.finished), units::duration(last.seconds));
        let on = last.environment.as_ref().map(|found| format!(" on the {}", one_line(&found.to_string())));
        let on = on.unwrap_or_default();
        let elsewhere = if last.pulled_from.is_some() { " on another machine" } else { "" };
        let _ = writeln!(text, "{indent}  {DIM}last ran {at}{elsewhere} ({took}{on}){because}{DIM:#}");
        if let Some(from) = &last.pulled_from {
            let _ = writeln!(text, "{indent}  {DIM}its result was pulled from {}{DIM:#}", one_line(from));
        }
    }
    for cause in causes {
        write_why(text, cause, depth + 1);
    }
}

/// Turns a recorded reason into the words that users read.
pub(super) fn reason(recorded: &str) -> String {
    match recorded {
        MissReason::NEW => "first run".into(),
        MissReason::FORCED => "--force".into(),
        other => one_line(other),
    }
}
