//! The memory that stages will take: what is in the cache is looked at, what is not is asked of the stages before.

use std::collections::BTreeMap;

use imp_stages::{
    KindVisitor, Stage,
    forecast::{Ahead, Forecast, MemoryForecast, Outlook},
    visit,
};
use serde::Deserialize;

use super::{Planner, Verdict};
use crate::{
    pipeline::StageDecl,
    store::{Digest, StoreError},
};

impl Planner<'_> {
    /// For each verdict the memory that its stage will take, where that is known.
    pub(crate) fn memory(&self, verdicts: &[(usize, Verdict)]) -> Result<Vec<Option<MemoryForecast>>, StoreError> {
        let mut outlooks: BTreeMap<usize, Outlook> = BTreeMap::new();
        let mut cached: BTreeMap<usize, Digest> = BTreeMap::new();
        let mut found = Vec::with_capacity(verdicts.len());
        for (index, verdict) in verdicts {
            if let Verdict::Hit { key } = verdict {
                cached.insert(*index, *key);
                found.push(None);
                continue;
            }
            // Artifacts are looked at only where a stage that will run needs them.
            for from in self.graph.inputs(*index) {
                if let Some(key) = cached.remove(&from) {
                    outlooks.insert(from, self.cached(key)?);
                }
            }
            let Forecast { outlook, memory } = Self::ask(&self.pipeline.stages[*index], &outlooks);
            outlooks.insert(*index, outlook);
            found.push(memory);
        }
        Ok(found)
    }

    fn cached(&self, key: Digest) -> Result<Outlook, StoreError> {
        let Some(receipt) = self.store.receipt(key)? else { return Ok(Outlook::default()) };
        let folder = self.store.tree_folder(receipt.output.digest)?;
        Ok(folder.map(|folder| Outlook::of_folder(&folder)).unwrap_or_default())
    }

    fn ask(stage: &StageDecl, outlooks: &BTreeMap<usize, Outlook>) -> Forecast {
        let outlook = |(name, from)| Some((String::as_str(name), outlooks.get(from)?));
        let inputs = stage.inputs.iter().filter_map(outlook).collect();
        let ahead = Ahead { runtime: &stage.runtime, seed: stage.seed, sources: &stage.sources, inputs };
        visit(stage.kind, Ask { config: &stage.config, ahead: &ahead }).unwrap_or_default()
    }
}

struct Ask<'a> {
    config: &'a serde_json::Value,
    ahead: &'a Ahead<'a>,
}

impl KindVisitor for Ask<'_> {
    type Output = Forecast;

    fn visit<S: Stage>(self) -> Forecast {
        // The pipeline has been checked: its configurations can be read.
        S::Config::deserialize(self.config).map(|config| S::forecast(&config, self.ahead)).unwrap_or_default()
    }
}
