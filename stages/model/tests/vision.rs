//! CLIP, `DINOv2` (without and with registers) and SigLIP 2 against transformers, on tiny random checkpoints that
//! `benches/peers/vision.py` makes; and the folders that are written of them. Pixel values are tested in `stages/image`.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{collections::BTreeMap, path::Path};

use imp_model::{
    Imp, Precision,
    config::{ConfigFile, Encoder, Filter, Fit, ImpConfig, LanguageConfig, ProjectorType, VisionConfig},
    encoding::Encoding,
    init,
    layers::{Parameter, Pass},
    load_vision,
    optim::{Optimizer, Rate},
    save,
    tensor::{AdamW, cross_entropy},
    vision::VisionTower,
    weights::{NamedTensor, TensorFiles, write_tensors},
};
use serde_json::{Value, json};
use support::{Fixture, PHI, assert_close, path};

const NAMES: [(&str, Encoder); 4] = [
    ("clip", Encoder::Clip),
    ("dinov2", Encoder::Dinov2),
    ("dinov2_with_registers", Encoder::Dinov2WithRegisters),
    ("siglip2", Encoder::Siglip),
];

/// The noise between two implementations in f32 is about 1e-5 here, and the smallest mistake that was tried (the wrong epsilon)
/// moves features by more than 1e-4.
const TOLERANCE: f32 = 1e-4;

fn select(layer: i64) -> ImpConfig {
    ImpConfig { mm_vision_select_layer: layer, ..ImpConfig::default() }
}

fn load(folder: &Path, layer: i64) -> VisionTower {
    load_vision(folder, &select(layer)).unwrap()
}

fn folder(name: &str) -> std::path::PathBuf {
    path("vision").join(name)
}

fn expected(name: &str) -> Fixture {
    Fixture::open(&format!("vision/{name}/expected.safetensors"))
}

#[test]
fn features_and_all_hidden_states_equal_transformers() {
    for (name, encoder) in NAMES {
        let (expected, vision) = (expected(name), load(&folder(name), -1));
        assert_eq!(vision.config.encoder, encoder);
        assert_eq!((vision.config.image_size, vision.config.patches()), (24, 16), "{name}: not the 42 of training");
        let images = expected.images("pixel_values");
        let states = vision.hidden_states(&images);
        assert_eq!(states.len(), 4);
        for (number, state) in states.iter().enumerate() {
            let state_name = format!("hidden_states.{number}");
            let theirs = expected.f32(&state_name);
            assert_close(&format!("{name}: {state_name}"), &state.to_host(), &theirs, TOLERANCE);
        }
        // LLaVA reads the last but one, and drops what precedes the patches.
        let features = load(&folder(name), -2).encode(&images);
        assert_close(name, &features.to_host(), &expected.f32("features"), TOLERANCE);
    }
}

/// As of the folders for classifying that Meta and others publish.
#[test]
fn an_encoder_below_a_classifier_is_the_encoder() {
    for ((name, _), prefix) in NAMES.into_iter().zip(["", "dinov2.", "dinov2_with_registers.", ""]) {
        let (expected, files) = (expected(name), TensorFiles::open(&folder(name)).unwrap());
        let mut tensors = vec![NamedTensor::constant("classifier.weight", vec![2, 3], 1.0)];
        tensors.extend(files.names().filter(|tensor| !tensor.ends_with("position_ids")).map(|tensor| {
            let shape = files.shape(tensor).unwrap().to_vec();
            let count = shape.iter().product();
            let values = files.mat(tensor, &shape, 1, count).unwrap().to_host().into_owned();
            NamedTensor::new(format!("{prefix}{tensor}"), shape, move || values.clone().into())
        }));
        let new = tempfile::tempdir().unwrap();
        for file in ["config.json", "preprocessor_config.json"] {
            std::fs::copy(folder(name).join(file), new.path().join(file)).unwrap();
        }
        write_tensors(&new.path().join("model.safetensors"), tensors, Encoding::F32).unwrap();
        let features = load(new.path(), -2).encode(&expected.images("pixel_values"));
        assert_close(name, &features.to_host(), &expected.f32("features"), TOLERANCE);
    }
}

#[test]
fn images_of_another_size_have_interpolated_positions() {
    for (name, _) in NAMES {
        let (expected, mut vision) = (expected(name), load(&folder(name), -2));
        vision.resize(48).unwrap();
        let features = vision.encode(&expected.images("larger"));
        assert_close(name, &features.to_host(), &expected.f32("larger_features"), TOLERANCE);
        // Back again: nothing was lost.
        vision.resize(24).unwrap();
        let features = vision.encode(&expected.images("pixel_values"));
        assert_close(name, &features.to_host(), &expected.f32("features"), TOLERANCE);
        assert!(vision.resize(5).is_err(), "smaller than a patch");
    }
}

#[test]
fn every_place_gives_the_same_features() {
    for (place_name, place) in support::places() {
        for (name, _) in NAMES {
            let (expected, mut vision) = (expected(name), load(&folder(name), -2));
            vision.move_to(&place);
            let (ours, theirs) = (vision.encode(&expected.images("pixel_values")), expected.f32("features"));
            let largest = theirs.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            // bf16 has 8 bits, and errors add up over two blocks.
            let tolerance = if place.precision == imp_model::Precision::F32 { TOLERANCE } else { 0.05 * largest };
            assert_close(&format!("{name} on {place_name}"), &ours.to_host(), &theirs, tolerance);
        }
    }
}

/// Since version 5, transformers saves a vision encoder alone without the prefix of its names.
#[test]
fn encoders_without_a_text_encoder_have_names_with_and_without_prefix() {
    for name in ["clip", "siglip2"] {
        let root = tempfile::tempdir().unwrap();
        let (out, vision) = (root.path(), load(&folder(name), -1));
        let config: Value = serde_json::from_slice(&std::fs::read(folder(name).join("config.json")).unwrap()).unwrap();
        std::fs::write(out.join("config.json"), config["vision_config"].to_string()).unwrap();
        std::fs::copy(folder(name).join("preprocessor_config.json"), out.join("preprocessor_config.json")).unwrap();
        for prefix in ["", "vision_model."] {
            write_tensors(&out.join("model.safetensors"), vision.tensors(prefix), Encoding::F32).unwrap();
            let again = load(out, -2);
            let features = again.encode(&expected(name).images("pixel_values"));
            assert_close(name, &features.to_host(), &expected(name).f32("features"), TOLERANCE);
            assert_eq!(again.config, vision.config);
        }
    }
}

/// An Imp of the fixtures' Phi with this encoder.
fn imp(name: &str) -> Imp {
    Imp::assemble(&PHI.path("base_llm"), &folder(name), select(-2), 3).unwrap()
}

/// Two steps of the last block that the features pass, on the cross entropy of the features themselves. Tolerances of bf16 are
/// those of `places/`.
#[test]
fn last_blocks_step_as_in_transformers() {
    for (place_name, place) in support::places() {
        for (name, _) in NAMES {
            let (mut imp, exact) = (imp(name), place.precision == Precision::F32);
            let tuned = Fixture::open(&format!("vision/{name}/tuned.safetensors"));
            imp.vision.unfreeze(1).unwrap();
            let mut before = BTreeMap::new();
            imp.trainable(&mut |Parameter { name, .. }, mat| drop(before.insert(name, mat.to_host().into_owned())));
            imp.move_to(&place);
            let encoded = imp.encode_images(&expected(name).images("pixel_values"));
            let mut optimizer = Optimizer::new(&mut imp, AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 }, 0.0);
            for (step, theirs) in tuned.f32("loss").iter().enumerate() {
                let pass = Pass::training(0, 0);
                let features = imp.vision.finish(&pass, &encoded);
                let (rows, classes) = (features.rows(), features.cols());
                let targets = (0..rows).map(|row| (row * 5 % classes) as u32).collect();
                let loss = cross_entropy(&pass.graph, &features, targets, rows);
                let tolerance = if exact { 1e-5 } else { 0.01 } * theirs;
                assert_close(&format!("{name} on {place_name}: loss {step}"), &[loss.item()], &[*theirs], tolerance);
                let gradients = imp.gradients(&mut pass.graph.backward(&loss));
                if step == 0 {
                    check(&mut imp, &tuned, exact, &gradients);
                }
                optimizer.update(&mut imp, &gradients, |parameter| Rate {
                    learning_rate: 1e-2,
                    weight_decay: if parameter.decays() { 0.1 } else { 0.0 },
                });
            }
            let mut trained = 0;
            imp.trainable(&mut |Parameter { name, .. }, mat| {
                trained += mat.count();
                let theirs = tuned.f32(&format!("after.{name}"));
                match exact {
                    // Adam's first steps are as large as the rate, whatever the gradient is: those of mere rounding say nothing.
                    _ if is_bias_of_keys(&name) => {}
                    true => assert_close(&name, &mat.to_host(), &theirs, 1e-4),
                    false => {
                        let gradient = tuned.f32(&format!("grad.{name}"));
                        check_movement(&name, &gradient, &before[&name], &mat.to_host(), &theirs);
                    }
                }
            });
            assert!(trained > 0 && imp.vision.unfreeze(3).is_err(), "the third of 3 blocks is not used");
        }
    }
}

/// In bf16, where a gradient is well above its rounding: of the same sign, and within a fifth.
fn check_movement(name: &str, gradient: &[f32], before: &[f32], ours: &[f32], theirs: &[f32]) {
    let clear = 0.3 * gradient.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (i, _) in gradient.iter().enumerate().filter(|(_, value)| value.abs() >= clear) {
        let (ours, theirs) = (ours[i] - before[i], theirs[i] - before[i]);
        assert!((ours - theirs).abs() <= 0.2 * theirs.abs(), "{name}[{i}] moved by {ours}, not {theirs}");
    }
}

/// It adds the same to the scores of all keys, which softmax takes out: its gradient is nothing but rounding.
fn is_bias_of_keys(name: &str) -> bool {
    name.ends_with("k_proj.bias") || name.ends_with("key.bias")
}

fn check(imp: &mut Imp, tuned: &Fixture, exact: bool, gradients: &[imp_model::tensor::Mat]) {
    let mut gradients = gradients.iter();
    imp.trainable(&mut |Parameter { name, .. }, _| {
        let reference = tuned.f32(&format!("grad.{name}"));
        let largest = |of: &[f32]| of.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let query = name.replace("k_proj.bias", "q_proj.bias").replace("key.bias", "query.bias");
        // What rounding leaves of nothing is small beside the gradient of the queries.
        let scale =
            largest(&if is_bias_of_keys(&name) { tuned.f32(&format!("grad.{query}")) } else { reference.clone() });
        let tolerance = if exact { 1e-4 } else { 0.13 } * scale;
        assert_close(&name, &gradients.next().unwrap().to_host(), &reference, tolerance);
    });
    assert!(gradients.next().is_none(), "more gradients than trainable matrices");
}

#[test]
fn written_folders_give_the_same_features() {
    for (name, encoder) in NAMES {
        let (root, mut imp) = (tempfile::tempdir().unwrap(), imp(name));
        for size in [24, 30] {
            imp.vision.resize(size).unwrap();
            let image = vec![0.3; 3 * size * size];
            let features = imp.encode_images(&[&image]).to_host().into_owned();
            let (merged, alone) = (root.path().join("merged"), root.path().join("alone"));
            for folder in [&merged, &alone] {
                std::fs::create_dir_all(folder).unwrap();
            }
            save::merged(&imp, Encoding::F32, u64::MAX, &merged).unwrap();
            save::vision(&imp, &alone).unwrap();
            let merged = Imp::load(&merged).unwrap().vision;
            for again in [merged, load(&alone, -1 - (3 - 2))] {
                assert_eq!(*again.encode(&[&image]).to_host(), features, "{name} at {size}");
                assert_eq!((again.config.encoder, again.config.image_size), (encoder, size));
                let (ours, theirs) = (again.config.images, imp.vision.config.images);
                assert_eq!((ours.mean, ours.std, ours.filter), (theirs.mean, theirs.std, theirs.filter));
                assert_eq!(ours.fit.edge(size), theirs.fit.edge(size), "{name}");
            }
            std::fs::remove_dir_all(&alone).unwrap();
        }
    }
}

/// Norms, tokens and positions stay in 16 bits there.
#[test]
fn every_encoder_is_quantized() {
    for (name, encoder) in NAMES {
        let root = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| root.path().join(name));
        for folder in [&from, &to] {
            std::fs::create_dir(folder).unwrap();
        }
        save::merged(&imp(name), Encoding::F16, u64::MAX, &from).unwrap();
        imp_model::quant::write(&from, &imp_model::layers::Importance::default(), &to).unwrap();
        let again = Imp::load(&to).unwrap().vision;
        assert_eq!((again.config.encoder, again.config.image_size), (encoder, 24));
        let (ours, theirs) = (again.encode(&expected(name).images("pixel_values")), expected(name).f32("features"));
        let (mut error, mut size) = (0.0, 0.0);
        for (ours, theirs) in ours.to_host().iter().zip(&theirs) {
            error += f64::from(ours - theirs).powi(2);
            size += f64::from(*theirs).powi(2);
        }
        // Steps of 1/7 of the largest of 32 weights are about a tenth of a weight.
        assert!(error.sqrt() < 0.3 * size.sqrt(), "{name}: {} of {}", error.sqrt(), size.sqrt());
    }
}

#[test]
fn random_encoders_have_the_size_that_is_forecast() {
    for encoder in Encoder::ALL {
        let root = tempfile::tempdir().unwrap();
        let config = VisionConfig { patch_size: 6, ..VisionConfig::new(encoder, 16, 2, 2, 30) };
        init::write_vision(root.path(), &config, 1).unwrap();
        let read = ConfigFile::read(root.path()).unwrap();
        assert!(read.unknown_keys().is_empty());
        assert_eq!(read.vision().unwrap(), config);
        let files = TensorFiles::open(root.path()).unwrap();
        let count = |name: &str| files.shape(name).unwrap().iter().product::<usize>();
        assert_eq!(files.names().map(count).sum::<usize>(), config.parameters(), "{encoder:?}");
        let all = load(root.path(), -1);
        assert_eq!(all.encode(&[vec![0.1; 3 * 30 * 30]]).rows(), 25);
    }
    // As published, without CLIP's projection and text encoder.
    assert_eq!(VisionConfig::clip_vit_large_patch14_336().parameters(), 303_507_456);
}

fn parse(config: &Value) -> ConfigFile {
    ConfigFile::parse(config.to_string().as_bytes(), "config.json".as_ref()).unwrap()
}

#[test]
fn what_an_encoder_can_not_be_is_refused_by_name() {
    for (config, words) in [
        (json!({"model_type": "dinov2", "use_swiglu_ffn": true}), "`use_swiglu_ffn` = true is not supported"),
        (json!({"model_type": "dinov2", "qkv_bias": false}), "`qkv_bias` = false"),
        (json!({"model_type": "dinov2", "mlp_ratio": 1e9}), "`mlp_ratio` = 1000000000"),
        (json!({"model_type": "clip_vision_model", "hidden_act": "relu"}), "`hidden_act`: \"relu\""),
        (json!({"model_type": "siglip2"}), "NaFlex"),
        (json!({"model_type": "clip", "vision_config": {"num_channels": 4}}), "`num_channels` = 4"),
        (json!({"model_type": "vit"}), "supported: siglip, clip, dinov2, dinov2_with_registers"),
    ] {
        assert!(parse(&config).vision().unwrap_err().to_string().contains(words), "{config}");
    }
    // A class token as a feature.
    let clip = json!({"model_type": "imp", "vision_config": {"model_type": "clip_vision_model"}});
    parse(&clip).vision().unwrap();
    for (key, value) in [("mm_vision_select_feature", "cls_patch"), ("vision_feature_select_strategy", "full")] {
        let mut config = clip.clone();
        config[key] = json!(value);
        assert!(parse(&config).vision().unwrap_err().to_string().contains(key), "{config}");
    }
    let named = json!({"model_type": "imp", "mm_vision_tower": "openai/clip-vit-large-patch14-336"});
    assert_eq!(parse(&named).vision().unwrap(), VisionConfig::clip_vit_large_patch14_336());
}

#[test]
fn image_processors_are_read_as_published() {
    let root = tempfile::tempdir().unwrap();
    let read = |model_type: &str, processor: &Value| {
        std::fs::write(root.path().join("config.json"), json!({"model_type": model_type}).to_string()).unwrap();
        std::fs::write(root.path().join("preprocessor_config.json"), processor.to_string()).unwrap();
        ConfigFile::read(root.path()).unwrap().vision()
    };
    // The older form, with numbers for sizes.
    let clip = |size: usize| {
        json!({"crop_size": size, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "feature_extractor_type": "CLIPFeatureExtractor", "resample": 3, "size": size})
    };
    let config = read("clip_vision_model", &clip(224)).unwrap();
    assert_eq!(config.images.fit, Fit::Crop { edge: 224, side: 224 });
    assert_eq!(json!(config.images.mean), json!([0.481_454_66, 0.457_827_5, 0.408_210_73]));
    let square = read("siglip_vision_model", &json!({"size": {"height": 384, "width": 384}, "resample": 2})).unwrap();
    assert_eq!((square.images.fit, square.images.filter), (Fit::Stretch, Filter::Bilinear));
    let dino = json!({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}});
    let dino = read("dinov2", &dino).unwrap();
    assert_eq!((dino.image_size, dino.images.fit.edge(dino.image_size), dino.images.fit.edge(518)), (224, 256, 592));
    for (processor, words) in [
        (json!({"resample": 0}), "`resample` = 0 is not supported"),
        (json!({"do_rescale": false}), "without `do_rescale`"),
        (json!({"rescale_factor": 1.0}), "`rescale_factor` = 1"),
        (json!({"image_mean": [0.5]}), "`image_mean` must be three numbers"),
        (json!({"image_std": [0.5, 0.0, 0.5]}), "`image_std` must be positive"),
        (json!({"size": {"shortest_edge": 224}, "do_center_crop": false}), "not square"),
        (json!({"size": {"longest_edge": 224}}), "must be a square"),
        (json!({"size": {"shortest_edge": 200}, "crop_size": 224}), "`crop_size` = 224"),
        (json!({"size": 1_000_000}), "`size` must be from 1 to"),
        (json!({"crop_size": 336}), "gives images of 336 pixels, and the encoder has 224"),
    ] {
        let error = read("clip", &processor).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("preprocessor_config.json"), "{processor}: {error}");
    }
}

#[test]
fn formats_without_a_place_for_an_encoder_say_so() {
    let root = tempfile::tempdir().unwrap();
    let error = imp_model::mlc::write(&imp("clip"), &imp_model::layers::Importance::default(), root.path())
        .unwrap_err()
        .to_string();
    assert!(error.contains("vision tower is a SigLIP, and the model's is a clip"), "{error}");
}

/// A class token is a token of the encoder, and none of the language model.
#[test]
fn forecasts_count_the_class_token_in_the_encoder_only() {
    use imp_model::memory::{MicroBatch, Training, Trains};
    let (llm, clip) = (LanguageConfig::phi(51_200, 2560, 32, 32, 32), VisionConfig::clip_vit_large_patch14_336());
    let training = Training {
        llm: &llm,
        vision: &clip,
        projector: ProjectorType::Mlp(2),
        trains: Trains::Projector,
        vision_layers: 0,
        gradient_checkpointing: false,
    };
    let batch = MicroBatch { rows: 1000, learned: 200, images: 2 };
    let added = training.operations(batch, 2) - training.operations(batch, 0);
    // Exact: all counts here are integers below 2^53.
    assert_eq!(added as u64, 2 * clip.parameters() as u64 * 2 * 577);
    assert_eq!(clip.patches(), 576);
}
