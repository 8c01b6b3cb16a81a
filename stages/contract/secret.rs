//! Passwords, tokens and signatures in web addresses, which are needed to download but are not stored. Independent of what the
//! text is: an address, a line of TOML, a message.

use std::borrow::Cow;

/// What is written in place of a secret.
pub const HIDDEN: &str = "<hidden>";

/// Parts of the names of query parameters whose values are secret, in lower case.
const SECRET: [&str; 16] = [
    "token",
    "sig",
    "secret",
    "pass",
    "pwd",
    "auth",
    "cred",
    "apikey",
    "api_key",
    "api-key",
    "accesskey",
    "access_key",
    "x-amz-",
    "x-goog-",
    "session",
    "jwt",
];
/// Whole names of such parameters.
const SECRET_NAMES: [&str; 4] = ["key", "code", "se", "pw"];

/// The text without the user names and passwords, and without the values of secret parameters, of all addresses in it.
pub fn hide_secrets(text: &str) -> Cow<'_, str> {
    let mut found = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        found.push_str(before);
        let end = after.find(ends_address).unwrap_or(after.len());
        let (address, next) = after.split_at(end);
        if names_no_server(before) {
            found.push_str(address);
        } else {
            hide_in(address, &mut found);
        }
        rest = next;
    }
    found.push_str(rest);
    if found == text { Cow::Borrowed(text) } else { Cow::Owned(found) }
}

/// Whether an address that begins like this has a revision where others have a host (`hf://gpt2@main`), and never a password.
fn names_no_server(start: &str) -> bool {
    ["hf://", "s3://"].iter().any(|scheme| {
        start
            .strip_suffix(scheme)
            .is_some_and(|before| !before.ends_with(|c: char| c.is_alphanumeric() || "+-.".contains(c)))
    })
}

/// Whether an address ends before this letter in a longer text.
fn ends_address(letter: char) -> bool {
    letter.is_whitespace() || letter.is_control() || "\"'`<>\\|".contains(letter)
}

/// Adds an address without its scheme to `found`.
fn hide_in(address: &str, found: &mut String) {
    let authority = address.find(['/', '?', '#']).unwrap_or(address.len());
    let (authority, rest) = address.split_at(authority);
    // A user name alone may be a token.
    match authority.rsplit_once('@') {
        Some((_, host)) => found.extend([HIDDEN, "@", host]),
        None => found.push_str(authority),
    }
    let query = rest.find(['?', '#']).unwrap_or(rest.len());
    let (path, query) = rest.split_at(query);
    found.push_str(path);
    for parameter in query.split_inclusive(['&', ';', '?', '#']) {
        let (parameter, separator) = match parameter.char_indices().next_back() {
            Some((at, '&' | ';' | '?' | '#')) => parameter.split_at(at),
            _ => (parameter, ""),
        };
        match parameter.split_once('=') {
            Some((name, value)) if !value.is_empty() && is_secret(name) => found.extend([name, "=", HIDDEN]),
            _ => found.push_str(parameter),
        }
        found.push_str(separator);
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.contains(&&*name) || SECRET.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_everything_else_stays() {
        for (text, shown) in [
            ("https://me:pass@a.org/b?c=d", "https://<hidden>@a.org/b?c=d"),
            ("https://ghp_token@a.org", "https://<hidden>@a.org"),
            ("https://a:b@c@a.org/x@y", "https://<hidden>@a.org/x@y"),
            ("https://a.org/b?file=1&token=abc&x=2#sig=e", "https://a.org/b?file=1&token=<hidden>&x=2#sig=<hidden>"),
            (
                "https://s3/a?X-Amz-Signature=ab%2F&X-Amz-Date=1&response=x",
                "https://s3/a?X-Amz-Signature=<hidden>&X-Amz-Date=<hidden>&response=x",
            ),
            (
                "source = \"http://u:p@h/\" # see http://h?key=k",
                "source = \"http://<hidden>@h/\" # see http://h?key=<hidden>",
            ),
            ("a -> 'ftp://u:p@h', b", "a -> 'ftp://<hidden>@h', b"),
        ] {
            assert_eq!(hide_secrets(text), shown);
            assert_eq!(hide_secrets(shown), shown, "what is hidden stays so");
        }
        for text in ["", "://", "hf://gpt2@main", "a@b.org?token=x", "s3://b/k", "https://a.org/?a=b&&c#", "file:///x"]
        {
            assert_eq!(hide_secrets(text), text);
        }
    }
}
