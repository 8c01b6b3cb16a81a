//! Every parser of bytes that come from outside, as a function of bytes: the fuzz targets of `fuzz/` call these, and a test replays
//! their seeds. Each function panics where something must not be; that the bytes are refused is fine. Compiled for tests and with
//! the feature `fuzzing` only.

use std::{fs, path::Path};

use imp_model::{
    Imp,
    config::{AspectRatio, ConfigFile, Encoder, ImpConfig, LanguageConfig, VisionConfig},
    encoding::Encoding,
    gguf::{self, Mixture, Speech},
    init,
    layers::Importance,
    load_language, load_vision,
    weights::TensorFiles,
};

use crate::{
    download,
    image::pixels::{self, Recipe},
    model_folder::outlook_of_config,
    preprocess,
    scratch::Scratch,
    text::tokenizer::TextTokenizer,
    training,
};

/// A fuzz target: its name, which is that of its folder of seeds, and what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this crate.
pub const TARGETS: [Target; 14] = [
    ("archive", download::fuzzing::archive),
    ("checkpoint", training::fuzzing::checkpoint),
    ("config", config),
    ("gguf", gguf),
    ("hub", download::fuzzing::hub),
    ("image", image),
    ("imp", imp),
    ("index", index),
    ("mlc", mlc),
    ("pickle", pickle),
    ("records", preprocess::fuzzing::records),
    ("s3", download::fuzzing::s3),
    ("tokenizer", tokenizer),
    ("weights", weights),
];

/// An image of a data set: what is decoded has as many pixels as it says, and can be made square in every way.
fn image(bytes: &[u8]) {
    let Ok(image) = pixels::decode(bytes) else { return };
    assert_eq!(image.as_raw().len(), image.width() as usize * image.height() as usize * 3);
    for encoder in Encoder::ALL {
        let encoder = VisionConfig::new(encoder, 16, 1, 1, 56);
        for ratio in [AspectRatio::Square, AspectRatio::Pad, AspectRatio::Crop] {
            let Ok(square) = Recipe::new(ratio, &encoder).squared(&image) else { continue };
            assert_eq!(square.dimensions(), (56, 56));
        }
    }
}

/// A file of tensors (safetensors), and every tensor that it names.
fn weights(bytes: &[u8]) {
    let scratch = Scratch::with("model.safetensors", bytes);
    if let Ok(files) = TensorFiles::open_file(&scratch.path("model.safetensors")) {
        read_all(&files);
    }
}

/// A list of tensors in pickle, in an archive with two storages; and the bytes as an archive.
fn pickle(bytes: &[u8]) {
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in [("archive/data.pkl", bytes), ("archive/data/0", &[0; 24]), ("archive/data/1", &[1; 6])] {
        let written = zip.start_file(name, stored).map(|()| std::io::Write::write_all(&mut zip, content));
        assert!(matches!(written, Ok(Ok(()))), "an archive in memory");
    }
    let archive = zip.finish().map(std::io::Cursor::into_inner).unwrap_or_default();
    for bytes in [&archive, bytes] {
        let scratch = Scratch::with("pytorch_model.bin", bytes);
        if let Ok(files) = TensorFiles::open(scratch.root()) {
            read_all(&files);
        }
    }
}

fn read_all(files: &TensorFiles) {
    let names: Vec<String> = files.names().map(Into::into).collect();
    for name in names {
        let Ok(shape) = files.shape(&name).map(<[usize]>::to_vec) else { continue };
        let (rows, cols) = match *shape {
            [length] => (1, length),
            [rows, cols] => (rows, cols),
            _ => continue,
        };
        let _ = files.mat(&name, &shape, rows, cols);
        let _ = files.weight(name.trim_end_matches(".weight"), rows, cols);
        // In 4 bits, eight values share a word.
        if let Some(layer) = name.strip_suffix(".q_weight").filter(|_| cols < 1 << 24) {
            let _ = files.weight(layer, rows, cols * 8);
        }
    }
    let _ = files.finish(|_| false);
}

/// The list of a model's files of weights, which are there.
fn index(bytes: &[u8]) {
    let scratch = Scratch::with("model.safetensors.index.json", bytes);
    let header = br#"{"a.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
    for name in ["1.safetensors", "2.safetensors"] {
        scratch.write(name, &file);
    }
    if let Ok(files) = TensorFiles::open(scratch.root()) {
        read_all(&files);
    }
    let _ = imp_model::weights::missing_shards(scratch.root());
}

/// A model's `config.json`: what it says, what is forecast from it, and the model of a folder with this file.
fn config(bytes: &[u8]) {
    let Ok(file) = ConfigFile::parse(bytes, Path::new("config.json")) else { return };
    let _ = (file.kind(), file.unknown_keys(), file.imp());
    let _ = outlook_of_config(&file, 1 << 30);
    if let Ok(config) = file.vision() {
        let _ = (config.parameters(), config.to_json());
    }
    if let Ok(config) = file.language() {
        let _ = config.to_json();
    }
    let scratch = Scratch::with("config.json", bytes);
    scratch.write("model.safetensors", &[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']);
    let folder = scratch.root();
    let _ = load_language(folder);
    let _ = load_vision(folder, &ImpConfig::default());
    let _ = Imp::load(folder);
}

/// A file of llama.cpp: the configuration that it describes, and the model folder that is made of it.
fn gguf(bytes: &[u8]) {
    let scratch = Scratch::with("model.gguf", bytes);
    let (file, folder) = (scratch.path("model.gguf"), scratch.path("out"));
    scratch.write("out/x", &[]);
    let _ = gguf::language_config(&file);
    if gguf::convert(&file, &folder).is_ok() {
        tokenizer(&fs::read(folder.join("tokenizer.json")).unwrap_or_default());
        let _ = load_language(&folder);
    }
}

/// The weights of an Imp in llama.cpp's files: first its language model, then its vision tower. The other file, and `config.json`,
/// are those of [`small_imp`].
fn imp(bytes: &[u8]) {
    thread_local! {
        static IMP: Scratch = small_imp();
    }
    IMP.with(|good| {
        for (name, other) in [(gguf::MODEL, gguf::MMPROJ), (gguf::MMPROJ, gguf::MODEL)] {
            let scratch = Scratch::with(name, bytes);
            for name in [other, "config.json"] {
                scratch.write(name, &fs::read(good.path(name)).unwrap_or_default());
            }
            let _ = Imp::load(scratch.root());
        }
    });
}

/// The list of MLC's shards of [`small_imp`].
fn mlc(bytes: &[u8]) {
    thread_local! {
        static IMP: Scratch = small_imp();
    }
    IMP.with(|good| {
        let scratch = Scratch::with("tensor-cache.json", bytes);
        for name in ["params_shard_0.bin", "config.json"] {
            scratch.write(name, &fs::read(good.path("mlc").join(name)).unwrap_or_default());
        }
        let _ = Imp::load(scratch.root());
    });
}

/// The smallest Imp: one layer, four patches of four pixels. In GGUF files, and in `mlc` in MLC's shards.
fn small_imp() -> Scratch {
    let (folder, made) = (Scratch::with("config.json", &[]), Scratch::with("llm/config.json", &[]));
    folder.write("mlc/x", &[]);
    made.write("vision/config.json", &[]);
    let language = LanguageConfig { intermediate_size: 32, ..LanguageConfig::phi(40, 32, 1, 1, 16) };
    let vision = VisionConfig {
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        image_size: 4,
        patch_size: 2,
        ..VisionConfig::so400m_patch14_384()
    };
    let tokens: serde_json::Map<_, _> = (0..40).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({
        "pre_tokenizer": {"type": "ByteLevel", "use_regex": true},
        "model": {"type": "BPE", "vocab": tokens, "merges": []},
    });
    let speech = Speech { tokenizer: &tokenizer, chat_template: "", add_bos: false, bos: Some(0), eos: 1, pad: 2 };
    let write = || {
        init::write_language(&made.path("llm"), &language, 1, Encoding::F16)?;
        init::write_vision(&made.path("vision"), &vision, 1)?;
        let config = ImpConfig { mm_vision_select_layer: -1, ..ImpConfig::default() };
        let imp = Imp::assemble(&made.path("llm"), &made.path("vision"), config, 1)?;
        imp_model::save::config(&imp, "float16", folder.root())?;
        imp_model::mlc::write(&imp, &Importance::default(), &folder.path("mlc"))?;
        gguf::write(&imp, &speech, Mixture::Q8_0, &Importance::default(), folder.root())
    };
    write().unwrap_or_else(|error| panic!("a small Imp: {error}"));
    folder
}

/// A `tokenizer.json` or a `tokenizer.model`, and texts through the tokenizer that it makes.
fn tokenizer(bytes: &[u8]) {
    let scratch = Scratch::with("tokenizer.model", bytes);
    let sentencepiece = TextTokenizer::open(scratch.root(), scratch.root());
    for tokenizer in TextTokenizer::from_bytes(bytes).ok().into_iter().chain(sentencepiece.ok()) {
        encode_and_decode(&tokenizer);
    }
}

fn encode_and_decode(tokenizer: &TextTokenizer) {
    for text in ["", "a", "What is <image>\n in it? \u{e9}\u{1f600}", "\0\u{feff}  "] {
        let Ok(ids) = tokenizer.encode_with_images(text) else { continue };
        let ids: Vec<u32> = ids.into_iter().filter_map(|id| id.try_into().ok()).collect();
        let _ = tokenizer.decode(&ids);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::PathBuf;

    use super::*;

    /// What is checked in for each target: small valid files, and files that once found a fault.
    #[test]
    fn every_target_survives_its_seeds() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
        // The others are the runner's.
        let known = TARGETS.map(|(name, _)| name).into_iter().chain(["job", "pipeline", "receipt", "request", "tree"]);
        let mut known: Vec<String> = known.map(String::from).collect();
        known.sort_unstable();
        let mut there: Vec<String> =
            fs::read_dir(&seeds).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        there.sort_unstable();
        assert_eq!(there, known);
        for (name, target) in TARGETS {
            let files: Vec<PathBuf> =
                fs::read_dir(seeds.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(!files.is_empty(), "{name}");
            for file in files {
                target(&fs::read(file).unwrap());
            }
        }
    }
}
