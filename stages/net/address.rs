//! Web addresses: what may be shown of them, where a redirect leads, and who may receive a token. Independent of requests.

use url::{Origin, Url};

/// The host in a URL, for messages.
pub(crate) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// A URL without the parts that may be secret, for messages.
pub(crate) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return host(url).into() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    format!("{scheme}://{}/{path}", host(url))
}

/// Whether two URLs have the same scheme, host and port.
pub(super) fn same_origin(one: &str, other: &str) -> bool {
    let origin = |url: &str| Url::parse(url).ok().map(|url| url.origin()).filter(Origin::is_tuple);
    origin(one).is_some_and(|one| Some(one) == origin(other))
}

/// The address that the header `Location` of a response from `base` names.
pub(super) fn redirected(base: &str, location: &str) -> Option<String> {
    let mut next = Url::parse(base).ok()?.join(location).ok()?;
    next.set_fragment(None);
    matches!(next.scheme(), "http" | "https").then(|| next.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (one, other, same) in [
            ("https://a.org", "https://A.org:443/x?y", true),
            ("http://a.org/", "http://user:word@a.org:80", true),
            ("https://a.org", "http://a.org", false),
            ("http://a.org", "https://a.org", false),
            ("http://a.org:1", "http://a.org:2", false),
            ("http://a.org", "http://a.org@b.org", false),
            ("http://a.org", "http://b.org", false),
            ("a.org", "a.org", false),
        ] {
            assert_eq!(same_origin(one, other), same, "{one} {other}");
        }
    }

    #[test]
    fn redirects_are_resolved_like_links() {
        for (location, wanted) in [
            ("http://b.org/c#d", Some("http://b.org/c")),
            ("//b.org:1/c", Some("https://b.org:1/c")),
            ("/c/../d?e=..", Some("https://a.org:2/d?e=..")),
            ("c", Some("https://a.org:2/x/c")),
            ("../../c/.", Some("https://a.org:2/c/")),
            ("?c=//d", Some("https://a.org:2/x/y?c=//d")),
            ("file:///etc/passwd", None),
            ("http://", None),
        ] {
            assert_eq!(redirected("https://a.org:2/x/y?z=/", location).as_deref(), wanted, "{location}");
        }
    }

    #[test]
    fn secrets_in_addresses_are_not_shown() {
        for (url, shown) in [
            ("https://user:word@a.org/b/c?token=d", "https://a.org/b/c"),
            ("https://a.org?token=d/e", "https://a.org/"),
            ("https://a.org/b#token=d", "https://a.org/b"),
            ("user:word@a.org", "a.org"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }
}
