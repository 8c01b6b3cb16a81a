//! Chat templates against what training and evaluation make of the same turns; the files of a merged model.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use imp_model::{Imp, layers::LoraSettings, peft};
use minijinja::{Environment, syntax::SyntaxConfig, value::Serde};
use serde_json::{Value, json};

use super::{chat_template, marked_chat_template};
use crate::{
    Stage,
    eval::tests::workshop,
    merge::Merge,
    model_folder,
    quantize::Quantize,
    testing::{Outcome, Trial},
    text::{
        template::Template,
        tests::{PHI2, PHI3, QWEN, Training, lines},
        tokenizer::{IMAGE_TEXT, TextTokenizer},
    },
};

/// Renders messages as transformers does.
fn render(jinja: &str, messages: &Value, ask: bool) -> String {
    let mut environment = Environment::new();
    // Python's methods of strings.
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().unwrap());
    environment.render_str(jinja, Serde(json!({"messages": messages, "add_generation_prompt": ask}))).unwrap()
}

#[test]
fn a_question_is_rendered_as_the_evaluation_asks_it() {
    for template in [Template::Phi2, Template::Qwen2, Template::Phi3, Template::VicunaV1] {
        let jinja = chat_template(template).unwrap();
        for question in ["What is this?", "  two  blanks ", "two\nlines\n", "{{ braces }} and 'quotes' \"\\"] {
            let text = json!([{"role": "user", "content": question}]);
            assert_eq!(render(&jinja, &text, true), template.prompt_without_image(question), "{template:?}");
            let parts = [json!({"type": "text", "text": question}), json!({"type": "image"})];
            for parts in [json!(parts), json!([parts[1], parts[0]])] {
                let about = json!([{"role": "user", "content": parts}]);
                assert_eq!(render(&jinja, &about, true), template.prompt(question), "{template:?}");
            }
        }
        let own = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
        let rendered = render(&jinja, &own, false);
        assert!(rendered.contains("Be brief.") && !rendered.contains("curious user"), "{rendered}");
    }
    assert_eq!(chat_template(Template::Plain), None);
}

/// llama.cpp puts a mark into the text where a client has put an image.
#[test]
fn marks_of_images_come_before_the_question() {
    for template in [Template::Phi2, Template::Qwen2, Template::Phi3] {
        let jinja = marked_chat_template(template).unwrap();
        let asked = |content: &str| render(&jinja, &json!([{"role": "user", "content": content}]), true);
        let (mark, expected) = ("<__media_x7__>", template.prompt("What <__?__>"));
        for content in [format!("{mark}What <__?__>"), format!("What <__?__>{mark}")] {
            assert_eq!(asked(&content), expected.replace("<image>", mark), "{template:?}");
        }
        let two = template.prompt_without_image("<__media_a__>\n<__media_b__>\nBoth?");
        assert_eq!(asked("<__media_a__>Both?<__media_b__>"), two);
        assert_eq!(asked("No__> mark"), template.prompt_without_image("No__> mark"));
    }
}

/// The reference's training conversations, in tokens. Its texts of ChatML and Phi-3 lack the last newline.
#[test]
fn conversations_are_rendered_as_they_were_trained() {
    for (file, template, tokenizer) in [
        ("phi2_sft.jsonl", Template::Phi2, &PHI2),
        ("qwen1_5_sft.jsonl", Template::Qwen2, &QWEN),
        ("phi3_sft.jsonl", Template::Phi3, &PHI3),
        ("vicuna_v1_sft.jsonl", Template::VicunaV1, &PHI3),
    ] {
        let (jinja, mut compared) = (chat_template(template).unwrap(), 0);
        for case in lines::<Training>(file) {
            let turns = &case.sample.conversations;
            // One that begins with an answer is trained without it.
            if case.input_ids.is_empty() || turns[0].from != "human" {
                continue;
            }
            let messages: Vec<Value> = turns
                .iter()
                .map(|turn| {
                    let about_image = case.sample.image.is_some() && turn.value.contains(IMAGE_TEXT);
                    let words = if about_image {
                        turn.value.replace(IMAGE_TEXT, "").trim().to_string()
                    } else {
                        turn.value.clone()
                    };
                    let parts = [json!({"type": "image"}), json!({"type": "text", "text": words})];
                    let role = if turn.from == "human" { "user" } else { "assistant" };
                    json!({"role": role, "content": if about_image { json!(parts) } else { json!(words) }})
                })
                .collect();
            let text = render(&jinja, &json!(messages), false);
            let text =
                if [Template::Qwen2, Template::Phi3].contains(&template) { text.trim_end_matches('\n') } else { &text };
            let ids =
                if case.sample.image.is_some() { tokenizer.encode_with_images(text) } else { tokenizer.encode(text) };
            assert_eq!(ids.unwrap(), case.input_ids, "{template:?} {}: {text}", case.id);
            compared += 1;
        }
        assert!(compared >= 14, "{template:?}: {compared}");
    }
}

fn merge(root: &Path, work: &str, config: &Value) -> Outcome {
    Trial::new(&root.join(work), &[("model", &root.join("model"))]).run::<Merge>(config)
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_merged_folder_says_how_its_model_talks() {
    let root = workshop();
    for format in ["imp", "llava-hf"] {
        let out = merge(root.path(), format, &json!({"format": format})).done();
        let before = TextTokenizer::open(&root.path().join("model/llm"), Path::new("before")).unwrap();
        let after = TextTokenizer::open(&out, Path::new("after")).unwrap();
        let generation = json_of(&out.join("generation_config.json"));
        let tokenizer = json_of(&out.join("tokenizer_config.json"));
        let end = after.id("</s>").unwrap();
        assert_eq!(generation["eos_token_id"], json!([end, after.id("<|endoftext|>").unwrap()]));
        assert_eq!((&tokenizer["eos_token"], &tokenizer["pad_token"]), (&json!("</s>"), &json!("<|endoftext|>")));
        assert_eq!(tokenizer["model_input_names"], json!(["input_ids", "attention_mask"]));
        let text = "What colour is the circle? USER: red</s>";
        assert_eq!(
            after.encode(text).unwrap().len() + 2,
            before.encode(text).unwrap().len() + if before.id("</s>").is_some() { 2 } else { 0 }
        );
        let jinja = std::fs::read_to_string(out.join("chat_template.jinja")).unwrap();
        let asked = render(&jinja, &json!([{"role": "user", "content": "Hi"}]), true);
        assert_eq!(asked, Template::Phi2.prompt_without_image("Hi"));
        let image = json_of(&out.join("preprocessor_config.json"));
        let model = Imp::load(&out).unwrap();
        assert_eq!(image["size"]["height"], model.vision.config.image_size);
        assert_eq!(out.join("processor_config.json").is_file(), format == "llava-hf");
        let config = json_of(&out.join("config.json"));
        if format == "llava-hf" {
            let added = json_of(&out.join("tokenizer.json"))["added_tokens"].clone();
            let token = added.as_array().unwrap().iter().find(|token| token["content"] == IMAGE_TEXT).unwrap().clone();
            let id = token["id"].as_u64().unwrap();
            assert_eq!(config["image_token_index"], id);
            // For other programs: here a second `<image>` in a question is text.
            assert_eq!(after.id(IMAGE_TEXT), None);
            assert_eq!(after.encode("a <image>").unwrap(), before.encode("a <image>").unwrap());
            assert!((id as usize) < model.llm.config.vocab_size, "it takes an unused row");
            assert_eq!(config["eos_token_id"], end);
        } else {
            assert_eq!(after.id(IMAGE_TEXT), None);
        }
    }
}

#[test]
fn published_code_is_named_where_transformers_looks_for_it() {
    let root = workshop();
    let auto_map = json!({
        "AutoConfig": "MILVLG/imp-v1-3b--configuration_imp.ImpConfig",
        "AutoModelForCausalLM": "MILVLG/imp-v1-3b--modeling_imp.ImpForCausalLM",
    });
    let out = merge(root.path(), "imp", &json!({"auto_map": auto_map})).done();
    assert_eq!(json_of(&out.join("config.json"))["auto_map"], auto_map);
    Imp::load(&out).unwrap();
    let refused = |config: &Value| {
        let issue = Merge::check(&serde_json::from_value(config.clone()).unwrap()).unwrap_err();
        format!("{}: {}", issue.key, issue.message)
    };
    for code in
        ["imp-v1-3b--modeling_imp.ImpForCausalLM", "a/b--c", "a/b--c.D--e", "../b--c.D", "a/b--c.d.E", "a/b/c--d.E"]
    {
        let issue = refused(&json!({"auto_map": {"AutoConfig": code}}));
        assert_eq!(issue, format!("auto_map.AutoConfig: `{code}` must be like `owner/repo--module.Class`"));
    }
    let issue = refused(&json!({"auto_map": {"AutoCode": "a/b--c.D", "code": "a/b--c.D"}}));
    assert_eq!(issue, "auto_map.code: must be one of transformers' classes, as `AutoConfig`");
    let issue = refused(&json!({"auto_map": auto_map, "format": "llava-hf"}));
    assert!(issue.starts_with("auto_map: is for the format `imp`"), "{issue}");
}

#[test]
fn gguf_files_are_a_model_and_are_not_quantized_again() {
    let root = workshop();
    let quantize = |work: &str, model: &Path, config: &Value| {
        Trial::new(&root.path().join(work), &[("model", model)]).run::<Quantize>(config)
    };
    let merged = merge(root.path(), "merged", &json!({})).done();
    let out = quantize("gguf", &merged, &json!({"format": "gguf", "scheme": "q8_0"})).done();
    for name in ["model.gguf", "mmproj.gguf", "config.json", "tokenizer.json"] {
        assert!(out.join(name).is_file(), "{name}");
    }
    assert!(!out.join("model.safetensors").exists());
    let (ours, theirs) = (Imp::load(&out).unwrap(), Imp::load(&merged).unwrap());
    assert_eq!((ours.config, &ours.llm.config), (theirs.config, &theirs.llm.config));
    let bytes = model_folder::outlook(&out).llm.unwrap().bytes;
    let length = |name: &str| std::fs::metadata(out.join(name)).unwrap().len();
    assert_eq!(bytes, length("model.gguf") + length("mmproj.gguf"), "forecasts know the size");

    let four = quantize("four", &merged, &json!({})).done();
    for (number, folder) in [&out, &four].into_iter().enumerate() {
        for (kind, config) in [("imp", json!({})), ("gguf", json!({"format": "gguf"}))] {
            let error = quantize(&format!("{kind}{number}"), folder, &config).error();
            assert!(error.to_string().contains("quantized already"), "{error}");
        }
    }
    let split = quantize("split", &root.path().join("model"), &json!({"format": "gguf", "scheme": "f16"}));
    assert!(split.done().join("model.gguf").is_file(), "of a training stage, too");
}

/// MLC's shards with all that a program reads beside them; imp-flow answers from them.
#[test]
fn mlc_shards_are_a_model_with_its_tokenizer() {
    let root = workshop();
    let quantize = |work: &str, model: &Path| {
        Trial::new(&root.path().join(work), &[("model", model)]).run::<Quantize>(&json!({"format": "mlc"}))
    };
    let outcome = quantize("mlc", &root.path().join("model"));
    let parts = ["vision", "projector", "language", "head"].map(|part| outcome.figure(&format!("{part}_megabytes")));
    assert!(
        (parts.iter().sum::<f64>() - outcome.figure("megabytes")).abs() < 1e-9 && parts.iter().all(|part| *part > 0.0)
    );
    assert!(outcome.cautions()[0].contains("no program is known that runs these shards"), "{:?}", outcome.cautions());
    let out = outcome.done();
    let chat = json_of(&out.join("mlc-chat-config.json"));
    let tokenizer = json_of(&out.join("tokenizer.json"));
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let id = |text: &str| added.iter().find(|token| token["content"] == text).unwrap()["id"].clone();
    for (pointer, value) in [
        ("/model_type", json!("imp")),
        ("/quantization", json!("q4f16_1")),
        ("/conv_template", json!("imp")),
        ("/eos_token_id", id("</s>")),
        ("/model_config/image_token_index", id(IMAGE_TEXT)),
        ("/model_config/n_layer", json!(2)),
        ("/model_config/n_embd", json!(32)),
        ("/tokenizer_files", json!(["tokenizer.json", "tokenizer_config.json"])),
    ] {
        assert_eq!(chat.pointer(pointer), Some(&value), "{pointer}");
    }
    let model = Imp::load(&out).unwrap();
    assert_eq!(model.llm.config.hidden_size, 32);
    let length = |name: &str| std::fs::metadata(out.join(name)).unwrap().len();
    let bytes = model_folder::outlook(&out).llm.unwrap().bytes;
    assert_eq!(bytes, length("params_shard_0.bin"), "forecasts know the size");
    let error = quantize("again", &out).error().to_string();
    assert!(error.contains("quantized already"), "{error}");
}

/// What LLaVA's script leaves of a LoRA training: adapter and projector beside a `config.json`, the rest is the base's.
#[test]
fn what_the_original_scripts_trained_is_merged_with_its_base() {
    let root = workshop();
    let at = |name: &str| root.path().join(name);
    let mut model = Imp::load(&at("model")).unwrap();
    let settings = LoraSettings::new(2, 4.0, 0.0);
    model.llm.adapt(&settings, &[], 1).unwrap();
    let parts = [("llm", at("model/llm")), ("vision", at("model/vision")), ("model", at("scripts"))];
    let merge =
        |work: &str, inputs: &[(&str, &Path)]| Trial::new(&at(work), inputs).run::<Merge>(&json!({"dtype": "f32"}));
    peft::write(&model.llm, &settings, "microsoft/phi-2", &at("scripts")).unwrap();
    let config = json!({"model_type": "imp", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_use_im_start_end": false, "tune_mm_mlp_adapter": false});
    std::fs::write(at("scripts/config.json"), config.to_string()).unwrap();
    let all = parts.each_ref().map(|(name, path)| (*name, path.as_path()));
    let error = merge("early", &all).error().to_string();
    assert!(error.contains("it has no projector (`mm_projector.bin`"), "{error}");
    std::fs::copy(at("model/mm_projector.safetensors"), at("scripts/non_lora_trainables.safetensors")).unwrap();
    let merged = Imp::load(&merge("both", &all).done()).unwrap();
    let values =
        |model: &Imp| model.llm.tensors().iter().flat_map(|tensor| tensor.values().into_owned()).collect::<Vec<f32>>();
    assert!(values(&merged) == values(&model));
    let issue = Merge::check_inputs(&serde_json::from_value(json!({})).unwrap(), &|name| usize::from(name != "vision"));
    assert_eq!(issue.unwrap_err().key, "vision");
}

#[test]
fn a_scheme_must_be_of_the_format() {
    for (config, is_one) in [
        (json!({"format": "gguf", "scheme": "q4_k_m"}), true),
        (json!({"format": "gguf"}), true),
        (json!({"scheme": "q4f16_1"}), true),
        (json!({"format": "mlc"}), true),
        (json!({"format": "mlc", "scheme": "q4_0"}), false),
        (json!({"scheme": "q6_k"}), false),
        (json!({"format": "gguf", "scheme": "q4f16_1"}), false),
    ] {
        let checked = Quantize::check(&serde_json::from_value(config.clone()).unwrap());
        assert_eq!(checked.is_ok(), is_one, "{config}");
        assert!(checked.is_ok() || checked.is_err_and(|issue| issue.key == "scheme"));
    }
}

#[test]
fn weights_come_in_files_of_the_size_asked_for() {
    let root = workshop();
    let out = merge(root.path(), "shards", &json!({"dtype": "f32", "max_shard_size": "1MB"})).done();
    let whole = merge(root.path(), "whole", &json!({"dtype": "f32"})).done();
    let is_whole = whole.join("model.safetensors").is_file();
    assert!(is_whole && !whole.join("model.safetensors.index.json").exists());
    let size = std::fs::metadata(whole.join("model.safetensors")).unwrap().len();
    assert_eq!(out.join("model.safetensors.index.json").is_file(), size > 1_000_000);
    Imp::load(&out).unwrap();
}

#[test]
fn damaged_settings_of_a_tokenizer_are_refused() {
    let root = workshop();
    let file = root.path().join("model/llm/tokenizer_config.json");
    std::fs::write(&file, "[]").unwrap();
    let error = merge(root.path(), "damaged", &json!({})).error().to_string();
    assert!(error.contains("tokenizer_config.json: these are no settings of a tokenizer"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let out = merge(root.path(), "without", &json!({})).done();
    assert_eq!(json_of(&out.join("tokenizer_config.json"))["eos_token"], "</s>");
}

#[test]
fn a_model_that_talks_in_no_known_way_is_no_llava() {
    let root = workshop();
    std::fs::remove_file(root.path().join("model/llm/tokenizer.json")).unwrap();
    let error = merge(root.path(), "llava", &json!({"format": "llava-hf"})).error();
    assert!(error.to_string().contains("needs a tokenizer"), "{error}");
    let outcome = merge(root.path(), "imp", &json!({}));
    assert!(outcome.cautions()[0].starts_with("no chat template"), "{:?}", outcome.cautions());
    outcome.done();
}
