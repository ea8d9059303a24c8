//! The server on a socket: TLS, identities from certificates, upgrades through to kubelet's API, an orderly end.

use std::sync::Arc;
use std::time::Duration;

use apiserver::{Config, Identity, Server};
use axum::body::Body;
use axum::extract::Request;
use axum::routing::any;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use lifecycle::Scope;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt;

/// An event that never comes fails the test, not the machine.
const DEADLINE: Duration = Duration::from_secs(20);

struct Running {
    port: u16,
    scope: Scope,
    server: Server,
    roots: RootCertStore,
    issuer: Issuer<'static, KeyPair>,
    _folder: tempfile::TempDir,
}

/// A kubelet that answers an attach with an echo.
fn kubelet() -> axum::Router {
    axum::Router::new().route(
        "/attach/{namespace}/{pod}/{container}",
        any(async |mut request: Request| {
            assert_eq!(request.uri().query(), Some("output=1&error=1"));
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut word = [0; 5];
                stream.read_exact(&mut word).await.unwrap();
                stream.write_all(&word).await.unwrap();
            });
            Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "echo")
                .body(Body::empty())
                .unwrap()
        }),
    )
}

fn signed(
    issuer: &Issuer<'_, KeyPair>,
    params: CertificateParams,
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (CertificateDer::from(certificate.der().to_vec()), PrivateKeyDer::try_from(key.serialize_der()).unwrap())
}

async fn start() -> Running {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.self_signed(&ca_key).unwrap().der().to_vec())).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let (certificate, key) = signed(&issuer, CertificateParams::new(vec!["localhost".to_owned()]).unwrap());
    let verifier =
        WebPkiClientVerifier::builder(Arc::new(roots.clone())).allow_unauthenticated().build().unwrap();
    let config = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap();

    let folder = tempfile::tempdir().unwrap();
    let store = store::Store::open(&folder.path().join("store"), store::Options::default()).unwrap();
    let server = Server::open(Config { kubelet: Some(kubelet()), ..Config::new(store) }).await.unwrap();
    let scope = Scope::new("test");
    let address = server.listen("127.0.0.1:0".parse().unwrap(), config, &scope).await.unwrap();
    Running { port: address.port(), scope, server, roots, issuer, _folder: folder }
}

impl Running {
    async fn connect(&self, identity: Option<(&str, &str)>) -> SendRequest<Full<Bytes>> {
        let builder = ClientConfig::builder().with_root_certificates(self.roots.clone());
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((user, group)) => {
                let mut params = CertificateParams::new(Vec::new()).unwrap();
                params.distinguished_name.push(DnType::CommonName, user);
                params.distinguished_name.push(DnType::OrganizationName, group);
                let (certificate, key) = signed(&self.issuer, params);
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    async fn admin_post(&self, path: &str, body: Value) -> u16 {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .extension(Identity::admin())
            .body(Body::from(body.to_string()))
            .unwrap();
        self.server.router().oneshot(request).await.unwrap().status().as_u16()
    }
}

fn get(path: &str) -> http::request::Builder {
    Request::get(path).header("host", "localhost")
}

async fn value(response: Response<Incoming>) -> Value {
    serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

#[tokio::test]
async fn a_certificate_is_an_identity() {
    let running = start().await;
    let mut nobody = running.connect(None).await;
    let version = nobody.send_request(get("/version").body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(value(version).await["minor"], "36");
    let refused = nobody.send_request(get("/api/v1/pods").body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(refused.status(), 403);

    let mut node = running.connect(Some(("system:node:n", "system:nodes"))).await;
    let review = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::from("{}"))
        .unwrap();
    let review = value(node.send_request(review).await.unwrap()).await;
    assert_eq!(review["status"]["userInfo"]["username"], "system:node:n");
    assert_eq!(review["status"]["userInfo"]["groups"][0], "system:nodes");
    let pods = node.send_request(get("/api/v1/pods").body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(pods.status(), 200);
}

#[tokio::test]
async fn an_attach_reaches_kubelet() {
    let running = start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(running.admin_post(pods, pod).await, 201);
    let mut admin = running.connect(Some(("admin", "system:masters"))).await;
    let attach = get(&format!("{pods}/p/attach?stdout=true"))
        .header("connection", "upgrade")
        .header("upgrade", "echo")
        .body(Full::default())
        .unwrap();
    let response = admin.send_request(attach).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"hello").await.unwrap();
    let mut word = [0; 5];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut word)).await.unwrap().unwrap();
    assert_eq!(&word, b"hello");
}

#[tokio::test]
async fn watches_end_when_the_server_does() {
    let running = start().await;
    let mut admin = running.connect(Some(("admin", "system:masters"))).await;
    let path = "/api/v1/namespaces?watch=1&resourceVersion=0&fieldSelector=metadata.name%3Ddefault";
    let response = admin.send_request(get(path).body(Full::default()).unwrap()).await.unwrap();
    let mut body = response.into_body();
    let first = tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap();
    assert!(first.into_data().unwrap().starts_with(b"{\"type\":\"ADDED\""));
    assert!(running.scope.shutdown(DEADLINE).await.is_empty());
    assert!(tokio::time::timeout(DEADLINE, body.frame()).await.unwrap().is_none());
    assert!(TcpStream::connect(("127.0.0.1", running.port)).await.is_err());
}
