//! Receipts: what a stage produced, and from what. A cache hit needs a receipt.

use std::{collections::BTreeMap, fs, path::PathBuf};

use imp_stages::contract::{
    device::{Device, Environment},
    secret::hide_secrets,
    side_file,
};
use serde::{Deserialize, Serialize};

use super::{
    Digest, Hit, Index, Manifest, Store, TreeRef,
    error::{Result, StoreError},
    files::{files, look_up, read, remove_all},
    mend::TreeFolder,
    seal::{seal, unseal},
    stamp::Stamp,
};

/// The record of a stage that finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) manifest: Manifest,
    /// The key, where the manifest on disk does not show all of what it is computed from: passwords and tokens are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Digest>,
    pub(crate) output: TreeRef,
    /// The final metrics of the stage.
    pub(crate) results: BTreeMap<String, f64>,
    /// The stage's log, and the lines of its `metrics.jsonl`, as objects.
    pub(crate) log: Option<Digest>,
    pub(crate) metrics: Option<Digest>,
    /// The same metrics for TensorBoard.
    #[serde(default)]
    pub(crate) events: Option<Digest>,
    /// Peak memory of its process in bytes, where the system reports it.
    #[serde(default)]
    pub(crate) peak_memory: Option<u64>,
    /// What it computed on, if it computed. Not part of any digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) environment: Option<Environment>,
    /// Warnings about the result, which are shown whenever it is used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) cautions: Vec<String>,
    /// Whether the output may lack something. Such a receipt is a record, and never a cache hit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unchecked: bool,
    /// The pipeline and stage for which it ran. Others may use the result.
    pub(crate) pipeline: String,
    pub(crate) stage: String,
    /// Why it ran, as text.
    #[serde(default)]
    pub(crate) reason: String,
    /// The previous key of the stage.
    #[serde(default)]
    pub(crate) previous: Option<Digest>,
    pub(crate) timing: Timing,
    pub(crate) host: String,
    /// The version of imp-flow.
    pub(crate) made_by: String,
    /// Where it came from, if it was not made in this cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
}

/// Where a result came from that was not made here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    /// The address of the remote cache.
    pub(crate) from: String,
    /// When it was taken in, in seconds since 1970.
    pub(crate) at: u64,
}

/// The part of a receipt that is known before the stage runs.
#[derive(Debug, Clone)]
pub(crate) struct Provenance {
    pub(crate) manifest: Manifest,
    pub(crate) pipeline: String,
    pub(crate) stage: String,
    pub(crate) reason: String,
    pub(crate) previous: Option<Digest>,
    pub(crate) made_by: String,
}

/// The part of a receipt that is known after the stage has run.
#[derive(Debug, Clone)]
pub(crate) struct Product {
    pub(crate) output: TreeRef,
    pub(crate) results: BTreeMap<String, f64>,
    pub(crate) log: Option<Digest>,
    pub(crate) metrics: Option<Digest>,
    pub(crate) events: Option<Digest>,
    pub(crate) peak_memory: Option<u64>,
    pub(crate) environment: Option<Environment>,
    pub(crate) cautions: Vec<String>,
    pub(crate) unchecked: bool,
    pub(crate) timing: Timing,
    pub(crate) host: String,
}

#[cfg(test)]
impl Product {
    /// A product that is nothing but its output.
    pub(crate) fn of(output: TreeRef) -> Self {
        Self {
            output,
            results: BTreeMap::new(),
            log: None,
            metrics: None,
            events: None,
            peak_memory: None,
            environment: None,
            cautions: Vec::new(),
            unchecked: false,
            timing: Timing { finished: super::runs::now() as u64, seconds: 0.0, sessions: 1 },
            host: String::new(),
        }
    }
}

impl Receipt {
    pub(crate) fn new(provenance: Provenance, product: Product) -> Self {
        let Provenance { manifest, pipeline, stage, reason, previous, made_by } = provenance;
        let Product {
            output,
            results,
            log,
            metrics,
            events,
            peak_memory,
            environment,
            cautions,
            unchecked,
            timing,
            host,
        } = product;
        Self {
            manifest,
            key: None,
            output,
            results,
            log,
            metrics,
            events,
            peak_memory,
            environment,
            cautions,
            unchecked,
            pipeline,
            stage,
            reason,
            previous,
            timing,
            host,
            made_by,
            origin: None,
        }
    }

    /// The key of the result.
    pub(crate) fn key(&self) -> Digest {
        self.key.unwrap_or_else(|| self.manifest.key())
    }

    /// Whether its manifest on disk does not give its key.
    pub(super) fn has_own_key(&self) -> bool {
        self.key.is_some()
    }

    /// Reads a file. `None` if it is damaged.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(unseal(bytes)?).ok()
    }

    /// The receipt as it may be stored and shared.
    pub(super) fn without_secrets(&self) -> Self {
        let mut stored = self.clone();
        stored.manifest.hide_secrets();
        stored.reason = hide_secrets(&self.reason).into_owned();
        if stored.manifest != self.manifest {
            stored.key = Some(self.key());
        }
        stored
    }

    /// `pipeline/stage`, for messages.
    pub(super) fn owner(&self) -> String {
        format!("{}/{}", self.pipeline, self.stage)
    }
}

impl From<Receipt> for Hit {
    fn from(receipt: Receipt) -> Self {
        let on_cpu = receipt.environment.as_ref().filter(|environment| environment.device == Device::Cpu);
        Self {
            cpu: on_cpu.map(|environment| format!("{} ({})", receipt.host, environment.name)),
            key: receipt.key(),
            output: receipt.output,
            log: receipt.log,
            metrics: receipt.metrics,
            events: receipt.events,
            results: receipt.results,
            peak_memory: receipt.peak_memory,
            seconds: receipt.timing.seconds,
            cautions: receipt.cautions,
            unchecked: receipt.unchecked,
        }
    }
}

/// When the stage finished, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timing {
    /// Seconds since 1970.
    pub(crate) finished: u64,
    /// Seconds of all sessions whose work is in the result. Receipts of older versions have those of the last one.
    pub(crate) seconds: f64,
    /// How many sessions that were: each resume begins one.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub(crate) sessions: u32,
}

fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &u32) -> bool {
    *count == 1
}

impl Store {
    /// The receipt for `key`, if there is one. A damaged receipt counts as missing, so that the stage runs again.
    pub(crate) fn receipt(&self, key: Digest) -> Result<Option<Receipt>> {
        let path = self.receipt_path(key);
        match read(&path) {
            Ok(bytes) => {
                let receipt = Receipt::parse(&bytes).filter(|receipt| receipt.key() == key);
                if receipt.is_none() {
                    tracing::warn!("{} is damaged: its stage runs again when it is needed", path.display());
                }
                Ok(receipt)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) if path.is_file() => Err(StoreError::Io { path, source }),
            Err(_) => {
                // What is no file is damage, too. Where it can't be moved, writing the new receipt says so.
                if side_file::make_room(&path).is_ok() {
                    tracing::warn!("{}", side_file::warning(&path));
                }
                Ok(None)
            }
        }
    }

    /// The result under `key`, with the folder of its tree if that is complete. `None` if there is no receipt. The index saves
    /// reading the receipt.
    pub(crate) fn find(&self, key: Digest, index: Option<&Index>) -> Result<Option<(Hit, TreeFolder)>> {
        let path = self.receipt_path(key);
        let stamp = match look_up(&path).and_then(|_| fs::metadata(&path)) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        let hit = if let Some(hit) = index.and_then(|index| index.hit(key, stamp)) {
            hit
        } else {
            let Some(receipt) = self.receipt(key)? else { return Ok(None) };
            let hit = Hit::from(receipt);
            if let Some(index) = index {
                index.set_hit(key, stamp, &hit);
            }
            hit
        };
        let folder = self.tree_folder(hit.output.digest)?;
        Ok(Some((hit, folder)))
    }

    /// Removes a receipt.
    pub(crate) fn remove_receipt(&self, key: Digest) -> Result<()> {
        remove_all(&self.receipt_path(key))
    }

    /// Writes a receipt. Its objects must be in the store already.
    pub(crate) fn write_receipt(&self, receipt: &Receipt) -> Result<()> {
        let path = self.receipt_path(receipt.key());
        let text = seal(&receipt.without_secrets())
            .map_err(|error| StoreError::Refused { path: path.clone(), what: error.to_string() })?;
        self.write(&path, &text)
    }

    /// All readable receipts.
    pub(crate) fn receipts(&self) -> impl Iterator<Item = (Digest, Receipt)> + '_ {
        files(&self.root.join("receipts")).filter_map(|path| {
            let receipt = Receipt::parse(&read(&path).ok()?)?;
            Some((receipt.key(), receipt))
        })
    }

    pub(super) fn receipt_path(&self, key: Digest) -> PathBuf {
        self.path("receipts", key).with_extension("json")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::store::tree::Tree;

    fn receipt(source: &str) -> Receipt {
        let config = serde_json::json!({ "source": source });
        let (kind, sources) = ("download".into(), BTreeMap::new());
        let manifest = Manifest { kind, version: 1, seed: 42, config, sources, inputs: BTreeMap::new() };
        let reason = format!("config: source \"a\" -> {source:?}");
        let (pipeline, stage) = ("p".into(), "s".into());
        let provenance = Provenance { manifest, pipeline, stage, reason, previous: None, made_by: "0".into() };
        let product = Product {
            results: BTreeMap::from([("accuracy".into(), 0.1)]),
            peak_memory: Some(1),
            ..Product::of(TreeRef::default())
        };
        Receipt::new(provenance, product)
    }

    #[test]
    fn a_receipt_without_its_secrets_is_found_under_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        for (source, is_secret) in [("https://a.org/x?token=a-word", true), ("https://a.org/x?page=a-word", false)] {
            let receipt = receipt(source);
            let key = receipt.manifest.key();
            store.write_receipt(&receipt).unwrap();
            let text = fs::read_to_string(store.receipt_path(key)).unwrap();
            assert_eq!(!text.contains("a-word"), is_secret, "{text}");
            let found = store.receipt(key).unwrap().unwrap();
            assert_eq!((found.key(), found.results), (key, receipt.results));
            assert!(found.manifest.changes_since(&receipt.manifest).is_empty());
            assert!(store.verify(|_, _| ()).is_ok());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Whatever stands in a receipt or a listing, reading it ends, and a changed receipt is not believed.
        #[test]
        fn hostile_bytes_do_no_harm(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..3),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let whole = seal(&receipt("a")).unwrap();
            let mut changed = whole.clone();
            for (at, with) in changes {
                let at = at.index(changed.len());
                changed[at] = with;
            }
            if let Some(read) = Receipt::parse(&changed) {
                // Only the name of the checksum, or white space at the end, can have changed.
                prop_assert_eq!(read, receipt("a"));
            }
            let _ = Receipt::parse(&noise);
            let _ = Tree::parse(&String::from_utf8_lossy(&noise));
        }
    }
}
