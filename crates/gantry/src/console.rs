//! The daemon's console from a command's side: plain HTTP on loopback.

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;

/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Sends a request without a body; the status and the body of the answer.
pub async fn request(
    address: SocketAddr,
    method: Method,
    path: &str,
    deadline: Duration,
) -> io::Result<(StatusCode, Bytes)> {
    let exchange = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(io::Error::other)?;
        connection.abort();
        Ok((head.status, body.to_bytes()))
    };
    tokio::time::timeout(deadline, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
