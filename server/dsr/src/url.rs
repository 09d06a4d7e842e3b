//! Whether a text is an address that can be called.

/// Longest address, in bytes.
pub const MAX_URL: usize = 1000;

/// Why a text is no `https` address (RFC 3986); `None`: it is one.
pub fn not_callable(url: &str) -> Option<String> {
    if url.len() > MAX_URL {
        return Some(format!("{} bytes, at most {MAX_URL}", url.len()));
    }
    let scheme = url.get(..8).unwrap_or_default();
    if !scheme.eq_ignore_ascii_case("https://") {
        return Some("only https is called".into());
    }
    if let Some(c) = url.chars().find(|c| !is_allowed(*c)) {
        return Some(format!("{c:?} is no character of an address"));
    }
    let percents = url.match_indices('%').all(|(at, _)| {
        let digits = url.get(at + 1..at + 3).unwrap_or_default();
        digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit())
    });
    if !percents {
        return Some("after % come two hexadecimal digits".into());
    }
    let rest = url.get(8..).unwrap_or_default();
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..end).unwrap_or_default();
    if authority.contains('@') {
        return Some("names and passwords are not sent".into());
    }
    if rest.contains('#') {
        return Some("the part after # is not sent: leave it out".into());
    }
    match is_host_and_port(authority) {
        true => None,
        false => Some(format!("{authority:?} is no host, with or without a port")),
    }
}

/// Characters that stand in addresses as themselves.
fn is_allowed(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~:/?#[]@!$&'()*+,;=%".contains(c)
}

fn is_host_and_port(authority: &str) -> bool {
    if let Some(rest) = authority.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
        return is_address && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    match authority.split_once(':') {
        Some((host, port)) => is_host(host) && is_port(port),
        None => is_host(authority),
    }
}

fn is_port(port: &str) -> bool {
    port.parse::<u16>().is_ok_and(|p| p > 0) && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_host(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.len() <= 253 && host.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_can_be_called() {
        for url in [
            "https://controller.example",
            "HTTPS://controller.example/",
            "https://controller.example:8443/cb?x=1&y=%20",
            "https://localhost:4443/callbacks",
            "https://[2001:db8::1]:443/cb",
            "https://192.0.2.7/cb",
        ] {
            assert_eq!(not_callable(url), None, "{url}");
        }
        for url in [
            "",
            "https",
            "http://controller.example/cb",
            "https://",
            "https:///cb",
            "https://example controller.com/cb",
            "https://controller.example/a b",
            "https://controller.example/\u{e9}",
            "https://contr\u{f6}ller.example/",
            "https://controller.example:0/",
            "https://controller.example:99999/",
            "https://controller.example:port/",
            "https://name:password@controller.example/",
            "https://controller..example/",
            "https://-controller.example/",
            "https://controller.example/%2",
            "https://controller.example/#here",
            "https://[::1/",
            "https://controller.example\n/",
        ] {
            assert!(not_callable(url).is_some(), "{url:?}");
        }
        assert!(not_callable(&format!("https://a.example/{}", "x".repeat(MAX_URL))).is_some());
    }
}
