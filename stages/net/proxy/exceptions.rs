//! The hosts that `no_proxy` leaves out, as for curl, and with a port as for Python's requests.

use std::net::IpAddr;

use url::{Host, Url};

/// What one word of `no_proxy` names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    /// A domain with all below it, and the only port that is meant, if any.
    Domain(String, Option<u16>),
    /// Addresses that agree in their first bits.
    Net(IpAddr, u32, Option<u16>),
}

/// The words of `no_proxy`.
#[derive(Debug, Clone, Default)]
pub(super) struct Exceptions(Vec<Exception>);

impl Exceptions {
    /// Reads words that commas or spaces separate. Those that name no host cover none, as for other tools.
    pub(super) fn parse(text: &str) -> Self {
        let words = text.split([',', ' ', '\t']).filter(|word| !word.is_empty());
        Self(words.map(|word| Exception::parse(&word.to_ascii_lowercase())).collect())
    }

    /// Whether requests of `url` go to its host directly.
    pub(super) fn cover(&self, url: &Url) -> bool {
        let Some(host) = url.host() else { return false };
        self.0.iter().any(|exception| exception.covers(&host, url.port_or_known_default()))
    }
}

impl Exception {
    fn parse(word: &str) -> Self {
        if word == "*" {
            return Self::All;
        }
        if let Some((address, bits)) = word.split_once('/')
            && let (Ok(address), Ok(bits)) = (unbracketed(address).parse::<IpAddr>(), bits.parse::<u32>())
            && bits <= width(address)
        {
            return Self::Net(address, bits, None);
        }
        if let Ok(address) = unbracketed(word).parse::<IpAddr>() {
            return Self::Net(address, width(address), None);
        }
        let (host, port) = match word.rsplit_once(':').map(|(host, port)| (host, port.parse().ok())) {
            Some((host, port @ Some(_))) => (host, port),
            _ => (word, None),
        };
        match unbracketed(host).parse::<IpAddr>() {
            Ok(address) => Self::Net(address, width(address), port),
            Err(_) => Self::Domain(domain(host.strip_prefix('*').unwrap_or(host)).into(), port),
        }
    }

    fn covers(&self, host: &Host<&str>, port: Option<u16>) -> bool {
        let meant = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        match (self, host) {
            (Self::All, _) => true,
            (Self::Domain(domain_name, wanted), Host::Domain(host)) => {
                let above = domain(host).strip_suffix(domain_name.as_str());
                meant(wanted) && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            (Self::Net(net, bits, wanted), Host::Ipv4(host)) => meant(wanted) && agree(*net, (*host).into(), *bits),
            (Self::Net(net, bits, wanted), Host::Ipv6(host)) => meant(wanted) && agree(*net, (*host).into(), *bits),
            _ => false,
        }
    }
}

/// A domain without the dots around it.
fn domain(name: &str) -> &str {
    name.trim_matches('.')
}

fn unbracketed(address: &str) -> &str {
    address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address)
}

/// The number of bits of an address.
fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether two addresses of one kind have the same first bits.
fn agree(one: IpAddr, other: IpAddr, bits: u32) -> bool {
    let number = |address| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let rest = width(one) - bits;
    one.is_ipv4() == other.is_ipv4() && (number(one) ^ number(other)).checked_shr(rest).unwrap_or(0) == 0
}
