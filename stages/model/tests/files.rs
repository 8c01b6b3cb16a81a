//! What people have on disk by mistake: each is an error that names file, tensor and shape, never a crash.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use imp_model::{
    Imp,
    config::{ConfigFile, ImpConfig, PhiConfig, SiglipConfig},
    init, peft, save,
    save::DType,
    weights::Checkpoint,
};
use support::{model_with_lora, path};

fn error(folder: &Path) -> String {
    let text = Imp::load(folder).err().unwrap().to_string();
    text.replace(&*folder.to_string_lossy(), "HERE")
}

/// A merged folder whose weights file is `change`d.
fn broken(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    save::merged(&support::model(), DType::F16, folder.path()).unwrap();
    let file = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(file, change(bytes)).unwrap();
    folder
}

#[test]
fn broken_files_are_named() {
    let cut = broken(|bytes| bytes[..bytes.len() - 1000].to_vec());
    let text = error(cut.path());
    assert!(text.starts_with("HERE/model.safetensors: this is not a whole safetensors file"), "{text}");
    assert!(text.ends_with("download it again"), "{text}");

    let hostile = broken(|bytes| [&u64::MAX.to_le_bytes(), &bytes[8..]].concat());
    assert!(error(hostile.path()).contains("this is not a whole safetensors file"));
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

#[test]
fn shapes_and_configurations_must_agree() {
    let folder = broken(|bytes| bytes);
    let config = folder.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"intermediate_size\": 152", "\"intermediate_size\": 160")).unwrap();
    assert_eq!(
        error(folder.path()),
        "HERE/model.safetensors: the tensor `model.layers.0.mlp.fc1.bias` has the shape [152], config.json asks for [160]"
    );
    std::fs::write(&config, text.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": \"two\"")).unwrap();
    assert_eq!(error(folder.path()), "HERE/config.json: `num_hidden_layers` must be a whole number, not \"two\"");
    std::fs::write(&config, &text[..100]).unwrap();
    assert!(error(folder.path()).starts_with("HERE/config.json: this is not JSON"));
    std::fs::remove_file(&config).unwrap();
    assert!(error(folder.path()).starts_with("HERE/config.json: No such file"));
}

/// Old and new key names mean the same.
#[test]
fn configurations_of_both_generations_are_read() {
    let old = ConfigFile::read(&path("phi/base_llm")).unwrap().phi().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut value = old.to_json();
    let keys = value.as_object_mut().unwrap();
    let (theta, share) = (keys.remove("rope_theta").unwrap(), keys.remove("partial_rotary_factor").unwrap());
    value["rope_parameters"] = serde_json::json!({ "rope_theta": theta, "partial_rotary_factor": share });
    save::write_json(&folder.path().join("config.json"), &value).unwrap();
    assert_eq!(ConfigFile::read(folder.path()).unwrap().phi().unwrap(), old);
    assert!((old.partial_rotary_factor - 0.4).abs() < 1e-12);
}

#[test]
fn what_is_written_is_read_again_and_bytes_are_stable() {
    let folder = tempfile::tempdir().unwrap();
    let (llm, vision) = (folder.path().join("llm"), folder.path().join("vision"));
    for folder in [&llm, &vision] {
        std::fs::create_dir_all(folder).unwrap();
    }
    let phi: PhiConfig = ConfigFile::read(&path("phi/base_llm")).unwrap().phi().unwrap();
    let siglip: SiglipConfig = ConfigFile::read(&path("phi/siglip")).unwrap().siglip().unwrap();
    init::write_phi(&llm, &phi, 3).unwrap();
    init::write_siglip(&vision, &siglip, 3).unwrap();
    let first = std::fs::read(llm.join("model.safetensors")).unwrap();
    init::write_phi(&llm, &phi, 3).unwrap();
    assert_eq!(std::fs::read(llm.join("model.safetensors")).unwrap(), first);
    init::write_phi(&llm, &phi, 4).unwrap();
    assert_ne!(std::fs::read(llm.join("model.safetensors")).unwrap(), first);
    Imp::assemble(&llm, &vision, ImpConfig::default(), 1).unwrap();
}

/// Adapters go out in peft's layout and come back as they were.
#[test]
fn adapters_survive_a_round_trip() {
    let model = model_with_lora();
    let folder = tempfile::tempdir().unwrap();
    let settings = imp_model::layers::LoraSettings { rank: 4, alpha: 8.0, dropout: 0.0 };
    peft::write(&model, &settings, folder.path()).unwrap();
    let (ours, theirs) = (folder.path().join("adapter_model.safetensors"), path("phi/lora/adapter_model.safetensors"));
    let names = |file: &Path| {
        let bytes = std::fs::read(file).unwrap();
        let mut names: Vec<String> =
            safetensors::SafeTensors::deserialize(&bytes).unwrap().names().iter().map(ToString::to_string).collect();
        names.sort();
        names
    };
    assert_eq!(names(&ours), names(&theirs), "peft's names");
    let mut again = support::model();
    assert_eq!(peft::read(&mut again, folder.path()).unwrap(), settings);
    for (ours, theirs) in again.llm.tensors().iter().zip(model.llm.tensors()) {
        assert_eq!((&ours.name, ours.values()), (&theirs.name, theirs.values()));
    }
    assert!(Checkpoint::open_file(&ours).is_ok());
}
