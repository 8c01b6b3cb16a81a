//! A training stage on the card, through the program itself: interrupted by Ctrl-C and by `kill -9`, and resumed, it must end
//! with the bytes of a stage that nobody disturbed. Which is also whether two runs on the card give the same bytes, and, where there are
//! several cards, whether one gives the bytes of all that can be used.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{result, sizes::Sizes};

const PIPELINE: &str = "benches/gpu/resume.toml";
/// The stage that is disturbed.
const STAGE: &str = "lora";
const PATIENCE: Duration = Duration::from_mins(1);

/// A folder in which the program runs.
struct Space<'a> {
    program: &'a str,
    folder: PathBuf,
    arguments: Vec<String>,
}

/// Compares in both precisions.
pub(crate) fn compare(program: &str, sizes: &Sizes) -> bool {
    // The emulated device takes a second for what a card does in milliseconds.
    let images = if sizes.tiny { 12 } else { 512 };
    let precisions: &[&str] = if sizes.tiny { &["bf16"] } else { &["bf16", "f32"] };
    precisions.iter().fold(true, |ok, precision| {
        let outcome = in_precision(program, images, precision);
        let (same, words) = match &outcome {
            Ok(device) => (true, device.clone()),
            Err(reason) => (false, reason.clone()),
        };
        result(&json!({ "part": "resume", "precision": precision, "ok": same, "words": words }));
        ok && same
    })
}

/// Returns what the stage says that it computed on, or what went wrong.
fn in_precision(program: &str, images: usize, precision: &str) -> Result<String, String> {
    let root = PathBuf::from("target/bench-gpu-resume");
    let _ = fs::remove_dir_all(&root);
    let space = |name: &str, gpus: usize| {
        let folder = root.join(name);
        fs::create_dir_all(&folder).unwrap();
        let set = [format!("vars.images={images}"), format!("vars.precision={precision}"), format!("vars.gpus={gpus}")];
        let mut arguments = vec!["run".to_string(), PIPELINE.into(), "--device".into(), "cuda".into(), "-q".into()];
        arguments.extend(set.into_iter().flat_map(|set| ["--set".to_string(), set]));
        Space { program, folder, arguments }
    };
    let cards = imp_model::tensor::probe().cards.iter().take_while(|card| card.usable.is_ok()).count();
    let (calm, disturbed) = (space("calm", 1), space("disturbed", cards.max(1)));
    calm.finish()?;
    disturbed.interrupt("INT")?;
    disturbed.interrupt("KILL")?;
    disturbed.finish()?;
    let (expected, found) = (calm.digests()?, disturbed.digests()?);
    let differing: Vec<&String> = expected.keys().filter(|stage| found.get(*stage) != expected.get(*stage)).collect();
    if !differing.is_empty() {
        return Err(format!("resumed, on {cards} GPU(s), these stages have other bytes: {differing:?}"));
    }
    let device = disturbed.computed_on()?;
    let _ = fs::remove_dir_all(&root);
    Ok(device)
}

impl Space<'_> {
    fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(self.program);
        command.args(arguments).arg("--cache").arg(self.folder.join("cache"));
        command.arg("--artifacts").arg(self.folder.join("artifacts")).stdout(Stdio::null());
        command
    }

    /// Runs the pipeline to its end.
    fn finish(&self) -> Result<(), String> {
        let status = self.command(&self.arguments).status().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the pipeline ended with {status}")) }
    }

    /// Runs the pipeline until the stage has one more checkpoint than before, and interrupts it there.
    fn interrupt(&self, signal: &str) -> Result<(), String> {
        let before = self.checkpoint();
        let mut runner = self.command(&self.arguments).spawn().map_err(|error| error.to_string())?;
        let began = Instant::now();
        while self.checkpoint() == before {
            if runner.try_wait().is_ok_and(|status| status.is_some()) {
                return Err(format!("the pipeline ended before SIG{signal}: it needs more steps"));
            }
            if began.elapsed() > PATIENCE {
                let _ = runner.kill();
                return Err("there was no checkpoint in a minute".into());
            }
            sleep(Duration::from_millis(2));
        }
        send(signal, &runner);
        let status = runner.wait().map_err(|error| error.to_string())?;
        // A stage whose runner was killed ends by itself, soon.
        sleep(Duration::from_secs(1));
        if status.success() { Err("the pipeline was done before it could be interrupted".into()) } else { Ok(()) }
    }

    /// The time of the newest checkpoint of the stage, if it has one.
    fn checkpoint(&self) -> Option<std::time::SystemTime> {
        let works = fs::read_dir(self.folder.join("cache/work")).ok()?.flatten().map(|entry| entry.path());
        let mut of_stage = works.filter(|work| {
            let job = fs::read_to_string(work.join("job.json")).unwrap_or_default();
            job.contains("\"kind\": \"finetune\"")
        });
        newest(&of_stage.next()?.join("checkpoint"))
    }

    fn record(&self) -> Result<Value, String> {
        let path = self.folder.join("artifacts/resume/run.json");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// The digest of each stage's output.
    fn digests(&self) -> Result<BTreeMap<String, String>, String> {
        let record = self.record()?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let stages = record["stages"].as_array().ok_or("the record has no stages")?;
        let digests: BTreeMap<String, String> =
            stages.iter().map(|stage| (text(&stage["name"]), text(&stage["output"]["digest"]))).collect();
        let whole = digests.len() > 5 && digests.values().all(|digest| !digest.is_empty());
        if whole { Ok(digests) } else { Err(format!("digests are missing: {digests:?}")) }
    }

    /// What the stage computed on, which must be a GPU.
    fn computed_on(&self) -> Result<String, String> {
        let arguments = ["show", STAGE, "--json"].map(String::from);
        let output = self.command(&arguments).stdout(Stdio::piped()).output().map_err(|error| error.to_string())?;
        let shown: Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let environment = &shown["receipt"]["environment"];
        if environment["device"] == "cuda" {
            Ok(environment["name"].as_str().unwrap_or_default().into())
        } else {
            Err(format!("the stage did not compute on a GPU: {environment}"))
        }
    }
}

fn newest(folder: &Path) -> Option<std::time::SystemTime> {
    let files = fs::read_dir(folder).ok()?.flatten();
    files.filter_map(|file| file.metadata().ok()?.modified().ok()).max()
}

fn send(signal: &str, to: &Child) {
    assert!(Command::new("kill").args([&format!("-{signal}"), &to.id().to_string()]).status().unwrap().success());
}
