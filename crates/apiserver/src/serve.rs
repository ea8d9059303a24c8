//! The server on a TCP listener: a verified client certificate makes the identity. How connections are taken and
//! bounded is `listen`'s.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use http::Request;
use lifecycle::connections::Limits;
use listen::Connection;
use rustls::ServerConfig;
use tokio::net::TcpListener;

use crate::handle::Draining;
use crate::identity::Identity;
use crate::{Server, handle};

/// Connections of a listener that nobody configured.
const CONNECTIONS: Limits = Limits { total: 2048, group: 2048, peer: 512 };

impl Server {
    /// Serves on `listener` until `scope` ends; then in-flight requests end, and watches are closed.
    /// A verified client certificate makes the identity; without one the client is anonymous.
    /// The TLS configuration decides which certificates are asked for.
    pub async fn serve(&self, listener: TcpListener, config: listen::Config, scope: &lifecycle::Scope) {
        let api = self.api.clone();
        let app = move |connection: Connection| {
            let identity = connection
                .certificates
                .as_ref()
                .and_then(|chain| chain.first())
                .and_then(Identity::from_certificate)
                .unwrap_or_else(Identity::anonymous);
            let draining = Draining(connection.draining);
            handle::router(api.clone()).layer(axum::middleware::map_request(
                move |mut request: Request<axum::body::Body>| {
                    request.extensions_mut().insert(identity.clone());
                    request.extensions_mut().insert(draining.clone());
                    std::future::ready(request)
                },
            ))
        };
        listen::serve(listener, config, app, scope.token()).await;
    }

    /// Serves on a fresh listener at `address`; answers the address bound and runs in `scope`.
    pub async fn listen(
        &self,
        address: SocketAddr,
        tls: ServerConfig,
        scope: &lifecycle::Scope,
    ) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let (server, inner) = (self.clone(), scope.clone());
        let config = listen::Config {
            name: "kubernetes_connections",
            limits: CONNECTIONS,
            times: listen::Times::default(),
            tls: Some(Arc::new(tls)),
        };
        scope.spawn_graceful("apiserver", async move { server.serve(listener, config, &inner).await });
        Ok(bound)
    }
}
