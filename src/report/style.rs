//! Styles of output: text or JSON, how much, and in which colours.

use anstyle::AnsiColor;

/// The command line's flags for output.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    /// As JSON, one object per line.
    pub(crate) json: bool,
    /// Errors only.
    pub(crate) quiet: bool,
}

pub(super) const GOOD: anstyle::Style = AnsiColor::Green.on_default().bold();
pub(super) const BAD: anstyle::Style = AnsiColor::Red.on_default().bold();
pub(super) const WARN: anstyle::Style = AnsiColor::Yellow.on_default().bold();
pub(super) const DIM: anstyle::Style = anstyle::Style::new().dimmed();
