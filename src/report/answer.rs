//! The output of `imp-flow ask`: the answer as it comes, on standard output; how it was made, on standard error.

use imp_stages::ask::Answered;
use serde_json::json;

use super::{
    chat::cautions,
    foreign::indented,
    print::{note, print, print_raw},
    style::Style,
    units,
};

/// An answer.
pub(crate) struct Answer<'a> {
    pub(crate) answered: &'a Answered,
    pub(crate) text: &'a str,
    /// Since the model began to load.
    pub(crate) seconds: f64,
}

/// Shows a new part of an answer. A model's text can't control the terminal.
pub(crate) fn part_of_answer(text: &str, json: bool) {
    if !json {
        print_raw(&indented(text, ""));
    }
}

/// Ends an answer.
pub(crate) fn answer(answer: &Answer<'_>, style: Style) {
    let Answer { answered, text, seconds } = answer;
    if style.json {
        let value = json!({
            "answer": text,
            "prompt": answered.prompt,
            "tokens": answered.tokens,
            "seconds": seconds,
            "cut": answered.cut,
            "device": answered.device,
            "cautions": answered.cautions,
        });
        return print(&value.to_string());
    }
    print("");
    cautions(&answered.cautions);
    let cut = if answered.cut { ", cut off: --max-tokens allows more" } else { "" };
    let (tokens, device) = (units::count(answered.tokens, "token"), answered.device);
    note(&format!("{tokens} in {seconds:.1} s with loading, on the {device}{cut}"), style);
}
