//! What the time of a repetition goes to, by kernel and product.

use std::time::Instant;

use serde_json::json;

use crate::{cases, result, sizes::Sizes};

/// Kernels that are told one by one.
const TOLD: usize = 25;

/// Profiles cases. The device is waited for around each call; what starting and waiting takes at least, which is the
/// smallest mean of any kernel, is subtracted in `net_ms`.
pub(crate) fn run(names: &[String], sizes: &Sizes) -> bool {
    let names: Vec<&str> = if names.is_empty() { cases::CASES.to_vec() } else { names.iter().map(|n| &**n).collect() };
    for name in names {
        let mut case = cases::case(name, sizes);
        (case.run)();
        let began = Instant::now();
        (case.run)();
        let whole = began.elapsed();
        case.device.profile();
        (case.run)();
        case.device.spent();
        let began = Instant::now();
        (case.run)();
        let profiled = began.elapsed();
        let all = case.device.spent();
        let mean = |spent: &imp_model::tensor::Spent| spent.time.as_secs_f64() * 1e3 / spent.calls as f64;
        let overhead = all.iter().map(mean).fold(f64::INFINITY, f64::min);
        let net = |spent: &imp_model::tensor::Spent| {
            (spent.time.as_secs_f64() * 1e3 - spent.calls as f64 * overhead).max(0.0)
        };
        result(&json!({
            "part": "profile",
            "case": name,
            "whole_ms": whole.as_secs_f64() * 1e3,
            "profiled_ms": profiled.as_secs_f64() * 1e3,
            "net_ms": all.iter().map(net).sum::<f64>(),
            "calls": all.iter().map(|spent| spent.calls).sum::<u64>(),
            "overhead_ms_per_call": overhead,
        }));
        let products: f64 = all.iter().filter(|spent| spent.name.starts_with("product")).map(net).sum();
        result(&json!({ "part": "profile", "case": name, "kernel": "all products", "net_ms": products }));
        for spent in all.iter().take(TOLD) {
            let ms = spent.time.as_secs_f64() * 1e3;
            result(&json!({
                "part": "profile",
                "case": name,
                "kernel": spent.name,
                "calls": spent.calls,
                "ms": ms,
                "net_ms": net(spent),
            }));
        }
    }
    true
}
