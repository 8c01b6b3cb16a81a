//! MLC's container: its lists and shards are as TVM writes them, a whole Imp has the published size, and what is read back has the bits of
//! `q4f16_1` folders.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::{collections::HashMap, path::Path};

use imp_model::{
    Imp,
    config::{ImpConfig, LanguageConfig, ProjectorType, VisionConfig},
    encoding::{Encoding, q4f16},
    layers::{Importance, Pass},
    mlc, quant, save,
    tensor::{self, Segments, Stored},
    weights::write_json,
};
use md5::{Digest, Md5};
use serde_json::{Value, json};
use support::{Family, PHI, QWEN2, bytes};

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn values(model: &Imp) -> HashMap<String, Vec<f32>> {
    let mut tensors = model.llm.tensors();
    tensors.extend(model.projector.tensors());
    tensors.extend(model.vision.tensors("vision."));
    tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor.values().into_owned())).collect()
}

/// Logits of a text without an image.
fn logits(model: &Imp) -> Vec<f32> {
    let (ids, pass) = ([3, 17, 5, 90, 41], Pass::inference());
    let picks = ids.iter().map(|id| (0, *id)).collect();
    let embedded = tensor::gather(&pass.graph, &[model.llm.embedding()], picks);
    let hidden = model.llm.forward(&pass, &embedded, &Segments::new([ids.len()]));
    model.llm.logits(&pass, &hidden).to_host().into_owned()
}

/// The model in MLC's container, and in a `q4f16_1` folder of ours.
fn both(family: Family) -> (tempfile::TempDir, tempfile::TempDir, mlc::Written) {
    let [merged, shards, folder] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    save::merged(&family.model(), Encoding::F16, u64::MAX, merged.path()).unwrap();
    quant::write(merged.path(), &Importance::default(), folder.path()).unwrap();
    let written = mlc::write(&Imp::load(merged.path()).unwrap(), &Importance::default(), shards.path()).unwrap();
    (shards, folder, written)
}

/// All but the table of positions, which is an embedding in mlc-imp and therefore in 4 bits, has the bits of our folder.
#[test]
fn what_is_read_back_has_the_bits_of_our_own_folder() {
    for family in [PHI, QWEN2] {
        let (shards, folder, written) = both(family);
        let (read, ours) = (Imp::load(shards.path()).unwrap(), Imp::load(folder.path()).unwrap());
        assert_eq!((&read.config, &read.llm.config), (&ours.config, &ours.llm.config));
        let (theirs, expected) = (values(&read), values(&ours));
        assert_eq!(theirs.len(), expected.len());
        let table = "vision.embeddings.position_embedding.weight";
        for (name, values) in expected.iter().filter(|(name, _)| *name != table) {
            assert!(theirs[name] == *values, "{name}");
        }
        let width = ours.vision.config.hidden_size;
        let (levels, scales) = q4f16::narrow(&expected[table], width);
        let rounded = Stored::q4f16(ours.vision.config.patches(), width, bytes(levels), bytes(scales));
        assert!(theirs[table] == rounded.to_f32(), "the table of positions");
        assert!(logits(&read) == logits(&ours), "the logits of a text");
        assert!(quant::check_not_quantized(shards.path()).is_err());
        let count: usize = expected.values().map(Vec::len).sum();
        assert_eq!(written.weights, count as u64);
    }
}

#[test]
fn the_container_is_as_tvm_writes_it() {
    for family in [PHI, QWEN2] {
        let (folder, _, written) = both(family);
        let at = |name: &str| folder.path().join(name);
        let text = std::fs::read_to_string(at("tensor-cache.json")).unwrap();
        assert_eq!(text, std::fs::read_to_string(at("ndarray-cache.json")).unwrap());
        assert!(text.starts_with("{\n    \"metadata\": {\n        \""), "an indent of four");
        let list = json_of(&at("tensor-cache.json"));
        let (mut bytes, mut names) = (0, Vec::new());
        for (number, shard) in list["records"].as_array().unwrap().iter().enumerate() {
            let name = format!("params_shard_{number}.bin");
            assert_eq!((&shard["dataPath"], &shard["format"]), (&json!(name), &json!("raw-shard")));
            let content = std::fs::read(at(&name)).unwrap();
            let sum = format!("{:032x}", u128::from_be_bytes(Md5::digest(&content).into()));
            assert_eq!((&shard["nbytes"], &shard["md5sum"]), (&json!(content.len()), &json!(sum)));
            let mut end = 0;
            for tensor in shard["records"].as_array().unwrap() {
                assert_eq!((&tensor["byteOffset"], &tensor["format"]), (&json!(end), &json!("f32-to-bf16")), "no gaps");
                let count: u64 = tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
                let width = if tensor["dtype"] == "uint32" { 4 } else { 2 };
                assert!(tensor["dtype"] == "uint32" || tensor["dtype"] == "float16");
                assert_eq!(tensor["nbytes"], count * width);
                end += count * width;
                names.push(tensor["name"].as_str().unwrap().to_string());
            }
            assert_eq!(end, content.len() as u64);
            bytes += end;
        }
        assert_eq!(bytes, written.bytes());
        assert_eq!(list["metadata"]["ParamSize"], names.len());
        assert_eq!(list["metadata"]["ParamBytes"], bytes as f64);
        assert_eq!(list["metadata"]["BitsPerParam"], bytes as f64 * 8.0 / written.weights as f64);
        let known: &[&str] = if family == PHI {
            &[
                "language_model.transformer.embd.q_weight",
                "language_model.transformer.h.1.mixer.Wqkv.q_scale",
                "language_model.transformer.h.1.mixer.Wqkv.bias",
                "language_model.transformer.h.0.ln.weight",
                "language_model.lm_head.ln.bias",
                "language_model.lm_head.linear.bias",
                "vision_tower.vision_model.embeddings.position_embedding.q_weight",
                "vision_tower.vision_model.embeddings.patch_embedding.weight",
                "vision_tower.vision_model.encoder.layers.2.self_attn.out_proj.q_weight",
                "multi_modal_projector.linear_2.q_scale",
            ]
        } else {
            &[
                "language_model.model.layers.2.self_attn.c_attn.bias",
                "language_model.model.layers.0.mlp.gate_up_proj.q_weight",
            ]
        };
        for name in known {
            assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("q_proj") && name.contains("language_model")));
    }
}

/// Imp-v1.5-3B-196 as mlc-imp deploys it, from its sizes alone: nothing is computed.
#[test]
fn an_imp_of_196_pixels_has_the_published_size() {
    let language = LanguageConfig { intermediate_size: 10240, ..LanguageConfig::phi(51200, 2560, 32, 32, 32) };
    let vision = VisionConfig { image_size: 196, ..VisionConfig::so400m_patch14_384() };
    let size = mlc::size(&language, &vision, 26).unwrap();
    assert_eq!(size.weights, 3_186_323_104);
    assert_eq!(size.bytes(), 1_795_483_744);
}

#[test]
fn what_mlc_can_not_say_is_refused() {
    let refused = |change: &dyn Fn(&mut Imp), words: &str| {
        let (folder, mut model) = (tempfile::tempdir().unwrap(), PHI.model());
        change(&mut model);
        let error = mlc::write(&model, &Importance::default(), folder.path()).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    };
    refused(
        &|model| model.config = ImpConfig { mm_projector_type: ProjectorType::Linear, ..model.config.clone() },
        "two layers (mlp2x_gelu), and the model's is linear",
    );
    refused(&|model| model.llm.config.rope_theta = 0.5, "a whole number, and the model's is 0.5");
    refused(&|model| model.llm.config.head_dim = 16, "heads of the width 20");
}

/// Lists that lie are refused by name.
#[test]
fn damaged_lists_and_shards_are_refused() {
    let (folder, _, _) = both(PHI);
    let path = folder.path().join("tensor-cache.json");
    let list = json_of(&path);
    let error = |list: &Value| {
        write_json(&path, list).unwrap();
        Imp::load(folder.path()).err().unwrap().to_string()
    };
    for (pointer, value, words) in [
        ("/records/0/dataPath", json!("../x"), "is not the name of a file"),
        ("/records/0/nbytes", json!(5), "and its list says 5"),
        ("/records/0/records/0/nbytes", json!(5), "size of its shape"),
        ("/records/0/records/0/byteOffset", json!(1_u64 << 60), "not within its shard"),
        ("/records/0/records/0/shape", json!([1_u64 << 40, 1_u64 << 40]), "size of its shape"),
        ("/records/0/records/0/dtype", json!("float32"), "only float16 and uint32"),
        ("/records/0/records/0/name", json!("language_model.x.weight"), "is not known"),
        (
            "/records/0/records/0/name",
            json!("multi_modal_projector.linear_1.bias"),
            "multi_modal_projector.linear_1.bias",
        ),
        ("/records", json!(7), "no list of MLC's shards"),
    ] {
        let mut changed = list.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        let text = error(&changed);
        assert!(text.contains(words), "{pointer}: {text}");
    }
    let mut short = list.clone();
    short["records"][0]["records"].as_array_mut().unwrap().pop();
    assert!(error(&short).contains("is missing"));
    write_json(&path, &list).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    assert!(error(&list).contains("two sets of weights, MLC's shards and safetensors files: remove one"));
}
