//! Answers to questions about stages and runs: why, show, status, runs.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write,
};

use super::{
    print::{say, tell},
    style::{BAD, DIM, GOOD, WARN},
    table::Table,
    units,
};
use crate::{
    scheduler::{Why, WhyState},
    store::{KILLED, Receipt, RunRecord, TreeFile},
};

/// Why a stage ran or would run.
pub(crate) fn why(why: &Why, json: bool) {
    if json {
        return say(&serde_json::json!(why).to_string());
    }
    let mut text = String::new();
    write_why(&mut text, why, 0);
    say(text.trim_end());
}

fn write_why(text: &mut String, why: &Why, depth: usize) {
    let indent = "  ".repeat(depth);
    let Why { stage, state, reason, last, now, causes } = why;
    let reason = reason.as_deref();
    let _ = match state {
        WhyState::Cached => writeln!(text, "{indent}{stage} {DIM}is cached{DIM:#}"),
        WhyState::Runs => writeln!(text, "{indent}{stage} {GOOD}would run{GOOD:#}: {}", reason.unwrap_or("new")),
        WhyState::Waits if causes.is_empty() => {
            writeln!(text, "{indent}{stage} {WARN}waits{WARN:#}, {}", reason.unwrap_or_default())
        }
        WhyState::Waits => {
            let names: Vec<&str> = causes.iter().map(|cause| cause.stage.as_str()).collect();
            let own = reason.map(|reason| format!("; by itself: {reason}")).unwrap_or_default();
            writeln!(text, "{indent}{stage} {WARN}waits{WARN:#} for {}{own}", names.join(", "))
        }
        WhyState::Changed => {
            let reason = reason.unwrap_or("how it was made before is not known any more");
            writeln!(text, "{indent}{stage} {WARN}gives another content{WARN:#}: {reason}")
        }
    };
    if let Some(now) = now {
        let _ = writeln!(text, "{indent}  {WARN}{now}{WARN:#}");
    }
    if let Some(last) = last {
        let because = match last.reason.as_str() {
            "" => String::new(),
            reason => format!(", because: {reason}"),
        };
        let (at, took) = (units::time(last.finished), units::duration(last.seconds));
        let _ = writeln!(text, "{indent}  {DIM}it ran last {at}, for {took}{because}{DIM:#}");
    }
    for cause in causes {
        write_why(text, cause, depth + 1);
    }
}

/// A receipt.
pub(crate) fn receipt(name: &str, receipt: &Receipt, inputs: &BTreeMap<&str, &str>, files: &[TreeFile], json: bool) {
    let key = receipt.manifest.key();
    if json {
        let files: Vec<_> = files
            .iter()
            .map(|file| serde_json::json!({"path": file.path, "bytes": file.size, "digest": file.digest}))
            .collect();
        return say(&serde_json::json!({"stage": name, "key": key, "receipt": receipt, "files": files}).to_string());
    }
    let mut lines = vec![format!("{GOOD}{name}{GOOD:#}  {}, {DIM}key {}{DIM:#}", receipt.manifest.kind, key.short())];
    let mut line = |name: &str, value: String| lines.push(format!("  {DIM}{name:<9}{DIM:#} {value}"));
    let took = units::duration(receipt.timing.seconds);
    line("ran", format!("{}, for {took}, on {}", units::time(receipt.timing.finished), receipt.host));
    if !receipt.reason.is_empty() {
        line("because", receipt.reason.clone());
    }
    if let Some(bytes) = receipt.peak_memory {
        line("memory", format!("{} at most", units::bytes(bytes)));
    }
    line("seed", receipt.manifest.seed.to_string());
    for (number, (key, value)) in receipt.manifest.config_fields().into_iter().enumerate() {
        line(if number == 0 { "config" } else { "" }, format!("{key} = {value}"));
    }
    for (number, (input, digest)) in receipt.manifest.inputs.iter().enumerate() {
        let from = inputs.get(input.as_str()).copied().unwrap_or_default();
        line(if number == 0 { "inputs" } else { "" }, format!("{input} = {from} {DIM}{}{DIM:#}", digest.short()));
    }
    for (number, (figure, value)) in receipt.results.iter().enumerate() {
        line(if number == 0 { "results" } else { "" }, format!("{figure} {}", units::figure(*value)));
    }
    let output = receipt.output;
    line(
        "output",
        format!("{} in {}, {}", units::bytes(output.bytes), units::files(output.files), output.digest.short()),
    );
    for file in files.iter().take(SHOWN) {
        line("", format!("{:>8}  {}  {DIM}{}{DIM:#}", units::bytes(file.size), file.path, file.digest.short()));
    }
    if files.len() > SHOWN {
        line("", format!("... and {} more (--json shows all)", files.len() - SHOWN));
    }
    say(&lines.join("\n"));
}

/// Files that are listed to a person.
const SHOWN: usize = 20;

/// When a stage was made and what it takes.
pub(crate) fn made(receipt: &Receipt) -> String {
    let (at, took) = (units::time(receipt.timing.finished), units::duration(receipt.timing.seconds));
    format!("{at}, took {took}, {}", units::bytes(receipt.output.bytes))
}

/// Where a stage stands, for `status`.
pub(crate) struct Standing {
    pub(crate) stage: String,
    pub(crate) state: &'static str,
    pub(crate) detail: String,
}

/// Where the stages of a pipeline stand.
pub(crate) fn status(pipeline: &str, stages: &[Standing], json: bool) {
    if json {
        for Standing { stage, state, detail } in stages {
            say(&serde_json::json!({"stage": stage, "state": state, "detail": detail}).to_string());
        }
        return;
    }
    let width = stages.iter().map(|stage| stage.stage.len()).max().unwrap_or(0);
    for Standing { stage, state, detail } in stages {
        let style = match *state {
            "running" => GOOD,
            "cached" => DIM,
            "failed" => BAD,
            _ => WARN,
        };
        say(&format!("{style}{state:<8}{style:#}  {stage:<width$}  {DIM}{detail}{DIM:#}"));
    }
    let count = |state: &str| stages.iter().filter(|stage| stage.state == state).count();
    let (cached, running) = (count("cached"), count("running"));
    say(&format!("\n{pipeline}: {cached} of {} cached, {running} running", stages.len()));
}

/// What came out otherwise than in the run that was done again.
pub(crate) fn differences(run: &RunRecord, stages: &[&str]) {
    if stages.is_empty() {
        return;
    }
    let version = env!("CARGO_PKG_VERSION");
    let by = if run.made_by == version {
        String::new()
    } else {
        format!(" (that was imp-flow {}, this is {version})", run.made_by)
    };
    tell(&format!("{WARN}warning:{WARN:#} other bytes than in run {}: {}{by}", run.id, stages.join(", ")));
}

/// Past runs.
pub(crate) fn runs(runs: &[RunRecord], json: bool) {
    if json {
        for run in runs {
            say(&serde_json::json!(run).to_string());
        }
        return;
    }
    if runs.is_empty() {
        return say("nothing has run yet");
    }
    let mut table = Table::new(&["run", "name", "pipeline", "started", "took", "ended", "stages"]).right(&["took"]);
    for run in runs {
        // A stage that points share is one stage.
        let stages = || run.points.iter().flat_map(|point| &point.stages);
        let distinct = |ran_only: bool| {
            let counted = stages().filter(|stage| !ran_only || stage.state == "ran");
            let ids = counted.enumerate().map(|(number, stage)| stage.key.map_or_else(|| Err(number), Ok));
            ids.collect::<HashSet<_>>().len()
        };
        let points = if run.sweep { format!(", {} points", run.points.len()) } else { String::new() };
        table.row([
            run.id.clone(),
            run.name.clone().unwrap_or_default(),
            run.pipeline.clone(),
            units::time(run.started as u64),
            // When it was killed nobody knows.
            if run.ending == KILLED { String::new() } else { units::duration(run.seconds) },
            run.ending.clone(),
            format!("{} of {} ran{points}", distinct(true), distinct(false)),
        ]);
    }
    table.print();
}
