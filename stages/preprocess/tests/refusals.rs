//! What is refused or told, and in which words.

use super::*;

#[test]
fn errors_stay_short_and_say_where_images_are() {
    let embedded = format!("data:image/png;base64,{}", "iVBORw0KGgo".repeat(100_000));
    let root = workshop(&json!([record("embedded", Some(&embedded), "<image>\nWhat?", "A.")]));
    let error = preprocess(root.path(), "embedded", &json!({})).error();
    assert!(error.to_string().len() < 1000 && error.to_string().contains("it may hold the image itself"), "{error}");
    assert!(error.help().unwrap().contains("write the images to files"));
    let wrong = json!([{"id": {"a": "x".repeat(1 << 20)}, "conversations": [{"from": "human", "value": {"b": "y".repeat(1 << 20)}}]}]);
    let root = workshop(&wrong);
    let error = preprocess(root.path(), "long", &json!({})).error().to_string();
    assert!(error.len() < 2000 && error.contains("there is an object where a string must be"), "{error}");
    let root = workshop(&json!([record("elsewhere", Some("c.png"), "<image>\nWhat?", "A.")]));
    let gone = preprocess(root.path(), "gone", &json!({})).error();
    assert!(
        gone.help().unwrap().contains("relative to `image_folder` in the data folder (default: `images`)"),
        "{gone:?}"
    );
    fs::copy(root.path().join("data/images/sub/a.png"), root.path().join("data/c.png")).unwrap();
    let outside = preprocess(root.path(), "outside", &json!({})).error();
    assert!(outside.help().unwrap().ends_with("set `image_folder = \".\"`"), "{outside:?}");
}

#[test]
fn a_file_without_any_label_is_refused_with_the_reasons() {
    let long = "Describe in detail what you can see in this picture, please.";
    let root = workshop(&json!([record("a", None, long, "Red."), record("b", None, &long.repeat(2), "Red.")]));
    let error = preprocess(root.path(), "cut", &json!({"max_length": 45})).error();
    assert!(error.to_string().contains("none of the 2 record(s) has a label to learn"), "{error}");
    assert!(error.to_string().contains("2: the answer begins after `max_length` = 45"), "{error}");
    let tokens = error.help().unwrap().split("has ").nth(1).unwrap().split(' ').next().unwrap().to_string();
    let enough = json!({"max_length": tokens.parse::<usize>().unwrap()});
    preprocess(root.path(), "fits", &enough).done();
    let root = workshop(&json!([record("a", None, "What?", "")]));
    let error = preprocess(root.path(), "empty", &json!({})).error();
    assert!(error.to_string().contains("1: an answer is empty: record 1 (id a)"), "{error}");
    assert!(error.help().unwrap().contains("answer from `gpt`"), "{error:?}");
}

#[test]
fn tokens_without_an_embedding_are_known_before_training() {
    let root = workshop(&good());
    let path = root.path().join("phi/out/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let tokenizer = TextTokenizer::open(path.parent().unwrap(), Path::new("")).unwrap();
    let end = tokenizer.id("</s>").unwrap();
    (config["num_attention_heads"], config["num_key_value_heads"]) = (json!(1), json!(1));
    config["vocab_size"] = json!(end);
    fs::write(&path, config.to_string()).unwrap();
    let error = preprocess(root.path(), "work", &json!({})).error();
    let words = format!("needs `</s>`, which is token {end}, but the model has {end} embeddings");
    assert!(error.to_string().contains(&words), "{error}");
    config["vocab_size"] = json!(20);
    fs::write(&path, config.to_string()).unwrap();
    fs::write(
        root.path().join("data/caption.json"),
        json!([record("c", Some("sub/a.png"), "<image>", "zz.")]).to_string(),
    )
    .unwrap();
    let error =
        preprocess(root.path(), "caption", &json!({"template": "plain", "annotations": "caption.json"})).error();
    assert!(error.to_string().contains("the model has 20 embeddings: the tokenizer is another model's"), "{error}");
}

#[test]
fn bad_records_are_named_with_line_and_reason() {
    let mut bad = good();
    bad.as_array_mut().unwrap().extend([
        record("gone", Some("sub/c.png"), "<image>\nWhere?", "Gone."),
        record("out", Some("../../etc/passwd"), "<image>\nWhere?", "Out."),
        record("twice", Some("sub/a.png"), "<image>\nOne?", "<image> two"),
        json!({"id": "empty", "conversations": []}),
        json!({"id": "role", "conversations": [{"from": "system", "value": "x"}]}),
        json!({"id": "keyless"}),
        json!({"id": "number", "image": 3, "conversations": [{"from": "human", "value": "x"}]}),
    ]);
    let root = workshop(&bad);
    fs::write(root.path().join("data/images/sub/broken.png"), b"\x89PNG\r\n\x1a\nnot really").unwrap();
    let text = preprocess(root.path(), "strict", &json!({})).error().to_string();
    assert!(text.starts_with("shown/data/train.json:57: 7 records are unusable"), "{text}");
    assert!(text.contains("record 5 (line 57, id gone): the image images/sub/c.png is missing"), "{text}");
    assert!(text.contains("and 4 more"), "{text}");

    let outcome = preprocess(root.path(), "lenient", &json!({"max_rejected": 7}));
    assert!(outcome.warnings().contains("7 unusable record(s) dropped"), "{}", outcome.warnings());
    assert_eq!(outcome.figure("rejected") as usize, 7);
    let lines = fs::read_to_string(outcome.done().join("rejected.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 7);
    for (line, words) in lines.lines().zip([
        "c.png is missing",
        "leads out of the image folder",
        "2 `<image>` for 1 image",
        "conversation is empty",
        "turn 1 is from `system`",
        "the key `conversations` is missing",
        "`image` must be the path",
    ]) {
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn common_mistakes_have_their_own_help() {
    let records = json!([
        record("prefix", Some("images/sub/a.png"), "<image>\nWhat?", "A."),
        json!({"id": "openai", "messages": [{"role": "user", "content": "What?"}]}),
    ]);
    for (record, words) in records.as_array().unwrap().iter().zip(["relative to `image_folder`", "`messages` format"]) {
        let root = workshop(&json!([record]));
        let error = preprocess(root.path(), "work", &json!({})).error();
        assert!(error.help().unwrap().contains(words), "{error:?}");
    }
}

#[test]
fn an_image_that_cannot_be_decoded_is_a_bad_record() {
    let root = workshop(&json!([record("x", Some("sub/a.png"), "<image>\nWhat?", "A.")]));
    let whole = fs::read(root.path().join("data/images/sub/a.png")).unwrap();
    fs::write(root.path().join("data/images/sub/a.png"), &whole[..whole.len() - 30]).unwrap();
    let error = preprocess(root.path(), "work", &json!({})).error();
    assert!(error.to_string().contains("images/sub/a.png can't be decoded"), "{error}");
    assert!(error.help().unwrap().contains("max_rejected"));
}

#[test]
fn records_without_labels_are_counted_and_named() {
    let root = workshop(&json!([
        record("fine", None, "What is 2+2?", "4"),
        record("roles", None, "Why print ASSISTANT: at all?", "So."),
    ]));
    let outcome = preprocess(root.path(), "work", &json!({}));
    assert_eq!(outcome.figure("mismatched") as usize, 1);
    assert!(outcome.warnings().contains("1 of 2 record(s) have no labels") && outcome.warnings().contains("id roles"));
}

#[test]
fn files_that_are_not_what_they_should_be() {
    let root = workshop(&good());
    let data = root.path().join("data");
    fs::write(data.join("broken.json"), "[\n{\"id\": 1, \"conversations\": []},\n{\"id\"").unwrap();
    fs::write(data.join("empty.json"), "[]").unwrap();
    fs::write(data.join("utf16.json"), b"\xff\xfe[\0]\0").unwrap();
    for (extra, words, help) in [
        (
            json!({"annotations": "utf16.json"}),
            "shown/data/utf16.json:1: the file is text in UTF-16",
            "save it as UTF-8",
        ),
        (json!({"annotations": "broken.json"}), "shown/data/broken.json:3: the record that begins here", "array"),
        (json!({"annotations": "empty.json"}), "shown/data/empty.json: no records", "conversation"),
        (json!({"annotations": "absent.json"}), "shown/data/absent.json: the annotation file is missing", "train.json"),
    ] {
        let error = preprocess(root.path(), "work", &extra).error();
        assert!(error.to_string().starts_with(words), "{error}");
        assert!(error.help().unwrap().contains(help), "{error:?}");
    }
    fs::write(root.path().join("phi/out/tokenizer.json"), "{}").unwrap();
    let error = preprocess(root.path(), "work", &json!({})).error();
    assert!(error.to_string().starts_with("shown/tokenizer/tokenizer.json: not a tokenizer"), "{error}");
    for key in ["annotations", "image_folder"] {
        let mut config = json!({"annotations": "a", "template": "plain"});
        config[key] = json!("../elsewhere");
        assert_eq!(Preprocess::check(&serde_json::from_value(config).unwrap()).unwrap_err().key, key);
    }
}

#[test]
fn a_damaged_artifact_is_an_error_and_not_a_panic() {
    let root = workshop(&good());
    let out = preprocess(root.path(), "work", &json!({})).done();
    let read_all = || -> Result<(), crate::StageError> {
        let set = RecordSet::open(&out)?;
        (0..set.len()).try_for_each(|number| set.record(number).map(|record| assert!(record.images().count() < 2)))
    };
    read_all().unwrap();
    for name in ["index.bin", "records.bin", "images.bin", "meta.json"] {
        let whole = fs::read(out.join(name)).unwrap();
        for cut in [0, 7, whole.len() - 2] {
            fs::write(out.join(name), &whole[..cut]).unwrap();
            assert!(read_all().is_err(), "{name} cut to {cut}");
        }
        fs::remove_file(out.join(name)).unwrap();
        assert!(read_all().unwrap_err().to_string().contains("missing"), "{name}");
        fs::write(out.join(name), &whole).unwrap();
    }
    let whole = fs::read(out.join("index.bin")).unwrap();
    for position in 0..whole.len() {
        for value in [0, 0x7f, 0xff] {
            let mut damaged = whole.clone();
            damaged[position] = value;
            fs::write(out.join("index.bin"), damaged).unwrap();
            drop(read_all()); // any result will do, but no panic
        }
    }
}
