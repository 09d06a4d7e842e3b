//! Which addresses are called back.
//!
//! An address comes from whoever sends a request. Nothing inside of the operator's own network is
//! called on their word: no private, loopback, link-local, shared, multicast, reserved or
//! unspecified address (the IANA special-purpose registries, RFC 6890), and none that is written in
//! another way than usual. [`is_public`] is asked again with every address that a name has when it
//! is called.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::DsrError;

/// Longest address, in bytes.
pub const MAX_URL: usize = 1000;

/// Refuses an address that is not one of the public internet, as far as can be told from its text.
///
/// # Errors
/// [`DsrError::Callback`] with what was found, and what is called.
pub fn check(url: &str) -> Result<(), DsrError> {
    let refused = |why: String| {
        Err(DsrError::Callback(format!(
            "callback {:?}: {why}",
            shortened(url)
        )))
    };
    if url.len() > MAX_URL {
        return refused(format!("{} bytes, at most {MAX_URL}", url.len()));
    }
    let host = match host(url) {
        Ok(host) => host,
        Err(why) => return refused(why.into()),
    };
    match literal(host) {
        Literal::Address(address) if is_public(address) => Ok(()),
        Literal::Address(address) => refused(format!(
            "{address} is not an address of the public internet; `--allow-private-callbacks` \
             allows it"
        )),
        Literal::Unusual => refused(
            "its host is a number that is not written as an address usually is: write four \
             numbers, or a name"
                .into(),
        ),
        Literal::Name if is_inside(host) => refused(format!(
            "{host} is a name inside of a network; `--allow-private-callbacks` allows it"
        )),
        Literal::Name => Ok(()),
    }
}

fn shortened(url: &str) -> String {
    url.chars().take(200).collect()
}

/// The host of an `https` address, without port and brackets.
fn host(url: &str) -> Result<&str, &'static str> {
    let rest = url.strip_prefix("https://").ok_or("only https is called")?;
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\\' | '"' | '<' | '>' | '`' | '^');
    if !rest.chars().all(plain) {
        return Err("blanks, control characters, backslashes and letters beyond ASCII are refused");
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = &rest[..end];
    if authority.contains('@') {
        return Err("a name and password in an address are refused");
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("its bracket is not closed")?,
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            authority.split_at(end)
        }
    };
    let digits = |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
    let right = port.is_empty() || port.strip_prefix(':').is_some_and(digits);
    match (host.is_empty(), right) {
        (false, true) => Ok(host),
        (true, _) => Err("it has no host"),
        (_, false) => Err("its port is no number"),
    }
}

/// What a host is.
enum Literal {
    Address(IpAddr),
    /// A number as only some programs read it: `0x7f.1`, `2130706433`, `127.1`.
    Unusual,
    Name,
}

fn literal(host: &str) -> Literal {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Literal::Address(address);
    }
    let last = host.trim_end_matches('.').rsplit('.').next();
    let last = last.unwrap_or_default().to_ascii_lowercase();
    let number = last.starts_with("0x") || last.bytes().all(|b| b.is_ascii_digit());
    match number || host.contains([':', '%']) {
        true => Literal::Unusual,
        false => Literal::Name,
    }
}

/// Names that no public name server knows (RFC 6761, 6762, 8375).
fn is_inside(host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let endings = [
        "localhost",
        "localdomain",
        "local",
        "internal",
        "intranet",
        "lan",
        "home.arpa",
        "onion",
        "invalid",
        "test",
    ];
    let ends = |with: &str| {
        let before = host.strip_suffix(with);
        before.is_some_and(|b| b.is_empty() || b.ends_with('.'))
    };
    !host.contains('.') || endings.iter().any(|e| ends(e))
}

/// Whether an address belongs to the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => is_public_v4(a),
        IpAddr::V6(a) => is_public_v6(a),
    }
}

fn is_public_v4(a: Ipv4Addr) -> bool {
    let [first, second, third, _] = a.octets();
    let special = match first {
        0 | 10 | 127 | 224.. => true,
        100 => (64..128).contains(&second),
        169 => second == 254,
        172 => (16..32).contains(&second),
        192 => matches!((second, third), (0, 0) | (0, 2) | (88, 99) | (168, _)),
        198 => matches!((second, third), (18 | 19, _) | (51, 100)),
        203 => second == 0 && third == 113,
        _ => false,
    };
    !special
}

/// Global unicast, and nothing that stands for something else: mapped and translated addresses,
/// tunnels, documentation.
fn is_public_v6(a: Ipv6Addr) -> bool {
    let part = a.segments();
    let unicast = part[0] & 0xe000 == 0x2000;
    let protocols = part[0] == 0x2001 && part[1] < 0x0200;
    let documentation = part[0] == 0x2001 && part[1] == 0x0db8 || part[0] == 0x3fff;
    let tunnel = part[0] == 0x2002;
    unicast && !protocols && !documentation && !tunnel
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m7_addresses_inside_of_a_network_are_refused_however_they_are_written() {
        for host in [
            "localhost",
            "LocalHost.",
            "a.localhost",
            "printer.local",
            "db.internal",
            "intranet",
            "router.home.arpa",
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "[::]",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:8.8.8.8]",
            "[::127.0.0.1]",
            "[64:ff9b::a00:1]",
            "[64:ff9b:1::1]",
            "[100::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[2002:7f00:1::]",
            "[3fff::1]",
            "[fc00::1]",
            "[fd12::1]",
            "[fe80::1]",
            "[fe80::1%25eth0]",
            "[fec0::1]",
            "[ff02::1]",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "127.1",
            "0177.0.0.1",
            "127.0.0.1.",
            "1.2.3.4.5",
        ] {
            for url in [format!("https://{host}/x"), format!("https://{host}:8443")] {
                assert!(check(&url).is_err(), "{url}");
            }
        }
    }

    #[test]
    fn public_addresses_are_called() {
        for url in [
            "https://controller.example/callbacks",
            "https://shop.example.:8443/a?b=1@2#c",
            "https://8.8.8.8/x",
            "https://172.15.0.1",
            "https://172.32.0.1",
            "https://192.0.1.1",
            "https://100.128.0.1",
            "https://[2606:4700::1111]:443/x",
            "https://xn--bcher-kva.example/",
        ] {
            check(url).unwrap_or_else(|e| panic!("{url}: {e}"));
        }
    }

    #[test]
    fn what_is_no_plain_address_is_refused() {
        let long = format!("https://a.example/{}", "x".repeat(MAX_URL));
        for url in [
            "http://a.example",
            "https://",
            "https:///x",
            "https://a.example:x/",
            "https://user:pass@a.example/",
            "https://a.example\\@127.0.0.1/",
            "https://a.example/ x",
            "https://a.example/\u{7}",
            "https://b\u{fc}cher.example/",
            "https://[::1",
            "https://[2606:4700::1]x/",
            "https://%31%32%37.0.0.1/",
            &long,
        ] {
            let text = check(url).expect_err(url).to_string();
            assert!(text.starts_with("callback "), "{text}");
            assert!(text.len() < 600, "{text}");
        }
    }
}
