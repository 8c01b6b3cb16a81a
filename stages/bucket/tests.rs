//! A bucket on a server that checks signatures and misbehaves.
#![allow(clippy::unwrap_used)]

use rusty_s3::{Bucket as Signed, Credentials, S3Action, UrlStyle};

use super::{
    server::{Fault, Request, Server},
    *,
};

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "a secret/of+40=characters";

/// The objects below `data/some prefix` of a server that checks signatures.
fn bucket() -> (Server, Bucket) {
    let server = Server::start();
    let endpoint = server.address.clone();
    server.check(move |request| is_signed(&endpoint, request));
    (server.clone(), open(&server, SECRET, Duration::from_mins(1)))
}

fn open(server: &Server, secret: &str, patience: Duration) -> Bucket {
    let source = S3Source::parse("data/some prefix").unwrap();
    let store = Store::of(&source, |name| match name {
        "AWS_ENDPOINT_URL" => Some(server.address.clone()),
        "AWS_ACCESS_KEY_ID" => Some(KEY.into()),
        "AWS_SECRET_ACCESS_KEY" => Some(secret.into()),
        _ => None,
    });
    let policy = Policy {
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(1),
        longest_wait: Duration::from_millis(1),
        patience,
        timeout: 2 * patience,
        attempts: ATTEMPTS,
        ..Policy::default()
    };
    Bucket::with(source, store.unwrap(), policy, Arc::default())
}

/// Signs the request again, at the time that it names.
fn is_signed(endpoint: &str, request: &Request) -> bool {
    let Some(date) = request.query("X-Amz-Date") else { return false };
    let at =
        format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..8], &date[9..11], &date[11..13], &date[13..15]);
    let (at, lasts) = (at.parse().unwrap(), Duration::from_hours(1));
    let credentials = Credentials::new(KEY, SECRET);
    let (bucket, some) =
        (Signed::new(endpoint.parse().unwrap(), UrlStyle::Path, "data", "us-east-1").unwrap(), Some(&credentials));
    let key = request.path().strip_prefix("data/").unwrap_or_default().replace("%20", " ");
    let upload = request.query("uploadId").unwrap_or_default();
    let part = request.query("partNumber").and_then(|part| part.parse().ok());
    let url = match (request.method.as_str(), part) {
        ("GET", _) if request.query("list-type").is_some() => {
            let mut list = bucket.list_objects_v2(some);
            list.with_prefix(request.query("prefix").unwrap());
            if let Some(after) = request.query("continuation-token") {
                list.with_continuation_token(after);
            }
            list.sign_with_time(lasts, &at)
        }
        ("GET", _) => bucket.get_object(some, &key).sign_with_time(lasts, &at),
        ("HEAD", _) => bucket.head_object(some, &key).sign_with_time(lasts, &at),
        ("DELETE", _) => bucket.delete_object(some, &key).sign_with_time(lasts, &at),
        ("PUT", Some(part)) => bucket.upload_part(some, &key, part, &upload).sign_with_time(lasts, &at),
        ("PUT", None) => bucket.put_object(some, &key).sign_with_time(lasts, &at),
        _ if request.query("uploads").is_some() => {
            bucket.create_multipart_upload(some, &key).sign_with_time(lasts, &at)
        }
        _ => bucket.complete_multipart_upload(some, &key, &upload, std::iter::empty()).sign_with_time(lasts, &at),
    };
    url.as_str().ends_with(&request.target)
}

fn all(bucket: &Bucket, name: &str, from: u64) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    bucket.read(name, from).unwrap()?.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn objects_are_written_read_listed_and_removed() {
    let (server, bucket) = bucket();
    assert!(bucket.write("a/b", b"first", true).unwrap());
    assert!(!bucket.write("a/b", b"second", true).unwrap(), "it is there");
    assert!(bucket.write("a/c", b"third", false).unwrap() && bucket.write("a/c", b"3", false).unwrap());
    assert_eq!(server.get("some prefix/a/b").as_deref(), Some(&b"first"[..]));
    assert_eq!((bucket.size("a/b").unwrap(), bucket.size("a").unwrap()), (Some(5), None));
    assert_eq!(all(&bucket, "a/b", 0).as_deref(), Some(&b"first"[..]));
    assert_eq!(all(&bucket, "a/b", 2).as_deref(), Some(&b"rst"[..]));
    assert_eq!(all(&bucket, "a/b", 5).as_deref(), Some(&b""[..]), "there is nothing from there on");
    assert_eq!(all(&bucket, "a/x", 0), None);
    for number in 0..5 {
        bucket.write(&format!("many/{number}"), b"x", false).unwrap();
    }
    server.put("some prefix/manyfold", b"x");
    let mut names = Vec::new();
    bucket.list("many", &mut |listed| names.push((listed.name, listed.size, listed.modified.is_some()))).unwrap();
    let expected: Vec<_> = (0..5).map(|number| (format!("many/{number}"), 1, true)).collect();
    assert_eq!(names, expected, "in pages");
    bucket.remove("a/b").unwrap();
    bucket.remove("a/b").unwrap();
    assert_eq!(bucket.size("a/b").unwrap(), None);
}

#[test]
fn a_large_file_is_sent_in_parts() {
    let (server, bucket) = bucket();
    let folder = tempfile::tempdir().unwrap();
    let (file, sent) = (folder.path().join("file"), Arc::new(AtomicU64::new(0)));
    let mut content: Vec<u8> = vec![0; PART as usize + 3];
    content[PART as usize] = 7;
    std::fs::write(&file, &content).unwrap();
    bucket.write_file("large", &file, content.len() as u64, &sent).unwrap();
    assert!(server.get("some prefix/large").unwrap() == content);
    assert_eq!(sent.load(Relaxed), content.len() as u64);
    // Asked again, the server knows no such upload any more.
    server.misbehave(Fault::LostAnswer, "");
    bucket.write_file("again", &file, content.len() as u64, &sent).unwrap();
    assert!(server.get("some prefix/again").unwrap() == content);
    server.behave();
    bucket.write_file("small", &file, 10, &sent).unwrap();
    assert_eq!(server.get("some prefix/small").unwrap(), [0; 10]);
}

#[test]
fn what_passes_is_tried_again_and_what_lasts_is_said() {
    let (server, bucket) = bucket();
    server.put("some prefix/a", &[5; 1000]);
    let error = |result: Result<Option<u64>, StageError>| result.unwrap_err().to_string();
    server.misbehave(Fault::Status(503), "");
    let words = error(bucket.size("a"));
    assert!(words.contains("gave up after 3 attempts") && words.contains("503"), "{words}");
    assert_eq!(server.seen().len(), 3);
    server.misbehave(Fault::Silent, "");
    let words = error(open(&server, SECRET, Duration::from_millis(100)).size("a"));
    assert!(words.contains("does not answer"), "{words}");
    server.misbehave(Fault::NoConditions, "");
    assert!(bucket.write("new", b"x", true).unwrap() && !bucket.write("new", b"y", true).unwrap());
    assert_eq!(server.get("some prefix/new").unwrap(), b"x");
    server.misbehave(Fault::ReadOnly, "");
    let words = bucket.write("b", b"x", false).unwrap_err().to_string();
    assert!(words.contains("access denied (AccessDenied)"), "{words}");
    assert!(!words.contains("X-Amz"), "{words}");
    server.misbehave(Fault::Cut, "");
    let mut bytes = Vec::new();
    bucket.read("a", 0).unwrap().unwrap().read_to_end(&mut bytes).unwrap_err();
    assert_eq!(bytes, [5; 500], "what came before the cut is not lost");
    server.behave();
    let other = open(&server, "another", Duration::from_mins(1));
    assert!(error(other.size("a")).contains("access denied"), "a HEAD says no more");
    let words = other.read("a", 0).err().unwrap().to_string();
    assert!(words.contains("the server rejected the signature"), "{words}");
}

#[test]
fn who_wants_to_stop_waits_for_no_server() {
    let (server, bucket) = bucket();
    server.misbehave(Fault::Silent, "");
    bucket.waiting.stop.store(true, Relaxed);
    assert!(matches!(bucket.size("a"), Err(StageError::Cancelled)));
}
