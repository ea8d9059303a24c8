//! The peers: started in a folder of their own on fixed ports of the figure's network namespace, ended when dropped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::api::Api;
use super::process::{Process, ok, until};

/// How long a peer may take to start.
const START: Duration = Duration::from_secs(60);

const ETCD: &str = "http://127.0.0.1:12379";
const ETCD_PEER: &str = "http://127.0.0.1:12380";
const SECURE_PORT: u16 = 16443;
const TOKEN: &str = "bench-token";

/// `ko`.
pub(crate) fn ko() -> Result<PathBuf> {
    crate::tools::go_install("ko", "github.com/google/ko", "v0.19.1")
}

/// kube-apiserver on etcd, with all their defaults.
pub(crate) struct Kubernetes {
    // In this order they end.
    others: Vec<Process>,
    server: Option<Process>,
    etcd: Process,
    folder: tempfile::TempDir,
}

impl Kubernetes {
    /// etcd alone.
    pub(crate) fn etcd() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let tokens = format!("{TOKEN},admin,admin,\"system:masters\"\n");
        std::fs::write(folder.path().join("tokens.csv"), tokens)?;
        let key = rcgen::KeyPair::generate().context("make a key")?;
        std::fs::write(folder.path().join("sa.key"), key.serialize_pem())?;
        std::fs::write(folder.path().join("sa.pub"), key.public_key_pem())?;
        let mut command = Command::new("etcd");
        command.current_dir(folder.path()).args(["--data-dir", "etcd"]);
        command.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
        command.args(["--listen-peer-urls", ETCD_PEER, "--initial-advertise-peer-urls", ETCD_PEER]);
        command.args(["--initial-cluster", &format!("default={ETCD_PEER}")]);
        let etcd = Process::start("etcd", folder.path(), command)?;
        let address: SocketAddr = ETCD.trim_start_matches("http://").parse()?;
        until("etcd", START, || std::net::TcpStream::connect(address).ok())?;
        Ok(Self { others: Vec::new(), server: None, etcd, folder })
    }

    /// etcd and kube-apiserver, ready.
    pub(crate) fn start() -> Result<Self> {
        let mut started = Self::etcd()?;
        started.start_server()?;
        Ok(started)
    }

    /// Starts kube-apiserver and waits until it is ready.
    pub(crate) fn start_server(&mut self) -> Result<()> {
        let mut command = Command::new(crate::tools::kubernetes("kube-apiserver")?);
        command.current_dir(self.folder.path()).args([
            &format!("--etcd-servers={ETCD}"),
            "--cert-dir=cert",
            &format!("--secure-port={SECURE_PORT}"),
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            "--token-auth-file=tokens.csv",
            "--service-account-key-file=sa.pub",
            "--service-account-signing-key-file=sa.key",
            "--service-account-issuer=https://k",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--authorization-mode=RBAC",
        ]);
        let mut server = Process::start("kube-apiserver", self.folder.path(), command)?;
        let api = self.api();
        let ready = until("kube-apiserver", START, || match server.check() {
            Ok(()) => api.is_ready().then_some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        let log = self.folder.path().join("kube-apiserver.log");
        ready.and_then(|ready| ready).with_context(|| tail(&log))?;
        self.server = Some(server);
        Ok(())
    }

    /// Kills kube-apiserver; etcd goes on.
    pub(crate) fn kill_server(&mut self) -> Result<()> {
        self.server.take().context("kube-apiserver does not run")?.kill()
    }

    /// kube-controller-manager and kube-scheduler beside them.
    pub(crate) fn start_controllers(&mut self) -> Result<()> {
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: bench\nclusters:\n- name: bench\n  cluster:\n    server: https://127.0.0.1:{SECURE_PORT}\n    \
             insecure-skip-tls-verify: true\nusers:\n- name: bench\n  user:\n    token: {TOKEN}\ncontexts:\n- name: bench\n  context:\n    cluster: bench\n    user: bench\n"
        );
        std::fs::write(self.folder.path().join("kubeconfig"), kubeconfig)?;
        for name in ["kube-controller-manager", "kube-scheduler"] {
            let mut command = Command::new(crate::tools::kubernetes(name)?);
            command.current_dir(self.folder.path()).args(["--kubeconfig=kubeconfig", "--leader-elect=false"]);
            self.others.push(Process::start(name, self.folder.path(), command)?);
        }
        Ok(())
    }

    /// Fails when one of them has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        self.etcd.check()?;
        self.server.iter_mut().chain(&mut self.others).try_for_each(Process::check)
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        let all = [&self.etcd].into_iter().chain(&self.server).chain(&self.others);
        all.map(Process::pid).collect()
    }

    pub(crate) fn api(&self) -> Api {
        Api::of_token(SocketAddr::from(([127, 0, 0, 1], SECURE_PORT)), TOKEN)
    }
}

/// dockerd with an empty store. Its mounts are in a mount namespace of its own, its bridge and its rules in the
/// figure's network namespace.
pub(crate) struct Docker {
    _daemon: Process,
    folder: tempfile::TempDir,
}

impl Docker {
    pub(crate) fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "dockerd", "--data-root"]).arg(path("data"));
        command.arg("--exec-root").arg(path("exec")).arg("--pidfile").arg(path("pid"));
        command.arg("--host").arg(format!("unix://{}", path("docker.sock").display()));
        let mut daemon = Process::start("dockerd", folder.path(), command)?;
        let socket = path("docker.sock");
        let started = until("dockerd", START, || match daemon.check() {
            Ok(()) => std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(Ok(())),
            Err(error) => Some(Err(error)),
        });
        let log = folder.path().join("dockerd.log");
        started.and_then(|started| started).with_context(|| tail(&log))?;
        let docker = Self { _daemon: daemon, folder };
        docker.run(["version"]).with_context(|| tail(&log))?;
        Ok(docker)
    }

    /// Runs the docker client.
    pub(crate) fn run<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.folder.path().join("docker.sock").display()));
        command.args(arguments).env("DOCKER_CONFIG", self.folder.path().join("config"));
        command.env("DOCKER_BUILDKIT", "0").env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST");
        ok(command)
    }

    /// Builds an image from a folder with a Dockerfile.
    pub(crate) fn build(&self, folder: &Path, tag: &str) -> Result<()> {
        let folder = folder.to_str().context("the temporary folder is no text")?;
        self.run(["build", "--quiet", "--tag", tag, folder]).map(drop)
    }
}

/// A registry on loopback with an empty base image, for ko.
pub(crate) struct Registry {
    _server: Process,
    pub(crate) address: String,
    _folder: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start() -> Result<Self> {
        const ADDRESS: &str = "127.0.0.1:15000";
        let folder = tempfile::tempdir()?;
        let crane = crate::tools::crane()?;
        let mut command = Command::new(&crane);
        command.args(["registry", "serve", "--address", ADDRESS]);
        let server = Process::start("registry", folder.path(), command)?;
        until("the registry", START, || std::net::TcpStream::connect(ADDRESS).ok())?;
        let layer = folder.path().join("empty.tar");
        // Two blocks of zeros are an archive without files.
        std::fs::write(&layer, [0; 1024])?;
        let mut command = Command::new(&crane);
        command.args(["append", "--insecure", "--new_tag", &format!("{ADDRESS}/base"), "--new_layer"]);
        command.arg(&layer);
        ok(command).context("push an empty base image")?;
        Ok(Self { _server: server, address: ADDRESS.to_owned(), _folder: folder })
    }

    /// `ko build` of a folder into this registry.
    pub(crate) fn ko(&self, folder: &Path) -> Result<()> {
        let mut command = Command::new(ko()?);
        command.args(["build", "--insecure-registry", "--bare", "--sbom=none", "."]).current_dir(folder);
        command.env("KO_DOCKER_REPO", format!("{}/hello", self.address));
        command.env("KO_DEFAULTBASEIMAGE", format!("{}/base", self.address));
        let said = ok(command)?;
        ensure!(said.contains("@sha256:"), "ko said {said:?}");
        Ok(())
    }
}

/// The last lines of a log, in one.
pub(crate) fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    // gRPC's attempts to connect again bury what went wrong.
    let lines: Vec<_> = text.lines().rev().filter(|line| !line.contains("logging.go")).take(3).collect();
    let said = lines.into_iter().rev().collect::<Vec<_>>().join(" / ");
    let cut: String = said.chars().take(600).collect();
    format!("its log ends with: {cut}")
}
