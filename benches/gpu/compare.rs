//! Ours and PyTorch's side of each case in turns: a slower moment of the machine hits both.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    OURS,
    cases::{self, amount},
    machine::peak_tflops,
    median, result,
    sizes::Sizes,
    worker::Worker,
};

/// How long the sides may take to be ready, together: to load, and to compile. What is not ready then is left out. With the repetitions
/// a case stays within its part's time in run.sh.
fn patience(case: &str) -> Duration {
    Duration::from_secs(match case {
        "lora" => 200,
        "decode" => 120,
        _ => 90,
    })
}

/// How long the repetitions may take. Those that are missing then are left out.
const REPETITIONS: Duration = Duration::from_secs(30);

/// Ours without captured graphs: what they gain.
const WITHOUT_GRAPHS: &str = "without graphs";

/// A way to do the work.
struct Side {
    name: &'static str,
    /// Of PyTorch, or [`WITHOUT_GRAPHS`].
    variant: Option<&'static str>,
    worker: Result<Worker, String>,
    times: Vec<f64>,
}

impl Side {
    fn start(case: &str, variant: Option<&'static str>, sizes: &Sizes) -> Self {
        let name = if matches!(variant, None | Some(WITHOUT_GRAPHS)) { OURS } else { "PyTorch" };
        let mut command = match variant {
            None | Some(WITHOUT_GRAPHS) => {
                let mut command = Command::new(std::env::current_exe().unwrap());
                command.args(["serve", case]).env("IMP_FLOW_GPU_GRAPHS", if variant.is_none() { "1" } else { "0" });
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
        Self { name, variant, worker: Worker::start(&mut command), times: Vec::new() }
    }

    fn ready(self, deadline: Instant) -> Self {
        Self { worker: self.worker.and_then(|worker| worker.ready(deadline)), ..self }
    }

    fn repeat(&mut self) {
        if let Ok(worker) = &mut self.worker {
            match worker.repeat() {
                Ok(time) => self.times.push(time),
                Err(reason) => self.worker = Err(reason),
            }
        }
    }

    /// Writes down what is known so far: whoever ends the part too early loses no figure. Returns whether there is one.
    fn tell(&self, case: &str, sizes: &Sizes, peak: Option<f64>) -> bool {
        let mut line = json!({ "part": "speed", "case": case, "side": self.name, "variant": self.variant });
        if let Err(reason) = &self.worker {
            line["skipped"] = reason.as_str().into();
            // What it did before it failed stays.
            if self.times.is_empty() {
                result(&line);
            }
            return false;
        }
        let amount = amount(case, sizes);
        let seconds = median(&self.times) / 1e3;
        let tflops = amount.operations.map(|operations| operations / seconds / 1e12);
        line["ms"] = (seconds * 1e3).into();
        line["all_ms"] = self.times.clone().into();
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
            "decode" if alone => &[None, Some(WITHOUT_GRAPHS)],
            "decode" => &[None, Some(WITHOUT_GRAPHS), Some("eager"), Some("compiled")],
            _ if alone => &[None],
            "lora" => &[None, Some("eager"), Some("bf16"), Some("compiled")],
            _ => &[None, Some("eager"), Some("compiled")],
        };
        let sides: Vec<Side> = variants.iter().map(|variant| Side::start(case, *variant, sizes)).collect();
        let deadline = Instant::now() + patience(case);
        let mut sides: Vec<Side> = sides.into_iter().map(|side| side.ready(deadline)).collect();
        let began = Instant::now();
        for number in 0..sizes.repetitions {
            if number > 0 && began.elapsed() > REPETITIONS {
                break;
            }
            for side in &mut sides {
                side.repeat();
                if side.worker.is_ok() {
                    side.tell(case, sizes, None);
                }
            }
        }
        for mut side in sides {
            let peak = side.worker.as_mut().ok().and_then(Worker::peak);
            ok &= side.tell(case, sizes, peak) || side.name != OURS;
        }
    }
    ok
}
