//! The registry server: `/v2/…` over an image store.
//!
//! Repositories are those of the embedded store: `hello` here is the image `localhost/hello`. Blobs are shared by all
//! repositories, so any mount succeeds whose blob is here. A blob that an image needs cannot be deleted.

mod auth;
mod blobs;
mod failure;
mod lists;
mod manifests;
mod route;
mod uploads;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, header},
    response::{IntoResponse, Response},
    routing::any,
};
use images::Store;
use tokio::task;

pub use self::auth::Auth;
use self::{
    failure::{Code, Failure},
    route::Route,
    uploads::Uploads,
};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

type Reply = Result<Response, Failure>;

struct Server {
    store: Store,
    auth: Auth,
    uploads: Uploads,
}

/// The registry's routes. Checking `Host` is the caller's part, as it knows its own addresses.
pub fn router(store: Store, auth: Auth) -> Router {
    let server = Arc::new(Server { store, auth, uploads: Uploads::default() });
    Router::new()
        .route("/v2", any(answer))
        .route("/v2/", any(answer))
        .route("/v2/{*rest}", any(answer))
        .with_state(server)
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let mut response = dispatch(server, request).await.unwrap_or_else(IntoResponse::into_response);
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    response
}

async fn dispatch(server: Arc<Server>, request: Request) -> Reply {
    let route = Route::parse(request.uri().path())?;
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    // The root is where clients ask whether they must log in, and whether their token is good.
    if !is_read || server.auth.covers_reads() || matches!(route, Route::Root | Route::Upload(..)) {
        server.auth.check(request.headers())?;
    }
    let method = request.method().clone();
    match (route, method) {
        (Route::Root, Method::GET | Method::HEAD) => Ok(axum::Json(serde_json::json!({})).into_response()),
        (Route::Catalog, Method::GET) => lists::catalog(server, request).await,
        (Route::Tags(name), Method::GET) => lists::tags(server, name, request).await,
        (Route::Referrers(name, digest), Method::GET) => {
            lists::referrers(server, name, digest, request).await
        }
        (Route::Blob(_, digest), Method::GET | Method::HEAD) => blobs::get(server, digest, request).await,
        (Route::Blob(_, digest), Method::DELETE) => blobs::delete(server, digest).await,
        (Route::Uploads(name), Method::POST) => uploads::start(server, name, request).await,
        (Route::Upload(name, id), Method::GET) => uploads::status(server, name, id).await,
        (Route::Upload(name, id), Method::PATCH) => uploads::patch(server, name, id, request).await,
        (Route::Upload(name, id), Method::PUT) => uploads::put(server, name, id, request).await,
        (Route::Upload(name, id), Method::DELETE) => uploads::cancel(server, name, id).await,
        (Route::Manifest(name, reference), Method::GET | Method::HEAD) => {
            manifests::get(server, name, reference).await
        }
        (Route::Manifest(name, reference), Method::PUT) => {
            manifests::put(server, name, reference, request).await
        }
        (Route::Manifest(name, reference), Method::DELETE) => {
            manifests::delete(server, name, reference).await
        }
        (_, method) => Err(Failure::new(Code::Unsupported, format!("{method} is not supported here"))),
    }
}

/// Runs what blocks on a thread for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> images::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    match task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Failure::from),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Failure::new(Code::Unknown, "the registry is shutting down")),
    }
}

/// A header's value from text that is known to be printable.
fn value(text: impl Into<String>) -> HeaderValue {
    HeaderValue::try_from(text.into()).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The parameters of a query string, decoded.
fn query(request: &Request) -> Vec<(String, String)> {
    let text = request.uri().query().unwrap_or_default();
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (route::decode(&key.replace('+', " ")), route::decode(&value.replace('+', " ")))
    };
    text.split('&').filter(|p| !p.is_empty()).map(pair).collect()
}

fn parameter(request: &Request, name: &str) -> Option<String> {
    query(request).into_iter().find(|(key, _)| key == name).map(|(_, value)| value)
}
