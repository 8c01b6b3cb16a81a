//! The scripts of docs/recipes, with modules that stand in for the clients of the services and write down what they are sent.

use std::process::Command;

use crate::support::{Output, Space};

const PIPELINE: &str = r#"
name = "p"
[stages.a]
kind = "command"
command = ["sh", "-c", "echo $TOKEN > out; echo '{\"kept\": 2}' > $IMP_FLOW_FIGURES"]
environment = { TOKEN = "hush-in-the-file" }
[sweep]
"stages.a.environment.SIZE" = ["hush-1", "hush-2", "hush-3"]
"#;

/// Refuses what the variable `REFUSED` names.
const WANDB: &str = r#"
import json, os
class errors:
    class CommError(Exception): pass
class Run:
    def __init__(self): self.summary = {}
    def define_metric(self, *args, **named): pass
    def log(self, row): pass
    def finish(self, exit_code):
        with open("sent", "a") as file: file.write(json.dumps(self.summary) + "\n")
def init(**named):
    if os.environ.get("REFUSED") and os.environ["REFUSED"] in named["name"]: raise errors.CommError("no room")
    with open("sent", "a") as file: file.write(json.dumps(named) + "\n")
    return Run()
class Api:
    default_entity = "lab"
    def run(self, path): raise errors.CommError(os.environ["ANSWER"])
"#;

const MLFLOW: &str = r#"
import json
class MlflowClient:
    def note(self, *what):
        with open("sent", "a") as file: file.write(json.dumps(what) + "\n")
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): return name
    def search_runs(self, *what): return []
    def create_run(self, *what):
        self.note("run", *what)
        class new:
            class info: run_id = "r"
        return new
    def log_batch(self, run, params=(), metrics=(), tags=()): self.note([*params], [*metrics], [*tags])
    def log_text(self, run, text, name): self.note(text, name)
    def set_terminated(self, *what): pass
"#;

/// A folder with a run to send. `None` if there is no Python here.
#[allow(clippy::print_stdout, reason = "who reads the log should see what was not tried")]
fn space() -> Option<Space> {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return None;
    }
    let space = Space::new();
    space.write("p.toml", PIPELINE).write("modules/wandb.py", WANDB);
    space.write("modules/mlflow/entities.py", "def Metric(*args): return args\nParam = RunTag = Metric\n");
    space.write("modules/mlflow/__init__.py", "").write("modules/mlflow/tracking.py", MLFLOW);
    space.succeed(&["sweep", "p.toml", "--set", "stages.a.environment.OTHER=hush-on-the-command-line"]);
    let others =
        PIPELINE.replace("\"p\"", "\"q\"").replace("{ TOKEN = \"hush-in-the-file\" }", "{ TOKEN = \"${token}\" }");
    let [swept, _] = others.split_once("[sweep]").unwrap().into();
    let table =
        format!("{swept}[vars]\ntoken = \"x\"\n[sweep]\n\"stages.a.environment\" = [{{ TOKEN = \"hush-4\" }}]\n");
    space.write("q.toml", &table).succeed(&["sweep", "q.toml"]);
    let variable = format!("{swept}[vars]\ntoken = \"x\"\n[sweep]\n\"vars.token\" = [\"hush-5\", \"hush-6\"]\n");
    space.write("r.toml", &variable).succeed(&["sweep", "r.toml"]);
    space.write("runs.json", space.succeed(&["runs", "--json"]).stdout);
    Some(space)
}

/// Sends the runs with a script. Returns its output, and what it has sent.
fn send(space: &Space, script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (Output, String) {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/recipes/");
    let mut python = Command::new("python3");
    python.arg("-B").arg(format!("{folder}{script}")).args(arguments).current_dir(space.path("."));
    python.env("PYTHONPATH", space.path("modules")).env_remove("WANDB_MODE").envs(environment.iter().copied());
    python.stdin(std::fs::File::open(space.path("runs.json")).unwrap());
    let output = space.output(&mut python);
    let sent = std::fs::read_to_string(space.path("sent")).unwrap_or_default();
    let _ = std::fs::remove_file(space.path("sent"));
    (output, sent)
}

const ABSENT: (&str, &str) = ("ANSWER", "Could not find run lab/p/x");

#[test]
fn what_may_be_secret_is_sent_on_request_only() {
    let Some(space) = space() else { return };
    for script in ["to_wandb.py", "to_mlflow.py"] {
        let (output, sent) = send(&space, script, &[], &[ABSENT]);
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert!(!sent.contains("hush") && sent.contains("<hidden>") && sent.contains("final/kept"), "{sent}");
        let words = "left out, since it may be secret: the text of the pipeline, the values of `environment`, what was given with --set";
        assert!(
            output.stdout.contains(words) && output.stdout.contains("sent 6, already there 0"),
            "{}",
            output.stdout
        );
        let (output, sent) = send(&space, script, &["--everything"], &[ABSENT]);
        assert!(sent.contains("hush-in-the-file") && sent.contains("hush-1"), "{sent}");
        assert!(!output.stdout.contains("left out"), "{}", output.stdout);
    }
}

#[test]
fn what_cant_be_sent_is_named_and_does_not_stop_the_rest() {
    let Some(space) = space() else { return };
    let chosen =
        space.read("runs.json").lines().last().map(|run| serde_json::from_str::<serde_json::Value>(run).unwrap());
    let chosen = chosen.unwrap()["id"].as_str().unwrap().to_string();
    let (output, _) = send(&space, "to_wandb.py", &["no-such-run"], &[ABSENT]);
    assert!(output.code == Some(1) && output.stderr.contains("no-such-run: there is no such run"), "{}", output.stderr);
    let (output, sent) = send(&space, "to_wandb.py", &[&chosen], &[ABSENT, ("REFUSED", "point 2")]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("/point 2: not sent: CommError: no room"), "{}", output.stderr);
    assert!(output.stdout.contains("sent 2, already there 0, failed 1"), "{}", output.stdout);
    assert!(sent.contains("point 1") && sent.contains("point 3"), "{sent}");
    // A service that does not answer has not said that there is no such run.
    let (output, sent) = send(&space, "to_wandb.py", &[&chosen], &[("ANSWER", "HTTP 502 (Bad Gateway)")]);
    assert_eq!((output.code, sent.as_str()), (Some(1), ""), "{}", output.stdout);
    assert!(output.stdout.contains("sent 0, already there 0, failed 3"), "{}", output.stdout);
}
