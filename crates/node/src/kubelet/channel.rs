//! The remote command protocol over WebSocket: `v5.channel.k8s.io` and `v4.channel.k8s.io`.
//!
//! A binary message is a channel's number and bytes: 0 stdin, 1 stdout, 2 stderr, 3 the final `Status`, 4 the
//! terminal's size as JSON. In v5, 255 and a number closes that channel.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::bad;

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Protocols in order of preference.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// The longest message that a client may send.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

pub(super) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// What a client's message means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Stdin(Vec<u8>),
    StdinClosed,
    Resize { columns: u16, rows: u16 },
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Reads a client's message.
pub(super) fn read(bytes: &[u8]) -> Message {
    match bytes.split_first() {
        Some((&STDIN, rest)) => Message::Stdin(rest.to_vec()),
        Some((&CLOSE, [STDIN])) => Message::StdinClosed,
        Some((&RESIZE, rest)) => match serde_json::from_slice::<Size>(rest) {
            Ok(size) => Message::Resize { columns: size.width, rows: size.height },
            Err(_) => Message::Other,
        },
        _ => Message::Other,
    }
}

/// A message of ours.
pub(super) fn write(channel: u8, bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend_from_slice(bytes);
    message
}

/// Answers the handshake; the connection itself comes later, from the second part.
pub(super) fn accept(request: &mut Request) -> Result<(Response, OnUpgrade), Box<Response>> {
    let headers = request.headers();
    let upgrade = text(headers, header::UPGRADE).to_lowercase();
    if upgrade.starts_with("spdy") {
        let message = "this server speaks the WebSocket protocol (v5.channel.k8s.io) only, not SPDY/3.1: use kubectl \
                       1.31 or later";
        return Err(Box::new(bad(message)));
    }
    if upgrade != "websocket" {
        return Err(Box::new(bad("Upgrade request required: this is a WebSocket endpoint")));
    }
    let offered = text(headers, header::SEC_WEBSOCKET_PROTOCOL);
    let offered: Vec<&str> = offered.split(',').map(str::trim).collect();
    let Some(protocol) = PROTOCOLS.iter().find(|known| offered.contains(*known)) else {
        let message = format!(
            "none of the subprotocols {offered:?} is known; v5.channel.k8s.io and v4.channel.k8s.io are"
        );
        return Err(Box::new(bad(&message)));
    };
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let key = key.and_then(|key| HeaderValue::from_str(&key).ok());
    let Some(key) = key else { return Err(Box::new(bad("Sec-WebSocket-Key is missing"))) };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return Err(Box::new(bad("this connection cannot be upgraded")));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok((response, upgrade))
}

/// The connection, once the client has its answer.
pub(super) async fn open(upgrade: OnUpgrade) -> hyper::Result<Socket> {
    let stream = TokioIo::new(upgrade.await?);
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX));
    Ok(WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> String {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_channels_and_bytes() {
        assert_eq!(read(&[0, b'h', b'i']), Message::Stdin(b"hi".to_vec()));
        assert_eq!(read(&[255, 0]), Message::StdinClosed);
        assert_eq!(read(b"\x04{\"Width\":80,\"Height\":24}"), Message::Resize { columns: 80, rows: 24 });
        assert_eq!(read(&[]), Message::Other);
        assert_eq!(write(STDOUT, b"x"), [1, b'x']);
    }

    #[test]
    fn an_old_client_is_told_what_to_do() {
        let mut request = Request::new(Body::empty());
        request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
        let refused = accept(&mut request).map(|_| ()).unwrap_err();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    }
}
