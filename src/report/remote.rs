//! The output of the verbs on a remote cache.

use std::path::Path;

use serde_json::json;

use super::{
    foreign::one_line,
    print::print,
    style::{DIM, GOOD, Style, WARN},
    table::Table,
    units,
};
use crate::remote::{RemoteGc, RemoteStats};

/// What came of pulling everything.
#[derive(Debug, Default)]
pub(crate) struct RemotePull {
    pub(crate) pulled: usize,
    pub(crate) bytes: u64,
    /// Results that were here.
    pub(crate) known: usize,
    /// Results that can't be used, by the beginning of their keys, and why.
    pub(crate) unusable: Vec<(String, String)>,
}

/// What came of pushing everything.
#[derive(Debug, Default)]
pub(crate) struct RemotePush {
    pub(crate) pushed: usize,
    pub(crate) bytes: u64,
    /// Results that were there.
    pub(crate) known: usize,
    /// `pipeline/stage` of results that are damaged here, or may lack something.
    pub(crate) unfit: Vec<String>,
}

/// Says that the result of a stage is here; `pulled` has the bytes and files that were transferred, if any.
pub(crate) fn pulled_stage(stage: &str, pulled: Option<(u64, usize)>, link: &Path, style: Style) {
    if style.json {
        let (bytes, files) = pulled.unwrap_or_default();
        return print(&json!({"stage": stage, "bytes": bytes, "files": files, "artifact": link}).to_string());
    }
    if style.quiet {
        return;
    }
    let what = match pulled {
        Some((bytes, files)) => format!("pulled {} in {}", units::bytes(bytes), units::files(files as u64)),
        None => "was here already".into(),
    };
    print(&format!("{GOOD}{stage}{GOOD:#}: {what}: {}", link.display()));
}

/// Says what came of pulling everything from `remote`.
pub(crate) fn pulled_all(remote: &str, told: &RemotePull, style: Style) {
    let RemotePull { pulled, bytes, known, unusable } = told;
    if style.json {
        let unusable: Vec<_> = unusable.iter().map(|(key, why)| json!({"key": key, "why": why})).collect();
        let told = json!({"remote": remote, "pulled": pulled, "bytes": bytes, "known": known, "unusable": unusable});
        return print(&told.to_string());
    }
    for (key, why) in unusable {
        print(&format!("{WARN}unusable{WARN:#}  {key}: {}", one_line(why)));
    }
    let results = units::count(*pulled, "result");
    print(&format!("Pulled {results} ({}) from {}; {known} were here.", units::bytes(*bytes), one_line(remote)));
}

/// Says what came of pushing everything to `remote`.
pub(crate) fn pushed_all(remote: &str, told: &RemotePush, style: Style) {
    let RemotePush { pushed, bytes, known, unfit } = told;
    if style.json {
        let told = json!({"remote": remote, "pushed": pushed, "bytes": bytes, "known": known, "unfit": unfit});
        return print(&told.to_string());
    }
    for stage in unfit {
        let why = "is damaged or may lack something, and was left out; `imp-flow cache verify` says more";
        print(&format!("{WARN}left out{WARN:#}  {}: it {why}", one_line(stage)));
    }
    let results = units::count(*pushed, "result");
    print(&format!("Pushed {results} ({}) to {}; {known} were there.", units::bytes(*bytes), one_line(remote)));
}

/// Shows what is in a remote cache.
pub(crate) fn remote_stats(stats: &RemoteStats, json: bool) {
    if json {
        return print(&serde_json::json!(stats).to_string());
    }
    let mut table = Table::new(&["pipeline", "stages", "size", "last"]).right(&["stages", "size"]);
    for (name, pipeline) in &stats.pipelines {
        let (bytes, last) = (units::bytes(pipeline.bytes), units::time(pipeline.last));
        table.row([one_line(name), pipeline.stages.to_string(), bytes, last]);
    }
    table.print();
    print(&format!(
        "\n{}: {} ({}), {}, used by {}.",
        one_line(&stats.remote),
        units::bytes(stats.bytes),
        units::files(stats.objects as u64),
        units::count(stats.results, "result"),
        units::count(stats.runs, "run"),
    ));
    if stats.damaged > 0 {
        let damaged = units::count(stats.damaged, "result");
        print(&format!("{WARN}{damaged} with a receipt that can't be read{WARN:#}: `cache gc --remote` deletes them."));
    }
}

/// Shows what was deleted in a remote cache, or would be.
pub(crate) fn remote_gc(remote: &str, report: &RemoteGc, dry_run: bool, json: bool) {
    if json {
        return print(&serde_json::json!(report).to_string());
    }
    let (freed, remain) = if dry_run { ("Would free", "would remain") } else { ("Freed", "remain") };
    let mut parts = vec![units::files(report.files as u64)];
    parts.extend((report.results > 0).then(|| units::count(report.results, "result")));
    parts.extend((report.damaged > 0).then(|| format!("{} of them damaged", report.damaged)));
    parts.extend((report.runs > 0).then(|| units::count(report.runs, "record") + " of runs"));
    print(&format!(
        "{freed} {} ({}) {DIM}in {}{DIM:#}. {} in {} {remain}.",
        units::bytes(report.bytes),
        parts.join(", "),
        one_line(remote),
        units::bytes(report.kept_bytes),
        units::count(report.kept_results, "result"),
    ));
}
