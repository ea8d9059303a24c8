//! The two servers that are asked: ours in this process, and a real kube-apiserver over HTTPS.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};

use super::case::Request;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Events kept for watchers.
const RING_EVENTS: usize = 16;

/// A server, and who asks it.
pub struct Server {
    admin: Caller,
    alice: Caller,
    /// The store of our own server.
    _state: Option<tempfile::TempDir>,
}

struct Caller {
    client: kube::Client,
    base: String,
    bearer: Option<String>,
}

/// What came back.
pub struct Answer {
    pub status: u16,
    content_type: String,
    warnings: Vec<String>,
    pub body: Value,
}

impl Answer {
    /// Everything that is compared.
    pub fn into_value(self) -> Value {
        let mut value = json!({"status": self.status, "contentType": self.content_type, "body": self.body});
        if !self.warnings.is_empty() {
            value["warnings"] = json!(self.warnings);
        }
        value
    }
}

impl Server {
    /// Ours, on an empty store.
    pub async fn ours() -> Result<Self> {
        let state = tempfile::tempdir()?;
        // Few events are kept, so that a watch from the first version is too old here as it is there.
        let options = store::Options { ring_events: RING_EVENTS, ..store::Options::default() };
        let store = store::Store::open(&state.path().join("store"), options)?;
        let advertise = Some(SocketAddr::from((Ipv4Addr::new(192, 0, 2, 10), 6443)));
        let config = apiserver::Config { advertise, ..apiserver::Config::new(store) };
        let server = apiserver::Server::open(config).await?;
        let caller = |identity| Caller { client: server.client(identity), base: String::new(), bearer: None };
        let alice = apiserver::Identity::new("alice", ["dev", "system:authenticated"]);
        Ok(Server { admin: caller(apiserver::Identity::admin()), alice: caller(alice), _state: Some(state) })
    }

    /// The one that the environment names.
    pub fn oracle() -> Result<Self> {
        let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
        let base = variable("ORACLE_URL")?;
        let caller = |token| -> Result<Caller> {
            Ok(Caller { client: over_tls()?, base: base.clone(), bearer: Some(token) })
        };
        Ok(Server {
            admin: caller(variable("ORACLE_TOKEN")?)?,
            alice: caller(variable("ORACLE_ALICE_TOKEN")?)?,
            _state: None,
        })
    }

    /// Sends one request.
    pub async fn send(&self, request: &Request) -> Result<Answer> {
        let caller = match request.user.as_deref() {
            None => &self.admin,
            Some("alice") => &self.alice,
            Some(other) => bail!("no user {other}"),
        };
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(format!("{}{}", caller.base, request.path))
            .header("accept", &request.accept)
            .header("user-agent", "replay/1.0");
        if let Some(media) = &request.content_type {
            builder = builder.header("content-type", media);
        }
        if let Some(token) = &caller.bearer {
            builder = builder.header("authorization", format!("Bearer {token}"));
        }
        let body = kube::client::Body::from(request.body.clone());
        tokio::time::timeout(PATIENCE, receive(&caller.client, builder.body(body)?, request.events))
            .await
            .context("no answer in time")?
    }
}

async fn receive(
    client: &kube::Client,
    request: http::Request<kube::client::Body>,
    events: Option<usize>,
) -> Result<Answer> {
    let response = client.send(request).await?;
    let (parts, mut body) = response.into_parts();
    let header = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let mut answer = Answer {
        status: parts.status.as_u16(),
        content_type: parts.headers.get("content-type").map(header).unwrap_or_default(),
        warnings: parts.headers.get_all("warning").iter().map(header).collect(),
        body: Value::Null,
    };
    let wanted = events.filter(|_| parts.status.is_success());
    let mut bytes = Vec::new();
    let complete = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'\n').count();
    let mut ended = true;
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame.map_err(|e| anyhow::anyhow!("the answer broke off: {e}"))?.data_ref() {
            bytes.extend_from_slice(data);
        }
        if wanted.is_some_and(|wanted| complete(&bytes) >= wanted) {
            ended = false;
            break;
        }
    }
    answer.body = match wanted {
        None => serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned())),
        Some(wanted) => {
            let mut list: Vec<Value> = String::from_utf8_lossy(&bytes)
                .lines()
                .take(wanted)
                .map(|line| serde_json::from_str(line).unwrap_or_else(|_| line.into()))
                .collect();
            if ended {
                list.push("end".into());
            }
            Value::Array(list)
        }
    };
    Ok(answer)
}

fn over_tls() -> Result<kube::Client> {
    // Another provider may have been installed by then; both are the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Loopback))
        .with_no_client_auth();
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http1()
        .build();
    let client = Client::builder(TokioExecutor::new()).build(connector);
    Ok(kube::Client::new(client, "default"))
}

/// The oracle is a test server on this machine with a certificate that it made itself: its certificate is not checked.
#[derive(Debug)]
pub(crate) struct Loopback;

impl ServerCertVerifier for Loopback {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
