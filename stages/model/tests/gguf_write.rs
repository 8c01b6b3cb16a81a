//! Imps in GGUF files: what is written is read back, in every family and mixture. `docs/deploy.md` says what llama.cpp made of such
//! files.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use imp_model::{
    Imp,
    config::{Family, ImpConfig, LanguageConfig, ProjectorType, RopeScaling},
    encoding::Encoding,
    gguf::{self, Mixture, Speech},
    init,
    layers::{Importance, Pass},
    save,
    tensor::Activation,
};
use serde_json::{Value, json};
use support::{PHI, assert_close};

/// A small Imp of each family, with random weights that f16 can hold exactly, as the files of the vision tower have them.
fn model(family: Family, hidden: usize, tied: bool) -> Imp {
    scaled_model(family, hidden, tied, None)
}

fn scaled_model(family: Family, hidden: usize, tied: bool, rope_scaling: Option<RopeScaling>) -> Imp {
    let folder = tempfile::tempdir().unwrap();
    let config = LanguageConfig {
        num_key_value_heads: if family == Family::Phi3 { 4 } else { 2 },
        hidden_act: if family == Family::Phi { Activation::GeluTanh } else { Activation::Silu },
        tie_word_embeddings: tied,
        rope_scaling,
        max_position_embeddings: 4096,
        intermediate_size: 2 * hidden,
        bos_token_id: Some(0),
        eos_token_id: vec![1],
        ..LanguageConfig::new(family, 60, hidden, 3, 4)
    };
    init::write_language(folder.path(), &config, 7, Encoding::F16).unwrap();
    Imp::assemble(folder.path(), &PHI.path("siglip"), ImpConfig::default(), 3).unwrap()
}

fn tokenizer() -> Value {
    let vocab: serde_json::Map<String, Value> = (0..50).map(|id| (format!("t{id}"), json!(id))).collect();
    json!({
        "added_tokens": [{"id": 50, "content": "<end>", "special": true}, {"id": 51, "content": "  ", "special": false}],
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": [["t", "1"], ["t", "2"]]},
    })
}

fn write(model: &Imp, tokenizer: &Value, mixture: Mixture, folder: &Path) -> Result<gguf::Written, String> {
    let speech = Speech { tokenizer, chat_template: "{{ messages }}", add_bos: false, bos: Some(0), eos: 50, pad: 1 };
    save::config(model, "float16", folder).unwrap();
    gguf::write(model, &speech, mixture, &Importance::default(), folder).map_err(|error| error.to_string())
}

fn logits(model: &Imp) -> Vec<f32> {
    let batch = PHI.batch();
    let ids: Vec<Vec<i32>> =
        batch.ids.iter().map(|ids| ids.iter().map(|id| if *id < 0 { *id } else { id % 50 }).collect()).collect();
    let images = imp_model::images_in_order(ids.iter().map(Vec::as_slice));
    let samples: Vec<_> = ids
        .iter()
        .zip(&images)
        .zip(&batch.labels)
        .map(|((input_ids, images), labels)| imp_model::Sample { input_ids, labels, images })
        .collect();
    let features = model.encode_images(&batch.images);
    model.forward(&Pass::inference(), &samples, &features).0.to_host().into_owned()
}

#[test]
fn every_family_is_read_back_as_it_was() {
    for (family, tied) in [
        (Family::Phi, false),
        (Family::Qwen2, true),
        (Family::Qwen2, false),
        (Family::Llama, true),
        (Family::Phi3, false),
    ] {
        let (folder, model) = (tempfile::tempdir().unwrap(), model(family, 64, tied));
        let written = write(&model, &tokenizer(), Mixture::F32, folder.path()).unwrap();
        assert!(written.model > 0 && written.mmproj > 0);
        let read = Imp::load(folder.path()).unwrap();
        // The new projector is not exact in f16.
        assert_close(&format!("{family:?}"), &logits(&read), &logits(&model), 2e-3);
        let (ours, theirs) = (read.llm.tensors(), model.llm.tensors());
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!((&ours.name, ours.values()), (&theirs.name, theirs.values()), "{family:?}");
        }
    }
}

/// Frequencies that are divided, as keys or as tensors; the result is another than without.
#[test]
fn scaled_rotary_embeddings_are_read_back() {
    let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 16 };
    let (short, long) = (vec![1.5, 1.0, 2.0, 4.0, 1.0, 1.25, 3.0, 9.0], vec![8.0; 8]);
    let always = RopeScaling::LongRope { short: short.clone(), long: short.clone(), magnitude: 1.0, original: 64 };
    let longrope = RopeScaling::LongRope { short, long, magnitude: 1.19, original: 3072 };
    let yarn = RopeScaling::Yarn { factor: 4.0, magnitude: 1.1, fast: 32.0, slow: 1.0, truncate: true, original: 512 };
    for (family, scaling, tensors) in [
        (Family::Llama, llama3.clone(), 1),
        (Family::Llama, always, 1),
        (Family::Phi3, longrope.clone(), 2),
        (Family::Qwen2, RopeScaling::Linear { factor: 4.0 }, 0),
        (Family::Phi, RopeScaling::Linear { factor: 2.5 }, 0),
    ] {
        let (folder, plain) = (tempfile::tempdir().unwrap(), model(family, 64, false));
        let model = scaled_model(family, 64, false, Some(scaling.clone()));
        let written = write(&model, &tokenizer(), Mixture::F32, folder.path()).unwrap();
        let others = write(&plain, &tokenizer(), Mixture::F32, tempfile::tempdir().unwrap().path()).unwrap();
        assert_eq!(written.weights, others.weights, "divisors are no weights");
        assert_eq!(written.model - others.model, tensors * 8 * 4, "{family:?}");
        // llama.cpp takes all of the context, in which it is to have the divisors of short sequences.
        let bytes = std::fs::read(folder.path().join("model.gguf")).unwrap();
        let context = b".context_length\x04\0\0\0";
        let at = bytes.windows(context.len()).position(|part| part == context).unwrap() + context.len();
        let expected = if family == Family::Phi3 { 3072_u32 } else { 4096 };
        assert_eq!(bytes[at..at + 4], expected.to_le_bytes(), "{family:?}");
        let read = Imp::load(folder.path()).unwrap();
        assert_close(&format!("{family:?}"), &logits(&read), &logits(&model), 2e-3);
        assert!(logits(&model) != logits(&plain), "{family:?}");
        // A config.json with another scaling is not that of these tensors.
        let config = folder.path().join("config.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        json.as_object_mut().unwrap().remove("rope_scaling");
        std::fs::write(&config, json.to_string()).unwrap();
        let error = Imp::load(folder.path()).err().unwrap().to_string();
        let words = if tensors > 0 { "config.json's `rope_scaling`" } else { "is not supported beside a config.json" };
        assert!(error.contains(words), "{error}");
    }
    // Within the model's positions it changes nothing.
    let (folder, dynamic) = (tempfile::tempdir().unwrap(), RopeScaling::Dynamic { factor: 4.0 });
    let model = scaled_model(Family::Qwen2, 64, false, Some(dynamic));
    write(&model, &tokenizer(), Mixture::F32, folder.path()).unwrap();
    assert_close("dynamic", &logits(&Imp::load(folder.path()).unwrap()), &logits(&model), 2e-3);
    for (family, scaling) in [(Family::Qwen2, llama3), (Family::Llama, longrope), (Family::Qwen2, yarn)] {
        let name = scaling.name();
        let model = scaled_model(family, 64, false, Some(scaling));
        let error = write(&model, &tokenizer(), Mixture::F32, folder.path()).unwrap_err();
        assert!(error.contains(&format!("`rope_scaling` of type `{name}` is not written")), "{error}");
    }
}

/// Rows of 256 values, which every encoding can divide, and of 64, for which some are replaced.
#[test]
fn every_mixture_is_read_back_within_its_precision() {
    for hidden in [64, 256] {
        let model = model(Family::Qwen2, hidden, false);
        let expected = model.llm.tensors();
        let mut sizes = Vec::new();
        // The step between two levels, as a share of the largest value of a tensor: in the coarsest encoding of the mixture.
        for (mixture, step) in [
            (Mixture::F16, 0.0),
            (Mixture::Q8_0, 1.0 / 127.0),
            (Mixture::Q6K, 1.0 / 32.0),
            (Mixture::Q4KM, 2.0 / 15.0),
            (Mixture::Q4_0, 1.0 / 8.0),
        ] {
            let folder = tempfile::tempdir().unwrap();
            sizes.push(write(&model, &tokenizer(), mixture, folder.path()).unwrap().model);
            let read = Imp::load(folder.path()).unwrap();
            for (ours, theirs) in read.llm.tensors().iter().zip(&expected) {
                let largest = theirs.values().iter().fold(0.0_f32, |a, b| a.max(b.abs()));
                let (ours, theirs) = (ours.values(), theirs.values());
                let squares: f32 = ours.iter().zip(&*theirs).map(|(a, b)| (a - b).powi(2)).sum();
                // The deviation of a uniform error; scales that are rounded, too, add less than a fifth.
                let (deviation, allowed) = ((squares / ours.len() as f32).sqrt(), 1.2 * largest * step / 12_f32.sqrt());
                assert!(deviation <= allowed, "{mixture:?}: {deviation:e}, {allowed:e} is allowed");
            }
            assert!(logits(&read).iter().all(|value| value.is_finite()));
        }
        assert!(sizes.is_sorted_by(|a, b| a > b) || hidden == 64, "{sizes:?}");
    }
}

#[test]
fn encodings_that_were_replaced_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    // Rows of 64 values: blocks of 256 divide none but those of `ffn_down`, of which there are none here.
    let narrow = write(&model(Family::Qwen2, 64, false), &tokenizer(), Mixture::Q4KM, folder.path()).unwrap();
    assert_eq!((narrow.matrices, narrow.replaced), (3 * 7 + 2, 3 * 7 + 2));
    let wide = write(&model(Family::Qwen2, 256, false), &tokenizer(), Mixture::Q4KM, folder.path()).unwrap();
    assert_eq!(wide.replaced, 0);
}

/// Files that lie: what llama.cpp would compute from them is not what is computed here, or nobody can.
#[test]
fn what_does_not_fit_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    write(&model(Family::Qwen2, 64, false), &tokenizer(), Mixture::F16, folder.path()).unwrap();
    let file = folder.path().join("model.gguf");
    let whole = std::fs::read(&file).unwrap();
    let after = |text: &[u8]| whole.windows(text.len()).position(|part| part == text).unwrap() + text.len();
    let refused = |at: usize, bytes: &[u8]| {
        let mut damaged = whole.clone();
        damaged[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&file, damaged).unwrap();
        let error = Imp::load(folder.path()).err().map(|error| error.to_string());
        std::fs::write(&file, &whole).unwrap();
        error.unwrap()
    };
    let twice = refused(after(b"blk.1.attn_q.weight") - 15, b"0");
    assert!(twice.contains("`blk.0.attn_q.weight` twice"), "{twice}");
    // Values follow the type of a key, four bytes.
    let base = refused(after(b"qwen2.rope.freq_base") + 4, &7_f32.to_le_bytes());
    assert!(base.contains("`qwen2.rope.freq_base` is not Float(10000.0), as config.json says"), "{base}");
    let family = refused(after(b"general.architecture") + 12, b"qwen3");
    assert!(family.contains("`general.architecture` is not Text(\"qwen2\")"), "{family}");
    let unknown = refused(after(b"qwen2.vocab_size") - 4, b"sold");
    assert!(unknown.contains("`qwen2.vocab_size` is not"), "{unknown}");
    // Rows of 64 values as blocks of 256: the type follows the number of dimensions and two of them.
    let rows = refused(after(b"blk.0.attn_q.weight") + 4 + 16, &12_u32.to_le_bytes());
    assert!(rows.contains("not a complete GGUF file"), "{rows}");
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    let two = Imp::load(folder.path()).err().unwrap().to_string();
    assert!(two.contains("two sets of weights"), "{two}");
}

/// By heads, and by the pieces in which large matrices are written.
#[test]
fn interleaved_heads_of_large_matrices_are_read_back() {
    let (folder, llm) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = LanguageConfig {
        hidden_act: Activation::Silu,
        intermediate_size: 64,
        ..LanguageConfig::new(Family::Llama, 60, 1536, 1, 12)
    };
    init::write_language(llm.path(), &config, 7, Encoding::F16).unwrap();
    let model = Imp::assemble(llm.path(), &PHI.path("siglip"), ImpConfig::default(), 3).unwrap();
    write(&model, &tokenizer(), Mixture::F16, folder.path()).unwrap();
    let read = Imp::load(folder.path()).unwrap();
    for (ours, theirs) in read.llm.tensors().iter().zip(&model.llm.tensors()) {
        assert!(ours.values() == theirs.values(), "{}", ours.name);
    }
}

#[test]
fn what_llama_cpp_can_not_do_is_refused() {
    let (folder, mut imp) = (tempfile::tempdir().unwrap(), model(Family::Qwen2, 64, false));
    let mut unigram = tokenizer();
    unigram["model"]["type"] = json!("Unigram");
    let mut words = tokenizer();
    words["pre_tokenizer"] = json!({"type": "Whitespace"});
    let mut beyond = tokenizer();
    beyond["added_tokens"][0]["id"] = json!(60);
    // Nearly what is known is not known.
    let with = |pointer: &str, value: Value| {
        let mut file = tokenizer();
        file[pointer] = value;
        file
    };
    let bytes = json!({"type": "ByteLevel", "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": r"x|\p{N}| "}, "behavior": "Isolated", "invert": false});
    let mut words_merged = tokenizer();
    words_merged["model"]["merges"] = json!(["t 1", "t2"]);
    let merged = |merges: Value| {
        let mut file = tokenizer();
        file["model"]["merges"] = merges;
        file
    };
    let [mut double, mut dropped, mut taking] = [(); 3].map(|()| tokenizer());
    double["model"]["vocab"]["t7"] = json!(1);
    dropped["model"]["dropout"] = json!(0.5);
    taking["added_tokens"][0]["lstrip"] = json!(true);
    let mut foreign = tokenizer();
    foreign["model"]["byte_fallback"] = json!(true);
    for (tokenizer, message) in [
        (unigram, "\"Unigram\""),
        (words, "(Whitespace)"),
        (beyond, "`<end>` is beyond the 60 rows"),
        (with("normalizer", json!({"type": "Lowercase"})), "no normalizer `Lowercase`"),
        (with("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [split, bytes]})), "(Split, ByteLevel)"),
        (with("pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": true})), "(ByteLevel)"),
        (words_merged, "merge \"t2\" is no pair"),
        (merged(json!([["t 1", "2"]])), "is no pair"),
        (double, "the tokens `t1` and `t7` have the same id"),
        (dropped, "dropped at random"),
        (taking, "takes part of the text around it"),
        (foreign, "not those of a SentencePiece tokenizer"),
    ] {
        let error = write(&imp, &tokenizer, Mixture::F16, folder.path()).unwrap_err();
        assert!(error.contains("model.gguf") && error.contains(message), "{error}");
    }
    imp.config.mm_projector_type = ProjectorType::Linear;
    let error = write(&imp, &tokenizer(), Mixture::F16, folder.path()).unwrap_err();
    assert!(error.contains("mmproj.gguf") && error.contains("mlp2x_gelu"), "{error}");
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["config.json"]);
}
