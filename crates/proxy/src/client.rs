//! A client of the API from a kubeconfig, over TLS with a client certificate.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tower::ServiceBuilder;

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: read the kubeconfig")]
    Kubeconfig { path: PathBuf, source: kube::config::KubeconfigError },
    #[error("{path}: use the certificates in the kubeconfig")]
    Certificates { path: PathBuf, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{path}: use the credentials in the kubeconfig")]
    Credentials { path: PathBuf, source: Box<kube::Error> },
}

/// Reads the kubeconfig; connects when it is first used, and again whenever that is needed.
pub async fn from_kubeconfig(path: &Path) -> Result<kube::Client, Error> {
    let unread = |source| Error::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = Kubeconfig::read_from(path).map_err(unread)?;
    let options = KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unread)?;
    // A watch is silent for as long as nothing happens.
    config.read_timeout = None;
    let tls = tls(&config, path).map_err(|source| Error::Certificates { path: path.to_owned(), source })?;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    let https = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(http);
    let credentials = config
        .auth_layer()
        .map_err(|source| Error::Credentials { path: path.to_owned(), source: Box::new(source) })?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(credentials)
        .map_err(tower::BoxError::from)
        .service(hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https));
    Ok(kube::Client::new(service, config.default_namespace))
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn tls(config: &kube::Config, path: &Path) -> Result<rustls::ClientConfig, Failure> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in config.root_cert.iter().flatten() {
        roots.add(CertificateDer::from(certificate.clone()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    // The key's type gives its text only to serialization.
    let auth = serde_json::to_value(&config.auth_info)?;
    Ok(match certified(&auth)? {
        Some(key) => {
            let renewed = Renewed { path: path.to_owned(), read: Mutex::new((written(path), key)) };
            builder.with_client_cert_resolver(Arc::new(renewed))
        }
        None => builder.with_no_client_auth(),
    })
}

/// The certificate and key of a kubeconfig's user, if it has both.
fn certified(auth: &serde_json::Value) -> Result<Option<Arc<CertifiedKey>>, Failure> {
    let certificate = pem(&auth["client-certificate-data"], &auth["client-certificate"])?;
    let key = pem(&auth["client-key-data"], &auth["client-key"])?;
    let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&certificate).collect::<Result<_, _>>()?;
    let provider = rustls::crypto::ring::default_provider();
    let key = CertifiedKey::from_der(chain, PrivateKeyDer::from_pem_slice(&key)?, &provider)?;
    Ok(Some(Arc::new(key)))
}

/// The client certificate as the kubeconfig has it: the daemon writes it anew before its time runs out, and this process
/// may live longer than any certificate.
#[derive(Debug)]
struct Renewed {
    path: PathBuf,
    /// When the file was written that the key was read from.
    read: Mutex<(Option<SystemTime>, Arc<CertifiedKey>)>,
}

fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|found| found.modified()).ok()
}

impl Renewed {
    fn current(&self) -> Arc<CertifiedKey> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let now = written(&self.path);
        if now.is_some() && now != read.0 {
            let again = || -> Result<Arc<CertifiedKey>, Failure> {
                let config = Kubeconfig::read_from(&self.path)?;
                let user = config.auth_infos.first().and_then(|user| user.auth_info.as_ref());
                certified(&serde_json::to_value(user)?)?.ok_or_else(|| "there is no certificate in it".into())
            };
            match again() {
                Ok(key) => *read = (now, key),
                Err(error) => {
                    tracing::warn!(path = %self.path.display(), %error, "read the renewed certificate");
                }
            }
        }
        Arc::clone(&read.1)
    }
}

impl ResolvesClientCert for Renewed {
    fn resolve(&self, _issuers: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// PEM text that the kubeconfig holds in base64, or names by its path.
fn pem(
    data: &serde_json::Value,
    path: &serde_json::Value,
) -> Result<Option<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
    use base64::Engine as _;
    Ok(match (data.as_str(), path.as_str()) {
        (Some(data), _) => Some(base64::engine::general_purpose::STANDARD.decode(data)?),
        (None, Some(path)) => Some(std::fs::read(path)?),
        (None, None) => None,
    })
}
