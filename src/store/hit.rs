//! The summary of a receipt: the part that a run needs, small enough for the index.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{digest::Digest, tree::TreeRef};

/// A cached result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Hit {
    pub(crate) key: Digest,
    pub(crate) output: TreeRef,
    pub(crate) log: Option<Digest>,
    pub(crate) metrics: Option<Digest>,
    pub(crate) events: Option<Digest>,
    pub(crate) results: BTreeMap<String, f64>,
    pub(crate) peak_memory: Option<u64>,
    pub(crate) seconds: f64,
    /// Warnings about the result.
    pub(crate) cautions: Vec<String>,
    /// Whether the output may lack something.
    pub(crate) unchecked: bool,
    /// The machine and the processor, if it was computed on a CPU.
    pub(crate) cpu: Option<String>,
}
