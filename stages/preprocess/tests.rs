//! Runs the stage on good data; `refusals.rs` on bad data.
#![allow(clippy::unwrap_used)]

mod refusals;

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Stage,
    data::records::RecordSet,
    download::Download,
    preprocess::Preprocess,
    testing::{Outcome, Trial, tree},
    text::tokenizer::TextTokenizer,
};

/// A folder with a tokenizer in `phi`, and with `records` and two images in `data`.
fn workshop(records: &Value) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    let model = json!({"source": "builtin:tiny-phi", "model": {"hidden_size": 16, "layers": 1}});
    Trial::new(&root.path().join("phi"), &[]).run::<Download>(&model).done();
    let images = root.path().join("data/images/sub");
    fs::create_dir_all(&images).unwrap();
    for (name, file) in [("a.png", "up_7x5.png"), ("b.jpg", "jpeg420_60x44.jpg")] {
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("image/fixtures/files").join(file), images.join(name))
            .unwrap();
    }
    fs::write(root.path().join("data/train.json"), serde_json::to_string_pretty(records).unwrap()).unwrap();
    root
}

fn preprocess(root: &Path, work: &str, extra: &Value) -> Outcome {
    let mut config = json!({"annotations": "train.json", "template": "phi2"});
    config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    let inputs = [("data", &*root.join("data")), ("tokenizer", &*root.join("phi/out"))];
    Trial::new(&root.join(work), &inputs).run::<Preprocess>(&config)
}

fn record(id: &str, image: Option<&str>, question: &str, answer: &str) -> Value {
    let turns = json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}]);
    match image {
        Some(image) => json!({"id": id, "image": image, "conversations": turns}),
        None => json!({"id": id, "conversations": turns}),
    }
}

/// With more records than are converted at a time.
#[test]
fn many_records_stay_in_order() {
    let names = ["sub/a.png", "sub/b.jpg"];
    let image = |number: usize| if number == 200 { "sub/none.png" } else { names[number % 2] };
    let records: Vec<Value> =
        (0..300).map(|number| record(&number.to_string(), Some(image(number)), "<image>\nWhich?", "This.")).collect();
    let root = workshop(&json!(records));
    let out = preprocess(root.path(), "work", &json!({"max_rejected": 1})).done();
    let set = RecordSet::open(&out).unwrap();
    assert_eq!((set.len(), set.meta().images), (299, 2));
    let files = names.map(|name| fs::read(root.path().join("data/images").join(name)).unwrap());
    for number in 0..299 {
        let record = set.record(number).unwrap();
        let id = if number < 200 { number } else { number + 1 };
        assert_eq!(record.id, id.to_string());
        assert_eq!(record.images().collect::<Vec<_>>(), [&files[id % 2]]);
    }
    let rejected: Value = serde_json::from_slice(&fs::read(out.join("rejected.jsonl")).unwrap()).unwrap();
    let text = fs::read_to_string(root.path().join("data/train.json")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let id = lines.iter().position(|line| line.contains("\"200\"")).unwrap();
    assert_eq!(rejected["line"], lines[..id].iter().rposition(|line| *line == "  {").unwrap() + 1);
}

fn good() -> Value {
    json!([
        record("one", Some("sub/a.png"), "<image>\nWhat is it?", "A dot."),
        record("two", None, "What is 2+2?", "4"),
        record("three", Some("sub/b.jpg"), "<image>\nAnd this?", "Something longer than the others."),
        record("four", Some("sub/a.png"), "Again?\n<image>", "Yes."),
    ])
}

#[test]
fn records_come_back_as_they_were_put_in() {
    let root = workshop(&good());
    let outcome = preprocess(root.path(), "work", &json!({"image_aspect_ratio": "pad"}));
    assert_eq!((outcome.figure("records") as usize, outcome.figure("images") as usize), (4, 2));
    let set = RecordSet::open(&outcome.done()).unwrap();
    let records: Vec<_> = (0..set.len()).map(|number| set.record(number).unwrap()).collect();
    assert_eq!(records.iter().map(|record| record.id).collect::<Vec<_>>(), ["one", "two", "three", "four"]);
    assert_eq!(set.lengths().count(), records.len());
    for (record, length) in records.iter().zip(set.lengths()) {
        assert_eq!(record.input_ids.len(), length);
        assert_eq!(record.labels.len(), length);
        assert!(record.labels.iter().zip(record.input_ids).all(|(label, id)| *label == -100 || label == id));
        assert_eq!(record.input_ids.iter().filter(|id| **id == -200).count(), record.images().len());
    }
    let file = |name: &str| fs::read(root.path().join("data/images/sub").join(name)).unwrap();
    assert_eq!(records[0].images().collect::<Vec<_>>(), [file("a.png")]);
    assert_eq!(records[2].images().collect::<Vec<_>>(), [file("b.jpg")]);
    assert!(records[3].image_numbers().eq(records[0].image_numbers()), "an image is stored once");
    assert_eq!(records[1].images().len(), 0);
    assert_eq!(set.modality_lengths().collect::<Vec<_>>(), [6, -4, 8, 3]);
    assert_eq!(set.meta().image_aspect_ratio, "pad");
    assert!(set.record(4).is_err());
}

#[test]
fn images_come_from_the_first_folder_that_has_them() {
    let root = workshop(&good());
    let whole = preprocess(root.path(), "whole", &json!({})).done();
    let config = json!({"annotations": "train.json", "template": "phi2"});
    for (folder, file) in [("first", "sub/a.png"), ("second", "sub/b.jpg")] {
        fs::create_dir_all(root.path().join(folder).join("sub")).unwrap();
        fs::rename(root.path().join("data/images").join(file), root.path().join(folder).join(file)).unwrap();
    }
    let path = |name: &str| root.path().join(name);
    let (data, phi, first, second) = (path("data"), path("phi/out"), path("first"), path("second"));
    let run = |work: &str, folders: &[(&str, &Path)]| {
        let inputs = [&[("data", &*data), ("tokenizer", &*phi)], folders].concat();
        Trial::new(&root.path().join(work), &inputs).run::<Preprocess>(&config)
    };
    let parts = run("parts", &[("images[0]", &*first), ("images[1]", &*second)]).done();
    assert!(tree(&parts) == tree(&whole));
    let error = run("none", &[("images[0]", &*first)]).error().to_string();
    assert!(error.contains("sub/b.jpg is in none of the folders of `images`"), "{error}");
}

#[test]
fn json_lines_are_read_like_an_array() {
    let root = workshop(&good());
    let whole = preprocess(root.path(), "whole", &json!({})).done();
    let lines: Vec<String> = good().as_array().unwrap().iter().map(ToString::to_string).collect();
    fs::write(root.path().join("data/train.jsonl"), format!("\u{feff}{}\r\n", lines.join("\r\n"))).unwrap();
    let parts = preprocess(root.path(), "lines", &json!({"annotations": "train.jsonl"})).done();
    assert!(tree(&parts) == tree(&whole));
}

#[test]
fn a_turn_may_mention_several_images() {
    let mut both = record("both", None, "<image>\n<image>\nCompare them", "Done.");
    both["image"] = json!(["sub/a.png", "sub/b.jpg"]);
    let twice = record("twice", Some("sub/a.png"), "<image> or <image>?", "Yes.");
    let root = workshop(&json!([both, twice]));
    let set = RecordSet::open(&preprocess(root.path(), "work", &json!({})).done()).unwrap();
    let images = |number: usize| {
        let record = set.record(number).unwrap();
        (record.input_ids.iter().filter(|id| **id == -200).count(), record.images().len())
    };
    assert_eq!((images(0), images(1)), ((2, 2), (1, 1)), "one image is mentioned once, as in the reference");
}

#[test]
fn the_same_data_gives_the_same_bytes() {
    let root = workshop(&good());
    let first = tree(&preprocess(root.path(), "first", &json!({})).done());
    let second = tree(&preprocess(root.path(), "second", &json!({})).done());
    assert!(first == second);
    let names: Vec<_> = first.keys().map(|path| path.to_string_lossy().into_owned()).collect();
    assert_eq!(names, ["images.bin", "index.bin", "meta.json", "records.bin"]);
}

#[test]
fn long_records_are_cut() {
    let root = workshop(&good());
    let set = RecordSet::open(&preprocess(root.path(), "work", &json!({"max_length": 46})).done()).unwrap();
    assert!(set.lengths().all(|length| length <= 46) && set.lengths().any(|length| length == 46));
    assert!(set.meta().cut > Some(0) && set.meta().masked < Some(4), "{:?}", set.meta());
}

#[test]
fn lost_labels_are_counted_and_told_with_the_result() {
    let root = workshop(&json!([
        record("fine", Some("sub/a.png"), "<image>\nWhat is it?", "A dot."),
        record("cut", None, &"word ".repeat(500), "Lost."),
        record("empty", None, "What?", ""),
        record("blind", Some("sub/a.png"), "What colour is it?", "Red."),
        record("bare", None, "<image>\nWhat?", "A dot."),
        json!({"id": "asks", "conversations": [{"from": "human", "value": "What?"}]}),
    ]));
    let outcome = preprocess(root.path(), "work", &json!({"max_length": 200}));
    let figures = ["cut", "masked", "without_image_token"].map(|name| outcome.figure(name) as usize);
    assert_eq!(figures, [1, 3, 1], "{}", outcome.warnings());
    let said: Vec<&str> = outcome.cautions();
    for words in [
        "3 of 6 record(s) have no labels",
        "1: the answer begins after `max_length` = 200: record 2 (id cut)",
        "1: the conversation ends with a question: record 6 (id asks)",
        "1: an answer is empty: record 3 (id empty)",
        "1 of 6 record(s) have an image but no `<image>`",
        "1 of 6 record(s) say `<image>` but name no image",
    ] {
        assert!(said.iter().any(|said| said.contains(words)), "{words}: {said:#?}");
    }
    let set = RecordSet::open(&outcome.done()).unwrap();
    assert_eq!((set.meta().cut, set.meta().masked, set.meta().without_image_token), (Some(1), Some(3), Some(1)));
}

#[test]
fn an_image_in_an_answer_is_no_label() {
    let root = workshop(&json!([record("draws", Some("sub/a.png"), "Draw a square", "<image>\nHere.")]));
    let set = RecordSet::open(&preprocess(root.path(), "work", &json!({})).done()).unwrap();
    let record = set.record(0).unwrap();
    assert_eq!(record.input_ids.iter().filter(|id| **id == -200).count(), 1);
    assert!(record.labels.iter().all(|label| *label == -100 || *label >= 0), "{:?}", record.labels);
    assert!(record.learned() > 2);
}

#[test]
fn records_with_images_of_a_pattern_are_left_out() {
    let root = workshop(&json!([
        record("one", Some("sub/a.png"), "<image>\nWhat is it?", "A dot."),
        record("missing", Some("sub/none.png"), "<image>\nWhat is it?", "A dot."),
        record("two", None, "What is 2+2?", "4"),
        record("three", Some("sub/b.jpg"), "<image>\nAnd this?", "Yes."),
    ]));
    let config = json!({"leave_out": ["*/a.png"], "max_rejected": 1});
    let outcome = preprocess(root.path(), "work", &config);
    assert_eq!(outcome.figure("left_out") as usize, 1);
    // Those that are left out count in the numbers of others.
    assert!(outcome.cautions().iter().any(|said| said.contains("record 2")), "{:#?}", outcome.cautions());
    let set = RecordSet::open(&outcome.done()).unwrap();
    let ids: Vec<_> = (0..set.len()).map(|number| set.record(number).unwrap().id.to_string()).collect();
    assert_eq!(ids, ["two", "three"]);
    // What matches nothing is a mistake.
    let config = json!({"leave_out": ["*/a.png", "sub/c*"], "max_rejected": 1});
    let error = preprocess(root.path(), "other", &config).error().to_string();
    assert!(error.contains("`sub/c*` in `leave_out` matches no record's image"), "{error}");
}
