//! Downloads through a proxy, and hosts that can't be reached. The server is the proxy: it gets whole addresses.

use std::ffi::OsString;

use super::{super::server, *};
use crate::net::{http::Watch, proxy::Proxies};

/// `policy` with the proxies that `NAME=VALUE` lines name.
pub(super) fn policy(variables: &str, policy: &Policy) -> Result<Policy, StageError> {
    let variables = environment(variables);
    let proxies = Proxies::of(|name| variables.get(name).map(OsString::from))?;
    Ok(Policy { proxies, ..policy.clone() })
}

fn host(server: &Server) -> &str {
    server.address.strip_prefix("http://").unwrap()
}

/// The headers of all requests at `path` that the server has seen, as one text.
fn headers(server: &Server, path: &str) -> String {
    format!("{:?}", server.seen(path))
}

#[test]
fn a_proxy_forwards_requests_of_http() {
    let root = tempfile::tempdir().unwrap();
    let (proxy, url) = (Server::start(), "http://files.example:8080/a.bin");
    // More than one request on one connection, and redirects to another host.
    proxy.serve(url, content(5500), &vec![Fault::Redirect("http://other.example/b".into()); 4]);
    proxy.serve("http://other.example/b", content(5500), &[]);
    for path in [url, "http://other.example/b"] {
        proxy.mark(path, Some("\"one content\""), None);
    }
    let variables = format!("http_proxy=http://me:s%40cret@{}\nno_proxy=b.example", host(&proxy));
    let config = serde_json::json!({"source": format!("proxied|{variables}|{url}")});
    let outcome = run(&root.path().join("work"), &config);
    let told = format!("{}{:?}", outcome.warnings(), outcome.cautions());
    let out = outcome.done();
    assert_eq!(std::fs::read(out.join("a.bin")).unwrap(), content(5500));
    assert!(proxy.seen(url).len() + proxy.seen("http://other.example/b").len() >= 7);
    for seen in proxy.seen(url) {
        assert_eq!(seen.headers["host"], "files.example:8080");
        assert_eq!(seen.headers["proxy-authorization"], "Basic bWU6c0BjcmV0");
    }
    let kept = tree(root.path()).into_values().flatten().collect();
    let kept = String::from_utf8_lossy(&Vec::<u8>::from_iter::<Vec<u8>>(kept)).into_owned();
    assert!(!told.contains("cret") && !kept.contains("cret") && !kept.contains("bWU6"), "{told}");
}

#[test]
fn hosts_of_no_proxy_are_asked_directly() {
    let root = tempfile::tempdir().unwrap();
    let (proxy, server) = (Server::start(), Server::start());
    let url = server.serve("/a.bin", content(700), &[]);
    let variables = format!("all_proxy={}\nNO_PROXY=127.0.0.0/8", host(&proxy));
    let out =
        run(&root.path().join("work"), &serde_json::json!({"source": format!("proxied|{variables}|{url}")})).done();
    assert_eq!(std::fs::read(out.join("a.bin")).unwrap(), content(700));
    assert!(proxy.seen(&url).is_empty());
}

#[test]
fn a_token_for_https_never_reaches_a_proxy_in_clear() {
    let root = tempfile::tempdir().unwrap();
    let source = |proxy: &str| {
        let variables = format!("HF_ENDPOINT=https://hub.example\nHF_TOKEN=hf_secret\nHTTPS_PROXY=me:pass@{proxy}");
        serde_json::json!({"source": format!("hub|{variables}|me/it")})
    };
    let proxy = Server::start();
    let error = run(&root.path().join("refused"), &source(host(&proxy))).error();
    assert_eq!(
        error.to_string(),
        format!("hub.example can't be reached through the proxy {} of HTTPS_PROXY: it answered 404", host(&proxy))
    );
    let asked = headers(&proxy, "hub.example:443");
    assert!(asked.contains("proxy-authorization") && !asked.contains("hf_secret"), "{asked}");
    let (address, first) = server::tunnel();
    run(&root.path().join("tunnel"), &source(&address)).error();
    let first = first.join().unwrap();
    // A record of TLS, in which a handshake begins.
    assert!(first.starts_with(&[22, 3]) && !String::from_utf8_lossy(&first).contains("secret"), "{first:?}");
}

#[test]
fn what_a_proxy_refuses_is_said_once_with_its_variable() {
    let root = tempfile::tempdir().unwrap();
    let (proxy, url) = (Server::start(), "http://files.example/a");
    proxy.serve_always(url, "", Fault::Status(407, "proxy-authenticate", "Basic"));
    proxy.serve_always("files.example:443", "", Fault::Status(407, "proxy-authenticate", "Basic"));
    for (number, (name, url)) in
        [("HTTP_PROXY", url), ("https_proxy", "https://files.example/a")].into_iter().enumerate()
    {
        let source = format!("proxied|{name}=http://me:secret@{}|{url}", host(&proxy));
        let error = run(&root.path().join(number.to_string()), &serde_json::json!({ "source": source })).error();
        let help = error.help().unwrap_or_default().to_string();
        assert!(error.to_string().ends_with(&format!("of {name}: it answered 407")), "{error}");
        assert!(help.contains(&format!("set `{name}` to")) && !format!("{error:?}{help}").contains("secret"), "{help}");
    }
    assert_eq!((proxy.seen(url).len(), proxy.seen("files.example:443").len()), (1, 1));
    let config = serde_json::json!({"source": format!("proxied|http_proxy=no:where|{url}")});
    let error = run(&root.path().join("bad"), &config).error();
    assert_eq!(error.to_string(), "the variable http_proxy does not hold the address of a proxy");
}

#[test]
fn a_hub_that_is_not_there_or_silent_is_named_with_a_count() {
    let root = tempfile::tempdir().unwrap();
    let (silent, _open) = server::silent();
    for (name, endpoint, words) in [
        ("refused", "http://127.0.0.1:1", "127.0.0.1:1 can't be reached (io: Connection refused"),
        ("silent", silent.as_str(), " does not answer"),
        (
            "proxy",
            "http://hub.example\nall_proxy=127.0.0.1:1",
            "hub.example can't be reached through the proxy 127.0.0.1:1 of all_proxy",
        ),
    ] {
        let config = serde_json::json!({"source": format!("hub|HF_ENDPOINT={endpoint}|me/it")});
        let outcome = Trial::new(&root.path().join(name), &[]).run::<Quick<80>>(&config);
        let warnings = outcome.warnings();
        for (attempt, pause) in [(1, 20), (2, 40), (3, 50)] {
            let count = format!(" (attempt {attempt} of 4), next in {pause} ms");
            assert!(warnings.contains(&count) && warnings.contains(words), "{name}: {warnings}");
        }
        let error = outcome.error();
        assert!(
            error.to_string().starts_with("gave up after 4 attempts: ") && error.to_string().contains(words),
            "{error}"
        );
    }
}

#[test]
fn stopping_does_not_wait_for_a_silent_server() {
    struct Stopped;
    impl Watch for Stopped {
        fn stopped(&self) -> bool {
            true
        }

        fn warn(&self, _: String) {}
    }
    let (silent, _open) = server::silent();
    let hour = Duration::from_hours(1);
    let client = Client::new(Policy { timeout: hour, patience: hour, ..Policy::default() }, Access::Open);
    let error = client.retry(&Stopped, |attempt| attempt.get_text(&silent)).unwrap_err();
    assert!(matches!(error, StageError::Cancelled), "{error}");
}
