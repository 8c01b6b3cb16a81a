//! What trains, and what becomes of it: adapters, merged and quantized models, every family.

use super::*;

#[test]
fn adapters_merge_and_the_merged_model_quantizes() {
    let shop = Workshop::pretrained();
    let data = shop.path("instructions/out");
    let tuned = shop.finetune("lora").run::<Finetune>(&lora()).done();
    let base = tree(&shop.path("pretrain/out"));
    for (path, bytes) in tree(&tuned) {
        // config.json names the template from now on.
        let new = path.starts_with("adapter")
            || ["mm_projector.safetensors", "config.json"].iter().any(|name| path == Path::new(name));
        assert!(new || base[&path] == bytes, "{} is the base's", path.display());
    }
    assert_ne!(tree(&tuned)[Path::new("mm_projector.safetensors")], base[Path::new("mm_projector.safetensors")]);

    let with_adapter = logits(&tuned, &data);
    let largest = with_adapter.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(farthest(&with_adapter, &logits(&shop.path("pretrain/out"), &data)) > 0.05 * largest, "it learned");
    let merge = |name: &str, dtype: &str| {
        let config = json!({ "dtype": dtype });
        shop.trial(name, &[("model", "lora")]).run::<Merge>(&config).done()
    };
    // f32: another order of sums. f16: 11 bits a weight, through four layers.
    assert!(farthest(&logits(&merge("merge32", "f32"), &data), &with_adapter) < 1e-5 * largest);
    let merged = merge("merge", "f16");
    assert!(farthest(&logits(&merged, &data), &with_adapter) < 4e-3 * largest);
    assert!(merged.join("tokenizer.json").is_file(), "the tokenizer comes along");

    let outcome = shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({}));
    // 4.5 bits a weight, and norms, biases, positions and the convolution in 16.
    assert!((4.5..9.0).contains(&outcome.figure("bits_per_weight")), "{}", outcome.figure("bits_per_weight"));
    let bytes = outcome.figure("megabytes") * 1e6;
    let quantized = outcome.done();
    let size = fs::metadata(quantized.join("model.safetensors")).unwrap().len() as f64;
    assert!((0.0..20_000.0).contains(&(size - bytes)), "{size} bytes in the file, {bytes} of tensors");
    assert!(farthest(&logits(&quantized, &data), &with_adapter) < 0.7 * largest);
}

/// Records show which weights matter. The model is measured on others, and without records that it is calibrated with it is as if
/// there were none.
#[test]
fn a_model_is_calibrated_with_records_and_measured_on_others() {
    let shop = Workshop::pretrained();
    shop.finetune("full").run::<Finetune>(&full()).done();
    shop.trial("merge", &[("model", "full")]).run::<Merge>(&json!({"dtype": "f32"})).done();
    let weights = |folder: PathBuf| {
        let mut files = tree(&folder);
        files.retain(|path, _| {
            path.extension().is_some_and(|end| ["safetensors", "gguf", "bin"].iter().any(|e| end == *e))
        });
        files
    };
    for (format, scheme) in [("imp", "q4f16_1"), ("gguf", "q4_0"), ("mlc", "q4f16_1")] {
        let quantize = |name: &str, inputs: &[(&str, &str)], records: usize| {
            let config = json!({"format": format, "scheme": scheme, "calibration_records": records});
            shop.trial(&format!("{format}-{name}"), inputs).run::<Quantize>(&config)
        };
        let both = [("model", "merge"), ("calibration", "instructions")];
        let plain = weights(quantize("plain", &both[..1], 64).done());
        let measured = quantize("measured", &both, 0);
        let calibrated = quantize("calibrated", &both, 8);
        let used = [&measured, &calibrated].map(|outcome| outcome.figure("calibration_records") as usize);
        assert_eq!(used, [0, 8]);
        for outcome in [&measured, &calibrated] {
            let (before, after) = (outcome.figure("unquantized_perplexity"), outcome.figure("perplexity"));
            // Of the same records.
            assert_eq!(before.to_bits(), measured.figure("unquantized_perplexity").to_bits());
            assert!(before > 1.0 && (after / before - 1.0).abs() < 0.2, "{format}: {before} and {after}");
        }
        assert!(weights(measured.done()) == plain, "{format}");
        assert!(weights(calibrated.done()) != plain, "{format}");
    }
    let config = serde_json::from_value(json!({"calibration_records": 8})).unwrap();
    assert_eq!(Quantize::check_inputs(&config, &|_| 0).unwrap_err().key, "calibration_records");
    assert!(Quantize::check_inputs(&config, &|_| 1).is_ok());
    // Features are those of the encoder before it was quantized.
    shop.trial("seen", &[("data", "shapes"), ("tokenizer", "phi"), ("cache_vision_features", "siglip")])
        .run::<Preprocess>(&json!({"annotations": "instruct.json", "template": "phi2"}))
        .done();
    let error = shop.trial("stale", &[("model", "merge"), ("calibration", "seen")]).run::<Quantize>(&json!({})).error();
    assert!(error.to_string().contains("have the features of their images"), "{error}");
    // Captions are of the template `plain`, and of the same tokenizer: they may be used, too. Shapes are no records.
    let error =
        shop.trial("none", &[("model", "merge"), ("calibration", "shapes")]).run::<Quantize>(&json!({})).error();
    assert!(error.to_string().contains("meta.json: the file is missing"), "{error}");
}

#[test]
fn images_of_another_size_stay_so_to_the_end() {
    let shop = Workshop::new();
    let mut config = stage1();
    config["image_size"] = json!(32);
    let pretrained = shop.pretrain("pretrain").run::<Pretrain>(&config).done();
    // 2 x 2 patches of 16 pixels in place of 4 x 4, with positions as transformers would give them.
    let vision = Imp::load(&pretrained).unwrap().vision;
    assert_eq!((vision.config.image_size, vision.config.patches()), (32, 4));
    let mut original =
        imp_model::load_vision(&shop.path("siglip/out"), &imp_model::config::ImpConfig::default()).unwrap();
    original.resize(32).unwrap();
    let image = [vec![0.5; 3 * 32 * 32]];
    assert_eq!(vision.encode(&image).to_host(), original.encode(&image).to_host());

    let data = shop.path("instructions/out");
    let tuned = logits(&shop.finetune("lora").run::<Finetune>(&lora()).done(), &data);
    let merged = shop.trial("merge", &[("model", "lora")]).run::<Merge>(&json!({"dtype": "f32"})).done();
    let quantized = shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({})).done();
    let largest = tuned.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(farthest(&logits(&merged, &data), &tuned) < 1e-5 * largest);
    assert!(farthest(&logits(&quantized, &data), &tuned) < 0.7 * largest);
    for folder in [merged, quantized] {
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["vision_tower_config"]["image_size"], 32);
    }

    config["image_size"] = json!(64);
    let usual = tree(&shop.pretrain("usual").run::<Pretrain>(&stage1()).done());
    assert_eq!(tree(&shop.pretrain("same").run::<Pretrain>(&config).done()), usual, "its own size changes nothing");
    config["image_size"] = json!(15);
    let error = shop.pretrain("none").run::<Pretrain>(&config).error().to_string();
    assert_eq!(error, "image_size: images of 15 pixels are smaller than a patch of 16");
}

/// Finetuning continues from any model folder: the base of a second adapter has the first one in it.
#[test]
fn a_finetuned_model_can_be_finetuned_again() {
    let shop = Workshop::pretrained();
    let data = shop.path("instructions/out");
    shop.finetune("first").run::<Finetune>(&lora()).done();
    let still = json!({
        "mode": "lora", "global_batch_size": 8, "max_steps": 1, "learning_rate": 0.0, "lora": {"rank": 2, "alpha": 2},
    });
    shop.trial("merge", &[("model", "first")]).run::<Merge>(&json!({"dtype": "f32"})).done();
    let before = logits(&shop.path("first/out"), &data);
    for from in ["first", "merge"] {
        let inputs = [("model", from), ("data", "instructions")];
        let after = shop.trial(&format!("after_{from}"), &inputs).run::<Finetune>(&still).done();
        assert!(farthest(&logits(&after, &data), &before) < 1e-4, "after {from}");
        assert!(after.join("llm/tokenizer.json").is_file());
    }
}

#[test]
fn training_learns_and_reports_it() {
    let shop = Workshop::pretrained();
    let config = json!({"mode": "full", "global_batch_size": 4, "epochs": 16, "learning_rate": 3e-3});
    let outcome = shop.finetune("finetune").run::<Finetune>(&config);
    let lines = shop.metrics("finetune");
    assert!(outcome.figure("loss") < 0.5 * lines[0]["loss"], "{} after {}", outcome.figure("loss"), lines[0]["loss"]);
    assert!(outcome.figure("tokens_per_second") > outcome.figure("examples_per_second"));
    assert!(lines[0]["learning_rate"].abs() < 1e-12, "the first step has a learning rate of 0");
    assert_eq!(lines.iter().map(|line| line["step"] as usize).collect::<Vec<_>>(), (1..=48).collect::<Vec<_>>());
    let reports = outcome.events.iter().filter_map(|event| match event {
        Event::Progress(progress) => Some((progress.done, progress.total)),
        _ => None,
    });
    assert_eq!(reports.collect::<Vec<_>>(), (1..=48).map(|step| (step, 48)).collect::<Vec<_>>());
}

#[test]
fn divergence_says_where_and_what_to_try() {
    let shop = Workshop::pretrained();
    let config = json!({
        "mode": "full", "global_batch_size": 4, "epochs": 9, "learning_rate": 1e30, "max_grad_norm": 0, "warmup_ratio": 0,
    });
    let error = shop.finetune("diverges").run::<Finetune>(&config).error();
    assert!(error.to_string().starts_with("training diverged in step 2: the loss is "), "{error}");
    assert!(error.to_string().contains("(records "), "{error}");
    assert!(error.help().unwrap().contains("learning_rate"));

    // The loss of the only step is that of the weights before it; what it made of them shows on the held-out records.
    let config = json!({
        "mode": "full", "global_batch_size": 4, "max_steps": 1, "learning_rate": 1e30, "max_grad_norm": 0, "warmup_ratio": 0,
        "eval_steps": 1, "keep_best": true,
    });
    let inputs = [("model", "pretrain"), ("data", "instructions"), ("validation", "instructions")];
    let error = shop.trial("held_out", &inputs).run::<Finetune>(&config).error();
    let words = "training diverged in step 1: the loss on the held-out records is NaN (first in records ";
    assert!(error.to_string().starts_with(words), "{error}");
    assert!(error.help().unwrap().contains("learning_rate"));

    // Nothing here overflows, but nothing is learned any more.
    let config = json!({
        "mode": "full", "global_batch_size": 4, "epochs": 9, "learning_rate": 1.0, "lr_scheduler": "constant",
        "max_grad_norm": 0, "warmup_ratio": 0,
    });
    let error = shop.finetune("explodes").run::<Finetune>(&config).error().to_string();
    assert!(error.starts_with("training diverged in step 20: the loss of the last 20 steps is "), "{error}");
    assert!(error.contains("worse than guessing (records "), "{error}");
}

#[test]
fn faults_of_inputs_name_the_user_s_files() {
    let shop = Workshop::pretrained();
    // Data of a tokenizer with more tokens than the model knows.
    let phi =
        json!({"source": "builtin:tiny-phi", "model": {"hidden_size": 32, "layers": 1, "heads": 2, "vocab_size": 300}});
    Trial::new(&shop.path("other"), &[]).run::<Download>(&phi).done();
    let inputs = [("llm", "other"), ("vision", "siglip"), ("data", "captions")];
    let error = shop.trial("mismatch", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().starts_with("the records of `data` were made with another tokenizer"), "{error}");
    assert!(error.help().unwrap().contains("set `tokenizer` to the stage"));

    let inputs = [("llm", "siglip"), ("vision", "siglip"), ("data", "captions")];
    let error = shop.trial("swapped", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().starts_with("shown/llm/config.json: model_type `siglip`"), "{error}");

    let inputs = [("llm", "phi"), ("vision", "other"), ("data", "captions")];
    let error = shop.trial("twice", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(
        error.to_string().starts_with("shown/vision/config.json: model_type `phi` is not a supported vision"),
        "{error}"
    );

    let inputs = [("llm", "phi"), ("vision", "siglip"), ("data", "shapes")];
    let error = shop.trial("no_records", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().starts_with("shown/data/meta.json: the file is missing"), "{error}");

    let error = shop.trial("unmerged", &[("model", "pretrain")]).run::<Quantize>(&json!({})).error();
    assert!(error.to_string().starts_with("shown/model/config.json: only a merged model"), "{error}");

    let file = shop.path("phi/out/model.safetensors");
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let error = shop.pretrain("cut").run::<Pretrain>(&stage1()).error();
    assert!(
        error.to_string().starts_with("shown/llm/model.safetensors: this is not a complete safetensors file"),
        "{error}"
    );
}

#[test]
fn impossible_settings_are_named() {
    let issue = |key: &str, value: Value| {
        let mut config = json!({});
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let target = if section.is_empty() { &mut config } else { &mut config[section] };
        target[name] = value;
        let found = Finetune::check(&serde_json::from_value(config).unwrap()).unwrap_err();
        assert_eq!(found.key, key, "{}", found.message);
    };
    issue("learning_rate", json!(-1.0));
    issue("warmup_ratio", json!(1.5));
    issue("adam_beta2", json!(1.0));
    issue("epochs", json!(0));
    issue("global_batch_size", json!(0));
    issue("max_length", json!(1));
    issue("lora.rank", json!(0));
    issue("lora.dropout", json!(1.0));
    let pretrain = |config: Value| Pretrain::check(&serde_json::from_value(config).unwrap()).unwrap_err();
    assert_eq!(pretrain(json!({"mm_projector_type": "mlpx_gelu"})).key, "mm_projector_type");
    assert_eq!(pretrain(json!({"mm_vision_select_layer": 1})).key, "mm_vision_select_layer");
    assert_eq!(pretrain(json!({"image_size": 0})).key, "image_size");
}

#[test]
fn adapters_go_where_the_targets_say() {
    let shop = Workshop::pretrained();
    let config = |targets: Value| json!({"mode": "custom", "max_steps": 1, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": targets}});
    let out = shop.finetune("some").run::<Finetune>(&config(json!(["q_proj", "lm_head"]))).done();
    let text = fs::read_to_string(out.join("adapter/adapter_config.json")).unwrap();
    let adapter: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(adapter["target_modules"], json!(["lm_head", "q_proj"]));
    let error = shop.finetune("wrong").run::<Finetune>(&config(json!(["qkv_proj"]))).error();
    assert!(error.to_string().contains("lora.targets: `qkv_proj` is not a linear layer of this model"), "{error}");
}

/// Qwen2, Llama with tied embeddings, and Phi-3 with its stacked matrices: pretrained, adapted, merged, quantized.
#[test]
fn every_family_goes_through_all_stages() {
    for family in [Family::Qwen2, Family::Llama, Family::Phi3] {
        let shop = Workshop::new();
        let phi = imp_model::load_language(&shop.path("phi/out")).unwrap().config;
        let config = LanguageConfig {
            family,
            intermediate_size: 40,
            num_key_value_heads: 1,
            hidden_act: Activation::Silu,
            tie_word_embeddings: family == Family::Llama,
            sliding_window: (family == Family::Phi3).then_some(20),
            ..LanguageConfig::phi(phi.vocab_size, 32, 2, 2, 16)
        };
        init::write_language(&shop.path("phi/out"), &config, 3, Encoding::F16).unwrap();
        shop.pretrain("pretrain").run::<Pretrain>(&stage1()).done();
        let tuned = shop.finetune("lora").run::<Finetune>(&lora()).done();
        let data = shop.path("instructions/out");
        let adapted = logits(&tuned, &data);
        let largest = adapted.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        let merged = shop.trial("merge", &[("model", "lora")]).run::<Merge>(&json!({"dtype": "f32"})).done();
        assert!(farthest(&logits(&merged, &data), &adapted) < 1e-4 * largest, "{family:?}");
        let quantized = shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({})).done();
        assert!(farthest(&logits(&quantized, &data), &adapted) < largest, "{family:?}");
        let full = shop.trial("full", &[("model", "merge"), ("data", "instructions")]).run::<Finetune>(&full()).done();
        assert!(farthest(&logits(&full, &data), &adapted) > 1e-3 * largest, "{family:?} learned on");
    }
}
