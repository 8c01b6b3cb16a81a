//! Downloads from a hub, and files that are already in the local cache of Hugging Face's own tools.

use std::ffi::OsString;

use super::*;
use crate::download::tests::{assert_converted, gguf};

/// Downloads `source` in an environment of `NAME=VALUE` lines.
pub(super) fn download(
    job: &Job,
    variables: &str,
    source: &str,
    config: &DownloadConfig,
    policy: &Policy,
) -> Result<(), StageError> {
    let policy = proxies::policy(variables, policy)?;
    let variables = environment(variables);
    let hub = Hub::of(|name| variables.get(name).map(OsString::from));
    repository(job, &hub, &HubSource::parse(source).unwrap(), config, &policy)
}

/// A hub with one repository of three files, one of them large.
fn serve_hub(server: &Server, commit: &str) -> Vec<u8> {
    let (large, small) = (content(4321), b"{}".to_vec());
    let git = "9e26dfeeb6e641a33dae4961196235bdb965b21b"; // git hash-object of `{}`
    let info = serde_json::json!({"sha": commit, "siblings": [
        {"rfilename": "config.json", "size": 2, "blobId": git},
        {"rfilename": "sub/model #1.bin", "size": 4321, "blobId": "x", "lfs": {"sha256": sha256(&large), "size": 4321}},
        {"rfilename": "README.md", "size": 9, "blobId": git},
    ]});
    for kind in ["models", "datasets"] {
        server.serve(&format!("/api/{kind}/me/it/revision/main"), info.to_string(), &[Fault::Status(502, "x", "")]);
    }
    for prefix in ["", "/datasets"] {
        server.serve(&format!("{prefix}/me/it/resolve/{commit}/config.json"), small.clone(), &[Fault::CutAfter(1)]);
        server.serve(&format!("{prefix}/me/it/resolve/{commit}/sub/model%20%231.bin"), large.clone(), &[]);
    }
    large
}

#[test]
fn a_repository_of_a_hub_is_resolved_to_a_commit_and_checked() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let large = serve_hub(&server, "0123abcd0123abcd0123abcd0123abcd0123abcd");
    for (work, source) in [("model", "me/it"), ("data", "datasets/me/it")] {
        let source = format!("hub|HF_ENDPOINT={}|{source}", server.address);
        let outcome =
            run(&root.path().join(work), &serde_json::json!({"source": source, "files": ["*.json", "sub/*"]}));
        assert!(
            outcome.warnings().contains("me/it@0123abcd0123abcd0123abcd0123abcd0123abcd\"` pins it"),
            "{}",
            outcome.warnings()
        );
        let files: Vec<_> = tree(&outcome.done()).into_iter().collect();
        assert_eq!(files, [("config.json".into(), b"{}".to_vec()), ("sub/model #1.bin".into(), large.clone())]);
    }
    let source = format!("hub|HF_ENDPOINT={}|me/it", server.address);
    let error =
        run(&root.path().join("none"), &serde_json::json!({"source": source, "files": ["*.safetensors"]})).error();
    assert!(error.to_string().contains("`*.safetensors`") && error.help().unwrap().contains("config.json"), "{error}");
    server.serve_always("/me/it/resolve/0123abcd0123abcd0123abcd0123abcd0123abcd/config.json", "{}", Fault::OtherBytes);
    let error = run(&root.path().join("bad"), &serde_json::json!({"source": source, "files": ["*.json"]})).error();
    assert!(error.to_string().contains("git id"), "{error}");
}

/// Creates a local cache with one commit of `models--me--it`, laid out like `huggingface_hub`'s: links to blobs.
fn local_cache(home: &Path, commit: &str, files: &[(&str, &[u8])]) {
    let repository = home.join("hub/models--me--it");
    let snapshot = repository.join("snapshots").join(commit);
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(repository.join("blobs")).unwrap();
    std::fs::write(repository.join("refs/main"), commit).unwrap();
    for (number, (name, bytes)) in files.iter().enumerate() {
        let (blob, link) = (repository.join("blobs").join(number.to_string()), snapshot.join(name));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::fs::write(&blob, bytes).unwrap();
        std::os::unix::fs::symlink(blob, link).unwrap();
    }
}

#[test]
fn files_in_the_local_cache_are_not_downloaded() {
    let root = tempfile::tempdir().unwrap();
    let (server, home) = (Server::start(), root.path().join("hf"));
    let large = serve_hub(&server, "0123abcd0123abcd0123abcd0123abcd0123abcd");
    // One intact file and one damaged file.
    local_cache(
        &home,
        "0123abcd0123abcd0123abcd0123abcd0123abcd",
        &[("sub/model #1.bin", &large), ("config.json", b"[]")],
    );
    let before = tree(&home);
    let source = format!("hub|HF_ENDPOINT={}\nHF_HOME={}|me/it", server.address, home.display());
    let outcome = run(&root.path().join("work"), &serde_json::json!({"source": source, "files": ["*.*n"]}));
    assert!((outcome.figure("files_from_local_cache") - 1.0).abs() < 1e-9);
    let out = outcome.done();
    let files: Vec<_> = tree(&out).into_iter().collect();
    assert_eq!(files, [("config.json".into(), b"{}".to_vec()), ("sub/model #1.bin".into(), large)]);
    assert!(server.seen("/me/it/resolve/0123abcd0123abcd0123abcd0123abcd0123abcd/sub/model%20%231.bin").is_empty());
    assert_eq!(server.seen("/me/it/resolve/0123abcd0123abcd0123abcd0123abcd0123abcd/config.json").len(), 2, "cut once");
    assert!(!out.join("sub/model #1.bin").is_symlink());
    std::fs::write(out.join("sub/model #1.bin"), "changed").unwrap();
    assert!(tree(&home) == before, "the cache is only read");
}

#[test]
fn offline_only_the_local_cache_is_used() {
    let root = tempfile::tempdir().unwrap();
    let home = root.path().join("hf");
    local_cache(&home, "0123abcd0123abcd0123abcd0123abcd0123abcd", &[("config.json", b"{}"), ("README.md", b"x")]);
    // No server listens there, so a request would fail.
    let offline = format!("HF_ENDPOINT=http://127.0.0.1:1\nHF_HUB_OFFLINE=1\nHF_HUB_CACHE={}/hub", home.display());
    let fetch = |work: &str, source: &str, files: &[&str]| {
        let config = serde_json::json!({"source": format!("hub|{offline}|{source}"), "files": files});
        run(&root.path().join(work), &config)
    };
    let outcome = fetch("main", "me/it", &["*.json"]);
    assert!(
        outcome.warnings().contains("hf://me/it@0123abcd0123abcd0123abcd0123abcd0123abcd\"` pins it"),
        "{}",
        outcome.warnings()
    );
    assert_eq!(tree(&outcome.done()).into_iter().collect::<Vec<_>>(), [("config.json".into(), b"{}".to_vec())]);
    let outcome = fetch("pinned", "me/it@0123abcd0123abcd0123abcd0123abcd0123abcd", &[]);
    assert!(outcome.warnings().contains("could not be checked whether its files are whole and all of them"));
    assert_eq!(tree(&outcome.done()).len(), 2);
    for (number, (source, files, words)) in [
        ("me/other", &[][..], "hf://me/other is not in"),
        ("me/it@4567", &[], "hf://me/it@4567 is not in"),
        ("datasets/me/it", &[], "HF_HUB_OFFLINE is set"),
        ("me/it", &["*.json", "*.safetensors"], "`*.safetensors` in `files` matches no file of hf://me/it in"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = fetch(&number.to_string(), source, files).error();
        assert!(error.to_string().contains(words), "{error}");
    }
    let online = offline.replace("OFFLINE=1", "OFFLINE=0");
    let error = run(&root.path().join("on"), &serde_json::json!({"source": format!("hub|{online}|me/it")})).error();
    assert!(error.to_string().contains("can't be reached"), "{error}");
}

#[test]
fn a_gguf_becomes_a_folder_wherever_it_comes_from() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let (model, names) = (gguf(), ["a-Q8_0.gguf", "a-F16.gguf", "README.md"]);
    let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).into();
    let info = serde_json::json!({"sha": "0123abcd0123abcd0123abcd0123abcd0123abcd", "siblings": siblings});
    server.serve("/api/models/me/it/revision/main", info.to_string(), &[]);
    for name in names {
        server.serve(&format!("/me/it/resolve/0123abcd0123abcd0123abcd0123abcd0123abcd/{name}"), model.clone(), &[]);
    }
    let source = format!("hub|HF_ENDPOINT={}|me/it", server.address);
    let one = serde_json::json!({"source": source, "files": ["*Q8_0.gguf"], "into": "llm"});
    assert_converted(&run(&root.path().join("hub"), &one).done().join("llm"));
    let error = run(&root.path().join("all"), &serde_json::json!({"source": source})).error();
    assert!(error.to_string().contains("several GGUF models, such as a-Q8_0.gguf and a-F16.gguf"), "{error}");
    let url = server.serve("/b.gguf", model, &[]);
    assert_converted(&run(&root.path().join("url"), &serde_json::json!({"source": url})).done());
    let url = server.serve("/c.gguf", "GGUF, but cut", &[]);
    let error = run(&root.path().join("cut"), &serde_json::json!({"source": url})).error();
    assert!(error.to_string().starts_with("c.gguf: "), "{error}");
}

/// Serves a repository whose hub answers with `sha` and one file `name`.
fn serve_claims(server: &Server, sha: &str, name: &str) -> String {
    let info = serde_json::json!({"sha": sha, "siblings": [{"rfilename": name}]});
    server.serve("/api/models/me/it/revision/main", info.to_string(), &[]);
    format!("hub|HF_ENDPOINT={}", server.address)
}

#[test]
fn a_hub_cannot_name_paths_of_this_machine() {
    let root = tempfile::tempdir().unwrap();
    let (server, home) = (Server::start(), root.path().join("hf"));
    let commit = "0123abcd".repeat(5);
    local_cache(&home, &commit, &[("config.json", b"{}")]);
    std::fs::write(root.path().join("secret"), "secret").unwrap();
    let secret = root.path().display().to_string();
    let up = format!("{commit}/../../../../..");
    for (number, (sha, name, words)) in [
        (secret.as_str(), "secret", "is not 40 or 64 hexadecimal digits"),
        (&up, "secret", "is not 40 or 64 hexadecimal digits"),
        ("main\u{1b}[2J", "secret", r"main\u{1b}[2J"),
        ("", "secret", "is not 40 or 64 hexadecimal digits"),
        (&commit, "../../../../../secret", "a file outside the folder of hf://me/it"),
        (&commit, &format!("{secret}/secret"), "a file outside the folder of hf://me/it"),
        (&commit, "", "a file outside the folder of hf://me/it"),
    ]
    .into_iter()
    .enumerate()
    {
        let variables = serve_claims(&server, sha, name);
        let source = format!("{variables}\nHF_HOME={}|me/it", home.display());
        let error = run(&root.path().join(number.to_string()), &serde_json::json!({"source": source})).error();
        assert!(error.to_string().contains(words) && !error.to_string().contains('\u{1b}'), "{error}");
        assert!(error.to_string().contains(&server.address), "{error}");
        assert!(error.help().unwrap().contains("HF_ENDPOINT"), "{:?}", error.help());
    }
}

#[test]
fn a_kept_listing_and_the_local_cache_are_not_trusted_either() {
    let root = tempfile::tempdir().unwrap();
    let (server, home) = (Server::start(), root.path().join("hf"));
    let commit = "0123abcd".repeat(5);
    std::fs::write(root.path().join("secret"), "secret").unwrap();
    let outside = root.path().display().to_string();
    server.serve(&format!("/me/it/resolve/{commit}/secret"), "from the hub", &[]);
    let source = format!("{}\nHF_HOME={}|me/it", serve_claims(&server, &commit, "secret"), home.display());
    for (number, (sha, name)) in [(outside.as_str(), "secret"), (&commit, "../../../../../secret")].iter().enumerate() {
        let work = root.path().join(number.to_string());
        std::fs::create_dir_all(work.join("checkpoint")).unwrap();
        let file = serde_json::json!({"name": name, "url": "http://127.0.0.1:1/", "size": null, "checks": []});
        let kept = serde_json::json!({"files": [file], "commit": sha});
        std::fs::write(work.join("checkpoint/listing.json"), kept.to_string()).unwrap();
        let out = run(&work, &serde_json::json!({"source": source})).done();
        assert_eq!(tree(&out).into_iter().collect::<Vec<_>>(), [("secret".into(), b"from the hub".to_vec())]);
    }
    local_cache(&home, &commit, &[("config.json", b"{}")]);
    let offline = format!("hub|HF_HUB_OFFLINE=1\nHF_HOME={}", home.display());
    for (number, revision) in [String::new(), format!("@{outside}"), "@../../../..".into()].iter().enumerate() {
        std::fs::write(home.join("hub/models--me--it/refs/main"), &outside).unwrap();
        let source = format!("{offline}|me/it{revision}");
        let work = root.path().join(format!("offline-{number}"));
        let error = run(&work, &serde_json::json!({"source": source})).error().to_string();
        let words = if number == 0 { "is not 40 or 64 hexadecimal digits" } else { "is not in" };
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_token_goes_only_to_its_origin() {
    let root = tempfile::tempdir().unwrap();
    let (hub, other) = (Server::start(), Server::start());
    let commit = "0123abcd".repeat(5);
    let path = format!("/me/it/resolve/{commit}/a.bin");
    let back = other.serve_always("/back", "", Fault::Redirect(format!("{}/end", hub.address)));
    hub.serve("/end", "content", &[]);
    other.serve("/end", "content", &[]);
    for (number, location) in [
        "/end".to_string(),
        format!("{}/end", other.address),
        other.address.replacen("http:", "", 1) + "/end",
        format!("{}/end", other.address.replacen("//", "//user@", 1)),
        back,
    ]
    .into_iter()
    .enumerate()
    {
        let variables = serve_claims(&hub, &commit, "a.bin");
        hub.serve_always(&path, "", Fault::Redirect(location.clone()));
        let before = hub.seen("/end").len();
        let source = format!("{variables}\nHF_TOKEN=hf_secret\nHF_HOME={}|me/it", root.path().display());
        let out = run(&root.path().join(number.to_string()), &serde_json::json!({"source": source})).done();
        assert_eq!(std::fs::read(out.join("a.bin")).unwrap(), b"content");
        let has_token = |seen: &super::super::server::Seen| {
            seen.headers.get("authorization").is_some_and(|value| value.contains("hf_secret"))
        };
        assert!(hub.seen(&path).iter().all(has_token));
        assert!(!other.seen("/end").iter().chain(&other.seen("/back")).any(has_token), "{location}");
        let ends = &hub.seen("/end")[before..];
        assert!(ends.iter().all(|seen| has_token(seen) == (number == 0)), "{location}");
    }
}

#[test]
fn lists_are_limited_and_useless_answers_are_final() {
    let (sha, name) = ("a".repeat(40), br#"{"rfilename":"a"},"#);
    let many =
        [format!(r#"{{"sha":"{sha}","siblings":["#).into_bytes(), name.repeat(1_000_001), b"]}".to_vec()].concat();
    let cases: [(Vec<u8>, &str); 3] = [
        (many, "it lists more than 1000000 files"),
        (vec![b' '; (64 << 20) + 1], "answered with more than 67108864 bytes, the limit for a list of files"),
        (b"{\"sha\": \"\xff\"}".to_vec(), "answered with a list of files that is not UTF-8"),
    ];
    for (text, why) in cases {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start();
        server.serve("/api/models/me/it/revision/main", text, &[]);
        let source = format!("hub|HF_ENDPOINT={}|me/it", server.address);
        let error = run(&root.path().join("work"), &serde_json::json!({ "source": source })).error();
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(server.seen("/api/models/me/it/revision/main").len(), 1, "{why}");
    }
}

#[test]
fn names_that_cannot_be_files_of_one_folder_are_refused_first() {
    for (names, why) in [
        (["a", "a"], "\"a\", which is the name of two files"),
        (["a", "a/b"], "\"a/b\", which lies in what is another file"),
        (["a", "b\r"], "\"b\\r\", which contains control characters"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start();
        let siblings: Vec<_> = names.iter().map(|name| serde_json::json!({"rfilename": name, "size": 1})).collect();
        let info = serde_json::json!({"sha": "a".repeat(40), "siblings": siblings});
        server.serve("/api/models/me/it/revision/main", info.to_string(), &[]);
        let source = format!("hub|HF_ENDPOINT={}|me/it", server.address);
        let error = run(&root.path().join("work"), &serde_json::json!({ "source": source })).error();
        assert!(error.to_string().contains(why), "{error}");
    }
}

/// What is known of a snapshot of the local cache: the names of blobs are hashes, and only the pipeline says which files are all.
#[test]
fn a_partial_or_damaged_snapshot_is_never_taken_for_the_repository() {
    let root = tempfile::tempdir().unwrap();
    let (home, commit) = (root.path().join("hf"), "0123abcd".repeat(5));
    let repository = home.join("hub/models--me--it");
    let snapshot = repository.join("snapshots").join(&commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repository.join("blobs")).unwrap();
    let large = content(4321);
    let blobs = [
        ("config.json", "9e26dfeeb6e641a33dae4961196235bdb965b21b".to_string(), b"{}".to_vec()),
        ("model.safetensors", sha256(&large), large),
    ];
    for (name, hash, bytes) in &blobs {
        std::fs::write(repository.join("blobs").join(hash), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{hash}"), snapshot.join(name)).unwrap();
    }
    let fetch = |work: &str, files: &[&str]| {
        let offline = format!("hub|HF_HUB_OFFLINE=YES\nHF_HOME={}|me/it@{commit}", home.display());
        run(&root.path().join(work), &serde_json::json!({"source": offline, "files": files}))
    };
    let unchecked = |outcome: &crate::testing::Outcome| {
        outcome.events.iter().any(|event| matches!(event, crate::contract::event::Event::Unchecked { .. }))
    };
    assert!(!unchecked(&fetch("spelled", &["config.json", "model.safetensors"])), "named, and whole by their hashes");
    for (work, files) in [("all", &[][..]), ("pattern", &["*"])] {
        let outcome = fetch(work, files);
        assert!(unchecked(&outcome) && outcome.warnings().contains("whether these are all of its files"), "{work}");
        outcome.done();
    }
    for (name, hash, bytes) in &blobs {
        let blob = repository.join("blobs").join(hash);
        std::fs::write(&blob, &bytes[..bytes.len() - 1]).unwrap();
        let error = fetch(&format!("cut-{name}"), &[name]).error().to_string();
        assert!(error.contains(name) && error.contains("is damaged or incomplete: its "), "{error}");
        std::fs::remove_file(&blob).unwrap();
        let error = fetch(&format!("gone-{name}"), &[name]).error().to_string();
        assert!(error.contains("this link of the local cache leads nowhere"), "{error}");
        std::fs::write(&blob, bytes).unwrap();
    }
}

#[test]
fn variables_mean_what_they_mean_to_hugging_face() {
    let of = |text: &str| {
        let variables = environment(text);
        Hub::of(|name| variables.get(name).map(OsString::from))
    };
    for (value, offline) in [
        ("1", true),
        ("ON", true),
        ("yes", true),
        ("True", true),
        ("0", false),
        ("false", false),
        ("no", false),
        ("2", false),
    ] {
        assert_eq!(of(&format!("HF_HUB_OFFLINE={value}")).offline, offline, "{value}");
    }
    assert!(of("TRANSFORMERS_OFFLINE=1").offline);
    let hub = of("HOME=/home/me\nHF_HOME=~/models");
    assert_eq!(hub.cache, Path::new("/home/me/models/hub"));
}
