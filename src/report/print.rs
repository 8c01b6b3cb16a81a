//! Lines on standard output and standard error.

use std::io::Write;

use super::style::{DIM, Style};

/// A line on standard output.
pub(crate) fn say(text: &str) {
    say_raw(&format!("{text}\n"));
}

/// Text on standard output that has its own line breaks. Nobody may be listening, or the disk full: that is no reason for a
/// run to end.
pub(crate) fn say_raw(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What a person may want to know, on standard error.
pub(crate) fn hint(text: &str, style: Style) {
    if !style.quiet && !style.json {
        tell(&format!("{DIM}{text}{DIM:#}"));
    }
}

/// A line on standard error.
pub(super) fn tell(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}
