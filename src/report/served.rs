//! The output of `imp-flow serve`: where it listens, and a line for each request. Never what requests say. And that of
//! `imp-flow watch`.

use std::{net::SocketAddr, time::Duration};

use imp_stages::conversation::Reply;
use jiff::Timestamp;
use serde_json::json;

use super::{
    chat::speeds,
    foreign::one_line,
    print::{eprint, print},
    style::{Style, WARN},
};
use crate::store::RunRecord;

/// Says at which address a run can be watched.
pub(crate) fn watching(url: &str, run: &RunRecord, style: Style) {
    let (id, pipeline) = (&run.id, &run.pipeline);
    if style.json {
        return print(&json!({"event": "watching", "url": url, "run": id, "state": run.ending}).to_string());
    }
    let pipeline = one_line(pipeline);
    eprint(&format!("run {id} of {pipeline}: {}. Ctrl-C ends the page; the run goes on without it.", run.ending));
    print(url);
}

/// Says that another run is shown, or that it has ended.
pub(crate) fn watched(run: &RunRecord, style: Style) {
    let (id, pipeline) = (&run.id, &run.pipeline);
    if style.json {
        print(&json!({"event": "run", "run": id, "pipeline": pipeline, "state": run.ending}).to_string());
    } else if !style.quiet {
        let more = if run.is_running() { "" } else { "; the page stays" };
        eprint(&format!("run {id} of {}: {}{more}", one_line(pipeline), run.ending));
    }
}

/// A request that has ended.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// None if the client went away before there was an answer.
    pub(crate) status: Option<u16>,
    pub(crate) took: Duration,
    /// What its answer took, if it has one.
    pub(crate) reply: Option<&'a Reply>,
    /// Whether the client went away before the end.
    pub(crate) left: bool,
}

/// The longest path in the log.
const LONGEST_PATH: usize = 100;

/// Shows where the model `name` is served. `warning` is what is dangerous about that.
pub(crate) fn listening(address: SocketAddr, name: &str, warning: Option<&str>, style: Style) {
    if let Some(warning) = warning {
        eprint(&format!("{WARN}warning:{WARN:#} {warning}"));
    }
    if style.json {
        print(&json!({"event": "listening", "address": address.to_string(), "model": name}).to_string());
    } else if !style.quiet {
        eprint(&format!("serving {} at http://{address}/v1 (Ctrl-C ends it)", one_line(name)));
    }
}

/// Shows a request.
pub(crate) fn request(request: &Request<'_>, style: Style) {
    let Request { method, path, status, took, reply, left } = request;
    let path: String = path.chars().take(LONGEST_PATH).collect();
    if style.json {
        let value = json!({
            "event": "request",
            "time": Timestamp::now().to_string(),
            "method": method,
            "path": path,
            "status": status,
            "seconds": took.as_secs_f64(),
            "positions": reply.map(|reply| reply.positions),
            "reused": reply.map(|reply| reply.reused),
            "tokens": reply.map(|reply| reply.tokens),
            "reading_seconds": reply.map(|reply| reply.reading.as_secs_f64()),
            "writing_seconds": reply.map(|reply| reply.writing.as_secs_f64()),
            "client_left": left,
        });
        return print(&value.to_string());
    }
    if style.quiet {
        return;
    }
    let status = status.map_or_else(|| "-".into(), |status| status.to_string());
    let reply = reply.map(|reply| format!(", {}", speeds(reply))).unwrap_or_default();
    let left = if *left { ", the client left" } else { "" };
    let now = Timestamp::now().strftime("%Y-%m-%d %H:%M:%S");
    let (method, path) = (one_line(method), one_line(&path));
    eprint(&format!("{now} {method} {path} {status} {:.2} s{reply}{left}", took.as_secs_f64()));
}
