//! The report of a run that goes on, over HTTP on this machine: a page, and its data for when they have changed. Only who knows the
//! token in the address may read it, and nothing can be changed. Independent of where the data comes from.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, time::timeout};

use super::{
    Key,
    connections::{Signals, accept},
    http::is_this_machine,
};
use crate::report;

/// How long connections may still take when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What is served: it changes while the run goes on.
pub(crate) struct Live {
    token: Key,
    shown: Mutex<Shown>,
}

struct Shown {
    title: String,
    /// The data of the page as JSON.
    data: Arc<str>,
    /// Names this data: a browser that has it need not get it again.
    tag: String,
    /// When someone last asked.
    asked: Option<Instant>,
}

impl Live {
    /// Data for those who know `token`.
    pub(crate) fn new(token: &str, title: String, data: String) -> Self {
        let tag = tag(&data);
        Self { token: Key::new(token), shown: Mutex::new(Shown { title, data: data.into(), tag, asked: None }) }
    }

    /// Shows other data from now on.
    pub(crate) fn show(&self, title: String, data: String) {
        let mut shown = self.lock();
        shown.tag = tag(&data);
        (shown.title, shown.data) = (title, data.into());
    }

    /// Whether someone asked within the last `time`.
    pub(crate) fn is_watched(&self, time: Duration) -> bool {
        self.lock().asked.is_some_and(|asked| asked.elapsed() < time)
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The page with the data of this moment.
    fn page(&self) -> Response {
        let (title, data) = {
            let mut shown = self.lock();
            shown.asked = Some(Instant::now());
            (shown.title.clone(), shown.data.clone())
        };
        ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], Body::from(report::live_html(&title, &data)))
            .into_response()
    }

    /// The data, unless the browser has it.
    fn data(&self, headers: &HeaderMap) -> Response {
        let (data, tag) = {
            let mut shown = self.lock();
            shown.asked = Some(Instant::now());
            (shown.data.clone(), shown.tag.clone())
        };
        let has = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
        if has == Some(&tag) {
            return StatusCode::NOT_MODIFIED.into_response();
        }
        let named = [(header::CONTENT_TYPE, "application/json".to_string()), (header::ETAG, tag)];
        (named, Body::from(data.to_string())).into_response()
    }
}

fn tag(data: &str) -> String {
    format!("\"{}\"", &blake3::hash(data.as_bytes()).to_hex()[..16])
}

/// Serves on `listener`, which only this machine reaches, until Ctrl-C or SIGTERM.
pub(crate) async fn watch(listener: TcpListener, live: Arc<Live>) -> io::Result<()> {
    let mut signals = Signals::listen()?;
    let router = Router::new().fallback(answer).with_state(live);
    let graceful = accept(listener, &router, &mut signals).await;
    tokio::select! {
        _ = timeout(LAST_WORDS, graceful.shutdown()) => {}
        () = signals.next() => {}
    }
    Ok(())
}

/// Headers of every answer: nothing is kept, nothing is taken for what it is not, and no other page gets at it.
const GUARDS: [(header::HeaderName, &str); 5] = [
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "frame-ancestors 'none'"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

async fn answer(State(live): State<Arc<Live>>, request: Request) -> Response {
    let mut response = route(&live, &request);
    for (name, value) in GUARDS {
        response.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    response
}

fn route(live: &Live, request: &Request) -> Response {
    let headers = request.headers();
    // A web page whose own name leads here must not ask in its visitor's name (DNS rebinding).
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if !is_this_machine(host) {
        return refused(StatusCode::FORBIDDEN, "the Host header must name this machine: localhost or 127.0.0.1");
    }
    if request.method() != Method::GET {
        return ([(header::ALLOW, "GET")], refused(StatusCode::METHOD_NOT_ALLOWED, "this page can only be read"))
            .into_response();
    }
    let path = request.uri().path().trim_start_matches('/');
    let (token, file) = path.split_once('/').map_or((path, None), |(token, file)| (token, Some(file)));
    match file {
        _ if !live.token.is(token) => refused(StatusCode::NOT_FOUND, "open the whole address that imp-flow watch says"),
        // The page asks for its data relative to the folder that it is in.
        None => (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, format!("/{token}/"))]).into_response(),
        Some("") => live.page(),
        Some("data") => live.data(headers),
        Some(_) => refused(StatusCode::NOT_FOUND, "there is nothing else here"),
    }
}

fn refused(status: StatusCode, why: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], format!("{why}\n")).into_response()
}
