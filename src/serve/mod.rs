//! A model behind HTTP, as OpenAI's API has it: `GET /v1/models`, `POST /v1/chat/completions`, `GET /health`. Requests are answered one
//! after the other. And the report of a run that goes on: `live.rs`. Independent of the command line, and of how models are found.

mod answer;
mod connections;
mod http;
mod live;
mod patient;
pub(crate) mod request;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use imp_stages::speaker::Speaker;
use tokio::{net::TcpListener, time::timeout};

pub(crate) use self::live::{Live, watch};
use self::{
    connections::{Signals, accept},
    http::Shared,
    request::Defaults,
    worker::Worker,
};
use crate::report::Style;

/// How long the answers that are computed may still take when the server is asked to end.
const LAST_ANSWERS: Duration = Duration::from_secs(20);
/// And how long connections may take after that.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What is served, and to whom.
pub(crate) struct Options {
    /// What the model is called.
    pub(crate) name: String,
    /// The key that clients must send.
    pub(crate) key: Option<Key>,
    /// Whether only this machine reaches the address. Then requests must name it, too.
    pub(crate) is_loopback: bool,
    /// Most requests that wait or are answered at a time.
    pub(crate) queue: usize,
    pub(crate) defaults: Defaults,
    pub(crate) style: Style,
}

/// The digest of a key. Digests are compared in constant time, so that no time tells how much of a key is right.
#[derive(Clone)]
pub(crate) struct Key(blake3::Hash);

impl Key {
    pub(crate) fn new(key: &str) -> Self {
        Self(blake3::hash(key.as_bytes()))
    }

    fn is(&self, given: &str) -> bool {
        self.0 == blake3::hash(given.as_bytes())
    }
}

/// Serves on `listener` until Ctrl-C or SIGTERM.
pub(crate) async fn serve(listener: TcpListener, speaker: Speaker, options: Options) -> io::Result<()> {
    let mut signals = Signals::listen()?;
    let stop = Arc::new(AtomicBool::new(false));
    let worker = Worker::start(speaker, stop.clone())?;
    let shared = Arc::new(Shared::new(options, worker));
    let graceful = accept(listener, &http::router(shared.clone()), &mut signals).await;
    shared.end();
    let ended = async {
        let mut shutdown = std::pin::pin!(graceful.shutdown());
        if timeout(LAST_ANSWERS, &mut shutdown).await.is_err() {
            stop.store(true, Ordering::Relaxed);
            let _ = timeout(LAST_WORDS, shutdown).await;
        }
    };
    tokio::select! {
        () = ended => {}
        () = signals.next() => {}
    }
    // The thread that computes looks at this after each token.
    stop.store(true, Ordering::Relaxed);
    Ok(())
}

/// The address that `host` and `port` mean, and whether only this machine reaches it.
pub(crate) async fn resolve(host: &str, port: u16) -> io::Result<(SocketAddr, bool)> {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let mut found = tokio::net::lookup_host((host, port)).await?;
    let address = found.next().ok_or_else(|| io::Error::other("it has no address"))?;
    Ok((address, address.ip().to_canonical().is_loopback()))
}
