//! The gRPC health check: one unary call of `grpc.health.v1.Health/Check`, whose two messages are a field each.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

const BODY_BYTES_MAX: usize = 4 << 10;

/// Asks whether `service` is SERVING.
pub(super) async fn check(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), String> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.36")
        .body(Full::new(Bytes::from(frame(service))))
        .map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let headers = response.headers().clone();
        let body =
            Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(|e| e.to_string())?;
        let trailers = body.trailers().cloned().unwrap_or(headers);
        let code = trailers.get("grpc-status").and_then(|code| code.to_str().ok()).unwrap_or("0").to_owned();
        match code.as_str() {
            "0" => serving(&body.to_bytes()),
            "5" => Err(format!("service {service:?} is unknown to the server")),
            "12" => {
                Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)"
                    .to_owned())
            }
            code => Err(format!("health rpc failed with grpc status {code}")),
        }
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        closed = connection => match closed {
            Ok(()) => answer.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

/// `HealthCheckRequest{service = 1}` in gRPC's length-prefixed framing.
fn frame(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length as u8) | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame
}

/// `HealthCheckResponse{status = 1}`: 1 is SERVING.
fn serving(body: &[u8]) -> Result<(), String> {
    match body.get(5..) {
        Some([0x08, 1, ..]) => Ok(()),
        Some([0x08, 2, ..]) => Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
        Some([0x08, 3, ..]) => Err("service unhealthy (responded with \"SERVICE_UNKNOWN\")".to_owned()),
        _ => Err("service unhealthy (responded with \"UNKNOWN\")".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_as_grpc_frames_them() {
        assert_eq!(frame(""), [0, 0, 0, 0, 0]);
        assert_eq!(frame("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving(&[0, 0, 0, 0, 2, 8, 1]), Ok(()));
        assert!(serving(&[0, 0, 0, 0, 2, 8, 2]).unwrap_err().contains("NOT_SERVING"));
        assert!(serving(&[0, 0, 0, 0, 0]).is_err());
    }
}
