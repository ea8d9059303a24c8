//! One Pod's worker: the only one who changes anything about that Pod on this machine.
//!
//! It looks at the object and at what it observed, asks [`crate::plan`], starts what has to be done as tasks of its
//! own, and takes note of what comes back. It keeps nothing that [`seed`] could not find again.

mod execute;
mod note;
mod seed;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod};
use lifecycle::Scope;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fields;
use crate::observed::{Clock, Evicted, Gate, Observed, Step, Terminal};
use crate::plan::{Action, plan};
use crate::ports::{
    ApiError, Container, Containers, Event, Events, Failure, Image, Images, Objects, Pods, PullError,
    Sandbox, Sandboxes,
};
use crate::probe::Report;
use crate::status;
use crate::storage::Eviction;

pub use seed::{Found, Phase};

/// Reports of probes and of the gate that wait for the worker.
const REPORTS_MAX: usize = 64;
/// Between two tries to write a status.
const PUBLISH_RETRY: Duration = Duration::from_secs(1);

/// What all workers share.
pub struct Deps {
    /// The runtime.
    pub containers: Arc<dyn Containers>,
    /// The network.
    pub sandboxes: Arc<dyn Sandboxes>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// The API, for Pods.
    pub pods: Arc<dyn Pods>,
    /// The API, for what Pods refer to.
    pub objects: Arc<dyn Objects>,
    /// The API, for events.
    pub events: Arc<dyn Events>,
    /// The state folder.
    pub state_dir: PathBuf,
    /// What the downward API tells of the node.
    pub node: fields::Node,
    /// The machine's own address.
    pub host_ip: IpAddr,
    /// The DNS server of Pods.
    pub dns_ip: IpAddr,
    /// The time of day.
    pub wall: fn() -> Timestamp,
}

impl Deps {
    /// `<state>/pods/<uid>`.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.state_dir.join("pods").join(uid)
    }

    /// `<state>/logs/<namespace>_<pod>_<uid>`.
    pub fn log_dir(&self, pod: &Pod) -> PathBuf {
        log_dir(&self.state_dir, pod)
    }
}

/// The folder of a Pod's logs.
pub fn log_dir(state_dir: &std::path::Path, pod: &Pod) -> PathBuf {
    let meta = &pod.metadata;
    state_dir.join("logs").join(format!(
        "{}_{}_{}",
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default()
    ))
}

/// The object as the API has it.
#[derive(Clone, Debug)]
pub struct Update {
    /// Its latest version.
    pub pod: Arc<Pod>,
    /// It is no more.
    pub gone: bool,
}

/// The containers of a Pod that are known to the runtime, for who serves logs and attach.
pub type Handles = Arc<std::sync::Mutex<BTreeMap<String, Arc<dyn Container>>>>;

/// What a worker is started with.
pub struct Start {
    /// What all share.
    pub deps: Arc<Deps>,
    /// The object.
    pub updates: watch::Receiver<Update>,
    /// Why the node ends it, once it has to.
    pub evictions: watch::Receiver<Option<Eviction>>,
    /// The proxies that take part in draining, once known.
    pub proxies: watch::Receiver<Option<Arc<BTreeSet<String>>>>,
    /// What was found of it after a restart.
    pub found: Vec<Found>,
    /// Shared with the HTTP API.
    pub handles: Handles,
}

/// What a task of the worker brought.
enum Done {
    Attached(Result<Sandbox, Failure>),
    Mounted(Result<(), Failure>),
    Refreshed(Result<(), Failure>),
    Pulled { container: String, result: Result<Image, PullError>, took: Duration },
    Started { container: String, attempt: u32, result: Result<tasks::Started, tasks::StartError> },
    PostStarted { container: String, attempt: u32, result: Result<(), String> },
    PreStopped { container: String, attempt: u32, result: Result<(), String> },
    Signalled { container: String, result: Result<(), Failure> },
    Exited { container: String, attempt: u32, exit: runtime::Exit, message: String },
    Published { status: status::Status, result: Box<Result<Pod, ApiError>> },
    TornDown(Result<(), Failure>),
    Deleted(Result<(), ApiError>),
    Nothing,
}

struct Worker {
    deps: Arc<Deps>,
    pod: Arc<Pod>,
    uid: String,
    observed: Observed,
    scope: Scope,
    tasks: JoinSet<Done>,
    handles: Handles,
    /// Runs that are over, or were never begun; their records go when they are not needed any more.
    stale: Vec<Arc<dyn Container>>,
    /// Stop signals of what runs.
    signals: BTreeMap<String, i32>,
    /// The probes of what runs; dropping one ends them.
    probes: BTreeMap<String, Scope>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    gate: (mpsc::Sender<Gate>, mpsc::Receiver<Gate>),
    gate_scope: Option<Scope>,
    publishing: bool,
    publish_at: Option<Instant>,
    acknowledged: Option<Value>,
    /// A word for each change of what the volumes show.
    changed: (mpsc::Sender<()>, mpsc::Receiver<()>),
}

/// Cares for a Pod until nothing is left of it, or the scope is told to stop: then everything is left as it is.
pub async fn run(start: Start, scope: Scope) {
    let mut updates = start.updates.clone();
    let mut proxies = start.proxies.clone();
    let mut evictions = start.evictions.clone();
    let Some(mut worker) = Worker::new(start, scope.clone()).await else { return };
    worker.watch_sources();
    loop {
        worker.take_update(&updates.borrow_and_update().clone());
        worker.observed.proxies = proxies.borrow_and_update().clone();
        let Some(wake) = worker.step() else { break };
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = scope.cancelled() => return,
            Some(done) = worker.tasks.join_next() => worker.finished(done),
            Some(report) = worker.reports.1.recv() => worker.reported(report),
            Some(gate) = worker.gate.1.recv() => worker.observed.gate = gate,
            Some(()) = worker.changed.1.recv() => worker.refresh(),
            changed = updates.changed() => if changed.is_err() { return },
            changed = proxies.changed() => if changed.is_err() { return },
            changed = evictions.changed() => {
                if changed.is_err() {
                    return;
                }
                let eviction = evictions.borrow_and_update().clone();
                eviction.into_iter().for_each(|eviction| worker.evict(eviction));
            }
            () = sleep => {}
        }
        // Whatever else is there already is taken along, so that one status tells all of it.
        while let Some(done) = worker.tasks.try_join_next() {
            worker.finished(done);
        }
        while let Ok(report) = worker.reports.1.try_recv() {
            worker.reported(report);
        }
    }
    tasks::forget(&worker.deps, &worker.pod).await;
}

impl Worker {
    fn clock(&self) -> Clock {
        Clock { now: Instant::now(), wall: (self.deps.wall)() }
    }

    /// Plans, begins what is due, and publishes; `None` when nothing is left to do. Otherwise when to look again.
    fn step(&mut self) -> Option<Option<Instant>> {
        let mut wake: Option<Instant> = None;
        let mut again = true;
        while again {
            again = false;
            wake = None;
            for action in plan(&self.pod, &self.observed, self.clock()) {
                match action {
                    Action::End => return None,
                    Action::Wake(at) => wake = Some(wake.map_or(at, |wake| wake.min(at))),
                    Action::Finish(terminal) => {
                        self.observed.terminal = Some(terminal);
                        again = true;
                    }
                    action => self.execute(action),
                }
            }
        }
        let later = self.publish();
        Some([wake, later].into_iter().flatten().min())
    }

    /// Writes the status if it says something new; answers when to try again.
    fn publish(&mut self) -> Option<Instant> {
        if self.publishing || self.observed.gone {
            return None;
        }
        let clock = self.clock();
        if let Some(at) = self.publish_at.filter(|at| *at > clock.now) {
            return Some(at);
        }
        let host_ip = self.deps.host_ip.to_string();
        let status = status::of(&self.pod, &self.observed, &host_ip, clock);
        if self.acknowledged.as_ref() == Some(&status.patch) {
            return self.next_change(clock.now);
        }
        self.publishing = true;
        let write = self.deps.pods.patch_status(&self.pod, status.patch.clone());
        self.tasks.spawn(async move { Done::Published { status, result: Box::new(write.await) } });
        None
    }

    /// When a status changes by itself: `ErrImagePull` becomes `ImagePullBackOff`.
    fn next_change(&self, now: Instant) -> Option<Instant> {
        let shown = self.observed.containers.values().filter_map(|container| match &container.image {
            Step::Failed(trouble) => Some(trouble.at + status::PULL_ERROR_SHOWN),
            _ => None,
        });
        shown.filter(|at| *at > now).min()
    }

    fn take_update(&mut self, update: &Update) {
        self.observed.gone |= update.gone;
        if newer(&update.pod, &self.pod) {
            let meta = (&self.pod.metadata, &update.pod.metadata);
            let told = meta.0.labels != meta.1.labels || meta.0.annotations != meta.1.annotations;
            self.pod = Arc::clone(&update.pod);
            if told && self.shows_fields() {
                self.refresh();
            }
        }
    }

    /// The Pod is over, whatever its restart policy says; what it holds on disk goes with it.
    fn evict(&mut self, eviction: Eviction) {
        if self.observed.terminal.is_some()
            || self.observed.gone
            || self.pod.metadata.deletion_timestamp.is_some()
        {
            return;
        }
        self.say(None, Event::warning("Evicted", eviction.message.clone()));
        self.observed.terminal = Some(Terminal {
            succeeded: false,
            reason: Some("Evicted".to_owned()),
            message: Some(eviction.message),
            evicted: Some(if eviction.pressure { Evicted::Pressure } else { Evicted::Limit }),
        });
    }

    fn spec_of(&self, name: &str) -> Option<&Spec> {
        let spec = self.pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
    }

    fn is_init(&self, name: &str) -> bool {
        let spec = self.pod.spec.as_ref();
        spec.is_some_and(|spec| spec.init_containers.iter().flatten().any(|c| c.name == name))
    }

    /// Whether a volume shows fields of the Pod itself.
    fn shows_fields(&self) -> bool {
        let volumes = self.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mut volumes = volumes.map(|volume| {
            let mut sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten());
            volume.downward_api.is_some() || sources.any(|source| source.downward_api.is_some())
        });
        volumes.any(|shows| shows)
    }

    /// Has volumes follow the ConfigMaps and Secrets that they show.
    fn watch_sources(&mut self) {
        let (maps, secrets) = crate::volumes::content::names(&self.pod);
        if maps.is_empty() && secrets.is_empty() {
            return;
        }
        let namespace = self.pod.metadata.namespace.clone().unwrap_or_default();
        let mut changes = self.deps.objects.changes(&namespace, maps, secrets);
        let sender = self.changed.0.clone();
        self.scope.spawn("volume sources", async move {
            while changes.next().await.is_some() {
                if sender.send(()).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Whether `new` is a later version than `old`.
fn newer(new: &Pod, old: &Pod) -> bool {
    let version =
        |pod: &Pod| pod.metadata.resource_version.as_deref().and_then(|text| text.parse::<u64>().ok());
    match (version(new), version(old)) {
        (Some(new), Some(old)) => new > old,
        _ => new.metadata.resource_version != old.metadata.resource_version,
    }
}

/// The system's time as the API has it.
fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
