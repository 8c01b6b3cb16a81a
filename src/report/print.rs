//! Lines on standard output and standard error.

use std::io::Write;

use super::style::{DIM, Style};

/// A line on standard output.
pub(crate) fn print(text: &str) {
    print_raw(&format!("{text}\n"));
}

/// Text with its own line breaks on standard output. A closed pipe or a full disk must not end a run, so errors are ignored.
pub(crate) fn print_raw(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A note for the user on standard error.
pub(crate) fn note(text: &str, style: Style) {
    if !style.quiet && !style.json {
        eprint(&format!("{DIM}{text}{DIM:#}"));
    }
}

/// A line on standard error.
pub(super) fn eprint(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
