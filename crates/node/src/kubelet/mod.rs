//! Kubelet's HTTP API: what an API server asks a node for.

mod attach;
mod channel;
mod container_logs;
mod stats;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{any, get};
use serde_json::json;

use crate::node::Registry;

/// Whose API it is.
#[derive(Clone)]
pub(crate) struct About {
    pub node_name: String,
    pub state_dir: PathBuf,
}

#[derive(Clone)]
struct Kubelet {
    pods: Registry,
    about: Arc<About>,
}

/// The API as a service of axum.
pub(crate) fn router(pods: Registry, about: About) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/pods", get(pods_list))
        .route("/stats/summary", get(stats::summary))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs::read))
        .route("/attach/{namespace}/{pod}/{container}", any(attach::attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", any(attach::attach_uid))
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/portForward/{namespace}/{pod}", any(port_forward))
        .with_state(Kubelet { pods, about: Arc::new(about) })
}

async fn pods_list(State(kubelet): State<Kubelet>) -> Json<serde_json::Value> {
    let items: Vec<_> = kubelet.pods.all().into_iter().map(|(pod, _)| (*pod).clone()).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

async fn exec(Path((_, pod, container)): Path<(String, String, String)>) -> Response {
    let message =
        format!("exec is not supported here yet: cannot run a command in container {container} of pod {pod}");
    refuse(StatusCode::NOT_IMPLEMENTED, "NotImplemented", &message)
}

async fn port_forward(Path((_, pod)): Path<(String, String)>) -> Response {
    let message = format!("port-forward is not supported here yet; reach pod {pod} through a Service");
    refuse(StatusCode::NOT_IMPLEMENTED, "NotImplemented", &message)
}

/// A `Status`, as clients of the API server expect it.
fn refuse(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16()});
    (code, Json(status)).into_response()
}

fn no_pod(namespace: &str, pod: &str) -> Response {
    refuse(StatusCode::NOT_FOUND, "NotFound", &format!("pod \"{namespace}/{pod}\" not found on this node"))
}

fn bad(message: &str) -> Response {
    refuse(StatusCode::BAD_REQUEST, "BadRequest", message)
}
