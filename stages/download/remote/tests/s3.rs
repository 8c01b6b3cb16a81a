//! Downloads from an object store that checks signatures, lists objects in pages and refuses requests like S3.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    sync::{Arc, Mutex},
};

use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};

use super::*;

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "a secret/of+40=characters";

fn named(source: &str) -> S3Source {
    S3Source::parse(source.strip_prefix("s3://").unwrap()).unwrap()
}

/// Downloads `source` in an environment of `NAME=VALUE` lines.
pub(super) fn download(
    job: &Job,
    variables: &str,
    source: &str,
    config: &DownloadConfig,
    policy: &Policy,
) -> Result<(), StageError> {
    let source = named(source);
    let variables = environment(variables);
    let store = Store::of(&source, |name| variables.get(name).map(ToString::to_string))?;
    objects(job, &source, &store, config, policy)
}

/// Variables that give access to `server`.
fn access_to(server: &Server) -> String {
    format!("AWS_ENDPOINT_URL={}\nAWS_ACCESS_KEY_ID={KEY}\nAWS_SECRET_ACCESS_KEY={SECRET}\n", server.address)
}

fn fetch(work: &Path, variables: &str, source: &str, more: &serde_json::Value) -> Outcome {
    let mut config = serde_json::json!({"source": format!("s3|{variables}|{source}")});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    run(work, &config)
}

/// Who may read the bucket `data`.
#[derive(Clone, Copy)]
enum Readers {
    Anyone,
    /// Clients that sign with `KEY` and `SECRET`, and with this token, if any.
    Signed(Option<&'static str>),
}

/// Key -> size and `ETag`, as the store lists them.
type Objects = Arc<Mutex<BTreeMap<String, (usize, String)>>>;

/// A store with the bucket `data`.
fn store(objects: &[(&str, Vec<u8>)], readers: Readers) -> (Server, Objects) {
    let server = Server::start();
    let mut listed = BTreeMap::new();
    for (key, content) in objects {
        let path = path_of(key);
        server.serve(&path, content.clone(), &[]);
        listed.insert((*key).to_string(), (content.len(), format!("\"{path}\"")));
    }
    let (listed, endpoint) = (Arc::new(Mutex::new(listed)), server.address.clone());
    let objects = listed.clone();
    server.guard(move |target| {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if !path.starts_with("/data/") {
            return Some(error(404, "NoSuchBucket"));
        }
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let query: BTreeMap<_, _> = pairs.map(|(name, value)| (name.to_string(), unescape(value))).collect();
        let refused = match readers {
            Readers::Signed(token) => check(&endpoint, target, &query, token).err(),
            Readers::Anyone => query.contains_key("X-Amz-Signature").then_some("AccessDenied"),
        };
        if let Some(code) = refused {
            return Some(error(403, code));
        }
        let listed = listed.lock().unwrap();
        match query.get("list-type") {
            Some(_) => Some((200, page(&listed, &query))),
            None => (!listed.keys().any(|key| path_of(key) == path)).then(|| error(404, "NoSuchKey")),
        }
    });
    (server, objects)
}

fn path_of(key: &str) -> String {
    format!("/data/{}", key.replace(' ', "%20").replace('+', "%2B"))
}

fn error(status: u16, code: &str) -> (u16, String) {
    (status, format!("<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>No</Message></Error>"))
}

fn unescape(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            plain.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8(plain).unwrap()
}

/// Verifies the request's signature by signing it again, at the time that it names.
fn check(
    endpoint: &str,
    target: &str,
    query: &BTreeMap<String, String>,
    token: Option<&str>,
) -> Result<(), &'static str> {
    let credential = query.get("X-Amz-Credential").ok_or("AccessDenied")?;
    let scope: Vec<&str> = credential.split('/').collect();
    if scope[0] != KEY {
        return Err("InvalidAccessKeyId");
    }
    if query.get("X-Amz-Security-Token").map(String::as_str) != token {
        return Err("InvalidToken");
    }
    let bucket = Bucket::new(endpoint.parse().unwrap(), UrlStyle::Path, "data", scope[2].to_string()).unwrap();
    let credentials = match token {
        Some(token) => Credentials::new_with_token(KEY, SECRET, token),
        None => Credentials::new(KEY, SECRET),
    };
    let date = &query["X-Amz-Date"];
    let at =
        format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..8], &date[9..11], &date[11..13], &date[13..15]);
    let (at, lasts) = (at.parse().unwrap(), Duration::from_secs(query["X-Amz-Expires"].parse().unwrap()));
    let key = unescape(target["/data/".len()..].split('?').next().unwrap());
    let again = if query.contains_key("list-type") {
        let mut list = bucket.list_objects_v2(Some(&credentials));
        list.with_prefix(query["prefix"].clone());
        if let Some(after) = query.get("continuation-token") {
            list.with_continuation_token(after.clone());
        }
        list.sign_with_time(lasts, &at)
    } else {
        bucket.get_object(Some(&credentials), &key).sign_with_time(lasts, &at)
    };
    if again.as_str().ends_with(target) { Ok(()) } else { Err("SignatureDoesNotMatch") }
}

/// A page of the list: two objects, and the token of the next page.
fn page(objects: &BTreeMap<String, (usize, String)>, query: &BTreeMap<String, String>) -> String {
    let after = query.get("continuation-token").cloned().unwrap_or_default();
    let wanted = |key: &&String| key.starts_with(&query["prefix"]) && **key > after;
    let mut keys = objects.keys().filter(wanted).peekable();
    let mut xml = String::from("<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
    let mut last = "";
    for key in keys.by_ref().take(2) {
        let (size, etag) = &objects[key];
        write!(xml, "<Contents><Key>{key}</Key><ETag>{etag}</ETag><Size>{size}</Size></Contents>").unwrap();
        last = key;
    }
    let more = keys.peek().is_some();
    write!(xml, "<IsTruncated>{more}</IsTruncated><NextContinuationToken>{last}</NextContinuationToken>").unwrap();
    xml + "</ListBucketResult>"
}

fn nothing() -> serde_json::Value {
    serde_json::json!({})
}

#[test]
fn a_folder_of_objects_is_listed_in_pages_and_downloaded() {
    let root = tempfile::tempdir().unwrap();
    let objects: &[(&str, Vec<u8>)] = &[
        ("set-2/no", content(5)),
        ("set/a.json", b"{}".to_vec()),
        ("set/deep/", Vec::new()),
        ("set/deep/b c+d.bin", content(4321)),
        ("set/empty", Vec::new()),
        ("set/z.txt", content(999)),
    ];
    let arrived = |out: &Path| -> Vec<_> {
        tree(out).into_iter().map(|(path, bytes)| (path.display().to_string(), bytes)).collect()
    };
    for (work, token) in [("keys", None), ("token", Some("a/session+token=="))] {
        let (server, _) = store(objects, Readers::Signed(token));
        let session = token.map(|token| format!("AWS_SESSION_TOKEN={token}\nAWS_REGION=eu-west-1\n"));
        let variables = access_to(&server) + &session.unwrap_or_default();
        let out = fetch(&root.path().join(work), &variables, "s3://data/set", &nothing()).done();
        let names: Vec<String> = arrived(&out).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a.json", "deep/b c+d.bin", "empty", "z.txt"]);
    }
    let (server, _) = store(objects, Readers::Anyone);
    let variables = format!("AWS_ENDPOINT_URL_S3={}\nAWS_ENDPOINT_URL=nowhere", server.address);
    let wanted = serde_json::json!({"files": ["*.json", "deep/*"], "into": "x"});
    let out = fetch(&root.path().join("open"), &variables, "s3://data/set/", &wanted).done();
    let expected = [("x/a.json", b"{}".to_vec()), ("x/deep/b c+d.bin", content(4321))];
    assert_eq!(arrived(&out), expected.map(|(name, bytes)| (name.to_string(), bytes)));
    assert!(server.seen("/data/set/deep/b%20c%2Bd.bin").len() >= 5, "in chunks");
}

#[test]
fn an_object_is_downloaded_verified_and_unpacked() {
    let root = tempfile::tempdir().unwrap();
    let archive = tar(&[("inside", b"x")]);
    let (server, _) = store(&[("a.tar", archive.clone()), ("a.tar.md5", content(3))], Readers::Signed(None));
    let variables = access_to(&server);
    let hash = serde_json::json!({"sha256": sha256(&archive)});
    let out = fetch(&root.path().join("work"), &variables, "s3://data/a.tar", &hash).done();
    assert_eq!(std::fs::read(out.join("inside")).unwrap(), b"x");
    let hash = serde_json::json!({"sha256": sha256(b"other")});
    let error = fetch(&root.path().join("other"), &variables, "s3://data/a.tar", &hash).error();
    assert!(error.to_string().starts_with("s3://data/a.tar: its SHA-256 is"), "{error}");
}

#[test]
fn an_object_that_changed_is_not_mixed_with_its_old_content() {
    let root = tempfile::tempdir().unwrap();
    let (server, objects) = store(&[("set/a", content(5500)), ("set/b", content(900))], Readers::Signed(None));
    let mut faults = vec![Fault::CutAfter(300)];
    faults.extend(vec![Fault::Status(503, "x", ""); 100]);
    server.serve("/data/set/b", content(900), &faults);
    let (work, variables) = (root.path().join("work"), access_to(&server));
    let error = fetch(&work, &variables, "s3://data/set", &nothing()).error();
    assert!(error.help().unwrap().contains("is kept"), "{error}");
    let kept = tree(&work.join("checkpoint"));
    assert!(kept.values().any(|bytes| bytes.len() == 300), "a part of `b`");
    let secret = kept.values().any(|bytes| String::from_utf8_lossy(bytes).contains("X-Amz"));
    assert!(!secret, "no signature may be written to disk");
    server.change("/data/set/b", vec![7; 900]);
    objects.lock().unwrap().insert("set/b".into(), (900, "\"changed\"".into()));
    let before = server.seen("/data/set/a").len();
    let out = fetch(&work, &variables, "s3://data/set", &nothing()).done();
    assert!(std::fs::read(out.join("a")).unwrap() == content(5500));
    assert!(std::fs::read(out.join("b")).unwrap() == vec![7; 900]);
    assert!(server.seen("/data/set/a").len() - before < 6, "the other object's data is kept");
}

#[test]
fn a_refusal_by_the_store_says_what_to_do() {
    let root = tempfile::tempdir().unwrap();
    let (server, _) = store(
        &[("set/a", content(10)), ("set/b", content(10)), ("odd/../x", Vec::new()), ("far", content(10))],
        Readers::Signed(None),
    );
    server.serve_always("/data/far", content(10), Fault::Status(301, "x-amz-bucket-region", "eu-west-1"));
    let right = access_to(&server);
    let with = |from: &str, to: &str| right.replace(from, to);
    let endpoint = format!("AWS_ENDPOINT_URL={}", server.address);
    let hash = serde_json::json!({"sha256": sha256(b"")});
    let pattern = serde_json::json!({"files": ["*.json"]});
    for (number, (variables, source, more, words, help)) in [
        (endpoint, "s3://data/set", nothing(), "without credentials denied (AccessDenied)", "AWS_SECRET_ACCESS_KEY"),
        (with(SECRET, "other"), "s3://data/set", nothing(), "signature", "correct AWS_SECRET_ACCESS_KEY"),
        (with(KEY, "other"), "s3://data/set", nothing(), "access key", "correct AWS_ACCESS_KEY_ID"),
        (right.clone() + "AWS_SESSION_TOKEN=old", "s3://data/set", nothing(), "session token", "AWS_SESSION_TOKEN"),
        (with("AWS_SECRET_ACCESS_KEY", "X"), "s3://data/set", nothing(), "only one of", "set both"),
        (right.clone(), "s3://other/set", nothing(), "there is no bucket `other`", "check `source`"),
        (
            right.clone(),
            "s3://data/se",
            nothing(),
            "no object s3://data/se, and none below s3://data/se/",
            "check `source`",
        ),
        (right.clone(), "s3://data/no/", nothing(), "no object below s3://data/no/", "check `source`"),
        (right.clone(), "s3://data/odd", nothing(), "s3://data/odd/../x can't be a file", "rename"),
        (right.clone(), "s3://data/far", nothing(), "another region", "set AWS_REGION to `eu-west-1`"),
        (right.clone(), "s3://data/set", hash, "holds 2 objects", "remove `sha256`"),
        (right.clone(), "s3://data/set", pattern, "`*.json` in `files` matches no file", "it has: a, b"),
        (
            "AWS_ENDPOINT_URL=minio:9000".into(),
            "s3://data/set",
            nothing(),
            "minio:9000 is not a valid S3 endpoint",
            "such as `https",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let error = fetch(&root.path().join(number.to_string()), &variables, source, &more).error();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.help().unwrap().contains(help), "{words}: {:?}", error.help());
        assert!(!error.to_string().contains("X-Amz"), "{error}");
    }
}

#[test]
fn addresses_of_aws_buckets_follow_from_name_and_region() {
    let address = |variables: &[(&str, &str)], source: &str| {
        let source = named(source);
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        Store::of(&source, variable).unwrap().address(&source.to_string(), &crate::net::order::Order::Get)
    };
    assert_eq!(address(&[], "s3://data/a b"), "https://data.s3.us-east-1.amazonaws.com/a%20b");
    assert_eq!(address(&[("AWS_REGION", "eu-west-1")], "s3://d.ata/a"), "https://s3.eu-west-1.amazonaws.com/d.ata/a");
    let signed = address(&[("AWS_ACCESS_KEY_ID", "k"), ("AWS_SECRET_ACCESS_KEY", "s")], "s3://data/a");
    assert!(signed.starts_with("https://data.s3.us-east-1.amazonaws.com/a?X-Amz-Algorithm=AWS4"), "{signed}");
}

#[test]
fn the_environment_goes_before_a_profile_and_is_not_mixed_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        fs::write(folder.path().join(name), text).unwrap();
        folder.path().join(name).display().to_string()
    };
    let files = [
        ("AWS_CONFIG_FILE", file("config", "[default]\nregion = us-west-2\n")),
        (
            "AWS_SHARED_CREDENTIALS_FILE",
            file("credentials", "[default]\naws_access_key_id = MINE\naws_secret_access_key = s\n"),
        ),
    ];
    let address = |more: &[(&str, &str)]| {
        let variable = |name: &str| {
            let more = more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_string());
            more.or_else(|| files.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()))
        };
        let source = named("s3://data/a");
        let store = Store::of_machine(&source, variable).unwrap();
        store.address(&source.to_string(), &crate::net::order::Order::Get)
    };
    let profile = address(&[]);
    assert!(profile.contains("us-west-2") && profile.contains("Credential=MINE"), "{profile}");
    for name in ["AWS_REGION", "AWS_DEFAULT_REGION"] {
        let other = address(&[(name, "eu-central-1")]);
        assert!(other.starts_with("https://data.s3.eu-central-1.") && other.contains("Credential=MINE"), "{other}");
    }
    let stale = address(&[("AWS_SESSION_TOKEN", "of other keys")]);
    assert!(stale.contains("Credential=MINE") && !stale.contains("Token"), "{stale}");
    let empty = address(&[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", " "), ("AWS_REGION", "")]);
    assert!(empty.contains("us-west-2") && empty.contains("Credential=MINE"), "{empty}");
    let own = address(&[("AWS_ACCESS_KEY_ID", "OTHER"), ("AWS_SECRET_ACCESS_KEY", "t"), ("AWS_SESSION_TOKEN", "u")]);
    assert!(own.contains("Credential=OTHER") && own.contains("X-Amz-Security-Token=u"), "{own}");
}
