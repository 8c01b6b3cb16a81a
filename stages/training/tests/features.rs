//! Features that lie with the records, in place of the encoder.

use super::*;

/// A shop whose records have the features of `siglip`, beside those that have none.
fn with_features() -> Workshop {
    let shop = Workshop::pretrained();
    for (name, annotations, template) in
        [("seen_captions", "pretrain.json", "plain"), ("seen_instructions", "instruct.json", "phi2")]
    {
        shop.encoded(name).run::<Preprocess>(&json!({"annotations": annotations, "template": template})).done();
    }
    shop
}

impl Workshop {
    fn encoded(&self, name: &str) -> Trial {
        self.trial(name, &[("data", "shapes"), ("tokenizer", "phi"), ("cache_vision_features", "siglip")])
    }
}

#[test]
fn training_on_them_gives_the_very_same_model() {
    let shop = with_features();
    let inputs = [("llm", "phi"), ("vision", "siglip"), ("data", "seen_captions")];
    let pretrained = shop.trial("seen_pretrain", &inputs).run::<Pretrain>(&stage1()).done();
    assert_eq!(tree(&pretrained), tree(&shop.path("pretrain/out")));
    assert_eq!(shop.metrics("seen_pretrain"), shop.metrics("pretrain"));

    let mut config = lora();
    config["eval_steps"] = json!(2);
    let usual = [("model", "pretrain"), ("data", "instructions"), ("validation", "instructions")];
    let seen = [("model", "pretrain"), ("data", "seen_instructions"), ("validation", "seen_instructions")];
    let usual = shop.trial("usual", &usual).micro_batch(1).run::<Finetune>(&config).done();
    let seen = shop.trial("seen", &seen).micro_batch(1).workers(2).run::<Finetune>(&config).done();
    assert_eq!(tree(&seen), tree(&usual));
}

#[test]
fn any_number_of_workers_encodes_the_same() {
    let shop = with_features();
    let config = json!({"annotations": "pretrain.json", "template": "plain"});
    let shared = shop.encoded("shared").workers(5).run::<Preprocess>(&config).done();
    assert_eq!(tree(&shared), tree(&shop.path("seen_captions/out")), "12 images");
}

#[test]
fn encoding_goes_on_where_it_was_stopped() {
    let shop = with_features();
    let config = json!({"annotations": "pretrain.json", "template": "plain"});
    let trial = shop.encoded("stopped");
    // As a process leaves it that was killed in the third image.
    let all = fs::read(shop.path("seen_captions/out/features.bin")).unwrap();
    let image = all.len() / 12;
    let unfinished = shop.path("stopped/checkpoint");
    fs::create_dir_all(&unfinished).unwrap();
    fs::write(unfinished.join("features.bin"), &all[..2 * image + 5]).unwrap();
    let done = trial.run::<Preprocess>(&config).done();
    assert_eq!(tree(&done), tree(&shop.path("seen_captions/out")));
}

#[test]
fn those_of_another_encoder_are_refused() {
    let shop = with_features();
    // As large, and with other weights.
    let sizes = json!({"hidden_size": 32, "layers": 2, "heads": 2, "patch_size": 16});
    let other = json!({"source": "builtin:tiny-siglip", "model": sizes});
    Trial::new(&shop.path("other"), &[]).seeded(7).run::<Download>(&other).done();
    let inputs = [("llm", "phi"), ("vision", "other"), ("data", "seen_captions")];
    let error = shop.trial("mistaken", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().contains("not those of this model's vision encoder"), "{error}");
    // The same encoder, but another of its layers.
    let mut config = stage1();
    config["mm_vision_select_layer"] = json!(-1);
    let inputs = [("llm", "phi"), ("vision", "siglip"), ("data", "seen_captions")];
    let error = shop.trial("layer", &inputs).run::<Pretrain>(&config).error();
    assert!(error.to_string().contains("not those of this model's vision encoder"), "{error}");

    let config = json!({"annotations": "pretrain.json", "template": "plain", "mm_vision_select_layer": -2});
    let config = serde_json::from_value(config).unwrap();
    let issue = Preprocess::check_inputs(&config, &|name| usize::from(name != "cache_vision_features")).unwrap_err();
    assert_eq!(issue.key, "mm_vision_select_layer");
    Preprocess::check_inputs(&config, &|_| 1).unwrap();

    // The same encoder, but images of another size.
    let mut smaller = stage1();
    smaller["image_size"] = json!(32);
    let error = shop.trial("size", &inputs).run::<Pretrain>(&smaller).error();
    assert!(error.help().unwrap().contains("the same `image_size`"), "{error}");
    let config = json!({"annotations": "pretrain.json", "template": "plain", "image_size": 32});
    shop.encoded("small_captions").run::<Preprocess>(&config).done();
    let with = [("llm", "phi"), ("vision", "siglip"), ("data", "small_captions")];
    let with = shop.trial("with", &with).run::<Pretrain>(&smaller).done();
    assert_eq!(tree(&with), tree(&shop.pretrain("without").run::<Pretrain>(&smaller).done()));
}

#[test]
fn those_of_another_precision_are_refused() {
    let shop = with_features();
    let meta = shop.path("seen_captions/out/meta.json");
    let text = fs::read_to_string(&meta).unwrap();
    assert!(!text.contains("precision"), "the default leaves no trace: {text}");
    let rounded = text.replace("\"mm_vision_select_layer\"", "\"precision\":\"bf16\",\"mm_vision_select_layer\"");
    assert_ne!(rounded, text);
    fs::write(&meta, rounded).unwrap();
    let inputs = [("llm", "phi"), ("vision", "siglip"), ("data", "seen_captions")];
    let error = shop.trial("mixed", &inputs).run::<Pretrain>(&stage1()).error();
    assert!(error.to_string().contains("in another precision"), "{error}");
    assert!(error.help().unwrap().contains("the same `precision`"), "{error}");
}

#[test]
fn a_precision_without_an_encoder_is_refused() {
    let config = |precision: &str| {
        let config = json!({"annotations": "pretrain.json", "template": "plain", "precision": precision});
        serde_json::from_value(config).unwrap()
    };
    assert_eq!(Preprocess::check_inputs(&config("bf16"), &|_| 0).unwrap_err().key, "precision");
    Preprocess::check_inputs(&config("bf16"), &|_| 1).unwrap();
    Preprocess::check_inputs(&config("f32"), &|_| 0).unwrap();
}
