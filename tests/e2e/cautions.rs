//! Warnings about a result stay with it.

use std::{thread::sleep, time::Duration};

use crate::support::{SMALL, Space};

const CUT: &str = "\
[stages.shapes]
kind = \"download\"
source = \"builtin:shapes\"
images = 4
eval_images = 1
[stages.phi]
kind = \"download\"
source = \"builtin:tiny-phi\"
model = { hidden_size = 16, layers = 1, heads = 2 }
[stages.captions]
kind = \"preprocess\"
data = \"shapes\"
tokenizer = \"phi\"
annotations = \"pretrain.json\"
template = \"plain\"
max_length = 6
";

#[test]
fn a_warning_about_a_result_is_told_whenever_the_result_is_used() {
    let space = Space::new();
    space.write("p.toml", CUT);
    // The third run finds the note that the second has written, and does not look at the stages.
    for run in 1..=3 {
        let output = space.succeed(&["run", "p.toml"]);
        let told = output.stderr.clone() + &output.stdout;
        assert_eq!(
            told.matches("lost labels, because they were cut at `max_length` = 6").count(),
            1,
            "run {run}: {told}"
        );
        sleep(Duration::from_millis(2100));
    }
    let shown = space.succeed(&["show", "captions"]).stdout;
    assert!(shown.contains("warnings") && shown.contains("lost labels"), "{shown}");
    assert!(shown.contains("cut 4"), "{shown}");
}

/// What nobody could check is used, and never becomes what the next run finds.
#[test]
fn a_snapshot_that_could_not_be_checked_is_no_cache_hit() {
    let space = Space::new();
    let commit = "0123abcd".repeat(5);
    space.write(&format!("hf/hub/models--me--it/snapshots/{commit}/config.json"), "{}");
    space.write("p.toml", format!("[stages.it]\nkind = \"download\"\nsource = \"hf://me/it@{commit}\"\n"));
    let run = |offline: &str| {
        let mut command = space.command(&["run", "p.toml"]);
        command.env("HF_HOME", space.path("hf")).env("HF_HUB_OFFLINE", offline);
        command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("IMP_FLOW_RETRIES", "0");
        space.output(&mut command)
    };
    for _ in 0..2 {
        let output = run("true");
        assert_eq!(output.code, Some(0), "{}", output.stderr);
        assert!((output.stderr + &output.stdout).contains("it could not be checked"));
        assert_eq!(space.stages_in("p", "ran"), ["it"]);
    }
    assert_eq!(space.read("artifacts/p/it/config.json"), "{}", "it can be used");
    let why = space.succeed(&["why", "it"]);
    assert!(why.stdout.contains("could not be checked whether its last result was complete"), "{}", why.stdout);
}

#[test]
fn links_that_lead_nowhere_are_told_as_such() {
    let space = Space::new();
    space.write("data/a.txt", "x").write("p.toml", "[stages.d]\nkind = \"download\"\nsource = \"data\"\n");
    std::os::unix::fs::symlink("/nowhere/x.png", space.path("data/link.png")).unwrap();
    let told = |args: &[&str]| space.run(args).stderr;
    let words = "data/link.png: this link points to nothing: remove it, or restore its target";
    assert!(told(&["plan", "p.toml"]).contains(words), "{}", told(&["plan", "p.toml"]));
    assert!(!told(&["plan", "p.toml"]).contains("cache"), "{}", told(&["plan", "p.toml"]));
    std::fs::remove_file(space.path("data/link.png")).unwrap();
    std::os::unix::fs::symlink("..", space.path("data/loop")).unwrap();
    assert!(told(&["plan", "p.toml"]).contains("data/loop: this link leads back to "));
}

#[test]
fn a_plan_says_why_sizes_are_unknown() {
    let space = Space::new();
    space.write("p.toml", "[stages.it]\nkind = \"download\"\nsource = \"hf://me/it@main\"\n");
    for (variable, value, words) in [
        ("HF_HUB_OFFLINE", "1", "its size is unknown: hf://me/it@main is not in "),
        ("HF_ENDPOINT", "http://127.0.0.1:1", "its size is unknown: 127.0.0.1:1 can't be reached"),
        (
            "https_proxy",
            "me:secret@no:where",
            "its size is unknown: the variable https_proxy does not hold the address",
        ),
    ] {
        let mut command = space.command(&["plan", "p.toml"]);
        command.env("HF_HOME", space.path("hf")).env_remove("HF_HUB_OFFLINE").env(variable, value);
        let output = space.output(&mut command);
        assert!(output.stdout.contains(words), "{}{}", output.stdout, output.stderr);
        assert!(output.stdout.contains("1 would run, with an unknown size to download"), "{}", output.stdout);
        assert!(!output.stdout.contains("secret"), "{}", output.stdout);
    }
}

const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": 512, "rms_norm_eps": 1e-5, "max_position_embeddings": 512}"#;
const UNTOLD: &str = r#"
[stages.shapes]
kind = "download"
source = "builtin:shapes"
[stages.llama]
kind = "download"
source = "llama"
[stages.siglip]
kind = "download"
source = "builtin:tiny-siglip"
[stages.captions]
kind = "preprocess"
data = "shapes"
tokenizer = "llama"
annotations = "pretrain.json"
template = "plain"
[stages.talks]
kind = "preprocess"
data = "shapes"
tokenizer = "llama"
annotations = "instruct.json"
template = "phi2"
[stages.pretrain]
kind = "pretrain"
llm = "llama"
vision = "siglip"
data = "captions"
[stages.finetune]
kind = "finetune"
model = "pretrain"
data = ["captions", "talks"]
[stages.merge]
kind = "merge"
model = "finetune"
[stages.early]
kind = "eval"
model = "pretrain"
data = "shapes"
benchmark = "vqav2"
[stages.late]
kind = "eval"
model = "merge"
data = "shapes"
benchmark = "vqav2"
"#;

#[test]
fn a_plan_says_where_no_template_may_be_known() {
    let space = Space::new();
    space.write("llama/config.json", LLAMA).write("p.toml", UNTOLD);
    let plan = |more: &[&str]| space.succeed(&[&["plan", "p.toml"], more].concat()).stdout;
    let told = "it may find no template: its model's training names none, and Llamas are trained in many. Set `template` to \
                one of `phi2`, `qwen2`, `phi3`, `vicuna_v1`";
    let found = plan(&[]);
    let after_early = found.lines().skip_while(|line| !line.contains(" early ")).nth(1).unwrap_or_default();
    assert!(after_early.ends_with(told) && found.matches(told).count() == 1, "{found}");
    assert!(!plan(&["--set", "stages.early.template=\"phi2\""]).contains(told));
    let unknown = space.run(&["plan", "p.toml", "--set", "stages.early.template=\"vicuna\""]);
    assert!(unknown.code == Some(2) && unknown.stderr.contains("did you mean `vicuna_v1`?"), "{}", unknown.stderr);
}

/// Before anything is trained for it.
#[test]
fn a_plan_says_what_the_model_has_no_place_for() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    let plan = |encoder: &str, more: &[&str]| {
        let source = format!("stages.siglip.source=builtin:tiny-{encoder}");
        space.succeed(&[&["plan", "small.toml", "--set", &source], more].concat()).stdout
    };
    let gguf = "a vision tower of the type clip can't be written for llama.cpp";
    let llava = "transformers' Llava has no place for a DINOv2 as vision tower";
    assert!(plan("clip", &["--set", "stages.quantize.format=gguf"]).contains(gguf));
    assert!(plan("clip", &["--set", "stages.quantize.format=mlc"]).contains("the model's is a clip"));
    assert!(plan("dinov2", &["--set", "stages.merge.format=llava-hf"]).contains(llava));
    let layers = |count: &str| {
        let keys =
            [format!("stages.finetune.vision_layers={count}"), "stages.finetune.vision_learning_rate=1e-6".into()];
        plan("siglip", &["--set", &keys[0], "--set", &keys[1]])
    };
    let deep = "vision_layers: the features pass";
    assert!(layers("99").contains(deep));
    for fine in [
        layers("1"),
        plan("siglip", &["--set", "stages.quantize.format=gguf"]),
        plan("clip", &["--set", "stages.merge.format=llava-hf"]),
    ] {
        assert!(!fine.contains("can't be written") && !fine.contains("has no place") && !fine.contains(deep), "{fine}");
    }
}
