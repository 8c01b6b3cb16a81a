//! HTTP requests: retries the ones that may succeed later. Independent of files, and of what a request is.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use ureq::{Agent, unversioned::resolver::DefaultResolver};

pub(crate) use super::attempt::{Attempt, RequestError, cut_off};
use super::{
    proxy::{Proxies, forward::Forwarding},
    s3::Store,
};
use crate::StageError;

/// Limits on retries and requests, and the way that these go.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Pause before the first retry; each further pause is twice as long, up to `longest_pause`.
    pub(crate) first_pause: Duration,
    pub(crate) longest_pause: Duration,
    /// The longest pause that a server may ask for.
    pub(crate) longest_wait: Duration,
    /// Consecutive failures, without a byte in between, after which the client gives up.
    pub(crate) attempts: u32,
    /// Bytes per request, the unit that connections share out.
    pub(crate) chunk: u64,
    /// Time limit of a request; another one fetches what is still missing.
    pub(crate) timeout: Duration,
    /// Time limit of a connection, and of the first answer. Each further try waits twice as long for an answer, up to `timeout`:
    /// a server that is gone is noticed soon, and a slow one is waited for.
    pub(crate) patience: Duration,
    pub(crate) proxies: Proxies,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(30),
            longest_wait: Duration::from_mins(5),
            attempts: 8,
            chunk: 16 << 20,
            timeout: Duration::from_mins(1),
            patience: Duration::from_secs(15),
            proxies: Proxies::default(),
        }
    }
}

impl Policy {
    /// The usual limits, and the proxies that this machine's environment names.
    ///
    /// # Errors
    /// If a variable is not the address of a proxy.
    pub(crate) fn of_this_machine() -> Result<Self, StageError> {
        Ok(Self { proxies: Proxies::from_env()?, ..Self::default() })
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
    pub(super) agent: Agent,
    pub(super) access: Access,
    pub(crate) policy: Policy,
    /// The most failures in a row that were told.
    told: AtomicU32,
}

impl Client {
    /// Whether its requests carry a token.
    pub(crate) fn has_token(&self) -> bool {
        matches!(self.access, Access::Token { .. })
    }

    pub(crate) fn new(policy: Policy, access: Access) -> Self {
        let patience = Some(policy.patience.min(policy.timeout));
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // Followed by `Attempt`: the agent would compare hosts without their ports.
            .max_redirects(0)
            // Chosen for each address by `Attempt`: the agent would read the environment in its own way.
            .proxy(None)
            .timeout_resolve(patience)
            .timeout_connect(patience)
            .user_agent(concat!("imp-flow/", env!("CARGO_PKG_VERSION")))
            .build();
        let agent = Agent::with_parts(config, Forwarding::default(), DefaultResolver::default());
        Self { agent, access, policy, told: AtomicU32::new(0) }
    }

    /// Repeats `request` until it succeeds, fails for good, or runs out of attempts. `request` reports whether it made
    /// progress before it failed; progress resets the count.
    pub(crate) fn retry<T>(
        &self,
        watch: &impl Watch,
        mut request: impl FnMut(&mut Attempt<'_>) -> Result<T, RequestError>,
    ) -> Result<T, StageError> {
        let mut failures = 0;
        loop {
            let stopped = || watch.stopped();
            let mut attempt = Attempt::new(self, failures, &stopped);
            let (what, after) = match request(&mut attempt) {
                Ok(value) => return Ok(value),
                Err(RequestError::Fatal(error)) => return Err(error),
                Err(RequestError::Transient { what, after }) => (what, after),
            };
            if watch.stopped() {
                return Err(StageError::Cancelled);
            }
            failures = if attempt.progress { 1 } else { failures + 1 };
            if self.policy.attempts > 1 {
                tracing::warn!("attempt {failures} of {}: {what}", self.policy.attempts);
            }
            if failures >= self.policy.attempts {
                return Err(StageError::transient(
                    format!("gave up after {failures} attempts: {what}"),
                    "check the network connection and run the same command again: what was transferred is kept",
                ));
            }
            let pause =
                self.policy.first_pause.saturating_mul(1 << (failures - 1).min(16)).min(self.policy.longest_pause);
            let pause = after.unwrap_or(pause).min(self.policy.longest_wait);
            // Each count once, however many connections there are.
            if !attempt.progress && self.told.fetch_max(failures, Ordering::Relaxed) < failures {
                watch.warn(format!(
                    "{what} (attempt {failures} of {}), next in {}",
                    self.policy.attempts,
                    words(pause)
                ));
            }
            sleep(watch, pause)?;
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

/// A time in words.
fn words(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.0} s", time.as_secs_f64())
    }
}
