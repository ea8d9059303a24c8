//! Backends that keep a list of the requests they saw: Go's net/http, hyper and nginx, and one that answers by a script.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

use super::cases::Piece;
use crate::bench::process::Process;

/// A backend, and where its list is.
pub(in crate::accept) struct Backend {
    pub(in crate::accept) name: &'static str,
    pub(in crate::accept) address: SocketAddr,
    list: List,
    _process: Option<Process>,
}

enum List {
    Memory(Arc<Mutex<Vec<String>>>),
    File(PathBuf),
    /// Answered by the program itself.
    Asked,
}

impl Backend {
    /// `tests/programs/recorder`, built by Go.
    pub(in crate::accept) fn net_http(address: SocketAddr, folder: &Path) -> Result<Self> {
        let program = folder.join("recorder");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&program).arg(".");
        build.current_dir(crate::tidy::root()?.join("tests/programs/recorder"));
        build.env("GOFLAGS", "-mod=mod").env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
        crate::bench::process::ok(build)?;
        let mut command = Command::new(program);
        command.env("ADDRESS", address.to_string());
        let process = Process::start("recorder", folder, command)?;
        Ok(Self { name: "net/http", address, list: List::Asked, _process: Some(process) })
    }

    /// A server of the crate hyper in this process.
    pub(in crate::accept) fn hyper(address: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
        listener.set_nonblocking(true)?;
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let list = Arc::clone(&seen);
        std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                loop {
                    let (stream, _) = listener.accept().await?;
                    let list = Arc::clone(&list);
                    let service =
                        hyper::service::service_fn(move |request| record(request, Arc::clone(&list)));
                    tokio::spawn(async move {
                        let mut server = hyper::server::conn::http1::Builder::new();
                        server.half_close(true);
                        // What it refuses is not on its list.
                        let _ = server.serve_connection(TokioIo::new(stream), service).await;
                    });
                }
            })
        });
        Ok(Self { name: "hyper", address, list: List::Memory(seen), _process: None })
    }

    /// `tests/programs/recorder` as a Pod, asked for its list at this address.
    pub(in crate::accept) fn pod(address: SocketAddr) -> Self {
        Self { name: "the Pod", address, list: List::Asked, _process: None }
    }

    /// Debian's nginx.
    pub(in crate::accept) fn nginx(address: SocketAddr, folder: &Path) -> Result<Self> {
        let (list, path) = (folder.join("access.log"), folder.join("nginx.conf"));
        let config = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log {folder}/error.log;\n\
             events {{ worker_connections 4096; }}\nhttp {{\n  client_body_temp_path {folder}/body;\n  proxy_temp_path \
             {folder}/proxy;\n  fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path \
             {folder}/scgi;\n  log_format seen escape=none '$status $request_method $uri';\n  access_log {list} seen;\n  server {{\n    \
             listen {address};\n    keepalive_requests 100000;\n    location / {{ add_header X-Saw \
             '$request_method $uri'; return 200 'ok'; }}\n  }}\n}}\n",
            folder = folder.display(),
            list = list.display(),
        );
        std::fs::write(&path, config)?;
        let mut command = Command::new("/usr/sbin/nginx");
        command.arg("-p").arg(folder).arg("-c").arg(&path);
        let process = Process::start("nginx", folder, command)?;
        Ok(Self { name: "nginx", address, list: List::File(list), _process: Some(process) })
    }

    /// Waits until it answers.
    pub(in crate::accept) fn ready(&self) -> Result<()> {
        crate::bench::process::until(self.name, Duration::from_secs(60), || get(self.address, "/ready").ok())
            .map(drop)
    }

    /// The requests that came whole, as method and path. What was asked before is on the list: a last request is waited for.
    pub(in crate::accept) fn seen(&self) -> Result<Vec<String>> {
        get(self.address, "/last")?;
        let text = match &self.list {
            List::Memory(list) => list.lock().unwrap_or_else(PoisonError::into_inner).join("\n"),
            List::Asked => get(self.address, "/log")?,
            List::File(path) => {
                crate::bench::process::until("nginx's list", Duration::from_secs(20), || {
                    let text = std::fs::read(path).ok()?;
                    let text = String::from_utf8_lossy(&text).into_owned();
                    text.contains(" /last\n").then_some(text)
                })?
            }
        };
        let line = |line: &str| match &self.list {
            // Lines of what nginx refused itself have another status.
            List::File(_) => line.strip_prefix("200 ").map(str::to_owned),
            _ => Some(line.to_owned()),
        };
        Ok(text.lines().filter_map(line).collect())
    }
}

async fn record(
    request: Request<Incoming>,
    list: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri().path());
    if request.into_body().collect().await.is_err() {
        return Ok(Response::builder().status(400).body(Full::default()).unwrap_or_default());
    }
    list.lock().unwrap_or_else(PoisonError::into_inner).push(line.clone());
    let answer = Response::builder().header("X-Saw", &line).body(Full::from(line));
    Ok(answer.unwrap_or_default())
}

/// The body of the answer to a plain GET.
pub(in crate::accept) fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    ensure!(answer.contains(" 200 "), "GET {path}: {answer:?}");
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// How long a segment is waited for, that is, how much later the next one comes.
const SEGMENT: Duration = Duration::from_millis(5);

/// A server that answers `/FRONT/CASE/ask` with the case's bytes and everything else with what it saw.
pub(in crate::accept) fn scripted(address: SocketAddr, answers: HashMap<String, Vec<Piece>>) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    let answers = Arc::new(answers);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answers = Arc::clone(&answers);
            std::thread::spawn(move || converse(stream, &answers));
        }
    });
    Ok(())
}

/// Ends with the connection.
fn converse(mut stream: TcpStream, answers: &HashMap<String, Vec<Piece>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        while let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            let line: Vec<u8> = head.drain(..end + 4).collect();
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut words = line.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let Some(pieces) = answers.get(path) else {
                let saw = format!("{method} {path}");
                let answer =
                    format!("HTTP/1.1 200 OK\r\nX-Saw: {saw}\r\nContent-Length: {}\r\n\r\n{saw}", saw.len());
                stream.write_all(answer.as_bytes())?;
                continue;
            };
            for piece in pieces {
                match piece {
                    Piece::Bytes(bytes) => stream.write_all(bytes)?,
                    Piece::Pause => std::thread::sleep(SEGMENT),
                    Piece::Close => return stream.shutdown(std::net::Shutdown::Both),
                }
            }
        }
        match stream.read(&mut bytes)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&bytes[..count]),
        }
    }
}
