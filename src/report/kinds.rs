//! The output of `imp-flow kinds`.

use std::fmt::Write;

use imp_stages::contract::{input::Input, keys::Key};
use serde_json::json;

use super::{
    print::print,
    style::{DIM, GOOD},
};

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
    print(&text);
}

/// Prints a kind of stage, its inputs and its keys as one line of JSON.
pub(crate) fn kind_as_json(name: &str, about: &str, inputs: &[Input], keys: &[Key], runtime: &[Key]) {
    let listed = |keys: &[Key]| -> Vec<serde_json::Value> {
        let value = |key: &Key| json!({"name": key.name, "value": key.value, "default": key.default, "required": key.required, "about": key.about});
        keys.iter().map(value).collect()
    };
    let inputs: Vec<_> = inputs
        .iter()
        .map(|input| json!({"name": input.name, "required": input.required, "list": input.many, "about": input.about}))
        .collect();
    let (own, runtime) = (listed(keys), listed(runtime));
    print(&json!({"kind": name, "about": about, "inputs": inputs, "keys": own, "runtime": runtime}).to_string());
}

/// Prints the keys of a configuration, each with its default, its possible values and its meaning.
pub(crate) fn keys(title: &str, keys: &[Key]) {
    let mut text = format!("\n{DIM}{title}{DIM:#}");
    for key in keys {
        let default = match &key.default {
            Some(value) => format!(" = {value}"),
            None if key.required => " (required)".into(),
            None => String::new(),
        };
        let _ = write!(text, "\n  {GOOD}{}{GOOD:#}{default}\n      {}: {}", key.name, key.value, key.about);
    }
    print(&text);
}
