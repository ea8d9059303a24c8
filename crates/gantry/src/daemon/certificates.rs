//! Certificates that are in use: checked at the start, each hour and at SIGHUP, renewed before their time runs out, and
//! written only when they change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::pki::{Authority, Served};
use super::state::State;
use super::{kubeconfig, user};

/// How often it is looked whether a certificate has to be renewed.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// What the daemon has issued and keeps current.
pub struct Certificates {
    pub state: State,
    pub authority: Arc<Authority>,
    pub served: Served,
    /// The API server's address, as kubeconfigs have it.
    pub server: String,
}

impl Certificates {
    /// What a start needs: kubeconfigs that are good, and one for the user behind sudo.
    pub fn start(&self) -> Result<()> {
        self.issue()?;
        user::issue(&self.state, &self.server, &self.authority)
    }

    /// Writes the kubeconfigs that are missing or run out: root's, the proxy's, and those of the users behind sudo.
    fn issue(&self) -> Result<()> {
        let kubeconfigs: [(&str, &str, PathBuf); 2] = [
            ("admin", "system:masters", self.state.dir.join("kubeconfig")),
            ("system:gantry:proxy", "system:gantry", self.state.run("proxy.kubeconfig")),
        ];
        for (user, group, path) in &kubeconfigs {
            if kubeconfig::ensure(path, &self.server, &self.authority, user, group)? {
                tracing::info!(user, path = %path.display(), "a client certificate was issued");
            }
        }
        user::renew(&self.state, &self.server, &self.authority)
    }

    fn renew(&self) -> Result<()> {
        self.served.renew().context("renew the API server's certificate")?;
        self.issue().context("renew the clients' certificates")
    }

    /// Renews what runs out, for as long as the daemon runs. Needs [`hangup`], taken before anyone sends the signal.
    pub async fn run(self, mut hangup: Signal) {
        let certificates = Arc::new(self);
        let mut ticks = tokio::time::interval(LOOK_EVERY);
        // The first is at once, and the start has just looked.
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = hangup.recv() => tracing::info!("looking at the certificates"),
            }
            let inner = Arc::clone(&certificates);
            let renewed = tokio::task::spawn_blocking(move || inner.renew()).await;
            match renewed.map_err(anyhow::Error::from).and_then(|renewed| renewed) {
                Ok(()) => {}
                Err(error) => tracing::error!(error = format!("{error:#}"), "renew certificates"),
            }
        }
    }
}

/// SIGHUP, which would end the process if nobody took it.
pub fn hangup() -> Result<Signal> {
    signal(SignalKind::hangup()).context("take SIGHUP")
}
