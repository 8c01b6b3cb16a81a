//! Templates and masks, token for token as Imp's preprocessing gives them with the Phi-2 tokenizer.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use flate2::read::GzDecoder;
use imp_model::config::Family;
use serde::Deserialize;
use serde_json::json;

use super::{conversation::Turn, template::Template, tokenizer::TextTokenizer};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("text/fixtures").join(name)
}

/// The Phi-2 tokenizer, put together from its merges: its ids are the 256 bytes, the merges in order,
/// `<|endoftext|>`, then runs of blanks from 31 down to 2 and of tabs from 9 down to 2.
pub(crate) static PHI2: LazyLock<TextTokenizer> = LazyLock::new(|| {
    let mut text = String::new();
    let file = std::fs::File::open(fixture("phi2_merges.txt.gz")).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let merges: Vec<&str> = text.lines().filter(|line| !line.starts_with("#version")).collect();
    let mut words: Vec<String> = byte_alphabet();
    words.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    words.push("<|endoftext|>".into());
    let vocab: BTreeMap<&str, usize> = words.iter().enumerate().map(|(id, word)| (word.as_str(), id)).collect();
    let blanks = (2..=31).rev().map(|n| " ".repeat(n)).chain((2..=9).rev().map(|n| "\t".repeat(n)));
    let mut added = vec![json!({"id": 50256, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})];
    added.extend(blanks.enumerate().map(|(number, text)| {
        json!({"id": 50257 + number, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": true, "special": false})
    }));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let file = json!({"version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges}});
    let mut tokenizer = TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
    Template::Phi2.prepare(&mut tokenizer).unwrap();
    tokenizer
});

/// GPT-2's characters for the 256 bytes: printable ones first.
fn byte_alphabet() -> Vec<String> {
    let printable: Vec<u32> = (33..=126).chain(161..=172).chain(174..=255).collect();
    let others = 256..256 + (256 - printable.len() as u32);
    printable.iter().copied().chain(others).filter_map(char::from_u32).map(String::from).collect()
}

pub(crate) fn lines<T: for<'a> Deserialize<'a>>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[derive(Deserialize)]
pub(crate) struct Sample {
    pub(crate) image: Option<String>,
    pub(crate) conversations: Vec<Turn>,
}

#[derive(Deserialize)]
pub(crate) struct Training {
    pub(crate) id: String,
    pub(crate) sample: Sample,
    #[serde(default)]
    pub(crate) input_ids: Vec<i32>,
    #[serde(default)]
    labels: Vec<i32>,
    #[serde(default)]
    mismatch_warning: bool,
    error: Option<String>,
}

/// What of Qwen1.5's tokenizer the fixtures need: its merges that are applied in them, its vocabulary of their results,
/// and its special tokens. The ids are Qwen's.
pub(crate) static QWEN: LazyLock<TextTokenizer> = LazyLock::new(|| {
    let mut tokenizer = TextTokenizer::from_bytes(&std::fs::read(fixture("qwen1_5_tokenizer.json")).unwrap()).unwrap();
    Template::Qwen2.prepare(&mut tokenizer).unwrap();
    tokenizer
});

/// What of Phi-3's tokenizer the fixtures need, as for Qwen1.5's. `phi3_*` and `vicuna_v1_sft.jsonl` were made by running the
/// reference's own functions (MILVLG/imp, `preprocess_phi3` and `preprocess_v1`) on the records of `phi2_sft.jsonl`.
pub(crate) static PHI3: LazyLock<TextTokenizer> = LazyLock::new(|| {
    let mut tokenizer = TextTokenizer::from_bytes(&std::fs::read(fixture("phi3_tokenizer.json")).unwrap()).unwrap();
    Template::Phi3.prepare(&mut tokenizer).unwrap();
    tokenizer
});

/// A record on which the reference stops with an error is refused here.
fn check(file: &str, template: Template, tokenizer: &TextTokenizer, count: usize) {
    let cases: Vec<Training> = lines(file);
    assert_eq!(cases.len(), count);
    for case in cases {
        let has_image = case.sample.image.is_some();
        let encoded = template.encode(tokenizer, &case.sample.conversations, has_image, 3072);
        assert_eq!(encoded.is_err(), case.error.is_some(), "{}: {encoded:?}", case.id);
        let Ok(encoded) = encoded else { continue };
        assert_eq!(encoded.input_ids, case.input_ids, "{}", case.id);
        assert_eq!(encoded.labels, case.labels, "{}", case.id);
        assert_eq!(encoded.mismatched, case.mismatch_warning, "{}", case.id);
    }
}

#[test]
fn raw_texts_have_the_ids_of_the_reference() {
    #[derive(Deserialize)]
    struct Raw {
        text: String,
        ids: Vec<i32>,
        decoded_skip_special: String,
    }
    for (file, tokenizer) in [("phi2_raw.jsonl", &PHI2), ("qwen1_5_raw.jsonl", &QWEN)] {
        for case in lines::<Raw>(file) {
            assert_eq!(tokenizer.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
            let ids: Vec<u32> = case.ids.iter().map(|id| *id as u32).collect();
            assert_eq!(tokenizer.decode(&ids).unwrap(), case.decoded_skip_special, "{:?}", case.text);
        }
    }
}

/// Parts of a text lose what begins each: one token, and nothing else, may be put around it.
#[test]
fn a_tokenizer_that_puts_more_around_a_text_is_refused() {
    let end = json!({"SpecialToken": {"id": "</s>", "type_id": 0}});
    let begin = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let mut file: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture("phi3_tokenizer.json")).unwrap()).unwrap();
    file["post_processor"]["special_tokens"]["</s>"] = json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    for (single, is_fine) in [
        (json!([begin, text]), true),
        (json!([text]), true),
        (json!([text, end]), false),
        (json!([begin, text, end]), false),
        (json!([begin, begin, text]), false),
    ] {
        file["post_processor"]["single"] = single.clone();
        let read = TextTokenizer::from_bytes(file.to_string().as_bytes());
        assert_eq!(read.is_ok(), is_fine, "{single}");
    }
}

#[test]
fn conversations_and_masks() {
    check("phi2_sft.jsonl", Template::Phi2, &PHI2, 19);
    check("qwen1_5_sft.jsonl", Template::Qwen2, &QWEN, 19);
    check("phi3_sft.jsonl", Template::Phi3, &PHI3, 19);
    check("vicuna_v1_sft.jsonl", Template::VicunaV1, &PHI3, 19);
}

/// Phi-3's tokenizer with something else in its file.
fn phi3_with(change: impl Fn(&mut serde_json::Value)) -> TextTokenizer {
    let mut file = serde_json::from_slice(&std::fs::read(fixture("phi3_tokenizer.json")).unwrap()).unwrap();
    change(&mut file);
    TextTokenizer::from_bytes(&serde_json::to_vec(&file).unwrap()).unwrap()
}

/// As in the files of MobileLLaMA.
#[test]
fn special_tokens_that_are_said_to_be_normalized_are_found_all_the_same() {
    let tokenizer = phi3_with(|file| {
        for token in file["added_tokens"].as_array_mut().unwrap() {
            (token["special"], token["normalized"]) = (true.into(), true.into());
        }
    });
    check("vicuna_v1_sft.jsonl", Template::VicunaV1, &tokenizer, 19);
    check("phi3_sft.jsonl", Template::Phi3, &tokenizer, 19);
}

/// `legacy = false` in transformers: only what begins a text gets a space. The reference then counts one token less for each round
/// after the first.
#[test]
fn rounds_are_counted_where_they_stand() {
    let tokenizer = phi3_with(|file| {
        file["normalizer"] = serde_json::Value::Null;
        file["pre_tokenizer"] = serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "first", "split": false});
    });
    let cases: Vec<Training> = lines("vicuna_v1_sft.jsonl");
    let several = cases.iter().filter(|case| case.sample.conversations.len() > 2 && case.error.is_none());
    let mut seen = 0;
    for case in several.filter(|case| !case.mismatch_warning) {
        let turns = &case.sample.conversations;
        let encoded = Template::VicunaV1.encode(&tokenizer, turns, case.sample.image.is_some(), 3072).unwrap();
        assert!(!encoded.mismatched, "{}", case.id);
        let learned = |labels: &[i32]| labels.iter().filter(|label| **label != -100).count();
        assert_eq!(learned(&encoded.labels), learned(&case.labels), "{}", case.id);
        seen += 1;
    }
    assert!(seen > 2, "{seen}");
}

#[test]
fn plain_captions() {
    check("phi2_plain.jsonl", Template::Plain, &PHI2, 6);
    check("qwen1_5_plain.jsonl", Template::Plain, &QWEN, 6);
}

#[test]
fn prompts_of_inference() {
    #[derive(Deserialize)]
    struct Inference {
        question: String,
        prompt: String,
        input_ids: Vec<i32>,
    }
    for (file, template, tokenizer) in [
        ("phi2_infer.jsonl", Template::Phi2, &PHI2),
        ("qwen1_5_infer.jsonl", Template::Qwen2, &QWEN),
        ("phi3_infer.jsonl", Template::Phi3, &PHI3),
    ] {
        for case in lines::<Inference>(file) {
            // The last fixture is a second turn, which no benchmark asks.
            if case.question != "(second turn)" {
                assert_eq!(template.prompt(&case.question), case.prompt);
            }
            assert_eq!(tokenizer.encode_with_images(&case.prompt).unwrap(), case.input_ids, "{}", case.question);
        }
    }
    assert_eq!(Template::Phi2.stop_ids(&PHI2), [50295, 50256]);
    assert_eq!(Template::Phi3.stop_ids(&PHI3), [32007, 32000]);
    assert_eq!(Template::Qwen2.stop_ids(&QWEN), [151_645, 151_643]);
}

#[test]
fn a_text_is_cut_at_the_context_and_keeps_its_labels() {
    let turn = |from: &str, value: &str| Turn { from: from.into(), value: value.into() };
    let turns = [turn("human", "Count."), turn("gpt", &"one two three ".repeat(50))];
    let whole = Template::Phi2.encode(&PHI2, &turns, false, 3072).unwrap();
    let cut = Template::Phi2.encode(&PHI2, &turns, false, 60).unwrap();
    assert_eq!(cut.input_ids, whole.input_ids[..60]);
    assert_eq!(cut.labels, whole.labels[..60]);
    assert!(!cut.mismatched);
}

#[test]
fn a_model_is_asked_in_the_template_of_its_family_or_in_none() {
    let template = |family, tokenizer| Template::of_family(family, tokenizer);
    assert_eq!(template(Family::Phi, &PHI2), Some(Template::Phi2));
    assert_eq!(template(Family::Qwen2, &QWEN), Some(Template::Qwen2));
    assert_eq!(template(Family::Llama, &QWEN), Some(Template::Qwen2), "its tokens are those of ChatML");
    assert_eq!(template(Family::Llama, &PHI2), None);
    assert_eq!(template(Family::Phi3, &PHI3), Some(Template::Phi3));
    assert_eq!(template(Family::Phi3, &PHI2), None, "another's tokenizer");
}

#[test]
fn wrong_roles_are_refused_in_words() {
    let turn = |from: &str| Turn { from: from.into(), value: "x".into() };
    for (turns, words) in [
        (vec![turn("human"), turn("human")], "turn 2 is from `human` where `gpt` is expected"),
        (vec![turn("user"), turn("gpt")], "turn 1 is from `user` where `human` is expected"),
        (vec![turn("gpt")], "empty"),
    ] {
        let message = Template::Phi2.encode(&PHI2, &turns, false, 3072).unwrap_err();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn texts_that_would_take_gigabytes_are_refused() {
    let long = "a ".repeat(600_000);
    assert_eq!(PHI2.encode(&long).unwrap_err(), "a text of 1200000 bytes is longer than 1048576, the limit");
    let turns = serde_json::from_value::<Vec<Turn>>(json!([
        {"from": "human", "value": "Tell me."}, {"from": "gpt", "value": long},
    ]));
    assert!(Template::Phi2.encode(&PHI2, &turns.unwrap(), false, 3072).is_err());

    let ten = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(10)});
    let file = json!({"version": "1.0", "normalizer": {"type": "Sequence", "normalizers": vec![ten; 8]},
        "model": {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}});
    let tokenizer = TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap();
    let error = tokenizer.encode("aaa").unwrap_err();
    assert_eq!(error, "the tokenizer may replace a text of 3 bytes by 300000000, more than 4194304, the limit");
}
