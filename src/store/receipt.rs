//! Receipts: what a stage produced, and from what. A cache hit needs a receipt.

use std::{collections::BTreeMap, fs, path::PathBuf};

use imp_stages::contract::secret::hide_secrets;
use serde::{Deserialize, Serialize};

use super::{
    Digest, Hit, Index, Manifest, Store, TreeRef,
    error::{Result, StoreError},
    files::{files, remove_all},
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
    pub(crate) timing: Timing,
    pub(crate) host: String,
}

impl Receipt {
    pub(crate) fn new(provenance: Provenance, product: Product) -> Self {
        let Provenance { manifest, pipeline, stage, reason, previous, made_by } = provenance;
        let Product { output, results, log, metrics, events, peak_memory, timing, host } = product;
        Self {
            manifest,
            key: None,
            output,
            results,
            log,
            metrics,
            events,
            peak_memory,
            pipeline,
            stage,
            reason,
            previous,
            timing,
            host,
            made_by,
        }
    }

    /// The key of the result.
    pub(crate) fn key(&self) -> Digest {
        self.key.unwrap_or_else(|| self.manifest.key())
    }

    /// Reads a file. `None` if it is damaged.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(unseal(bytes)?).ok()
    }

    /// The receipt as it may be stored and shared.
    fn without_secrets(&self) -> Self {
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
        Self {
            key: receipt.key(),
            output: receipt.output,
            log: receipt.log,
            metrics: receipt.metrics,
            events: receipt.events,
            results: receipt.results,
            peak_memory: receipt.peak_memory,
            seconds: receipt.timing.seconds,
        }
    }
}

/// When the stage finished, and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timing {
    /// Seconds since 1970.
    pub(crate) finished: u64,
    /// Seconds of the last attempt only; a resumed stage took longer in total.
    pub(crate) seconds: f64,
}

impl Store {
    /// The receipt for `key`, if there is one. A damaged receipt counts as missing, so that the stage runs again.
    pub(crate) fn receipt(&self, key: Digest) -> Result<Option<Receipt>> {
        let path = self.receipt_path(key);
        match fs::read(&path) {
            Ok(bytes) => {
                let receipt = Receipt::parse(&bytes).filter(|receipt| receipt.key() == key);
                if receipt.is_none() {
                    tracing::warn!("{} is damaged: its stage runs again when it is needed", path.display());
                }
                Ok(receipt)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
        }
    }

    /// The result under `key`, with the folder of its tree if that is complete. `None` if there is no receipt. The index saves
    /// reading the receipt.
    pub(crate) fn find(&self, key: Digest, index: Option<&Index>) -> Result<Option<(Hit, TreeFolder)>> {
        let path = self.receipt_path(key);
        let stamp = match fs::metadata(&path) {
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
            let receipt = Receipt::parse(&fs::read(path).ok()?)?;
            Some((receipt.key(), receipt))
        })
    }

    pub(super) fn receipt_path(&self, key: Digest) -> PathBuf {
        self.path("receipts", key).with_extension("json")
    }
}
