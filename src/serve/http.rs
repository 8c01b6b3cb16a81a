//! The HTTP side: routes, who may ask, limits, and answers in one piece or as they come. Independent of what requests mean.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, Request, State},
    http::{HeaderMap, Method, StatusCode, Uri, header},
    middleware::{Next, from_fn_with_state},
    response::{
        IntoResponse, Response,
        sse::{Event as SseEvent, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::stream;
use imp_stages::conversation::Reply;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    Options,
    answer::Head,
    request::{Asked, Refusal, read},
    worker::{Event, Task, Worker},
};
use crate::report;

/// Most bytes of a request's body: the largest image in base64, and some text.
const LARGEST_BODY: usize = 32_000_000;
/// After so long a streamed answer begins, whether or not there is something of it yet.
const FIRST: Duration = Duration::from_secs(10);
/// How long a client may take to send it.
const BODY_TIME: Duration = Duration::from_mins(1);

/// What all requests share.
pub(super) struct Shared {
    options: Options,
    worker: Worker,
    places: Arc<Semaphore>,
    is_ending: AtomicBool,
    started: i64,
}

impl Shared {
    pub(super) fn new(options: Options, worker: Worker) -> Self {
        let places = Arc::new(Semaphore::new(options.queue));
        Self { options, worker, places, is_ending: AtomicBool::new(false), started: Timestamp::now().as_second() }
    }

    /// Refuses all further requests.
    pub(super) fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    fn model(&self) -> Value {
        json!({"id": self.options.name, "object": "model", "created": self.started, "owned_by": "imp-flow"})
    }
}

/// The routes.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let wrong = |status: u16, message: &'static str| move || async move { refused(&Refusal::new(status, message)) };
    Router::new()
        .route("/health", get(|| async { json_response(StatusCode::OK, &json!({"status": "ok"})) }))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(one_model))
        .route("/v1/chat/completions", post(completions))
        .fallback(wrong(404, "there are /v1/chat/completions, /v1/models and /health"))
        .method_not_allowed_fallback(wrong(405, "this address does not take this method"))
        .layer(from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": [shared.model()]}))
}

async fn one_model(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    if id == shared.options.name {
        return json_response(StatusCode::OK, &shared.model());
    }
    let message = format!("there is no such model: this server has `{}`", shared.options.name);
    refused(&Refusal::new(404, message).code("model_not_found"))
}

/// Lets through only who may ask, and logs what is not logged elsewhere.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let response = match may_ask(&shared.options, request.headers(), request.uri().path()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refused(&refusal),
    };
    if response.extensions().get::<LoggedElsewhere>().is_none() {
        Entry::new(&shared, &method, &uri).end(&response);
    }
    response
}

fn may_ask(options: &Options, headers: &HeaderMap, path: &str) -> Result<(), Refusal> {
    // A web page whose own name leads here must not ask in its visitor's name (DNS rebinding).
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if options.is_loopback && !is_this_machine(host) {
        return Err(Refusal::new(403, "the Host header must name this machine: localhost, 127.0.0.1 or [::1]"));
    }
    let Some(key) = options.key.as_ref().filter(|_| path != "/health") else { return Ok(()) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_right = given
        .split_once(' ')
        .is_some_and(|(scheme, given)| scheme.eq_ignore_ascii_case("bearer") && key.is(given.trim()));
    if is_right {
        return Ok(());
    }
    Err(Refusal::new(401, "this server wants its key: Authorization: Bearer KEY").code("invalid_api_key"))
}

/// Whether a Host header names the machine itself.
pub(super) fn is_this_machine(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && !name.ends_with(':') => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

async fn completions(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let mut entry = Entry::new(&shared, request.method(), request.uri());
    let response = match answer(&shared, request, &mut entry).await {
        Ok(Answer::Whole(body)) => json_response(StatusCode::OK, &body),
        Ok(Answer::Stream(stream)) => {
            entry.is_elsewhere = true;
            (*stream).into_response()
        }
        Err(refusal) => refused(&refusal),
    };
    entry.end(&response);
    let mut response = response;
    response.extensions_mut().insert(LoggedElsewhere);
    response
}

enum Answer {
    Whole(Value),
    Stream(Box<Streaming>),
}

async fn answer(shared: &Arc<Shared>, request: Request, entry: &mut Entry) -> Result<Answer, Refusal> {
    if shared.is_ending.load(Ordering::Relaxed) {
        return Err(ending());
    }
    // A page of another origin can send other types without being asked about it.
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(Refusal::new(415, "the body must be JSON: Content-Type: application/json"));
    }
    // Before the body is read, so that the queue bounds the memory, too.
    let take = || shared.places.clone().try_acquire_owned();
    let place = take().or_else(|_| {
        shared.worker.forget_abandoned();
        take()
    });
    let place = place.map_err(|_| {
        let message = format!(
            "as many requests as --queue allows ({}) wait or are answered: try again later",
            shared.options.queue
        );
        Refusal::new(429, message).code("queue_full")
    })?;
    let body = body(request).await?;
    let asked = read(&body, &shared.options.name, shared.options.defaults, rand::random())?;
    drop(body);
    let Asked { dialogue, manner, stream, include_usage } = asked;
    let (events, mut answer) = mpsc::unbounded_channel();
    shared.worker.add(Task { dialogue, manner, _place: place, events });
    let head = Head {
        id: format!("chatcmpl-{:016x}", rand::random::<u64>()),
        created: Timestamp::now().as_second(),
        model: shared.options.name.clone(),
    };
    if stream {
        // The first event tells whether there is an answer. A proxy that hears nothing for long would hang up.
        let first = timeout(FIRST, answer.recv()).await.ok().map(|event| event.unwrap_or(Event::Broken));
        if let Some(refusal) = first.as_ref().and_then(refusal_of) {
            return Err(refusal);
        }
        let streaming = Streaming::new(head, answer, include_usage, entry.of_stream(), first);
        return Ok(Answer::Stream(Box::new(streaming)));
    }
    loop {
        match answer.recv().await.unwrap_or(Event::Broken) {
            Event::Part(_) => {}
            Event::Done(reply) => {
                let body = head.whole(&reply);
                entry.reply = Some(reply);
                return Ok(Answer::Whole(body));
            }
            event => return Err(refusal_of(&event).unwrap_or_else(broken)),
        }
    }
}

async fn body(request: Request) -> Result<axum::body::Bytes, Refusal> {
    let too_large = || Refusal::new(413, format!("the body is larger than {LARGEST_BODY} bytes"));
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: usize| length > LARGEST_BODY) {
        return Err(too_large());
    }
    match timeout(BODY_TIME, to_bytes(request.into_body(), LARGEST_BODY)).await {
        Err(_) => Err(Refusal::new(408, format!("the body took longer than {} seconds", BODY_TIME.as_secs()))),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            let is_long = error.to_string().contains("length limit");
            Err(if is_long { too_large() } else { Refusal::new(400, "the body ended early") })
        }
    }
}

fn ending() -> Refusal {
    Refusal::new(503, "the server ends")
}

fn broken() -> Refusal {
    Refusal::new(500, "the program has a fault: its log says more")
}

/// The refusal that an event is, if it is one.
fn refusal_of(event: &Event) -> Option<Refusal> {
    match event {
        Event::Part(_) | Event::Done(_) => None,
        Event::Refused(error) => Some(Refusal::from(error)),
        Event::Ending => Some(ending()),
        Event::Broken => Some(broken()),
    }
}

fn refused(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(status, &refusal.body());
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    }
    response
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Body::from(body.to_string())).into_response()
}

/// An answer that is sent as it comes.
struct Streaming {
    head: Head,
    events: mpsc::UnboundedReceiver<Event>,
    include_usage: bool,
    entry: Entry,
    /// What is to be sent.
    pending: VecDeque<String>,
    is_over: bool,
}

impl Streaming {
    fn new(
        head: Head,
        events: mpsc::UnboundedReceiver<Event>,
        include_usage: bool,
        entry: Entry,
        first: Option<Event>,
    ) -> Self {
        let mut streaming = Self { head, events, include_usage, entry, pending: VecDeque::new(), is_over: false };
        streaming.part(&json!({"role": "assistant", "content": ""}));
        if let Some(event) = first {
            streaming.on(event);
        }
        streaming
    }

    fn part(&mut self, delta: &Value) {
        self.pending.push_back(self.head.part(delta, None, self.include_usage).to_string());
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Part(text) => return self.part(&json!({"content": text})),
            Event::Done(reply) => {
                self.pending.push_back(self.head.part(&json!({}), Some(reply.ended), self.include_usage).to_string());
                if self.include_usage {
                    self.pending.push_back(self.head.counts(&reply).to_string());
                }
                self.pending.push_back("[DONE]".into());
                self.entry.reply = Some(reply);
            }
            event => {
                let refusal = refusal_of(&event).unwrap_or_else(broken);
                self.pending.push_back(refusal.body().to_string());
                self.entry.status = Some(refusal.status);
            }
        }
        self.is_over = true;
    }

    async fn next(&mut self) -> Option<String> {
        while self.pending.is_empty() && !self.is_over {
            let event = self.events.recv().await.unwrap_or(Event::Broken);
            self.on(event);
        }
        let next = self.pending.pop_front();
        self.entry.is_over = self.is_over && self.pending.is_empty();
        next
    }

    fn into_response(self) -> Response {
        let parts = stream::unfold(self, |mut streaming| async move {
            let data = streaming.next().await?;
            Some((Ok::<_, Infallible>(SseEvent::default().data(data)), streaming))
        });
        Sse::new(parts).keep_alive(KeepAlive::default()).into_response()
    }
}

/// Says that a request is logged when its answer ends.
#[derive(Clone)]
struct LoggedElsewhere;

/// A line of the log, written when the request is over: when this is dropped, which also happens when the client leaves.
struct Entry {
    method: Method,
    uri: Uri,
    style: report::Style,
    start: Instant,
    status: Option<u16>,
    reply: Option<Box<Reply>>,
    is_over: bool,
    is_elsewhere: bool,
}

impl Entry {
    fn new(shared: &Shared, method: &Method, uri: &Uri) -> Self {
        Self {
            method: method.clone(),
            uri: uri.clone(),
            style: shared.options.style,
            start: Instant::now(),
            status: None,
            reply: None,
            is_over: false,
            is_elsewhere: false,
        }
    }

    /// The entry of the same request's stream, which is over later.
    fn of_stream(&self) -> Self {
        let (method, uri) = (self.method.clone(), self.uri.clone());
        let Self { style, start, .. } = *self;
        Self { method, uri, style, start, status: Some(200), reply: None, is_over: false, is_elsewhere: false }
    }

    /// Notes that the request has its answer.
    fn end(&mut self, response: &Response) {
        self.status = Some(response.status().as_u16());
        self.is_over = true;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.is_elsewhere {
            let request = report::Request {
                method: self.method.as_str(),
                path: self.uri.path(),
                status: self.status,
                took: self.start.elapsed(),
                reply: self.reply.as_deref(),
                left: !self.is_over,
            };
            report::request(&request, self.style);
        }
    }
}
