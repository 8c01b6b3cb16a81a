//! Invalid model folders give errors that name file, tensor and shape; models and adapters round-trip through files.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{path::Path, sync::LazyLock};

use half::f16;

use imp_model::{
    Imp,
    config::{ConfigFile, ImpConfig, LanguageConfig, VisionConfig},
    encoding::Encoding,
    init,
    language::Decoder,
    peft, save,
    weights::{TensorFiles, write_json},
};
use proptest::prelude::*;
use support::{PHI, torch};

fn error(folder: &Path) -> String {
    let text = Imp::load(folder).err().unwrap().to_string();
    text.replace(&*folder.to_string_lossy(), "HERE")
}

/// A merged folder whose weights file has been modified by `change`.
fn broken(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    save::merged(&PHI.model(), Encoding::F16, u64::MAX, folder.path()).unwrap();
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(file, change(bytes)).unwrap();
    folder
}

#[test]
fn errors_name_broken_files() {
    let cut = broken(|bytes| bytes[..bytes.len() - 1000].to_vec());
    let text = error(cut.path());
    assert!(text.starts_with("HERE/model.safetensors: this is not a complete safetensors file"), "{text}");
    assert!(text.ends_with("download it again"), "{text}");

    let hostile = broken(|bytes| [&u64::MAX.to_le_bytes(), &bytes[8..]].concat());
    assert!(error(hostile.path()).contains("this is not a complete safetensors file"));
    let empty = broken(|_| Vec::new());
    assert!(error(empty.path()).contains("model.safetensors"));

    let renamed = broken(|bytes| {
        let text = bytes.windows(27).position(|w| w == b"model.layers.1.mlp.fc1.bias").unwrap();
        let mut bytes = bytes;
        bytes[text] = b'n';
        bytes
    });
    assert_eq!(error(renamed.path()), "HERE/model.safetensors: the tensor `model.layers.1.mlp.fc1.bias` is missing");
}

/// A tensor that the configuration does not describe means that one of the two is wrong.
#[test]
fn errors_name_extra_tensors_and_non_finite_values() {
    let shallow = broken(|bytes| bytes);
    let config = shallow.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", 1)).unwrap();
    assert_eq!(
        error(shallow.path()),
        "HERE/model.safetensors: the tensor `model.layers.1.input_layernorm.bias` does not belong to any layer that \
         config.json describes"
    );

    // The last bytes are those of the last tensor by name.
    for bad in [f16::NAN, f16::INFINITY] {
        let poisoned = broken(|mut bytes| {
            let end = bytes.len();
            bytes[end - 2..].copy_from_slice(&bad.to_le_bytes());
            bytes
        });
        let text = error(poisoned.path());
        assert!(text.starts_with("HERE/model.safetensors: the tensor `model.vision_tower."), "{text}");
        assert!(text.ends_with("` contains non-finite values"), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any header gives an error or a model, without panics and without allocating more memory than the size of the
    /// file.
    #[test]
    fn hostile_headers_do_no_harm(length in prop_oneof![any::<u64>(), 0_u64..5000], at in 0_usize..3000, with: [u8; 4]) {
        static WHOLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let folder = broken(|bytes| bytes);
            std::fs::read(folder.path().join("model.safetensors")).unwrap()
        });
        let file = tempfile::NamedTempFile::new().unwrap();
        let write = |bytes: &[u8]| std::fs::write(file.path(), bytes).unwrap();
        let mut bytes = WHOLE.clone();
        bytes[8 + at..12 + at].copy_from_slice(&with);
        write(&bytes);
        let _ = TensorFiles::open_file(file.path());
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        write(&bytes);
        prop_assert!(TensorFiles::open_file(file.path()).is_err());
    }
}

#[test]
fn errors_name_shapes_that_differ_from_the_configuration() {
    let folder = broken(|bytes| bytes);
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"intermediate_size\": 152", "\"intermediate_size\": 160")).unwrap();
    assert_eq!(
        error(folder.path()),
        "HERE/model.safetensors: the tensor `model.layers.0.mlp.fc1.bias` has the shape [152], but config.json says [160]"
    );
    std::fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": \"two\"")).unwrap();
    assert_eq!(error(folder.path()), "HERE/config.json: `num_hidden_layers` must be a whole number, not \"two\"");
    std::fs::write(&config, &text[..100]).unwrap();
    assert!(error(folder.path()).starts_with("HERE/config.json: this is not JSON"));
    std::fs::remove_file(&config).unwrap();
    assert!(error(folder.path()).starts_with("HERE/config.json: No such file"));
}

/// Old and new names of keys are equivalent.
#[test]
fn configurations_of_both_generations_are_read() {
    let old = ConfigFile::read(&PHI.path("base_llm")).unwrap().language().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut value = old.to_json();
    let keys = value.as_object_mut().unwrap();
    let (theta, share) = (keys.remove("rope_theta").unwrap(), keys.remove("partial_rotary_factor").unwrap());
    value["rope_parameters"] = serde_json::json!({ "rope_theta": theta, "partial_rotary_factor": share });
    write_json(&folder.path().join("config.json"), &value).unwrap();
    assert_eq!(ConfigFile::read(folder.path()).unwrap().language().unwrap(), old);
    assert_eq!(old.rotary_dims, 8, "0.4 of 20");
}

#[test]
fn random_models_load_and_their_bytes_depend_only_on_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let (llm, vision) = (folder.path().join("llm"), folder.path().join("vision"));
    for folder in [&llm, &vision] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let phi: LanguageConfig = ConfigFile::read(&PHI.path("base_llm")).unwrap().language().unwrap();
    let siglip: VisionConfig = ConfigFile::read(&PHI.path("siglip")).unwrap().vision().unwrap();
    init::write_language(&llm, &phi, 3, Encoding::F32).unwrap();
    init::write_vision(&vision, &siglip, 3).unwrap();
    let first = std::fs::read(llm.join("model.safetensors")).unwrap();
    init::write_language(&llm, &phi, 3, Encoding::F32).unwrap();
    assert_eq!(std::fs::read(llm.join("model.safetensors")).unwrap(), first);
    init::write_language(&llm, &phi, 4, Encoding::F32).unwrap();
    assert_ne!(std::fs::read(llm.join("model.safetensors")).unwrap(), first);
    Imp::assemble(&llm, &vision, ImpConfig::default(), 1).unwrap();
}

/// Through files with peft's tensor names.
#[test]
fn adapters_round_trip() {
    let model = PHI.model_with_lora();
    let folder = tempfile::tempdir().unwrap();
    let settings = imp_model::layers::LoraSettings::new(4, 8.0, 0.0);
    peft::write(&model.llm, &settings, "", folder.path()).unwrap();
    let (ours, theirs) = (folder.path().join("adapter_model.safetensors"), PHI.path("lora/adapter_model.safetensors"));
    let names = |file: &Path| {
        let bytes = std::fs::read(file).unwrap();
        let mut names: Vec<String> =
            safetensors::SafeTensors::deserialize(&bytes).unwrap().names().iter().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&theirs), "peft's names");
    let mut reloaded = PHI.model();
    assert_eq!(peft::read(&mut reloaded.llm, None, folder.path()).unwrap(), settings);
    let contents = |llm: &Decoder| -> Vec<(String, Vec<f32>)> {
        llm.tensors().into_iter().map(|tensor| (tensor.name.clone(), tensor.values().into_owned())).collect()
    };
    assert!(contents(&reloaded.llm) == contents(&model.llm));
    assert!(TensorFiles::open_file(&ours).is_ok());
}

/// What stands where weights should be is said, and one of two sets is taken as transformers takes it.
#[test]
fn weights_are_found_as_transformers_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    let (path, at) = (folder.path(), |name: &str| folder.path().join(name));
    save::merged(&PHI.model(), Encoding::F16, u64::MAX, path).unwrap();
    let whole = at("model.safetensors");
    let bytes = std::fs::read(&whole).unwrap();
    let names: Vec<String> = TensorFiles::open(path).unwrap().names().map(Into::into).collect();
    let index = |of: &dyn Fn(usize) -> &'static str| {
        let map: serde_json::Map<String, serde_json::Value> =
            names.iter().enumerate().map(|(number, name)| (name.clone(), of(number).into())).collect();
        write_json(&at("model.safetensors.index.json"), &serde_json::json!({ "weight_map": map })).unwrap();
    };
    index(&|_| "gone.safetensors");
    Imp::load(path).unwrap();
    assert!(imp_model::weights::beside(path).unwrap().contains("`model.safetensors` is used"));
    std::fs::rename(&whole, at("one.safetensors")).unwrap();
    assert!(error(path).contains("1 of the 1 files that it lists are missing: gone.safetensors"), "{}", error(path));
    index(&|number| if number == 0 { "two.safetensors" } else { "one.safetensors" });
    assert!(error(path).contains("1 of the 2 files that it lists are missing: two.safetensors"), "{}", error(path));
    assert!(imp_model::weights::missing_shards(path).unwrap().contains("two.safetensors"));
    std::fs::write(at("two.safetensors"), &bytes).unwrap();
    Imp::load(path).unwrap();
    for (content, words) in [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a pointer of Git LFS"),
        ("<!DOCTYPE html><html>Log in", "a web page"),
        ("GGUF\u{3}\0\0\0", "a GGUF file"),
    ] {
        std::fs::write(at("two.safetensors"), content).unwrap();
        assert!(error(path).starts_with("HERE/two.safetensors: this is not a file of tensors but "), "{}", error(path));
        assert!(error(path).contains(words), "{}", error(path));
    }
    for name in ["model.safetensors.index.json", "one.safetensors", "two.safetensors"] {
        std::fs::remove_file(at(name)).unwrap();
    }
    assert!(error(path).contains("the folder has no weights"), "{}", error(path));
    std::fs::write(at("pytorch_model.bin"), "x").unwrap();
    assert!(error(path).contains("HERE/pytorch_model.bin: this is not a complete"), "{}", error(path));
    std::fs::rename(at("pytorch_model.bin"), at("weights.pth")).unwrap();
    assert!(error(path).contains("under a usual name, and weights.pth is not read"), "{}", error(path));
}

#[test]
fn settings_of_adapters_that_would_be_ignored_are_refused() {
    let mut llm = PHI.model().llm;
    let folder = tempfile::tempdir().unwrap();
    let settings = imp_model::layers::LoraSettings::new(2, 4.0, 0.0);
    llm.adapt(&settings, &[], 1).unwrap();
    peft::write(&llm, &settings, "", folder.path()).unwrap();
    let path = folder.path().join("adapter_config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value, words) in [
        ("rank_pattern", serde_json::json!({"q_proj": 8}), "`rank_pattern` is not supported"),
        ("alpha_pattern", serde_json::json!({"q_proj": 8}), "`alpha_pattern` is not supported"),
        (
            "modules_to_save",
            serde_json::json!(["lm_head"]),
            "`modules_to_save` has `lm_head`, of which there is no tensor",
        ),
        ("modules_to_save", serde_json::json!("lm_head"), "must be a list of names"),
        ("lora_alpha", serde_json::json!(1e300), "`lora_alpha` must be a number of at most"),
        ("bias", "all".into(), "`bias` = \"all\""),
        ("init_lora_weights", "pissa".into(), "`pissa` is not supported"),
        ("peft_type", "IA3".into(), "`peft_type` \"IA3\""),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        write_json(&path, &changed).unwrap();
        let error = peft::read(&mut llm, None, folder.path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut harmless = config;
    (harmless["rank_pattern"], harmless["alpha_pattern"]) = (serde_json::json!({}), serde_json::json!({}));
    write_json(&path, &harmless).unwrap();
    peft::read(&mut llm, None, folder.path()).unwrap();
}

/// Modules that peft trained as a whole replace the base's; what is for another model is refused by its name.
#[test]
fn whole_modules_of_an_adapter_replace_those_of_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let adapter = TensorFiles::open_file(&PHI.path("lora/adapter_model.safetensors")).unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(PHI.path("lora/adapter_config.json")).unwrap()).unwrap();
    config["modules_to_save"] = serde_json::json!(["lm_head", "final_layernorm", "1.mlp.fc2"]);
    config["base_model_name_or_path"] = "microsoft/phi-2".into();
    write_json(&at("adapter_config.json"), &config).unwrap();
    let replaced: Vec<(&str, &str, Vec<usize>)> = vec![
        ("lm_head", "lm_head.weight", vec![211, 60]),
        ("lm_head", "lm_head.bias", vec![211]),
        ("model.final_layernorm.modules_to_save.default", "model.final_layernorm.weight", vec![60]),
        ("model.final_layernorm.modules_to_save.default", "model.final_layernorm.bias", vec![60]),
        ("model.layers.1.mlp.fc2.modules_to_save", "model.layers.1.mlp.fc2.weight", vec![60, 152]),
        ("model.layers.1.mlp.fc2.modules_to_save", "model.layers.1.mlp.fc2.bias", vec![60]),
        ("model.embed_tokens", "model.embed_tokens.weight", vec![211, 60]),
    ];
    let is_replaced = |name: &str| {
        replaced.iter().any(|(_, ours, _)| name.contains(ours.trim_end_matches("weight")) && name.contains("lora_"))
    };
    let write = |change: &dyn Fn(&mut Vec<torch::Tensor>)| {
        let mut tensors: Vec<torch::Tensor> = torch::contents(&adapter)
            .into_iter()
            .filter(|(name, _)| !is_replaced(name))
            .map(|(name, (shape, values))| (name, shape, values))
            .collect();
        for (number, (module, ours, shape)) in replaced.iter().enumerate() {
            let part = ours.rsplit('.').next().unwrap();
            let values = support::random(number as u64, shape.iter().product());
            tensors.push((format!("base_model.model.{module}.{part}"), shape.clone(), values));
        }
        change(&mut tensors);
        std::fs::write(at("adapter_model.bin"), torch::save(&tensors)).unwrap();
    };
    write(&|_| {});
    let mut llm = PHI.model().llm;
    peft::read(&mut llm, Some("susnato/Phi-2"), folder.path()).unwrap();
    let found: std::collections::HashMap<String, Vec<f32>> =
        llm.tensors().into_iter().map(|tensor| (tensor.name.clone(), tensor.values().into_owned())).collect();
    for (number, (_, ours, shape)) in replaced.iter().enumerate() {
        assert!(found[*ours] == support::random(number as u64, shape.iter().product()), "{ours}");
    }
    let error = |base: Option<&str>| {
        let error = peft::read(&mut PHI.model().llm, base, folder.path()).unwrap_err().to_string();
        error.replace(&*folder.path().to_string_lossy(), "HERE")
    };
    assert!(
        error(Some("microsoft/phi-1_5")).contains("is for \"microsoft/phi-2\""),
        "{}",
        error(Some("microsoft/phi-1_5"))
    );
    for (change, words) in [
        (&(|all: &mut Vec<torch::Tensor>| all[0].2[0] = f32::NAN) as &dyn Fn(&mut Vec<torch::Tensor>), "non-finite"),
        (
            &|all| all.iter_mut().rev().take(1).for_each(|last| last.2[3] = f32::INFINITY),
            "embed_tokens.weight` contains",
        ),
        (&|all| all.retain(|(name, ..)| !name.ends_with("lm_head.bias")), "`base_model.model.lm_head.bias` is missing"),
        (
            &|all| all.push(("base_model.model.model.layers.0.mlp.fc9.weight".into(), vec![1], vec![0.0])),
            "fc9.weight` does not",
        ),
        (&|all| all[0].1.reverse(), "has the shape"),
        (&|all| all.retain(|(name, ..)| !name.contains("fc2.modules")), "`1.mlp.fc2`, of which there is no tensor"),
    ] {
        write(change);
        assert!(error(None).contains(words), "{words}: {}", error(None));
    }
}
