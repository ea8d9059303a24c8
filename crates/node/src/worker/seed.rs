//! How a worker begins: from what runs already, and from what the API was last told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use lifecycle::Scope;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{REPORTS_MAX, Start, Worker, timestamp};
use crate::backoff::Backoff;
use crate::observed::{Clock, Container, Ended, Gate, Observed, Published, Run, State, Step, Terminal};
use crate::ports::{self, Event, Sandbox};
use crate::probe::{self, Purpose};
use crate::spec::annotation;
use crate::status;
use crate::{admission, plan};

/// A container of the Pod that the runtime still knows.
pub struct Found {
    /// Its name in the Pod.
    pub container: String,
    /// Which run.
    pub attempt: u32,
    /// The signal that asks it to end.
    pub stop_signal: i32,
    /// What it does.
    pub phase: Phase,
    /// The container.
    pub handle: Arc<dyn ports::Container>,
}

/// What a container that was found does.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// It was made, and its program never ran.
    Created,
    /// Its program runs, since then.
    Running(SystemTime),
    /// It has ended.
    Exited(runtime::Exit),
}

impl Found {
    /// Reads a container's annotations; `None` if it is no Pod's.
    pub fn of(
        annotations: &BTreeMap<String, String>,
        phase: Phase,
        handle: Arc<dyn ports::Container>,
    ) -> Option<(String, Self)> {
        let number = |key: &str| annotations.get(key).and_then(|text| text.parse::<i32>().ok());
        let found = Self {
            container: annotations.get(annotation::CONTAINER)?.clone(),
            attempt: u32::try_from(number(annotation::ATTEMPT)?).ok()?,
            stop_signal: number(annotation::STOP_SIGNAL).unwrap_or(15),
            phase,
            handle,
        };
        Some((annotations.get(annotation::UID)?.clone(), found))
    }
}

impl Worker {
    /// A worker that knows what there is to know; `None` for an object that is no Pod.
    pub(super) async fn new(start: Start, scope: Scope) -> Option<Self> {
        let update = start.updates.borrow().clone();
        let pod = update.pod;
        let spec = pod.spec.as_ref()?;
        let names = spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.name.clone());
        let mut worker = Self {
            uid: pod.metadata.uid.clone()?,
            observed: Observed::new(names),
            deps: start.deps,
            scope,
            tasks: JoinSet::new(),
            handles: start.handles,
            stale: Vec::new(),
            signals: BTreeMap::new(),
            probes: BTreeMap::new(),
            reports: mpsc::channel(REPORTS_MAX),
            gate: mpsc::channel(1),
            gate_scope: None,
            publishing: false,
            publish_at: None,
            acknowledged: None,
            changed: mpsc::channel(1),
            pod,
        };
        worker.seed(start.found).await;
        worker.admit();
        Some(worker)
    }

    /// A Pod that kubelet would reject is over before anything is done for it. One that runs already goes on.
    fn admit(&mut self) {
        let begun = self.observed.containers.values().any(|container| container.state != State::Waiting);
        if begun || self.observed.terminal.is_some() || self.observed.gone || !admission::fails(&self.pod) {
            return;
        }
        if let Err(rejection) = admission::admit(&self.pod) {
            self.say(None, Event::warning(rejection.reason, rejection.message.clone()));
            self.observed.terminal = Some(Terminal {
                succeeded: false,
                reason: Some(rejection.reason.to_owned()),
                message: Some(format!("Pod was rejected: {}", rejection.message)),
                evicted: None,
            });
        }
    }

    async fn seed(&mut self, mut found: Vec<Found>) {
        let clock = self.clock();
        found.sort_by_key(|found| std::cmp::Reverse(found.attempt));
        let pod = Arc::clone(&self.pod);
        let told = pod.status.as_ref();
        self.observed.terminal = told.and_then(|status| terminal(&pod, status.phase.as_deref()));
        let statuses =
            told.iter().flat_map(|s| s.init_container_statuses.iter().chain(&s.container_statuses));
        for status in statuses.flatten() {
            if let Some(container) = self.observed.containers.get_mut(&status.name) {
                from_status(container, status, clock);
            }
        }
        for found in found {
            match found.phase {
                // Its run is begun anew under the same id, so it has to be gone first.
                Phase::Created => self.remove(found.handle).await,
                _ => self.adopt(found, &pod, clock),
            }
        }
        self.observed.gate = gate(&pod);
        let ready = told.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready =
            ready.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        self.observed.published = Published { unready_since: (!ready).then_some(clock.now), ended: false };
        let running = self.observed.containers.values().any(Container::alive);
        if running {
            // Its address is known before the first status is written, so that nothing flickers.
            self.observed.sandbox = match self.attach().await {
                Ok(sandbox) => Step::Done(sandbox),
                Err(_) => Step::Pending,
            };
            let names: Vec<String> = self.observed.containers.keys().cloned().collect();
            for name in names {
                if let Some(run) = self.observed.containers[&name].run().cloned() {
                    self.watch_exit(&name, &run);
                    self.begin_probes(&name);
                }
            }
            self.begin_gate();
        }
    }

    /// Removes a container whose program was never started.
    async fn remove(&mut self, handle: Arc<dyn ports::Container>) {
        if let Err(failure) = handle.delete().await {
            tracing::warn!(container = handle.id(), %failure, "remove a container that was never started");
            self.stale.push(handle);
        }
    }

    /// `hostUsers: false`.
    pub(super) fn own_users(&self) -> bool {
        self.pod.spec.as_ref().is_some_and(|spec| spec.host_users == Some(false))
    }

    pub(super) async fn attach(&self) -> Result<Sandbox, ports::Failure> {
        if self.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            return Ok(Sandbox { ip: self.deps.host_ip, netns: None, first_id: None });
        }
        self.deps.sandboxes.attach(&self.uid, self.own_users()).await
    }

    /// Takes a container of the runtime over; the newest run of each comes first.
    fn adopt(&mut self, found: Found, pod: &Pod, clock: Clock) {
        let Some(container) = self.observed.containers.get_mut(&found.container) else {
            self.stale.push(found.handle);
            return;
        };
        if container.alive() || matches!(&container.state, State::Exited(e) if e.attempt > found.attempt) {
            if let Phase::Exited(exit) = found.phase
                && container.last.as_ref().is_none_or(|last| last.attempt <= found.attempt)
                && container.next_attempt() > found.attempt + 1
            {
                container.last = Some(ended(found.attempt, found.handle.id(), &exit, String::new()));
            }
            self.stale.push(found.handle);
            return;
        }
        match found.phase {
            Phase::Created => {}
            Phase::Running(since) => {
                let spec =
                    pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
                let spec = spec.into_iter().find(|spec| spec.name == found.container);
                let told = status_of(pod, &found.container).filter(|told| is_of_run(told, found.attempt));
                let has = |purpose| spec.is_some_and(|spec| probe::has(spec, purpose));
                let started_at = timestamp(since);
                let ran = Duration::try_from(clock.wall.duration_since(started_at)).unwrap_or_default();
                if let State::Exited(ended) = &container.state
                    && ended.attempt < found.attempt
                {
                    container.last = Some(ended.clone());
                }
                container.state = State::Running(Run {
                    attempt: found.attempt,
                    id: found.handle.id().to_owned(),
                    since: clock.now.checked_sub(ran).unwrap_or(clock.now),
                    started_at,
                    started: told.and_then(|told| told.started).unwrap_or(!has(Purpose::Startup)),
                    ready: told.map_or(!has(Purpose::Readiness), |told| told.ready),
                    unhealthy: None,
                });
                container.backoff = Backoff::after(found.attempt);
                self.signals.insert(found.container.clone(), found.stop_signal);
                lock(&self.handles).insert(found.container, found.handle);
            }
            Phase::Exited(exit) => {
                // What was said of an exit that nobody knew is not true of one that the runtime knows.
                let message = match &container.state {
                    State::Exited(told) if told.attempt == found.attempt && told.reason != UNKNOWN_REASON => {
                        told.message.clone()
                    }
                    _ => String::new(),
                };
                let over = ended(found.attempt, found.handle.id(), &exit, message);
                container.backoff = backoff(&over, clock);
                container.state = State::Exited(over);
                self.stale.push(found.handle);
            }
        }
    }
}

pub(super) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    all.into_iter().find(|status| status.name == name)
}

fn terminal(pod: &Pod, phase: Option<&str>) -> Option<Terminal> {
    let succeeded = match phase? {
        "Succeeded" => true,
        "Failed" => false,
        _ => return None,
    };
    let status = pod.status.as_ref()?;
    Some(Terminal {
        succeeded,
        reason: status.reason.clone(),
        message: status.message.clone(),
        evicted: None,
    })
}

/// What the API was told of a container is believed, as far as the runtime knows nothing better.
fn from_status(container: &mut Container, status: &ContainerStatus, clock: Clock) {
    let attempt = u32::try_from(status.restart_count).unwrap_or(0);
    let id = status.container_id.as_deref().and_then(|id| id.strip_prefix("gantry://")).unwrap_or_default();
    let terminated =
        |state: &Option<ContainerState>| state.as_ref().and_then(|state| state.terminated.clone());
    if let Some(running) = status.state.as_ref().and_then(|state| state.running.as_ref()) {
        // It was said to run and the runtime does not have it: how it ended, nobody knows.
        container.state = State::Exited(Ended {
            attempt,
            id: id.to_owned(),
            code: UNKNOWN_CODE,
            signal: None,
            reason: UNKNOWN_REASON.to_owned(),
            message: "the container was gone when the node came back; how it ended is not known".to_owned(),
            started_at: running.started_at.as_ref().map(|time| time.0),
            finished_at: clock.wall,
        });
        container.last = terminated(&status.last_state).map(|last| told(attempt.saturating_sub(1), last));
    } else if let Some(last) = terminated(&status.state) {
        container.state = State::Exited(told(attempt, last));
        container.last = terminated(&status.last_state).map(|last| told(attempt.saturating_sub(1), last));
    } else if let Some(last) = terminated(&status.last_state) {
        container.state = State::Exited(told(attempt, last));
    }
    if let State::Exited(over) = &container.state {
        container.backoff = backoff(over, clock);
    }
}

fn backoff(over: &Ended, clock: Clock) -> Backoff {
    let ran = over.started_at.and_then(|started| over.finished_at.duration_since(started).try_into().ok());
    Backoff::of_ended(clock.now, over.attempt, ran.unwrap_or_default(), over.reason != UNKNOWN_REASON)
}

/// The exit code of what is not known, as Kubernetes has it.
const UNKNOWN_CODE: i32 = 137;
const UNKNOWN_REASON: &str = "ContainerStatusUnknown";

fn told(attempt: u32, terminated: ContainerStateTerminated) -> Ended {
    let id = terminated.container_id.unwrap_or_default();
    Ended {
        attempt,
        id: id.strip_prefix("gantry://").unwrap_or(&id).to_owned(),
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.unwrap_or_default(),
        message: terminated.message.unwrap_or_default(),
        started_at: terminated.started_at.map(|time| time.0),
        finished_at: terminated.finished_at.map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    }
}

/// An exit in the API's terms. A code is the kernel's; what nobody saw is unknown.
pub(super) fn ended(attempt: u32, id: &str, exit: &runtime::Exit, message: String) -> Ended {
    let (code, reason) = match (exit.code, exit.signal) {
        _ if exit.oom_killed => (exit.code.unwrap_or_else(|| 128 + exit.signal.unwrap_or(9)), "OOMKilled"),
        (Some(0), _) => (0, "Completed"),
        (Some(code), _) => (code, "Error"),
        (None, Some(signal)) => (128 + signal, "Error"),
        (None, None) => (UNKNOWN_CODE, UNKNOWN_REASON),
    };
    let message = match reason {
        UNKNOWN_REASON if message.is_empty() => {
            "nobody saw the container end; its exit code is not known".to_owned()
        }
        _ => message,
    };
    Ended {
        attempt,
        id: id.to_owned(),
        code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message,
        started_at: exit.started_at.map(timestamp),
        finished_at: timestamp(exit.finished_at),
    }
}

/// What the gate said last.
fn gate(pod: &Pod) -> Gate {
    let text = pod.metadata.annotations.as_ref().and_then(|map| map.get(status::LISTENING_ANNOTATION));
    let Some(ports) = text.and_then(|text| serde_json::from_str::<Vec<crate::observed::Port>>(text).ok())
    else {
        return Gate::Closed;
    };
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let open = conditions.any(|condition| condition.type_ == status::LISTENING && condition.status == "True");
    match ports.is_empty() {
        true => Gate::Closed,
        false if open => Gate::Open(ports),
        false => Gate::LoopbackOnly(ports),
    }
}

/// Whether a container has to have its probes and its gate watched.
pub(super) fn is_probed(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let sidecar = spec.init_containers.iter().flatten().any(|c| c.name == name && plan::is_sidecar(c));
    sidecar || spec.containers.iter().any(|c| c.name == name)
}

/// How long ago `since` was.
pub(super) fn since(since: Instant, now: Instant) -> Duration {
    now.saturating_duration_since(since)
}

/// Whether a status tells of this run while it ran. One from before its start says `started: false`, which without a
/// startup probe nobody would ever correct.
fn is_of_run(told: &ContainerStatus, attempt: u32) -> bool {
    let runs = told.state.as_ref().is_some_and(|state| state.running.is_some());
    runs && i64::from(told.restart_count) == i64::from(attempt)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerStateRunning, ContainerStateWaiting};

    use super::*;

    #[test]
    fn a_status_from_before_the_start_says_nothing_of_the_run() {
        let status = |state, restart_count| ContainerStatus {
            state: Some(state),
            restart_count,
            started: Some(false),
            ..ContainerStatus::default()
        };
        let waiting =
            ContainerState { waiting: Some(ContainerStateWaiting::default()), ..ContainerState::default() };
        let running =
            ContainerState { running: Some(ContainerStateRunning::default()), ..ContainerState::default() };
        assert!(!is_of_run(&status(waiting, 0), 0), "the daemon died between start and status");
        assert!(is_of_run(&status(running.clone(), 1), 1));
        assert!(!is_of_run(&status(running, 0), 1), "of an earlier run");
    }
}
