//! Scaled rotary position embeddings against transformers: frequencies, the factor on queries and keys, and logits of tiny random
//! models, in sequences within the length of the first training and in longer ones. `benches/peers/rope.py` makes the fixtures.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use imp_model::{
    Imp,
    config::{ConfigFile, Family, ImpConfig, LanguageConfig, RopeScaling},
    layers::Pass,
    load_language, save,
    tensor::{self, Segments},
};
use serde_json::Value;
use support::{Fixture, PHI, assert_close, path};

const LENGTHS: [usize; 2] = [12, 40];

/// The `config.json` of each case.
fn configs() -> Vec<(String, Value)> {
    let all: Value = serde_json::from_slice(&std::fs::read(path("rope/configs.json")).unwrap()).unwrap();
    let all: Vec<_> = all.as_object().unwrap().clone().into_iter().collect();
    assert_eq!(all.len(), 6);
    all
}

fn language(config: &Value) -> LanguageConfig {
    ConfigFile::parse(config.to_string().as_bytes(), "config.json".as_ref()).unwrap().language().unwrap()
}

/// A folder with the case's configuration and the weights of its family.
fn folder(config: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights = format!("rope/{}.safetensors", config["model_type"].as_str().unwrap());
    std::fs::copy(path(&weights), folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

#[test]
fn frequencies_and_factors_equal_transformers() {
    let expected = Fixture::open("rope/expected.safetensors");
    for (name, config) in configs() {
        let config = language(&config);
        for length in LENGTHS {
            let theirs = expected.f32(&format!("{name}.frequencies.{length}"));
            for (ours, theirs) in config.rope_frequencies(length).iter().zip(&theirs) {
                // Both compute in f32, with powers that may differ in the last bits.
                assert!((ours - theirs).abs() <= 1e-6 * theirs, "{name}, {length}: {ours} {theirs}");
            }
            let factor = expected.f32(&format!("{name}.factor.{length}"))[0];
            assert!((config.rope_magnitude() - factor).abs() <= 1e-6, "{name}: {} {factor}", config.rope_magnitude());
        }
    }
}

/// Of two sequences that are packed into one matrix, each has the frequencies of its own length.
#[test]
fn logits_equal_transformers_in_short_and_long_sequences() {
    let expected = Fixture::open("rope/expected.safetensors");
    let ids = expected.ids("ids");
    for (name, config) in configs() {
        let folder = folder(&config);
        let llm = load_language(folder.path()).unwrap();
        let (pass, segments) = (Pass::inference(), Segments::new(LENGTHS));
        let rows = LENGTHS.iter().flat_map(|length| ids[..*length].iter().map(|id| (0, *id as usize))).collect();
        let embedded = tensor::gather(&pass.graph, &[llm.embedding()], rows);
        let logits = llm.logits(&pass, &llm.forward(&pass, &embedded, &segments)).to_host().into_owned();
        let theirs: Vec<f32> =
            LENGTHS.iter().flat_map(|length| expected.f32(&format!("{name}.logits.{length}"))).collect();
        // As for other models (see fixtures/README.md).
        assert_close(&name, &logits, &theirs, 1e-4);
    }
}

/// With a cache, positions have the frequencies of short sequences.
#[test]
fn decoding_equals_transformers_within_the_length_of_the_training() {
    let expected = Fixture::open("rope/expected.safetensors");
    let ids = expected.ids("ids");
    for (name, config) in configs() {
        let folder = folder(&config);
        let llm = load_language(folder.path()).unwrap();
        let pass = Pass::inference();
        let embed = |range: std::ops::Range<usize>| {
            let rows = ids[range].iter().map(|id| (0, *id as usize)).collect();
            tensor::gather(&pass.graph, &[llm.embedding()], rows)
        };
        let (_, mut cache) = llm.prefill(&embed(0..5), &Segments::new([5]), &[]);
        let hidden = llm.decode(&embed(5..12), &(5..12).collect::<Vec<_>>(), &[0; 7], &mut cache, None);
        let theirs = expected.f32(&format!("{name}.logits.12"));
        assert_close(&name, &llm.logits(&pass, &hidden).to_host(), &theirs[5 * 19..], 1e-4);
    }
}

#[test]
fn written_configurations_say_the_same() {
    for (name, config) in configs() {
        let config = language(&config);
        let again = language(&config.to_json());
        assert_eq!(again.rope_scaling.as_ref().map(RopeScaling::name), Some(name.split('_').next().unwrap()));
        assert_eq!(again, config, "{name}");
    }
    // The first files of Phi-3 for long contexts.
    let mut su = configs().into_iter().find(|(name, _)| name == "longrope").unwrap().1;
    let longrope = language(&su);
    su["rope_scaling"]["type"] = "su".into();
    assert_eq!(language(&su), longrope);
    assert_eq!(longrope.family, Family::Phi3);
}

#[test]
fn a_context_in_which_rotations_would_change_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let longrope = configs().into_iter().find(|(name, _)| name == "longrope").unwrap().1;
    let config = ImpConfig { tokenizer_model_max_length: 16, ..ImpConfig::default() };
    let mut imp = Imp::assemble(folder(&longrope).path(), &PHI.path("siglip"), config, 1).unwrap();
    for (context, fits) in [(16, true), (17, false)] {
        imp.config.tokenizer_model_max_length = context;
        save::merged(&imp, imp_model::encoding::Encoding::F32, u64::MAX, root.path()).unwrap();
        match Imp::load(root.path()) {
            Ok(again) => assert!(fits && again.llm.config == imp.llm.config),
            Err(error) => {
                let error = error.to_string();
                assert!(
                    !fits && error.contains("a context of 17 positions (`max_length`) is longer than 16"),
                    "{error}"
                );
            }
        }
    }
    let error =
        imp_model::mlc::write(&imp, &imp_model::layers::Importance::default(), root.path()).unwrap_err().to_string();
    assert!(error.contains("`rope_scaling` of type `longrope` is not written for MLC"), "{error}");
}
