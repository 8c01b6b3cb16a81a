//! Connections: accepts them, so many at a time, until someone ends the server. Independent of what is served.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
    time::sleep,
};

use super::patient::Patient;

/// Connections at a time. Others wait to be accepted.
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what it is sent.
const WRITE_TIME: Duration = Duration::from_mins(1);

/// What ends a server: Ctrl-C and SIGTERM.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Serves `router` on `listener` until a signal comes. Connections may still be open then: what is returned ends them.
pub(super) async fn accept(listener: TcpListener, router: &Router, signals: &mut Signals) -> GracefulShutdown {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let next = async {
            // Never closed, so there is always a place at last.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = signals.next() => return graceful,
        };
        let Ok((stream, _)) = accepted else {
            // Most likely there are no more file descriptors: some will be closed.
            sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
        let connection =
            graceful.watch(builder.serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIME)), service));
        tokio::spawn(async move {
            let _place = place;
            // A client that does wrong or leaves is no fault of the server.
            let _ = connection.await;
        });
    }
}
