//! Invalid model folders give errors that name file, tensor and shape; models and adapters round-trip through files.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{path::Path, sync::LazyLock};

use half::f16;

use imp_model::{
    Imp,
    config::{ConfigFile, ImpConfig, LanguageConfig, SiglipConfig},
    encoding::Encoding,
    init,
    language::Decoder,
    peft, save,
    weights::{TensorFiles, write_json},
};
use proptest::prelude::*;
use support::PHI;

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
    let siglip: SiglipConfig = ConfigFile::read(&PHI.path("siglip")).unwrap().siglip().unwrap();
    init::write_language(&llm, &phi, 3, Encoding::F32).unwrap();
    init::write_siglip(&vision, &siglip, 3).unwrap();
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
    let settings = imp_model::layers::LoraSettings { rank: 4, alpha: 8.0, dropout: 0.0 };
    peft::write(&model.llm, &settings, folder.path()).unwrap();
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
    assert_eq!(peft::read(&mut reloaded.llm, folder.path()).unwrap(), settings);
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
        assert!(
            error(path).starts_with("HERE/two.safetensors: this is not a file of tensors but "),
            "{}",
            error(path)
        );
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
    let settings = imp_model::layers::LoraSettings { rank: 2, alpha: 4.0, dropout: 0.0 };
    llm.adapt(&settings, &[], 1).unwrap();
    peft::write(&llm, &settings, folder.path()).unwrap();
    let path = folder.path().join("adapter_config.json");
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value, words) in [
        ("rank_pattern", serde_json::json!({"q_proj": 8}), "`rank_pattern` is not supported"),
        ("alpha_pattern", serde_json::json!({"q_proj": 8}), "`alpha_pattern` is not supported"),
        ("modules_to_save", serde_json::json!(["lm_head"]), "`modules_to_save` is not supported"),
        ("bias", "all".into(), "`bias` = \"all\""),
        ("init_lora_weights", "pissa".into(), "`pissa` is not supported"),
        ("peft_type", "IA3".into(), "`peft_type` \"IA3\""),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        write_json(&path, &changed).unwrap();
        let error = peft::read(&mut llm, folder.path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut harmless = config;
    (harmless["rank_pattern"], harmless["alpha_pattern"]) = (serde_json::json!({}), serde_json::json!({}));
    write_json(&path, &harmless).unwrap();
    peft::read(&mut llm, folder.path()).unwrap();
}
