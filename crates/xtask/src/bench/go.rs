//! Copies of `examples/hello` that are edited by one line, and the bare `go build` of them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// A copy of `examples/hello`.
pub(crate) struct Hello {
    pub(crate) folder: PathBuf,
    source: String,
}

impl Hello {
    pub(crate) fn copy(folder: PathBuf) -> Result<Self> {
        crate::demo::copy(&crate::tidy::root()?.join("examples/hello"), &folder)?;
        let source = std::fs::read_to_string(folder.join("main.go"))?;
        ensure!(source.contains("Hello, World!"), "examples/hello greets otherwise");
        Ok(Self { folder, source })
    }

    /// Changes the greeting.
    pub(crate) fn edit(&self, text: &str) -> Result<()> {
        let source = self.source.replace("Hello, World!", text);
        std::fs::write(self.folder.join("main.go"), source).context("edit main.go")
    }

    /// `go build` with gantry's flags, and the time that it takes.
    pub(crate) fn build(&self) -> Result<Duration> {
        let started = Instant::now();
        let mut command = Command::new("go");
        command
            .args(["build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w", "-o", "hello", "."])
            .env("CGO_ENABLED", "0")
            .current_dir(&self.folder);
        super::process::ok(command)?;
        Ok(started.elapsed())
    }

    pub(crate) fn path(&self) -> Result<&str> {
        self.folder.to_str().context("the temporary folder is no text")
    }

    pub(crate) fn binary(&self) -> PathBuf {
        self.folder.join("hello")
    }
}

/// `GET /` on a new connection: the body of a 200, else nothing.
pub(crate) fn get(address: SocketAddr) -> Option<String> {
    let patience = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

/// Waits until `address` answers with `text`.
pub(crate) fn serves(address: SocketAddr, text: &str, limit: Duration) -> Result<()> {
    let what = format!("{text:?} from {address}");
    super::process::until(&what, limit, || get(address).filter(|body| body.contains(text)).map(drop))
}

/// Writes an image that holds nothing but the program.
pub(crate) fn dockerfile(folder: &Path) -> Result<()> {
    let text = "FROM scratch\nCOPY hello /hello\nENTRYPOINT [\"/hello\"]\n";
    std::fs::write(folder.join("Dockerfile"), text)?;
    std::fs::write(folder.join(".dockerignore"), "*\n!hello\n").context("write .dockerignore")
}
