//! One try of a request: sent the right way, followed where it is redirected, explained where it fails. Independent of when
//! it is tried again.

use std::{
    io::{self, Read},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use ureq::{
    Body, Timeout,
    http::{HeaderMap, Request, Response},
};

use super::{
    address::{host, redacted, redirected, same_origin},
    http::{Access, Client},
    order::Order,
    proxy::Named,
};
use crate::StageError;

/// Time limit of a request for a whole file, which can't be resumed.
const WHOLE_FILE_TIMEOUT: Duration = Duration::from_hours(24);
/// How long nothing may come of what is being sent, before the connection is taken for dead.
const SILENCE: Duration = Duration::from_mins(5);
/// Largest list of files in bytes. What is read from it takes several times the memory.
const LONGEST_TEXT: u64 = 64 << 20;
/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;

/// Why a request failed or was incomplete.
pub(crate) enum RequestError {
    /// A retry may succeed; `after` is the pause that the server asks for.
    Transient { what: String, after: Option<Duration> },
    /// A retry would fail, too.
    Fatal(StageError),
}

impl RequestError {
    pub(crate) fn transient(what: impl Into<String>) -> Self {
        Self::Transient { what: what.into(), after: None }
    }

    /// That a server can't answer now, with the pause that it asks for.
    pub(crate) fn not_now(what: String, headers: &HeaderMap) -> Self {
        Self::Transient { what, after: pause(headers) }
    }
}

/// One try of what a client repeats.
pub(crate) struct Attempt<'a> {
    client: &'a Client,
    /// Time limit of an answer's beginning.
    patience: Duration,
    /// Whether the caller wants to stop.
    stopped: &'a dyn Fn() -> bool,
    /// Whether bytes arrived; failures are counted anew then.
    pub(crate) progress: bool,
}

impl<'a> Attempt<'a> {
    /// The try after as many failures.
    pub(super) fn new(client: &'a Client, failures: u32, stopped: &'a dyn Fn() -> bool) -> Self {
        let patience = client.policy.patience.saturating_mul(1 << failures.min(16)).min(client.policy.timeout);
        Self { client, patience, stopped, progress: false }
    }

    /// Bytes per request.
    pub(super) fn chunk(&self) -> u64 {
        self.client.policy.chunk
    }

    /// Sends one request, without retries.
    pub(crate) fn get(&self, url: &str, headers: &[(&str, String)]) -> Result<Response<Body>, RequestError> {
        self.send(url, headers, self.client.policy.timeout)
    }

    /// Requests a file that the server sends only as a whole, without the usual time limit.
    pub(crate) fn get_whole(&self, url: &str) -> Result<Response<Body>, RequestError> {
        self.send(url, &[], WHOLE_FILE_TIMEOUT)
    }

    /// Requests a short text, without retries.
    pub(crate) fn get_text(&self, url: &str) -> Result<String, RequestError> {
        let mut response = self.get(url, &[])?;
        let mut bytes = Vec::new();
        let read = response.body_mut().as_reader().take(LONGEST_TEXT + 1).read_to_end(&mut bytes);
        read.map_err(|error| {
            RequestError::transient(format!("the connection to {} was lost while it listed files ({error})", host(url)))
        })?;
        if bytes.len() as u64 > LONGEST_TEXT {
            return Err(useless(
                url,
                &format!("answered with more than {LONGEST_TEXT} bytes, the limit for a list of files"),
            ));
        }
        String::from_utf8(bytes).map_err(|_| useless(url, "answered with a list of files that is not UTF-8"))
    }

    /// Whether the file exists.
    pub(crate) fn exists(&self, url: &str) -> Result<bool, RequestError> {
        let response = self.call(url, &[("range", "bytes=0-0".into())], self.client.policy.timeout)?;
        if response.status() == 404 { Ok(false) } else { self.check_status(url, response).map(|_| true) }
    }

    fn send(&self, url: &str, headers: &[(&str, String)], body: Duration) -> Result<Response<Body>, RequestError> {
        self.check_status(url, self.call(url, headers, body)?)
    }

    fn call(&self, url: &str, headers: &[(&str, String)], body: Duration) -> Result<Response<Body>, RequestError> {
        self.order(url, &Order::Get, headers, body)
    }

    /// Sends `order` and returns the answer, whatever its status. Waits up to `patience` for the rest of the answer.
    pub(crate) fn order(
        &self,
        url: &str,
        order: &Order,
        headers: &[(&str, String)],
        patience: Duration,
    ) -> Result<Response<Body>, RequestError> {
        let mut address = match &self.client.access {
            Access::Signed(store) => store.address(url, order),
            _ => url.into(),
        };
        let mut token = match &self.client.access {
            Access::Token { token, endpoint } if same_origin(endpoint, &address) => Some(token),
            _ => None,
        };
        for _ in 0..=MAX_REDIRECTS {
            let proxy = self.client.policy.proxies.of_url(&address);
            let mut request = Request::builder().method(order.method()).uri(&address);
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            for (name, value) in headers.iter().cloned().chain(order.headers()) {
                request = request.header(name, value);
            }
            let request = request.body(()).map_err(|error| failed(&address, proxy, error.into()))?;
            let answer = self.answer(request, order.clone(), proxy, patience)?;
            let response = answer.map_err(|error| failed(&address, proxy, error))?;
            if let (407, Some(named)) = (response.status().as_u16(), proxy) {
                return Err(refused_by(named, &address, response.status().as_str()));
            }
            // A signature is valid for one host only.
            let followed =
                order.follows(response.status().as_u16()) && !matches!(self.client.access, Access::Signed(_));
            let Some(location) = response.headers().get("location").filter(|_| followed) else { return Ok(response) };
            let next = location.to_str().ok().and_then(|location| redirected(&address, location));
            let next = next.ok_or_else(|| bad_redirect(&address, "redirects to an invalid address"))?;
            if !order.only_asks() && address.starts_with("https://") && !next.starts_with("https://") {
                return Err(bad_redirect(&address, "redirects what is sent to an address that is not encrypted"));
            }
            // Once the requests have left the origin, the token stays behind for good.
            token = token.filter(|_| same_origin(&address, &next));
            address = next;
        }
        Err(bad_redirect(url, "redirects too many times"))
    }

    /// Waits for the answer to a request, unless the caller wants to stop: then the request is abandoned.
    fn answer(
        &self,
        request: Request<()>,
        order: Order,
        proxy: Option<&Named>,
        patience: Duration,
    ) -> Result<Result<Response<Body>, ureq::Error>, RequestError> {
        let (agent, proxy) = (self.client.agent.clone(), proxy.map(|named| named.proxy.clone()));
        // Whoever has sent something waits for its effect.
        let first = if order.only_asks() { self.patience } else { patience };
        // Also of a whole file, which may take hours: a connection that is dead says nothing.
        let silence = Some(SILENCE.max(self.client.policy.timeout)).filter(|_| order.only_asks());
        let send = move || {
            let (parts, ()) = request.into_parts();
            let request = Request::from_parts(parts, order.body()?);
            let request = agent.configure_request(request).proxy(proxy).timeout_send_body(Some(WHOLE_FILE_TIMEOUT));
            let request = request.timeout_recv_response(Some(first)).timeout_recv_body(Some(patience));
            agent.run(request.timeout_per_read(silence).build())
        };
        let (sender, receiver) = mpsc::channel();
        // It fails only if nobody waits any more.
        thread::spawn(move || drop(sender.send(send())));
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(answer) => return Ok(answer),
                Err(RecvTimeoutError::Timeout) if (self.stopped)() => {
                    return Err(RequestError::Fatal(StageError::Cancelled));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(RequestError::transient("a request ended without an answer"));
                }
            }
        }
    }

    /// The response, unless its status says that the request failed.
    pub(crate) fn check_status(&self, url: &str, mut response: Response<Body>) -> Result<Response<Body>, RequestError> {
        match response.status().as_u16() {
            200 | 204 | 206 | 416 => Ok(response),
            status if status == 408 || status == 429 || status >= 500 => {
                let what = format!("{} answered {}", host(url), response.status());
                Err(RequestError::not_now(what, response.headers()))
            }
            _ => Err(RequestError::Fatal(match &self.client.access {
                Access::Signed(store) => store.refusal(url, &mut response),
                access => refusal(url, &response, matches!(access, Access::Token { .. })),
            })),
        }
    }
}

/// The pause that a server asks for: `Retry-After: 5`, or as Hugging Face's hub `RateLimit: "resolvers";r=0;t=120`, both in seconds. Of
/// the latter only if no request remains (`r=0`).
fn pause(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let seconds = |text: &str| text.trim().parse().ok();
    let of_hub = || {
        let limit = text("ratelimit")?;
        let value = |name: &str| limit.split(';').find_map(|part| seconds(part.trim().strip_prefix(name)?));
        value("t=").filter(|_| value("r=") == Some(0))
    };
    // A second more than the hub says: its window has to be over.
    let after =
        text("retry-after").and_then(seconds).or_else(|| of_hub().map(|seconds: u64| seconds.saturating_add(1)));
    after.map(Duration::from_secs)
}

fn bad_redirect(url: &str, what: &str) -> RequestError {
    RequestError::Fatal(StageError::failed(format!("{}: the server {what}", redacted(url)), "check `source`"))
}

fn failed(url: &str, proxy: Option<&Named>, error: ureq::Error) -> RequestError {
    let through = proxy.map(Named::through).unwrap_or_default();
    match error {
        // The error would repeat the address with what may be secret in it.
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => RequestError::Fatal(StageError::failed(
            format!("{}: the address is not valid", redacted(url)),
            "correct `source` in the pipeline",
        )),
        // The server would say the same each time.
        ureq::Error::Protocol(error) => {
            useless(url, &format!("doesn't speak HTTP ({})", error.to_string().escape_debug()))
        }
        ureq::Error::LargeResponseHeader(_, limit) => {
            useless(url, &format!("answered with a header of more than {limit} bytes"))
        }
        ureq::Error::Timeout(Timeout::RecvResponse) => {
            RequestError::transient(format!("{}{through} does not answer", host(url)))
        }
        ureq::Error::ConnectProxyFailed(what) => match proxy.zip(refused_status(&what)) {
            Some((named, status)) => refused_by(named, url, status),
            None => RequestError::transient(format!("{} can't be reached{through} ({what})", host(url))),
        },
        error => RequestError::transient(format!("{} can't be reached{through} ({error})", host(url))),
    }
}

/// The status in a proxy's answer that would be the same another time.
fn refused_status(answer: &str) -> Option<&str> {
    let status = answer.rsplit([' ', '/']).next()?;
    Some(status).filter(|status| status.len() == 3 && status.starts_with('4') && !["408", "429"].contains(status))
}

/// The error for a request that a proxy does not let through.
fn refused_by(proxy: &Named, url: &str, status: &str) -> RequestError {
    let name = proxy.variable;
    let help = if status == "407" {
        format!("set `{name}` to `http://USER:PASSWORD@HOST:PORT`, with the right user and password")
    } else {
        format!("ask who runs the proxy, name the host in `no_proxy` to reach it directly, or correct `{name}`")
    };
    let message = format!("{} can't be reached{}: it answered {status}", host(url), proxy.through());
    RequestError::Fatal(StageError::failed(message, help))
}

/// The error for an answer that can't be used, and would not be different another time.
fn useless(url: &str, what: &str) -> RequestError {
    let help = "check `source`, and that the server or a proxy in its place works";
    RequestError::Fatal(StageError::failed(format!("{} {what}", host(url)), help))
}

fn refusal(url: &str, response: &Response<Body>, token: bool) -> StageError {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (message, help) = match (response.status().as_u16(), header("x-error-code")) {
        (_, "GatedRepo") => {
            let page = hub_page(url);
            let help = format!("accept the licence at {page}, then set HF_TOKEN to a token of that account");
            ("this repository is gated".into(), help)
        }
        (_, "RevisionNotFound") => ("no such revision".into(), "correct what follows `@` in `source`".into()),
        (_, "EntryNotFound") => ("no such file".into(), "correct `files`".into()),
        (401 | 404, "RepoNotFound") | (401, _) if !token => (
            format!("the repository does not exist or is private ({})", response.status()),
            "check the name in `source`; for a private repository set HF_TOKEN".into(),
        ),
        (401, _) => (
            format!("the server rejected the token ({})", response.status()),
            "set HF_TOKEN to a valid token with read access to this repository".into(),
        ),
        (403, _) => (
            format!("access denied ({})", response.status()),
            "ask the owner for access, or download the file in a browser and set `source` to its path".into(),
        ),
        (404 | 410, _) => ("no such file".into(), "check `source`: the file may have moved".into()),
        (_, _) => (format!("the server answered {}", response.status()), "check `source`".into()),
    };
    StageError::failed(format!("{}: {message}", redacted(url)), help)
}

/// The web page of the repository in a hub's URL.
fn hub_page(url: &str) -> String {
    let page = redacted(url);
    let page = page.replacen("/api/models/", "/", 1).replacen("/api/datasets/", "/datasets/", 1);
    let end = page.find("/resolve/").or_else(|| page.find("/revision/")).unwrap_or(page.len());
    page[..end].to_string()
}

/// The error of a read that ended too early.
pub(crate) fn cut_off(url: &str, error: &io::Error) -> RequestError {
    RequestError::transient(format!("the connection to {} was lost ({error})", host(url)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn servers_say_how_long_to_wait_in_two_ways() {
        for (name, value, seconds) in [
            ("retry-after", "7", Some(7)),
            ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT", None),
            ("ratelimit", "\"resolvers\";r=0;t=120", Some(121)),
            ("ratelimit", "\"resolvers\"; r=0; t=18446744073709551615", Some(u64::MAX)),
            ("ratelimit", "\"resolvers\";r=4990;t=120", None),
            ("ratelimit", "r=0;t=-1", None),
            ("ratelimit", "t=5", None),
            ("other", "7", None),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            assert_eq!(pause(&headers), seconds.map(Duration::from_secs), "{name}: {value}");
        }
    }
}
