//! Host and port, as `Host` and the targets of requests name them (RFC 3986, 3.2.2 and 3.2.3; RFC 9110, 4.2 and 7.2).

/// Whether this is a host with or without a port. Empty is valid: a target without authority has such a `Host`.
pub(super) fn is_valid(authority: &[u8]) -> bool {
    let Some((host, port)) = split(authority) else { return false };
    let port_fits = match port {
        None | Some([]) => true,
        Some(digits) => number(digits).is_some(),
    };
    port_fits
        && if host.first() == Some(&b'[') {
            is_literal(host)
        } else {
            is_name(host) && (!host.is_empty() || port.is_none())
        }
}

/// Host and port text; `None` where a bracket is not closed.
fn split(authority: &[u8]) -> Option<(&[u8], Option<&[u8]>)> {
    let host_end = match authority.first() {
        Some(b'[') => authority.iter().position(|byte| *byte == b']')? + 1,
        _ => memchr::memchr(b':', authority).unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(host_end);
    match rest {
        [] => Some((host, None)),
        [b':', port @ ..] => Some((host, Some(port))),
        _ => None,
    }
}

fn number(digits: &[u8]) -> Option<u16> {
    let plain = digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

/// `reg-name`: letters, digits and a few signs, `%` only before two hexadecimal digits.
fn is_name(host: &[u8]) -> bool {
    let mut rest = host;
    while let [byte, after @ ..] = rest {
        rest = match (byte, after) {
            (b'%', [a, b, after @ ..]) if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => after,
            (b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&'..=b',' | b';' | b'=', _) => after,
            (byte, _) if byte.is_ascii_alphanumeric() => after,
            _ => return false,
        };
    }
    true
}

/// `IP-literal`: an IPv6 address in brackets; none of a future version.
fn is_literal(host: &[u8]) -> bool {
    let inner = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]"));
    let text = inner.and_then(|inner| std::str::from_utf8(inner).ok());
    text.is_some_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

/// The authority of an `http` or `https` URI, and its scheme's port.
pub(super) fn of_uri(uri: &[u8]) -> Option<(&[u8], u16)> {
    let scheme_is =
        |scheme: &[u8]| uri.len() >= scheme.len() && uri[..scheme.len()].eq_ignore_ascii_case(scheme);
    let (rest, port) = match uri {
        _ if scheme_is(b"http://") => (&uri[7..], 80),
        _ if scheme_is(b"https://") => (&uri[8..], 443),
        _ => return None,
    };
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    Some((&rest[..end], port))
}

/// Whether two valid authorities name the same host and port; one that is left out is `default`.
pub(super) fn same(one: &[u8], other: &[u8], default: u16) -> bool {
    let (Some((host, port)), Some((other_host, other_port))) = (split(one), split(other)) else {
        return false;
    };
    let of = |port: Option<&[u8]>| port.filter(|digits| !digits.is_empty()).map_or(Some(default), number);
    host.eq_ignore_ascii_case(other_host) && of(port) == of(other_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_what_only_looks_like_one() {
        for good in [
            "",
            "a",
            "a.example",
            "A-1.example.",
            "a_b",
            "192.0.2.1",
            "a:80",
            "a:",
            "a:65535",
            "[::1]",
            "[::1]:8080",
            "%41b",
            "a;b=c",
            "xn--bcher-kva.example:1",
        ] {
            assert!(is_valid(good.as_bytes()), "{good}");
        }
        for bad in [
            "a b",
            "a/b",
            "a@b",
            "a?b",
            "a#b",
            "a\\b",
            "a:b",
            "a:80:80",
            "a:-1",
            "a:+80",
            "a:65536",
            "a:000080",
            ":80",
            "[::1",
            "[::1]x",
            "[]",
            "[a]",
            "[v1.x]",
            "a]",
            "[::1%25lo]",
            "%4",
            "%zz",
            "a\"b",
            "<a>",
            "b\u{fc}cher",
            "a|b",
            "{a}",
            "a`",
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn authorities_are_compared_as_their_scheme_reads_them() {
        let of = |uri: &str| of_uri(uri.as_bytes()).map(|(authority, port)| (authority.to_vec(), port));
        assert_eq!(of("http://a.example/p?q"), Some((b"a.example".to_vec(), 80)));
        assert_eq!(of("HTTPS://a:8443?q"), Some((b"a:8443".to_vec(), 443)));
        assert_eq!(of("ftp://a/"), None);
        assert_eq!(of("http:/a"), None);
        assert!(
            same(b"A.example", b"a.EXAMPLE:80", 80)
                && same(b"a:", b"a", 80)
                && same(b"[::1]:443", b"[::1]", 443)
        );
        assert!(
            !same(b"a", b"b", 80)
                && !same(b"a:8080", b"a", 80)
                && !same(b"a", b"a:443", 80)
                && !same(b"a", b"", 80)
        );
    }
}
