//! `/healthz`, `/livez`, `/readyz`, `/version`, `/metrics`.

use axum::body::Body;
use http::{HeaderMap, Response, StatusCode};
use resources::status::Status;
use serde_json::json;

use crate::query::Query;
use crate::{Api, EMULATED_MINOR, negotiate, respond};

const TEXT: &str = "text/plain; charset=utf-8";

/// The checks behind each endpoint. The store's owner answers every write or an error; that it is there at
/// all is what can be known without writing.
const CHECKS: &[&str] = &["ping", "log", "store"];

/// A health endpoint or one of its checks; none when the path is neither.
pub(crate) fn check(api: &Api, path: &str, query: &Query) -> Option<Result<Response<Body>, Status>> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let endpoint = parts.next().filter(|name| matches!(*name, "healthz" | "livez" | "readyz"))?;
    let single = parts.next();
    if let Some(name) = single {
        return Some(match CHECKS.contains(&name) {
            true => Ok(respond::bytes(StatusCode::OK, TEXT, "ok")),
            false => Err(Status::path_not_found()),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let failed = !api.store.is_open() && !excluded.contains(&"store");
    if !failed && query.all("verbose").next().is_none() {
        return Some(Ok(respond::bytes(StatusCode::OK, TEXT, "ok")));
    }
    let mut text = String::new();
    for name in CHECKS {
        let line = match (excluded.contains(name), failed && *name == "store") {
            (true, _) => format!("[+]{name} excluded: ok\n"),
            (false, false) => format!("[+]{name} ok\n"),
            (false, true) => format!("[-]{name} failed: reason withheld\n"),
        };
        text.push_str(&line);
    }
    let (code, word) =
        if failed { (StatusCode::INTERNAL_SERVER_ERROR, "failed") } else { (StatusCode::OK, "passed") };
    text.push_str(&format!("{endpoint} check {word}\n"));
    Some(Ok(respond::bytes(code, TEXT, text)))
}

/// What clients take the server for.
pub(crate) fn version(headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accept(headers, query)?;
    let version = json!({
        "major": "1",
        "minor": EMULATED_MINOR.to_string(),
        "emulationMajor": "1",
        "emulationMinor": EMULATED_MINOR.to_string(),
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": (EMULATED_MINOR - 1).to_string(),
        "gitVersion": format!("v1.{EMULATED_MINOR}.0+gantry"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    });
    Ok(respond::value(accepted, StatusCode::OK, &version))
}

pub(crate) fn metrics() -> Response<Body> {
    respond::bytes(StatusCode::OK, lifecycle::metrics::CONTENT_TYPE, lifecycle::metrics::encode())
}
