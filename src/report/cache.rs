//! The output of `imp-flow cache`.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    foreign::one_line,
    print::print,
    style::{BAD, GOOD, Style, WARN},
    table::Table,
    units,
};
use crate::store::{GcReport, Stats, VerifyReport};

/// A progress bar in bytes; hidden unless standard error is a terminal.
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

/// Shows the size of the cache.
pub(crate) fn stats(stats: &Stats, json: bool) {
    if json {
        return print(&serde_json::json!(stats).to_string());
    }
    let mut table = Table::new(&["pipeline", "stages", "size", "last"]).right(&["stages", "size"]);
    for (name, pipeline) in &stats.pipelines {
        let cells =
            [one_line(name), pipeline.stages.to_string(), units::bytes(pipeline.bytes), units::time(pipeline.last)];
        table.row(cells);
    }
    table.print();
    let unfinished = match stats.unfinished {
        0 => "none".into(),
        count => format!("{count} ({})", units::bytes(stats.unfinished_bytes)),
    };
    print(&format!(
        "\nTotal {} ({}): results of {}, used by {}. Unfinished stages: {unfinished}.",
        units::bytes(stats.bytes),
        units::files(stats.objects as u64),
        units::count(stats.receipts, "stage"),
        units::count(stats.runs, "run"),
    ));
}

/// Shows what `cache verify` found.
pub(crate) fn verify(found: &VerifyReport, json: bool) {
    if json {
        return print(&serde_json::json!(found).to_string());
    }
    for path in &found.damaged {
        print(&format!("{BAD}damaged{BAD:#}  {}", path.display()));
    }
    for tree in &found.changed {
        print(&format!("{BAD}changed{BAD:#}  {}", one_line(tree)));
    }
    for stage in &found.lost {
        print(&format!("{WARN}lost{WARN:#}     {} (the next run makes it again)", one_line(stage)));
    }
    if found.unsealed > 0 {
        print(&format!(
            "{WARN}note{WARN:#}     {} of an older version without a checksum: whether a figure in them was changed can't be told",
            units::count(found.unsealed, "receipt")
        ));
    }
    let (files, bytes) = (units::files(found.objects as u64), units::bytes(found.bytes));
    let checked = format!("checked {files} ({bytes}) and {}", units::count(found.receipts, "receipt"));
    if found.is_clean() {
        return print(&format!("{GOOD}OK{GOOD:#}: {checked}, no damage found"));
    }
    let mut parts = vec![format!("{} damaged and removed", found.damaged.len())];
    parts.extend(
        (!found.changed.is_empty()).then(|| format!("{} changed", units::count(found.changed.len(), "result"))),
    );
    parts.extend((found.mended > 0).then(|| format!("{} restored", found.mended)));
    print(&format!("{BAD}DAMAGE{BAD:#}: {checked}, {}", parts.join(", ")));
}

/// Says that the index was rebuilt.
pub(crate) fn rebuilt(stages: usize, json: bool) {
    let text = format!("Index rebuilt: {}", units::count(stages, "stage"));
    print(&if json { serde_json::json!({"stages": stages}).to_string() } else { text });
}

/// The most deleted results to list.
const SHOWN: usize = 10;

/// Shows what `cache gc` deleted or would delete.
pub(crate) fn gc(report: &GcReport, dry_run: bool, json: bool) {
    if json {
        return print(&serde_json::json!(report).to_string());
    }
    for (stage, bytes) in report.largest.iter().take(SHOWN) {
        print(&format!("{:>8}  {}", units::bytes(*bytes), one_line(stage)));
    }
    if report.largest.len() > SHOWN {
        print(&format!("{:>8}  and {} more", "", report.largest.len() - SHOWN));
    }
    let (freed, remain) = if dry_run { ("Would free", "would remain") } else { ("Freed", "remain") };
    let mut parts = vec![units::files(report.files as u64)];
    parts.extend((report.stages > 0).then(|| units::count(report.stages, "stage")));
    parts.extend((report.runs > 0).then(|| units::count(report.runs, "run")));
    parts.extend((report.unfinished > 0).then(|| format!("{} of unfinished stages", units::bytes(report.unfinished))));
    let (bytes, kept) = (units::bytes(report.bytes + report.unfinished), units::bytes(report.kept_bytes));
    print(&format!("{freed} {bytes} ({}). {kept} {remain}.", parts.join(", ")));
}
