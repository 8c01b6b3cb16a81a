//! Whether a stage's artifact is in the cache, and if not, why. The rule for a cache hit is defined here only.

use std::{fmt, path::PathBuf};

use serde::{Serialize, Serializer};

use crate::store::{Change, Digest, FieldGroup, Hit, Index, Manifest, Mended, Store, StoreError};

/// Why a stage has to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MissReason {
    /// The stage has never run.
    New,
    /// These fields differ from the stage's last receipt.
    Changed(Vec<Change>),
    /// There is a receipt, but parts of the artifact are missing.
    Lost,
    /// It could not be checked whether the last result was complete.
    Unchecked,
    /// The user requested it.
    Forced,
}

/// What the cache has under a key.
#[derive(Debug)]
pub(super) enum Found {
    /// The artifact, and the folder of its tree.
    Hit(Box<Hit>, PathBuf),
    Miss(MissReason),
}

/// The result of looking up a stage whose input contents are known.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) key: Digest,
    pub(super) manifest: Manifest,
    pub(super) found: Found,
    /// What was wrong with its artifact and was put right.
    pub(super) mended: Option<Mended>,
}

impl Lookup {
    /// The cached artifact, if there is one.
    pub(super) fn hit(&self) -> Option<&Hit> {
        match &self.found {
            Found::Hit(hit, _) => Some(hit),
            Found::Miss(_) => None,
        }
    }
}

impl Found {
    /// Looks up a key. It is a hit if there is a receipt and its tree is complete, unless the stage is `forced` to run. The index
    /// only saves reading the receipt. Also returns what was put right in the tree.
    pub(super) fn look_up(
        store: &Store,
        index: Option<&Index>,
        key: Digest,
        forced: bool,
    ) -> Result<(Self, Option<Mended>), StoreError> {
        if forced {
            return Ok((Self::Miss(MissReason::Forced), None));
        }
        let Some((hit, tree)) = store.find(key, index)? else { return Ok((Self::Miss(MissReason::New), None)) };
        let (folder, mended) = tree.into_parts();
        let found = match folder {
            _ if hit.unchecked => Self::Miss(MissReason::Unchecked),
            Some(folder) => Self::Hit(Box::new(hit), folder),
            None => Self::Miss(MissReason::Lost),
        };
        Ok((found, mended))
    }
}

impl MissReason {
    /// How records and JSON write [`MissReason::New`].
    pub(crate) const NEW: &str = "new";
    /// How records and JSON write [`MissReason::Forced`].
    pub(crate) const FORCED: &str = "forced";
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str(Self::NEW),
            Self::Lost => f.write_str("its artifact is gone from the cache"),
            Self::Unchecked => f.write_str("it could not be checked whether its last result was complete"),
            Self::Forced => f.write_str(Self::FORCED),
            Self::Changed(changes) => write_changes(f, changes),
        }
    }
}

impl Serialize for MissReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `config: learning_rate 0.001 -> 0.0005; input data: content changed`.
fn write_changes(f: &mut fmt::Formatter<'_>, changes: &[Change]) -> fmt::Result {
    if changes.is_empty() {
        return f.write_str("no longer in the cache");
    }
    for (position, change) in changes.iter().enumerate() {
        if position > 0 {
            f.write_str("; ")?;
        }
        write!(f, "{change}")?;
    }
    Ok(())
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, name, old, new } = self;
        match (*group, old, new) {
            (FieldGroup::Config, Some(old), Some(new)) => write!(f, "config: {name} {old} -> {new}"),
            (FieldGroup::Config, None, Some(new)) => write!(f, "config: {name} {new} is new"),
            (FieldGroup::Config, Some(old), None) => write!(f, "config: {name} {old} is gone"),
            (FieldGroup::Own, Some(old), Some(new)) if name == "version" => {
                write!(f, "imp-flow: stage version {old} -> {new}")
            }
            (FieldGroup::Own, Some(old), Some(new)) => write!(f, "{name} {old} -> {new}"),
            (group, Some(_), Some(_)) => write!(f, "{group} {name}: content changed"),
            (group, None, _) => write!(f, "{group} {name} is new"),
            (group, _, None) => write!(f, "{group} {name} is gone"),
        }
    }
}
