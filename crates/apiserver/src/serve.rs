//! The server on a TCP listener: TLS with client certificates, HTTP/1.1 and h2, an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use lifecycle::bound::Bound;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::handle::Draining;
use crate::identity::Identity;
use crate::{Server, handle};

/// Seconds that a client has for its TLS handshake and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEAD: Duration = Duration::from_secs(30);
/// What runs when the listener closes may end within this.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a listener ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the listener's address is not known")]
    Address(#[source] io::Error),
}

impl Server {
    /// Serves on `listener` until `scope` ends; then in-flight requests end, and watches are closed.
    /// A verified client certificate makes the identity; without one the client is anonymous.
    /// `config` decides which certificates are asked for; ALPN is set here.
    pub async fn serve(
        &self,
        listener: TcpListener,
        mut config: ServerConfig,
        scope: &lifecycle::Scope,
    ) -> Result<(), ServeError> {
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let address = listener.local_addr().map_err(ServeError::Address)?;
        let bound = Bound::new("apiserver_connections", self.api.limits.connections as u64);
        let graceful = GracefulShutdown::new();
        let token = scope.token();
        loop {
            let (stream, peer) = tokio::select! {
                () = token.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors or memory: other connections may end meanwhile.
                        warn!(%address, %error, "accept");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            let Some(permit) = bound.acquire(1) else {
                debug!(%peer, "connection refused: the bound is reached");
                continue;
            };
            let router = handle::router(self.api.clone());
            let (acceptor, watcher, token) = (acceptor.clone(), graceful.watcher(), token.clone());
            tokio::spawn(async move {
                let _permit = permit;
                if let Err(error) = connection(stream, acceptor, router, watcher, token).await {
                    debug!(%peer, error = &*error, "connection");
                }
            });
        }
        drop(listener);
        let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
        Ok(())
    }

    /// Serves on a fresh listener at `address`; answers the address bound and runs in `scope`.
    pub async fn listen(
        &self,
        address: SocketAddr,
        config: ServerConfig,
        scope: &lifecycle::Scope,
    ) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let (server, inner) = (self.clone(), scope.clone());
        scope.spawn_graceful("apiserver", async move {
            if let Err(error) = server.serve(listener, config, &inner).await {
                warn!(error = &error as &dyn std::error::Error, "serve");
            }
        });
        Ok(bound)
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: axum::Router,
    watcher: Watcher,
    token: CancellationToken,
) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let identity = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(Identity::from_certificate)
        .unwrap_or_else(Identity::anonymous);
    let draining = Draining(token);
    let service = router.map_request(move |request: http::Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(identity.clone());
        request.extensions_mut().insert(draining.clone());
        request
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(250).keep_alive_interval(Some(HEAD));
    let connection =
        builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
    watcher.watch(connection.into_owned()).await
}
