//! Which proxy a request goes through: what `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` say, as for curl and
//! Python's requests. Independent of what is requested.

mod exceptions;
pub(crate) mod forward;
#[cfg(test)]
mod tests;

use std::{env, ffi::OsString, fmt};

use ureq::Proxy;
use url::Url;

use self::exceptions::Exceptions;
use crate::StageError;

/// A proxy, and the variable that names it.
#[derive(Clone)]
pub(crate) struct Named {
    /// For messages: its value may hold a password.
    pub(crate) variable: &'static str,
    pub(crate) proxy: Proxy,
}

/// The proxies of this machine.
#[derive(Clone, Default)]
pub(crate) struct Proxies {
    http: Option<Named>,
    https: Option<Named>,
    except: Exceptions,
}

impl fmt::Debug for Proxies {
    /// Without addresses, which may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variable = |named: &Option<Named>| named.as_ref().map(|named| named.variable);
        f.debug_struct("Proxies")
            .field("http", &variable(&self.http))
            .field("https", &variable(&self.https))
            .finish_non_exhaustive()
    }
}

impl Proxies {
    /// Reads variables: lower case goes before upper case, and a variable without a value counts as not set.
    ///
    /// # Errors
    /// If a variable is not the address of a proxy.
    pub(crate) fn of(var: impl Fn(&str) -> Option<OsString>) -> Result<Self, StageError> {
        let text = |name| Some(var(name)?.to_string_lossy().trim().to_string()).filter(|text| !text.is_empty());
        let first = |names: [&'static str; 4]| {
            let set = names.into_iter().find_map(|name| Some((name, text(name)?)));
            set.map(|(variable, address)| Named::parse(variable, &address)).transpose()
        };
        let except = text("no_proxy").or_else(|| text("NO_PROXY")).unwrap_or_default();
        Ok(Self {
            http: first(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])?,
            https: first(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])?,
            except: Exceptions::parse(&except),
        })
    }

    /// Reads the environment.
    pub(crate) fn from_env() -> Result<Self, StageError> {
        Self::of(|name| env::var_os(name))
    }

    /// The proxy for requests of `url`; none if they go to its host directly.
    pub(crate) fn of_url(&self, url: &str) -> Option<&Named> {
        let url = Url::parse(url).ok()?;
        let named = if url.scheme() == "https" { &self.https } else { &self.http };
        named.as_ref().filter(|_| !self.except.cover(&url))
    }
}

impl Named {
    /// Reads `address`, which `variable` holds. A word without a scheme is the host of an HTTP proxy.
    fn parse(variable: &'static str, address: &str) -> Result<Self, StageError> {
        let refused = || {
            StageError::failed(
                format!("the variable {variable} does not hold the address of a proxy"),
                "write it as `http://HOST:PORT` (also `https://`, `socks4a://`, `socks5h://`), with `USER:PASSWORD@` before the \
                 host if it wants them, where `%40` stands for `@`, `%23` for `#` and `%2F` for `/`; or unset it",
            )
        };
        let address = if address.contains("://") { address.into() } else { format!("http://{address}") };
        // Stricter than what follows: it knows ports that can't be.
        let url = Url::parse(&address).map_err(|_| refused())?;
        if url.host_str().is_none_or(str::is_empty) || url.query().is_some() || url.fragment().is_some() {
            return Err(refused());
        }
        Ok(Self { variable, proxy: Proxy::new(&address).map_err(|_| refused())? })
    }

    /// For messages: that a request went through this proxy.
    pub(crate) fn through(&self) -> String {
        format!(" through the proxy {}:{} of {}", self.proxy.host(), self.proxy.port(), self.variable)
    }
}
