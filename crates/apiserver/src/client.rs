//! A client in the same process: no socket, no encoding of HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Body;
use http::{Request, Response};
use tower::Service;

use crate::identity::Identity;
use crate::{Server, handle};

/// The server as a service for requests of one identity.
#[derive(Clone)]
struct InProcess {
    router: axum::Router,
    identity: Identity,
}

impl Service<Request<kube::client::Body>> for InProcess {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.identity.clone());
        let mut router = self.router.clone();
        Box::pin(async move { router.call(request).await })
    }
}

impl Server {
    /// A client that asks as `identity`, in this process.
    pub fn client(&self, identity: Identity) -> kube::Client {
        kube::Client::new(InProcess { router: handle::router(self.api.clone()), identity }, "default")
    }
}
