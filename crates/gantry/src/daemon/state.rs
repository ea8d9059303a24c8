//! The state folder: who owns it, what it is called, which addresses it listens on.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lifecycle::connections::Limits;
use rand::Rng;

use crate::access::Endpoints;
use crate::modes;

/// A state folder. Everything outside it that belongs to it carries `instance`.
#[derive(Clone, Debug)]
pub struct State {
    pub dir: PathBuf,
    /// 8 lower-case hexadecimal characters.
    pub instance: String,
}

impl State {
    /// Opens the folder, or makes it.
    pub fn open(dir: &Path) -> Result<Self> {
        modes::make(dir)?;
        let dir = dir.canonicalize().with_context(|| format!("find {}", dir.display()))?;
        let mut made = false;
        for inner in ["run", "logs"] {
            made |= make_folder(&dir.join(inner))?;
        }
        let path = dir.join("instance");
        if made && path.exists() {
            durable::sync_dir(&dir)?;
        }
        let instance = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().to_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let instance = format!("{:08x}", rand::rng().random::<u32>());
                // Makes the names of the folders above durable too.
                durable::write(&path, instance.as_bytes())
                    .with_context(|| format!("write {}", path.display()))?;
                instance
            }
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        if instance.len() != 8 || !instance.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            bail!("{} does not hold an instance's name", path.display());
        }
        Ok(Self { dir, instance })
    }

    /// Opens the folder only if it is one.
    pub fn existing(dir: &Path) -> Result<Option<Self>> {
        if dir.join("instance").exists() { Self::open(dir).map(Some) } else { Ok(None) }
    }

    /// Removes what a start that was killed left half-written. Only for the owner of the lock, before it writes.
    pub fn sweep(&self) -> Result<()> {
        for dir in [self.dir.clone(), self.dir.join("run"), self.dir.join("ca")] {
            match durable::sweep(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("clean {}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A path in the folder for sockets and process ids.
    pub fn run(&self, name: &str) -> PathBuf {
        self.dir.join("run").join(name)
    }

    /// The lock of the daemon that owns the folder; its file holds the owner's process id.
    pub fn lock_path(&self) -> PathBuf {
        self.run("daemon.lock")
    }

    /// The token that registry writes need.
    pub fn registry_token_path(&self) -> PathBuf {
        self.dir.join("registry-token")
    }

    /// The registry's token; made at first start, readable by root only.
    pub fn registry_token(&self) -> Result<String> {
        let path = self.registry_token_path();
        match std::fs::read_to_string(&path) {
            Ok(token) => Ok(token.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let bytes: [u8; 24] = rand::rng().random();
                let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                durable::write(&path, token.as_bytes())
                    .with_context(|| format!("write {}", path.display()))?;
                Ok(token)
            }
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }
}

/// Makes a folder of our own; whether it was missing. Its name is not yet durable.
fn make_folder(path: &Path) -> std::io::Result<bool> {
    match std::fs::DirBuilder::new().mode(durable::DIR_MODE).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(error),
    }
}

/// A listener of the daemon.
#[derive(Clone, Copy)]
pub struct Listener {
    /// Its name in `endpoints.json` and in the hand-over to the proxy.
    pub name: &'static str,
    /// The port that is tried first.
    pub port: u16,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// What it serves.
    pub about: &'static str,
    /// The name of the bound of its connections.
    pub bound: &'static str,
    /// Its connections, if the process may open enough descriptors.
    pub connections: Limits,
}

/// Every listener, sorted by name; all on loopback.
pub static LISTENERS: &[Listener] = &[
    Listener {
        name: "console",
        port: 7070,
        scheme: "http",
        about: "metrics and health of the daemon",
        bound: "console_connections",
        connections: Limits { total: 256, group: 256, peer: 64 },
    },
    Listener {
        name: "kubernetes",
        port: 6443,
        scheme: "https",
        about: "the Kubernetes API",
        bound: "kubernetes_connections",
        connections: Limits { total: 2048, group: 2048, peer: 512 },
    },
    Listener {
        name: "registry",
        port: 5050,
        scheme: "http",
        about: "the OCI registry",
        bound: "registry_connections",
        connections: Limits { total: 1024, group: 1024, peer: 256 },
    },
];

/// Connections of the Kubernetes API's listener for Pods, each of which has an address of its own.
pub const POD_CONNECTIONS: Limits = Limits { total: 2048, group: 2048, peer: 128 };

/// Ports that are tried after the usual one.
const PORTS_TRIED: u16 = 200;

/// The port that an earlier start chose for a listener.
pub fn known_port(endpoints: &Endpoints, name: &str) -> Option<u16> {
    let address = match name {
        "console" => &endpoints.console,
        "kubernetes" => &endpoints.kubernetes,
        _ => &endpoints.registry,
    };
    address.rsplit_once(':')?.1.parse().ok()
}

/// Writes `endpoints.json`, readable by everyone: addresses are no secret. What says so already is left alone.
pub fn write_endpoints(dir: &Path, endpoints: &Endpoints) -> Result<()> {
    let path = dir.join("endpoints.json");
    let text = serde_json::to_vec_pretty(endpoints)?;
    if std::fs::read(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    durable::write_with_mode(&path, &text, modes::PUBLIC_MODE)
        .with_context(|| format!("write {}", path.display()))
}

/// Binds a listener. At first start the next free port is taken if the usual one is not free; later the port is the
/// one that clients know, and a taken one is an error.
pub fn bind(listener: &Listener, known: Option<u16>) -> Result<TcpListener> {
    let at = |port: u16| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    if let Some(port) = known {
        return at(port).with_context(|| {
            let holder = network::holder(network::Protocol::Tcp, port).ok().flatten();
            let holder = holder.map_or_else(
                || "another program".to_owned(),
                |holder| format!("{} (process {})", holder.name, holder.pid),
            );
            format!("listen on 127.0.0.1:{port} for {}: the port is taken by {holder}", listener.about)
        });
    }
    for port in listener.port..listener.port.saturating_add(PORTS_TRIED) {
        match at(port) {
            Ok(bound) => {
                if port != listener.port {
                    tracing::info!(
                        usual = listener.port,
                        port,
                        listener = listener.name,
                        "the usual port is taken"
                    );
                }
                return Ok(bound);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("listen on 127.0.0.1:{port}")),
        }
    }
    bail!("{PORTS_TRIED} ports from {} on are taken", listener.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sorted_unique_and_documented() {
        assert!(LISTENERS.windows(2).all(|pair| pair[0].name < pair[1].name));
        assert!(LISTENERS.iter().all(|row| !row.about.is_empty()));
    }

    #[test]
    fn a_state_folder_keeps_its_name_and_token() {
        let dir = tempfile::tempdir().unwrap();
        assert!(State::existing(&dir.path().join("s")).unwrap().is_none());
        let first = State::open(&dir.path().join("s")).unwrap();
        let second = State::open(&dir.path().join("s")).unwrap();
        assert_eq!(first.instance, second.instance);
        assert_eq!(first.registry_token().unwrap(), second.registry_token().unwrap());
        std::fs::write(first.dir.join("instance"), "../../etc").unwrap();
        assert!(State::open(&first.dir).is_err());
    }

    #[test]
    fn what_a_killed_start_left_half_written_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path()).unwrap();
        state.sweep().unwrap();
        std::fs::create_dir(dir.path().join("ca")).unwrap();
        let torn = ["", "run", "ca"].map(|folder| dir.path().join(folder).join(".staged-1-0"));
        for path in &torn {
            std::fs::write(path, "half").unwrap();
        }
        state.sweep().unwrap();
        assert!(torn.iter().all(|path| !path.exists()));
        assert!(dir.path().join("instance").exists());
    }

    #[test]
    fn at_first_start_the_next_free_port_is_taken_and_later_a_taken_one_is_an_error() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let listener = Listener { name: "x", port, about: "a test", ..LISTENERS[0] };
        assert_ne!(bind(&listener, None).unwrap().local_addr().unwrap().port(), port);
        let error = format!("{:#}", bind(&listener, Some(port)).unwrap_err());
        assert!(error.contains("the port is taken by"), "{error}");
    }
}
