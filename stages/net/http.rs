//! HTTP requests: retries the ones that may succeed later and explains the ones that fail. Independent of files.

use std::{
    io::{self, Read},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use ureq::{Agent, Body, http::Response};

use super::{
    address::{host, redacted, redirected, same_origin},
    s3::Store,
};
use crate::StageError;

/// Time limit of a request for a whole file, which can't be resumed.
const WHOLE_FILE_TIMEOUT: Duration = Duration::from_hours(24);
/// Largest list of files in bytes. What is read from it takes several times the memory.
const LONGEST_TEXT: u64 = 64 << 20;
/// Redirects that are followed for one request.
const MAX_REDIRECTS: usize = 10;

/// Limits on retries and requests.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Pause before the first retry; each further pause is twice as long, up to `longest_pause`.
    pub(crate) first_pause: Duration,
    pub(crate) longest_pause: Duration,
    /// Consecutive failures, without a byte in between, after which the client gives up.
    pub(crate) attempts: u32,
    /// Bytes per request, the unit that connections share out.
    pub(crate) chunk: u64,
    /// Time limit of a request; another one fetches what is still missing.
    pub(crate) timeout: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            attempts: 8,
            chunk: 16 << 20,
            timeout: Duration::from_mins(1),
        }
    }
}

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
}

/// The caller that waits for a request.
pub(crate) trait Watch {
    /// Whether to stop.
    fn stopped(&self) -> bool;
    /// Warns the user.
    fn warn(&self, message: String);
}

impl Watch for crate::Job {
    fn stopped(&self) -> bool {
        self.cancelled()
    }

    fn warn(&self, message: String) {
        Self::warn(self, message);
    }
}

/// How requests are authorised.
pub(crate) enum Access {
    /// Not at all.
    Open,
    /// By a hub's token, which only the origin of `endpoint` receives.
    Token { token: String, endpoint: String },
    /// By a signature in each address.
    Signed(Store),
}

/// A client of web servers, hubs and object stores.
pub(crate) struct Client {
    agent: Agent,
    access: Access,
    pub(crate) policy: Policy,
    /// The most failures in a row that were told.
    told: AtomicU32,
}

impl Client {
    pub(crate) fn new(policy: Policy, access: Access) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed by `call`: the agent would compare hosts without their ports.
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(15).min(policy.timeout)))
            .timeout_recv_response(Some(policy.timeout))
            .user_agent(concat!("imp-flow/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), access, policy, told: AtomicU32::new(0) }
    }

    /// Sends one request, without retries.
    pub(crate) fn get(&self, url: &str, headers: &[(&str, String)]) -> Result<Response<Body>, RequestError> {
        self.send(url, headers, self.policy.timeout)
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
        let response = self.call(url, &[("range", "bytes=0-0".into())], self.policy.timeout)?;
        if response.status() == 404 { Ok(false) } else { self.check_status(url, response).map(|_| true) }
    }

    fn send(&self, url: &str, headers: &[(&str, String)], body: Duration) -> Result<Response<Body>, RequestError> {
        self.check_status(url, self.call(url, headers, body)?)
    }

    fn call(&self, url: &str, headers: &[(&str, String)], body: Duration) -> Result<Response<Body>, RequestError> {
        let mut address = match &self.access {
            Access::Signed(store) => store.address(url),
            _ => url.into(),
        };
        let mut token = match &self.access {
            Access::Token { token, endpoint } if same_origin(endpoint, &address) => Some(token),
            _ => None,
        };
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&address).config().timeout_recv_body(Some(body)).build();
            if let Some(token) = token {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            for (name, value) in headers {
                request = request.header(*name, value);
            }
            let response = request.call().map_err(|error| failed(&address, error))?;
            // A signature is valid for one host only.
            let followed = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308)
                && !matches!(self.access, Access::Signed(_));
            let Some(location) = response.headers().get("location").filter(|_| followed) else { return Ok(response) };
            let next = location.to_str().ok().and_then(|location| redirected(&address, location));
            let next = next.ok_or_else(|| bad_redirect(&address, "redirects to an invalid address"))?;
            // Once the requests have left the origin, the token stays behind for good.
            token = token.filter(|_| same_origin(&address, &next));
            address = next;
        }
        Err(bad_redirect(url, "redirects too many times"))
    }

    fn check_status(&self, url: &str, mut response: Response<Body>) -> Result<Response<Body>, RequestError> {
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            status if status == 408 || status == 429 || status >= 500 => {
                let after = response.headers().get("retry-after").and_then(|after| after.to_str().ok()?.parse().ok());
                let what = format!("{} answered {}", host(url), response.status());
                Err(RequestError::Transient { what, after: after.map(Duration::from_secs) })
            }
            _ => Err(RequestError::Fatal(match &self.access {
                Access::Signed(store) => store.refusal(url, &mut response),
                access => refusal(url, &response, matches!(access, Access::Token { .. })),
            })),
        }
    }

    /// Repeats `attempt` until it succeeds, fails for good, or runs out of attempts. `attempt` reports whether it made
    /// progress before it failed; progress resets the count.
    pub(crate) fn retry<T>(
        &self,
        watch: &impl Watch,
        mut attempt: impl FnMut(&mut bool) -> Result<T, RequestError>,
    ) -> Result<T, StageError> {
        let mut failures = 0;
        loop {
            let mut progress = false;
            let (what, after) = match attempt(&mut progress) {
                Ok(value) => return Ok(value),
                Err(RequestError::Fatal(error)) => return Err(error),
                Err(RequestError::Transient { what, after }) => (what, after),
            };
            if watch.stopped() {
                return Err(StageError::Cancelled);
            }
            failures = if progress { 1 } else { failures + 1 };
            if self.policy.attempts > 1 {
                tracing::warn!("attempt {failures} of {}: {what}", self.policy.attempts);
            }
            if failures >= self.policy.attempts {
                return Err(StageError::transient(
                    format!("gave up after {failures} attempts: {what}"),
                    "check the network connection and run the same command again: what has been downloaded is kept",
                ));
            }
            // Each count once, however many connections there are.
            if !progress && self.told.fetch_max(failures, Ordering::Relaxed) < failures {
                watch.warn(format!("{what}; attempt {failures} of {} failed, trying again", self.policy.attempts));
            }
            let pause =
                self.policy.first_pause.saturating_mul(1 << (failures - 1).min(16)).min(self.policy.longest_pause);
            sleep(watch, after.unwrap_or(pause).min(Duration::from_mins(5)))?;
        }
    }
}

/// Sleeps in short pieces, to notice cancellation soon.
fn sleep(watch: &impl Watch, mut time: Duration) -> Result<(), StageError> {
    loop {
        if watch.stopped() {
            return Err(StageError::Cancelled);
        }
        if time.is_zero() {
            return Ok(());
        }
        let piece = time.min(Duration::from_millis(100));
        thread::sleep(piece);
        time -= piece;
    }
}

fn bad_redirect(url: &str, what: &str) -> RequestError {
    RequestError::Fatal(StageError::failed(format!("{}: the server {what}", redacted(url)), "check `source`"))
}

fn failed(url: &str, error: ureq::Error) -> RequestError {
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
        error => RequestError::transient(format!("{} can't be reached ({error})", host(url))),
    }
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
