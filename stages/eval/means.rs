//! Means of scores, of a whole benchmark and by category, as official scorers report them: in percent with two decimals.
//! Independent of what the categories are.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A mean in percent with two decimals, rounded as Python's `round` and its formats do.
pub(super) fn percent(scores: &[f64]) -> f64 {
    rounded(100.0 * scores.iter().sum::<f64>() / scores.len().max(1) as f64, 2)
}

/// The decimal number that is nearest to the exact value.
pub(super) fn rounded(value: f64, decimals: usize) -> f64 {
    format!("{value:.decimals$}").parse().unwrap_or(value)
}

/// 1 for what is right.
pub(super) fn one_if(right: bool) -> f64 {
    f64::from(u8::from(right))
}

/// Scores by the category of the question.
#[derive(Debug, Default)]
pub(super) struct Means(BTreeMap<String, Vec<f64>>);

impl Means {
    pub(super) fn add(&mut self, category: impl Into<String>, score: f64) {
        self.0.entry(category.into()).or_default().push(score);
    }

    /// The mean of each category.
    pub(super) fn figures(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(category, scores)| (category.as_str(), percent(scores)))
    }

    /// The mean of one category.
    pub(super) fn figure(&self, category: &str) -> f64 {
        percent(self.0.get(category).map_or(&[], Vec::as_slice))
    }

    /// The mean of each category.
    pub(super) fn json(&self) -> Value {
        self.figures().map(|(category, figure)| (category.to_string(), json!(figure))).collect::<Map<_, _>>().into()
    }
}
