//! One request, with what belongs to it: authentication, redirects, and trying again when the registry asks for it.

use std::{io, net::IpAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::client::legacy;
use tokio::time::{sleep, timeout};

use super::{
    Client, Config, Error, Result, Source, auth::Scope, error::Subject, is_absent, transport::Body, url,
};

/// Tries in all, when the registry is busy.
const TRIES_MAX: u32 = 5;
/// The longest wait between tries, whatever the registry asks for.
const WAIT_MAX: Duration = Duration::from_secs(60);
const REDIRECTS_MAX: usize = 5;
/// How long the head of an answer may take; an upload's comes after its body.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(3600);
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Where a registry is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    /// As users write it: for messages, and for finding credentials.
    pub domain: String,
    /// `https://host:port`.
    pub origin: String,
}

impl Endpoint {
    pub fn new(domain: &str, config: &Config) -> Self {
        let host = host(domain);
        let is_embedded = host == "localhost";
        let is_loopback = is_embedded || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let plain = is_loopback || config.insecure.iter().any(|insecure| insecure == domain);
        let authority = match (is_embedded, config.embedded) {
            (true, Some(address)) => address.to_string(),
            _ if domain == oci::reference::DOCKER_HUB => "registry-1.docker.io".to_owned(),
            _ => domain.to_owned(),
        };
        let scheme = if plain { "http" } else { "https" };
        Endpoint { domain: domain.to_owned(), origin: format!("{scheme}://{authority}") }
    }
}

fn host(domain: &str) -> &str {
    match domain.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => domain.split(':').next().unwrap_or(domain),
    }
}

/// A request that can be made again.
#[derive(Debug, Clone)]
pub(super) struct Call {
    method: Method,
    /// A path on the registry, or a whole URL that the registry named.
    target: String,
    headers: HeaderMap,
    body: Option<Source>,
    scopes: Vec<Scope>,
}

impl Call {
    pub fn new(method: Method, target: impl Into<String>) -> Self {
        Call { method, target: target.into(), headers: HeaderMap::new(), body: None, scopes: Vec::new() }
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    pub fn body(mut self, body: Source) -> Self {
        self.body = Some(body);
        self
    }

    pub fn pulls(self, repository: &str) -> Self {
        self.scope(repository, "pull")
    }

    pub fn pushes(self, repository: &str) -> Self {
        self.scope(repository, "pull,push")
    }

    pub fn deletes(self, repository: &str) -> Self {
        self.scope(repository, "delete,pull,push")
    }

    fn scope(mut self, repository: &str, actions: &'static str) -> Self {
        self.scopes.push(Scope { repository: repository.to_owned(), actions });
        self
    }
}

impl Client {
    /// Sends a request; gives the answer if it is one of success.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        call: Call,
        what: Subject,
    ) -> Result<Response<Incoming>> {
        let mut authorization = self.authorization(endpoint, &call.scopes).await?;
        let mut challenged = false;
        let mut tries = 1;
        loop {
            let response = match self.follow(endpoint, &call, &what, authorization.clone()).await {
                Ok(response) => response,
                // Whatever was to be sent may be sent again: names are digests, and uploads start anew.
                Err(error) if tries < TRIES_MAX && is_passing(&error, endpoint) => {
                    sleep(wait(tries, None)).await;
                    tries += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                authorization = self.challenge(endpoint, &call.scopes, response.headers()).await?;
                if authorization.is_some() {
                    continue;
                }
            }
            if is_busy(status) && tries < TRIES_MAX {
                sleep(wait(tries, response.headers().get(header::RETRY_AFTER))).await;
                tries += 1;
                continue;
            }
            return Err(failure(endpoint, what, response).await);
        }
    }

    /// Sends a request and goes where the answer points.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        call: &Call,
        what: &Subject,
        mut authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>> {
        let bad = |url: &str| Error::Address { registry: endpoint.domain.clone(), url: url.to_owned() };
        let target = if call.target.starts_with('/') {
            format!("{}{}", endpoint.origin, call.target)
        } else {
            call.target.clone()
        };
        let mut uri: Uri = target.parse().map_err(|_| bad(&target))?;
        // An upload may be sent elsewhere; our credential is not.
        let origin: Uri = endpoint.origin.parse().map_err(|_| bad(&endpoint.origin))?;
        for _ in 0..=REDIRECTS_MAX {
            if uri.authority() != origin.authority() || uri.scheme() != origin.scheme() {
                authorization = None;
            }
            let response = self.once(endpoint, call, &uri, authorization.as_ref()).await?;
            let is_read = matches!(call.method, Method::GET | Method::HEAD);
            if !(is_read && response.status().is_redirection()) {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            let Some(next) = location.and_then(|l| url::join(&uri, l)) else { return Ok(response) };
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(Error::Redirect { what: what.clone() });
            }
            uri = next;
        }
        Err(Error::Redirect { what: what.clone() })
    }

    async fn once(
        &self,
        endpoint: &Endpoint,
        call: &Call,
        uri: &Uri,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>> {
        let (body, len) = body(call.body.as_ref()).await?;
        let mut request = Request::new(body);
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.extend(call.headers.clone());
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("gantry/", env!("CARGO_PKG_VERSION"))),
        );
        if call.method != Method::GET && call.method != Method::HEAD {
            headers.insert(header::CONTENT_LENGTH, len.into());
        }
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.clone());
        }
        let limit = if call.body.is_some() { UPLOAD_TIMEOUT } else { ANSWER_TIMEOUT };
        let registry = || endpoint.domain.clone();
        match timeout(limit, self.0.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(Error::Connect { registry: registry(), source: source.into() }),
            Err(_) => Err(Error::Timeout { registry: registry(), seconds: limit.as_secs() }),
        }
    }
}

async fn body(source: Option<&Source>) -> Result<(Body, u64)> {
    match source {
        None => Ok((Empty::new().map_err(|never| match never {}).boxed_unsync(), 0)),
        Some(Source::Bytes(bytes)) => {
            Ok((Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(), bytes.len() as u64))
        }
        Some(Source::File(path)) => {
            let failed = |source| Error::Read { path: path.clone(), source };
            let file = tokio::fs::File::open(path).await.map_err(failed)?;
            let len = file.metadata().await.map_err(failed)?.len();
            let stream = tokio_util::io::ReaderStream::with_capacity(file, 256 << 10);
            let frames = futures::StreamExt::map(stream, |part: io::Result<Bytes>| part.map(Frame::data));
            Ok((StreamBody::new(frames).boxed_unsync(), len))
        }
    }
}

/// May it be better in a moment? On this machine, nobody who refuses a connection now will accept one then.
fn is_passing(error: &Error, endpoint: &Endpoint) -> bool {
    let is_local = ["http://127.", "http://localhost", "http://[::1]"];
    match error {
        Error::Connect { source, .. } => {
            let refused = source.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect);
            !(refused && is_local.iter().any(|origin| endpoint.origin.starts_with(origin)))
        }
        Error::Timeout { .. } => true,
        _ => false,
    }
}

fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// The wait before the next try: what the registry asks for in seconds, else longer each time.
fn wait(tries: u32, retry_after: Option<&HeaderValue>) -> Duration {
    let asked = retry_after.and_then(|v| v.to_str().ok()?.trim().parse().ok()).map(Duration::from_secs);
    asked.unwrap_or(Duration::from_millis(250) * 2u32.pow(tries)).min(WAIT_MAX)
}

/// The error that an answer means; the registry's own words are kept.
async fn failure(endpoint: &Endpoint, what: Subject, response: Response<Incoming>) -> Error {
    let status = response.status();
    let body = Limited::new(response.into_body(), ERROR_BYTES_MAX).collect().await;
    let body = body.map(|b| b.to_bytes()).unwrap_or_default();
    let message = message(&body).unwrap_or_else(|| status.canonical_reason().unwrap_or("error").to_owned());
    match status {
        status if is_absent(status) => Error::NotFound(what),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Error::Denied { registry: endpoint.domain.clone(), message }
        }
        status => Error::Status { what, status, message },
    }
}

fn message(body: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let errors = value.get("errors")?.as_array()?;
    let texts: Vec<&str> = errors
        .iter()
        .filter_map(|error| {
            let text = error.get("message").and_then(|m| m.as_str()).filter(|m| !m.is_empty());
            text.or_else(|| error.get("code").and_then(|c| c.as_str()))
        })
        .collect();
    // A registry's text goes to a terminal.
    let clean: String = texts.join("; ").chars().filter(|c| !c.is_control()).take(500).collect();
    (!clean.is_empty()).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_what_is_listed_goes_without_tls() {
        let config = Config {
            embedded: Some(([127, 0, 0, 1], 5050).into()),
            insecure: vec!["reg.lan:5000".into()],
            ..Config::default()
        };
        let origin = |domain: &str| Endpoint::new(domain, &config).origin;
        assert_eq!(origin("docker.io"), "https://registry-1.docker.io");
        assert_eq!(origin("localhost"), "http://127.0.0.1:5050");
        assert_eq!(origin("localhost:1"), "http://127.0.0.1:5050");
        assert_eq!(origin("127.0.0.1:5000"), "http://127.0.0.1:5000");
        assert_eq!(origin("[::1]:5000"), "http://[::1]:5000");
        assert_eq!(origin("reg.lan:5000"), "http://reg.lan:5000");
        assert_eq!(origin("reg.lan"), "https://reg.lan");
        assert_eq!(Endpoint::new("localhost:7", &Config::default()).origin, "http://localhost:7");
    }

    #[test]
    fn waits_as_asked_within_reason() {
        assert_eq!(wait(1, Some(&HeaderValue::from_static("3"))), Duration::from_secs(3));
        assert_eq!(wait(1, Some(&HeaderValue::from_static("9999"))), WAIT_MAX);
        assert!(wait(1, None) < wait(4, None));
    }
}
