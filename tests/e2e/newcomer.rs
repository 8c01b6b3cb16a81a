//! What a newcomer met once: messages that were lost, misleading or missing. What is drawn on terminals is in `terminal.rs`.

use std::{fs::OpenOptions, process::Stdio};

use serde_json::Value;

use crate::{
    interrupt::{signal, wait_for, with_checkpoint},
    support::{DIAMOND, SMALL, Space, diamond},
};

fn small() -> Space {
    let space = Space::new();
    space.write("small.toml", SMALL);
    space
}

#[test]
fn a_log_says_what_training_did_and_a_running_stage_how_far_it_is() {
    let space = small();
    let long = ["run", "small.toml", "--until", "finetune", "--set", "stages.finetune.epochs=40"];
    let mut runner = space.start(&long);
    wait_for("a checkpoint", || with_checkpoint(&space, "finetune"));
    let shown =
        wait_for("progress", || Some(space.run(&["show", "finetune"])).filter(|it| it.stderr.contains("steps")));
    assert!(shown.stderr.contains("error: stage `finetune` is running ("), "{}", shown.stderr);
    assert!(shown.stderr.contains("help: follow it with `imp-flow log -f finetune`"), "{}", shown.stderr);
    signal("INT", runner.id());
    assert_eq!(runner.wait().unwrap().code(), Some(130));
    space.succeed(&long);

    let log = space.succeed(&["log", "finetune"]).stdout;
    for line in ["started a stage of the kind finetune", "/320 steps, loss", "stopped", "goes on from its checkpoint"] {
        assert!(log.contains(line), "{line}: {log}");
    }
    // The time is that of both sessions.
    let shown = space.succeed(&["show", "finetune"]).stdout;
    assert!(shown.contains(" in 2 sessions"), "{shown}");
}

#[test]
fn training_on_nothing_fails() {
    let space = small();
    let failed = space.run(&["run", "small.toml", "--until", "finetune", "--set", "stages.finetune.max_length=5"]);
    assert_eq!(failed.code, Some(1));
    assert!(
        failed.stderr.contains("error: stage `finetune`: ") && failed.stderr.contains("max_length"),
        "{}",
        failed.stderr
    );
}

#[test]
fn results_have_their_units_and_report_eval_knows_the_last_run() {
    let space = small();
    let ended = space.succeed(&["run", "small.toml", "--set", "seed=8", "--until", "pope"]).stdout;
    // One table: main figures with their units, and nothing of what was not chosen.
    let line = |stage: &str| ended.lines().find(|line| line.starts_with(stage)).unwrap_or_default();
    assert!(line("pope  ").contains(" ran ") && line("pope  ").contains("  accuracy "), "{ended}");
    assert!(line("pope  ").ends_with(" %") && !line("captions  ").contains("images"), "{ended}");
    assert!(line("quantize").is_empty() && ended.contains("\n2 stages left out, as asked for\n"), "{ended}");
    assert!(ended.contains(" more figures: imp-flow show STAGE\n"), "{ended}");
    assert!(ended.contains("\nartifacts: artifacts/small\n"), "{ended}");

    let shown = space.succeed(&["show", "pope"]).stdout;
    assert!(shown.lines().any(|line| line.contains("results     accuracy ") && line.ends_with(" %")), "{shown}");
    let at = |words: &str| shown.find(words).unwrap_or_else(|| panic!("no {words:?}: {shown}"));
    assert!(at("config      benchmark = \"pope\"") < at("defaults    "), "{shown}");
    assert!(at("defaults    ") < at("ablate_image = false"), "{shown}");
    for link in ["links       artifacts/small/pope\n", " artifacts/small/pope.log\n"] {
        assert!(at(link) > at("output      "), "{shown}");
    }

    // Of 50 figures the main ones are compared, in lines that fit a terminal.
    let compared = space.succeed(&["compare"]);
    assert!(compared.stdout.contains("pope.accuracy") && !compared.stdout.contains("captions."), "{}", compared.stdout);
    assert!(compared.stdout.lines().all(|line| line.len() <= 80), "{}", compared.stdout);
    assert!(compared.stderr.contains(" more figures: --all, or --metrics GLOB"), "{}", compared.stderr);
    let told = space.succeed(&["report", "eval", "small.toml"]).stderr;
    assert!(told.contains("its last run was with --set seed=8: add that"), "{told}");
    let told = space.succeed(&["report", "eval", "small.toml", "--set", "seed=8"]);
    assert!(told.stderr.is_empty() && told.stdout.contains("\nsmall  "), "{}{}", told.stderr, told.stdout);
}

#[test]
fn plan_and_graph_without_a_file_are_of_this_folder_or_of_the_last_run() {
    let space = diamond();
    for verb in ["plan", "graph", "run"] {
        let refused = space.run(&[verb]);
        assert_eq!(refused.code, Some(2));
        assert!(refused.stderr.starts_with("error: there is no pipeline.toml in this folder\n"), "{}", refused.stderr);
        assert!(!space.path("cache").exists(), "{verb} leaves nothing");
    }
    space.succeed(&["run", "p.toml", "--set", "stages.b.text=other"]);
    assert!(space.succeed(&["plan"]).stdout.contains("diamond is up to date: 4 of 4 cached"));
    let changed = space.succeed(&["plan", "--set", "stages.d.text=new"]).stdout;
    assert!(
        changed.contains("cached  b ") && changed.contains("run     d  config: text \"d\" -> \"new\""),
        "{changed}"
    );
    assert!(space.succeed(&["graph"]).stdout.starts_with("cached  a  synthetic\n"));
    space.write("pipeline.toml", DIAMOND.replace("diamond", "here"));
    assert!(space.succeed(&["plan"]).stdout.contains("here: "), "the file of this folder comes first");
}

#[test]
fn json_is_json_or_refused() {
    let space = diamond();
    space.succeed(&["run", "p.toml"]);
    for args in
        [&["status", "--json"] as &[&str], &["graph", "p.toml", "--json"], &["kinds", "--json"], &["runs", "--json"]]
    {
        let lines = space.succeed(args).stdout;
        assert!(lines.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{args:?}: {lines}");
    }
    let status = space.succeed(&["status", "--json"]).stdout;
    let first: Value = serde_json::from_str(status.lines().next().unwrap()).unwrap();
    assert!(first["seconds"].is_number() && first["bytes"].is_number() && first["finished"].is_number(), "{first}");
    let refused = space.run(&["log", "a", "--json"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("help: leave out --json"), "{}", refused.stderr);
}

#[test]
fn what_can_not_be_written_is_an_error() {
    let space = diamond();
    space.succeed(&["run", "p.toml"]);
    for args in [
        &["compare", "--csv"] as &[&str],
        &["report", "eval", "--markdown"],
        &["runs"],
        &["status"],
        &["plan", "p.toml"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = space.output(space.command(args).stdout(Stdio::from(full)).stderr(Stdio::piped()));
        assert_eq!(output.code, Some(1), "{args:?}");
        assert!(output.stderr.contains("error: can't write to standard output: No space left"), "{}", output.stderr);
    }
}

#[test]
fn all_unknown_keys_are_told_at_once_with_the_names_of_ours() {
    let space = Space::new();
    let foreign =
        "num_train_epochs = 1\nper_device_train_batch_size = 4\nlora_r = 8\nmm_projector_lr = 2e-5\n[stages.lora.lora]";
    space.write("p.toml", SMALL.replace("[stages.lora.lora]", foreign));
    let told = space.run(&["plan", "p.toml"]);
    assert_eq!(told.code, Some(2));
    for help in ["write `epochs`", "write `global_batch_size`", "write `lora.rank`", "write `projector_learning_rate`"]
    {
        assert!(told.stderr.contains(help), "{help}: {}", told.stderr);
    }
}

#[test]
fn keys_in_the_wrong_place_and_tables_twice_are_explained() {
    let space = small();
    let told = space.run(&["plan", "small.toml", "--set", "benchmark=\"gqa\""]).stderr;
    assert!(
        told.contains("help: a stage's key goes to its stage: `stages.pope.benchmark`, `stages.vqa_4bit.benchmark`"),
        "{told}"
    );
    space.write("p.toml", "[stages.a]\nkind = \"merge\"\n[stages.a]\nkind = \"merge\"\n");
    let told = space.run(&["plan", "p.toml"]).stderr;
    assert!(told.contains("p.toml:3:") && told.contains("help: it is there already, further up"), "{told}");
}

#[test]
fn what_was_not_chosen_is_not_called_skipped_and_quiet_runs_are_quiet() {
    let space = Space::new();
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b\"\nfail = \"no\""));
    let failed = space.run(&["run", "p.toml", "--until", "b", "-q"]);
    assert_eq!(failed.code, Some(1));
    assert!(failed.stdout.is_empty() && failed.stderr.starts_with("error: stage `b`: no\n"), "{}", failed.stderr);
    assert!(!failed.stderr.contains("skipped") && !failed.stderr.contains("`d`"), "{}", failed.stderr);

    let space = diamond();
    space.succeed(&["run", "p.toml"]);
    space.succeed(&["run", "p.toml", "--set", "stages.d.score=4.5"]);
    let runs = space.succeed(&["runs"]).stdout;
    let rows: Vec<&str> = runs.lines().skip(1).map(|line| line[line.find("done").unwrap()..].trim()).collect();
    assert_eq!(rows, ["done   4 of 4 (1 ran, 3 cached)", "done   4 of 4 (4 ran)"], "{runs}");
    let told = space.succeed(&["cache", "gc", "-n"]).stdout;
    assert!(told.starts_with("Would free "), "{told}");
}

#[test]
fn a_second_detached_run_says_that_it_waits() {
    let space = Space::new();
    space.write("p.toml", "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = 600\nstep_ms = 100\n");
    let process = |told: &str| -> u32 {
        let line = told.lines().find_map(|line| line.strip_prefix("p: goes on in the background as process "));
        line.unwrap().parse().unwrap()
    };
    let first = space.succeed(&["run", "p.toml", "--detach"]);
    assert!(!first.stderr.contains("running already"), "{}", first.stderr);
    wait_for("the run", || space.succeed(&["runs"]).stdout.contains("running").then_some(()));
    let second = space.succeed(&["run", "p.toml", "--detach"]);
    assert!(second.stderr.contains("of p is running already: this one waits"), "{}", second.stderr);
    for told in [first, second] {
        signal("INT", process(&told.stdout));
    }
    wait_for("their end", || (!space.succeed(&["runs"]).stdout.contains("running")).then_some(()));
}

#[test]
fn pipes_and_links_in_place_of_files_do_no_harm() {
    let space = diamond();
    let pipe = |name: &str| {
        std::fs::create_dir_all(space.path(name).parent().unwrap()).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(space.path(name)).status().unwrap().success());
    };
    pipe("script.sh");
    let told = space.run(&["import", "llava", "script.sh"]);
    assert!(told.code != Some(0) && told.stderr.contains("script.sh: it is no file"), "{}", told.stderr);
    pipe("artifacts/diamond/run.log");
    let told = space.run(&["run", "p.toml", "--detach"]);
    assert!(told.code != Some(0) && told.stderr.contains("is no file: remove it"), "{}", told.stderr);

    space.write("mine", "mine").write("man/x", "");
    std::os::unix::fs::symlink(space.path("mine"), space.path("man/imp-flow.1")).unwrap();
    space.succeed(&["man", "--to", "man"]);
    assert_eq!(space.read("mine"), "mine");
    assert!(space.read("man/imp-flow.1").contains(".TH imp-flow"));
}

#[test]
fn pipelines_without_results_and_numbers_without_sense_are_named() {
    let space = diamond();
    std::fs::create_dir(space.path("remote")).unwrap();
    space.write("imp-flow.toml", format!("remote = \"file://{}\"\n", space.path("remote").display()));
    space.succeed(&["run", "p.toml"]);
    for (verb, words) in [("push", "this cache has no results"), ("pull", "has no results of a pipeline `diamonds`")] {
        let told = space.run(&["cache", verb, "--of", "diamonds"]);
        assert!(told.code == Some(2) && told.stderr.contains(words), "{verb}: {}", told.stderr);
        space.succeed(&["cache", verb, "--of", "diamond"]);
    }
    let space = small();
    for (key, value) in [
        ("lora.loraplus_lr_ratio", "-1"),
        ("lora.loraplus_lr_ratio", "1e30"),
        ("neftune_noise_alpha", "nan"),
        ("neftune_noise_alpha", "1e9"),
    ] {
        let told = space.run(&["plan", "small.toml", "--set", &format!("stages.lora.{key}={value}")]);
        assert!(
            told.code == Some(2) && told.stderr.contains(&format!("`{key}` must ")),
            "{key} = {value}: {}",
            told.stderr
        );
    }
}
