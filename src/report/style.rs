//! How things are shown: for a user or for a program, how much, and in which colours.

use anstyle::AnsiColor;

/// What the user chose for all verbs.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    /// As JSON, one object a line.
    pub(crate) json: bool,
    /// Only what went wrong.
    pub(crate) quiet: bool,
}

pub(super) const GOOD: anstyle::Style = AnsiColor::Green.on_default().bold();
pub(super) const BAD: anstyle::Style = AnsiColor::Red.on_default().bold();
pub(super) const WARN: anstyle::Style = AnsiColor::Yellow.on_default().bold();
pub(super) const DIM: anstyle::Style = anstyle::Style::new().dimmed();
