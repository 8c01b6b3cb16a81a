//! The stage on a tiny model, from start to resumption.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use imp_model::{Imp, config::ImpConfig, save};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Eval;
use crate::{
    Stage,
    download::Download,
    testing::{Outcome, Trial},
};

/// A file or folder of `stages/eval/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/fixtures").join(name)
}

/// A folder with `model`, an untrained Imp, and `data`, a few drawn images with questions.
fn workshop() -> TempDir {
    workshop_with(&json!({"hidden_size": 32, "layers": 2, "heads": 2}))
}

fn workshop_with(phi: &Value) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let get = |name: &str, config: &Value| Trial::new(&root.path().join(name), &[]).run::<Download>(config).done();
    let sizes = json!({"hidden_size": 32, "layers": 2, "heads": 2});
    let phi = get("phi", &json!({"source": "builtin:tiny-phi", "model": phi}));
    let siglip = get("siglip", &json!({"source": "builtin:tiny-siglip", "model": sizes}));
    let data = get("shapes", &json!({"source": "builtin:shapes", "images": 1, "eval_images": 4}));
    fs::rename(data, root.path().join("data")).unwrap();
    let model = root.path().join("model");
    fs::create_dir_all(&model).unwrap();
    let imp = Imp::assemble(&phi, &siglip, ImpConfig::default(), 7).unwrap();
    save::split_config(&imp, &model).unwrap();
    save::projector(&imp, &model).unwrap();
    fs::rename(phi, model.join("llm")).unwrap();
    fs::rename(siglip, model.join("vision")).unwrap();
    root
}

fn trial(root: &Path, work: &str) -> Trial {
    Trial::new(&root.join(work), &[("model", &*root.join("model")), ("data", &*root.join("data"))])
}

fn evaluate(root: &Path, work: &str, config: &Value) -> Outcome {
    trial(root, work).run::<Eval>(config)
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn answers_and_results_are_written() {
    let root = workshop();
    for (benchmark, figure) in [("pope", "f1"), ("vqav2", "accuracy")] {
        let config = json!({"benchmark": benchmark, "max_new_tokens": 3});
        let outcome = evaluate(root.path(), benchmark, &config);
        let value = outcome.figure(figure);
        let out = outcome.done();
        let results: Value = serde_json::from_str(&fs::read_to_string(out.join("results.json")).unwrap()).unwrap();
        assert_eq!(results["figures"][figure], value);
        let answers = lines(&out.join("answers.jsonl"));
        assert_eq!(results["questions"], answers.len());
        let prompt = answers[0]["prompt"].as_str().unwrap();
        assert!(prompt.ends_with("?\nAnswer the question using a single word or phrase."), "{prompt}");
    }
}

#[test]
fn answers_do_not_depend_on_batches_or_interruptions() {
    let root = workshop();
    let config = json!({"benchmark": "pope", "max_new_tokens": 3});
    let whole = fs::read(evaluate(root.path(), "whole", &config).done().join("answers.jsonl")).unwrap();
    let single = trial(root.path(), "single").micro_batch(1).run::<Eval>(&config).done();
    assert_eq!(fs::read(single.join("answers.jsonl")).unwrap(), whole);

    let stopped = trial(root.path(), "stopped").micro_batch(2).cancelled_after(3).run::<Eval>(&config);
    assert!(matches!(stopped.error(), crate::StageError::Cancelled));
    let log = root.path().join("stopped/checkpoint/answers.jsonl");
    let before = lines(&log).len();
    assert!(before > 0);
    fs::write(&log, [fs::read(&log).unwrap().as_slice(), b"{\"question_id\": 1, \"te"].concat()).unwrap();
    let resumed = evaluate(root.path(), "stopped", &config);
    let crate::event::Event::Progress(first) = &resumed.events[0] else { panic!("{:?}", resumed.events[0]) };
    assert_eq!(first.done as usize, before, "it goes on where it was");
    assert_eq!(fs::read(resumed.done().join("answers.jsonl")).unwrap(), whole);
}

#[test]
fn a_blank_image_gives_equal_answers_to_equal_questions() {
    let root = workshop();
    let config = json!({"benchmark": "pope", "max_new_tokens": 3, "ablate_image": true});
    let answers = lines(&evaluate(root.path(), "work", &config).done().join("answers.jsonl"));
    for one in &answers {
        for other in answers.iter().filter(|other| other["prompt"] == one["prompt"]) {
            assert_eq!(one["text"], other["text"]);
        }
    }
}

#[test]
fn a_limit_takes_the_first_questions() {
    let root = workshop();
    for (benchmark, count) in [("pope", 6), ("vqav2", 2)] {
        let config = json!({"benchmark": benchmark, "max_new_tokens": 1, "limit": 2});
        let answers = lines(&evaluate(root.path(), benchmark, &config).done().join("answers.jsonl"));
        assert_eq!(answers.len(), count);
    }
}

#[test]
fn what_is_missing_is_found_before_the_model_is_loaded() {
    let root = workshop();
    fs::remove_dir_all(root.path().join("model")).unwrap();
    fs::remove_file(root.path().join("data/eval/images/000000000002.png")).unwrap();
    fs::remove_file(root.path().join("data/eval/images/000000000003.png")).unwrap();
    for (config, words, help) in [
        (
            json!({"benchmark": "pope"}),
            "000000000002.png: this image of the benchmark is missing, and 1 more",
            "image_folder",
        ),
        (
            json!({"benchmark": "pope", "questions": "eval"}),
            "shown/data/eval/coco_pope_adversarial.json: the file is missing",
            "`questions`",
        ),
        (json!({"benchmark": "vqav2", "annotations": "x"}), "shown/data/x: the file is missing", "`annotations`"),
    ] {
        let error = evaluate(root.path(), "work", &config).error();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.help().unwrap().contains(help), "{error:?}");
    }
}

#[test]
fn a_model_with_a_foreign_tokenizer_is_refused() {
    let root = workshop_with(&json!({"hidden_size": 32, "layers": 2, "heads": 2, "vocab_size": 300}));
    let usual = json!({"source": "builtin:tiny-phi", "model": {"hidden_size": 16, "layers": 1}});
    let other = Trial::new(&root.path().join("other"), &[]).run::<Download>(&usual).done();
    fs::copy(other.join("tokenizer.json"), root.path().join("model/llm/tokenizer.json")).unwrap();
    let error = evaluate(root.path(), "work", &json!({"benchmark": "vqav2"})).error();
    assert!(error.to_string().contains("beyond the model's"), "{error}");
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    for (config, key) in [
        (json!({"benchmark": "pope", "max_new_tokens": 0}), "max_new_tokens"),
        (json!({"benchmark": "pope", "annotations": "x"}), "annotations"),
        (json!({"benchmark": "vqav2", "template": "plain"}), "template"),
        (json!({"benchmark": "vqav2", "image_folder": "/somewhere"}), "image_folder"),
    ] {
        assert_eq!(Eval::check(&serde_json::from_value(config).unwrap()).unwrap_err().key, key);
    }
}
