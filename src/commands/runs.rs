//! `imp-flow runs`.

use std::{collections::HashMap, process::ExitCode};

use serde_json::{Value, json};

use super::session::existing_store;
use crate::{
    cli::Common,
    failure::Failure,
    report,
    store::{Digest, RunRecord, Store, StoreError},
    view::run_of_today,
};

/// Lists past runs.
pub(crate) fn runs(common: &Common) -> Result<ExitCode, Failure> {
    let (_, store) = existing_store(common)?;
    let runs = store.runs()?;
    if common.json {
        let mut stages = Stages { store: &store, known: HashMap::new() };
        for run in &runs {
            report::run_as_json(&stages.complete(&run_of_today(run.clone(), &store))?);
        }
    } else {
        report::runs(&runs);
    }
    Ok(ExitCode::SUCCESS)
}

/// What receipts say about the stages of runs, by key. Many runs have the same ones.
struct Stages<'a> {
    store: &'a Store,
    known: HashMap<Digest, (Value, Value)>,
}

impl Stages<'_> {
    /// A run with the configuration of each stage and the absolute path of its metrics. Both are null if its receipt is gone, and the path is
    /// if it has none.
    fn complete(&mut self, run: &RunRecord) -> Result<Value, StoreError> {
        let mut run_json = json!(run);
        for (at, point) in run.points.iter().enumerate() {
            for (number, stage) in point.stages.iter().enumerate() {
                let (config, metrics) = stage.key.map_or(Ok(Default::default()), |key| self.find(key))?;
                let stage = &mut run_json["points"][at]["stages"][number];
                stage["config"] = config;
                stage["metrics"] = metrics;
            }
        }
        Ok(run_json)
    }

    fn find(&mut self, key: Digest) -> Result<(Value, Value), StoreError> {
        if let Some(found) = self.known.get(&key) {
            return Ok(found.clone());
        }
        let found = match self.store.receipt(key)? {
            Some(receipt) => {
                let metrics = receipt.metrics.and_then(|digest| self.store.object(digest).canonicalize().ok());
                (receipt.manifest.config, json!(metrics))
            }
            None => (Value::Null, Value::Null),
        };
        self.known.insert(key, found.clone());
        Ok(found)
    }
}
