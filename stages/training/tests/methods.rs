//! Ways of finetuning: rsLoRA, LoRA+, DoRA, NEFTune, and adapters on a model in 4 bits, from training to what becomes of it.

use super::*;

/// Everything at once.
pub(super) fn all() -> Value {
    let mut config = lora();
    config["lora"] = json!({
        "rank": 4, "alpha": 8, "dropout": 0.1, "rslora": true, "dora": true, "loraplus_lr_ratio": 4.0,
    });
    config["neftune_noise_alpha"] = json!(5.0);
    config
}

#[test]
fn magnitudes_and_noise_go_on_where_they_were() {
    let shop = Workshop::pretrained();
    let once = shop.finetune("once").run::<Finetune>(&all()).done();
    let often = interrupted::<Finetune>(&all(), &[1, 2, 1], || shop.finetune("often")).done();
    assert_eq!(tree(&once), tree(&often));
    let mut plain = all();
    plain.as_object_mut().unwrap().remove("neftune_noise_alpha");
    assert_ne!(weights(&shop.finetune("plain").run::<Finetune>(&plain).done()), weights(&once), "noise matters");
}

#[test]
fn adapters_with_magnitudes_merge_and_quantize_and_train_again() {
    let shop = Workshop::pretrained();
    let data = shop.path("instructions/out");
    let tuned = shop.finetune("lora").run::<Finetune>(&all()).done();
    let config: Value = serde_json::from_slice(&fs::read(tuned.join("adapter/adapter_config.json")).unwrap()).unwrap();
    assert_eq!((&config["use_dora"], &config["use_rslora"]), (&json!(true), &json!(true)), "as peft names them");
    let adapted = logits(&tuned, &data);
    let largest = adapted.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(farthest(&adapted, &logits(&shop.path("pretrain/out"), &data)) > 0.01 * largest, "it learned");
    let merged = shop.trial("merge", &[("model", "lora")]).run::<Merge>(&json!({"dtype": "f32"})).done();
    assert!(farthest(&logits(&merged, &data), &adapted) < 1e-5 * largest);
    let quantized = shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({})).done();
    assert!(farthest(&logits(&quantized, &data), &adapted) < 0.7 * largest);
    let again = shop.trial("again", &[("model", "lora"), ("data", "instructions")]);
    again.run::<Finetune>(&json!({"mode": "full", "max_steps": 1, "warmup_ratio": 0, "learning_rate": 0})).done();
    let again = logits(&shop.path("again/out"), &data);
    assert!(farthest(&again, &adapted) < 1e-5 * largest, "the base of a second training has the magnitudes in it");
}

/// Without dropout and noise, and at a rate of almost nothing for B, the adapters stay what they were: nothing.
#[test]
fn matrices_b_have_the_rate_that_the_ratio_says() {
    let shop = Workshop::pretrained();
    let mut config = lora();
    config["projector_learning_rate"] = json!(0);
    let mut learned = |ratio: f64| {
        config["lora"] = json!({"rank": 4, "alpha": 8, "dropout": 0, "loraplus_lr_ratio": ratio});
        let name = format!("ratio{ratio}");
        let tuned = shop.finetune(&name).run::<Finetune>(&config).done();
        let data = shop.path("instructions/out");
        farthest(&logits(&tuned, &data), &logits(&shop.path("pretrain/out"), &data))
    };
    let [nothing, usual, fast] = [1e-9, 1.0, 4.0].map(&mut learned);
    assert!(nothing < 1e-3 * usual && usual < fast, "{nothing}, {usual}, {fast}");
    assert_eq!(
        weights(&shop.path("ratio1/out")),
        weights(&{
            config["lora"] = json!({"rank": 4, "alpha": 8, "dropout": 0});
            shop.finetune("none").run::<Finetune>(&config).done()
        }),
        "1 is what there is without the key"
    );
}

/// QLoRA (Dettmers et al. 2023, arXiv 2305.14314), on MLC's 4 bits: the base is not widened, and trains through its adapters.
#[test]
fn adapters_train_on_a_model_in_4_bits() {
    let shop = Workshop::pretrained();
    shop.trial("merge", &[("model", "pretrain")]).run::<Merge>(&json!({})).done();
    shop.trial("quantize", &[("model", "merge")]).run::<Quantize>(&json!({})).done();
    let base = logits(&shop.path("quantize/out"), &shop.path("instructions/out"));
    for (name, config) in [("plain", lora()), ("all", all())] {
        let trial = || shop.trial(name, &[("model", "quantize"), ("data", "instructions")]);
        let once = tree(&trial().run::<Finetune>(&config).done());
        let adapted = logits(&shop.path(name).join("out"), &shop.path("instructions/out"));
        let largest = adapted.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
        assert!(farthest(&adapted, &base) > 0.01 * largest, "{name}: it learned");
        fs::remove_dir_all(shop.path(name)).unwrap();
        assert_eq!(tree(&interrupted::<Finetune>(&config, &[2], trial).done()), once, "{name}");
    }
}

/// The tensors of the encoder in a training stage's result.
fn encoder(out: &Path) -> Vec<u8> {
    fs::read(out.join("vision/model.safetensors")).unwrap()
}

#[test]
fn last_blocks_of_the_encoder_train_and_go_on_where_they_were() {
    let shop = Workshop::pretrained();
    let mut config = lora();
    (config["vision_layers"], config["vision_learning_rate"]) = (json!(1), json!(1e-3));
    let once = shop.finetune("once").run::<Finetune>(&config).done();
    let often = interrupted::<Finetune>(&config, &[1, 2, 1], || shop.finetune("often")).done();
    assert_eq!(tree(&once), tree(&often));
    let data = shop.path("instructions/out");
    let adapted = logits(&once, &data);
    let merged = shop.trial("merge", &[("model", "once")]).run::<Merge>(&json!({"dtype": "f32"})).done();
    let largest = adapted.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
    assert!(farthest(&logits(&merged, &data), &adapted) < 1e-5 * largest);

    // At a rate of 0 the same tensors are written, with the values that they had. Gradients that are clipped would be so by the
    // norm of all.
    (config["vision_learning_rate"], config["max_grad_norm"]) = (json!(0), json!(0));
    let still = shop.finetune("still").run::<Finetune>(&config).done();
    assert_ne!(encoder(&still), encoder(&once));
    config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("vision"));
    let frozen = shop.finetune("frozen").run::<Finetune>(&config).done();
    assert_eq!(encoder(&frozen), encoder(&shop.path("pretrain/out")), "linked");
    assert!(logits(&still, &data) == logits(&frozen, &data), "the same bits");
}

#[test]
fn blocks_that_are_not_there_or_whose_output_is_kept_do_not_train() {
    let shop = Workshop::pretrained();
    let mut config = lora();
    (config["vision_layers"], config["vision_learning_rate"]) = (json!(2), json!(1e-3));
    let error = shop.finetune("deep").run::<Finetune>(&config).error().to_string();
    assert!(error.contains("vision_layers: the features pass 1 blocks of the vision encoder, not 2"), "{error}");
    config["vision_layers"] = json!(1);
    let inputs = [("data", "shapes"), ("tokenizer", "phi"), ("cache_vision_features", "siglip")];
    let records = json!({"annotations": "instruct.json", "template": "phi2"});
    shop.trial("seen", &inputs).run::<Preprocess>(&records).done();
    let trial = shop.trial("kept", &[("model", "pretrain"), ("data", "seen")]);
    let error = trial.run::<Finetune>(&config).error().to_string();
    assert!(error.contains("have features of the vision encoder, whose last blocks train here"), "{error}");
}

#[test]
fn values_that_mean_nothing_are_named() {
    let check = |change: Value| {
        let mut config = lora();
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        let issue = Finetune::check(&serde_json::from_value(config).unwrap()).unwrap_err();
        format!("{}: {}", issue.key, issue.message)
    };
    let zero = json!({"lora": {"loraplus_lr_ratio": 0}});
    assert_eq!(check(zero), "lora.loraplus_lr_ratio: must be greater than 0 and at most 10000, and is 0");
    let below = json!({"neftune_noise_alpha": -1});
    assert_eq!(check(below), "neftune_noise_alpha: must not be negative, and is -1");
    let no_rate = json!({"vision_layers": 1});
    assert!(check(no_rate).starts_with("vision_learning_rate: is needed with `vision_layers`"));
    let no_layers = json!({"vision_learning_rate": 1e-6});
    assert!(check(no_layers).starts_with("vision_learning_rate: is for the vision encoder, of which nothing trains"));
    let below = json!({"vision_layers": 1, "vision_learning_rate": -1});
    assert_eq!(check(below), "vision_learning_rate: must not be negative, and is -1");
    let unused = json!({"mode": "full", "lora": {"dora": true}});
    assert_eq!(check(unused), "lora.dora: is for adapters, and `mode = \"full\"` trains none: remove it");
}
