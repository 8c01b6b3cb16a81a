#![allow(clippy::unwrap_used)]
//! A hub in this process, which answers as `huggingface_hub`'s requests expect.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Mutex, MutexGuard},
    thread,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::*;
use crate::net::verify::hex;

#[derive(Default)]
struct State {
    exists: bool,
    commits: u8,
    files: BTreeMap<String, Vec<u8>>,
    large: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<u64, Vec<u8>>,
    /// Methods and paths, in their order.
    seen: Vec<String>,
    /// Requests to paths with this in them are answered so, once each.
    faults: Vec<(&'static str, u16)>,
    /// Requests with the token that went to the storage's address.
    leaks: usize,
    headers: Vec<serde_json::Value>,
}

struct FakeHub {
    state: Arc<Mutex<State>>,
    hub: String,
}

/// Files with this ending are large ones, and uploaded in parts of this size.
const LARGE: &str = ".bin";
const CHUNK: usize = 1000;

impl FakeHub {
    fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        // The storage is another origin than the hub.
        let [hub, storage] = [0, 0].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let [at_hub, at_storage] = [&hub, &storage].map(|at| format!("http://{}", at.local_addr().unwrap()));
        for listener in [hub, storage] {
            let (state, at_hub, at_storage) = (state.clone(), at_hub.clone(), at_storage.clone());
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let (state, at_hub, at_storage) = (state.clone(), at_hub.clone(), at_storage.clone());
                    thread::spawn(move || serve(&stream.unwrap(), &state, &at_hub, &at_storage));
                }
            });
        }
        Self { state, hub: at_hub }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn push<'a>(&self, variables: &str, warn: &'a (dyn Fn(&str) + Sync)) -> Push<'a> {
        let variables: BTreeMap<&str, &str> =
            variables.split_whitespace().map(|one| one.split_once('=').unwrap()).collect();
        let hub = Hub::of(|name| match name {
            "HF_ENDPOINT" => Some((&self.hub).into()),
            "HF_HOME" => Some("/nowhere".into()),
            name => variables.get(name).map(Into::into),
        });
        let policy = Policy {
            first_pause: Duration::from_millis(1),
            longest_wait: Duration::from_millis(30),
            attempts: 3,
            ..Policy::default()
        };
        Push::to_hub(hub, Repository::parse("hf://me/imp").unwrap(), policy, warn).unwrap()
    }
}

fn serve(stream: &TcpStream, state: &Mutex<State>, hub: &str, storage: &str) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut writer = stream;
    while reader.read_line(&mut line).unwrap_or(0) > 0 {
        let mut words = line.split(' ').map(String::from);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let (mut length, mut token, at_storage) = (0, false, stream.local_addr().unwrap().to_string());
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            match name.to_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap(),
                "authorization" => token = value == "Bearer hf_secret",
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let mut state = state.lock().unwrap();
        state.leaks += usize::from(token && storage.ends_with(&at_storage));
        state.seen.push(format!("{method} {path}"));
        let fault = state.faults.iter().position(|(at, _)| path.contains(at)).map(|at| state.faults.remove(at).1);
        let (status, headers, answer) = match fault {
            // The answer is lost, and not the effect.
            Some(0) => {
                answer(&mut state, &method, &path, &body, token, (hub, storage));
                return;
            }
            Some(429) => (429, "ratelimit: \"api\";r=0;t=7\r\n".into(), String::new()),
            Some(status) => (status, String::new(), r#"{"error":"no \u001b[31mroom"}"#.into()),
            None => answer(&mut state, &method, &path, &body, token, (hub, storage)),
        };
        drop(state);
        let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n{headers}\r\n", answer.len());
        writer.write_all(&[head.as_bytes(), answer.as_bytes()].concat()).unwrap();
        line.clear();
    }
}

type Answer = (u16, String, String);

fn answer(
    state: &mut State,
    method: &str,
    path: &str,
    body: &[u8],
    token: bool,
    (hub, storage): (&str, &str),
) -> Answer {
    let ok = |value: serde_json::Value| (200, String::new(), value.to_string());
    let refused = |status: u16, code: &str| (status, format!("x-error-code: {code}\r\n"), String::new());
    let text = || String::from_utf8_lossy(body).into_owned();
    match (method, path) {
        ("GET", "/api/models/me/imp/revision/main?blobs=true") if !state.exists => refused(404, "RepoNotFound"),
        ("GET", "/api/models/me/imp/revision/main?blobs=true") => ok(listing(state)),
        ("GET", path) if path.ends_with("/README.md") => {
            (200, String::new(), String::from_utf8(state.files["README.md"].clone()).unwrap())
        }
        ("PUT", path) => {
            let number = path.rsplit('/').next().unwrap().parse().unwrap();
            state.parts.insert(number, body.to_vec());
            (200, format!("etag: \"e{number}\"\r\n"), String::new())
        }
        ("POST", path) if path.starts_with("/complete/") => {
            let wanted: serde_json::Value = serde_json::from_slice(body).unwrap();
            let all: Vec<u8> = state.parts.values().flatten().copied().collect();
            assert_eq!(wanted["parts"].as_array().unwrap().len(), state.parts.len());
            let etags = wanted["parts"]
                .as_array()
                .unwrap()
                .iter()
                .map(|part| format!("\"e{}\"", part["partNumber"]) == part["etag"]);
            assert!(etags.into_iter().all(|same| same));
            assert_eq!(hex(&Sha256::digest(&all)), wanted["oid"]);
            state.large.insert(wanted["oid"].as_str().unwrap().into(), all);
            state.parts.clear();
            ok(json!({}))
        }
        ("POST", _) if !token => refused(401, ""),
        ("POST", "/api/repos/create") => {
            let asked: serde_json::Value = serde_json::from_slice(body).unwrap();
            assert_eq!((&asked["organization"], &asked["name"]), (&json!("me"), &json!("imp")));
            state.exists = true;
            state.commits += 1;
            state.files.insert(".gitattributes".into(), b"*.bin".into());
            ok(json!({}))
        }
        ("POST", "/api/models/me/imp/preupload/main") => {
            let asked: serde_json::Value = serde_json::from_slice(body).unwrap();
            let mode = |file: &serde_json::Value| {
                let path = file["path"].as_str().unwrap();
                json!({"path": path, "uploadMode": if path.ends_with(LARGE) { "lfs" } else { "regular" }, "shouldIgnore": path.contains("ignored")})
            };
            ok(json!({"files": asked["files"].as_array().unwrap().iter().map(mode).collect::<Vec<_>>()}))
        }
        ("POST", "/me/imp.git/info/lfs/objects/batch") => {
            let asked: serde_json::Value = serde_json::from_slice(body).unwrap();
            let object = &asked["objects"][0];
            let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap());
            if state.large.contains_key(oid) {
                return ok(json!({"objects": [{"oid": oid, "size": size}]}));
            }
            let mut header = serde_json::Map::from_iter([("chunk_size".to_string(), json!(CHUNK.to_string()))]);
            for number in 1..=size.div_ceil(CHUNK as u64) {
                header.insert(format!("{number:05}"), json!(format!("{storage}/part/{number}")));
            }
            let upload = json!({"href": format!("{hub}/complete/{oid}"), "header": header});
            let verify = json!({"href": format!("{hub}/verify")});
            ok(json!({"objects": [{"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}]}))
        }
        ("POST", "/verify") => ok(json!({})),
        ("POST", "/api/models/me/imp/commit/main") => {
            for line in text().lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
                let (value, path) = (&line["value"], line["value"]["path"].as_str().unwrap_or_default().to_string());
                match line["key"].as_str().unwrap() {
                    "header" if value["parentCommit"] != json!(commit(state)) => return refused(412, ""),
                    "header" => state.headers.push(value.clone()),
                    "file" => drop(
                        state.files.insert(path, BASE64_STANDARD.decode(value["content"].as_str().unwrap()).unwrap()),
                    ),
                    "lfsFile" => drop(state.files.insert(path, state.large[value["oid"].as_str().unwrap()].clone())),
                    "deletedFile" => drop(state.files.remove(&path).unwrap()),
                    other => panic!("{other}"),
                }
            }
            state.commits += 1;
            ok(json!({"commitUrl": format!("{hub}/me/imp/commit/{}", commit(state)), "commitOid": commit(state)}))
        }
        other => panic!("{other:?}"),
    }
}

fn commit(state: &State) -> String {
    format!("{:040x}", state.commits)
}

fn listing(state: &State) -> serde_json::Value {
    let sibling = |(name, content): (&String, &Vec<u8>)| {
        let id = Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(content).finalize();
        let mut file = json!({"rfilename": name, "size": content.len(), "blobId": hex(&id)});
        if name.ends_with(LARGE) {
            file["lfs"] = json!({"sha256": hex(&Sha256::digest(content)), "size": content.len()});
        }
        file
    };
    json!({"sha": commit(state), "siblings": state.files.iter().map(sibling).collect::<Vec<_>>()})
}

fn files(root: &Path, contents: &[(&str, Vec<u8>)]) -> Vec<LocalFile> {
    let file = |(name, content): &(&str, Vec<u8>)| {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        LocalFile { name: (*name).into(), path, bytes: content.len() as u64 }
    };
    contents.iter().map(file).collect()
}

fn model() -> Vec<(&'static str, Vec<u8>)> {
    let weights = (0..3456_u32).map(|at| (at % 251) as u8).collect();
    vec![
        ("README.md", b"card".into()),
        ("config.json", b"{}".into()),
        ("sub/model.bin", weights),
        ("empty.bin", Vec::new()),
    ]
}

fn options() -> Options {
    Options { private: true, delete: false, message: "Push \"it\"\nnow".into() }
}

#[test]
fn a_new_repository_gets_every_file_and_a_second_push_nothing() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let push = hub.push("HF_TOKEN=hf_secret", &|_| {});
    let files = files(root.path(), &model());
    let outlook = push.outlook(&files).unwrap();
    assert!(outlook.creates && outlook.has_token && outlook.same == 0 && outlook.changed == files);
    assert!(hub.state().seen.iter().all(|seen| seen.starts_with("GET ")), "an outlook changes nothing");
    let sent = Arc::default();
    let page = push.run(&outlook, &options(), &sent).unwrap();
    assert_eq!(page, format!("{}/me/imp/commit/{:040x}", hub.hub, 2));
    assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 3456);
    for (name, content) in model() {
        assert_eq!(hub.state().files[name], content, "{name}");
    }
    assert_eq!(hub.state().leaks, 0, "the storage gets no token");
    assert_eq!(push.card().unwrap().as_deref(), Some("card"));
    let outlook = push.outlook(&files).unwrap();
    assert!(!outlook.creates && outlook.changed.is_empty() && outlook.stale.is_empty() && outlook.same == files.len());
}

#[test]
fn only_what_differs_is_sent_and_what_is_gone_is_removed_if_asked() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let push = hub.push("HF_TOKEN=hf_secret", &|_| {});
    let old = files(root.path(), &[model(), vec![("old.bin", vec![1; 10])]].concat());
    push.run(&push.outlook(&old).unwrap(), &options(), &Arc::default()).unwrap();
    let new = files(root.path(), &[("config.json", b"{\"a\":1}".to_vec()), ("sub/model.bin", model()[2].1.clone())]);
    let outlook = push.outlook(&new).unwrap();
    assert_eq!(
        (outlook.changed.len(), outlook.same, &outlook.stale[..]),
        (1, 1, &["empty.bin".to_string(), "old.bin".into()][..])
    );
    push.run(&outlook, &Options { delete: true, ..options() }, &Arc::default()).unwrap();
    let names: Vec<String> = hub.state().files.keys().cloned().collect();
    // The card of a person stays.
    assert_eq!(names, [".gitattributes", "README.md", "config.json", "sub/model.bin"]);
}

#[test]
fn cuts_are_tried_again_and_a_lost_answer_is_no_second_commit() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let warned = Mutex::new(Vec::new());
    let warn = |message: &str| warned.lock().unwrap().push(message.to_string());
    let push = hub.push("HF_TOKEN=hf_secret", &warn);
    let files = files(root.path(), &model());
    hub.state().faults =
        vec![("/part/2", 503), ("/part/3", 500), ("/commit/", 0), ("/repos/create", 502), ("preupload", 429)];
    let sent = Arc::default();
    push.run(&push.outlook(&files).unwrap(), &options(), &sent).unwrap();
    assert_eq!(sent.load(std::sync::atomic::Ordering::Relaxed), 3456);
    assert_eq!(hub.state().headers.len(), 1);
    assert_eq!(hub.state().files.len(), 5);
    assert!(!warned.lock().unwrap().is_empty());
    assert!(warned.lock().unwrap().iter().all(|message| !message.contains("secret")));
}

#[test]
fn a_hub_that_asks_for_a_pause_gets_it() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let warned = Mutex::new(Vec::new());
    let warn = |message: &str| warned.lock().unwrap().push(message.to_string());
    let push = hub.push("HF_TOKEN=hf_secret", &warn);
    let files = files(root.path(), &model());
    let outlook = push.outlook(&files).unwrap();
    hub.state().faults = vec![("preupload", 429)];
    push.run(&outlook, &options(), &Arc::default()).unwrap();
    // Eight seconds, of which no more than the policy's longest is waited; without the hub's words it would be 1 ms.
    let warned = warned.lock().unwrap();
    assert!(matches!(&**warned, [one] if one.contains("429") && one.ends_with("next in 30 ms")), "{warned:?}");
}

#[test]
fn refusals_are_told_with_what_to_do() {
    let (hub, root) = (FakeHub::start(), tempfile::tempdir().unwrap());
    let all = files(root.path(), &model());
    let refused = |variables: &str, files: &[LocalFile], before: &dyn Fn(&mut State)| {
        let push = hub.push(variables, &|_| {});
        let outlook = push.outlook(files).unwrap();
        before(&mut hub.state());
        let error = push.run(&outlook, &options(), &Arc::default()).unwrap_err();
        format!("{error} ({})", error.help().unwrap_or_default())
    };
    let ignored = files(root.path(), &[("ignored.txt", b"x".to_vec())]);
    for (message, words) in [
        (refused("", &all, &|_| {}), ["there is no token", "set HF_TOKEN"]),
        (refused("HF_TOKEN=wrong", &all, &|_| {}), ["refused with 401", "write access"]),
        (
            refused("HF_TOKEN=hf_secret", &ignored, &|_| {}),
            [".gitignore leaves out \"ignored.txt\"", "change .gitignore"],
        ),
        (
            refused("HF_TOKEN=hf_secret", &all, &|state| state.faults = vec![("preupload", 403)]),
            ["refused with 403, and says", "right to write"],
        ),
        (refused("HF_TOKEN=hf_secret", &all, &|state| state.commits += 1), ["refused with 412", "changed meanwhile"]),
    ] {
        assert!(words.iter().all(|words| message.contains(words)), "{message}");
        assert!(!message.contains("secret") && !message.contains('\u{1b}'), "{message}");
    }
    // What was uploaded before the refusal is not uploaded again.
    let before = hub.state().seen.iter().filter(|seen| seen.starts_with("PUT")).count();
    let push = hub.push("HF_TOKEN=hf_secret", &|_| {});
    push.run(&push.outlook(&all).unwrap(), &options(), &Arc::default()).unwrap();
    assert_eq!(hub.state().seen.iter().filter(|seen| seen.starts_with("PUT")).count(), before);
}

#[test]
fn addresses_of_repositories() {
    for good in ["hf://a/b", "hf://my-org/Imp_v1.5-3B", "hf://a/b@refs/pr/1", "hf://a/b@main"] {
        assert_eq!(Repository::parse(good).unwrap().to_string(), good);
    }
    for bad in [
        "a/b",
        "hf://a",
        "hf://a/b/c",
        "hf://datasets/a/b",
        "hf://../b",
        "hf://a/b@",
        "hf://a/b@../x",
        "hf://a/b?x",
        "https://x/y",
    ] {
        assert!(Repository::parse(bad).unwrap_err().contains("hf://OWNER/REPO"), "{bad}");
    }
}
