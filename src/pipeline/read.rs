//! Reads single keys from tables, and checks names.

use super::{
    de,
    diagnostic::{Diagnostic, Diagnostics, Span},
    value::Table,
};

/// Takes the value of `key` out of the table. Returns `default` if it is missing or invalid.
pub(super) fn scalar<T: serde::de::DeserializeOwned>(
    table: &mut Table,
    key: &str,
    default: T,
    problems: &mut Diagnostics,
) -> T {
    let Some(entry) = table.remove(key) else { return default };
    de::from_node(&entry.node).unwrap_or_else(|mut problem| {
        problem.message = format!("`{key}`: {}", problem.message);
        problems.push(problem);
        default
    })
}

/// Whether `name` can be the name of a folder.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// The error for a name that [`is_name`] refuses.
pub(super) fn bad_name(of: &str, name: &str, span: Option<Span>) -> Diagnostic {
    Diagnostic::new(format!("`{name}` can't be the name of a {of}"), span)
        .help("use letters, digits, `-` and `_`; it becomes the name of a folder")
}
