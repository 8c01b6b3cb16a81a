//! Where stages compute: what is refused, said and recorded, on machines with and without GPUs. Independent of whether the
//! machine of the tests has one: `CUDA_VISIBLE_DEVICES` hides it.

use serde_json::Value;

use crate::support::{DIAMOND, Output, SMALL, Space, diamond};

/// Runs the program as on a machine without GPUs.
fn without_gpu(space: &Space, args: &[&str]) -> Output {
    space.output(space.command(args).env("CUDA_VISIBLE_DEVICES", ""))
}

const NONE: &str = "CUDA_VISIBLE_DEVICES lists no GPU";

/// The diamond with a `runtime` table of its last stage.
fn asking(runtime: &str) -> Space {
    let space = Space::new();
    space.write("p.toml", DIAMOND.replace("text = \"d\"", &format!("text = \"d\"\nruntime = {runtime}")));
    space
}

#[test]
fn a_stage_that_must_have_a_gpu_is_refused_before_anything_runs() {
    let space = asking("{ device = \"cuda\" }");
    let output = without_gpu(&space, &["run", "p.toml"]);
    let message = format!("error: stage `d` can't run on a GPU: {NONE}\n");
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.starts_with(&message) && output.stderr.contains("p.toml:14:"), "{}", output.stderr);
    assert!(output.stderr.contains("help: run it on the CPU with `device = \"auto\"`"), "{}", output.stderr);
    assert!(!space.path("artifacts/diamond/a").exists(), "nothing ran");
    assert_eq!(without_gpu(&space, &["plan", "p.toml"]).code, Some(2));
    // The command line has the last word.
    let output = without_gpu(&space, &["run", "p.toml", "--device", "cpu"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(!output.stderr.contains("on the CPU"), "it was asked for: {}", output.stderr);
    // What is cached needs no GPU.
    assert_eq!(without_gpu(&space, &["run", "p.toml"]).code, Some(0));
}

#[test]
fn a_device_that_is_none_is_not_taken_for_another() {
    let output = asking("{ device = \"gpu\" }").run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("unknown value `gpu`"), "{}", output.stderr);
    assert!(output.stderr.contains("help: known: auto, cpu, cuda"), "{}", output.stderr);
}

#[test]
fn a_stage_without_the_gpu_that_it_asked_for_says_so() {
    let space = asking("{ gpus = 1 }");
    let line = format!("d runs on the CPU: {NONE}");
    let plan = without_gpu(&space, &["plan", "p.toml"]);
    assert!(plan.stdout.contains(&format!("{line}\n")), "{}", plan.stdout);
    let run = without_gpu(&space, &["run", "p.toml"]);
    assert_eq!(run.code, Some(0));
    assert_eq!(run.stderr.lines().filter(|found| *found == line).count(), 1, "{}", run.stderr);
    assert!(!run.stderr.contains("a runs on"), "only those that asked: {}", run.stderr);
    let cached = without_gpu(&space, &["plan", "p.toml"]);
    assert!(!cached.stdout.contains("on the CPU"), "{}", cached.stdout);
    let forced = without_gpu(&space, &["run", "p.toml", "--force", "d", "--json"]);
    let notes: Vec<Value> = forced.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(notes.iter().any(|event| event["event"] == "note" && event["message"] == line.as_str()), "{notes:?}");
}

#[test]
fn the_device_of_all_stages_comes_from_the_command_line_the_environment_or_the_settings() {
    let space = diamond();
    let refused = |output: &Output| {
        assert_eq!(output.code, Some(2), "{}", output.stdout);
        assert_eq!(output.stderr.matches("can't run on a GPU").count(), 4, "{}", output.stderr);
    };
    refused(&without_gpu(&space, &["plan", "p.toml", "--device", "cuda"]));
    let by_variable = |value: &str| {
        let mut command = space.command(&["plan", "p.toml"]);
        space.output(command.env("CUDA_VISIBLE_DEVICES", "").env("IMP_FLOW_DEVICE", value))
    };
    refused(&by_variable("cuda"));
    let unknown = by_variable("gpu");
    assert!(
        unknown.code == Some(2) && unknown.stderr.contains("[possible values: auto, cpu, cuda]"),
        "{}",
        unknown.stderr
    );
    space.write("imp-flow.toml", "device = \"cuda\"\n");
    refused(&without_gpu(&space, &["plan", "p.toml"]));
    assert_eq!(by_variable("auto").code, Some(0));
    space.write("imp-flow.toml", "device = \"gpu\"\n");
    let output = without_gpu(&space, &["plan", "p.toml"]);
    assert!(
        output.stderr.contains("imp-flow.toml") && output.stderr.contains("`auto`, `cpu`, `cuda`"),
        "{}",
        output.stderr
    );
}

#[test]
fn the_device_is_no_part_of_the_key_and_the_precision_is() {
    let space = Space::new();
    space.write("p.toml", SMALL).succeed(&["run", "p.toml", "--until", "pretrain"]);
    let plan = |set: &str| {
        let output = space.succeed(&["plan", "p.toml", "--only", "pretrain", "--set", set]).stdout;
        output.lines().next().unwrap().to_string()
    };
    for same in ["stages.pretrain.runtime.device=cpu", "stages.pretrain.precision=f32"] {
        assert!(plan(same).starts_with("cached  pretrain"), "{}", plan(same));
    }
    let changed = plan("stages.pretrain.precision=bf16");
    assert!(changed.starts_with("run     pretrain") && changed.contains("precision"), "{changed}");
    let wrong = space.run(&["plan", "p.toml", "--set", "stages.pretrain.precision=fp16"]);
    assert!(wrong.stderr.contains("unknown value `fp16`"), "{}", wrong.stderr);

    // What computed is in the receipt, and shown.
    let shown = space.succeed(&["show", "pretrain"]).stdout;
    assert!(shown.lines().any(|line| line.trim_start().starts_with("computed on CPU: ")), "{shown}");
    let why = space.succeed(&["why", "pretrain"]).stdout;
    assert!(why.contains(" on the CPU: "), "{why}");
    let json: Value = serde_json::from_str(&space.succeed(&["show", "pretrain", "--json"]).stdout).unwrap();
    assert_eq!(json["receipt"]["environment"]["device"], "cpu");
    let json: Value = serde_json::from_str(&space.succeed(&["show", "shapes", "--json"]).stdout).unwrap();
    assert!(json["receipt"].get("environment").is_none(), "downloads compute nothing");
}

#[test]
fn a_full_gpu_fails_the_stage_with_the_remedies_and_not_the_run() {
    let space = Space::new();
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b\"\nfull_gpu = true"));
    let output = space.run(&["run", "p.toml", "--keep-going"]);
    assert_eq!(output.code, Some(1));
    let message = "error: stage `b`: the GPU's memory is full: 12.0 GB were needed, 1.0 GB of 24.0 GB are free\n";
    assert!(output.stderr.contains(message), "{}", output.stderr);
    assert!(output.stderr.contains("help: lower it with a smaller `micro_batch_size`"), "{}", output.stderr);
    for bug in ["bug", "panicked", "Box<dyn Any>"] {
        assert!(!output.stderr.contains(bug), "{}", output.stderr);
    }
    assert_eq!(space.stages_in("diamond", "ran"), ["a", "c"]);
}

#[test]
fn doctor_tells_what_there_is_and_what_is_missing() {
    let space = Space::new();
    let output = without_gpu(&space, &["doctor"]);
    assert_eq!(output.code, Some(0));
    for line in [
        "GPU driver ",
        "cuBLASLt ",
        "CPU ",
        "bf16        products ",
        "memory ",
        "hard links  work\n",
        "locks       work\n",
        "imp-flow ",
    ] {
        assert!(output.stdout.contains(line), "{line}: {}", output.stdout);
    }
    let device = format!("gpus = 1    runs on the CPU: {NONE}\n");
    assert!(output.stdout.contains(&device), "{}", output.stdout);
    assert!(!space.path("cache").exists(), "it changes nothing");
    let json: Value = serde_json::from_str(&without_gpu(&space, &["doctor", "--json"]).stdout).unwrap();
    assert_eq!((&json["device"], &json["reason"]), (&"cpu".into(), &NONE.into()));
    assert_eq!(json["cache"]["hard_links"]["ok"], true);
    assert!(
        json["cpu"]["threads"].as_u64() > Some(0)
            && json["cpu"]["bf16_products"].is_string()
            && json["versions"]["kinds"]["pretrain"].is_u64(),
        "{json}"
    );
    space.write("imp-flow.toml", "device = \"cpu\"\n");
    let output = without_gpu(&space, &["doctor"]).stdout;
    assert!(output.contains("runs on the CPU, as `device` says"), "{output}");
    space.write("imp-flow.toml", "cpu = 3\n");
    assert_eq!(space.run(&["doctor"]).code, Some(2));
}

/// The device is no part of a key, so a result from another one is used; whoever asked for a GPU hears of it.
#[test]
fn a_result_from_a_cpu_is_told_where_a_gpu_is_asked_for() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    let cuda = ["--set", "stages.pretrain.runtime.device=\"cuda\""];
    let run = |verb: &str, more: &[&str]| {
        let output = without_gpu(&space, &[&[verb, "small.toml", "--until", "pretrain"], more].concat());
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        output.stdout + &output.stderr
    };
    let told = "`cuda` is asked for, and the cached result was made on the CPU of ";
    assert!(!run("run", &[]).contains(told) && !run("run", &[]).contains(told));
    for verb in ["run", "plan", "run"] {
        let output = run(verb, &cuda);
        assert_eq!(output.matches(told).count(), 1, "{verb}: {output}");
    }
    assert!(!run("plan", &[]).contains(told));
}
