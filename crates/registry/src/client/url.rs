//! The few things about URLs that are needed.

use http::Uri;

/// Percent-encodes everything that is not unreserved (RFC 3986, 2.3).
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What a Location header means, seen from the request's address: absolute, of another host, or a path.
pub fn join(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    let origin = format!("{}://{}", base.scheme_str()?, base.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{}://{rest}", base.scheme_str()?).parse().ok();
    }
    if location.starts_with('/') {
        return format!("{origin}{location}").parse().ok();
    }
    let (folder, _) = base.path().rsplit_once('/')?;
    format!("{origin}{folder}/{location}").parse().ok()
}

/// The URL with one more query parameter.
pub fn with_parameter(uri: &Uri, name: &str, value: &str) -> String {
    let separator = if uri.query().is_some() { '&' } else { '?' };
    format!("{uri}{separator}{name}={}", encode(value))
}

/// The path and query of `<…>; rel="next"`.
pub fn next_page(link: &str) -> Option<String> {
    let (target, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !rest.replace('"', "").contains("rel=next") {
        return None;
    }
    let uri: Uri = target.parse().ok()?;
    uri.path_and_query().map(|p| p.as_str().to_owned()).filter(|p| p.starts_with("/v2/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_locations() {
        let base: Uri = "http://r:5000/v2/a/blobs/uploads/".parse().unwrap();
        let cases = [
            ("/v2/a/x?s=1", "http://r:5000/v2/a/x?s=1"),
            ("https://cdn/x", "https://cdn/x"),
            ("//cdn/x", "http://cdn/x"),
            ("y", "http://r:5000/v2/a/blobs/uploads/y"),
        ];
        for (location, expect) in cases {
            assert_eq!(join(&base, location).unwrap().to_string(), expect);
        }
        let uri = join(&base, "/u?s=1").unwrap();
        assert_eq!(with_parameter(&uri, "digest", "sha256:a"), "http://r:5000/u?s=1&digest=sha256%3Aa");
        assert_eq!(
            next_page("</v2/a/tags/list?n=1&last=b>; rel=\"next\"").unwrap(),
            "/v2/a/tags/list?n=1&last=b"
        );
        assert_eq!(next_page("</v2/x>; rel=\"prev\""), None);
    }
}
