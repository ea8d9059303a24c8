//! One GET on a connection of its own, as a probe makes it.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme};

/// What is read of an answer.
const BODY_BYTES_MAX: usize = 10 << 10;
/// What of it an event shows.
const SHOWN_CHARS_MAX: usize = 200;

/// The status and the beginning of the body.
pub(super) async fn get(
    stream: TcpStream,
    tls: bool,
    authority: SocketAddr,
    path: &str,
    headers: &[(String, String)],
) -> Result<(u16, String), String> {
    if tls {
        let name = ServerName::from(authority.ip());
        let stream = connector().connect(name, stream).await.map_err(|error| format!("tls: {error}"))?;
        exchange(stream, authority, path, headers).await
    } else {
        exchange(stream, authority, path, headers).await
    }
}

async fn exchange<S>(
    stream: S,
    authority: SocketAddr,
    path: &str,
    headers: &[(String, String)],
) -> Result<(u16, String), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let named = |name: &str| headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
    let mut request = Request::get(path).header("connection", "close");
    if named("host").is_none() {
        request = request.header("host", authority.to_string());
    }
    if named("user-agent").is_none() {
        request = request.header("user-agent", "kube-probe/1.36");
    }
    if named("accept").is_none() {
        request = request.header("accept", "*/*");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = match Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            // Longer than anyone wants to see, or cut off: the status has said what matters.
            Err(_) => Bytes::new(),
        };
        Ok((status, String::from_utf8_lossy(&body).trim().chars().take(SHOWN_CHARS_MAX).collect()))
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

fn connector() -> TlsConnector {
    static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
        let config = ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Anyone));
        Arc::new(config.with_no_client_auth())
    });
    TlsConnector::from(Arc::clone(&CONFIG))
}

/// Takes any certificate: a probe asks whether the program answers, not who it is.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        use SignatureScheme as S;
        vec![
            S::RSA_PKCS1_SHA256,
            S::RSA_PKCS1_SHA384,
            S::RSA_PKCS1_SHA512,
            S::ECDSA_NISTP256_SHA256,
            S::ECDSA_NISTP384_SHA384,
            S::ECDSA_NISTP521_SHA512,
            S::RSA_PSS_SHA256,
            S::RSA_PSS_SHA384,
            S::RSA_PSS_SHA512,
            S::ED25519,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn the_status_and_body_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            let answer = b"HTTP/1.1 503 Nope\r\ncontent-length: 5\r\nconnection: close\r\n\r\nsorry";
            stream.write_all(answer).await.unwrap();
            String::from_utf8_lossy(&request[..length]).to_lowercase()
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let headers = [("X-Probe".to_owned(), "1".to_owned())];
        let answer = get(stream, false, address, "/health?x=1", &headers).await;
        assert_eq!(answer, Ok((503, "sorry".to_owned())));
        let request = server.await.unwrap();
        assert!(
            request.starts_with("get /health?x=1 http/1.1\r\n") && request.contains("x-probe: 1"),
            "{request}"
        );
        assert!(request.contains("user-agent: kube-probe/"), "{request}");
    }
}
