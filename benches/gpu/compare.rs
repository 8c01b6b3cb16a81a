//! Ours and PyTorch's side of each case in turns: a slower moment of the machine hits both.

use std::{process::Command, time::Duration};

use serde_json::json;

use crate::{
    cases::{self, amount},
    machine::peak_tflops,
    median, result,
    sizes::Sizes,
    worker::Worker,
};

/// How long a side may take to be ready: to load, and to compile. With all sides a case stays within its part's time.
fn patience(case: &str, variant: Option<&str>) -> Duration {
    Duration::from_secs(match (case, variant) {
        ("lora", Some("compiled")) => 130,
        ("decode", Some("compiled")) => 100,
        (_, Some("compiled")) => 50,
        _ => 40,
    })
}

/// A way to do the work.
struct Side {
    name: &'static str,
    /// Of PyTorch.
    variant: Option<&'static str>,
    worker: Result<Worker, String>,
    times: Vec<f64>,
}

impl Side {
    fn start(case: &str, variant: Option<&'static str>, sizes: &Sizes) -> Self {
        let mut command = match variant {
            None => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["serve", case]);
                command
            }
            Some(variant) => {
                let mut command = Command::new(std::env::var("IMP_FLOW_PYTHON").unwrap_or_else(|_| "python3".into()));
                command.args(["benches/peers/gpu.py", case, variant]);
                command
            }
        };
        if sizes.tiny {
            command.arg("--tiny");
        }
        let worker = Worker::start(&mut command, patience(case, variant));
        Self { name: if variant.is_none() { "imp-flow" } else { "PyTorch" }, variant, worker, times: Vec::new() }
    }

    fn repeat(&mut self) {
        if let Ok(worker) = &mut self.worker {
            match worker.repeat() {
                Ok(time) => self.times.push(time),
                Err(reason) => self.worker = Err(reason),
            }
        }
    }

    /// Writes the result down. Returns whether there is one.
    fn tell(self, case: &str, sizes: &Sizes) -> bool {
        let Self { name, variant, worker, times } = self;
        let mut line = json!({ "part": "speed", "case": case, "side": name, "variant": variant });
        let peak = match worker {
            Ok(worker) => worker.peak(),
            Err(reason) => {
                line["skipped"] = reason.into();
                result(&line);
                return false;
            }
        };
        let amount = amount(case, sizes);
        let seconds = median(&times) / 1e3;
        let tflops = amount.operations.map(|operations| operations / seconds / 1e12);
        line["ms"] = (seconds * 1e3).into();
        line["all_ms"] = times.into();
        line["per_second"] = (amount.count as f64 / seconds).into();
        line["unit"] = amount.unit.into();
        line["tflops"] = tflops.into();
        line["utilisation"] = tflops.zip(peak_tflops()).map(|(tflops, peak)| tflops / peak).into();
        line["peak_bytes"] = peak.into();
        result(&line);
        true
    }
}

/// Compares both sides. Without the peer, if `IMP_FLOW_PEERS` is `no`. Fails if one of ours fails; what the peer can't do is
/// written down.
pub(crate) fn run(names: &[String], sizes: &Sizes) -> bool {
    let names: Vec<&str> = if names.is_empty() { cases::CASES.to_vec() } else { names.iter().map(|n| &**n).collect() };
    let alone = std::env::var("IMP_FLOW_PEERS").is_ok_and(|value| value == "no");
    let mut ok = true;
    for case in names {
        // With adapters in bf16 PyTorch trains less exactly than ours, and possibly faster.
        let variants: &[_] = match case {
            _ if alone => &[None],
            "lora" => &[None, Some("eager"), Some("bf16"), Some("compiled")],
            _ => &[None, Some("eager"), Some("compiled")],
        };
        let mut sides: Vec<Side> = variants.iter().map(|variant| Side::start(case, *variant, sizes)).collect();
        for _ in 0..sizes.repetitions {
            sides.iter_mut().for_each(Side::repeat);
        }
        for side in sides {
            let ours = side.variant.is_none();
            ok &= side.tell(case, sizes) || !ours;
        }
    }
    ok
}
