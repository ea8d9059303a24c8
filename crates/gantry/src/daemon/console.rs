//! The console's listener: health and metrics of the daemon.

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

/// `/metrics` and `/healthz`.
pub fn router() -> axum::Router {
    axum::Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/metrics", get(metrics))
        .layer(axum::middleware::from_fn(own_host_only))
}

async fn metrics() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, lifecycle::metrics::CONTENT_TYPE)], lifecycle::metrics::encode())
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
