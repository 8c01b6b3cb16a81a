//! GGUF files, which are composed here byte by byte: weights in ggml's encodings (ggml's bytes from
//! `tests/fixtures/quant`), a whole model with llama.cpp's names and row order, and invalid files.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use imp_model::{
    config::{ConfigFile, Family, LanguageConfig, RopeScaling},
    encoding::Encoding,
    gguf, init,
    language::Decoder,
    layers::Pass,
    load_language,
    tensor::{self, Activation, Segments},
    weights::TensorFiles,
};
use support::{Fixture, assert_close};

/// Composes a file: metadata, tensor descriptions and data, with the counts of the first two.
#[derive(Default)]
struct Writer {
    keys: (u64, Vec<u8>),
    tensors: (u64, Vec<u8>),
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    fn key(&mut self, name: &str, kind: u32, value: &[u8]) {
        self.keys.0 += 1;
        self.keys.1.extend([text(name), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
    }

    fn number(&mut self, name: &str, value: usize) {
        self.key(name, 4, &(value as u32).to_le_bytes());
    }

    fn texts(&mut self, name: &str, values: &[&str]) {
        let head = [8_u32.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().to_vec()].concat();
        self.key(name, 9, &[head, values.iter().flat_map(|value| text(value)).collect()].concat());
    }

    fn tensor(&mut self, name: &str, shape: &[usize], kind: u32, bytes: &[u8]) {
        self.tensors.0 += 1;
        let dimensions = shape.iter().rev().flat_map(|length| (*length as u64).to_le_bytes()).collect::<Vec<u8>>();
        let count = (shape.len() as u32).to_le_bytes().to_vec();
        let offset = (self.data.len() as u64).to_le_bytes().to_vec();
        self.tensors.1.extend([text(name), count, dimensions, kind.to_le_bytes().to_vec(), offset].concat());
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        self.tensor(name, shape, 0, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    }

    /// The metadata of a Llama.
    fn llama(config: &LanguageConfig) -> Self {
        let mut writer = Self::default();
        writer.key("general.architecture", 8, &text("llama"));
        writer.number("llama.block_count", config.num_hidden_layers);
        writer.number("llama.context_length", 128);
        writer.number("llama.embedding_length", config.hidden_size);
        writer.number("llama.feed_forward_length", config.intermediate_size);
        writer.number("llama.attention.head_count", config.num_attention_heads);
        writer.number("llama.attention.head_count_kv", config.num_key_value_heads);
        writer.key("llama.rope.freq_base", 6, &1e5_f32.to_le_bytes());
        writer.key("llama.attention.layer_norm_rms_epsilon", 6, &1e-5_f32.to_le_bytes());
        writer.key("tokenizer.ggml.model", 8, &text("gpt2"));
        writer.key("tokenizer.ggml.pre", 8, &text("smollm"));
        let tokens: Vec<String> = (0..config.vocab_size).map(|id| format!("t{id}")).collect();
        writer.texts("tokenizer.ggml.tokens", &tokens.iter().map(String::as_str).collect::<Vec<_>>());
        writer.texts("tokenizer.ggml.merges", &[]);
        let kinds = (0..config.vocab_size as i32).flat_map(|id| if id == 0 { 3_i32 } else { 1 }.to_le_bytes());
        let head = [5_u32.to_le_bytes().to_vec(), (config.vocab_size as u64).to_le_bytes().to_vec()].concat();
        writer.key("tokenizer.ggml.token_type", 9, &head.into_iter().chain(kinds).collect::<Vec<u8>>());
        writer.number("tokenizer.ggml.eos_token_id", 2);
        writer
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = [b"GGUF".as_slice(), &3_u32.to_le_bytes()].concat();
        bytes.extend([self.tensors.0.to_le_bytes(), self.keys.0.to_le_bytes()].concat());
        bytes.extend([self.keys.1.as_slice(), &self.tensors.1].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend_from_slice(&self.data);
        bytes
    }
}

fn convert(bytes: &[u8], folder: &Path) -> Result<(), String> {
    let file = folder.join("model.gguf");
    std::fs::write(&file, bytes).unwrap();
    gguf::convert(&file, folder).map(drop).map_err(|error| error.message())
}

fn llama(vocab: usize, hidden: usize, layers: usize) -> LanguageConfig {
    LanguageConfig {
        family: Family::Llama,
        intermediate_size: 40,
        num_key_value_heads: 2,
        rope_theta: 1e5,
        hidden_act: Activation::Silu,
        tie_word_embeddings: true,
        max_position_embeddings: 128,
        eos_token_id: vec![2],
        ..LanguageConfig::phi(vocab, hidden, layers, 4, hidden / 4)
    }
}

#[test]
fn quantized_weights_have_the_values_of_ggml() {
    let fixture = Fixture::open("quant/ggml.safetensors");
    for (name, number) in [("q4_0", 2), ("q4_1", 3), ("q8_0", 8)] {
        let folder = tempfile::tempdir().unwrap();
        // Without blocks, which no model may be.
        let mut writer = Writer::llama(&llama(4, 512, 0));
        writer.tensor("token_embd.weight", &[4, 512], number, &fixture.bytes(name));
        writer.floats("output_norm.weight", &[512], &[1.0; 512]);
        convert(&writer.bytes(), folder.path()).unwrap();
        let embedding = TensorFiles::open(folder.path()).unwrap().weight("model.embed_tokens", 4, 512).unwrap();
        // Rounding to f16 has an error of at most half a unit in the eleventh bit.
        let expected = fixture.f32(&format!("{name}.dequant"));
        let largest = expected.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert_close(name, &embedding.to_host(), &expected, largest / 2048.0);
        let refused = load_language(folder.path()).err().unwrap().to_string();
        assert!(refused.contains("`num_hidden_layers` must be at least 1"), "{refused}");
    }
}

fn logits(llm: &Decoder) -> Vec<f32> {
    let (pass, segments) = (Pass::inference(), Segments::new([9]));
    let picks = (0..9).map(|token| (0, token * 5 % 31)).collect();
    let embedded = tensor::gather(&pass.graph, &[llm.embedding()], picks);
    llm.logits(&pass, &llm.forward(&pass, &embedded, &segments)).to_host().into_owned()
}

/// With llama.cpp's names and row order: in q and k, dimensions i and i + half are adjacent.
#[test]
fn a_converted_model_computes_the_same_logits() {
    let (folder, original) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = llama(31, 32, 2);
    init::write_language(original.path(), &config, 4, Encoding::F16).unwrap();
    let llm = load_language(original.path()).unwrap();
    let mut writer = Writer::llama(&config);
    for tensor in llm.tensors() {
        let name = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("model.layers.", "blk."),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
        ];
        let name = name.iter().fold(tensor.name.clone(), |name, (from, to)| name.replace(from, to));
        let mut values = tensor.values().into_owned();
        if name.contains("attn_q") || name.contains("attn_k") {
            let rows: Vec<Vec<f32>> = values.chunks(32).map(<[f32]>::to_vec).collect();
            let interleaved = rows.chunks(8).flat_map(|head| (0..8).map(|row| head[row / 2 + row % 2 * 4].clone()));
            values = interleaved.flatten().collect();
        }
        writer.floats(&name, &tensor.shape, &values);
    }
    convert(&writer.bytes(), folder.path()).unwrap();
    let reloaded = load_language(folder.path()).unwrap();
    assert_eq!(reloaded.config.eos_token_id, [2]);
    assert_eq!(logits(&reloaded), logits(&llm), "the weights are exact in f16");
    let text = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
    let tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(tokenizer["added_tokens"][0]["content"], "t0");
    assert_eq!(tokenizer["pre_tokenizer"]["pretokenizers"][0]["type"], "Digits");
}

#[test]
fn invalid_files_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let config = llama(4, 32, 0);
    let mut writer = Writer::llama(&config);
    writer.floats("token_embd.weight", &[4, 32], &[0.5; 128]);
    writer.floats("output_norm.weight", &[32], &[1.0; 32]);
    let whole = writer.bytes();
    convert(&whole, folder.path()).unwrap();
    let broken = "this is not a complete GGUF file (version 2 or 3): download it again";
    // Truncated anywhere, or with a length that exceeds the file.
    for end in (0..whole.len() - 32).step_by(7) {
        assert_eq!(convert(&whole[..end], folder.path()).unwrap_err(), broken, "cut at {end}");
    }
    for at in [8, 16, 24] {
        let mut hostile = whole.clone();
        hostile[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(convert(&hostile, folder.path()).unwrap_err(), broken);
    }
    writer.floats("blk.0.attn_sinks.weight", &[4], &[0.0; 4]);
    assert!(convert(&writer.bytes(), folder.path()).unwrap_err().contains("`blk.0.attn_sinks.weight` does not belong"));
    // Rows of queries that are not heads.
    for shape in [vec![], vec![30, 32], vec![32]] {
        let mut writer = Writer::llama(&config);
        writer.floats("blk.0.attn_q.weight", &shape, &vec![0.5; shape.iter().product()]);
        let error = convert(&writer.bytes(), folder.path()).unwrap_err();
        assert_eq!(error, format!("the shape {shape:?} of `blk.0.attn_q.weight` does not fit 4 heads"));
    }
    let mut other = Writer::default();
    other.key("general.architecture", 8, &text("mamba"));
    assert!(convert(&other.bytes(), folder.path()).unwrap_err().contains("architecture `mamba`"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]

    /// Whatever stands in a file, converting it ends with an error or a folder.
    #[test]
    fn hostile_files_do_no_harm(changes in proptest::collection::vec((0.0_f64..1.0, proptest::num::u8::ANY), 1..6)) {
        let mut writer = Writer::llama(&llama(4, 32, 0));
        writer.floats("token_embd.weight", &[4, 32], &[0.5; 128]);
        writer.floats("output_norm.weight", &[32], &[1.0; 32]);
        let mut bytes = writer.bytes();
        // Most of the file is its header.
        let end = bytes.len() as f64;
        for (at, with) in changes {
            bytes[(at * end) as usize] = with;
        }
        let _ = convert(&bytes, tempfile::tempdir().unwrap().path());
    }
}

/// Ignoring these keys would give a model that runs, but worse.
#[test]
fn scaled_and_partial_rotary_embeddings_are_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let converted = |change: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::llama(&llama(4, 32, 0));
        change(&mut writer);
        writer.floats("token_embd.weight", &[4, 32], &[0.5; 128]);
        writer.floats("output_norm.weight", &[32], &[1.0; 32]);
        convert(&writer.bytes(), folder.path())
    };
    let plain = |writer: &mut Writer| {
        writer.key("llama.rope.scaling.type", 8, &text("none"));
        writer.number("llama.rope.dimension_count", 8);
        writer.number("llama.attention.key_length", 8);
    };
    assert_eq!(converted(&plain), Ok(()));
    let scaled = |writer: &mut Writer| writer.key("llama.rope.scaling.type", 8, &text("yarn"));
    assert_eq!(converted(&scaled).unwrap_err(), "`llama.rope.scaling.type` = `yarn` is not supported");
    let partial = |writer: &mut Writer| writer.number("llama.rope.dimension_count", 4);
    assert!(converted(&partial).unwrap_err().starts_with("`llama.rope.dimension_count` = 4 is not supported"));
    for (key, value) in
        [("rope.scaling.factor", 4.0_f32), ("rope.scale_linear", 4.0), ("logit_scale", 0.5), ("attention.scale", 2.0)]
    {
        let key = format!("llama.{key}");
        let changed = |writer: &mut Writer| writer.key(&key, 6, &value.to_le_bytes());
        assert_eq!(converted(&changed).unwrap_err(), format!("`{key}` = {value} is not supported"));
    }
    let experts = |writer: &mut Writer| writer.number("llama.expert_count", 8);
    assert_eq!(converted(&experts).unwrap_err(), "`llama.expert_count` = 8 is not supported");
    // A key of the wrong type is not an absent one.
    let odd = |writer: &mut Writer| writer.number("llama.rope.scaling.type", 2);
    assert!(converted(&odd).unwrap_err().contains("`llama.rope.scaling.type` is missing or has the wrong type"));
    let odd = |writer: &mut Writer| writer.key("llama.rope.dimension_count", 8, &text("4"));
    assert!(converted(&odd).unwrap_err().contains("`llama.rope.dimension_count` is missing or has the wrong type"));
    let wide = |writer: &mut Writer| writer.number("llama.attention.key_length", 16);
    assert!(converted(&wide).unwrap_err().starts_with("`llama.attention.key_length` = 16 is not supported"));
}

#[test]
fn encodings_that_are_not_supported_are_named() {
    let mut writer = Writer::llama(&llama(4, 256, 0));
    writer.tensor("token_embd.weight", &[4, 256], 10, &[0; 4 * 84]);
    let error = convert(&writer.bytes(), tempfile::tempdir().unwrap().path()).unwrap_err();
    assert!(error.starts_with("`token_embd.weight` is encoded in a way that is not supported (number 10"), "{error}");
}

/// Llama 3's splits texts by its own pattern, takes whole words, and begins with a token unless the file says that it does not.
#[test]
fn the_tokenizer_of_a_llama_3_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let read = |pre: &str, adds: Option<bool>, first: usize| {
        let mut writer = Writer::llama(&llama(4, 32, 0));
        // A later key of the same name is not read: this file has one each.
        let at = writer.keys.1.windows(6).position(|bytes| bytes == b"smollm").unwrap();
        writer.keys.1.splice(at - 8..at + 6, text(pre));
        writer.number("tokenizer.ggml.bos_token_id", first);
        if let Some(adds) = adds {
            writer.key("tokenizer.ggml.add_bos_token", 7, &[u8::from(adds)]);
        }
        writer.floats("token_embd.weight", &[4, 32], &[0.5; 128]);
        writer.floats("output_norm.weight", &[32], &[1.0; 32]);
        convert(&writer.bytes(), folder.path())?;
        let text = std::fs::read_to_string(folder.path().join("tokenizer.json")).unwrap();
        Ok::<serde_json::Value, String>(serde_json::from_str(&text).unwrap())
    };
    let llama3 = read("llama-bpe", None, 1).unwrap();
    assert_eq!(llama3["model"]["ignore_merges"], true);
    assert_eq!(llama3["post_processor"]["special_tokens"]["t1"]["ids"], serde_json::json!([1]));
    let pattern = llama3["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap();
    assert!(pattern.contains(r"\p{N}{1,3}"), "{pattern}");
    assert!(read("llama-bpe", Some(false), 1).unwrap()["post_processor"].is_null());
    let smollm = read("smollm", None, 1).unwrap();
    assert!(smollm["post_processor"].is_null() && smollm["model"]["ignore_merges"] == false);
    assert!(!read("smollm", Some(true), 1).unwrap()["post_processor"].is_null());
    assert_eq!(read("llama-bpe", None, 4).unwrap_err(), "`tokenizer.ggml.bos_token_id` = 4 is no token");
    assert!(read("default", None, 1).unwrap()["post_processor"].is_null(), "taken for GPT-2's, which is told");
    assert!(read("falcon", None, 1).unwrap_err().contains("pre-tokenizer `falcon` is not supported"));
}

/// Divisors of the frequencies, as in files of Llama 3.1 and 3.2, and a linear scaling.
#[test]
fn scaled_rotary_embeddings_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.gguf");
    let read = |change: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::llama(&llama(4, 256, 0));
        change(&mut writer);
        writer.floats("token_embd.weight", &[4, 256], &[0.5; 1024]);
        writer.floats("output_norm.weight", &[256], &[1.0; 256]);
        convert(&writer.bytes(), folder.path())?;
        std::fs::write(&file, writer.bytes()).unwrap();
        let config = gguf::language_config(&file).map_err(|error| error.message())?;
        // A model without blocks is none, as a whole.
        let json = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
        let json = json.replace("\"num_hidden_layers\": 0", "\"num_hidden_layers\": 1");
        let again = ConfigFile::parse(json.as_bytes(), Path::new("config.json")).unwrap().language().unwrap();
        assert_eq!(again.rope_scaling, config.rope_scaling, "config.json says it too");
        Ok::<_, String>(config)
    };
    let divided = |divisors: Vec<f32>| read(&move |writer| writer.floats("rope_freqs.weight", &[32], &divisors));
    let published = RopeScaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
    let plain = LanguageConfig { hidden_act: Activation::Silu, ..llama(4, 256, 0) };
    let scaled = LanguageConfig { rope_scaling: Some(published.clone()), ..plain.clone() };
    let divisors: Vec<f32> = plain
        .rope_frequencies(1)
        .iter()
        .zip(scaled.rope_frequencies(1))
        .map(|(plain, scaled)| plain / scaled)
        .collect();
    assert!(divisors.contains(&1.0) && divisors.contains(&32.0), "{divisors:?}");
    assert_eq!(divided(divisors.clone()).unwrap().rope_scaling, Some(published));
    assert_eq!(divided(vec![1.0; 32]).unwrap().rope_scaling, None);
    let mut others = divisors;
    others[3] = 1.5;
    let found = divided(others.clone()).unwrap();
    let expected: Vec<f32> = plain.rope_frequencies(1).iter().zip(&others).map(|(plain, by)| plain / by).collect();
    assert_close("frequencies", &found.rope_frequencies(1), &expected, 1e-6);
    let linear = |writer: &mut Writer| {
        writer.key("llama.rope.scaling.type", 8, &text("linear"));
        writer.key("llama.rope.scaling.factor", 6, &4_f32.to_le_bytes());
    };
    assert_eq!(read(&linear).unwrap().rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
    let by = |factor: f32| {
        read(&move |writer: &mut Writer| {
            writer.key("llama.rope.scaling.type", 8, &text("linear"));
            writer.key("llama.rope.scaling.factor", 6, &factor.to_le_bytes());
        })
    };
    assert_eq!([by(0.0), by(1.0)].map(|read| read.unwrap().rope_scaling), [None, None]);
    assert_eq!(by(-2.0).unwrap_err(), "`llama.rope.scaling.factor` = -2 is no factor");
    let magnitude = |writer: &mut Writer| writer.key("llama.rope.scaling.attn_factor", 6, &1.2_f32.to_le_bytes());
    assert!(read(&magnitude).unwrap_err().starts_with("`llama.rope.scaling.attn_factor` = 1.2"));
    for wrong in [vec![1.0; 31], vec![0.0; 32], vec![f32::NAN; 32]] {
        let change = |writer: &mut Writer| writer.floats("rope_freqs.weight", &[wrong.len()], &wrong);
        assert!(read(&change).unwrap_err().contains("`rope_freqs.weight` does not have a positive divisor"));
    }
}

#[test]
fn unknown_settings_are_returned_and_weights_beyond_f16_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.gguf");
    let mut writer = Writer::llama(&llama(4, 32, 0));
    writer.number("llama.vocab_size", 4);
    writer.number("llama.residual_gain", 2);
    writer.floats("token_embd.weight", &[4, 32], &[0.5; 128]);
    let bytes = writer.bytes();
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(gguf::convert(&file, folder.path()).unwrap(), ["llama.residual_gain"]);
    for value in [-7e4, f32::INFINITY, f32::NAN] {
        let mut writer = Writer::llama(&llama(4, 32, 0));
        let mut values = [0.5; 128];
        values[77] = value;
        writer.floats("token_embd.weight", &[4, 32], &values);
        let error = convert(&writer.bytes(), folder.path()).unwrap_err();
        let words = format!("the tensor `model.embed_tokens.weight` has the value {value:e}, which f16 can't hold");
        assert!(error.starts_with(&words), "{error}");
    }
    assert!(!folder.path().join("model.safetensors.part").exists());
}
