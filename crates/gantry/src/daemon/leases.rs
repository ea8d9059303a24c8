//! The proxies' Leases: one whose holder is no more is deleted, because the node waits for every Lease that is there.
//!
//! **Invariant:** a Lease is deleted only when the kernel says that its holder has ended. A proxy that is stopped, slow
//! or silent keeps its own; so does whoever is no proxy of this state folder.
//!
//! Level-driven: each Lease is looked at when the daemon starts (before the node is), when it changes, when the process
//! that holds it ends, and again after a deletion that failed.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::proxy::spawn::Process;
use contract::holder::Presence;
use contract::{Holder, drain};
use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use lifecycle::Scope;
use tokio::sync::mpsc;

use super::state::State;

/// How long a start waits for the first look at the Leases.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// Between two tries to delete one.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Holders that ended and wait to be noticed.
const ENDED_MAX: usize = 64;
/// The name of a proxy of ours, before its number.
const OUR_NAME: &str = "proxy-";

/// The Leases of this state folder's proxies.
pub struct Leases {
    api: Api<Lease>,
    state_dir: PathBuf,
}

/// What is known of a Lease's holder.
enum Found {
    /// It has ended.
    Gone,
    /// It is there: the processes whose end changes that.
    There(Vec<Process>),
    /// It is not ours to judge.
    Foreign,
    /// It could not be found out just now.
    Unclear(std::io::Error),
}

impl Leases {
    pub fn new(client: Client, state: &State) -> Self {
        Self { api: Api::namespaced(client, drain::NAMESPACE), state_dir: state.dir.clone() }
    }

    /// Deletes the Leases of holders that have ended. What fails is tried again by [`Self::keep`].
    pub async fn release_gone(&self) {
        let look = async {
            let leases: kube::core::ObjectList<Lease> =
                self.api.list(&ListParams::default().labels(&drain::selector())).await?;
            for lease in leases {
                if matches!(self.find(&lease), Found::Gone) {
                    self.release(&lease).await?;
                }
            }
            kube::Result::<()>::Ok(())
        };
        match tokio::time::timeout(FIRST_LOOK, look).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "look for leases of proxies that have ended"),
            Err(_) => tracing::warn!("the leases of proxies that have ended could not be looked at in time"),
        }
    }

    /// Goes on doing so until the scope ends.
    pub fn keep(self, scope: &Scope) {
        let inner = scope.clone();
        scope.spawn("proxy leases", self.run(inner));
    }

    async fn run(self, scope: Scope) {
        let watched = watcher::Config::default().labels(&drain::selector());
        let mut events = watcher(self.api.clone(), watched).default_backoff().boxed();
        let (ended, mut has_ended) = mpsc::channel::<String>(ENDED_MAX);
        let mut known: BTreeMap<String, Lease> = BTreeMap::new();
        // Dropping a scope ends the task in it.
        let mut followed: BTreeMap<String, Scope> = BTreeMap::new();
        let mut listing = BTreeMap::new();
        loop {
            let looked_at: Vec<String> = tokio::select! {
                event = events.next() => match event {
                    Some(Ok(watcher::Event::Init)) => {
                        listing.clear();
                        continue;
                    }
                    Some(Ok(watcher::Event::InitApply(lease))) => {
                        listing.insert(lease.name_any(), lease);
                        continue;
                    }
                    Some(Ok(watcher::Event::InitDone)) => {
                        known = std::mem::take(&mut listing);
                        known.keys().cloned().collect()
                    }
                    Some(Ok(watcher::Event::Apply(lease))) => {
                        let name = lease.name_any();
                        known.insert(name.clone(), lease);
                        vec![name]
                    }
                    Some(Ok(watcher::Event::Delete(lease))) => {
                        known.remove(&lease.name_any());
                        continue;
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "watch the proxies' leases");
                        continue;
                    }
                    None => return,
                },
                name = has_ended.recv() => match name {
                    Some(name) => vec![name],
                    None => return,
                },
            };
            followed.retain(|name, _| known.contains_key(name));
            for name in looked_at {
                let Some(lease) = known.get(&name) else { continue };
                let task = scope.child(&name);
                let follow = self.follow(lease, ended.clone());
                task.spawn("follow", follow);
                followed.insert(name, task);
            }
        }
    }

    /// Deletes the Lease once its holder has ended; then, and after a failure, has it looked at again.
    fn follow(
        &self,
        lease: &Lease,
        ended: mpsc::Sender<String>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let this = Self { api: self.api.clone(), state_dir: self.state_dir.clone() };
        let lease = lease.clone();
        async move {
            let mut wait = RETRY_MIN;
            loop {
                match this.find(&lease) {
                    Found::Foreign => return,
                    Found::There(mut processes) => {
                        let ends = processes.iter_mut().map(|process| Box::pin(process.exited()));
                        // Which one, the next look tells.
                        if futures::future::select_all(ends).await.0.is_err() {
                            tokio::time::sleep(RETRY_MAX).await;
                        }
                        // What is looked at then is the Lease as it is known by then.
                        let _ = ended.send(lease.name_any()).await;
                        return;
                    }
                    Found::Unclear(error) => {
                        tracing::warn!(%error, lease = lease.name_any(), "look for the process that holds the lease");
                        tokio::time::sleep(RETRY_MAX).await;
                    }
                    Found::Gone => match this.release(&lease).await {
                        Ok(()) => return,
                        Err(error) => {
                            tracing::warn!(%error, lease = lease.name_any(), "delete the lease of a proxy that has ended");
                            tokio::time::sleep(wait).await;
                            wait = (wait * 2).min(RETRY_MAX);
                        }
                    },
                }
            }
        }
    }

    async fn release(&self, lease: &Lease) -> kube::Result<()> {
        let name = lease.name_any();
        let preconditions = Preconditions { uid: lease.uid(), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.api.delete(&name, &params).await {
            Ok(_) => {
                tracing::info!(lease = name, "its proxy has ended: the lease is deleted");
                Ok(())
            }
            // Gone already, or another one by that name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn find(&self, lease: &Lease) -> Found {
        let name = lease.name_any();
        match lease.annotations().get(drain::HOLDER).and_then(|text| Holder::from_json(text)) {
            Some(holder) => find(&holder),
            // A release from before the annotation: its proxy is one of those that run, or of those that do not.
            None if name.starts_with(OUR_NAME) => match running(&self.state_dir) {
                Ok(processes) if processes.is_empty() => Found::Gone,
                Ok(processes) => Found::There(processes),
                Err(error) => Found::Unclear(error),
            },
            None => Found::Foreign,
        }
    }
}

fn find(holder: &Holder) -> Found {
    // The descriptor first: once it is held, the number stays that process's own.
    let process = Process::attach(holder.pid);
    match (holder.presence(), process) {
        (Ok(Presence::Gone), _) => Found::Gone,
        (Ok(Presence::There), Ok(process)) => Found::There(vec![process]),
        // From here its end cannot be seen; whoever knows better deletes the Lease.
        (Ok(Presence::Unknown), _) => Found::Foreign,
        (Ok(Presence::There), Err(error)) | (Err(error), _) => Found::Unclear(error),
    }
}

/// The proxies of a state folder that run, by their command lines.
fn running(state_dir: &Path) -> std::io::Result<Vec<Process>> {
    let mut processes = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        // The descriptor first, as above. A process that ends meanwhile has an empty command line, as a zombie has.
        let (Ok(process), Ok(line)) = (Process::attach(pid), std::fs::read(format!("/proc/{pid}/cmdline")))
        else {
            continue;
        };
        if is_proxy_of(&line, state_dir) {
            processes.push(process);
        }
    }
    Ok(processes)
}

/// Whether a command line (proc_pid_cmdline(5)) is that of `gantry proxy --state-dir DIR`.
fn is_proxy_of(line: &[u8], state_dir: &Path) -> bool {
    let mut arguments = line.split(|byte| *byte == 0).skip(1);
    arguments.next() == Some(b"proxy")
        && arguments.next() == Some(b"--state-dir")
        && arguments.next().is_some_and(|dir| Path::new(&OsString::from_vec(dir.to_vec())) == state_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn lease(holder: Option<&Holder>) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.name = Some(format!("{OUR_NAME}1"));
        let annotations = holder.map(|holder| [(drain::HOLDER.to_owned(), holder.to_json())].into());
        lease.metadata.annotations = annotations;
        lease
    }

    fn found(lease: &Lease, state_dir: &Path) -> &'static str {
        let kube = Client::new(
            tower::service_fn(|_: http::Request<kube::client::Body>| async {
                Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::empty()))
            }),
            "default",
        );
        let leases = Leases { api: Api::namespaced(kube, drain::NAMESPACE), state_dir: state_dir.to_owned() };
        match leases.find(lease) {
            Found::Gone => "gone",
            Found::There(_) => "there",
            Found::Foreign => "foreign",
            Found::Unclear(_) => "unclear",
        }
    }

    #[tokio::test]
    async fn only_the_lease_of_a_process_that_has_ended_is_free() {
        let own = Holder::this().unwrap();
        let dir = Path::new("/nowhere/at/all");
        assert_eq!(found(&lease(Some(&own)), dir), "there");
        let reused = Holder { start_ticks: own.start_ticks + 1, ..own.clone() };
        assert_eq!(found(&lease(Some(&reused)), dir), "gone");
        let before = Holder { boot_id: "before".to_owned(), ..own.clone() };
        assert_eq!(found(&lease(Some(&before)), dir), "gone");
        let elsewhere = Holder { pid_namespace: "pid:[1]".to_owned(), ..own };
        assert_eq!(found(&lease(Some(&elsewhere)), dir), "foreign");
        // An older release says nothing: no proxy of that folder runs.
        assert_eq!(found(&lease(None), dir), "gone");
        // Somebody else's takes part in draining by its own right.
        let mut other = lease(None);
        other.metadata.name = Some("haproxy".to_owned());
        assert_eq!(found(&other, dir), "foreign");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deletion_that_failed_is_tried_again() {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            assert_eq!(request.method(), http::Method::DELETE);
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            async move {
                let (code, body) = match nth {
                    0..3 => {
                        (507, json!({"kind": "Status", "status": "Failure", "code": 507, "message": "full"}))
                    }
                    _ => (200, json!({"kind": "Status", "status": "Success"})),
                };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                let answer = http::Response::builder().status(code).body(body).unwrap();
                Ok::<_, std::convert::Infallible>(answer)
            }
        });
        let client = Client::new(service, "default");
        let leases = Leases {
            api: Api::namespaced(client, drain::NAMESPACE),
            state_dir: PathBuf::from("/nowhere/at/all"),
        };
        let (ended, _ended) = mpsc::channel(1);
        let gone = Holder { boot_id: "before".to_owned(), ..Holder::this().unwrap() };
        leases.follow(&lease(Some(&gone)), ended).await;
        assert_eq!(asked.load(Ordering::Relaxed), 4);
    }

    #[tokio::test]
    async fn proxies_of_a_folder_are_found_by_their_command_line() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("proxy"), "kill -STOP $$").unwrap();
        let mut child = std::process::Command::new("/bin/sh")
            .args(["proxy", "--state-dir", folder])
            .current_dir(dir.path())
            .spawn()
            .unwrap();
        // Stopped or not yet, it is one that runs.
        assert_eq!(running(dir.path()).unwrap().len(), 1);
        assert_eq!(found(&lease(None), dir.path()), "there");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found(&lease(None), dir.path()), "gone");
        let line = |words: &[&str]| words.join("\0").into_bytes();
        assert!(!is_proxy_of(&line(&["gantry", "proxy", "--state-dir", "/other", ""]), dir.path()));
        assert!(!is_proxy_of(&line(&["gantry", "daemon", "--state-dir", folder, ""]), dir.path()));
        assert!(!is_proxy_of(b"", dir.path()));
    }
}
