//! Everything that determines the result of a stage. Its key and the explanation of changes come from the same list of fields, so
//! they can't contradict each other. Independent of where the values come from.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use imp_stages::contract::secret::hide_secrets;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::digest::Digest;

/// Everything that determines the result of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) kind: String,
    pub(crate) version: u32,
    pub(crate) seed: u64,
    /// With all defaults filled in.
    pub(crate) config: Value,
    /// The user's files: name -> digest of the content.
    pub(crate) sources: BTreeMap<String, Digest>,
    /// The inputs: name -> digest of the content. An input that was made again with the same bytes does not change the key.
    pub(crate) inputs: BTreeMap<String, Digest>,
}

/// The groups of fields, in the order in which they enter the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FieldGroup {
    /// `kind`, `version` and `seed`.
    Own,
    Config,
    Input,
    Source,
}

impl FieldGroup {
    /// Part of every key: changing a word invalidates all caches.
    fn word(self) -> &'static str {
        match self {
            Self::Own => "",
            Self::Config => "config",
            Self::Input => "input",
            Self::Source => "source",
        }
    }
}

impl fmt::Display for FieldGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A field that differs between two manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) group: FieldGroup,
    /// Its name in the group, dotted: `lora.rank`.
    pub(crate) name: String,
    /// `None` where the field is new.
    pub(crate) old: Option<String>,
    /// `None` where the field was removed.
    pub(crate) new: Option<String>,
}

/// Group, name and value, sorted.
type Fields<'a> = Vec<(FieldGroup, Cow<'a, str>, Cow<'a, str>)>;

impl Manifest {
    /// The list of fields, for the key and for explanations.
    fn fields(&self) -> Fields<'_> {
        let mut fields = Fields::with_capacity(32);
        fields.push((FieldGroup::Own, "kind".into(), self.kind.as_str().into()));
        fields.push((FieldGroup::Own, "version".into(), self.version.to_string().into()));
        fields.push((FieldGroup::Own, "seed".into(), self.seed.to_string().into()));
        flatten(&self.config, &mut String::new(), &mut fields);
        fields.extend(self.sources.iter().map(|(name, digest)| (FieldGroup::Source, name.into(), digest.hex().into())));
        fields.extend(self.inputs.iter().map(|(name, digest)| (FieldGroup::Input, name.into(), digest.hex().into())));
        fields.sort_unstable();
        fields
    }

    /// The configuration as dotted keys and values.
    pub(crate) fn config_fields(&self) -> BTreeMap<String, String> {
        let mut fields = Fields::new();
        flatten(&self.config, &mut String::new(), &mut fields);
        fields.into_iter().map(|(_, name, value)| (name.into_owned(), value.into_owned())).collect()
    }

    /// The key: BLAKE3 of all fields, each part preceded by its length.
    pub(crate) fn key(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("imp-flow 2026-11 stage key");
        // All at once, since hashing many short pieces is slow.
        let mut bytes = Vec::with_capacity(1024);
        for (group, name, value) in &self.fields() {
            for part in [group.word(), name.as_ref(), value.as_ref()] {
                bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
                bytes.extend_from_slice(part.as_bytes());
            }
        }
        hasher.update(&bytes).finalize().into()
    }

    /// Leaves out the passwords and tokens of addresses in the configuration.
    pub(super) fn hide_secrets(&mut self) {
        hide_in(&mut self.config);
    }

    /// The manifest as it may be stored and shared.
    pub(crate) fn without_secrets(&self) -> Self {
        let mut shared = self.clone();
        shared.hide_secrets();
        shared
    }

    /// The fields that differ from those of an `older` manifest.
    pub(crate) fn changes_since(&self, older: &Self) -> Vec<Change> {
        let table = |fields: Fields<'_>| -> BTreeMap<(FieldGroup, String), String> {
            // A receipt has no secrets, and an explanation must not show those of the pipeline.
            let shown = |(group, name, value): (FieldGroup, Cow<'_, str>, Cow<'_, str>)| {
                ((group, name.into_owned()), hide_secrets(&value).into_owned())
            };
            fields.into_iter().map(shown).collect()
        };
        let (old, new) = (table(older.fields()), table(self.fields()));
        let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
        let change = |field: &(FieldGroup, String)| Change {
            group: field.0,
            name: field.1.clone(),
            old: old.get(field).cloned(),
            new: new.get(field).cloned(),
        };
        names.into_iter().map(change).filter(|change| change.old != change.new).collect()
    }
}

/// Nested tables become dotted names. An array is one value.
fn flatten<'a>(value: &'a Value, name: &mut String, fields: &mut Fields<'a>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let length = name.len();
                if length > 0 {
                    name.push('.');
                }
                name.push_str(key);
                flatten(value, name, fields);
                name.truncate(length);
            }
        }
        // An option that is not set has no field, so adding an option to a kind does not change old keys.
        Value::Null => {}
        other => fields.push((FieldGroup::Config, name.clone().into(), other.to_string().into())),
    }
}

fn hide_in(value: &mut Value) {
    match value {
        Value::String(text) => *text = hide_secrets(text).into_owned(),
        Value::Array(list) => list.iter_mut().for_each(hide_in),
        Value::Object(table) => table.values_mut().for_each(hide_in),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn manifest(config: &str) -> Manifest {
        Manifest {
            kind: "finetune".into(),
            version: 1,
            seed: 42,
            config: serde_json::from_str(config).unwrap(),
            sources: BTreeMap::new(),
            inputs: BTreeMap::from([("data".to_string(), Digest::of(b"data"))]),
        }
    }

    #[test]
    fn keys_are_the_same_in_every_release() {
        // Changing how keys are computed invalidates all caches. This must never happen by accident.
        let key = manifest(r#"{"learning_rate": 0.001, "lora": {"rank": 8}}"#).key();
        assert_eq!(key.hex(), GOLDEN);
    }
    const GOLDEN: &str = "405739d1c10105e4d132a5c6ca764bbe9ff6a0e2357b52c0ea91f3313c0f5927";

    #[test]
    fn order_of_keys_and_spelling_of_numbers_do_not_matter() {
        let a = manifest(r#"{"learning_rate": 0.001, "epochs": 1}"#);
        let b = manifest(r#"{"epochs": 1, "learning_rate": 1e-3}"#);
        assert_eq!(a.key(), b.key());
        assert!(a.changes_since(&b).is_empty());
    }

    #[test]
    fn every_field_changes_the_key_and_is_explained() {
        let old = manifest(r#"{"learning_rate": 0.001, "lora": {"rank": 8}}"#);
        let mut new = manifest(r#"{"learning_rate": 0.0005, "lora": {"rank": 8, "alpha": 16}}"#);
        new.seed = 43;
        new.inputs.insert("data".into(), Digest::of(b"other"));
        assert_ne!(old.key(), new.key());
        let changes = new.changes_since(&old);
        let named: Vec<_> = changes.iter().map(|c| (c.group, c.name.as_str(), c.old.is_some())).collect();
        assert_eq!(
            named,
            [
                (FieldGroup::Own, "seed", true),
                (FieldGroup::Config, "learning_rate", true),
                (FieldGroup::Config, "lora.alpha", false),
                (FieldGroup::Input, "data", true)
            ]
        );
    }

    #[test]
    fn different_fields_never_give_the_same_bytes() {
        assert_ne!(manifest(r#"{"a": "b", "c": "d"}"#).key(), manifest(r#"{"a": "bc", "": "d"}"#).key());
    }
}
