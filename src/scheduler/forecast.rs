//! Forecasts of what stages will need. Cached inputs are inspected; what is not cached is forecast from the stages before it.

use std::{collections::BTreeMap, thread};

use imp_stages::{
    KindVisitor, Stage,
    contract::forecast::{Ahead, Forecast, Outlook},
    model_folder, visit,
};
use serde::Deserialize;

use super::{Planner, Verdict};
use crate::{
    pipeline::StageDecl,
    store::{Digest, StoreError},
};

/// Most stages that are asked at the same time.
const AT_ONCE: usize = 16;

impl Planner<'_> {
    /// The forecast for the stage of each verdict, as far as it is known.
    pub(crate) fn forecast(&self, verdicts: &[(usize, Verdict)]) -> Result<Vec<Forecast>, StoreError> {
        let mut first = self.ask_first(verdicts);
        let mut outlooks: BTreeMap<usize, Outlook> = BTreeMap::new();
        let mut cached: BTreeMap<usize, Digest> = BTreeMap::new();
        let mut found = Vec::with_capacity(verdicts.len());
        for (index, verdict) in verdicts {
            if let Verdict::Hit { key } = verdict {
                cached.insert(*index, *key);
                found.push(Forecast::default());
                continue;
            }
            // Artifacts are inspected only if a stage that will run needs them.
            for from in self.graph.inputs(*index) {
                if let Some(key) = cached.remove(&from) {
                    outlooks.insert(from, self.cached(key)?);
                }
            }
            let asked = first.remove(index);
            let forecast = asked.unwrap_or_else(|| Self::ask(&self.pipeline.stages[*index], &outlooks));
            outlooks.insert(*index, forecast.outlook.clone());
            found.push(forecast);
        }
        Ok(found)
    }

    /// Asks the stages without inputs, several at a time: they may ask a server.
    fn ask_first(&self, verdicts: &[(usize, Verdict)]) -> BTreeMap<usize, Forecast> {
        let stages = verdicts.iter().filter(|(_, verdict)| !matches!(verdict, Verdict::Hit { .. }));
        let stages = stages.map(|(index, _)| (*index, &self.pipeline.stages[*index]));
        let stages: Vec<_> = stages.filter(|(_, stage)| stage.inputs.is_empty()).collect();
        let ask = |part: &[(usize, &StageDecl)]| -> Vec<_> {
            thread::scope(|scope| {
                let ask = |(index, stage)| (index, scope.spawn(move || forecast(stage, BTreeMap::new())));
                let asked: Vec<_> = part.iter().copied().map(ask).collect();
                asked.into_iter().filter_map(|(index, answer)| Some((index, answer.join().ok()?))).collect()
            })
        };
        stages.chunks(AT_ONCE).flat_map(ask).collect()
    }

    fn cached(&self, key: Digest) -> Result<Outlook, StoreError> {
        let Some(receipt) = self.store.receipt(key)? else { return Ok(Outlook::default()) };
        let folder = self.store.tree_folder(receipt.output.digest)?;
        Ok(folder.map(|folder| model_folder::outlook(&folder)).unwrap_or_default())
    }

    fn ask(stage: &StageDecl, outlooks: &BTreeMap<usize, Outlook>) -> Forecast {
        let outlook = |(name, from)| Some((String::as_str(name), outlooks.get(from)?));
        let inputs = stage.inputs.iter().filter_map(outlook).collect();
        forecast(stage, inputs)
    }
}

fn forecast(stage: &StageDecl, inputs: BTreeMap<&str, &Outlook>) -> Forecast {
    let ahead = Ahead { runtime: &stage.runtime, seed: stage.seed, sources: &stage.sources, inputs };
    visit(stage.kind, Ask { config: &stage.config, ahead: &ahead }).unwrap_or_default()
}

struct Ask<'a> {
    config: &'a serde_json::Value,
    ahead: &'a Ahead<'a>,
}

impl KindVisitor for Ask<'_> {
    type Output = Forecast;

    fn visit<S: Stage>(self) -> Forecast {
        // The pipeline has been checked, so the configuration can be read.
        S::Config::deserialize(self.config).map(|config| S::forecast(&config, self.ahead)).unwrap_or_default()
    }
}
