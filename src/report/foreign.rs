//! Texts that come from elsewhere: from receipts of a shared cache, stages and their data. What would end a line or control a
//! terminal is written as an escape, so that such a text is never taken for the program's own words.

use std::fmt::Write;

/// `text` on one line.
pub(super) fn one_line(text: &str) -> String {
    several_lines(text, None)
}

/// `text` with its line breaks, each followed by `indent`.
pub(super) fn indented(text: &str, indent: &str) -> String {
    several_lines(text, Some(indent))
}

fn several_lines(text: &str, indent: Option<&str>) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match (c, indent) {
            ('\n', Some(indent)) => {
                shown.push('\n');
                shown.push_str(indent);
            }
            // Some change the order in which others are shown.
            (c, _)
                if c.is_control()
                    || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') =>
            {
                // Writing into a string can't fail.
                let _ = write!(shown, "{}", c.escape_default());
            }
            (c, _) => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_elsewhere_begins_a_line_or_reaches_the_terminal() {
        let text = "a\u{1b}[2J\r\nerror: b\tc\u{202e}d\u{200f} ä";
        assert_eq!(one_line(text), r"a\u{1b}[2J\r\nerror: b\tc\u{202e}d\u{200f} ä");
        assert_eq!(indented(text, "  "), "a\\u{1b}[2J\\r\n  error: b\\tc\\u{202e}d\\u{200f} ä");
    }
}
