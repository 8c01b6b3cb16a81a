//! Curves of a stage: its metrics by step. Independent of what they mean.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use serde::Serialize;
use serde_json::{Map, Value};

/// A metric by step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// The number of steps with a value. If there are more than `steps`, the curve was downsampled.
    pub(crate) points: usize,
    /// The number of steps whose value is no number, as the loss of a run that diverged.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) not_finite: usize,
    pub(crate) steps: Vec<u64>,
    /// Rounded to six digits.
    pub(crate) values: Vec<f64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// The longest line, and the longest file, in bytes: far above what stages write.
const LONGEST_LINE: u64 = 1 << 20;
const LONGEST_FILE: u64 = 1 << 28;

/// The curves in a file of metrics, by name, each with at most `most` points. Reads up to the first line that is damaged.
pub(super) fn read(path: &Path, most: usize) -> io::Result<Vec<Curve>> {
    let mut reader = BufReader::new(File::open(path)?).take(LONGEST_FILE);
    let (mut curves, mut line) = (BTreeMap::<String, Curve>::new(), Vec::new());
    while (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
        let Ok(values) = serde_json::from_slice::<Map<String, Value>>(&line) else { break };
        let Some(step) = values.get("step").and_then(Value::as_u64) else { break };
        for (name, value) in values.iter().filter(|(name, _)| !["step", "time"].contains(&name.as_str())) {
            if !curves.contains_key(name) {
                curves.insert(name.clone(), Curve::empty(name));
            }
            let Some(curve) = curves.get_mut(name) else { continue };
            match value.as_f64().filter(|value| value.is_finite()) {
                Some(value) => {
                    curve.points += 1;
                    curve.steps.push(step);
                    curve.values.push(value);
                }
                None => curve.not_finite += 1,
            }
        }
        line.clear();
    }
    // A single point is no curve, but a value that is no number must be seen.
    let mut curves: Vec<Curve> =
        curves.into_values().filter(|curve| curve.points > 1 || curve.not_finite > 0).collect();
    for curve in &mut curves {
        curve.downsample(most);
    }
    Ok(curves)
}

impl Curve {
    fn empty(name: &str) -> Self {
        Self { name: name.into(), points: 0, not_finite: 0, steps: Vec::new(), values: Vec::new() }
    }

    /// Keeps at most `most` points (at least 4): the first, the last, and the lowest and highest value of stretches of equal length
    /// between them. The same curve always gives the same points.
    fn downsample(&mut self, most: usize) {
        let count = self.values.len();
        if count > most {
            let mut kept = vec![0];
            let stretches = (most.max(4) - 2) / 2;
            for stretch in 0..stretches {
                let bound = |number: usize| 1 + number * (count - 2) / stretches;
                let inner = bound(stretch)..bound(stretch + 1);
                let by_value = |a: &usize, b: &usize| self.values[*a].total_cmp(&self.values[*b]).then(b.cmp(a));
                let (low, high) = (inner.clone().min_by(by_value), inner.max_by(by_value));
                let mut ends: Vec<usize> = low.into_iter().chain(high).collect();
                ends.sort_unstable();
                ends.dedup();
                kept.extend(ends);
            }
            kept.push(count - 1);
            self.steps = kept.iter().map(|index| self.steps[*index]).collect();
            self.values = kept.iter().map(|index| self.values[*index]).collect();
        }
        self.values.iter_mut().for_each(|value| *value = rounded(*value));
    }
}

/// The nearest number of six digits.
fn rounded(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use proptest::prelude::*;

    use super::*;

    fn curve(values: Vec<f64>) -> Curve {
        let points = values.len();
        Curve { name: "loss".into(), points, not_finite: 0, steps: (1..=points as u64).collect(), values }
    }

    #[test]
    fn metrics_become_curves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines = [
            r#"{"step": 1, "time": 5, "loss": 2.5, "rate": 0.1}"#,
            r#"{"step": 2, "time": 6, "loss": null, "rate": 0.2}"#,
            r#"{"step": 3, "time": 7, "loss": 1.23456789, "rate": 0.3, "eval_loss": 2}"#,
            r#"{"step": 4, "time": 8, "loss": 1.5"#,
            r#"{"step": 5, "time": 8, "loss": 1.5}"#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let curves = read(&path, 100).unwrap();
        assert_eq!(curves.iter().map(|curve| curve.name.as_str()).collect::<Vec<_>>(), ["loss", "rate"]);
        assert_eq!((curves[0].points, curves[0].not_finite), (2, 1));
        assert_eq!((&curves[0].steps, &curves[0].values), (&vec![1, 3], &vec![2.5, 1.23457]));
    }

    #[test]
    fn a_long_curve_keeps_its_peaks() {
        let mut values: Vec<f64> = (0..100_000).map(|step| f64::from(step).sin()).collect();
        (values[50_123], values[70_001]) = (90.0, -90.0);
        let mut long = curve(values);
        long.downsample(2000);
        assert_eq!(long.points, 100_000);
        assert!(long.values.len() <= 2000 && long.values.len() > 1900, "{}", long.values.len());
        let step_of = |wanted: f64| long.steps[long.values.iter().position(|value| *value == wanted).unwrap()];
        assert_eq!((step_of(90.0), step_of(-90.0)), (50_124, 70_002));
        assert_eq!((long.steps[0], *long.steps.last().unwrap()), (1, 100_000));
    }

    proptest! {
        #[test]
        fn downsampling_keeps_order_ends_and_extremes(values in prop::collection::vec(-1e3..1e3, 1..600), most in 4..200_usize) {
            let whole = curve(values);
            let mut short = whole.clone();
            short.downsample(most);
            let extremes = |curve: &Curve| {
                let rounded = || curve.values.iter().map(|value| rounded(*value));
                (rounded().fold(f64::MAX, f64::min), rounded().fold(f64::MIN, f64::max))
            };
            prop_assert_eq!(extremes(&whole), extremes(&short));
            prop_assert!(short.values.len() <= most.max(4) && short.steps.is_sorted_by(|a, b| a < b));
            prop_assert_eq!((whole.steps[0], whole.steps.last()), (short.steps[0], short.steps.last()));
        }
    }
}
