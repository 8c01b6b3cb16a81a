//! Which requests go through which proxy.
#![allow(clippy::unwrap_used)]

use super::*;

fn proxies(variables: &[(&str, &str)]) -> Result<Proxies, StageError> {
    Proxies::of(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
}

#[test]
fn the_scheme_of_an_address_decides_and_lower_case_goes_first() {
    let all = [
        ("http_proxy", "http://a:1"),
        ("HTTP_PROXY", "http://b:2"),
        ("HTTPS_PROXY", "c:3"),
        ("ALL_PROXY", "socks5h://d:4"),
    ];
    for (variables, http, https) in [
        (&all[..], Some("http_proxy"), Some("HTTPS_PROXY")),
        (&all[1..], Some("HTTP_PROXY"), Some("HTTPS_PROXY")),
        (&all[3..], Some("ALL_PROXY"), Some("ALL_PROXY")),
        (&[("http_proxy", " "), ("all_proxy", "e")], Some("all_proxy"), Some("all_proxy")),
        (&all[..1], Some("http_proxy"), None),
        (&[], None, None),
    ] {
        let proxies = proxies(variables).unwrap();
        let variable = |url| proxies.of_url(url).map(|named| named.variable);
        assert_eq!((variable("http://x.org/y"), variable("https://x.org/y")), (http, https), "{variables:?}");
    }
}

#[test]
fn an_address_that_is_none_is_refused_by_the_name_of_its_variable() {
    for address in ["http://", "nothing://x:1", "http://x:99999", "http://me:se#cret@x:1", "x:port", "http://x y"] {
        let error = proxies(&[("https_proxy", address)]).unwrap_err();
        assert_eq!(error.to_string(), "the variable https_proxy does not hold the address of a proxy", "{address}");
        assert!(!error.help().unwrap().contains("cret"));
    }
    for address in ["x", "x:3128", "http://me:secret@x:3128/", "https://x", "socks5://x:1", "[::1]:3128", "10.0.0.1:8"]
    {
        let proxies = proxies(&[("all_proxy", address)]).unwrap();
        assert!(!format!("{proxies:?}{}", proxies.http.as_ref().unwrap().through()).contains("secret"));
    }
}

#[test]
fn hosts_in_no_proxy_are_asked_directly() {
    for (except, direct, proxied) in [
        ("*", &["http://a.org", "http://1.2.3.4"][..], &[][..]),
        ("a.org", &["http://a.org", "http://A.org:81", "https://b.a.org"], &["http://ba.org", "http://org"]),
        (".a.org", &["http://a.org", "http://b.a.org."], &["http://ba.org"]),
        ("*.a.org", &["http://b.a.org"], &["http://ba.org"]),
        ("x, a.org:81", &["http://a.org:81", "http://x"], &["http://a.org", "http://b.org:81"]),
        ("a.org:443", &["https://a.org"], &["http://a.org"]),
        ("x a.org", &["http://a.org"], &["http://c.org"]),
        ("127.0.0.1,::1", &["http://127.0.0.1:8", "http://[::1]:9"], &["http://127.0.0.2", "http://localhost"]),
        ("[::1]:9,1.2.3.4:5", &["http://[::1]:9", "http://1.2.3.4:5"], &["http://[::1]", "http://1.2.3.4"]),
        ("10.0.0.0/8,fd00::/8", &["http://10.9.8.7", "http://[fd12::1]"], &["http://11.0.0.1", "http://[fe00::1]"]),
        ("0.0.0.0/0", &["http://8.8.8.8"], &["http://[::1]", "http://a.org"]),
        ("1.2.3.0/99,<local>,", &[], &["http://1.2.3.0", "http://local", "http://a.org"]),
    ] {
        let proxies = proxies(&[("all_proxy", "p:1"), ("NO_PROXY", except)]).unwrap();
        for url in direct {
            assert!(proxies.of_url(url).is_none(), "{except}: {url}");
        }
        for url in proxied {
            assert!(proxies.of_url(url).is_some(), "{except}: {url}");
        }
    }
    let both = proxies(&[("all_proxy", "p:1"), ("NO_PROXY", "a.org"), ("no_proxy", "b.org")]).unwrap();
    assert!(both.of_url("http://a.org").is_some() && both.of_url("http://b.org").is_none());
}
