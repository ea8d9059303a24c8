//! What every command is given: settings, printer, cancellation, and on request a connection to the daemon.

use std::{future::Future, path::PathBuf, time::Duration};

use gobuild::go::Toolchain;
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, Endpoints},
    client,
    failure::{Failure, Result},
    launch,
    printer::Printer,
    settings::Settings,
    version::{self, VERSION},
};

/// How long a cancelled command may take to tidy up.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// What the daemon's side of the binary does for the commands.
#[derive(Clone, Copy, Debug)]
pub struct Hooks {
    /// Runs a daemon over a state folder until it is told to end; calls the function once when it serves.
    pub daemon: fn(&std::path::Path, &mut dyn FnMut()) -> anyhow::Result<()>,
    /// What the user can do about a daemon that failed so.
    pub hint: fn(&anyhow::Error) -> Option<String>,
    /// Ends what outlives the daemon (proxy, keepers) and removes what stands outside the state folder.
    pub remove_outside: fn(&std::path::Path) -> anyhow::Result<Removed>,
}

/// What became of what outlives a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Processes that were ended.
    pub ended: Vec<String>,
    /// What could not be ended or removed within its deadline, and why.
    pub resisted: Vec<String>,
}

/// One invocation of a command.
#[derive(Debug)]
pub struct Context {
    pub settings: Settings,
    pub printer: Printer,
    /// Cancelled by SIGINT and SIGTERM.
    pub cancel: CancellationToken,
    pub hooks: Hooks,
}

/// Clients for a running daemon.
#[derive(Clone)]
pub struct Connection {
    pub client: Client,
    pub registry: registry::Client,
    pub endpoints: Endpoints,
    pub access: Access,
}

impl Context {
    /// Runs a command's future on a runtime of its own.
    pub fn block_on<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::from_error(&error).context("start the runtime"))?;
        let result = runtime.block_on(async {
            let signals = self.cancel_on_signals();
            tokio::pin!(signals, future);
            tokio::select! {
                biased;
                result = &mut future => result,
                // A command ends by itself when it is cancelled, and says what it left.
                () = &mut signals => match tokio::time::timeout(CANCEL_DEADLINE, &mut future).await {
                    Ok(result) => result,
                    // It waits for an answer that does not come.
                    Err(_) => Err(Failure::interrupted("nobody answered, and what was asked for may still happen")),
                },
            }
        });
        runtime.shutdown_background();
        result
    }

    async fn cancel_on_signals(&self) {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        self.cancel.cancel();
    }

    /// Connects to the daemon, which is started when none runs.
    pub async fn connect(&self) -> Result<Connection> {
        self.printer.progress("asking for the daemon");
        if launch::ensure(&self.settings, &self.cancel).await? {
            self.printer.note(format!("  Started  daemon in {}", self.settings.state_dir.display()));
        }
        self.connection()
    }

    /// Connects to a daemon that runs; `None` when none does.
    pub async fn connect_running(&self) -> Result<Option<Connection>> {
        if launch::answers(&self.settings.state_dir).await? { self.connection().map(Some) } else { Ok(None) }
    }

    fn connection(&self) -> Result<Connection> {
        let endpoints = Endpoints::read(&self.settings.state_dir)?;
        let endpoints = endpoints.ok_or_else(|| Failure::new("the daemon has not said where it listens"))?;
        if version::is_newer(VERSION, &endpoints.version) {
            let release = Some(endpoints.version.as_str()).filter(|version| !version.is_empty());
            let older =
                release.map_or_else(|| "an older gantry".to_owned(), |version| format!("gantry {version}"));
            let flag = self.settings.state_flag();
            self.printer.note(format!(
                "hint: the daemon is {older}, this is {VERSION}: sudo gantry daemon upgrade{flag}"
            ));
        }
        let access = Access::find(&self.settings)?;
        let client = client::from_kubeconfig(&access.kubeconfig, &self.settings.namespace)?;
        let registry = self.registry(&endpoints, &access)?;
        Ok(Connection { client, registry, endpoints, access })
    }

    /// A client for requests that are upgraded to a WebSocket.
    pub fn upgrading(&self, connection: &Connection) -> Result<Client> {
        Ok(client::upgrading(&connection.access.kubeconfig, &self.settings.namespace)?)
    }

    fn registry(&self, endpoints: &Endpoints, access: &Access) -> Result<registry::Client> {
        let address = endpoints.registry.trim_start_matches("http://").trim_end_matches('/').parse();
        let address =
            address.map_err(|_| Failure::new(format!("the registry's address {:?}", endpoints.registry)))?;
        let credential = registry::Credential::Bearer(access.token()?);
        let credentials = docker_credentials()?.with("localhost", credential);
        let config = registry::Config { credentials, embedded: Some(address), ..registry::Config::default() };
        registry::Client::new(config).map_err(registry_failure)
    }

    /// A registry client without a daemon behind `localhost`.
    pub fn registry_outside(&self) -> Result<registry::Client> {
        let config = registry::Config { credentials: docker_credentials()?, ..registry::Config::default() };
        registry::Client::new(config).map_err(registry_failure)
    }

    /// The caller's Go, seen from the folder that the command was typed in.
    pub fn toolchain(&self) -> Result<Toolchain> {
        Ok(Toolchain::find(std::env::var_os("PATH").as_deref(), self.folder()?)?)
    }

    /// The folder that the command was typed in.
    pub fn folder(&self) -> Result<PathBuf> {
        std::env::current_dir()
            .map_err(|error| Failure::from_error(&error).context("find the current folder"))
    }

    /// The namespace in use.
    pub fn namespace(&self) -> &str {
        &self.settings.namespace
    }
}

impl Connection {
    /// Objects of a kind in a namespace.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// Docker's configuration file of the caller.
pub fn docker_config() -> Option<PathBuf> {
    let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    folder.or_else(home).map(|folder| folder.join("config.json"))
}

fn docker_credentials() -> Result<registry::Credentials> {
    let Some(path) = docker_config().filter(|path| path.exists()) else {
        return Ok(registry::Credentials::default());
    };
    registry::Credentials::load(&path).map_err(|error| Failure::from_error(&error).hint(error.hint()))
}

/// A registry's error as the user's.
pub fn registry_failure(error: registry::client::Error) -> Failure {
    let hint = error.hint();
    Failure::from_error(&error).hint(hint)
}
