//! A `kube::Client` from gantry's own kubeconfig: one TLS connection, on which HTTP/2 carries all watches.

use std::{fs, path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_util::{client::legacy, rt::TokioExecutor};
use kube::{
    client::middleware::BaseUriLayer,
    config::{AuthInfo, Cluster, Kubeconfig},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tower::{ServiceBuilder, ServiceExt as _, util::MapRequestLayer};

/// Reads the kubeconfig's current context and makes a client of it; opens no connection yet.
pub fn from_kubeconfig(path: &Path, namespace: &str) -> Result<kube::Client> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let config = Kubeconfig::from_yaml(&text).with_context(|| format!("read {}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let (cluster, user) = current(&config).with_context(|| format!("read {}", path.display()))?;
    let server = cluster.server.as_deref().ok_or_else(|| anyhow!("{} names no server", path.display()))?;
    let uri: http::Uri = server.parse().with_context(|| format!("server {server:?}"))?;
    let tls = tls(&cluster, &user, folder)?;
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .build();
    let http = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let token = user.token.as_ref().map(|token| {
        use kube::config::ExposeSecret as _;
        format!("Bearer {}", token.expose_secret())
    });
    let token = token.map(|text| http::HeaderValue::try_from(text).context("the token in the kubeconfig")).transpose()?;
    let authorize = MapRequestLayer::new(move |mut request: http::Request<kube::client::Body>| {
        if let Some(token) = &token {
            request.headers_mut().insert(http::header::AUTHORIZATION, token.clone());
        }
        request
    });
    let service = ServiceBuilder::new().layer(BaseUriLayer::new(uri)).layer(authorize).service(http);
    Ok(kube::Client::new(service.map_err(tower::BoxError::from), namespace))
}

fn current(config: &Kubeconfig) -> Result<(Cluster, AuthInfo)> {
    let name = config.current_context.as_deref().ok_or_else(|| anyhow!("no current-context"))?;
    let context = config.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|context| context.context.as_ref());
    let context = context.ok_or_else(|| anyhow!("no context {name:?}"))?;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|cluster| cluster.cluster.clone());
    let cluster = cluster.ok_or_else(|| anyhow!("no cluster {:?}", context.cluster))?;
    let user = context.user.as_deref().unwrap_or_default();
    let user = config.auth_infos.iter().find(|info| info.name == user).and_then(|info| info.auth_info.clone());
    Ok((cluster, user.unwrap_or_default()))
}

fn tls(cluster: &Cluster, user: &AuthInfo, folder: &Path) -> Result<rustls::ClientConfig> {
    use kube::config::ExposeSecret as _;
    let authority = pem(cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref(), folder)?;
    let mut roots = rustls::RootCertStore::empty();
    if let Some(authority) = authority {
        for certificate in CertificateDer::pem_slice_iter(&authority) {
            roots.add(certificate.context("certificate-authority")?).context("certificate-authority")?;
        }
    }
    let builder = rustls::ClientConfig::builder().with_root_certificates(Arc::new(roots));
    let certificate = pem(user.client_certificate_data.as_deref(), user.client_certificate.as_deref(), folder)?;
    let key_data = user.client_key_data.as_ref().map(|key| key.expose_secret());
    let key = pem(key_data, user.client_key.as_deref(), folder)?;
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
