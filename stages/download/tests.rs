//! Runs the stage as a pipeline does, on local and built-in sources.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    remote::tests::{tar, zip},
    *,
};
use crate::testing::{Trial, tree};

/// Runs `source` with work folder `name` below `root`.
fn run(root: &Path, name: &str, config: &DownloadConfig) -> Result<PathBuf, StageError> {
    let outcome = Trial::new(&root.join(name), &[]).run::<Download>(&serde_json::to_value(config).unwrap());
    outcome.result.map(|()| outcome.out)
}

fn config(text: serde_json::Value) -> DownloadConfig {
    serde_json::from_value(text).unwrap()
}

#[test]
fn a_folder_is_copied_with_links_resolved() {
    let root = tempfile::tempdir().unwrap();
    let mine = root.path().join("mine");
    fs::create_dir_all(mine.join("deep/er")).unwrap();
    fs::write(mine.join("deep/er/a.txt"), "a").unwrap();
    fs::write(mine.join("empty"), "").unwrap();
    std::os::unix::fs::symlink("deep/er/a.txt", mine.join("link")).unwrap();
    let out = run(root.path(), "work", &config(serde_json::json!({"source": "mine"}))).unwrap();
    assert_eq!(tree(&out), tree(&mine));
    assert!(!out.join("link").is_symlink());
    fs::write(mine.join("empty"), "changed later").unwrap();
    assert_eq!(fs::read(out.join("empty")).unwrap(), b"", "a copy, not a link");
}

#[test]
fn what_is_no_content_is_left_out_and_named() {
    let root = tempfile::tempdir().unwrap();
    for name in ["mine/.git/HEAD", "mine/a.txt", "mine/sub/.DS_Store", "mine/sub/b.txt", "mine/b.txt~"] {
        fs::create_dir_all(root.path().join(name).parent().unwrap()).unwrap();
        fs::write(root.path().join(name), "x").unwrap();
    }
    let outcome = Trial::new(&root.path().join("work"), &[]).run::<Download>(&serde_json::json!({"source": "mine"}));
    assert!(outcome.warnings().contains("no content: .git, b.txt~, sub/.DS_Store"), "{}", outcome.warnings());
    let names: Vec<_> = tree(&outcome.done()).into_keys().collect();
    assert_eq!(names, [Path::new("a.txt"), Path::new("sub/b.txt")]);
}

#[test]
fn models_that_are_not_whole_are_refused_when_they_arrive() {
    let root = tempfile::tempdir().unwrap();
    let mine = root.path().join("mine");
    fs::create_dir_all(&mine).unwrap();
    let index = serde_json::json!({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}});
    fs::write(mine.join("model.safetensors.index.json"), index.to_string()).unwrap();
    let fetch = |work: &str| run(root.path(), work, &config(serde_json::json!({"source": "mine"})));
    fetch("none").unwrap();
    fs::write(mine.join("model-1.safetensors"), "x").unwrap();
    let error = fetch("one").unwrap_err().to_string();
    assert!(error.contains("1 of the 2 files that it lists are missing: model-2.safetensors"), "{error}");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n";
    fs::write(mine.join("model-2.safetensors"), pointer).unwrap();
    let error = fetch("pointer").unwrap_err();
    assert!(error.to_string().starts_with("model-2.safetensors is a pointer of Git LFS"), "{error}");
    assert!(error.help().unwrap().contains("git lfs pull"));
    fs::rename(mine.join("model-2.safetensors"), mine.join("picture.png")).unwrap();
    fs::remove_file(mine.join("model-1.safetensors")).unwrap();
    let outcome = Trial::new(&root.path().join("picture"), &[]).run::<Download>(&serde_json::json!({"source": "mine"}));
    assert!(
        outcome.cautions()[0].starts_with("1 file(s), such as picture.png, are pointers"),
        "{:?}",
        outcome.cautions()
    );
}

#[test]
fn archives_on_the_disk_are_unpacked_like_those_from_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let mine = root.path().join("mine");
    fs::create_dir_all(mine.join("deep")).unwrap();
    let zipped = zip(&[("images/a.png", b"a".as_slice()), ("images/b.png", b"bb")]);
    fs::write(mine.join("train.json"), "[]").unwrap();
    fs::write(mine.join("deep/x.zip"), &zipped).unwrap();
    fs::write(mine.join("y.tar"), tar(&[("c.png", b"c".as_slice())])).unwrap();
    let names = |out: &Path| tree(out).into_keys().map(|path| path.display().to_string()).collect::<Vec<_>>();
    let fetch = |work: &str, text: serde_json::Value| {
        Trial::new(&root.path().join(work), &[]).run::<Download>(&serde_json::to_value(config(text)).unwrap())
    };
    let outcome = fetch("folder", serde_json::json!({"source": "mine"}));
    let figures = ["files", "unpacked_files", "unpacked_bytes"].map(|name| outcome.figure(name) as u64);
    assert_eq!(figures, [3, 3, 4]);
    assert_eq!(names(&outcome.done()), ["c.png", "deep/images/a.png", "deep/images/b.png", "train.json"]);
    let out = fetch("one", serde_json::json!({"source": "mine/deep/x.zip", "into": "coco"})).done();
    assert_eq!(names(&out), ["coco/images/a.png", "coco/images/b.png"]);
    let out = fetch("kept", serde_json::json!({"source": "mine", "unpack": false})).done();
    assert_eq!(tree(&out), tree(&mine));

    let error = fetch("not", serde_json::json!({"source": "mine/train.json", "unpack": true})).error();
    assert!(error.to_string().ends_with("mine/train.json: this is not an archive"), "{error}");
    // A file with the name of an entry: whatever comes first, neither replaces the other.
    for (folder, archive, words) in [
        ("first", "first/b.zip", "the name `a.png` is the name of two entries"),
        ("later", "later/0.zip", "an archive of the source also holds a file named"),
    ] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
        fs::write(root.path().join(folder).join("a.png"), "mine").unwrap();
        fs::write(root.path().join(archive), zip(&[("a.png", b"theirs".as_slice())])).unwrap();
        let error = fetch(&format!("work-{folder}"), serde_json::json!({"source": folder})).error();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_name_of_a_repository_gets_a_hint() {
    let root = tempfile::tempdir().unwrap();
    let error = run(root.path(), "work", &config(serde_json::json!({"source": "microsoft/phi-2"}))).unwrap_err();
    assert!(error.help().unwrap().ends_with("is written `hf://microsoft/phi-2`"), "{error:?}");
}

#[test]
fn a_single_file_keeps_its_name() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.json"), "[]").unwrap();
    let out = run(root.path(), "work", &config(serde_json::json!({"source": "a.json"}))).unwrap();
    assert_eq!(fs::read(out.join("a.json")).unwrap(), b"[]");
}

/// A GGUF file of a Llama with one block and zero weights.
pub(in crate::download) fn gguf() -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let key = |name: &str, kind: u32, value: Vec<u8>| [text(name), kind.to_le_bytes().to_vec(), value].concat();
    let number = |name: &str, value: u32| key(name, 4, value.to_le_bytes().into());
    let list = |kind: u32, values: Vec<Vec<u8>>| {
        [kind.to_le_bytes().to_vec(), (values.len() as u64).to_le_bytes().into(), values.concat()].concat()
    };
    let keys = [
        key("general.architecture", 8, text("llama")),
        number("llama.block_count", 1),
        number("llama.context_length", 16),
        number("llama.embedding_length", 8),
        number("llama.feed_forward_length", 8),
        number("llama.attention.head_count", 2),
        key("llama.attention.layer_norm_rms_epsilon", 6, 1e-5_f32.to_le_bytes().into()),
        key("tokenizer.ggml.model", 8, text("gpt2")),
        key("tokenizer.ggml.pre", 8, text("smollm")),
        key("tokenizer.ggml.tokens", 9, list(8, ["a", "b", "c", "d"].map(text).into())),
        key("tokenizer.ggml.merges", 9, list(8, Vec::new())),
        key("tokenizer.ggml.token_type", 9, list(5, vec![1_i32.to_le_bytes().into(); 4])),
    ];
    let block = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let mut tensors = vec![("token_embd.weight".into(), vec![8_u64, 4]), ("output_norm.weight".into(), vec![8])];
    tensors.extend(["attn_norm", "ffn_norm"].map(|name| (format!("blk.0.{name}.weight"), vec![8])));
    tensors.extend(block.map(|name| (format!("blk.0.{name}.weight"), vec![8, 8])));
    let (mut described, mut bytes) = (Vec::new(), 0_u64);
    for (name, shape) in &tensors {
        let dimensions: Vec<u8> = shape.iter().flat_map(|length| length.to_le_bytes()).collect();
        let kind = 0_u32.to_le_bytes().to_vec();
        let count = (shape.len() as u32).to_le_bytes().to_vec();
        described.extend([text(name), count, dimensions, kind, bytes.to_le_bytes().into()].concat());
        bytes += 4 * shape.iter().product::<u64>();
    }
    let counts = [tensors.len() as u64, keys.len() as u64].map(u64::to_le_bytes).concat();
    let mut file = [b"GGUF".to_vec(), 3_u32.to_le_bytes().into(), counts, keys.concat(), described].concat();
    file.resize(file.len().next_multiple_of(32) + bytes as usize, 0);
    file
}

/// Asserts that `folder` holds the model of [`gguf`] in Hugging Face's format, and nothing else.
pub(in crate::download) fn assert_converted(folder: &Path) {
    let names: Vec<_> = tree(folder).into_keys().map(|path| path.display().to_string()).collect();
    assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
    imp_model::load_language(folder).map(drop).unwrap();
}

#[test]
fn a_hash_of_a_file_is_checked() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("folder")).unwrap();
    fs::write(root.path().join("folder/a"), "a").unwrap();
    fs::write(root.path().join("a.json"), "[]").unwrap();
    fs::write(root.path().join("a.gguf"), gguf()).unwrap();
    let (blake3, other) = (blake3::hash(b"[]").to_hex().to_string(), "0".repeat(64));
    let sha256 = "4F53CDA18C2BAA0C0354BB5F9A3ECBE5ED12AB4D8E11BA873C2F11161202B945"; // of `[]`
    let hashed = serde_json::json!({"source": "a.json", "sha256": sha256, "blake3": blake3});
    let out = run(root.path(), "good", &config(hashed)).unwrap();
    assert_eq!(fs::read(out.join("a.json")).unwrap(), b"[]");
    for (number, (text, words)) in [
        (serde_json::json!({"source": "a.json", "sha256": other}), "a.json: its SHA-256 is 4f53cda18c2b"),
        (serde_json::json!({"source": "a.json", "sha256": sha256, "blake3": other}), "a.json: its BLAKE3 is"),
        (serde_json::json!({"source": "a.gguf", "blake3": other}), "a.gguf: its BLAKE3 is"),
        (serde_json::json!({"source": "folder", "sha256": other}), "folder: this is a folder"),
        (serde_json::json!({"source": "none", "sha256": other}), "none: no such file or folder"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = run(root.path(), &number.to_string(), &config(text)).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.help().is_some_and(|help| !help.is_empty()));
    }
    let model = blake3::hash(&gguf()).to_hex().to_string();
    let hashed = serde_json::json!({"source": "a.gguf", "blake3": model});
    assert_converted(&run(root.path(), "model", &config(hashed)).unwrap());
}

#[test]
fn bad_folders_are_named() {
    let root = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        fs::create_dir_all(root.path().join(name)).unwrap();
        root.path().join(name)
    };
    make("empty");
    std::os::unix::fs::symlink("nowhere", make("dangling").join("link")).unwrap();
    std::os::unix::fs::symlink(".", make("circle").join("again")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(make("socket").join("s")).unwrap();
    for (name, words) in [
        ("absent", "no such file or folder"),
        ("empty", "the folder is empty"),
        ("dangling", "this link points to nothing"),
        ("circle", "nested too deeply"),
        ("socket", "neither a file nor a folder"),
    ] {
        let error =
            run(root.path(), &format!("work-{name}"), &config(serde_json::json!({"source": name}))).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(words) || (name == "circle" && text.contains("symbolic links")), "{name}: {text}");
        assert!(text.contains(name) && error.help().is_some_and(|help| !help.is_empty()) || name == "circle", "{text}");
    }
}

#[test]
fn invalid_sources_are_reported_before_anything_runs() {
    for (text, key, words) in [
        (serde_json::json!({"source": "hf://a/b/c"}), "source", "hf://OWNER/REPO@REVISION"),
        (serde_json::json!({"source": "hf://../b"}), "source", "hf://OWNER/REPO@REVISION"),
        (serde_json::json!({"source": "s3:///b"}), "source", "s3://BUCKET/KEY"),
        (serde_json::json!({"source": "s3://a/b/../c"}), "source", "s3://BUCKET/KEY"),
        (serde_json::json!({"source": "s3://a/b//"}), "source", "s3://BUCKET/KEY"),
        (serde_json::json!({"source": "ftp://x.org/y.zip"}), "source", "give the path of the folder"),
        (serde_json::json!({"source": "https://x.org/"}), "source", "must name a file"),
        (
            serde_json::json!({"source": "https://x.org/a", "files": ["*"]}),
            "files",
            "only to `hf://` and `s3://` sources",
        ),
        (serde_json::json!({"source": "hf://a/b", "files": ["["]}), "files", "not a valid pattern"),
        (serde_json::json!({"source": "https://x.org/a", "unpack": true}), "unpack", "only to .zip, .tar, "),
        (serde_json::json!({"source": "builtin:shapes", "into": "x"}), "into", "not built in"),
        (serde_json::json!({"source": "hf://a/b", "sha256": "0"}), "sha256", "a single file"),
        (serde_json::json!({"source": "https://x.org/a", "sha256": "0"}), "sha256", "64 hexadecimal"),
        (serde_json::json!({"source": "https://x.org/a.zip", "into": "../x"}), "into", "without `..`"),
        (serde_json::json!({"source": "builtin:shape"}), "source", "`builtin:shapes`"),
        (serde_json::json!({"source": ""}), "source", "must name"),
        (serde_json::json!({"source": "x", "images": 3}), "images", "only to `builtin:shapes`"),
        (serde_json::json!({"source": "builtin:shapes", "images": 0}), "images", "between"),
        (
            serde_json::json!({"source": "builtin:tiny-phi", "model": {"patch_size": 8}}),
            "model.patch_size",
            "the vision encoders",
        ),
        (serde_json::json!({"source": "builtin:tiny-phi", "model": {"heads": 5}}), "model.hidden_size", "multiple"),
    ] {
        let issue = Download::check(&config(text)).unwrap_err();
        assert_eq!(issue.key, key);
        assert!(issue.message.contains(words), "{}", issue.message);
    }
    for source in [
        "builtin:shapes",
        "some/folder",
        "C:odd name",
        "hf://microsoft/phi-2@abc",
        "hf://datasets/a/b",
        "https://x.org/y?z",
        "s3://bucket",
        "s3://bucket/a/b",
    ] {
        Download::check(&config(serde_json::json!({"source": source}))).unwrap();
    }
}

#[test]
fn built_in_sources_are_reproducible() {
    let root = tempfile::tempdir().unwrap();
    for (number, text) in [
        serde_json::json!({"source": "builtin:shapes", "images": 70, "eval_images": 30}),
        serde_json::json!({"source": "builtin:tiny-phi", "model": {"hidden_size": 32, "layers": 2}}),
        serde_json::json!({"source": "builtin:tiny-siglip", "model": {"hidden_size": 32}}),
    ]
    .into_iter()
    .enumerate()
    {
        let first = tree(&run(root.path(), &format!("{number}-a"), &config(text.clone())).unwrap());
        let second = tree(&run(root.path(), &format!("{number}-b"), &config(text)).unwrap());
        assert!(first == second, "source {number}");
        let names: Vec<_> = first.keys().map(|path| path.to_string_lossy().into_owned()).collect();
        match number {
            0 => assert_eq!(names.len(), 100 + 3 + 3 + 2, "{names:?}"),
            1 => assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
            _ => assert_eq!(names, ["config.json", "model.safetensors", "preprocessor_config.json"]),
        }
    }
}

#[test]
fn the_tiny_tokenizer_knows_the_words_of_the_data() {
    let file = tiny::tokenizer::train(Family::Phi, 512, 42).unwrap().to_string(false).unwrap();
    let tokenizer = crate::text::tokenizer::TextTokenizer::from_bytes(file.as_bytes()).unwrap();
    for word in [" Yes", " No", " red", " yellow", " circle", " triangle", " top left", " 2", " USER", " ASSISTANT"] {
        let words = word.split_whitespace().count();
        assert_eq!(tokenizer.encode(word).unwrap().len(), words, "{word}");
    }
    let prompt = crate::text::template::Template::Phi2.prompt("Is there a red circle in the image?");
    let ids = tokenizer.encode(&prompt).unwrap();
    assert!(ids.len() < 60, "{} tokens", ids.len());
    let odd = "Ünïcode \u{1F600} \t\n text</s>";
    let ids: Vec<u32> = tokenizer.encode(odd).unwrap().into_iter().map(|id| id as u32).collect();
    assert_eq!(tokenizer.decode(&ids).unwrap(), odd.trim_end_matches("</s>"));
}
