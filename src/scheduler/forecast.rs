//! Forecasts the resources that stages will need. A cached input is inspected; the forecast of an input that is not cached
//! predicts its properties.

use std::{collections::BTreeMap, thread};

use imp_stages::{
    KindVisitor, Stage,
    contract::device::Device,
    contract::forecast::{Ahead, Forecast, Outlook},
    model_folder, visit,
};
use serde::Deserialize;

use super::{Planner, Verdict};
use crate::{
    machine::Machine,
    pipeline::StageDecl,
    store::{Digest, StoreError},
};

/// The most forecasts to make at the same time.
const AT_ONCE: usize = 16;

impl Planner<'_> {
    /// The forecast for the stage of each verdict, in the same order. Empty for cached stages.
    pub(crate) fn forecast(
        &self,
        verdicts: &[(usize, Verdict)],
        machine: &Machine,
    ) -> Result<Vec<Forecast>, StoreError> {
        let mut independent = self.forecast_independent(verdicts, machine);
        let mut outlooks: BTreeMap<usize, Outlook> = BTreeMap::new();
        let mut cached: BTreeMap<usize, Digest> = BTreeMap::new();
        let mut found = Vec::with_capacity(verdicts.len());
        for (index, verdict) in verdicts {
            if let Verdict::Hit { key } = verdict {
                cached.insert(*index, *key);
                found.push(Forecast::default());
                continue;
            }
            let is_remote = matches!(verdict, Verdict::Remote { .. });
            // Artifacts are inspected only if a stage that will run needs them.
            for from in self.graph.inputs(*index) {
                if let Some(key) = cached.remove(&from) {
                    outlooks.insert(from, self.cached(key)?);
                }
            }
            let forecast = independent
                .remove(index)
                .unwrap_or_else(|| Self::forecast_from(&self.pipeline.stages[*index], &outlooks, machine));
            outlooks.insert(*index, forecast.outlook.clone());
            // What will be there is as it would be made; it takes nothing.
            found.push(if is_remote { Forecast::default() } else { forecast });
        }
        Ok(found)
    }

    /// The forecasts of stages without inputs, several at a time because they may query a server.
    fn forecast_independent(&self, verdicts: &[(usize, Verdict)], machine: &Machine) -> BTreeMap<usize, Forecast> {
        let stages = verdicts.iter().filter(|(_, verdict)| !matches!(verdict, Verdict::Hit { .. }));
        let stages = stages.map(|(index, _)| (*index, &self.pipeline.stages[*index]));
        let stages: Vec<_> = stages.filter(|(_, stage)| stage.inputs.is_empty()).collect();
        let forecasts = |part: &[(usize, &StageDecl)]| -> Vec<_> {
            thread::scope(|scope| {
                let start = |(index, stage)| (index, scope.spawn(move || forecast(stage, BTreeMap::new(), machine)));
                let started: Vec<_> = part.iter().copied().map(start).collect();
                started.into_iter().filter_map(|(index, thread)| Some((index, thread.join().ok()?))).collect()
            })
        };
        stages.chunks(AT_ONCE).flat_map(forecasts).collect()
    }

    /// The properties of a cached artifact.
    fn cached(&self, key: Digest) -> Result<Outlook, StoreError> {
        let Some(receipt) = self.store.receipt(key)? else { return Ok(Outlook::default()) };
        let (folder, _) = self.store.tree_folder(receipt.output.digest)?.into_parts();
        Ok(folder.map(|folder| model_folder::outlook(&folder)).unwrap_or_default())
    }

    /// The forecast of a stage whose inputs have these `outlooks`.
    fn forecast_from(stage: &StageDecl, outlooks: &BTreeMap<usize, Outlook>, machine: &Machine) -> Forecast {
        let outlook = |(name, from)| Some((String::as_str(name), outlooks.get(from)?));
        let inputs = stage.inputs.iter().filter_map(outlook).collect();
        forecast(stage, inputs, machine)
    }
}

fn forecast(stage: &StageDecl, inputs: BTreeMap<&str, &Outlook>, machine: &Machine) -> Forecast {
    let device = machine.device_for(stage);
    let gpu_memory = machine.gpu_memory.filter(|_| device == Device::Cuda && machine.runs_here(stage));
    let ahead =
        Ahead { runtime: &stage.runtime, device, gpu_memory, seed: stage.seed, sources: &stage.sources, inputs };
    visit(stage.kind, MakeForecast { config: &stage.config, ahead: &ahead }).unwrap_or_default()
}

struct MakeForecast<'a> {
    config: &'a serde_json::Value,
    ahead: &'a Ahead<'a>,
}

impl KindVisitor for MakeForecast<'_> {
    type Output = Forecast;

    fn visit<S: Stage>(self) -> Forecast {
        // The pipeline has been checked, so the configuration can be read.
        S::Config::deserialize(self.config).map(|config| S::forecast(&config, self.ahead)).unwrap_or_default()
    }
}
