//! What would go wrong without a word: other tokenizers, lost labels, forgotten templates, overflowing weights.

use super::*;

/// Changes a JSON file.
fn change(path: &Path, with: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    with(&mut value);
    // The file may be linked to that of another stage.
    fs::remove_file(path).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

/// Puts a tokenizer of the same size into `name`, in which two words have changed places.
fn swap_words(file: &Path) {
    change(file, |tokenizer| {
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
        vocab.insert("a".into(), b);
        vocab.insert("b".into(), a);
    });
}

#[test]
fn records_of_another_tokenizer_are_refused() {
    let shop = Workshop::pretrained();
    let sizes = json!({"hidden_size": 32, "layers": 2, "heads": 2});
    let phi = json!({"source": "builtin:tiny-phi", "model": sizes});
    Trial::new(&shop.path("other"), &[]).run::<Download>(&phi).done();
    swap_words(&shop.path("other/out/tokenizer.json"));
    let chat = json!({"annotations": "instruct.json", "template": "phi2"});
    shop.trial("chat", &[("data", "shapes"), ("tokenizer", "other")]).run::<Preprocess>(&chat).done();
    for (name, inputs) in [
        ("data", vec![("model", "pretrain"), ("data", "chat")]),
        ("data[1]", vec![("model", "pretrain"), ("data[0]", "captions"), ("data[1]", "chat")]),
        ("validation", vec![("model", "pretrain"), ("data", "instructions"), ("validation", "chat")]),
    ] {
        let error = shop.trial("refused", &inputs).run::<Finetune>(&lora()).error();
        let words = format!("the records of `{name}` were made with another tokenizer");
        assert!(error.to_string().starts_with(&words), "{error}");
    }
    // The words are the same, and the added tokens are not.
    let qwen = json!({"source": "builtin:tiny-qwen2", "model": {"hidden_size": 32, "layers": 2, "heads": 2}});
    Trial::new(&shop.path("qwen"), &[]).run::<Download>(&qwen).done();
    let inputs = [("llm", "qwen"), ("vision", "siglip"), ("data", "captions")];
    let error = shop.trial("refused", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().starts_with("the records of `data` were made with another tokenizer"), "{error}");
    // A set of an older version does not say.
    change(&shop.path("chat/out/meta.json"), |meta| drop(meta.as_object_mut().unwrap().remove("tokenizer")));
    let outcome = shop.trial("old", &[("model", "pretrain"), ("data", "chat")]).run::<Finetune>(&lora());
    assert!(outcome.cautions()[0].contains("don't say which tokenizer made them"), "{:?}", outcome.cautions());
    outcome.done();
    // A model whose own tokenizer was exchanged after its training.
    shop.finetune("tuned").run::<Finetune>(&lora()).done();
    let file = shop.path("tuned/out/llm/tokenizer.json");
    swap_words(&file);
    let error = shop.trial("swapped", &[("model", "tuned"), ("data", "chat")]).run::<Finetune>(&lora()).error();
    assert!(error.to_string().contains("not the tokenizer that the model was trained with"), "{error}");
}

#[test]
fn the_template_of_training_stays_with_the_model() {
    let shop = Workshop::pretrained();
    let template = |folder: &str| {
        let config = fs::read(shop.path(folder).join("config.json")).unwrap();
        serde_json::from_slice::<Value>(&config).unwrap()["conversation_template"].clone()
    };
    assert_eq!(template("pretrain/out"), Value::Null, "captions are no conversation");
    shop.finetune("lora").run::<Finetune>(&lora()).done();
    shop.trial("merge", &[("model", "lora")]).run::<Merge>(&json!({})).done();
    shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({})).done();
    for name in ["lora", "merge", "quantize"] {
        assert_eq!(template(&format!("{name}/out")), "phi2", "{name}");
    }
    let other = |name: &str| shop.trial(name, &[("data", "shapes"), ("tokenizer", "phi")]);
    other("more").run::<Preprocess>(&json!({"annotations": "pretrain.json", "template": "plain"})).done();
    let on_captions = shop.trial("captions_again", &[("model", "merge"), ("data", "more")]).run::<Finetune>(&lora());
    assert!(on_captions.cautions().is_empty(), "{:?}", on_captions.cautions());
    on_captions.done();
    assert_eq!(template("captions_again/out"), "phi2", "captions don't change it");
    // Another template, as if it had been made by another preprocess stage.
    other("qwen").run::<Preprocess>(&json!({"annotations": "instruct.json", "template": "phi2"})).done();
    change(&shop.path("qwen/out/meta.json"), |meta| {
        meta["template"] = json!("qwen2");
        drop(meta.as_object_mut().unwrap().remove("tokenizer"));
    });
    let both = [("model", "pretrain"), ("data[0]", "instructions"), ("data[1]", "qwen")];
    let error = shop.trial("both", &both).run::<Finetune>(&lora()).error().to_string();
    assert!(error.starts_with("data[0] has the template `phi2` and data[1] `qwen2`"), "{error}");
}

#[test]
fn a_training_without_labels_is_refused_and_lost_labels_are_told() {
    let shop = Workshop::pretrained();
    let with = |limit: usize| {
        let mut config = lora();
        config["max_length"] = json!(limit);
        config
    };
    let error = shop.finetune("none").run::<Finetune>(&with(6)).error();
    assert!(error.to_string().contains("record(s) of `data` has a label to learn"), "{error}");
    assert!(error.help().unwrap().contains("the shortest record that is cut at `max_length` = 6 has "), "{error:?}");
    let set = RecordSet::open(&shop.path("instructions/out")).unwrap();
    let middle = {
        let mut lengths: Vec<usize> = set.lengths().collect();
        lengths.sort_unstable();
        lengths[lengths.len() / 2] + 15
    };
    let outcome = shop.finetune("some").run::<Finetune>(&with(middle));
    assert!(outcome.figure("cut") > 0.0 && outcome.figure("cut") < set.len() as f64, "{}", outcome.figure("cut"));
    assert!(outcome.cautions().iter().any(|said| said.contains("of `data` lose labels")), "{:?}", outcome.cautions());
    outcome.done();

    let mut config = with(6);
    config["max_length"] = json!(3072);
    config["eval_steps"] = json!(1);
    let file = shop.path("instructions/out/records.bin");
    let labels = fs::read(&file).unwrap();
    shop.trial("silent", &[("data", "shapes"), ("tokenizer", "phi")])
        .run::<Preprocess>(&json!({"annotations": "instruct.json", "template": "phi2"}))
        .done();
    // Records whose every label is taken away.
    let words: Vec<u8> = mask_all(&RecordSet::open(&shop.path("silent/out")).unwrap(), labels);
    fs::write(shop.path("silent/out/records.bin"), words).unwrap();
    let inputs = [("model", "pretrain"), ("data", "instructions"), ("validation", "silent")];
    let error = shop.trial("held_out", &inputs).run::<Finetune>(&config).error();
    assert!(error.to_string().contains("record(s) of `validation` has a label to learn"), "{error}");
}

/// The bytes of `records.bin` with all labels masked: they follow the ids of each record.
fn mask_all(set: &RecordSet, mut bytes: Vec<u8>) -> Vec<u8> {
    let mut offset = 0;
    for number in 0..set.len() {
        let record = set.record(number).unwrap();
        let tokens = record.input_ids.len();
        for place in tokens..2 * tokens {
            bytes[offset + 4 * place..offset + 4 * place + 4].copy_from_slice(&(-100_i32).to_le_bytes());
        }
        offset += 8 * tokens + 4 * record.image_numbers().len() + record.id.len().next_multiple_of(4);
    }
    bytes
}

#[test]
fn a_step_without_labels_is_no_perfect_step() {
    let shop = Workshop::pretrained();
    let set = RecordSet::open(&shop.path("instructions/out")).unwrap();
    let file = shop.path("instructions/out/records.bin");
    let mut bytes = mask_all(&set, fs::read(&file).unwrap());
    // One record keeps its labels, so that there is something to learn in one step of the epoch.
    let kept = fs::read(&file).unwrap();
    let first = set.record(0).unwrap();
    let end = 8 * first.input_ids.len();
    bytes[..end].copy_from_slice(&kept[..end]);
    drop(set);
    fs::write(&file, bytes).unwrap();
    let config = json!({"mode": "lora", "global_batch_size": 1, "epochs": 1, "learning_rate": 0.0, "lora": {"rank": 2, "alpha": 2}});
    let outcome = shop.finetune("one").run::<Finetune>(&config);
    let losses: Vec<f64> = shop.metrics("one").iter().filter_map(|line| line.get("loss").copied()).collect();
    assert_eq!(losses.len(), 1, "the other steps have no loss");
    assert!((outcome.figure("loss") - losses[0]).abs() < 1e-6, "{} is not {}", outcome.figure("loss"), losses[0]);
    assert!(outcome.cautions().iter().any(|said| said.contains("have no labels")));
}

#[test]
fn weights_that_the_type_cannot_hold_stop_the_stage() {
    let shop = Workshop::pretrained();
    let config = json!({"mode": "full", "max_steps": 1, "global_batch_size": 4, "learning_rate": 0.0});
    shop.finetune("tuned").run::<Finetune>(&config).done();
    let mut model = Imp::load(&shop.path("tuned/out")).unwrap();
    model.llm.unfreeze();
    model.llm.trainable(&mut |parameter, mat| {
        if parameter.name == "lm_head.bias" {
            let mut values = mat.to_host().into_owned();
            values[3] = 1e5;
            mat.copy_from(&values);
        }
    });
    let llm = shop.path("tuned/out/llm");
    fs::remove_file(llm.join("model.safetensors")).unwrap();
    imp_model::save::language_model(&model, &llm).unwrap();
    let error = shop.trial("merge", &[("model", "tuned")]).run::<Merge>(&json!({})).error();
    assert!(error.to_string().contains("has the value 1e5, which f16 can't hold (its largest is 6.5504e4)"), "{error}");
    assert!(error.help().unwrap().contains("dtype = \"f32\""));
    shop.trial("merge32", &[("model", "tuned")]).run::<Merge>(&json!({"dtype": "f32"})).done();
    let error = shop.trial("quantize", &[("model", "merge32")]).run::<Quantize>(&json!({})).error();
    assert!(error.to_string().contains("which f16 can't hold"), "{error}");
}

#[test]
fn a_second_set_of_weights_and_unknown_settings_are_told() {
    let shop = Workshop::new();
    let llm = shop.path("phi/out");
    let plain = shop.pretrain("plain").run::<Pretrain>(&stage1());
    assert!(plain.cautions().is_empty(), "{:?}", plain.cautions());
    let plain = plain.done();
    fs::write(llm.join("stale.safetensors"), b"old").unwrap();
    fs::write(
        llm.join("model.safetensors.index.json"),
        json!({"weight_map": {"lm_head.weight": "stale.safetensors"}}).to_string(),
    )
    .unwrap();
    change(&llm.join("config.json"), |config| config["residual_gain"] = json!(0.5));
    let outcome = shop.pretrain("both").run::<Pretrain>(&stage1());
    let said = outcome.cautions().join("\n");
    assert!(said.contains("two sets of weights: `model.safetensors` is used, as transformers does"), "{said}");
    assert!(said.contains("1 unknown key(s) are not used: residual_gain"), "{said}");
    let projector = |out: &Path| fs::read(out.join("mm_projector.safetensors")).unwrap();
    assert_eq!(projector(&outcome.done()), projector(&plain));
}
