//! The stage as a pipeline runs it.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::*;
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
fn a_single_file_keeps_its_name() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.json"), "[]").unwrap();
    let out = run(root.path(), "work", &config(serde_json::json!({"source": "a.json"}))).unwrap();
    assert_eq!(fs::read(out.join("a.json")).unwrap(), b"[]");
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
        ("absent", "there is no such file or folder"),
        ("empty", "the folder is empty"),
        ("dangling", "this link leads nowhere"),
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
fn sources_that_cannot_be_are_found_before_anything_runs() {
    for (text, key, words) in [
        (serde_json::json!({"source": "hf://a/b/c"}), "source", "hf://OWNER/REPO@REVISION"),
        (serde_json::json!({"source": "hf://../b"}), "source", "hf://OWNER/REPO@REVISION"),
        (serde_json::json!({"source": "s3:///b"}), "source", "s3://BUCKET/KEY"),
        (serde_json::json!({"source": "s3://a/b/../c"}), "source", "s3://BUCKET/KEY"),
        (serde_json::json!({"source": "s3://a/b//"}), "source", "s3://BUCKET/KEY"),
        (serde_json::json!({"source": "ftp://x.org/y.zip"}), "source", "give the path of the folder"),
        (serde_json::json!({"source": "https://x.org/"}), "source", "must name a file"),
        (serde_json::json!({"source": "https://x.org/a", "files": ["*"]}), "files", "`s3://` sources only"),
        (serde_json::json!({"source": "hf://a/b", "files": ["["]}), "files", "no pattern"),
        (serde_json::json!({"source": "hf://a/b", "sha256": "0"}), "sha256", "a single file"),
        (serde_json::json!({"source": "https://x.org/a", "sha256": "0"}), "sha256", "64 hexadecimal"),
        (serde_json::json!({"source": "https://x.org/a.zip", "into": "../x"}), "into", "without `..`"),
        (serde_json::json!({"source": "builtin:shape"}), "source", "`builtin:shapes`"),
        (serde_json::json!({"source": ""}), "source", "must name"),
        (serde_json::json!({"source": "x", "images": 3}), "images", "`builtin:shapes` only"),
        (serde_json::json!({"source": "builtin:shapes", "images": 0}), "images", "between"),
        (serde_json::json!({"source": "builtin:tiny-phi", "model": {"patch_size": 8}}), "model.patch_size", "siglip"),
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
fn built_in_sources_give_the_same_bytes_again() {
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
    let tokenizer = crate::preprocess::TextTokenizer::from_bytes(file.as_bytes()).unwrap();
    for word in [" Yes", " No", " red", " yellow", " circle", " triangle", " top left", " 2", " USER", " ASSISTANT"] {
        let words = word.split_whitespace().count();
        assert_eq!(tokenizer.encode(word).unwrap().len(), words, "{word}");
    }
    let prompt = crate::preprocess::Template::Phi2.prompt("Is there a red circle in the image?");
    let ids = tokenizer.encode(&prompt).unwrap();
    assert!(ids.len() < 60, "{} tokens", ids.len());
    let odd = "Ünïcode \u{1F600} \t\n text</s>";
    let ids: Vec<u32> = tokenizer.encode(odd).unwrap().into_iter().map(|id| id as u32).collect();
    assert_eq!(tokenizer.decode(&ids).unwrap(), odd.trim_end_matches("</s>"));
}
