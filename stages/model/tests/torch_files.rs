//! Files of `torch.save`, as the original scripts leave them: their tensors are those that PyTorch says, what else they hold is
//! refused by name, and a model's folder may have them wherever it may have safetensors.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::Path;

use imp_model::{
    Imp,
    config::ImpConfig,
    peft, save,
    weights::{TensorFiles, write_json},
};
use proptest::prelude::*;
use support::{PHI, path, torch};

/// Tensors with the types that models have, and the others' names and shapes.
#[test]
fn tensors_are_those_that_pytorch_has_saved() {
    let ours = TensorFiles::open_file(&path("torch/state.bin")).unwrap();
    let theirs = TensorFiles::open_file(&path("torch/state.safetensors")).unwrap();
    let mut names: Vec<&str> = theirs.names().collect();
    names.sort_unstable();
    let mut found: Vec<&str> = ours.names().collect();
    found.sort_unstable();
    assert_eq!((found, names.len()), (names.clone(), 11), "without `module.`");
    for name in names {
        let shape = theirs.shape(name).unwrap();
        assert_eq!(ours.shape(name).unwrap(), shape, "{name}");
        let values = |files: &TensorFiles| match files.mat(name, shape, 1, shape.iter().product()) {
            Ok(values) => Ok(values.to_host().into_owned()),
            Err(error) => Err(error.message()),
        };
        assert_eq!(values(&ours), values(&theirs), "{name}");
        assert_eq!(values(&ours).is_err(), name == "position_ids", "{name}: whole numbers are no weights");
    }
    ours.finish(|_| false).unwrap();
}

#[test]
fn attributes_of_tensors_are_left_aside() {
    let files = TensorFiles::open_file(&path("torch/noted.bin")).unwrap();
    assert_eq!(&*files.mat("noted", &[2, 3], 2, 3).unwrap().to_host(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(&*files.vector("parameter", 2).unwrap().to_host(), [0.0, 1.0]);
}

#[test]
fn what_is_no_tensor_is_refused_by_name() {
    for (file, words) in [
        ("before_1_6.bin", "a file of PyTorch's before version 1.6: open it with `torch.load"),
        ("runs_code.bin", "it asks for \"__builtin__.print\", which is not part of a tensor"),
        ("checkpoint.bin", "\"epoch\" in it is not a tensor: this is a checkpoint of a training"),
        ("protocol_4.bin", "pickle's protocol 4"),
        ("expanded.bin", "shape [1000, 1000] exceeds its storage"),
    ] {
        let error = TensorFiles::open_file(&path(&format!("torch/{file}"))).err().unwrap().to_string();
        assert!(error.contains(words) && error.contains(file), "{file}: {error}");
    }
}

#[test]
fn archives_that_are_cut_or_of_others_are_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = |bytes: &[u8]| {
        std::fs::write(file.path(), bytes).unwrap();
        TensorFiles::open_file(file.path()).err().unwrap().to_string()
    };
    let whole = torch::save(&[("a".into(), vec![2, 3], vec![1.0; 6])]);
    assert!(error(&whole[..whole.len() - 30]).contains("not a whole zip archive"), "{}", error(&whole[..100]));
    let twice = torch::save(&[("a".into(), vec![1], vec![1.0]), ("a".into(), vec![1], vec![2.0])]);
    assert!(error(&twice).contains("it has the tensor \"a\" twice"), "{}", error(&twice));
    let other = |from: &[u8], to: &[u8]| {
        let mut bytes = whole.clone();
        let starts: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
        assert!(!starts.is_empty());
        for at in starts {
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        error(&bytes)
    };
    for (from, to, words) in [
        (&b"data.pkl"[..], &b"date.pkl"[..], "not one that `torch.save` has made"),
        (b"data/0", b"data/1", "the tensor \"a\": its values, `data/0`, are missing"),
        (b"little", b"bigger", "the byte order \"bigger\""),
        (b"FloatStorage", b"FlootStorage", "it asks for \"torch.FlootStorage\""),
        (b"\x07\0\0\0storage", b"\x07\0\0\0storagf", "it names something that is no storage"),
        (b"J\x02\0\0\0J\x03", b"J\x03\0\0\0J\x03", "shape [3, 3] exceeds its storage"),
        (b"J\x06\0\0\0t", b"J\x07\0\0\0t", "`data/0` has 24 bytes, and not 7 values of 4"),
        (b"J\x06\0\0\0t", b"J\xff\xff\xff\xfft", "no storage of a tensor"),
        (b"u.", b"uu", "ends a group that it did not begin"),
        (b"u.", b"u0", "the pickle opcode 0x30"),
        (b"tR", b"t]", "it has a list"),
    ] {
        let error = other(from, to);
        assert!(error.contains(words), "{words}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any damage gives an error or tensors within the file.
    #[test]
    fn damaged_files_do_no_harm(at in 0_usize..3825, with: [u8; 2], cut in 0_usize..3825) {
        let whole = std::fs::read(path("torch/state.bin")).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut damaged = whole.clone();
        let end = (at + 2).min(whole.len());
        damaged[at..end].copy_from_slice(&with[..end - at]);
        for bytes in [&damaged[..], &whole[..cut]] {
            std::fs::write(file.path(), bytes).unwrap();
            if let Ok(files) = TensorFiles::open_file(file.path()) {
                for name in files.names() {
                    let shape = files.shape(name).unwrap();
                    let _ = files.mat(name, shape, 1, shape.iter().product());
                }
            }
        }
    }
}

fn all(model: &Imp) -> Vec<(String, Vec<f32>)> {
    let mut tensors = model.llm.tensors();
    tensors.extend(model.projector.tensors());
    tensors.extend(model.vision.tensors(""));
    tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor.values().into_owned())).collect()
}

fn error(folder: &Path) -> String {
    Imp::load(folder).err().unwrap().to_string().replace(&*folder.to_string_lossy(), "HERE")
}

/// A merged folder in one file, then in two.
#[test]
fn a_folder_may_have_its_weights_in_files_of_pytorch() {
    let (folder, model) = (tempfile::tempdir().unwrap(), PHI.model());
    let at = |name: &str| folder.path().join(name);
    save::merged(&model, imp_model::encoding::Encoding::F32, u64::MAX, folder.path()).unwrap();
    let files = TensorFiles::open(folder.path()).unwrap();
    torch::convert(&files, &at("pytorch_model.bin"), |name| Some(name.into()));
    assert!(error(folder.path()).contains("two sets of weights, safetensors files and files of PyTorch's: remove one"));
    assert!(imp_model::weights::unreadable_weights(folder.path()).unwrap().contains("two sets of weights"));
    std::fs::remove_file(at("model.safetensors")).unwrap();
    assert!(all(&Imp::load(folder.path()).unwrap()) == all(&model));

    std::fs::remove_file(at("pytorch_model.bin")).unwrap();
    let shard = |name: &str| format!("pytorch_model-0000{}-of-00002.bin", if name.contains("mlp") { 1 } else { 2 });
    for number in [1, 2] {
        let own = format!("pytorch_model-0000{number}-of-00002.bin");
        torch::convert(&files, &at(&own), |name| (shard(name) == own).then(|| name.into()));
    }
    assert!(error(folder.path()).contains("`pytorch_model.bin.index.json`, is missing"), "{}", error(folder.path()));
    let map: serde_json::Map<String, serde_json::Value> =
        files.names().map(|name| (name.into(), shard(name).into())).collect();
    write_json(&at("pytorch_model.bin.index.json"), &serde_json::json!({ "weight_map": map })).unwrap();
    assert!(all(&Imp::load(folder.path()).unwrap()) == all(&model));
    std::fs::remove_file(at("pytorch_model-00002-of-00002.bin")).unwrap();
    assert!(error(folder.path()).contains("1 of the 2 files that it lists are missing"));
    assert!(imp_model::weights::missing_shards(folder.path()).is_some());
}

/// The projector and the adapter as LLaVA's finetuning script leaves them.
#[test]
fn projectors_and_adapters_may_be_files_of_pytorch() {
    let model = PHI.model_with_lora();
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let prefixed = |name: &str| Some(format!("base_model.model.{name}"));
    let projector = TensorFiles::open_file(&PHI.path("lora/non_lora_trainables.safetensors")).unwrap();
    torch::convert(&projector, &at("non_lora_trainables.bin"), |name| prefixed(name));
    let adapter = TensorFiles::open_file(&PHI.path("lora/adapter_model.safetensors")).unwrap();
    torch::convert(&adapter, &at("adapter_model.bin"), |name| Some(name.into()));
    std::fs::copy(PHI.path("lora/adapter_config.json"), at("adapter_config.json")).unwrap();
    let from = imp_model::Components {
        llm: &PHI.path("base_llm"),
        vision: &PHI.path("siglip"),
        projector: &imp_model::projector_in(folder.path()).unwrap().unwrap(),
        adapter: Some(folder.path()),
    };
    assert!(all(&Imp::from_components(&from, ImpConfig::default()).unwrap()) == all(&model));
    std::fs::write(at("config.json"), r#"{"model_type": "imp", "hidden_size": 8}"#).unwrap();
    let text = TensorFiles::open(folder.path()).err().unwrap().to_string();
    assert!(text.contains("what a training has changed of one (adapter_model.bin): give it to `merge`"), "{text}");
    assert_eq!(imp_model::weights::unreadable_weights(folder.path()), None, "it can be merged");
    std::fs::write(at("adapter_model.safetensors"), "").unwrap();
    let error = peft::read(&mut PHI.model().llm, None, folder.path()).unwrap_err().to_string();
    assert!(error.contains("both `adapter_model.safetensors` and `adapter_model.bin`"), "{error}");
    std::fs::write(at("mm_projector.bin"), "").unwrap();
    let error = imp_model::projector_in(folder.path()).unwrap_err().to_string();
    assert!(error.contains("both `mm_projector.bin` and `non_lora_trainables.bin`: remove one"), "{error}");
}
