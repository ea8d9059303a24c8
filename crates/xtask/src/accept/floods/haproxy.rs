//! haproxy with a limit for each source, in the place of what is flooded.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::asked::{Asked, LIMIT, Request};
use crate::bench::api::Api;
use crate::bench::peers::tail;
use crate::bench::process::{Process, until};
use crate::sandbox::Sandbox;

/// What haproxy lets one source have, of its own connections in all.
const CONNECTIONS: u32 = 4000;
const SOURCE: u32 = 512;
/// On every address of its namespace.
pub(super) const PORT: u16 = 18080;

/// How it stands there.
#[derive(Clone)]
pub(super) struct Front {
    /// The network namespace, if it is another one.
    pub(super) inside: Option<PathBuf>,
    pub(super) answers: Answers,
}

#[derive(Clone)]
pub(super) enum Answers {
    /// By itself.
    Own,
    /// By itself over TLS, with the API server's key.
    Tls(Api),
    /// A Pod's.
    Pod(SocketAddr),
}

impl Front {
    /// How everybody else asks it.
    pub(super) fn asked(&self) -> Asked {
        let address = SocketAddr::from(([127, 0, 0, 1], PORT));
        let request = match &self.answers {
            Answers::Tls(api) => Request::Kubernetes(api.clone().at(address)),
            Answers::Own | Answers::Pod(_) => Request::Plain { address, path: "/" },
        };
        Asked { request, inside: self.inside.clone() }
    }
}

/// Starts it; it answers.
pub(super) fn start(sandbox: &Sandbox, front: &Front) -> Result<Process> {
    let folder = sandbox.work("haproxy")?;
    let answer = match front.answers {
        Answers::Pod(address) => format!("  default_backend out\nbackend out\n  server pod {address}\n"),
        Answers::Own | Answers::Tls(_) => {
            "  http-request return status 200 content-type text/plain string ok\n".to_owned()
        }
    };
    let tls = match front.answers {
        Answers::Tls(_) => {
            let ca = sandbox.state().join("ca");
            let key = folder.join("server.pem");
            let read = |name: &str| std::fs::read(ca.join(name)).with_context(|| format!("read ca/{name}"));
            std::fs::write(&key, [read("server.crt")?, read("server.key")?].concat())?;
            format!(" ssl crt {}", key.display())
        }
        Answers::Own | Answers::Pod(_) => String::new(),
    };
    let config = format!(
        "global\n  nbthread 2\n  maxconn {CONNECTIONS}\ndefaults\n  mode http\n  timeout connect 5s\n  \
         timeout client 60s\n  timeout server 60s\n  timeout http-request 30s\n  http-reuse always\nfrontend in\n  bind \
         0.0.0.0:{PORT}{tls}\n  stick-table type ip size 100k expire 60s store conn_cur\n  tcp-request connection \
         track-sc0 src\n  tcp-request connection reject if {{ sc0_conn_cur gt {SOURCE} }}\n{answer}"
    );
    let path = folder.join("haproxy.cfg");
    std::fs::write(&path, config)?;
    let program =
        ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"].into_iter().find(|path| Path::new(path).exists());
    let program = program.unwrap_or("haproxy");
    let mut command = match &front.inside {
        Some(netns) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", netns.display())).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.arg("-db").arg("-f").arg(&path);
    let server = Process::start("haproxy", &folder, command)?;
    let (asked, log) = (front.asked(), folder.join("haproxy.log"));
    until("haproxy", LIMIT, || {
        let one = asked.ask(Duration::from_millis(1)).ok()?;
        (one.lost.is_empty() && one.count > 0).then_some(())
    })
    .with_context(|| tail(&log))?;
    Ok(server)
}
