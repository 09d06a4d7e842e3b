//! Where a coordinator or a tally listens: a host and a port, as people write them.
//!
//! A name is looked up each time that a connection is opened: a server that has moved is found
//! again when its name is given another address. Where a name has several addresses they are tried
//! one after the other, each a moment after the one before (RFC 8305): an address at which nobody
//! answers costs no more than that moment.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::TransportError;

/// Addresses of one name that are tried, at most.
const MOST: usize = 8;

/// Longest name, in bytes (RFC 1035, 2.3.4).
const LONGEST: usize = 253;

/// `HOST:PORT`: the host is a name, an IPv4 address, or an IPv6 address in brackets.
///
/// ```
/// use lethe_transport::place::Place;
/// let named: Place = "recommend.example.org:4433".parse()?;
/// assert_eq!(named.to_string(), "recommend.example.org:4433");
/// assert!("recommend.example.org".parse::<Place>().is_err(), "a port is missing");
/// # Ok::<(), lethe_transport::TransportError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place(Inner);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Inner {
    Address(SocketAddr),
    Name { host: String, port: u16 },
}

impl Place {
    /// The addresses behind it now, in the resolver's order; at least one, and no more than eight.
    ///
    /// # Errors
    /// [`TransportError::Resolve`]: the name has none, or nobody can be asked.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, TransportError> {
        let (host, port) = match &self.0 {
            Inner::Address(addr) => return Ok(vec![*addr]),
            Inner::Name { host, port } => (host, *port),
        };
        let unknown = |why: String| TransportError::Resolve {
            host: host.clone(),
            why,
        };
        let asked = tokio::net::lookup_host((host.as_str(), port));
        let bound = lethe_proto::limits::HANDSHAKE_TIMEOUT;
        let found = tokio::time::timeout(bound, asked).await;
        let late = |_| unknown(format!("no answer within {} s", bound.as_secs()));
        let found = found.map_err(late)?.map_err(|e| unknown(e.to_string()))?;
        let mut all: Vec<SocketAddr> = vec![];
        for addr in found {
            if !all.contains(&addr) && all.len() < MOST {
                all.push(addr);
            }
        }
        if all.is_empty() {
            return Err(unknown("it has no address".into()));
        }
        Ok(all)
    }
}

impl From<SocketAddr> for Place {
    fn from(addr: SocketAddr) -> Self {
        Self(Inner::Address(addr))
    }
}

impl FromStr for Place {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            if addr.port() == 0 {
                return Err(wrong(text, "port 0 is none that anybody listens on"));
            }
            return Ok(addr.into());
        }
        if text.contains("://") {
            return Err(wrong(text, "leave out what stands before the host"));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(wrong(text, "the port is missing"));
        };
        let port = match port.parse::<u16>() {
            Ok(port) if port > 0 => port,
            _ => return Err(wrong(text, "the port is a number from 1 to 65535")),
        };
        if host.contains(':') {
            return Err(wrong(text, "an IPv6 address stands in brackets"));
        }
        if let Some(why) = unfit(host) {
            return Err(wrong(text, why));
        }
        let host = host.to_owned();
        Ok(Self(Inner::Name { host, port }))
    }
}

/// Why a text is no name of a host.
fn unfit(host: &str) -> Option<&'static str> {
    if !host.is_ascii() {
        return Some("write the name in its ASCII form (xn--...)");
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.is_empty() || host.len() > LONGEST {
        return Some("the host is missing, or is longer than 253 characters");
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let label = |l: &str| !l.is_empty() && l.len() <= 63 && l.chars().all(fits);
    if !host.split('.').all(label) {
        return Some("a name has letters, digits, hyphens and dots");
    }
    // 10.0.0.256 is no name: the last label of one is not all digits (RFC 3696, 2).
    let last = host.rsplit('.').next().unwrap_or_default();
    if last.chars().all(|c| c.is_ascii_digit()) {
        return Some("an IPv4 address has four numbers from 0 to 255");
    }
    None
}

fn wrong(given: &str, why: &'static str) -> TransportError {
    TransportError::Place {
        given: given.chars().take(300).collect(),
        why,
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Inner::Address(addr) => addr.fmt(f),
            Inner::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// As text, as an address alone was written before: files of earlier builds are read.
impl Serialize for Place {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Place {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn case_16_names_addresses_and_what_is_neither() {
        let good = [
            "localhost:4433",
            "recommend.example.org:1",
            "a_b.internal.:65535",
            "203.0.113.7:4433",
            "[2001:db8::1]:4433",
        ];
        for text in good {
            let place: Place = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
            let json = serde_json::to_string(&place).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<Place>(&json).unwrap(), place);
        }
        let bad = [
            ("", "the port is missing"),
            ("recommend.example.org", "the port is missing"),
            ("localhost:", "from 1 to 65535"),
            ("localhost:0", "from 1 to 65535"),
            ("127.0.0.1:0", "port 0"),
            ("localhost:70000", "from 1 to 65535"),
            (":4433", "the host is missing"),
            ("2001:db8::1:4433", "in brackets"),
            ("https://example.org:4433", "before the host"),
            ("example.org/x:4433", "letters, digits"),
            ("a b:4433", "letters, digits"),
            ("a..b:4433", "letters, digits"),
            ("10.0.0.256:4433", "0 to 255"),
            ("b\u{fc}cher.example:4433", "xn--"),
        ];
        for (text, why) in bad {
            let e = text.parse::<Place>().unwrap_err().to_string();
            assert!(e.contains(why) && e.contains("HOST:PORT"), "{text}: {e}");
        }
    }

    #[tokio::test]
    async fn case_16_a_name_is_resolved_and_one_that_is_not_known_is_named() {
        let here: Place = "localhost:4433".parse().unwrap();
        let found = here.addresses().await.unwrap();
        assert!(
            found
                .iter()
                .all(|a| a.ip().is_loopback() && a.port() == 4433)
        );
        // RFC 6761: `invalid` is never a name of anything.
        let none: Place = "nobody.invalid:4433".parse().unwrap();
        let e = none.addresses().await.unwrap_err();
        assert!(e.is_transient(), "a resolver may be away");
        assert!(e.to_string().contains("nobody.invalid"), "{e}");
    }
}
