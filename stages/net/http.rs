//! Requests that are tried again where that helps, and words for those that fail. Does not know files.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ureq::{Agent, Body, config::RedirectAuthHeaders, http::Response};

use super::s3::Store;
use crate::StageError;

/// A file that comes as a whole would begin anew after this.
const WHOLE: Duration = Duration::from_hours(24);
/// Bytes of a list of files.
const LONGEST_TEXT: u64 = 256 << 20;

/// How patient to be.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// The first pause; each further one is twice as long, up to `longest`.
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
    /// Failures in a row, without a byte in between, after which it gives up.
    pub(crate) attempts: u32,
    /// Bytes of one request, and so what several connections share.
    pub(crate) chunk: u64,
    /// A request takes no longer: what is still missing then is asked for again.
    pub(crate) request: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(30),
            attempts: 8,
            chunk: 16 << 20,
            request: Duration::from_mins(1),
        }
    }
}

/// Why a request gave nothing, or not all.
pub(crate) enum Trouble {
    /// It may work a little later.
    Transient { what: String, after: Option<Duration> },
    /// It will not.
    Fatal(StageError),
}

impl Trouble {
    pub(crate) fn transient(what: impl Into<String>) -> Self {
        Self::Transient { what: what.into(), after: None }
    }
}

/// Who waits for a request.
pub(crate) trait Watch {
    /// Whether it need not go on.
    fn stopped(&self) -> bool;
    /// Tells the person.
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

/// What shows that one may ask.
pub(crate) enum Access {
    /// Nothing.
    Open,
    /// A hub's token. It goes to the first host of a redirection only.
    Token(String),
    /// A signature in each address.
    Signed(Store),
}

/// A client of web servers, hubs and object stores.
pub(crate) struct Client {
    agent: Agent,
    access: Access,
    pub(crate) policy: Policy,
    warned: AtomicBool,
}

impl Client {
    pub(crate) fn new(policy: Policy, access: Access) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            // A signature is for one host.
            .max_redirects(if matches!(access, Access::Signed(_)) { 0 } else { 10 })
            .timeout_connect(Some(Duration::from_secs(20).min(policy.request)))
            .timeout_recv_response(Some(policy.request))
            .user_agent(concat!("imp-flow/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), access, policy, warned: AtomicBool::new(false) }
    }

    /// One request, without another try.
    pub(crate) fn get(&self, url: &str, headers: &[(&str, String)]) -> Result<Response<Body>, Trouble> {
        self.send(url, headers, self.policy.request)
    }

    /// A request for a file that the server sends only as a whole: it may take as long as it takes.
    pub(crate) fn get_whole(&self, url: &str) -> Result<Response<Body>, Trouble> {
        self.send(url, &[], WHOLE)
    }

    /// One request for a short text.
    pub(crate) fn get_text(&self, url: &str) -> Result<String, Trouble> {
        let mut response = self.get(url, &[])?;
        let read = response.body_mut().with_config().limit(LONGEST_TEXT).read_to_string();
        read.map_err(|error| Trouble::transient(format!("{} was cut off in its list of files ({error})", host(url))))
    }

    /// Whether there is such a file.
    pub(crate) fn exists(&self, url: &str) -> Result<bool, Trouble> {
        let response = self.call(url, &[("range", "bytes=0-0".into())], self.policy.request)?;
        if response.status() == 404 { Ok(false) } else { self.judge(url, response).map(|_| true) }
    }

    fn send(&self, url: &str, headers: &[(&str, String)], body: Duration) -> Result<Response<Body>, Trouble> {
        self.judge(url, self.call(url, headers, body)?)
    }

    fn call(&self, url: &str, headers: &[(&str, String)], body: Duration) -> Result<Response<Body>, Trouble> {
        let address = match &self.access {
            Access::Signed(store) => store.address(url),
            _ => url.into(),
        };
        let mut request = self.agent.get(&address).config().timeout_recv_body(Some(body)).build();
        if let Access::Token(token) = &self.access {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.call().map_err(|error| failed(&address, error))
    }

    fn judge(&self, url: &str, mut response: Response<Body>) -> Result<Response<Body>, Trouble> {
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            status if status == 408 || status == 429 || status >= 500 => {
                let after = response.headers().get("retry-after").and_then(|after| after.to_str().ok()?.parse().ok());
                let what = format!("{} answers {}", host(url), response.status());
                Err(Trouble::Transient { what, after: after.map(Duration::from_secs) })
            }
            _ => Err(Trouble::Fatal(match &self.access {
                Access::Signed(store) => store.refused(url, &mut response),
                access => refused(url, &response, matches!(access, Access::Token(_))),
            })),
        }
    }

    /// Tries until it works, a failure is final, or patience ends. `attempt` says whether it made some way before it
    /// failed: then patience begins anew.
    pub(crate) fn patiently<T>(
        &self,
        watch: &impl Watch,
        mut attempt: impl FnMut(&mut bool) -> Result<T, Trouble>,
    ) -> Result<T, StageError> {
        let mut failures = 0;
        loop {
            let mut progress = false;
            let (what, after) = match attempt(&mut progress) {
                Ok(value) => return Ok(value),
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Transient { what, after }) => (what, after),
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
                    "check the connection and run it again: what has arrived is kept",
                ));
            }
            if !progress && !self.warned.swap(true, Ordering::Relaxed) {
                watch.warn(format!("{what}: trying again, up to {} times", self.policy.attempts));
            }
            let pause = self.policy.first.saturating_mul(1 << (failures - 1).min(16)).min(self.policy.longest);
            sleep(watch, after.unwrap_or(pause).min(Duration::from_mins(5)))?;
        }
    }
}

/// Sleeps in short pieces, so that a stop is soon noticed.
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

/// The host in a URL. For messages.
pub(crate) fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// A URL without what could be a secret. For messages.
pub(crate) fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let path = rest.split_once('/').map_or("", |(_, path)| path);
    format!("{scheme}://{}/{}", host(url), path.split('?').next().unwrap_or_default())
}

fn failed(url: &str, error: ureq::Error) -> Trouble {
    match error {
        ureq::Error::BadUri(_) | ureq::Error::RequireHttpsOnly(_) | ureq::Error::TooManyRedirects => {
            Trouble::Fatal(StageError::failed(format!("{}: {error}", shown(url)), "correct `source` in the pipeline"))
        }
        error => Trouble::transient(format!("{} can't be reached ({error})", host(url))),
    }
}

fn refused(url: &str, response: &Response<Body>, token: bool) -> StageError {
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (message, help) = match (response.status().as_u16(), header("x-error-code")) {
        (_, "GatedRepo") => {
            let page = hub_page(url);
            let help = format!("accept the licence at {page}, then set HF_TOKEN to a token of that account");
            ("this repository is gated".into(), help)
        }
        (_, "RevisionNotFound") => ("there is no such revision".into(), "correct what follows `@` in `source`".into()),
        (_, "EntryNotFound") => ("there is no such file".into(), "correct `files`".into()),
        (401 | 404, "RepoNotFound") | (401, _) if !token => (
            format!("{} says that it does not exist, or is private", response.status()),
            "check the name in `source`; for a private repository set HF_TOKEN".into(),
        ),
        (401, _) => (
            format!("the server does not accept the token ({})", response.status()),
            "set HF_TOKEN to a token that is valid and may read this repository".into(),
        ),
        (403, _) => (
            format!("access is refused ({})", response.status()),
            "ask its owner for access, or download it with a browser and give the path of the file".into(),
        ),
        (404 | 410, _) => ("there is no such file".into(), "check `source`: it may have moved".into()),
        (_, _) => (format!("the server answers {}", response.status()), "check `source`".into()),
    };
    StageError::failed(format!("{}: {message}", shown(url)), help)
}

/// The page of the repository that a hub's URL is about.
fn hub_page(url: &str) -> String {
    let shown = shown(url);
    let page = shown.replacen("/api/models/", "/", 1).replacen("/api/datasets/", "/datasets/", 1);
    let end = page.find("/resolve/").or_else(|| page.find("/revision/")).unwrap_or(page.len());
    page[..end].to_string()
}

/// What a broken read means.
pub(crate) fn cut(url: &str, error: &io::Error) -> Trouble {
    Trouble::transient(format!("the connection to {} was cut ({error})", host(url)))
}
