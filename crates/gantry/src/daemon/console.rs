//! The console's listener: health and metrics of the daemon, and what commands ask of it beside the Kubernetes API.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json};
use images::garbage::Grace;
use lifecycle::Scope;
use registry::server::Auth;
use tokio::net::TcpListener;

use super::garbage::Collector;

/// Serves `/metrics`, `/healthz` and `/images/prune` (with the registry's token) until the scope ends.
pub fn serve(listener: TcpListener, auth: Auth, collector: Arc<Collector>, scope: &Scope) {
    let router = axum::Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/metrics", get(metrics))
        .route("/images/prune", post(prune))
        .layer(Extension(auth))
        .layer(Extension(collector))
        .layer(axum::middleware::from_fn(own_host_only));
    let token = scope.token();
    scope.spawn_graceful("console", async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(token.cancelled_owned());
        if let Err(error) = served.await {
            tracing::error!(%error, "serve the console");
        }
    });
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, lifecycle::metrics::CONTENT_TYPE)], lifecycle::metrics::encode())
}

/// Removes what nothing names any more, whenever it lost its name; blobs of uploads that may still run stay.
async fn prune(
    Extension(auth): Extension<Auth>,
    Extension(collector): Extension<Arc<Collector>>,
    headers: axum::http::HeaderMap,
) -> Response {
    if !auth.allows(&headers) {
        return (StatusCode::UNAUTHORIZED, "the registry's token is required\n").into_response();
    }
    match collector.collect(Grace { untagged: std::time::Duration::ZERO, ..Grace::default() }).await {
        Ok(collected) => Json(collected).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

/// Refuses requests that a web page made a browser send here: their `Host` or `Origin` names another site.
pub async fn own_host_only(request: Request, next: Next) -> Response {
    if is_from_here(&request) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "this listener answers on loopback names only\n").into_response()
    }
}

fn is_from_here(request: &Request) -> bool {
    let text =
        |name: header::HeaderName| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).or(request.uri().authority().map(|authority| authority.as_str()));
    let origin = text(header::ORIGIN).map(|origin| origin.split_once("://").map_or(origin, |(_, host)| host));
    host.is_some_and(is_own) && origin.is_none_or(is_own)
}

/// A loopback name or address, with any port.
fn is_own(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    matches!(name, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::is_own;

    #[test]
    fn only_loopback_names_are_our_own() {
        for host in ["localhost", "localhost:5050", "127.0.0.1:7070", "[::1]:7070", "[::1]"] {
            assert!(is_own(host), "{host}");
        }
        for host in ["example.com", "localhost.example.com:5050", "127.0.0.1.nip.example", "?", ""] {
            assert!(!is_own(host), "{host}");
        }
    }
}
