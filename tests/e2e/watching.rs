//! `imp-flow watch`: the page of a run that goes on, over HTTP on this machine. `.ci/page` looks at it in a browser.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, ChildStdout, Stdio},
};

use serde_json::{Value, json};

use crate::{
    interrupt::{signal, wait_for},
    support::Space,
};

/// `slow` runs for as long as a test looks at it.
const SLOW: &str = r#"
name = "slow"
[stages.first]
kind = "synthetic"
[stages.long]
kind = "synthetic"
after = "first"
steps = 600
step_ms = 100
"#;

/// A running `imp-flow watch`. It is killed after the test.
struct Watch {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Watch {
    fn start(space: &Space, args: &[&str]) -> Self {
        let mut command = space.command(&[&["watch", "--json"], args].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Self { child, said }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Host and port, and the path with the token.
fn parts(said: &Value) -> (String, String) {
    let (address, path) = said["url"].as_str().unwrap().strip_prefix("http://").unwrap().split_once('/').unwrap();
    (address.into(), format!("/{path}"))
}

/// Status, head and body of an answer.
fn ask(address: &str, request: &str, headers: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let host = if headers.contains("Host:") { String::new() } else { format!("Host: {address}\r\n") };
    stream.write_all(format!("{request} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_ascii_lowercase(), body.into())
}

fn stage<'a>(data: &'a Value, name: &str) -> &'a Value {
    data["runs"][0]["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).unwrap()
}

#[test]
fn a_run_is_watched_until_its_end_and_after_it() {
    let space = Space::new();
    space.write("p.toml", SLOW);
    // Before the first run there is nothing to show yet.
    let mut watch = Watch::start(&space, &["p.toml"]);
    let mut run = space.start(&["run", "p.toml"]);
    let said = watch.next();
    assert_eq!((&said["event"], &said["state"]), (&json!("watching"), &json!("running")));
    let (address, path) = parts(&said);
    assert!(address.starts_with("127.0.0.1:") && path.len() == 34, "{said}");

    let (status, head, html) = ask(&address, &format!("GET {path}"), "");
    assert_eq!(status, 200);
    assert!(head.contains("cache-control: no-store") && head.contains("frame-ancestors 'none'"), "{head}");
    assert!(html.starts_with("<!doctype html>") && html.contains("connect-src 'self'"));

    // The data change while the stage goes on, and have a name by which a browser knows them.
    let data = || {
        let (status, head, body) = ask(&address, &format!("GET {path}data"), "");
        assert_eq!(status, 200);
        let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_string();
        (tag, serde_json::from_str::<Value>(&body).unwrap())
    };
    let done = |data: &Value| stage(data, "long")["progress"]["done"].as_u64();
    let early = wait_for("the first steps", || done(&data().1).filter(|done| *done > 0));
    let later = wait_for("further steps", || Some(data()).filter(|(_, data)| done(data) > Some(early)));
    assert_eq!(stage(&later.1, "long")["state"], "running");
    let known = wait_for("data that the browser has", || {
        let (tag, _) = data();
        let (status, _, body) = ask(&address, &format!("GET {path}data"), &format!("If-None-Match: {tag}\r\n"));
        (status == 304).then_some(body)
    });
    assert_eq!(known, "");

    // The run ends, and its page stays.
    signal("INT", run.id());
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let ended = watch.next();
    assert_eq!((&ended["event"], &ended["state"]), (&json!("run"), &json!("interrupted")));
    wait_for("the end", || (stage(&data().1, "long")["state"] == "stopped").then_some(()));
    signal("INT", watch.child.id());
    assert_eq!(watch.child.wait().unwrap().code(), Some(0));
}

#[test]
fn only_who_has_the_token_reads_and_nobody_writes() {
    let space = Space::new();
    space.write("p.toml", SLOW.replace("600", "1"));
    space.succeed(&["run", "p.toml"]);
    let mut watch = Watch::start(&space, &[]);
    let said = watch.next();
    assert_eq!(said["state"], "done");
    let (address, path) = parts(&said);
    let status = |request: &str, headers: &str| ask(&address, request, headers).0;
    let get = format!("GET {path}");

    let wrong = path.replace(|c: char| c.is_ascii_digit(), "f");
    let refused = ["GET /".into(), "GET /data".into(), "GET //data".into(), format!("GET {wrong}data")];
    for request in refused.iter().map(String::as_str).chain([&*format!("GET {}/data", &path[..20])]) {
        let (status, _, body) = ask(&address, request, "");
        assert!(status == 404 && !body.contains("slow") && !body.contains(&path[1..33]), "{request}: {status} {body}");
    }
    assert_eq!(status(&format!("GET {path}../../p.toml"), ""), 404);
    // A name that a stranger's page leads here.
    assert_eq!(status(&get, "Host: attacker.example\r\n"), 403);
    assert_eq!(status(&format!("GET {path}data"), "Host: 127.0.0.1.attacker.example\r\n"), 403);
    assert_eq!(status(&get, "Host: localhost:1\r\n"), 200);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"] {
        assert_eq!(status(&format!("{method} {path}data"), ""), 405, "{method}");
    }
    let (moved, head, _) = ask(&address, &format!("GET {}", path.trim_end_matches('/')), "");
    assert!(moved == 308 && head.contains(&format!("location: {path}")), "{head}");

    let refused = space.run(&["watch", "other"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("there is no run `other`"), "{}", refused.stderr);
}
