//! What `imp-flow cache` says.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    print::say,
    style::{BAD, GOOD, Style, WARN},
    table::Table,
    units,
};
use crate::store::{GcReport, Stats, VerifyReport};

/// A bar for long work on bytes; nothing where nobody sees it.
pub(crate) struct Bar(ProgressBar);

impl Bar {
    pub(crate) fn bytes(what: &'static str, style: Style) -> Self {
        let bar = if std::io::stderr().is_terminal() && !style.quiet && !style.json {
            ProgressBar::no_length().with_message(what)
        } else {
            ProgressBar::hidden()
        };
        let bytes = ProgressStyle::with_template("{msg} [{bar:24}] {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left");
        Self(bar.with_style(bytes.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")))
    }

    pub(crate) fn at(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    pub(crate) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

/// How much lies in the cache.
pub(crate) fn stats(stats: &Stats, json: bool) {
    if json {
        return say(&serde_json::json!(stats).to_string());
    }
    let mut table = Table::new(&["pipeline", "stages", "size", "last"]).right(&["stages", "size"]);
    for (name, pipeline) in &stats.pipelines {
        let cells =
            [name.clone(), pipeline.stages.to_string(), units::bytes(pipeline.bytes), units::time(pipeline.last)];
        table.row(cells);
    }
    table.print();
    say(&format!(
        "\n{} in {} files: {} stages of {} runs; {} of {} unfinished stages",
        units::bytes(stats.bytes),
        stats.objects,
        stats.receipts,
        stats.runs,
        units::bytes(stats.unfinished_bytes),
        stats.unfinished
    ));
}

/// What `verify` found.
pub(crate) fn checkup(found: &VerifyReport, json: bool) {
    if json {
        return say(&serde_json::json!(found).to_string());
    }
    for path in &found.damaged {
        say(&format!("{BAD}damaged{BAD:#}  {}", path.display()));
    }
    for stage in &found.lost {
        say(&format!("{WARN}lost{WARN:#}     {stage}: the next run makes it again"));
    }
    let read = format!("{} objects ({}) and {} receipts", found.objects, units::bytes(found.bytes), found.receipts);
    let mended = if found.mended > 0 { format!(", {} mended", found.mended) } else { String::new() };
    say(&match found.damaged.len() {
        0 if found.lost.is_empty() => format!("{GOOD}all is well{GOOD:#}: {read} read{mended}"),
        damaged => format!("{read} read: {damaged} damaged and taken out{mended}"),
    });
}

/// Stages that are listed to a person.
const SHOWN: usize = 10;

/// What `gc` threw away.
pub(crate) fn thrown(thrown: &GcReport, dry_run: bool, json: bool) {
    if json {
        return say(&serde_json::json!(thrown).to_string());
    }
    for (stage, bytes) in thrown.largest.iter().take(SHOWN) {
        say(&format!("{:>8}  {stage}", units::bytes(*bytes)));
    }
    if thrown.largest.len() > SHOWN {
        say(&format!("{:>8}  and {} more", "", thrown.largest.len() - SHOWN));
    }
    let verb = if dry_run { "would free" } else { "freed" };
    say(&format!(
        "{verb} {} in {} files of {} stages and {} runs, and {} of unfinished stages; {} stay",
        units::bytes(thrown.bytes),
        thrown.files,
        thrown.stages,
        thrown.runs,
        units::bytes(thrown.unfinished),
        units::bytes(thrown.kept_bytes)
    ));
}
