//! Requests of `http://` addresses through an HTTP proxy, with the whole address in their first line. The client's own way, a
//! tunnel (CONNECT), is what most proxies allow for `https://` only. Independent of which proxy it is.

use base64::{Engine, prelude::BASE64_STANDARD};
use ureq::{
    Agent, Error, Proxy, ProxyProtocol,
    unversioned::transport::{Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport},
};

/// Connects like ureq does, except to HTTP proxies that forward requests.
#[derive(Debug, Default)]
pub(crate) struct Forwarding(DefaultConnector);

impl Connector for Forwarding {
    type Out = Box<dyn Transport>;

    fn connect(&self, details: &ConnectionDetails<'_>, chained: Option<()>) -> Result<Option<Self::Out>, Error> {
        let is_http = |proxy: &&Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
        // A request of an `https://` address is never forwarded: the proxy could read it.
        let forwards = details.uri.scheme_str() == Some("http");
        let Some(proxy) = details.config.proxy().filter(is_http).filter(|_| forwards) else {
            return self.0.connect(details, chained);
        };
        let config = Agent::config_builder().proxy(None).build();
        let to_proxy = ConnectionDetails {
            uri: proxy.uri(),
            addrs: details.resolver.resolve(proxy.uri(), &config, details.timeout)?,
            config: &config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let authority = details.uri.authority().map_or("", |authority| authority.as_str());
        let origin = format!("http://{}", authority.rsplit('@').next().unwrap_or_default());
        let inner = (details.run_connector)(&to_proxy)?;
        Ok(Some(Box::new(Forwarded { inner, origin, credentials: credentials(proxy), begins: true })))
    }
}

/// The header that names the user to the proxy, if the proxy's address does.
fn credentials(proxy: &Proxy) -> String {
    let (Some(user), password) = (proxy.username(), proxy.password().unwrap_or_default()) else { return String::new() };
    format!("Proxy-Authorization: Basic {}\r\n", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// A connection to a proxy.
struct Forwarded {
    inner: Box<dyn Transport>,
    /// Scheme, host and port of the requested addresses.
    origin: String,
    credentials: String,
    /// Whether the next bytes begin a request.
    begins: bool,
}

impl std::fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarded").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl Forwarded {
    /// `bytes` that begin a request, with the whole address and the user.
    fn rewritten(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let path = bytes.iter().position(|byte| *byte == b' ')? + 1;
        let headers = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
        let (method, rest, more) = (&bytes[..path], bytes.get(path..headers)?, &bytes[headers..]);
        Some([method, self.origin.as_bytes(), rest, self.credentials.as_bytes(), more].concat())
    }
}

impl Transport for Forwarded {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if !std::mem::take(&mut self.begins) {
            return self.inner.transmit_output(amount, timeout);
        }
        let begun = self.inner.buffers().output()[..amount].to_vec();
        let whole = self.rewritten(&begun).ok_or(Error::BadUri("the address is too long".into()))?;
        let room = self.inner.buffers().output().len();
        for piece in whole.chunks(room) {
            self.inner.buffers().output()[..piece.len()].copy_from_slice(piece);
            self.inner.transmit_output(piece.len(), timeout)?;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // After an answer comes another request.
        self.begins = true;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }
}
