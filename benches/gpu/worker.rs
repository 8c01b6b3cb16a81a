//! A process that repeats the work of a case on demand, and the side that asks it. Ours and PyTorch's speak alike, in lines of
//! JSON: `{"ready": SECONDS}` after two repetitions, for each line of input `{"ms": MILLISECONDS}`, and at the end of the
//! input `{"peak_bytes": BYTES}` of the card's memory; or `{"skipped": REASON}`, and the end.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{cases, sizes::Sizes};

/// The longest that a repetition may take.
const REPETITION: Duration = Duration::from_mins(1);

/// Serves repetitions of our side.
pub(crate) fn serve(case: &str, sizes: &Sizes) -> bool {
    let began = Instant::now();
    let mut case = cases::case(case, sizes);
    for _ in 0..2 {
        (case.run)();
    }
    println!("{}", json!({ "ready": began.elapsed().as_secs_f64() }));
    for _ in std::io::stdin().lock().lines() {
        let began = Instant::now();
        (case.run)();
        println!("{}", json!({ "ms": began.elapsed().as_secs_f64() * 1e3 }));
    }
    if let Some(reason) = case.device.refusal() {
        eprintln!("calls were not made as one: {reason}");
    }
    println!("{}", json!({ "peak_bytes": case.device.peak_bytes() }));
    true
}

/// A worker's process.
pub(crate) struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<Value>,
}

impl Worker {
    /// Starts a worker. Otherwise returns why it does not start.
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{} does not start: {error}", command.get_program().display()))?;
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let (send, lines) = channel();
        std::thread::spawn(move || {
            // Libraries print what they like: what is no object is passed over.
            let objects = output.lines().map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok());
            objects.filter(Value::is_object).try_for_each(|line| send.send(line))
        });
        Ok(Self { child, input, lines })
    }

    /// Waits until it is ready, or says why it is not by the deadline.
    pub(crate) fn ready(self, deadline: Instant) -> Result<Self, String> {
        self.field("ready", deadline.saturating_duration_since(Instant::now()))?;
        Ok(self)
    }

    /// Runs one repetition. Returns milliseconds.
    pub(crate) fn repeat(&mut self) -> Result<f64, String> {
        writeln!(self.input.as_mut().unwrap()).map_err(|_| "it ended".to_string())?;
        self.field("ms", REPETITION)
    }

    /// Asks it to end. Returns its peak of the card's memory in bytes, if it knows it.
    pub(crate) fn peak(&mut self) -> Option<f64> {
        self.input = None;
        self.field("peak_bytes", REPETITION).ok()
    }

    fn field(&self, name: &str, patience: Duration) -> Result<f64, String> {
        let words = "it ended: see the log, or was not done in time";
        let line = self.lines.recv_timeout(patience).map_err(|_| words.to_string())?;
        match (line[name].as_f64(), line["skipped"].as_str()) {
            (Some(value), _) => Ok(value),
            (None, Some(reason)) => Err(reason.into()),
            (None, None) => Err(format!("{line} instead of {name}")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has said all that is wanted, or is given up.
        let deadline = Instant::now() + Duration::from_secs(2);
        self.input = None;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
