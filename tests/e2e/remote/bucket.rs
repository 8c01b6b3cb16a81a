//! The same in a bucket, on a server that misbehaves.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Stdio},
};

use super::{
    ALL, Lab, events,
    server::{Fault, Server},
    warnings,
};
use crate::support::{Space, files};

fn lab() -> (Lab, Server) {
    let server = Server::start();
    let variables = vec![
        ("AWS_ENDPOINT_URL_S3", server.address.clone()),
        ("AWS_ACCESS_KEY_ID", "key".to_string()),
        ("AWS_SECRET_ACCESS_KEY", "secret".to_string()),
    ];
    (Lab::of(Space::new(), "s3://data/some/prefix", variables), server)
}

/// How many requests there were for receipts.
fn questions(server: &Server) -> usize {
    server.seen().iter().filter(|request| request.path().contains("/receipts/") && request.method == "GET").count()
}

#[test]
fn what_one_machine_made_another_takes_from_the_bucket() {
    let (lab, server) = lab();
    let (made, output) = lab.ran("one");
    assert_eq!((made, warnings(&output)), (ALL.map(String::from).to_vec(), Vec::new()));
    assert!(server.keys().iter().all(|key| key.starts_with("some/prefix/")));
    // The receipt is the last that is sent of each result.
    let sent: Vec<String> = server
        .seen()
        .iter()
        .filter(|request| request.method == "PUT")
        .map(|request| request.path().to_string())
        .collect();
    assert!(sent.iter().position(|path| path.contains("/receipts/")).unwrap() > 2, "{sent:?}");
    let (made, output) = lab.ran("two");
    assert!(made.is_empty() && warnings(&output).is_empty(), "{:?}", warnings(&output));
    assert_eq!(questions(&server), 8, "each result is asked for once by each machine");
    let before = server.seen().len();
    assert!(lab.ran("two").0.is_empty());
    assert_eq!(server.seen().len(), before, "what is here is not asked for");
}

#[test]
fn a_server_that_fails_is_left_alone() {
    for (fault, words) in [
        (Fault::Status(500), "answered 500"),
        (Fault::Status(503), "answered 503"),
        (Fault::Status(403), "access denied"),
        (Fault::Skewed, "this machine's clock differs from the server's"),
        (Fault::Silent, "does not answer"),
    ] {
        let (lab, server) = lab();
        lab.settings("two", "remote = \"s3://data/some/prefix\"\nremote_seconds = 0.2\n");
        lab.ran("one");
        server.misbehave(fault, "");
        let before = server.seen().len();
        let (made, output) = lab.ran("two");
        let warnings = warnings(&output);
        assert_eq!((made, warnings.len()), (ALL.map(String::from).to_vec(), 1), "{warnings:?}");
        assert!(warnings[0].contains(words) && warnings[0].contains("goes on without it"), "{warnings:?}");
        assert!(server.seen().len() - before <= 3, "{words}: {}", server.seen().len() - before);
        assert_eq!(events(&output, "remote")[0]["unsent"], 4);
        server.behave();
        let (made, output) = lab.ran("two");
        // The other machine had pushed the same.
        assert!(made.is_empty() && events(&output, "remote").is_empty(), "{words}");
        assert!(files(&lab.space.path("two/cache/unsent")).is_empty());
    }
}

#[test]
fn a_server_that_lies_is_found_out() {
    let (lab, server) = lab();
    lab.ran("one");
    server.misbehave(Fault::WrongBytes, "/objects/");
    let (made, output) = lab.ran("two");
    assert_eq!(made, ALL);
    let warnings = warnings(&output);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("can't be used") && warnings[0].contains("not taken from there"), "{warnings:?}");
    assert!(lab.succeed("two", &["cache", "verify"]).stdout.starts_with("OK"));
}

#[test]
fn a_connection_that_breaks_is_taken_up_where_it_broke() {
    let (lab, server) = lab();
    lab.ran("one");
    server.misbehave(Fault::CutOnce, "/objects/");
    let before = server.seen().len();
    let (made, output) = lab.ran("two");
    assert!(made.is_empty() && warnings(&output).is_empty(), "{:?}", warnings(&output));
    assert!(server.seen()[before..].iter().any(|request| request.header("range").is_some()));
    // One that breaks each time before much has come is given up.
    lab.forget("two");
    server.misbehave(Fault::Cut, "/objects/");
    let (_, output) = lab.ran("two");
    assert_eq!(warnings(&output).len(), 1, "{:?}", warnings(&output));
}

#[test]
fn who_may_not_write_is_told_once_and_keeps_the_results() {
    for (fault, words) in [(Fault::ReadOnly, "access denied"), (Fault::CutSending, "can't be reached")] {
        let (lab, server) = lab();
        lab.settings("one", "remote = \"s3://data/p\"\nremote_seconds = 0.5\n");
        server.put("p/imp-flow-cache.json", b"{\"imp-flow-cache\": 1}");
        server.misbehave(fault, "");
        let (made, output) = lab.ran("one");
        let warnings = warnings(&output);
        assert_eq!((made, warnings.len()), (ALL.map(String::from).to_vec(), 1), "{warnings:?}");
        assert!(warnings[0].contains(words), "{warnings:?}");
        assert_eq!(server.keys().len(), 1, "nothing half-written");
    }
}

#[test]
fn a_server_without_conditions_and_profiles_of_aws_will_do() {
    let (mut lab, server) = lab();
    server.misbehave(Fault::NoConditions, "");
    lab.variables.retain(|(name, _)| *name == "no");
    let profile =
        format!("[lab]\naws_access_key_id = key\naws_secret_access_key = secret\nendpoint_url = {}\n", server.address);
    lab.space.write("home/.aws/credentials", profile);
    lab.variables.push(("AWS_PROFILE", "lab".into()));
    lab.ran("one");
    let (made, output) = lab.ran("two");
    assert!(made.is_empty() && warnings(&output).is_empty());
    assert!(server.seen()[0].target.contains("X-Amz-Credential=key%2F"), "{}", server.seen()[0].target);
}

/// Presses Ctrl-C.
fn interrupt(run: &Child) {
    let signal = std::process::Command::new("kill").args(["-INT", &run.id().to_string()]).status().unwrap();
    assert!(signal.success());
}

/// All stages are done, and results are still being pushed.
#[test]
fn ctrl_c_ends_the_wait_and_the_next_run_pushes() {
    let (lab, server) = lab();
    server.put("some/prefix/imp-flow-cache.json", b"{\"imp-flow-cache\": 1}");
    server.misbehave(Fault::Silent, "/objects/");
    let mut run = lab.command("one", &["--json", "run", "p.toml"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("\"event\":\"sending\"")));
    interrupt(&run);
    let rest: Vec<String> = lines.collect();
    let exchange = rest.iter().find(|line| line.contains("\"event\":\"remote\"")).unwrap();
    assert!(exchange.contains("\"unsent\":4"), "{rest:?}");
    assert!(rest.last().unwrap().contains("\"ending\":\"done\""), "{rest:?}");
    assert_eq!(run.wait().unwrap().code(), Some(0));
    server.behave();
    let (made, output) = lab.ran("one");
    assert!(made.is_empty() && warnings(&output).is_empty());
    assert_eq!(events(&output, "remote")[0]["sent"], 4);
    // While a result is being pulled.
    server.misbehave(Fault::Silent, "/objects/");
    let before = server.seen().len();
    let mut run = lab.command("two", &["run", "p.toml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !server.seen()[before..].iter().any(|request| request.path().contains("/objects/")) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    interrupt(&run);
    assert_eq!(run.wait().unwrap().code(), Some(130));
    server.behave();
    assert!(lab.ran("two").0.is_empty());
}
