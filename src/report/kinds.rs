//! The output of `imp-flow kinds`.

use std::fmt::Write;

use imp_stages::contract::input::Input;

use super::{print::say, style::GOOD};

/// Prints a kind of stage and its inputs.
pub(crate) fn kind(name: &str, about: &str, inputs: &[Input]) {
    let mut text = format!("{GOOD}{name:<11}{GOOD:#} {about}");
    for input in inputs {
        let _ = write!(
            text,
            "\n            {} = {}{}",
            input.name,
            input.about,
            match (input.required, input.many) {
                (true, false) => "",
                (true, true) => " (one or a list)",
                (false, true) => " (optional, a list)",
                (false, false) => " (optional)",
            }
        );
    }
    say(&text);
}
