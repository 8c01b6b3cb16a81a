//! Prints lines on standard output and standard error.

use std::{io::Write, path::Path};

use super::style::{DIM, Style};

/// Prints a line on standard output.
pub(crate) fn print(text: &str) {
    print_raw(&format!("{text}\n"));
}

/// Prints text as it is on standard output. Ignores errors, since a closed pipe or a full disk must not end a run.
pub(crate) fn print_raw(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a note for the user on standard error, unless the output is quiet or JSON.
pub(crate) fn note(text: &str, style: Style) {
    if !style.quiet && !style.json {
        eprint(&format!("{DIM}{text}{DIM:#}"));
    }
}

/// Says where the report of a run is.
pub(crate) fn page_written(path: &Path, style: Style) {
    if !style.quiet && !style.json {
        print(&format!("{DIM}report:{DIM:#} {}", path.display()));
    }
}

/// Prints a line on standard error.
pub(super) fn eprint(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
