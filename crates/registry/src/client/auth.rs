//! Authentication: Basic, and the token protocol that registries share (distribution, "Token Authentication").

use std::{
    collections::HashMap,
    sync::Mutex,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use tokio::time::timeout;

use super::{Client, Error, Result, error::Subject, request::Endpoint, url::encode};
use crate::Credential;

const TOKEN_TIMEOUT: Duration = Duration::from_secs(30);
const TOKEN_BYTES_MAX: usize = 1 << 20;
/// What a token is good for when its service does not say (the protocol's default).
const TOKEN_SECONDS_DEFAULT: u64 = 60;
/// Used up so much earlier, as the way to the registry takes time.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);
/// The most tokens that are remembered.
const TOKENS_MAX: usize = 1024;

/// What is to be done with a repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Scope {
    pub repository: String,
    /// Sorted, as in `pull,push`.
    pub actions: &'static str,
}

impl Scope {
    fn text(&self) -> String {
        format!("repository:{}:{}", self.repository, self.actions)
    }
}

/// How a registry wants to be spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

/// What was learnt about registries, and their tokens.
#[derive(Default)]
pub(super) struct Tokens(Mutex<State>);

#[derive(Default)]
struct State {
    challenges: HashMap<Endpoint, Challenge>,
    tokens: HashMap<(Endpoint, Vec<Scope>), (HeaderValue, Instant)>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Client {
    /// The header for a request, as far as it is known before the registry was asked.
    pub(super) async fn authorization(
        &self,
        endpoint: &Endpoint,
        scopes: &[Scope],
    ) -> Result<Option<HeaderValue>> {
        let challenge = {
            let state = self.0.tokens.0.lock().unwrap_or_else(|e| e.into_inner());
            if let Some((token, until)) = state.tokens.get(&(endpoint.clone(), scopes.to_vec()))
                && Instant::now() < *until
            {
                return Ok(Some(token.clone()));
            }
            state.challenges.get(endpoint).cloned()
        };
        match challenge {
            Some(challenge) => self.answer(endpoint, scopes, &challenge).await,
            None => Ok(None),
        }
    }

    /// The header that answers a 401; `None` if there is nothing to answer with.
    pub(super) async fn challenge(
        &self,
        endpoint: &Endpoint,
        scopes: &[Scope],
        headers: &HeaderMap,
    ) -> Result<Option<HeaderValue>> {
        let challenges = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let mut parsed: Vec<Challenge> =
            challenges.filter_map(|value| parse_challenge(value.to_str().ok()?)).collect();
        // Bearer first: a registry that offers both prefers it.
        parsed.sort_by_key(|challenge| *challenge == Challenge::Basic);
        let Some(challenge) = parsed.into_iter().next() else { return Ok(None) };
        {
            let mut state = self.0.tokens.0.lock().unwrap_or_else(|e| e.into_inner());
            state.challenges.insert(endpoint.clone(), challenge.clone());
            state.tokens.remove(&(endpoint.clone(), scopes.to_vec()));
        }
        self.answer(endpoint, scopes, &challenge).await
    }

    async fn answer(
        &self,
        endpoint: &Endpoint,
        scopes: &[Scope],
        challenge: &Challenge,
    ) -> Result<Option<HeaderValue>> {
        let credential = self.0.config.credentials.find(&endpoint.domain).await?;
        match (challenge, credential) {
            (_, Some(Credential::Bearer(token))) => Ok(secret(format!("Bearer {token}"))),
            (Challenge::Basic, Some(Credential::Basic { username, password })) => {
                Ok(basic(&username, &password))
            }
            (Challenge::Basic, _) => Ok(None),
            (Challenge::Bearer { realm, service }, credential) => {
                self.fetch_token(endpoint, scopes, realm, service, credential).await.map(Some)
            }
        }
    }

    async fn fetch_token(
        &self,
        endpoint: &Endpoint,
        scopes: &[Scope],
        realm: &str,
        service: &str,
        credential: Option<Credential>,
    ) -> Result<HeaderValue> {
        let what = Subject::Token(endpoint.domain.clone());
        let bad = || Error::Address { registry: endpoint.domain.clone(), url: realm.to_owned() };
        // A registry behind TLS may not have the credential sent in the clear.
        if endpoint.origin.starts_with("https:") && !realm.starts_with("https:") {
            return Err(bad());
        }
        let request = token_request(scopes, realm, service, credential).ok_or_else(bad)?;
        let sent = timeout(TOKEN_TIMEOUT, self.0.http.request(request)).await;
        let timed_out =
            |_| Error::Timeout { registry: endpoint.domain.clone(), seconds: TOKEN_TIMEOUT.as_secs() };
        let response = sent
            .map_err(timed_out)?
            .map_err(|source| Error::Connect { registry: endpoint.domain.clone(), source: source.into() })?;
        let status = response.status();
        if !status.is_success() {
            let message = format!("its token service answers {status}");
            return Err(Error::Denied { registry: endpoint.domain.clone(), message });
        }
        let body = Limited::new(response.into_body(), TOKEN_BYTES_MAX).collect().await;
        let body = body.map_err(|source| Error::Body { what: what.clone(), source })?.to_bytes();
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|source| Error::Answer { what, source })?;
        let token = answer.token.or(answer.access_token).and_then(|token| secret(format!("Bearer {token}")));
        let token = token.ok_or_else(|| Error::Denied {
            registry: endpoint.domain.clone(),
            message: "its token service gives no token".into(),
        })?;
        let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(TOKEN_SECONDS_DEFAULT).min(86_400));
        let until = Instant::now() + lifetime.saturating_sub(TOKEN_MARGIN);
        let mut state = self.0.tokens.0.lock().unwrap_or_else(|e| e.into_inner());
        if state.tokens.len() >= TOKENS_MAX {
            state.tokens.clear();
        }
        state.tokens.insert((endpoint.clone(), scopes.to_vec()), (token.clone(), until));
        Ok(token)
    }
}

/// The request for a token: GET, with the credential as Basic; or POST, to exchange a refresh token.
fn token_request(
    scopes: &[Scope],
    realm: &str,
    service: &str,
    credential: Option<Credential>,
) -> Option<Request<super::transport::Body>> {
    let mut fields = vec![format!("service={}", encode(service))];
    if let Some(Credential::Identity(token)) = &credential {
        // OAuth 2 separates scopes by spaces.
        let scopes: Vec<String> = scopes.iter().map(Scope::text).collect();
        fields.push(format!("scope={}", encode(&scopes.join(" "))));
        fields.push("grant_type=refresh_token&client_id=gantry".into());
        fields.push(format!("refresh_token={}", encode(token)));
        let form = Full::new(Bytes::from(fields.join("&"))).map_err(|never| match never {}).boxed_unsync();
        let request = Request::builder().method(Method::POST).uri(realm);
        return request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded").body(form).ok();
    }
    fields.extend(scopes.iter().map(|scope| format!("scope={}", encode(&scope.text()))));
    let separator = if realm.contains('?') { '&' } else { '?' };
    let uri = format!("{realm}{separator}{}", fields.join("&"));
    let empty = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
    let mut request = Request::builder().method(Method::GET).uri(uri).body(empty).ok()?;
    if let Some(Credential::Basic { username, password }) = credential {
        request.headers_mut().insert(header::AUTHORIZATION, basic(&username, &password)?);
    }
    Some(request)
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret(format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// RFC 9110, 11.6.1, as far as registries use it: one challenge, parameters in quotes.
fn parse_challenge(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, String::new());
    while let Some((key, after)) = rest.split_once('=') {
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.trim_matches([' ', ',']).to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => value.clone_into(&mut service),
            _ => {}
        }
        rest = next;
    }
    Some(Challenge::Bearer { realm: realm?, service })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_challenges() {
        let text = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a:pull,push""#;
        let bearer =
            |realm: &str, service: &str| Challenge::Bearer { realm: realm.into(), service: service.into() };
        assert_eq!(parse_challenge(text), Some(bearer("https://auth.docker.io/token", "registry.docker.io")));
        assert_eq!(parse_challenge("bearer service=x, realm=\"http://r\""), Some(bearer("http://r", "x")));
        assert_eq!(parse_challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(parse_challenge("Bearer service=\"x\""), None);
        assert_eq!(parse_challenge("Negotiate"), None);
    }

    #[test]
    fn a_mount_asks_for_both_repositories() {
        let scopes = [
            Scope { repository: "a".into(), actions: "pull,push" },
            Scope { repository: "b/c".into(), actions: "pull" },
        ];
        let request = token_request(&scopes, "https://t/x", "s", None).unwrap();
        let expect =
            "https://t/x?service=s&scope=repository%3Aa%3Apull%2Cpush&scope=repository%3Ab%2Fc%3Apull";
        assert_eq!(request.uri().to_string(), expect);
    }
}
