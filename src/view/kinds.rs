//! What a kind of stage and its keys mean, in the words of `imp-flow kinds`.

use std::collections::BTreeMap;

use imp_stages::{KindVisitor, Stage, visit};
use serde::Serialize;

/// A kind of stage.
#[derive(Debug, Serialize)]
pub(crate) struct KindView {
    about: &'static str,
    keys: BTreeMap<String, KeyView>,
}

/// A key of a kind.
#[derive(Debug, Serialize)]
pub(crate) struct KeyView {
    /// Its default as JSON, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    about: String,
}

struct Reference;

impl KindVisitor for Reference {
    type Output = KindView;

    fn visit<S: Stage>(self) -> KindView {
        let keys = S::keys().into_iter().map(|key| (key.name, KeyView { default: key.default, about: key.about }));
        KindView { about: S::ABOUT, keys: keys.collect() }
    }
}

/// The reference of a kind, if this version has it.
pub(super) fn of(kind: &str) -> Option<KindView> {
    visit(kind, Reference)
}

/// Splits a configuration into what differs from the defaults of its kind, and the keys with a default that it lacks.
pub(crate) fn besides_defaults(
    kind: &str,
    mut config: BTreeMap<String, String>,
) -> (BTreeMap<String, String>, Vec<String>) {
    let mut lacking = Vec::new();
    for (name, key) in of(kind).map(|kind| kind.keys).unwrap_or_default() {
        let Some(default) = key.default else { continue };
        match config.get(&name) {
            Some(value) if *value == default => drop(config.remove(&name)),
            Some(_) => {}
            None => lacking.push(name),
        }
    }
    (config, lacking)
}
