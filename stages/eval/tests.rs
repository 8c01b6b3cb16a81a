//! Runs the stage on a tiny model.
#![allow(clippy::unwrap_used)]

mod batches;

use std::{
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use imp_model::{Imp, config::ImpConfig, save};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    Eval, EvalConfig, answers,
    figures::assert_declared,
    files::Text,
    question::{Benchmark, Scores},
};
use crate::{
    Job, Stage,
    contract::input::Input,
    download::Download,
    testing::{Outcome, Trial, tree},
};

/// A file or folder of `stages/eval/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/fixtures").join(name)
}

pub(super) fn fixture_text(name: &str) -> Text {
    Text { text: fs::read_to_string(fixture(name)).unwrap(), named: name.into() }
}

/// The default configuration of a benchmark.
pub(crate) fn config(benchmark: &str) -> EvalConfig {
    serde_json::from_value(json!({"benchmark": benchmark})).unwrap()
}

/// A job for scorers that don't use it.
pub(crate) fn job() -> Job {
    Trial::new(Path::new("nowhere"), &[]).job()
}

/// The answers of a fixture file to the questions of a benchmark.
pub(super) fn answers_of(benchmark: &dyn Benchmark, name: &str) -> Vec<String> {
    answers::read(&[fixture_text(name)], benchmark.questions()).unwrap()
}

/// The score of the answers to the questions of a benchmark.
pub(super) fn score_of(benchmark: &dyn Benchmark, answers: &[String]) -> Scores {
    let scores = benchmark.score(answers, &job()).unwrap();
    assert_declared(&scores);
    scores
}

/// A folder with `model`, an untrained Imp, and `data`, a few drawn images with questions.
pub(crate) fn workshop() -> TempDir {
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

pub(crate) fn trial(root: &Path, work: &str) -> Trial {
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
        let metadata = |line: &Value| line["metadata"].clone();
        assert!(answers.iter().all(|line| metadata(line)["truth"][0].is_string()), "{}", answers[0]);
        // The mean of the scores of the answers is the figure.
        let mean =
            answers.iter().map(|line| metadata(line)["score"].as_f64().unwrap()).sum::<f64>() / answers.len() as f64;
        let accuracy = results["figures"]["accuracy"].as_f64().unwrap();
        let accuracy = accuracy / 100.0;
        assert!((mean - accuracy).abs() < 1e-4, "{mean} {accuracy}");
        let image = metadata(&answers[0])["image"].as_str().unwrap().to_string();
        assert!(root.path().join(&image).is_file(), "{image} is INPUT/PATH");
    }
}

#[test]
fn a_blank_image_gives_equal_answers_to_equal_questions() {
    let root = workshop();
    let config = json!({"benchmark": "pope", "max_new_tokens": 3, "ablate_image": true});
    let answers = lines(&evaluate(root.path(), "work", &config).done().join("answers.jsonl"));
    assert!(answers.iter().all(|line| line["metadata"]["image"].is_null()), "the model saw no image");
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

/// A folder with a benchmark's fixture files, and one with a drawn image under the name of each of its images.
fn official(root: &Path, folder: &str, images: impl IntoIterator<Item = String>) -> [PathBuf; 2] {
    let [files, pictures] = ["files", "pictures"].map(|part| root.join(format!("{folder}_{part}")));
    for (path, content) in tree(&fixture(folder)) {
        let path = files.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    for (number, image) in images.into_iter().enumerate() {
        let path = pictures.join(image);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(root.join(format!("data/eval/images/{:012}.png", number % 4)), path).unwrap();
    }
    fs::create_dir_all(&pictures).unwrap();
    [files, pictures]
}

#[test]
fn every_benchmark_is_read_from_its_own_files_in_several_downloads() {
    let root = workshop();
    let image = fs::read(root.path().join("data/eval/images/000000000001.png")).unwrap();
    let each = |count: usize, name: &dyn Fn(usize) -> String| (0..count).map(name).collect::<Vec<_>>();
    let mme = fixture_text("mme/llava_mme.jsonl").json_lines::<Value>().unwrap();
    let mme = mme.iter().map(|(_, line)| format!("MME_Benchmark_release_version/{}", line["image"].as_str().unwrap()));
    let [gqa, vizwiz, textvqa, scienceqa, mmbench, mmvet] = [
        official(root.path(), "gqa", each(18, &|n| format!("images/n{n}.jpg"))),
        official(root.path(), "vizwiz", each(68, &|n| format!("val/VizWiz_val_{n:08}.jpg"))),
        official(root.path(), "textvqa", each(65, &|n| format!("train_images/img{n:04}.jpg"))),
        official(root.path(), "scienceqa", each(30, &|n| format!("images/test/{n}/image.png"))),
        official(root.path(), "mmbench", []),
        official(root.path(), "mm-vet", each(8, &|n| format!("images/v1_{n}.jpg"))),
    ];
    let tsv = mmbench[0].join("mmbench_dev_20230712.tsv");
    let table = fs::read_to_string(&tsv).unwrap().replace("iVBORw0KGgo=", &STANDARD.encode(image));
    fs::write(&tsv, table).unwrap();
    // MME's images are in the folder of its texts.
    let [files, pictures] = official(root.path(), "mme", mme);
    for (path, content) in tree(&pictures) {
        fs::create_dir_all(files.join(&path).parent().unwrap()).unwrap();
        fs::write(files.join(path), content).unwrap();
    }
    fs::remove_dir_all(pictures.join("MME_Benchmark_release_version")).unwrap();
    for (benchmark, [files, pictures], questions, figures, upload) in [
        ("gqa", &gqa, 18, 3, Some("testdev_balanced_predictions.json")),
        ("vizwiz", &vizwiz, 68, 5, Some("upload.json")),
        ("textvqa", &textvqa, 65, 1, None),
        ("scienceqa", &scienceqa, 20, 2, None),
        ("mme", &[files, pictures], 140, 2, None),
        ("mmbench", &mmbench, 22, 2, Some("upload.xlsx")),
        ("mmvet", &mmvet, 8, 0, Some("upload.json")),
    ] {
        let inputs = [("model", root.path().join("model")), ("data[0]", pictures.clone()), ("data[1]", files.clone())];
        let inputs = inputs.each_ref().map(|(name, path)| (*name, path.as_path()));
        let config = json!({"benchmark": benchmark, "max_new_tokens": 2});
        // Small enough for some batches of ScienceQA to have no image.
        let out = Trial::new(&root.path().join(benchmark), &inputs).micro_batch(3).run::<Eval>(&config).done();
        assert_eq!(lines(&out.join("answers.jsonl")).len(), questions, "{benchmark}");
        let results: Value = serde_json::from_str(&fs::read_to_string(out.join("results.json")).unwrap()).unwrap();
        assert_eq!(results["figures"].as_object().unwrap().len(), figures, "{benchmark}");
        assert!(upload.is_none_or(|name| out.join(name).is_file()), "{benchmark}");
    }
}

#[test]
fn prompts_can_come_from_a_question_file() {
    let root = workshop();
    let questions = fs::read(root.path().join("data/eval/vqav2/questions.json")).unwrap();
    let questions: Value = serde_json::from_slice(&questions).unwrap();
    let line = |question: &Value| {
        json!({"question_id": question["question_id"], "image": "x", "text": "Well?", "category": "default"})
            .to_string()
    };
    let file: Vec<String> = questions["questions"].as_array().unwrap().iter().map(line).collect();
    fs::write(root.path().join("data/llava.jsonl"), file.join("\n")).unwrap();
    let config = json!({"benchmark": "vqav2", "max_new_tokens": 1, "prompts": "llava.jsonl"});
    let answers = lines(&evaluate(root.path(), "work", &config).done().join("answers.jsonl"));
    assert!(answers.iter().all(|answer| answer["prompt"] == "Well?"));
}

#[test]
fn an_invalid_image_is_named_with_its_question() {
    let root = workshop();
    fs::write(root.path().join("data/eval/images/000000000001.png"), "text").unwrap();
    let error = evaluate(root.path(), "work", &json!({"benchmark": "vqav2", "max_new_tokens": 1})).error().to_string();
    let words = "shown/data/eval/images/000000000001.png: the image of question 1000 can't be used: this is not a PNG";
    assert!(error.starts_with(words), "{error}");
}

#[test]
fn missing_files_are_reported_before_the_model_is_loaded() {
    let root = workshop();
    fs::remove_dir_all(root.path().join("model")).unwrap();
    fs::remove_file(root.path().join("data/eval/images/000000000002.png")).unwrap();
    fs::remove_file(root.path().join("data/eval/images/000000000003.png")).unwrap();
    for (config, words, help) in [
        (
            json!({"benchmark": "pope"}),
            "000000000002.png: the image of question 9 is missing, and 1 more",
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
fn invalid_configurations_are_refused() {
    for (config, key) in [
        (json!({"benchmark": "pope", "max_new_tokens": 0}), "max_new_tokens"),
        (json!({"benchmark": "pope", "annotations": "x"}), "annotations"),
        (json!({"benchmark": "gqa", "ocr": "x"}), "ocr"),
        (json!({"benchmark": "gqa", "split": "test"}), "split"),
        (json!({"benchmark": "gqa", "shards": 2, "shard": 2}), "shard"),
        (json!({"benchmark": "vqav2", "template": "plain"}), "template"),
        (json!({"benchmark": "vqav2", "image_folder": "/somewhere"}), "image_folder"),
    ] {
        assert_eq!(Eval::check(&serde_json::from_value(config).unwrap()).unwrap_err().key, key);
    }
}

#[test]
fn defaults_of_the_benchmark_are_part_of_the_configuration() {
    let canonical = |benchmark: &str| serde_json::to_value(config(benchmark)).unwrap();
    let letter = "\nAnswer with the option's letter from the given choices directly.";
    let mmbench = canonical("mmbench");
    assert_eq!((&mmbench["max_new_tokens"], &mmbench["prompt_suffix"]), (&json!(1024), &json!(letter)));
    assert_eq!(canonical("gqa")["max_new_tokens"], 128);
    let again: EvalConfig = serde_json::from_value(mmbench.clone()).unwrap();
    assert_eq!(serde_json::to_value(again).unwrap(), mmbench);
}

#[test]
fn a_model_or_answers_must_be_given() {
    let config = |more: Value| serde_json::from_value(more).unwrap();
    let plain: EvalConfig = config(json!({"benchmark": "gqa"}));
    let shard: EvalConfig = config(json!({"benchmark": "gqa", "shards": 2, "shard": 1}));
    let key = |config: &EvalConfig, models: usize, answers: usize| {
        let count = |name: &str| if name == "model" { models } else { answers };
        Eval::check_inputs(config, &count).err().map(|issue| issue.key)
    };
    assert_eq!(key(&plain, 0, 0).as_deref(), Some("model"));
    assert_eq!(key(&plain, 1, 1).as_deref(), Some("model"));
    assert_eq!(key(&shard, 0, 2).as_deref(), Some("shard"));
    assert_eq!([key(&plain, 1, 0), key(&plain, 0, 2), key(&shard, 1, 0)], [None, None, None]);
}

#[test]
fn an_image_in_another_folder_of_the_data_is_found_for_the_message() {
    let root = workshop();
    fs::create_dir_all(root.path().join("data/pictures")).unwrap();
    let from = root.path().join("data/eval/images/000000000002.png");
    fs::rename(from, root.path().join("data/pictures/000000000002.png")).unwrap();
    let error = evaluate(root.path(), "work", &json!({"benchmark": "pope"})).error();
    assert!(error.help().unwrap().ends_with("set `image_folder = \"pictures\"`"), "{error:?}");
}

#[test]
fn a_model_is_asked_in_the_template_that_it_was_trained_in() {
    let root = workshop();
    let path = root.path().join("model/config.json");
    let name = |template: &str| {
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config["conversation_template"] = json!(template);
        fs::write(&path, config.to_string()).unwrap();
    };
    // This tokenizer can't write it, which shows that it was chosen.
    name("qwen2");
    let pope = json!({"benchmark": "pope", "limit": 1});
    let error = trial(root.path(), "trained").run::<Eval>(&pope).error().to_string();
    assert!(error.contains("which the template `qwen2` needs"), "{error}");
    let outcome =
        trial(root.path(), "named").run::<Eval>(&json!({"benchmark": "pope", "limit": 1, "template": "phi2"}));
    let words = "the model was trained in the template `qwen2` and is asked in `phi2`";
    assert!(outcome.cautions()[0].starts_with(words), "{:?}", outcome.cautions());
    outcome.done();
    name("chatter");
    let error = trial(root.path(), "unknown").run::<Eval>(&pope).error().to_string();
    assert!(error.contains("`conversation_template` is `chatter`"), "{error}");
    let before = crate::speaker::without_template(&crate::model_folder::outlook(&root.path().join("model"))).unwrap();
    assert!(
        before.contains("`chatter`, which this version does not know: set `template` to one of `phi2`"),
        "{before}"
    );
    trial(root.path(), "helped").run::<Eval>(&json!({"benchmark": "pope", "limit": 1, "template": "phi2"})).done();
}

#[test]
fn prompts_are_never_cut() {
    let root = workshop();
    let path = root.path().join("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["tokenizer_model_max_length"] = json!(20);
    fs::write(&path, config.to_string()).unwrap();
    let error = trial(root.path(), "cut").run::<Eval>(&json!({"benchmark": "pope", "limit": 1})).error().to_string();
    assert!(error.contains("positions, and the model reads 20: its end would be cut off"), "{error}");
}
