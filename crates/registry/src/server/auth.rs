//! Who may write, and who may read.

use axum::http::{HeaderMap, HeaderValue, header};
use base64::{Engine, prelude::BASE64_STANDARD};

use super::failure::{Code, Failure};

/// What a request must show.
#[derive(Clone, Default)]
pub enum Auth {
    /// Nothing: for tests, and behind something that checks.
    #[default]
    Open,
    /// To write, one of these tokens: as a Bearer token, or as the password of any user.
    Writes(Vec<String>),
    /// The same, to read too.
    Everything(Vec<String>),
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Auth::Open => "Open",
            Auth::Writes(_) => "Writes(…)",
            Auth::Everything(_) => "Everything(…)",
        })
    }
}

impl Auth {
    /// Whether who only reads is asked too.
    pub(super) fn covers_reads(&self) -> bool {
        matches!(self, Auth::Everything(_))
    }

    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), Failure> {
        let (Auth::Writes(tokens) | Auth::Everything(tokens)) = self else { return Ok(()) };
        let presented = presented(headers).unwrap_or_default();
        // All are compared, so that the time tells nothing of which.
        let matches = tokens.iter().filter(|token| !token.is_empty() && same(token, &presented)).count();
        if matches > 0 {
            return Ok(());
        }
        let challenge = HeaderValue::from_static("Basic realm=\"gantry\"");
        let message = "authentication is required; `gantry registry login` sets it up";
        Err(Failure::new(Code::Unauthorized, message).header(header::WWW_AUTHENTICATE, challenge))
    }
}

fn presented(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = text.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64_STANDARD.decode(rest.trim()).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_owned())
}

/// Compares in a time that depends on the lengths alone.
fn same(a: &str, b: &str) -> bool {
    let difference = a.bytes().zip(b.bytes()).fold(0, |sum, (x, y)| sum | (x ^ y));
    a.len() == b.len() && std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(header: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(text) = header {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(text).unwrap());
        }
        Auth::Writes(vec!["secret".into(), String::new()]).check(&headers).is_ok()
    }

    #[test]
    fn accepts_the_token_and_nothing_else() {
        let basic = |text: &str| format!("Basic {}", BASE64_STANDARD.encode(text));
        assert!(check(Some("Bearer secret")) && check(Some("bearer secret")));
        assert!(check(Some(&basic("anyone:secret"))));
        for wrong in
            ["Bearer wrong", "Bearer ", "secret", "Digest secret", "Basic !", &basic("secret:"), &basic(":")]
        {
            assert!(!check(Some(wrong)), "{wrong}");
        }
        assert!(!check(None));
        assert!(Auth::Open.check(&HeaderMap::new()).is_ok());
    }
}
