//! The scales of figures: results that an earlier version measured on another one are shown on that of today. Independent of where they
//! are shown.

use std::collections::BTreeMap;

use imp_stages::kinds;

use crate::store::{Manifest, Receipt, RunRecord, Store};

/// From this version on, the shares of `eval` are in per cent, also those of POPE, whose official script reports fractions.
const IN_PER_CENT: u32 = 9;

/// The figures of a result.
pub(crate) fn figures(receipt: &Receipt) -> BTreeMap<String, f64> {
    scaled(&receipt.manifest, &receipt.results)
}

fn scaled(manifest: &Manifest, results: &BTreeMap<String, f64>) -> BTreeMap<String, f64> {
    let is_in_fractions =
        manifest.kind == "eval" && manifest.version < IN_PER_CENT && manifest.config["benchmark"] == "pope";
    let is_share = |name: &str| kinds::figure(&manifest.kind, name).is_some_and(|figure| figure.unit == "%");
    let scaled = |(name, value): (&String, &f64)| {
        (name.clone(), if is_in_fractions && is_share(name) { value * 100.0 } else { *value })
    };
    results.iter().map(scaled).collect()
}

/// A run with the figures of its stages on the scales of today. Those without a receipt stay as they are: nobody knows their version.
pub(crate) fn run_of_today(mut run: RunRecord, store: &Store) -> RunRecord {
    for stage in run.points.iter_mut().flat_map(|point| &mut point.stages) {
        let key = stage.key.filter(|_| stage.kind == "eval" && !stage.results.is_empty());
        let Some(receipt) = key.and_then(|key| store.receipt(key).ok().flatten()) else { continue };
        stage.results = scaled(&receipt.manifest, &stage.results);
    }
    run
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        store::{Product, Provenance, RunPoint, RunStage, StageState, TreeRef},
        view::ChangesView,
    };

    /// A run with one evaluation by a version of `eval`.
    fn run(store: &Store, version: u32, benchmark: &str, accuracy: f64) -> RunRecord {
        let config = serde_json::json!({"benchmark": benchmark});
        let (sources, inputs) = (BTreeMap::new(), BTreeMap::new());
        let manifest = Manifest { kind: "eval".into(), version, seed: 1, config, sources, inputs };
        let (pipeline, stage) = ("p".into(), "pope".into());
        let provenance =
            Provenance { manifest, pipeline, stage, reason: String::new(), previous: None, made_by: "0".into() };
        let results = BTreeMap::from([("accuracy".to_string(), accuracy)]);
        let receipt = Receipt::new(provenance, Product { results: results.clone(), ..Product::of(TreeRef::default()) });
        store.write_receipt(&receipt).unwrap();
        let stage = RunStage {
            name: "pope".into(),
            kind: "eval".into(),
            state: StageState::Ran,
            key: Some(receipt.key()),
            output: None,
            seconds: None,
            results,
            began: None,
            ended: None,
            failure: None,
        };
        let point = RunPoint { label: String::new(), values: Vec::new(), stages: vec![stage] };
        let mut run: RunRecord = serde_json::from_value(serde_json::json!({
            "id": "1", "name": null, "pipeline": "p", "file": "p.toml", "overrides": [], "sweep": false, "started": 0.0, "seconds": 1.0,
            "ending": "done", "host": "h", "made_by": "0", "document": "", "sources": {}, "points": [],
        }))
        .unwrap();
        run.points.push(point);
        run
    }

    #[test]
    fn pope_of_before_it_was_in_per_cent_is_in_per_cent_too() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        for (version, benchmark, value, expected) in
            [(8, "pope", 0.928, 92.8), (9, "pope", 92.8, 92.8), (8, "gqa", 55.0, 55.0)]
        {
            let run = run_of_today(run(&store, version, benchmark, value), &store);
            let results = &run.points[0].stages[0].results;
            assert!((results["accuracy"] - expected).abs() < 1e-9, "{version} {benchmark}");
            let receipt = store.receipt(run.points[0].stages[0].key.unwrap()).unwrap().unwrap();
            assert!((figures(&receipt)["accuracy"] - expected).abs() < 1e-9, "{version} {benchmark}");
        }
        let [old, new] =
            [(8, 0.75), (9, 75.0)].map(|(version, value)| run_of_today(run(&store, version, "pope", value), &store));
        assert!(ChangesView::new(&new, &old).figures.is_empty(), "nothing has moved");
    }
}
