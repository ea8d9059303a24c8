//! `/attach/{namespace}/{pod}/{container}`: a terminal's end on a container that runs.

use std::sync::{Arc, PoisonError};

use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use futures::{SinkExt, StreamExt};
use runtime::{Attach, Attached};
use serde::Deserialize;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message as Frame;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::channel::{self, Message};
use super::{Kubelet, bad, no_pod};
use crate::ports::Container;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Asked {
    stdin: Option<String>,
    stdout: Option<String>,
    stderr: Option<String>,
    /// The kubelet API's own names.
    input: Option<String>,
    output: Option<String>,
    error: Option<String>,
}

/// Which streams are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
}

impl Asked {
    fn streams(&self) -> Streams {
        let is = |value: &Option<String>| value.as_deref().is_some_and(|value| matches!(value, "true" | "1"));
        Streams {
            stdin: is(&self.stdin) || is(&self.input),
            stdout: is(&self.stdout) || is(&self.output),
            stderr: is(&self.stderr) || is(&self.error),
        }
    }
}

pub(super) async fn attach_uid(
    state: State<Kubelet>,
    Path((namespace, pod, _uid, container)): Path<(String, String, String, String)>,
    asked: Query<Asked>,
    request: Request,
) -> Response {
    attach(state, Path((namespace, pod, container)), asked, request).await
}

pub(super) async fn attach(
    State(kubelet): State<Kubelet>,
    Path((namespace, name, container)): Path<(String, String, String)>,
    Query(asked): Query<Asked>,
    mut request: Request,
) -> Response {
    let Some((_, entry)) = kubelet.pods.get(&namespace, &name) else { return no_pod(&namespace, &name) };
    let handle = entry.handles.lock().unwrap_or_else(PoisonError::into_inner).get(&container).cloned();
    let Some(handle) = handle else {
        return bad(&format!(
            "container {container} of pod {name} does not run: there is nothing to attach to"
        ));
    };
    let Some(real) = handle.real() else { return bad("this container cannot be attached to") };
    let attached = match real.attach().await {
        Ok(attached) => attached,
        Err(error) => {
            return bad(&format!("attach to container {container}: {}", crate::ports::Failure::of(&error)));
        }
    };
    let (response, upgrade) = match channel::accept(&mut request) {
        Ok(accepted) => accepted,
        Err(refused) => return *refused,
    };
    let streams = asked.streams();
    // Ends with the connection, or with the container.
    tokio::spawn(async move {
        match channel::open(upgrade).await {
            Ok(socket) => relay(socket, attached, handle, streams).await,
            Err(error) => tracing::debug!(%error, "the client left before it was attached"),
        }
    });
    response
}

async fn relay(socket: channel::Socket, attached: Attach, handle: Arc<dyn Container>, streams: Streams) {
    let (mut sink, mut source) = socket.split();
    let Attach { input, mut output } = attached;
    let reading = async {
        while let Some(Ok(frame)) = source.next().await {
            let Frame::Binary(bytes) = frame else { continue };
            match channel::read(&bytes) {
                Message::Stdin(bytes) if streams.stdin => {
                    if input.write(&bytes).await.is_err() {
                        // The program has closed its stdin; its output goes on.
                        continue;
                    }
                }
                Message::StdinClosed => close(&input).await,
                Message::Resize { columns, rows } => {
                    if let Some(real) = handle.real()
                        && let Err(error) = real.resize(rows, columns).await
                    {
                        tracing::debug!(%error, "set the size of a terminal");
                    }
                }
                Message::Stdin(_) | Message::Other => {}
            }
        }
        if streams.stdin && once(&*handle) {
            close(&input).await;
        }
    };
    let writing = async {
        while let Some(piece) = output.next().await {
            let message = match piece {
                Attached::Stdout(bytes) if streams.stdout => channel::write(channel::STDOUT, &bytes),
                Attached::Stderr(bytes) if streams.stderr => channel::write(channel::STDERR, &bytes),
                Attached::Stdout(_) | Attached::Stderr(_) => continue,
                Attached::Exited(_) => break,
            };
            if sink.send(Frame::Binary(message.into())).await.is_err() {
                return;
            }
        }
        for frame in farewell() {
            // A client that has left needs none.
            let _ = sink.send(frame).await;
        }
        let _ = sink.close().await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

/// What ends a session: the outcome, and a normal end of the connection. Clients take one without a code for a failure.
fn farewell() -> [Frame; 2] {
    let status = json!({"metadata": {}, "status": "Success"}).to_string();
    let outcome = Frame::Binary(channel::write(channel::ERROR, status.as_bytes()).into());
    [outcome, Frame::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))]
}

/// Whether the end of the first attached client's input is the end of stdin (`stdinOnce`).
fn once(handle: &dyn Container) -> bool {
    let note = handle.spec().and_then(|spec| spec.annotations.get(crate::spec::annotation::STDIN_ONCE));
    note.is_some_and(|note| note == "true")
}

/// Ends stdin after what was written: on the same connection, as the end would overtake it on another.
async fn close(input: &runtime::Input) {
    if let Err(error) = input.close().await {
        tracing::debug!(%error, "close a container's stdin");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_normally() {
        let [Frame::Binary(outcome), Frame::Close(Some(end))] = farewell() else {
            panic!("{:?}", farewell())
        };
        assert_eq!(outcome[0], channel::ERROR);
        assert_eq!(end.code, CloseCode::Normal);
    }
}
