//! For tests, here and of the whole program: an object store on loopback that misbehaves on demand.
#![allow(clippy::unwrap_used, reason = "a test that can't continue should say where")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// How the server misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "each of the tests that include this file uses some")]
pub(crate) enum Fault {
    /// Answers everything with this status.
    Status(u16),
    /// Says that the client's clock is wrong.
    Skewed,
    /// Answers nothing.
    Silent,
    /// Sends half of each object, then hangs up.
    Cut,
    /// The same, but only once per object.
    CutOnce,
    /// Sends other bytes of the same length.
    WrongBytes,
    /// Takes nothing.
    ReadOnly,
    /// Knows no conditions.
    NoConditions,
    /// Hangs up in the middle of what is sent.
    CutSending,
    /// Joins parts, and hangs up instead of saying so.
    LostAnswer,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// The path and the query, as sent.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

type Check = dyn Fn(&Request) -> bool + Send + Sync;

#[derive(Default)]
struct State {
    /// By key, with the name of the bucket.
    objects: BTreeMap<String, Vec<u8>>,
    parts: BTreeMap<String, Vec<u8>>,
    fault: Option<Fault>,
    /// Only for keys that contain this.
    only: String,
    cut: Vec<String>,
    seen: Vec<Request>,
    check: Option<Arc<Check>>,
}

/// The server. It ends with the process.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: String,
    state: Arc<Mutex<State>>,
}

#[allow(dead_code, reason = "each of the tests that include this file uses some")]
impl Server {
    /// A server with the bucket `data`.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: format!("http://{}", listener.local_addr().unwrap()), state: Arc::default() };
        let state = server.state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                // A client that hangs up ends its thread.
                thread::spawn(move || drop(serve(stream, &state)));
            }
        });
        server
    }

    /// Misbehaves with objects whose keys contain `only`.
    pub(crate) fn misbehave(&self, fault: Fault, only: &str) {
        let mut state = self.state.lock().unwrap();
        (state.fault, state.only) = (Some(fault), only.into());
    }

    pub(crate) fn behave(&self) {
        self.state.lock().unwrap().fault = None;
    }

    /// Refuses requests for which `check` is false.
    pub(crate) fn check(&self, check: impl Fn(&Request) -> bool + Send + Sync + 'static) {
        self.state.lock().unwrap().check = Some(Arc::new(check));
    }

    /// The requests until now.
    pub(crate) fn seen(&self) -> Vec<Request> {
        self.state.lock().unwrap().seen.clone()
    }

    /// The keys of all objects, without the bucket.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.state.lock().unwrap().objects.keys().map(|key| key.strip_prefix("data/").unwrap().into()).collect()
    }

    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.state.lock().unwrap().objects.get(&format!("data/{key}")).cloned()
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        self.state.lock().unwrap().objects.insert(format!("data/{key}"), bytes.into());
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_string()),
        }
    }
    let mut first = lines[0].split(' ');
    let (method, target) = (first.next().unwrap().to_string(), first.next().unwrap().to_string());
    let header = |line: &String| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_string()));
    let headers: Vec<_> = lines[1..].iter().filter_map(header).collect();
    let mut request = Request { method, target, headers, body: Vec::new() };
    let length: u64 = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or_default();
    let fault = {
        let state = state.lock().unwrap();
        state.fault.filter(|_| request.key().contains(&state.only))
    };
    if fault == Some(Fault::CutSending) && length > 1 {
        reader.take(length / 2).read_to_end(&mut request.body)?;
        return Ok(());
    }
    reader.take(length).read_to_end(&mut request.body)?;
    let answer = {
        let mut state = state.lock().unwrap();
        state.seen.push(Request { body: Vec::new(), ..request.clone() });
        state.answer(&request, fault)
    };
    if fault == Some(Fault::Silent) {
        thread::sleep(Duration::from_secs(20));
        return Ok(());
    }
    answer.send(stream, request.method == "HEAD")
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap().trim_start_matches('/')
    }

    /// The bucket and the key.
    fn key(&self) -> String {
        unescape(self.path())
    }

    pub(crate) fn query(&self, name: &str) -> Option<String> {
        let query = self.target.split_once('?')?.1;
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(known, _)| *known == name).map(|(_, value)| unescape(value))
    }
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Hangs up after so many bytes of the body.
    cut: Option<usize>,
}

impl Answer {
    fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::new(status, format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>No</Message></Error>"))
    }

    fn send(self, mut stream: TcpStream, head: bool) -> std::io::Result<()> {
        let mut text = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", self.status);
        if self.status != 204 {
            write!(text, "content-length: {}\r\n", self.body.len()).unwrap();
        }
        for (name, value) in &self.headers {
            write!(text, "{name}: {value}\r\n").unwrap();
        }
        stream.write_all((text + "\r\n").as_bytes())?;
        if !head {
            stream.write_all(&self.body[..self.cut.unwrap_or(self.body.len())])?;
        }
        stream.flush()
    }
}

impl State {
    fn answer(&mut self, request: &Request, fault: Option<Fault>) -> Answer {
        if let Some(Fault::Status(status)) = fault {
            return Answer::error(status, "SlowDown");
        }
        if fault == Some(Fault::Skewed) {
            return Answer::error(403, "RequestTimeTooSkewed");
        }
        if self.check.as_ref().is_some_and(|check| !check(request)) {
            return Answer::error(403, "SignatureDoesNotMatch");
        }
        let key = request.key();
        if key.split('/').next() != Some("data") {
            return Answer::error(404, "NoSuchBucket");
        }
        match request.method.as_str() {
            "GET" if request.query("list-type").is_some() => self.list(request),
            "GET" | "HEAD" => self.read(request, &key, fault),
            "DELETE" => {
                self.objects.remove(&key);
                Answer::new(204, "")
            }
            _ if fault == Some(Fault::ReadOnly) => Answer::error(403, "AccessDenied"),
            "POST" => self.post(request, key, fault),
            _ => self.write(request, key, fault),
        }
    }

    fn read(&mut self, request: &Request, key: &str, fault: Option<Fault>) -> Answer {
        let Some(object) = self.objects.get(key) else { return Answer::error(404, "NoSuchKey") };
        let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let from: usize = range.and_then(|from| from.parse().ok()).unwrap_or_default();
        if from > 0 && from >= object.len() {
            return Answer::error(416, "InvalidRange");
        }
        let mut answer = Answer::new(if range.is_some() { 206 } else { 200 }, &object[from..]);
        if range.is_some() {
            let all = object.len();
            answer.headers.push(("content-range", format!("bytes {from}-{}/{all}", all - 1)));
        }
        match fault {
            Some(Fault::WrongBytes) => answer.body.iter_mut().for_each(|byte| *byte ^= 1),
            Some(Fault::Cut) => answer.cut = Some(answer.body.len() / 2),
            Some(Fault::CutOnce) if !self.cut.iter().any(|known| known == key) => {
                self.cut.push(key.into());
                answer.cut = Some(answer.body.len() / 2);
            }
            _ => {}
        }
        answer
    }

    fn write(&mut self, request: &Request, key: String, fault: Option<Fault>) -> Answer {
        let mut answer = Answer::new(200, "");
        answer.headers.push(("etag", format!("\"{}\"", request.body.len())));
        if let Some(part) = request.query("partNumber") {
            self.parts.insert(format!("{key} {part:>5}"), request.body.clone());
            return answer;
        }
        if request.header("if-none-match").is_some() {
            if fault == Some(Fault::NoConditions) {
                return Answer::error(501, "NotImplemented");
            }
            if self.objects.contains_key(&key) {
                return Answer::error(412, "PreconditionFailed");
            }
        }
        self.objects.insert(key, request.body.clone());
        answer
    }

    fn post(&mut self, request: &Request, key: String, fault: Option<Fault>) -> Answer {
        let space = "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"";
        if request.query("uploads").is_some() {
            let text = format!(
                "<InitiateMultipartUploadResult {space}><UploadId>an upload</UploadId></InitiateMultipartUploadResult>"
            );
            return Answer::new(200, text);
        }
        let prefix = format!("{key} ");
        let parts: Vec<Vec<u8>> =
            self.parts.extract_if(.., |name, _| name.starts_with(&prefix)).map(|(_, part)| part).collect();
        if parts.is_empty() {
            return Answer::error(404, "NoSuchUpload");
        }
        self.objects.insert(key, parts.concat());
        let text = format!("<CompleteMultipartUploadResult {space}><ETag>x</ETag></CompleteMultipartUploadResult>");
        Answer { cut: (fault == Some(Fault::LostAnswer)).then_some(0), ..Answer::new(200, text) }
    }

    /// A page of the list: three objects, and the token of the next page.
    fn list(&self, request: &Request) -> Answer {
        let prefix = format!("data/{}", request.query("prefix").unwrap_or_default());
        let after = request.query("continuation-token").unwrap_or_default();
        let mut keys = self.objects.iter().filter(|(key, _)| key.starts_with(&prefix) && **key > after).peekable();
        let mut xml = String::from("<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        let mut last = String::new();
        for (key, object) in keys.by_ref().take(3) {
            let (name, size) = (key.strip_prefix("data/").unwrap(), object.len());
            write!(
                xml,
                "<Contents><Key>{name}</Key><Size>{size}</Size><LastModified>2026-11-01T10:00:00.000Z</LastModified></Contents>"
            )
            .unwrap();
            last.clone_from(key);
        }
        let more = keys.peek().is_some();
        write!(xml, "<IsTruncated>{more}</IsTruncated>").unwrap();
        if more {
            write!(xml, "<NextContinuationToken>{last}</NextContinuationToken>").unwrap();
        }
        Answer::new(200, xml + "</ListBucketResult>")
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
            plain.push(u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap());
        } else {
            plain.push(byte);
        }
    }
    String::from_utf8(plain).unwrap()
}
