//! The main use of the program: run a pipeline, run it again, change something, run it again.

use crate::support::{SMALL, Space, copy_folder};

#[test]
fn a_pipeline_runs_once_and_is_then_up_to_date() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    let first = space.succeed(&["run", "small.toml"]);
    assert!(first.stdout.contains("small is done: 12 ran, 0 cached"), "{}", first.stdout);
    for file in [
        "merge/config.json",
        "merge/model.safetensors",
        "merge/tokenizer.json",
        "lora/adapter/adapter_model.safetensors",
        "pope/answers.jsonl",
        "finetune.log",
        "finetune.metrics.jsonl",
        "finetune.tensorboard/events.out.tfevents.imp-flow",
    ] {
        assert!(space.path("artifacts/small").join(file).is_file(), "{file} is missing");
    }
    let before = space.digests("small");

    let second = space.succeed(&["run", "small.toml"]);
    assert!(second.stdout.contains("small is up to date: 12 of 12 cached"), "{}", second.stdout);
    assert_eq!(space.digests("small"), before);

    // Everything under artifacts/ and the index are derived.
    std::fs::remove_dir_all(space.path("artifacts")).unwrap();
    std::fs::remove_dir_all(space.path("cache/index.sled")).unwrap();
    std::fs::remove_dir_all(space.path("cache/trees")).unwrap();
    let third = space.succeed(&["run", "small.toml"]);
    assert!(third.stdout.contains("small is up to date"), "{}", third.stdout);
    assert!(space.path("artifacts/small/merge/model.safetensors").is_file());
    plan_shows_what_changed(&space);
}

/// Changes one hyperparameter of `lora`: only `lora` and the stages that need it run again.
fn plan_shows_what_changed(space: &Space) {
    let changed = SMALL.replace(
        "mode = \"lora\"\nepochs = 1\nglobal_batch_size = 4\nlearning_rate = 1e-3",
        "mode = \"lora\"\nepochs = 1\nglobal_batch_size = 4\nlearning_rate = 5e-4",
    );
    assert_ne!(changed, SMALL);
    space.write("small.toml", changed);
    let plan = space.succeed(&["plan", "small.toml"]).stdout;
    assert!(plan.contains("run     lora          config: learning_rate 0.001 -> 0.0005"), "{plan}");
    assert!(plan.contains(" about ") && plan.contains(" of memory, 8 steps"), "how much memory: {plan}");
    assert!(plan.contains("after   merge         its input lora runs first"), "{plan}");
    assert!(plan.contains("7 of 12 cached, 5 would run"), "{plan}");
    space.succeed(&["run", "small.toml"]);
    assert_eq!(space.stages_in("small", "ran"), ["lora", "merge", "quantize", "pope", "vqa_4bit"]);

    // Comments, the order of keys, the spelling of numbers and runtime keys don't matter.
    let same = format!("# a comment\n{}", space.read("small.toml"))
        .replace("seed = 7\n", "")
        .replace("name = \"small\"", "seed = 7\nname = \"small\"")
        .replace("learning_rate = 5e-4", "learning_rate = 0.0005")
        .replace("checkpoint_steps = 2", "checkpoint_steps = 3\nmicro_batch_size = 2\ncpus = 1");
    space.write("small.toml", same);
    assert!(space.succeed(&["plan", "small.toml"]).stdout.contains("small is up to date"));
}

#[test]
fn the_same_pipeline_runs_on_the_users_folders() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    let until_preprocess: String = SMALL.split("[stages.pretrain]").next().unwrap().into();
    space.write("data.toml", until_preprocess.replace("name = \"small\"", "name = \"data\""));
    space.succeed(&["run", "data.toml"]);
    for stage in ["shapes", "phi", "siglip"] {
        copy_folder(&space.path("artifacts/data").join(stage), &space.path("mine").join(stage));
    }
    let own = SMALL
        .replace("source = \"builtin:shapes\"\nimages = 32\neval_images = 8", "source = \"mine/shapes\"")
        .replace(
            "source = \"builtin:tiny-phi\"\n[stages.phi.model]\nhidden_size = 32\nlayers = 2\nheads = 2",
            "source = \"mine/phi\"",
        )
        .replace("source = \"builtin:tiny-siglip\"", "source = \"mine/siglip\"");
    assert!(!own.contains("builtin:"));
    space.write("own.toml", own.replace("name = \"small\"", "name = \"own\""));
    space.succeed(&["run", "own.toml"]);
    // The copies have the same content, so results from the originals are reused.
    assert_eq!(space.stages_in("own", "cached"), ["captions", "instructions"]);

    // A touched but unchanged file changes nothing; a changed one is named.
    let text = space.read("mine/shapes/instruct.json");
    space.write("mine/shapes/instruct.json", &text);
    assert!(space.succeed(&["plan", "own.toml"]).stdout.contains("own is up to date"));
    space.write("mine/shapes/instruct.json", text + "\n");
    let plan = space.succeed(&["plan", "own.toml"]).stdout;
    assert!(plan.contains("run     shapes        source mine/shapes: content changed"), "{plan}");
    // White space at the end of a JSON file does not change the records, so the stages that need them are cached.
    space.succeed(&["run", "own.toml"]);
    assert_eq!(space.stages_in("own", "ran"), ["shapes", "captions", "instructions", "pope", "vqa_4bit"]);
}

#[test]
fn logs_and_metrics_belong_to_the_last_run_that_made_the_artifact() {
    let space = Space::new();
    let until_finetune = SMALL.split("[stages.finetune]").next().unwrap();
    // Clipping at norms that no gradient reaches does not change the result.
    let [first, second] = ["1e8", "1e9"].map(|norm| {
        space.write("small.toml", format!("{until_finetune}\nmax_grad_norm = {norm}\n"));
        space.succeed(&["run", "small.toml"]);
        ["pretrain", "pretrain.log", "pretrain.metrics.jsonl"]
            .map(|name| std::fs::read_link(space.path("artifacts/small").join(name)).unwrap())
    });
    assert_eq!(space.stages_in("small", "ran"), ["pretrain"]);
    assert_eq!(first[0], second[0]);
    assert_ne!(first[1], second[1]);
    assert_ne!(first[2], second[2]);
    let log = space.succeed(&["log", "pretrain"]).stdout;
    assert!(log.contains(" 8/8 steps, ") && log.contains("loss ") && log.trim_end().ends_with(" done"), "{log}");
}

#[test]
fn init_writes_a_pipeline_that_plans() {
    let space = Space::new();
    let init = space.succeed(&["init", "pipelines/mine.toml"]);
    assert!(init.stdout.contains("Next: imp-flow plan pipelines/mine.toml"), "{}", init.stdout);
    let plan = space.succeed(&["plan", "pipelines/mine.toml"]);
    assert!(plan.stdout.contains("mine: 0 of 17 cached, 17 would run"), "{}", plan.stdout);
    // Pretraining, finetuning and LoRA: memory is forecast even for models that do not exist yet.
    assert_eq!(plan.stdout.matches("up to ").count(), 3, "{}", plan.stdout);
    assert!(!plan.stdout.contains("of this machine"), "{}", plan.stdout);
    space.write("imp-flow.toml", "memory = \"10MB\"\n");
    let small = space.succeed(&["plan", "pipelines/mine.toml"]).stdout;
    assert_eq!(small.matches("that is more than the 10.0 MB of this machine: try").count(), 3, "{small}");
    let again = space.run(&["init", "pipelines/mine.toml"]);
    assert_eq!(again.code, Some(1));
    assert!(again.stderr.contains("can't write pipelines/mine.toml"), "{}", again.stderr);
}

#[test]
fn published_results_are_shown_alone_or_with_those_of_a_pipeline() {
    let space = Space::new();
    let table = space.succeed(&["report", "eval", "--markdown"]).stdout;
    let row = "| Imp-v1.5-3B (published) | 81.18 | 63.54 | 54.13 | 72.78 | 59.84 | 88.87 | 1446.4 | 72.94 | 43.3 |";
    assert!(table.lines().any(|line| line == row), "{table}");
    space.write("small.toml", SMALL);
    let before = space.succeed(&["report", "eval", "small.toml"]);
    assert!(before.stderr.contains("small has no cached results: run `imp-flow run small.toml`"), "{}", before.stderr);
    space.succeed(&["run", "small.toml"]);
    let after = space.succeed(&["report", "eval", "small.toml"]).stdout;
    for model in ["small/merge", "small/quantize"] {
        assert!(after.lines().any(|line| line.starts_with(model) && line.contains('*')), "{after}");
    }
    assert!(after.contains("* on the first questions only"), "{after}");
}

#[test]
fn published_studies_are_shown_alone_or_beside_a_sweep() {
    let space = Space::new();
    let table = space.succeed(&["report", "study", "--markdown"]).stdout;
    let published = "| epochs=2 | published | 81.2 | 63.8 | - | 71.2 | 59.4 | 87.8 | - | 69.3 | - | 72.1 |";
    assert!(table.lines().any(|line| line == published), "{table}");
    assert!(table.contains("\n| epochs=2 | not run | - |"), "{table}");
    space.write("small.toml", SMALL);
    let other = space.run(&["report", "study", "small.toml"]);
    assert!(other.stderr.contains("there is nothing to sweep over"), "{}", other.stderr);
    let sweep = "extends = \"small.toml\"\nname = \"small\"\n[sweep]\n\"stages.finetune.epochs\" = [2, 4]\n";
    space.write("mine.toml", sweep);
    let other = space.run(&["report", "study", "mine.toml"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("`small`, which is no published study"), "{}", other.stderr);
    assert!(
        other.stderr.contains("imp-llm, imp-vision-encoder, imp-finetuning, imp-epochs, imp-data"),
        "{}",
        other.stderr
    );

    space.write("mine.toml", sweep.replace("\"small\"", "\"imp-epochs\""));
    space.succeed(&["sweep", "mine.toml"]);
    let json: serde_json::Value =
        serde_json::from_str(&space.succeed(&["report", "study", "mine.toml", "--json"]).stdout).unwrap();
    let study = json["studies"].as_array().unwrap().iter().find(|study| study["sweep"] == "imp-epochs").unwrap();
    let rows: Vec<String> = study["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| format!("{} {}", row["setting"].as_str().unwrap(), row["source"].as_str().unwrap()))
        .collect();
    let known = ["epochs=1 published", "epochs=1 not run", "epochs=2 published", "epochs=2 measured here"];
    assert_eq!(rows[..4], known, "{rows:?}");
    assert!(rows.last().unwrap() == "epochs=4 measured here", "a point that was not published: {rows:?}");
    let measured = study["rows"].as_array().unwrap().iter().find(|row| row["source"] == "measured here").unwrap();
    let pope = measured["figures"]["pope"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&pope) && measured["mean"].is_null(), "not all of the mean's columns: {measured}");
    // A sweep at its usual place is found without being named.
    std::fs::create_dir_all(space.path("pipelines/sweeps")).unwrap();
    let text = space.read("mine.toml").replace("small.toml", "../../small.toml");
    space.write("pipelines/sweeps/epochs.toml", text);
    let found = space.succeed(&["report", "study"]).stdout;
    assert!(found.lines().any(|line| line.starts_with("epochs=4") && line.contains("measured here")), "{found}");

    // What does not differ between points is not compared: here the scores of `vqa_4bit`.
    let sweep = "extends = \"small.toml\"\nname = \"imp-precision\"\n[[sweep.zip]]\nlabel = [\"16-bit\", \"4-bit\"]\n\
                 \"stages.pope.model\" = [\"merge\", \"quantize\"]\n";
    space.write("precision.toml", sweep).succeed(&["sweep", "precision.toml"]);
    let found = space.succeed(&["report", "study", "precision.toml"]).stdout;
    let measured: Vec<&str> = found.lines().filter(|line| line.contains("measured here")).collect();
    assert!(measured.len() == 2 && measured[0].starts_with("16-bit") && measured[1].starts_with("4-bit"), "{found}");
}

#[test]
fn a_sharded_benchmark_has_the_same_score() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    let whole = space.succeed(&["run", "small.toml"]).stdout;
    let sharded = space.succeed(&["run", "small.toml", "--set", "stages.pope.shards=3"]).stdout;
    assert!(sharded.contains("small is done: 4 ran, 11 cached"), "{sharded}");
    let figures = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("pope ") && line.contains("  f1 "));
        line.and_then(|line| line.split_once("  accuracy ")).map(|(_, figures)| figures.to_string())
    };
    assert_eq!(figures(&whole).unwrap(), figures(&sharded).unwrap());
    assert_eq!(space.read("artifacts/small/pope-1of3/answers.jsonl").lines().count(), 12);
    assert_eq!(space.read("artifacts/small/pope/answers.jsonl").lines().count(), 36);
    let report = space.succeed(&["report", "eval", "small.toml", "--set", "stages.pope.shards=3"]).stdout;
    assert!(report.contains("small/merge"), "{report}");
}
