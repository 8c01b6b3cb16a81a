//! What the machine is, and how fast its card could be.

use imp_model::tensor::{Card, probe};
use serde_json::json;

use crate::result;

/// Dense bf16 products in TFLOP/s, as NVIDIA's data sheets state them for the SXM modules. Other cards have no utilisation.
const PEAKS: [(&str, f64); 5] =
    [("H100 80GB HBM3", 989.4), ("H100 SXM", 989.4), ("H200", 989.4), ("A100-SXM", 312.0), ("A100 SXM", 312.0)];

/// Tells what the card and its libraries are. Fails without a card.
pub(crate) fn tell(commit: &str, date: &str) -> bool {
    let probe = probe();
    let first = probe.cards.first();
    let words = |found: &Result<String, String>| found.clone().unwrap_or_else(|missing| format!("missing: {missing}"));
    result(&json!({
        "part": "machine",
        "card": first.map(|card| &card.name),
        "memory": first.map(|card| card.memory),
        "compute_capability": first.map(|card| card.compute_capability),
        "usable": first.map(|card| card.usable.clone().err()),
        "driver": words(&probe.driver),
        "cublaslt": words(&probe.cublaslt),
        "peak_tflops": first.and_then(peak),
        "commit": commit,
        "date": date,
    }));
    probe.driver.is_ok() && probe.cublaslt.is_ok() && first.is_some_and(|card| card.usable.is_ok())
}

/// The peak of the first card in TFLOP/s, if it is known.
pub(crate) fn peak_tflops() -> Option<f64> {
    probe().cards.first().and_then(peak)
}

fn peak(card: &Card) -> Option<f64> {
    PEAKS.iter().find(|(name, _)| card.name.contains(name)).map(|(_, peak)| *peak)
}
