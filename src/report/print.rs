//! Prints lines on standard output and standard error.

use std::{
    io::{ErrorKind, Write},
    path::Path,
    process::ExitCode,
    sync::OnceLock,
};

use super::{
    foreign::{indented, one_line},
    style::{BAD, DIM, Style, WARN},
};

/// Prints a line on standard output.
pub(crate) fn print(text: &str) {
    print_raw(&format!("{text}\n"));
}

/// Prints text as it is on standard output. Goes on after an error, since a full disk must not end a run: see [`ended`].
pub(crate) fn print_raw(text: &str) {
    let mut out = anstream::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever closed a pipe has read enough.
        if error.kind() != ErrorKind::BrokenPipe {
            let _ = LOST.set(error.to_string());
        }
    }
}

/// Prints a part of a stage's log on standard output: what a stage, its data or another machine has written controls no terminal.
pub(crate) fn print_log(text: &str) {
    let text = text.replace("\r\n", "\n");
    // Programs make tables with tabs.
    let parts: Vec<String> = text.split('\t').map(|part| indented(part, "")).collect();
    print_raw(&parts.join("\t"));
}

/// Why something could not be printed.
static LOST: OnceLock<String> = OnceLock::new();

/// The exit code of a verb that ended with `code`: what could not be printed is an error.
pub(crate) fn ended(code: ExitCode) -> ExitCode {
    let Some(error) = LOST.get() else { return code };
    eprint(&format!("{BAD}error:{BAD:#} can't write to standard output: {error}"));
    if code == ExitCode::SUCCESS { ExitCode::FAILURE } else { code }
}

/// Prints a note for the user on standard error, unless the output is quiet or JSON.
pub(crate) fn note(text: &str, style: Style) {
    if !style.quiet && !style.json {
        eprint(&format!("{DIM}{text}{DIM:#}"));
    }
}

/// Says what the user should look at, on standard error. With JSON, too: it is no part of the result.
pub(crate) fn remark(text: &str, style: Style) {
    if !style.quiet {
        eprint(&format!("{WARN}note:{WARN:#} {}", one_line(text)));
    }
}

/// Says where the report of a run is, beside the links to its artifacts.
pub(crate) fn page_written(path: &Path, style: Style) {
    if !style.quiet && !style.json {
        print(&format!("{DIM}report:{DIM:#} {}", path.display()));
    }
}

/// Prints a line on standard error.
pub(super) fn eprint(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
