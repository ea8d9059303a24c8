//! A client of the Kubernetes API that costs next to nothing: HTTP/1.1 over one TLS connection that is kept, blocking.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Server-side apply.
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

type Stream = BufReader<StreamOwned<ClientConnection, TcpStream>>;

/// Where a server is, and who one is to it.
#[derive(Clone)]
pub(crate) struct Api {
    address: SocketAddr,
    config: Arc<ClientConfig>,
    bearer: Option<String>,
}

impl Api {
    /// As the state folder's kubeconfig says.
    pub(crate) fn of_kubeconfig(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let config: Value = serde_yaml_ng::from_str(&text)?;
        let server = config["clusters"][0]["cluster"]["server"].as_str().context("no server")?;
        let address = server.trim_start_matches("https://").trim_end_matches('/').parse()?;
        let user = &config["users"][0]["user"];
        let pem = |name: &str| -> Result<Vec<u8>> {
            let text = user[name].as_str().with_context(|| format!("no {name}"))?;
            Ok(base64::engine::general_purpose::STANDARD.decode(text)?)
        };
        let chain = CertificateDer::pem_slice_iter(&pem("client-certificate-data")?)
            .collect::<Result<Vec<_>, _>>()
            .context("read the client's certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?).context("read the client's key")?;
        let config = builder().with_client_auth_cert(chain, key)?;
        Ok(Self { address, config: Arc::new(config), bearer: None })
    }

    /// With a token.
    pub(crate) fn of_token(address: SocketAddr, token: &str) -> Self {
        let config = builder().with_no_client_auth();
        Self { address, config: Arc::new(config), bearer: Some(token.to_owned()) }
    }

    /// The same to a server elsewhere.
    pub(crate) fn at(self, address: SocketAddr) -> Self {
        Self { address, ..self }
    }

    /// A connection of one's own.
    pub(crate) fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::from(self.address.ip());
        let tls = ClientConnection::new(Arc::clone(&self.config), name)?;
        Ok(Connection { api: self.clone(), stream: BufReader::new(StreamOwned::new(tls, stream)) })
    }

    /// Whether `/readyz` answers with 200.
    pub(crate) fn is_ready(&self) -> bool {
        let answer = self.connect().and_then(|mut one| one.send("GET", "/readyz", "", ""));
        answer.is_ok_and(|(status, _)| status == 200)
    }
}

/// The servers are ours or peers on this machine; their certificates are not checked, which costs either side nothing.
fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    // Another one may have been installed by then; both are the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(crate::replay::Loopback))
}

/// A kept connection.
pub(crate) struct Connection {
    api: Api,
    stream: Stream,
}

impl Connection {
    /// One exchange: the status and the whole body.
    pub(crate) fn send(
        &mut self,
        method: &str,
        path: &str,
        media: &str,
        body: &str,
    ) -> Result<(u16, Vec<u8>)> {
        let head = self.request(method, path, media, body)?;
        let mut answer = Vec::new();
        match head.length {
            Some(length) => {
                answer.resize(length, 0);
                self.stream.read_exact(&mut answer)?;
            }
            None if head.chunked => while self.chunk(&mut answer)? {},
            None => bail!("an answer without a length"),
        }
        Ok((head.status, answer))
    }

    /// One exchange that has to end with 2xx.
    pub(crate) fn ok(&mut self, method: &str, path: &str, media: &str, body: &str) -> Result<Value> {
        let (status, answer) = self.send(method, path, media, body)?;
        let text = String::from_utf8_lossy(&answer);
        ensure!((200..300).contains(&status), "{method} {path}: {status}: {}", text.trim());
        serde_json::from_slice(&answer).with_context(|| format!("{method} {path} answered no JSON"))
    }

    /// Starts a watch; the connection is its from here on.
    pub(crate) fn watch(mut self, path: &str) -> Result<Watch> {
        let head = self.request("GET", path, "", "")?;
        ensure!(head.status == 200 && head.chunked, "watch {path}: {}", head.status);
        Ok(Watch { connection: self, rest: Vec::new() })
    }

    fn request(&mut self, method: &str, path: &str, media: &str, body: &str) -> Result<Head> {
        let mut text = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nUser-Agent: bench\r\n",
            self.api.address
        );
        if let Some(token) = &self.api.bearer {
            text.push_str(&format!("Authorization: Bearer {token}\r\n"));
        }
        if !media.is_empty() {
            text.push_str(&format!("Content-Type: {media}\r\n"));
        }
        if !body.is_empty() || !matches!(method, "GET" | "DELETE") {
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(body);
        let stream = self.stream.get_mut();
        stream.write_all(text.as_bytes())?;
        stream.flush()?;
        self.head()
    }

    fn head(&mut self) -> Result<Head> {
        let status = self.line()?;
        let status = status.get(9..12).and_then(|code| code.parse().ok()).context("no status line")?;
        let mut head = Head { status, length: None, chunked: false };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                return Ok(head);
            };
            if name.eq_ignore_ascii_case("content-length") {
                head.length = value.trim().parse().ok();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                head.chunked = value.trim().eq_ignore_ascii_case("chunked");
            }
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    /// Appends the next chunk; false after the last.
    fn chunk(&mut self, to: &mut Vec<u8>) -> Result<bool> {
        let line = self.line()?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default(), 16)
            .with_context(|| format!("{line:?} is no chunk's size"))?;
        let start = to.len();
        to.resize(start + size, 0);
        self.stream.read_exact(&mut to[start..])?;
        self.line()?;
        Ok(size > 0)
    }
}

struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
}

/// A running watch.
pub(crate) struct Watch {
    connection: Connection,
    rest: Vec<u8>,
}

impl Watch {
    /// The next event; an error when there is none for long.
    pub(crate) fn next(&mut self) -> Result<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line).context("read an event");
            }
            ensure!(self.connection.chunk(&mut self.rest)?, "the watch ended");
        }
    }
}

/// Makes `count` ConfigMaps of about 1 kB each, over several connections.
pub(crate) fn fill(api: &Api, count: usize) -> Result<()> {
    const CONNECTIONS: usize = 8;
    let path = "/api/v1/namespaces/default/configmaps";
    let value = "0123456789abcdef".repeat(48);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..CONNECTIONS)
            .map(|worker| {
                let value = &value;
                scope.spawn(move || -> Result<()> {
                    let mut connection = api.connect()?;
                    for number in (worker..count).step_by(CONNECTIONS) {
                        let body = serde_json::json!({
                            "apiVersion": "v1", "kind": "ConfigMap",
                            "metadata": {"name": format!("bench-{number}"), "labels": {"bench": "fill"}},
                            "data": {"number": number.to_string(), "value": value},
                        });
                        connection.ok("POST", path, "application/json", &body.to_string())?;
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            match worker.join() {
                Ok(done) => done.context("make ConfigMaps")?,
                Err(_) => bail!("a client panicked"),
            }
        }
        Ok(())
    })
}
