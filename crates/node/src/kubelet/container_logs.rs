//! `GET /containerLogs/{namespace}/{pod}/{container}`.

use std::path::{Path as FilePath, PathBuf};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Kubelet, bad, no_pod};
use crate::logs::{self, Options};
use crate::{spec, worker};

/// Pieces of a log on their way to a client.
const PIECES_MAX: usize = 4;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Asked {
    follow: Option<String>,
    tail_lines: Option<u64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    timestamps: Option<String>,
    previous: Option<String>,
    limit_bytes: Option<u64>,
    stream: Option<String>,
}

/// A flag as Go's clients write it: `true`, `1`, or the name alone.
fn flag(value: Option<&String>) -> bool {
    value.is_some_and(|value| matches!(value.as_str(), "true" | "1" | ""))
}

impl Asked {
    fn options(&self, now: Timestamp) -> Result<Options, String> {
        let since = match (&self.since_time, self.since_seconds) {
            (Some(text), _) => {
                Some(text.parse().map_err(|_| format!("sinceTime {text:?} is no RFC 3339 time"))?)
            }
            (None, Some(seconds)) => now.checked_sub(SignedDuration::from_secs(seconds)).ok(),
            (None, None) => None,
        };
        let stream = match self.stream.as_deref() {
            None | Some("All" | "") => None,
            Some("Stdout") => Some("stdout".to_owned()),
            Some("Stderr") => Some("stderr".to_owned()),
            Some(other) => return Err(format!("stream {other:?} is none of All, Stdout, Stderr")),
        };
        let size = |number: Option<u64>| number.map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        Ok(Options {
            follow: flag(self.follow.as_ref()),
            tail: size(self.tail_lines),
            since,
            timestamps: flag(self.timestamps.as_ref()),
            limit_bytes: size(self.limit_bytes),
            stream,
        })
    }
}

pub(super) async fn read(
    State(kubelet): State<Kubelet>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(asked): Query<Asked>,
) -> Response {
    let Some((pod, entry)) = kubelet.pods.get(&namespace, &name) else { return no_pod(&namespace, &name) };
    let spec =
        pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    if !spec.into_iter().any(|spec| spec.name == container) {
        return bad(&format!("container {container} is not valid for pod {name}"));
    }
    let mut options = match asked.options(Timestamp::now()) {
        Ok(options) => options,
        Err(message) => return bad(&message),
    };
    let running =
        entry.handles.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&container).cloned();
    let dir = worker::log_dir(&kubelet.about.state_dir, &pod).join(&container);
    let previous = flag(asked.previous.as_ref());
    let attempt = running
        .as_ref()
        .and_then(|handle| handle.spec()?.annotations.get(spec::annotation::ATTEMPT)?.parse::<u32>().ok());
    let log = match log(&pod, &container, &dir, attempt, previous) {
        Ok(log) => log,
        Err(message) => return bad(&message),
    };
    let ended: futures::future::BoxFuture<'static, ()> = match running.filter(|_| !previous) {
        Some(handle) => Box::pin(async move {
            handle.wait().await;
        }),
        None => {
            // Nothing is added to the log of a run that is over.
            options.follow = false;
            Box::pin(std::future::ready(()))
        }
    };
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    // Ends with the connection: the body's receiver goes with it.
    tokio::spawn(logs::read(log, options, ended, sender));
    let mut response = Response::new(Body::from_stream(ReceiverStream::new(receiver)));
    response.headers_mut().insert(CONTENT_TYPE, axum::http::HeaderValue::from_static("text/plain"));
    response
}

fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.find(|status| status.name == container)
}

/// The log file that is wanted: of the run that goes on, else of the last one; or of the one before.
fn log(
    pod: &Pod,
    container: &str,
    dir: &FilePath,
    running: Option<u32>,
    previous: bool,
) -> Result<PathBuf, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = status_of(pod, container);
    let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref());
    let newest = running.or_else(|| newest(dir));
    let Some(newest) = newest else {
        if previous {
            return Err(format!("previous terminated container {container:?} in pod {name:?} not found"));
        }
        let reason = waiting.and_then(|waiting| waiting.reason.clone());
        let reason = reason.unwrap_or_else(|| "ContainerCreating".to_owned());
        return Err(format!("container {container:?} in pod {name:?} is waiting to start: {reason}"));
    };
    if !previous {
        return Ok(spec::log_file(dir, newest));
    }
    // A container that waits for its next run: its last run is the previous one.
    let wanted = if running.is_none() && waiting.is_some() { Some(newest) } else { newest.checked_sub(1) };
    let wanted = wanted.map(|attempt| spec::log_file(dir, attempt)).filter(|log| log.exists());
    wanted.ok_or_else(|| format!("previous terminated container {container:?} in pod {name:?} not found"))
}

fn newest(dir: &FilePath) -> Option<u32> {
    let entries = std::fs::read_dir(dir).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_right_run_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        let of = |running, previous| log(&pod, "c", dir.path(), running, previous);
        assert!(of(None, false).unwrap_err().contains("waiting to start: ContainerCreating"));
        for attempt in [9, 10] {
            std::fs::write(dir.path().join(format!("{attempt}.log")), "").unwrap();
        }
        assert_eq!(of(None, false).unwrap(), dir.path().join("10.log"));
        assert_eq!(of(Some(10), true).unwrap(), dir.path().join("9.log"));
        assert!(of(Some(9), true).unwrap_err().contains("previous terminated container"));
    }

    #[test]
    fn options_are_read() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let asked = Asked { since_seconds: Some(60), follow: Some("true".to_owned()), ..Asked::default() };
        let options = asked.options(now).unwrap();
        assert!(options.follow && options.since == Some("2026-01-01T00:00:00Z".parse().unwrap()));
        assert!(Asked { since_time: Some("x".to_owned()), ..Asked::default() }.options(now).is_err());
    }
}
