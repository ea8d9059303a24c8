//! How a container is asked: HTTP, TCP, gRPC. Also what `preStop` and `postStart` hooks of these kinds do.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Ask, grpc, http};
use crate::ports::{Sandboxes, Side};
use crate::text;

/// What of a failure is shown.
const SHOWN_CHARS_MAX: usize = 400;

/// A question to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A GET; 200–399 is a success.
    Http {
        /// Whether to speak TLS (the certificate is not checked, as kubelet does not).
        tls: bool,
        /// Another address than the Pod's.
        host: Option<String>,
        /// The port.
        port: u16,
        /// The path with its query.
        path: String,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// A connection.
    Tcp {
        /// Another address than the Pod's.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`.
    Grpc {
        /// The port.
        port: u16,
        /// The service's name, empty for the whole server.
        service: String,
    },
    /// A command in the container.
    Exec(Vec<String>),
}

impl Action {
    /// A probe's action, or why it cannot be.
    pub fn of_probe(probe: &Probe, container: &Container) -> Result<Self, String> {
        if let Some(get) = &probe.http_get {
            return Self::of_http(get, container);
        }
        if let Some(socket) = &probe.tcp_socket {
            return Self::of_tcp(socket, container);
        }
        if let Some(grpc) = &probe.grpc {
            let port = u16::try_from(grpc.port).map_err(|_| format!("port {} is no port", grpc.port))?;
            return Ok(Action::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
        }
        if let Some(exec) = &probe.exec {
            return Ok(Action::Exec(exec.command.clone().unwrap_or_default()));
        }
        Err("it has no handler".to_owned())
    }

    /// An `httpGet` handler's action.
    pub fn of_http(get: &HTTPGetAction, container: &Container) -> Result<Self, String> {
        let path = get.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        Ok(Action::Http {
            tls: get.scheme.as_deref() == Some("HTTPS"),
            host: get.host.clone().filter(|host| !host.is_empty()),
            port: port(&get.port, container)?,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
        })
    }

    fn of_tcp(socket: &TCPSocketAction, container: &Container) -> Result<Self, String> {
        let host = socket.host.clone().filter(|host| !host.is_empty());
        Ok(Action::Tcp { host, port: port(&socket.port, container)? })
    }
}

fn port(port: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match name.parse() {
            Ok(number) => number,
            Err(_) => {
                let named = container.ports.iter().flatten().find(|port| port.name.as_deref() == Some(name));
                named.ok_or_else(|| format!("the container has no port named {name:?}"))?.container_port
            }
        },
    };
    u16::try_from(number).ok().filter(|port| *port > 0).ok_or_else(|| format!("{number} is no port"))
}

/// Asks the containers of one Pod over the network.
pub struct Network {
    /// How to reach it.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Whose containers.
    pub uid: String,
    /// The Pod's address.
    pub ip: IpAddr,
    /// Whether its network is the machine's own.
    pub on_host: bool,
}

impl Ask for Network {
    fn ask<'a>(&'a self, action: &'a Action, timeout: Duration) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let asked = self.exchange(action, timeout).await;
            // A part of what is said here the program itself may have written.
            asked.map_err(|error| text::shown(&error, SHOWN_CHARS_MAX))
        })
    }
}

impl Network {
    async fn exchange(&self, action: &Action, timeout: Duration) -> Result<(), String> {
        match action {
            Action::Http { tls, host, port, path, headers } => {
                let authority = SocketAddr::new(self.address(host.as_deref())?, *port);
                let scheme = if *tls { "https" } else { "http" };
                let named = format!("Get \"{scheme}://{authority}{path}\"");
                let exchange = async {
                    let stream = self.dial(authority).await.map_err(|error| format!("{named}: {error}"))?;
                    http::get(stream, *tls, authority, path, headers)
                        .await
                        .map_err(|e| format!("{named}: {e}"))
                };
                let (status, body) = within(timeout, &named, exchange).await?;
                match (200..400).contains(&status) {
                    true => Ok(()),
                    false if body.is_empty() => Err(format!("HTTP probe failed with statuscode: {status}")),
                    false => Err(format!("HTTP probe failed with statuscode: {status}: {body}")),
                }
            }
            Action::Tcp { host, port } => {
                let address = SocketAddr::new(self.address(host.as_deref())?, *port);
                let connect = async { self.dial(address).await.map(drop) };
                within(timeout, &format!("dial tcp {address}"), connect).await
            }
            Action::Grpc { port, service } => {
                let address = SocketAddr::new(self.ip, *port);
                let check = async {
                    let stream = self.dial(address).await?;
                    grpc::check(stream, address, service).await
                };
                within(timeout, &format!("grpc {address}"), check).await
            }
            Action::Exec(_) => {
                Err("exec probes are not supported; use httpGet, tcpSocket or grpc".to_owned())
            }
        }
    }

    fn address(&self, host: Option<&str>) -> Result<IpAddr, String> {
        match host {
            None => Ok(self.ip),
            Some("localhost") => Ok(IpAddr::from([127, 0, 0, 1])),
            Some(host) => host.parse().map_err(|_| format!("host {host:?} is no IP address; leave it out")),
        }
    }

    async fn dial(&self, address: SocketAddr) -> Result<tokio::net::TcpStream, String> {
        let from = match address.ip() == self.ip {
            _ if self.on_host => Side::Host,
            true => Side::Router,
            // Whoever writes a Pod names the host: it is looked for from where the Pod itself could reach it.
            false => Side::Pod(&self.uid),
        };
        let dialled = self.sandboxes.dial(from, address).await;
        match dialled {
            Ok(stream) => Ok(stream),
            Err(error) => {
                let hint = if error.kind() == std::io::ErrorKind::ConnectionRefused && address.ip() == self.ip
                {
                    self.loopback_hint(address.port()).await
                } else {
                    String::new()
                };
                Err(format!("dial tcp {address}: connect: {}{hint}", lower(&error)))
            }
        }
    }

    /// A refused connection has one cause that is easily overlooked: the program listens on loopback only.
    async fn loopback_hint(&self, port: u16) -> String {
        let Ok(listening) = self.sandboxes.listening(&self.uid).await else { return String::new() };
        match listening.iter().find(|socket| socket.port == port && socket.address.is_loopback()) {
            Some(socket) => format!(
                " (the program listens on {}:{port} only, which nobody outside its container reaches: listen on \
                 :{port} instead)",
                socket.address
            ),
            None => String::new(),
        }
    }
}

fn lower(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        std::io::ErrorKind::ConnectionReset => "connection reset by peer".to_owned(),
        _ => error.to_string(),
    }
}

async fn within<T>(
    timeout: Duration,
    what: &str,
    exchange: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    match tokio::time::timeout(timeout, exchange).await {
        Ok(result) => result,
        Err(_) => Err(format!("{what}: no answer within {} s", timeout.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Notes from where it was dialled, and lets nobody through.
    #[derive(Default)]
    struct Refusing(std::sync::Mutex<Vec<String>>);

    impl Sandboxes for Refusing {
        fn attach(
            &self,
            _: &str,
            _: bool,
        ) -> BoxFuture<'_, Result<crate::ports::Sandbox, crate::ports::Failure>> {
            Box::pin(async { Err(crate::ports::Failure(String::new())) })
        }
        fn detach(&self, _: &str) -> BoxFuture<'_, Result<(), crate::ports::Failure>> {
            Box::pin(async { Ok(()) })
        }
        fn dial(
            &self,
            from: Side<'_>,
            at: SocketAddr,
        ) -> BoxFuture<'_, std::io::Result<tokio::net::TcpStream>> {
            self.0.lock().unwrap().push(format!("{from:?} {at}"));
            Box::pin(async { Err(std::io::Error::other("no\x1b[31m\nway")) })
        }
        fn listening(&self, _: &str) -> BoxFuture<'_, std::io::Result<Vec<crate::ports::Listening>>> {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    #[tokio::test]
    async fn what_a_pod_names_is_reached_from_its_own_network() {
        let refusing = Arc::new(Refusing::default());
        let second = Duration::from_secs(1);
        for (host, on_host) in [(None, false), (Some("127.0.0.1"), false), (Some("169.254.169.254"), false)] {
            let network = Network {
                sandboxes: refusing.clone(),
                uid: "u".to_owned(),
                ip: [10, 0, 0, 2].into(),
                on_host,
            };
            let host = host.map(str::to_owned);
            let action = Action::Tcp { host: host.clone(), port: 1 };
            let error = network.ask(&action, second).await.unwrap_err();
            assert!(error.ends_with("no [31m way"), "{error:?}");
            let (tls, path) = (false, "/".to_owned());
            let get = Action::Http { tls, host, port: 2, path, headers: Vec::new() };
            network.ask(&get, second).await.unwrap_err();
        }
        let own = Network {
            sandboxes: refusing.clone(),
            uid: "u".to_owned(),
            ip: [10, 1, 1, 1].into(),
            on_host: true,
        };
        own.ask(&Action::Tcp { host: Some("localhost".to_owned()), port: 3 }, second).await.unwrap_err();
        own.ask(&Action::Grpc { port: 4, service: String::new() }, second).await.unwrap_err();
        let dialled = refusing.0.lock().unwrap();
        let expected = [
            "Router 10.0.0.2:1",
            "Router 10.0.0.2:2",
            "Pod(\"u\") 127.0.0.1:1",
            "Pod(\"u\") 127.0.0.1:2",
            "Pod(\"u\") 169.254.169.254:1",
            "Pod(\"u\") 169.254.169.254:2",
            "Host 127.0.0.1:3",
            "Host 10.1.1.1:4",
        ];
        assert_eq!(*dialled, expected);
    }

    #[test]
    fn ports_are_found_by_name() {
        let container: Container =
            serde_json::from_value(json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}))
                .unwrap();
        let probe = |value| serde_json::from_value::<Probe>(value).unwrap();
        assert_eq!(
            Action::of_probe(&probe(json!({"tcpSocket": {"port": "web"}})), &container),
            Ok(Action::Tcp { host: None, port: 8080 })
        );
        let missing = Action::of_probe(&probe(json!({"httpGet": {"port": "admin"}})), &container);
        assert_eq!(missing.unwrap_err(), "the container has no port named \"admin\"");
    }
}
