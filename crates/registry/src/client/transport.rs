//! Connections: HTTP/1.1 and HTTP/2, TLS with the web's roots, and names resolved without NSS, which a static binary
//! does not have.

use std::{
    error::Error as StdError,
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hickory_resolver::TokioResolver;
use http_body_util::combinators::UnsyncBoxBody;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        self,
        connect::{HttpConnector, dns::Name},
    },
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tower::Service;

use super::Error;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Http = legacy::Client<HttpsConnector<HttpConnector<Resolver>>, Body>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_CONNECTIONS_MAX: usize = 8;

/// A pool of connections.
pub(super) fn http(extra_ca: Option<&[u8]>) -> Result<Http, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    for certificate in CertificateDer::pem_slice_iter(extra_ca.unwrap_or_default()) {
        let certificate = certificate.map_err(|e| Error::ExtraCa(e.into()))?;
        roots.add(certificate).map_err(|e| Error::ExtraCa(e.into()))?;
    }
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::ExtraCa(e.into()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut connector = HttpConnector::new_with_resolver(Resolver::default());
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .enable_http2()
        .wrap_connector(connector);
    Ok(legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .build(connector))
}

/// Resolves names by the nameservers of `/etc/resolv.conf` and by `/etc/hosts`.
#[derive(Clone, Default)]
pub(super) struct Resolver {
    dns: Arc<OnceLock<TokioResolver>>,
}

type Addresses = std::vec::IntoIter<SocketAddr>;
type ResolveError = Box<dyn StdError + Send + Sync>;

impl Resolver {
    async fn resolve(self, name: Name) -> Result<Addresses, ResolveError> {
        let host = name.as_str();
        if host == "localhost" || host.ends_with(".localhost") {
            let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            return Ok(addresses(loopback));
        }
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(addresses([ip]));
        }
        let dns = match self.dns.get() {
            Some(dns) => dns,
            None => {
                let dns = TokioResolver::builder_tokio()?.build()?;
                self.dns.get_or_init(|| dns)
            }
        };
        let found = dns.lookup_ip(host).await?;
        Ok(addresses(found.iter()))
    }
}

fn addresses(ips: impl IntoIterator<Item = IpAddr>) -> Addresses {
    // The connector puts the port in.
    ips.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect::<Vec<_>>().into_iter()
}

impl Service<Name> for Resolver {
    type Response = Addresses;
    type Error = ResolveError;
    type Future = Pin<Box<dyn Future<Output = Result<Addresses, ResolveError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ResolveError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(self.clone().resolve(name))
    }
}
