//! The machine behind [`crate::ports`]: runtime, network, images, API.

mod api;
mod images;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use futures::future::BoxFuture;
use network::{Network, Place, Protocol};
use runtime::Runtime;
use tokio::net::{TcpSocket, TcpStream};

use crate::ports::{self, Failure, Listening, Sandbox};

pub use api::{ApiObjects, ApiPods, MANAGER};
pub use images::StoredImages;

/// Containers of the runtime.
pub struct RuntimeContainers(pub Runtime);

/// One of them.
pub struct RuntimeContainer(pub runtime::Container);

impl ports::Containers for RuntimeContainers {
    fn create(&self, spec: runtime::Spec) -> BoxFuture<'_, Result<Arc<dyn ports::Container>, Failure>> {
        Box::pin(async move {
            let container = self.0.create(spec).await.map_err(|error| {
                let hint = error.hint().map_or(String::new(), |hint| format!("; {hint}"));
                Failure(format!("{}{hint}", Failure::of(&error)))
            })?;
            Ok(Arc::new(RuntimeContainer(container)) as Arc<dyn ports::Container>)
        })
    }

    fn explain(&self, spec: &runtime::Spec) -> Option<String> {
        let program = spec.args.first()?;
        // What is mounted over the image is not in its tree.
        let mounted = spec.mounts.iter().any(|mount| {
            std::path::Path::new(program).starts_with(&mount.target)
                && mount.target != std::path::Path::new("/")
        });
        if mounted {
            return None;
        }
        let path = spec.env.iter().find(|(name, _)| name == "PATH").map_or("", |(_, value)| value.as_str());
        let cwd = if spec.cwd.as_os_str().is_empty() { std::path::Path::new("/") } else { &spec.cwd };
        let why = runtime::explain(&spec.rootfs.tree, program, path, cwd)?;
        Some(format!("{why}: {}", why.hint()))
    }
}

impl ports::Container for RuntimeContainer {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn spec(&self) -> Option<&runtime::Spec> {
        Some(self.0.spec())
    }

    fn start(&self) -> BoxFuture<'_, Result<SystemTime, Failure>> {
        Box::pin(async move {
            self.0.start().await.map_err(|error| Failure::of(&error))?;
            Ok(SystemTime::now())
        })
    }

    fn signal(&self, number: i32) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            match self.0.signal(number).await {
                Ok(()) | Err(runtime::Error::Ended { .. }) => Ok(()),
                Err(error) => Err(Failure::of(&error)),
            }
        })
    }

    fn wait(&self) -> BoxFuture<'static, runtime::Exit> {
        let container = self.0.clone();
        Box::pin(async move {
            match container.wait().await {
                Ok(exit) => exit,
                Err(error) => {
                    tracing::warn!(container = container.id(), error = %Failure::of(&error), "wait for a container");
                    runtime::Exit {
                        code: None,
                        signal: None,
                        oom_killed: false,
                        started_at: None,
                        finished_at: SystemTime::now(),
                    }
                }
            }
        })
    }

    fn delete(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move { self.0.delete().await.map_err(|error| Failure::of(&error)) })
    }

    fn real(&self) -> Option<&runtime::Container> {
        Some(&self.0)
    }
}

/// Pods on the router network.
pub struct NetworkSandboxes(pub Network);

/// Runs work that may block for a moment.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

impl ports::Sandboxes for NetworkSandboxes {
    fn attach(&self, uid: &str, own_users: bool) -> BoxFuture<'_, Result<Sandbox, Failure>> {
        let (network, uid) = (self.0.clone(), uid.to_owned());
        Box::pin(async move {
            let attached =
                blocking(
                    move || if own_users { network.attach_with_users(&uid) } else { network.attach(&uid) },
                )
                .await
                .map_err(|error| Failure::of(&error))?;
            let attached = attached.map_err(|error| Failure::of(&error))?;
            Ok(Sandbox {
                ip: IpAddr::V4(attached.ip),
                netns: Some(attached.netns),
                first_id: attached.first_id,
            })
        })
    }

    fn detach(&self, uid: &str) -> BoxFuture<'_, Result<(), Failure>> {
        let (network, uid) = (self.0.clone(), uid.to_owned());
        Box::pin(async move {
            let detached =
                blocking(move || network.detach(&uid)).await.map_err(|error| Failure::of(&error))?;
            detached.map_err(|error| Failure::of(&error))
        })
    }

    fn dial(&self, from: ports::Side<'_>, address: SocketAddr) -> BoxFuture<'_, io::Result<TcpStream>> {
        let network = self.0.clone();
        let place = match from {
            ports::Side::Host => Place::Host,
            ports::Side::Router => Place::Router,
            ports::Side::Pod(uid) => Place::Pod(uid.to_owned()),
        };
        Box::pin(async move {
            let made =
                move || network.socket(&place, socket2::Domain::for_address(address), socket2::Type::STREAM);
            let socket = blocking(made).await??;
            socket.set_nonblocking(true)?;
            TcpSocket::from_std_stream(socket.into()).connect(address).await
        })
    }

    fn listening(&self, uid: &str) -> BoxFuture<'_, io::Result<Vec<Listening>>> {
        let (network, uid) = (self.0.clone(), uid.to_owned());
        Box::pin(async move {
            let found = blocking(move || network.listening(&uid)).await??;
            Ok(found
                .into_iter()
                .map(|found| Listening {
                    port: found.port,
                    address: found.addr,
                    udp: found.protocol == Protocol::Udp,
                })
                .collect())
        })
    }
}
