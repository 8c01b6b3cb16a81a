//! Downloads from a server that misbehaves.
#![allow(clippy::unwrap_used)]

mod hubs;
mod proxies;
mod s3;

use std::{collections::BTreeMap, io::Write, path::Path, time::Duration};

use sha2::{Digest, Sha256};

use super::{
    server::{Fault, Server},
    *,
};
use crate::{
    Stage,
    contract::{
        figure::Figure,
        forecast::{Ahead, Forecast},
        input::Input,
    },
    download::Download,
    net::{hub::Hub, verify},
    testing::{Outcome, Trial, tree},
};

/// The kind under test: `download` from local servers with short pauses; a request may take `REQUEST` milliseconds.
struct Quick<const REQUEST: u64>;

impl<const REQUEST: u64> Stage for Quick<REQUEST> {
    const KIND: &'static str = "download";
    const VERSION: u32 = 0;
    const ABOUT: &'static str = "";
    const INPUTS: &'static [Input] = &[];
    const FIGURES: &'static [Figure] = Download::FIGURES;
    type Config = DownloadConfig;

    fn forecast(_: &DownloadConfig, _: &Ahead<'_>) -> Forecast {
        Forecast::default()
    }

    fn run(config: &DownloadConfig, job: &Job) -> Result<(), StageError> {
        let policy = Policy {
            first_pause: Duration::from_millis(20),
            longest_pause: Duration::from_millis(50),
            attempts: 4,
            chunk: 1000,
            timeout: Duration::from_millis(REQUEST),
            ..Policy::default()
        };
        match config.source.split('|').collect::<Vec<_>>()[..] {
            ["hub", variables, source] => hubs::download(job, variables, source, config, &policy),
            ["proxied", variables, source] => url(job, source, config, &proxies::policy(variables, &policy)?),
            ["s3", variables, source] => s3::download(job, variables, source, config, &policy),
            _ => url(job, &config.source, config, &policy),
        }
    }
}

/// Parses `NAME=VALUE` lines.
fn environment(lines: &str) -> BTreeMap<&str, &str> {
    lines.lines().filter_map(|line| line.split_once('=')).collect()
}

fn run(work: &Path, config: &serde_json::Value) -> Outcome {
    Trial::new(work, &[]).run::<Quick<5000>>(config)
}

/// Bytes without a short period.
fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index * index % 251) as u8).collect()
}

fn sha256(bytes: &[u8]) -> String {
    verify::hex(&Sha256::digest(bytes))
}

#[test]
fn a_file_arrives_whole_whatever_the_server_does() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let elsewhere = server.serve("/elsewhere", content(5500), &[]);
    for (name, faults) in [
        ("plain", vec![]),
        ("cut", vec![Fault::CutAfter(0), Fault::CutAfter(1), Fault::CutAfter(700), Fault::CutAfter(999)]),
        (
            "busy",
            vec![Fault::Status(429, "retry-after", "0"), Fault::Status(503, "x", ""), Fault::Status(500, "x", "")],
        ),
        ("moved", vec![Fault::Redirect(elsewhere); 7]),
        ("whole", vec![Fault::Whole; 7]),
        ("whole_cut", vec![Fault::Whole, Fault::CutAfter(3000), Fault::Whole]),
    ] {
        let source = server.serve(&format!("/{name}.bin"), content(5500), &faults);
        let outcome =
            run(&root.path().join(name), &serde_json::json!({"source": source, "sha256": sha256(&content(5500))}));
        assert_eq!(
            tree(&outcome.done()).into_iter().collect::<Vec<_>>(),
            [(format!("{name}.bin").into(), content(5500))]
        );
    }
    let source = server.serve("/empty", "", &[]);
    assert_eq!(
        std::fs::read(run(&root.path().join("empty"), &serde_json::json!({"source": source})).done().join("empty"))
            .unwrap(),
        b""
    );
}

#[test]
fn a_slow_server_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let slow = Duration::from_millis(900);
    for (name, faults) in [
        // The client times out and requests the rest.
        ("chunks", vec![Fault::OtherLength(1800), Fault::Slow(slow), Fault::Slow(slow)]),
        // A file that can't be requested in parts has no time limit.
        ("whole", vec![Fault::Whole, Fault::WholeSlow(slow)]),
    ] {
        let source = server.serve(&format!("/{name}"), content(1800), &faults);
        let config = serde_json::json!({"source": source});
        let out = Trial::new(&root.path().join(name), &[]).run::<Quick<400>>(&config).done();
        assert!(std::fs::read(out.join(name)).unwrap() == content(1800));
        if name == "whole" {
            assert_eq!(server.seen("/whole").len(), 2, "one to probe, one to fetch");
        }
    }
}

#[test]
fn the_next_process_requests_only_what_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    // One request probes, one gets a whole chunk, one a part of a chunk; then the server fails for good.
    let mut faults = vec![Fault::OtherLength(5500), Fault::OtherLength(5500), Fault::CutAfter(300)];
    faults.extend(vec![Fault::Status(503, "x", ""); 100]);
    let source = server.serve("/a.bin", content(5500), &faults);
    let config = serde_json::json!({"source": source});
    let error = run(&root.path().join("work"), &config).error();
    assert!(
        error.to_string().contains("gave up after 4 attempts") && error.help().unwrap().contains("is kept"),
        "{error}"
    );
    let kept = tree(&root.path().join("work/checkpoint"));
    let state = kept.iter().find(|(path, _)| path.extension().is_some_and(|end| end == "json")).unwrap().1;
    let state: serde_json::Value = serde_json::from_slice(state).unwrap();
    let kept: u64 = state["done"].as_array().unwrap().iter().filter_map(serde_json::Value::as_u64).sum();
    assert!((1..=1300).contains(&kept), "{kept}");
    let before = server.seen("/a.bin").len();
    server.serve("/a.bin", content(5500), &[]);
    let out = run(&root.path().join("work"), &config).done();
    assert!(std::fs::read(out.join("a.bin")).unwrap() == content(5500));
    let again: u64 = server.seen("/a.bin")[before..].iter().map(|seen| requested(&seen.headers["range"])).sum();
    assert_eq!(again, 5500 - kept, "bytes requested by the second process");
}

/// Number of bytes that a range such as `bytes=0-99` requests.
fn requested(range: &str) -> u64 {
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    to.parse::<u64>().unwrap() + 1 - from.parse::<u64>().unwrap()
}

#[test]
fn what_no_retry_would_mend_is_requested_once() {
    let header = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &vec![b'a'; 1 << 20], b"\r\n\r\n"].concat();
    for (answer, why) in [
        (header, "answered with a header of more than"),
        (b"HTTP/1.1 abc \x1b[31m\r\n\r\n".to_vec(), "doesn't speak HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n".to_vec(), "doesn't speak HTTP"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let server = Server::start();
        let url = server.serve_always("/f.bin", "", Fault::Raw(answer));
        let error = run(&root.path().join("work"), &serde_json::json!({ "source": url })).error();
        assert!(error.to_string().contains(why), "{error}");
        assert!(!error.to_string().contains('\x1b'), "{error:?}");
        assert_eq!(server.seen("/f.bin").len(), 1, "{why}");
    }
}

#[test]
fn an_absurd_size_is_refused_before_memory_is_taken() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    for size in [(1 << 44) + 1, u64::MAX] {
        let source = server.serve("/a.bin", content(5500), &[Fault::OtherLength(size)]);
        let error = run(&root.path().join(size.to_string()), &serde_json::json!({"source": source})).error();
        assert!(error.to_string().contains(&format!("reports {size} bytes, more than the")), "{error}");
    }
}

#[test]
fn a_refused_range_is_not_an_empty_file() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let source = server.serve("/a.bin", content(700), &[Fault::Status(416, "x", "")]);
    let out = run(&root.path().join("work"), &serde_json::json!({"source": source})).done();
    assert!(std::fs::read(out.join("a.bin")).unwrap() == content(700));
}

#[test]
fn two_contents_are_never_mixed() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut faults = vec![Fault::OtherLength(5500), Fault::CutAfter(300)];
    faults.extend(vec![Fault::Status(503, "x", ""); 100]);
    let source = server.serve("/a.bin", content(5500), &faults);
    let config = serde_json::json!({"source": source});
    run(&root.path().join("work"), &config).error();
    server.change("/a.bin", vec![7; 5500]);
    let error = run(&root.path().join("work"), &config).error();
    assert!(error.to_string().contains("changed during the download"), "{error}");
    let out = run(&root.path().join("work"), &config).done();
    assert!(std::fs::read(out.join("a.bin")).unwrap() == vec![7; 5500]);
}

const MONDAY: Option<&str> = Some("Mon, 23 Nov 2026 10:00:00 GMT");
const TUESDAY: Option<&str> = Some("Tue, 24 Nov 2026 10:00:00 GMT");

#[test]
fn without_a_strong_tag_two_contents_are_not_mixed_either() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    for (name, etag, modified, changed) in [
        ("date", None, MONDAY, Some("changed during the download")),
        ("weak_and_date", Some("W/\"1\""), MONDAY, Some("changed during the download")),
        ("weak", Some("W/\"1\""), None, None),
        ("nothing", None, None, None),
    ] {
        let path = format!("/{name}");
        let mut faults = vec![Fault::OtherLength(5500), Fault::CutAfter(300), Fault::CutAfter(600)];
        faults.extend(vec![Fault::Status(503, "x", ""); 100]);
        let config = serde_json::json!({"source": server.serve(&path, content(5500), &faults)});
        server.mark(&path, etag, modified);
        run(&root.path().join(name), &config).error();
        server.change(&path, vec![7; 5500]);
        server.mark(&path, etag, modified.and(TUESDAY));
        if let Some(words) = changed {
            let error = run(&root.path().join(name), &config).error();
            assert!(error.to_string().contains(words), "{name}: {error}");
        }
        let out = run(&root.path().join(name), &config).done();
        assert!(std::fs::read(out.join(name)).unwrap() == vec![7; 5500], "{name}");
    }
}

#[test]
fn a_date_is_enough_to_resume() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let mut faults = vec![Fault::OtherLength(5500), Fault::OtherLength(5500), Fault::CutAfter(300)];
    faults.extend(vec![Fault::Status(503, "x", ""); 100]);
    let config = serde_json::json!({"source": server.serve("/a.bin", content(5500), &faults)});
    server.mark("/a.bin", None, MONDAY);
    run(&root.path().join("work"), &config).error();
    let before = server.seen("/a.bin").len();
    server.serve("/a.bin", content(5500), &[]);
    server.mark("/a.bin", None, MONDAY);
    let out = run(&root.path().join("work"), &config).done();
    assert!(std::fs::read(out.join("a.bin")).unwrap() == content(5500));
    let again: u64 = server.seen("/a.bin")[before..].iter().map(|seen| requested(&seen.headers["range"])).sum();
    assert!(again < 5500, "{again}");
}

#[test]
fn the_chunks_of_one_run_belong_to_one_content() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    for (name, etag, modified, other) in [
        ("tag", Some("\"1\""), None, Fault::OtherContent(Some("\"2\""), None)),
        ("date", None, MONDAY, Fault::OtherContent(None, TUESDAY)),
        ("no_date", None, MONDAY, Fault::OtherContent(None, None)),
    ] {
        let (path, plain) = (format!("/{name}"), Fault::OtherLength(5500));
        let source = server.serve(&path, content(5500), &[plain.clone(), plain.clone(), plain, other]);
        server.mark(&path, etag, modified);
        let config = serde_json::json!({"source": source});
        let error = run(&root.path().join(name), &config).error();
        assert!(error.to_string().contains("changed during the download"), "{name}: {error}");
        let out = run(&root.path().join(name), &config).done();
        assert!(std::fs::read(out.join(name)).unwrap() == content(5500), "{name}");
    }
}

#[test]
fn errors_say_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    for (number, (fault, words, help)) in [
        (Fault::Status(404, "x", ""), "no such file", "may have moved"),
        (Fault::Status(403, "x", ""), "access denied", "ask the owner"),
        (Fault::Status(401, "x", ""), "is private", "set HF_TOKEN"),
        (Fault::Status(403, "x-error-code", "GatedRepo"), "is gated", "accept the licence at http"),
        (Fault::Status(429, "retry-after", "0"), "gave up after 4 attempts", "is kept"),
        (Fault::OtherBytes, "its SHA-256 is", "run the same command again"),
        (Fault::CutAfter(0), "was lost", "is kept"),
    ]
    .into_iter()
    .enumerate()
    {
        let source = server.serve_always(&format!("/{number}"), content(1500), fault);
        let config = serde_json::json!({"source": source, "sha256": sha256(&content(1500))});
        let work = root.path().join(number.to_string());
        let error = run(&work, &config).error();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.help().unwrap().contains(help), "{:?}", error.help());
        server.serve(&format!("/{number}"), content(1500), &[]);
        run(&work, &config).done();
    }
    let error = run(&root.path().join("gone"), &serde_json::json!({"source": "http://127.0.0.1:1/a"})).error();
    assert!(error.to_string().contains("127.0.0.1:1 can't be reached"), "{error}");
}

pub(in crate::download) fn zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub(in crate::download) fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        // `set_path` would refuse hostile names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(in crate::download) fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn archives_become_folders() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let large = content(9000);
    let entries: &[(&str, &[u8])] = &[("train/a.txt", b"a"), ("train/deep/b.bin", &large), ("c", b"")];
    let zst = zstd::encode_all(tar(entries).as_slice(), 3).unwrap();
    for (name, bytes) in [
        ("x.zip", zip(entries)),
        ("x.tar", tar(entries)),
        ("x.tar.gz", gz(&tar(entries))),
        ("x.TGZ", gz(&tar(entries))),
        ("x.tar.zst", zst),
    ] {
        let source = server.serve(&format!("/{name}"), bytes.clone(), &[]);
        let out = run(&root.path().join(name), &serde_json::json!({"source": source, "into": "coco"})).done();
        let files: Vec<_> = tree(&out).into_iter().map(|(path, bytes)| (path.display().to_string(), bytes)).collect();
        let wanted =
            [("coco/c", vec![]), ("coco/train/a.txt", b"a".to_vec()), ("coco/train/deep/b.bin", large.clone())];
        assert_eq!(files, wanted.map(|(name, bytes)| (name.to_string(), bytes)));
        let kept =
            run(&root.path().join(format!("{name}-kept")), &serde_json::json!({"source": source, "unpack": false}));
        assert_eq!(std::fs::read(kept.done().join(name)).unwrap(), bytes);
    }
}

#[test]
fn hostile_and_damaged_archives_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::start();
    let bomb = gz(&tar(&[("zeros", &vec![0; 70 << 20])]));
    assert!(bomb.len() * 200 < 64 << 20, "the bomb must be small");
    let mut cut = zip(&[("a", &content(9000))]);
    cut.truncate(cut.len() / 2);
    for (number, (name, bytes, words)) in [
        ("a.zip", zip(&[("../evil", b"x")]), "`../evil` would lie outside"),
        ("a.tar", tar(&[("ok/../../evil", b"x")]), "would lie outside"),
        ("a.tar", tar(&[("/etc/evil", b"x")]), "would lie outside"),
        ("a.tar.gz", bomb, "may be a zip bomb"),
        ("a.zip", cut, "can't unpack"),
        ("a.tar.zst", b"nothing".to_vec(), "can't unpack"),
        ("a.zip", zip(&[]), "contains no files"),
    ]
    .into_iter()
    .enumerate()
    {
        let source = server.serve(&format!("/{number}/{name}"), bytes, &[]);
        let work = root.path().join(number.to_string());
        let error = run(&work, &serde_json::json!({"source": source})).error();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!root.path().join("evil").exists() && !work.join("evil").exists());
    }
}
