//! A `kube::Client` from gantry's own kubeconfig: one TLS connection, on which HTTP/2 carries all watches.

use std::{
    fs, io,
    path::Path,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::future::BoxFuture;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use kube::client::middleware::BaseUriLayer;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::Deserialize;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt as _, util::MapRequestLayer};

/// How long a connection may take with its TLS handshake. While no daemon runs the proxy holds its socket open: somebody
/// connects, but nobody shakes hands until the next one is there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may be silent before the daemon is asked whether it is there (HTTP/2 PING, RFC 9113 section 6.7).
const PING_AFTER: Duration = Duration::from_secs(5);
/// How long it may take to answer that, before the connection and all that waits on it are given up.
const PING_DEADLINE: Duration = Duration::from_secs(10);

/// Reads the kubeconfig's current context and makes a client of it; opens no connection yet.
pub fn from_kubeconfig(path: &Path, namespace: &str) -> Result<kube::Client> {
    make(path, namespace, true)
}

/// The same over HTTP/1.1 alone, which can be upgraded to a WebSocket.
pub fn upgrading(path: &Path, namespace: &str) -> Result<kube::Client> {
    make(path, namespace, false)
}

fn make(path: &Path, namespace: &str, http2: bool) -> Result<kube::Client> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let config =
        serde_yaml_ng::from_str::<Kubeconfig>(&text).with_context(|| format!("read {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let (cluster, user) = current(&config).with_context(|| format!("read {}", path.display()))?;
    let server = &cluster.server;
    let uri: http::Uri = server.parse().with_context(|| format!("server {server:?}"))?;
    let tls = tls(&cluster, &user, folder)?;
    let connector =
        hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
    let connector = if http2 { connector.enable_http2().build() } else { connector.build() };
    let http = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_DEADLINE)
        .http2_keep_alive_while_idle(true)
        .build(Punctual(connector));
    let token = user.token.as_ref().map(|token| format!("Bearer {token}"));
    let token = token
        .map(|text| http::HeaderValue::try_from(text).context("the token in the kubeconfig"))
        .transpose()?;
    let authorize = MapRequestLayer::new(move |mut request: http::Request<kube::client::Body>| {
        if let Some(token) = &token {
            request.headers_mut().insert(http::header::AUTHORIZATION, token.clone());
        }
        request
    });
    let service = ServiceBuilder::new().layer(BaseUriLayer::new(uri)).layer(authorize).service(http);
    Ok(kube::Client::new(service.map_err(tower::BoxError::from), namespace))
}

/// A connector that gives up in time.
#[derive(Clone)]
struct Punctual<C>(C);

impl<C> Service<http::Uri> for Punctual<C>
where
    C: Service<http::Uri, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, std::result::Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut task::Context<'_>) -> Poll<std::result::Result<(), BoxError>> {
        self.0.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: http::Uri) -> Self::Future {
        let connected = self.0.call(uri);
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_DEADLINE, connected).await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody answers").into()),
            }
        })
    }
}

/// What is read of a kubeconfig (Kubernetes' `clientcmd/api/v1`).
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    current_context: String,
    clusters: Vec<NamedCluster>,
    contexts: Vec<NamedContext>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Names,
}

#[derive(Deserialize)]
struct Names {
    cluster: String,
    #[serde(default)]
    user: String,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
}

fn current(config: &Kubeconfig) -> Result<(Cluster, User)> {
    let name = &config.current_context;
    let context = config.contexts.iter().find(|context| context.name == *name);
    let names = &context.ok_or_else(|| anyhow!("no context {name:?}"))?.context;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == names.cluster);
    let cluster = cluster.ok_or_else(|| anyhow!("no cluster {:?}", names.cluster))?;
    let user = config.users.iter().find(|user| user.name == names.user);
    Ok((cluster.cluster.clone(), user.map(|user| user.user.clone()).unwrap_or_default()))
}

fn tls(cluster: &Cluster, user: &User, folder: &Path) -> Result<rustls::ClientConfig> {
    let authority =
        pem(cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref(), folder)?;
    let mut roots = rustls::RootCertStore::empty();
    if let Some(authority) = authority {
        for certificate in CertificateDer::pem_slice_iter(&authority) {
            roots.add(certificate.context("certificate-authority")?).context("certificate-authority")?;
        }
    }
    let builder = rustls::ClientConfig::builder().with_root_certificates(Arc::new(roots));
    let certificate =
        pem(user.client_certificate_data.as_deref(), user.client_certificate.as_deref(), folder)?;
    let key = pem(user.client_key_data.as_deref(), user.client_key.as_deref(), folder)?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate)
                .collect::<std::result::Result<_, _>>()
                .context("client-certificate")?;
            let key = PrivateKeyDer::from_pem_slice(&key).context("client-key")?;
            builder.with_client_auth_cert(chain, key).context("client-certificate")
        }
        (None, None) => Ok(builder.with_no_client_auth()),
        _ => bail!("a client certificate and its key belong together"),
    }
}

/// PEM given as base64 in the file, or in a file of its own.
fn pem(data: Option<&str>, file: Option<&str>, folder: &Path) -> Result<Option<Vec<u8>>> {
    match (data, file) {
        (Some(data), _) => Ok(Some(STANDARD.decode(data.trim()).context("base64 in the kubeconfig")?)),
        (None, Some(file)) => {
            let path = folder.join(file);
            Ok(Some(fs::read(&path).with_context(|| format!("read {}", path.display()))?))
        }
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nobody_takes_is_given_up() {
        let nobody = tower::service_fn(|_: http::Uri| std::future::pending::<io::Result<()>>());
        let error =
            Punctual(nobody).oneshot(http::Uri::from_static("https://127.0.0.1:1")).await.unwrap_err();
        assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::TimedOut);
    }
}
