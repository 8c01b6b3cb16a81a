//! For tests: a web server inside the process that misbehaves on demand.
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// How the server misbehaves in one response.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Sends this many bytes of the body, then hangs up.
    CutAfter(usize),
    /// Answers with this status, and a header.
    Status(u16, &'static str, &'static str),
    /// Ignores `Range`.
    Whole,
    /// Sends half of the body, and the rest after a pause.
    Slow(Duration),
    /// Both of the above.
    WholeSlow(Duration),
    /// Redirects the client.
    Redirect(String),
    /// Answers with these bytes only.
    Raw(Vec<u8>),
    /// Reports a different length.
    OtherLength(u64),
    /// Sends different bytes of the same length.
    OtherBytes,
    /// The same, with these validators: `ETag` and `Last-Modified`. Ignores `If-Range`.
    OtherContent(Option<&'static str>, Option<&'static str>),
}

/// A file on the server.
#[derive(Clone, Default)]
struct Served {
    content: Vec<u8>,
    etag: Option<String>,
    modified: Option<String>,
    /// For the next requests, one each; with `forever`, the first applies to all of them.
    faults: Vec<Fault>,
    forever: bool,
}

/// Opens the tunnel that the first client asks for (`CONNECT`). Returns the address, and what will be the first bytes in it.
pub(super) fn tunnel() -> (String, thread::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let bytes = thread::spawn(move || {
        let mut stream = BufReader::new(listener.accept().unwrap().0);
        let mut line = String::from("-");
        while !line.trim_end().is_empty() {
            line.clear();
            stream.read_line(&mut line).unwrap();
        }
        stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        stream.fill_buf().unwrap().to_vec()
    });
    (address, bytes)
}

/// A port on which connections are accepted and never answered.
pub(super) fn silent() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    (format!("http://{}", listener.local_addr().unwrap()), listener)
}

/// A request that was received.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) path: String,
    pub(super) headers: HashMap<String, String>,
}

/// Gets the target of each request, including the query; may answer with a status and a text.
type Gate = Box<dyn Fn(&str) -> Option<(u16, String)> + Send>;

#[derive(Default)]
struct State {
    files: HashMap<String, Served>,
    gate: Option<Gate>,
    seen: Vec<Seen>,
}

/// The server, which ends with the process.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = shared.clone();
                // A client that hangs up is not an error of the server.
                thread::spawn(move || drop(answer(&stream.unwrap(), &shared)));
            }
        });
        Self { address, state }
    }

    /// Serves `content` at `path`; the first requests meet `faults`, one each.
    pub(super) fn serve(&self, path: &str, content: impl Into<Vec<u8>>, faults: &[Fault]) -> String {
        let etag = Some(format!("\"{path}\""));
        let served = Served { content: content.into(), etag, modified: None, faults: faults.to_vec(), forever: false };
        self.state.lock().unwrap().files.insert(path.into(), served);
        format!("{}{path}", self.address)
    }

    /// Serves `content` at `path`; every request meets `fault`.
    pub(super) fn serve_always(&self, path: &str, content: impl Into<Vec<u8>>, fault: Fault) -> String {
        let url = self.serve(path, content, &[fault]);
        self.state.lock().unwrap().files.get_mut(path).unwrap().forever = true;
        url
    }

    /// Sends these validators with the content at `path`: `ETag` and `Last-Modified`.
    pub(super) fn mark(&self, path: &str, etag: Option<&str>, modified: Option<&str>) {
        let mut state = self.state.lock().unwrap();
        let file = state.files.get_mut(path).unwrap();
        (file.etag, file.modified) = (etag.map(Into::into), modified.map(Into::into));
    }

    /// Lets `gate` see each request before it is served.
    pub(super) fn guard(&self, gate: impl Fn(&str) -> Option<(u16, String)> + Send + 'static) {
        self.state.lock().unwrap().gate = Some(Box::new(gate));
    }

    /// Replaces the content at `path` and its `ETag`.
    pub(super) fn change(&self, path: &str, content: impl Into<Vec<u8>>) {
        let mut state = self.state.lock().unwrap();
        let file = state.files.get_mut(path).unwrap();
        (file.content, file.etag, file.faults) = (content.into(), Some("\"changed\"".into()), Vec::new());
    }

    /// The requests for `path`.
    pub(super) fn seen(&self, path: &str) -> Vec<Seen> {
        self.state.lock().unwrap().seen.iter().filter(|seen| seen.path == path).cloned().collect()
    }
}

fn answer(stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let target = line.split(' ').nth(1).unwrap_or_default().to_string();
        let path = target.split('?').next().unwrap_or_default().to_string();
        let mut headers = HashMap::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let Some((name, value)) = header.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_string());
        }
        let (file, fault) = {
            let mut state = state.lock().unwrap();
            state.seen.push(Seen { path: path.clone(), headers: headers.clone() });
            if let Some((status, text)) = state.gate.as_ref().and_then(|gate| gate(&target)) {
                write!(&*stream, "HTTP/1.1 {status} Told\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
                continue;
            }
            match state.files.get_mut(&path) {
                None => (Served::default(), Some(Fault::Status(404, "x-none", ""))),
                Some(file) => {
                    let fault = if file.forever { file.faults.first().cloned() } else { None };
                    let fault = fault.or_else(|| (!file.faults.is_empty()).then(|| file.faults.remove(0)));
                    (file.clone(), fault)
                }
            }
        };
        if !respond(stream, &file, fault.as_ref(), &headers)? {
            return Ok(());
        }
    }
}

/// The part of the content that the request's `Range` header asks for: first and last byte.
fn requested_range(file: &Served, fault: Option<&Fault>, headers: &HashMap<String, String>) -> Option<(usize, usize)> {
    let etag = file.etag.as_deref().unwrap_or_default();
    let ignored = matches!(fault, Some(Fault::OtherContent(..)));
    let same = ignored || headers.get("if-range").is_none_or(|expected| expected == etag);
    if !same || matches!(fault, Some(Fault::Whole | Fault::WholeSlow(_))) {
        return None;
    }
    let (from, to) = headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
    Some((from.parse().ok()?, to.parse::<usize>().ok()?.min(file.content.len().saturating_sub(1))))
}

/// Sends one response. Returns whether the connection stays open.
fn respond(
    mut stream: &TcpStream,
    file: &Served,
    fault: Option<&Fault>,
    headers: &HashMap<String, String>,
) -> std::io::Result<bool> {
    match fault {
        Some(Fault::Status(status, name, value)) => {
            write!(stream, "HTTP/1.1 {status} Told\r\nContent-Length: 0\r\n{name}: {value}\r\n\r\n")?;
            return Ok(true);
        }
        Some(Fault::Redirect(to)) => {
            write!(stream, "HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {to}\r\n\r\n")?;
            return Ok(true);
        }
        Some(Fault::Raw(bytes)) => {
            stream.write_all(bytes)?;
            stream.shutdown(std::net::Shutdown::Write)?;
            return Ok(false);
        }
        _ => {}
    }
    let range = requested_range(file, fault, headers);
    let mut total = file.content.len() as u64;
    if let Some(Fault::OtherLength(length)) = fault {
        total = *length;
    }
    let mut body = file.content.clone();
    if let Some((from, to)) = range {
        if from >= body.len() {
            write!(stream, "HTTP/1.1 416 Range\r\nContent-Length: 0\r\nContent-Range: bytes */{total}\r\n\r\n")?;
            return Ok(true);
        }
        body = body[from..=to].to_vec();
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 206 Partial\r\nContent-Length: {length}\r\nContent-Range: bytes {from}-{to}/{total}\r\n"
        )?;
    } else {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n")?;
    }
    let (etag, modified) = match fault {
        Some(Fault::OtherContent(etag, modified)) => (*etag, *modified),
        _ => (file.etag.as_deref(), file.modified.as_deref()),
    };
    for (name, value) in [("ETag", etag), ("Last-Modified", modified)] {
        if let Some(value) = value {
            write!(stream, "{name}: {value}\r\n")?;
        }
    }
    write!(stream, "\r\n")?;
    if matches!(fault, Some(Fault::OtherBytes | Fault::OtherContent(..))) {
        for byte in &mut body {
            *byte ^= 1;
        }
    }
    if let Some(Fault::CutAfter(bytes)) = fault {
        stream.write_all(&body[..(*bytes).min(body.len())])?;
        stream.shutdown(std::net::Shutdown::Both)?;
        return Ok(false);
    }
    let (first, rest) = body.split_at(body.len() / 2);
    stream.write_all(first)?;
    if let Some(Fault::Slow(time) | Fault::WholeSlow(time)) = fault {
        thread::sleep(*time);
    }
    stream.write_all(rest)?;
    Ok(true)
}
