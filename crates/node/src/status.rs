//! A Pod's status as kubelet would write it, from what was observed. Pure.
//!
//! The result is a strategic merge patch that names only the conditions this node owns, so that the proxies',
//! the scheduler's and anyone else's stay.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodSpec};
use serde_json::{Map, Value, json};

use crate::limits;
use crate::observed::{Clock, Container, Ended, Evicted, Gate, Observed, State, Step};
use crate::plan::{containers, initialized, is_sidecar, policy};

pub use contract::name::{LISTENING_ANNOTATION, LISTENING_CONDITION as LISTENING};

/// How long `ErrImagePull` is shown before it becomes `ImagePullBackOff`.
pub const PULL_ERROR_SHOWN: std::time::Duration = std::time::Duration::from_secs(2);

/// A condition of this node's.
struct Condition {
    kind: &'static str,
    status: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

/// The status to be written, and what it amounts to.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// `{"metadata": …, "status": …}`.
    pub patch: Value,
    /// Whether it says that the Pod is ready.
    pub ready: bool,
    /// Whether it says that every container has ended.
    pub ended: bool,
}

/// The time as the API writes it.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The status of `pod`.
pub fn of(pod: &Pod, observed: &Observed, host_ip: &str, clock: Clock) -> Status {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let phase = phase(pod, spec, observed);
    let mut status = Map::new();
    status.insert("phase".to_owned(), json!(phase));
    if let Some(generation) = pod.metadata.generation {
        status.insert("observedGeneration".to_owned(), json!(generation));
    }
    let old = pod.status.as_ref();
    let start = old.and_then(|status| status.start_time.as_ref()).map_or(clock.wall, |time| time.0);
    status.insert("startTime".to_owned(), json!(time(start)));
    status.insert("hostIP".to_owned(), json!(host_ip));
    status.insert("hostIPs".to_owned(), json!([{"ip": host_ip}]));
    let ip = observed.sandbox.done().map(|sandbox| sandbox.ip.to_string());
    if let Some(ip) = ip.or_else(|| old.and_then(|status| status.pod_ip.clone())) {
        status.insert("podIP".to_owned(), json!(ip));
        status.insert("podIPs".to_owned(), json!([{"ip": ip}]));
    }
    status.insert("qosClass".to_owned(), json!(limits::qos(pod).name()));
    let terminal = observed.terminal.as_ref();
    status.insert("reason".to_owned(), json!(terminal.and_then(|terminal| terminal.reason.clone())));
    status.insert("message".to_owned(), json!(terminal.and_then(|terminal| terminal.message.clone())));
    let (init, main): (Vec<_>, Vec<_>) = containers(spec, observed)
        .map(|(c, o, init)| (init, container(pod, spec, observed, c, o, init, clock)))
        .partition(|(init, _)| *init);
    let values = |list: Vec<(bool, Value)>| Value::Array(list.into_iter().map(|(_, value)| value).collect());
    if !init.is_empty() {
        status.insert("initContainerStatuses".to_owned(), values(init));
    }
    status.insert("containerStatuses".to_owned(), values(main));
    let (conditions, ready) = conditions(pod, spec, observed, phase);
    let written = conditions.iter().map(|condition| write_condition(pod, condition, clock)).collect();
    status.insert("conditions".to_owned(), Value::Array(written));
    let mut metadata = Map::new();
    metadata.insert("uid".to_owned(), json!(pod.metadata.uid));
    if let Some(text) = listening_annotation(&observed.gate) {
        metadata.insert("annotations".to_owned(), json!({LISTENING_ANNOTATION: text}));
    }
    Status { patch: json!({"metadata": metadata, "status": status}), ready, ended: observed.ended() }
}

fn listening_annotation(gate: &Gate) -> Option<String> {
    match gate {
        Gate::Closed => None,
        Gate::LoopbackOnly(ports) | Gate::Open(ports) => serde_json::to_string(ports).ok(),
    }
}

/// The Pod's phase, by kubelet's rules.
fn phase(pod: &Pod, spec: &PodSpec, observed: &Observed) -> &'static str {
    if let Some(terminal) = &observed.terminal
        && observed.ended()
    {
        return if terminal.succeeded { "Succeeded" } else { "Failed" };
    }
    let leaving = observed.ended() && (pod.metadata.deletion_timestamp.is_some() || observed.gone);
    if !initialized(spec, observed) {
        let failed = containers(spec, observed).any(|(_, container, init)| {
            init && matches!(&container.state, State::Exited(ended) if ended.code != 0)
        });
        return if leaving && failed { "Failed" } else { "Pending" };
    }
    let mut alive = 0;
    let mut waiting = 0;
    let mut failed = 0;
    for (_, container, _) in containers(spec, observed).filter(|(_, _, init)| !init) {
        match &container.state {
            State::Running(_) | State::Stopping { .. } => alive += 1,
            State::Waiting | State::Starting { .. } if container.last.is_none() => waiting += 1,
            State::Exited(ended) if ended.code != 0 => failed += 1,
            _ => {}
        }
    }
    match (waiting, alive) {
        (1.., _) => "Pending",
        (_, 1..) => "Running",
        _ if leaving && failed > 0 => "Failed",
        _ if leaving => "Succeeded",
        _ => "Running",
    }
}

fn container(
    pod: &Pod,
    spec: &PodSpec,
    observed: &Observed,
    own: &Spec,
    container: &Container,
    init: bool,
    clock: Clock,
) -> Value {
    let restarts = |ended: &Ended| {
        let over = observed.terminal.is_some() || pod.metadata.deletion_timestamp.is_some() || observed.gone;
        !over && policy(spec, own, init).restarts(ended)
    };
    let (state, last) = match &container.state {
        State::Running(run) | State::Stopping { run, .. } => {
            (json!({"running": {"startedAt": time(run.started_at)}}), container.last.as_ref())
        }
        State::Exited(ended) => {
            match waiting_again(pod, own, container, ended, clock).filter(|_| restarts(ended)) {
                Some(waiting) => (waiting, Some(ended)),
                None => (terminated(ended), container.last.as_ref()),
            }
        }
        State::Starting { .. } if container.last.is_some() => {
            (json!({"waiting": {"reason": "ContainerCreating"}}), container.last.as_ref())
        }
        State::Starting { .. } | State::Waiting => {
            (first_wait(spec, observed, own, container, init, clock), None)
        }
    };
    let last_state = last.map_or_else(|| json!({}), terminated);
    let ready = if init && !is_sidecar(own) {
        container.succeeded()
    } else {
        matches!(&container.state, State::Running(run) if run.started && run.ready && run.unhealthy.is_none())
            || matches!(&container.state, State::Stopping { run, .. } if run.started && run.ready && run.unhealthy.is_none())
    };
    let id = match &container.state {
        State::Running(run) | State::Stopping { run, .. } => run.id.as_str(),
        State::Exited(ended) => ended.id.as_str(),
        _ => container.last.as_ref().map_or("", |last| last.id.as_str()),
    };
    let restarts = match &container.state {
        State::Running(run) | State::Stopping { run, .. } => run.attempt,
        State::Starting { attempt } => *attempt,
        State::Exited(ended) => ended.attempt,
        State::Waiting => container.last.as_ref().map_or(0, |last| last.attempt),
    };
    let mut value = json!({
        "name": own.name,
        "image": own.image.clone().unwrap_or_default(),
        "imageID": container.image.done().map(|image| image.id.clone()).unwrap_or_default(),
        "state": state,
        "lastState": last_state,
        "ready": ready,
        "started": container.started(),
        "restartCount": restarts,
    });
    if !id.is_empty() {
        value["containerID"] = json!(format!("gantry://{id}"));
    }
    if value["imageID"] == "" {
        let lists =
            pod.status.iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses));
        if let Some(old) = lists.flatten().find(|old| old.name == own.name) {
            value["imageID"] = json!(old.image_id);
        }
    }
    value
}

fn terminated(ended: &Ended) -> Value {
    let mut value = json!({
        "exitCode": ended.code,
        "reason": ended.reason,
        "startedAt": ended.started_at.map(time),
        "finishedAt": time(ended.finished_at),
    });
    if let Some(signal) = ended.signal {
        value["signal"] = json!(signal);
    }
    if !ended.message.is_empty() {
        value["message"] = json!(ended.message);
    }
    if !ended.id.is_empty() {
        value["containerID"] = json!(format!("gantry://{}", ended.id));
    }
    json!({"terminated": value})
}

fn waiting(reason: &str, message: Option<String>) -> Value {
    let mut value = json!({"reason": reason});
    if let Some(message) = message {
        value["message"] = json!(message);
    }
    json!({"waiting": value})
}

/// Why a container that never ran does not.
fn first_wait(
    spec: &PodSpec,
    observed: &Observed,
    own: &Spec,
    container: &Container,
    init: bool,
    clock: Clock,
) -> Value {
    if let Some(trouble) = trouble(own, container, clock) {
        return trouble;
    }
    let sandbox = match &observed.sandbox {
        Step::Failed(trouble) => Some(trouble),
        _ => None,
    };
    let volumes = match &observed.volumes {
        Step::Failed(trouble) => Some(trouble),
        _ => None,
    };
    let message = sandbox.or(volumes).map(|trouble| trouble.message.clone());
    match init || initialized(spec, observed) {
        true => waiting("ContainerCreating", message),
        false => waiting("PodInitializing", message),
    }
}

fn trouble(own: &Spec, container: &Container, clock: Clock) -> Option<Value> {
    if let Some(trouble) = &container.config {
        return Some(waiting(&trouble.reason, Some(trouble.message.clone())));
    }
    let Step::Failed(trouble) = &container.image else { return None };
    let image = own.image.as_deref().unwrap_or_default();
    Some(match trouble.reason.as_str() {
        "ErrImagePull" if clock.now >= trouble.at + PULL_ERROR_SHOWN => waiting(
            "ImagePullBackOff",
            Some(format!("Back-off pulling image {image:?}: {}", trouble.message)),
        ),
        reason => waiting(reason, Some(trouble.message.clone())),
    })
}

/// Why a container that is to run again does not yet.
fn waiting_again(pod: &Pod, own: &Spec, container: &Container, ended: &Ended, clock: Clock) -> Option<Value> {
    container.backoff.waiting(clock.now)?;
    let meta = &pod.metadata;
    let mut message = format!(
        "back-off {} restarting failed container={} pod={}_{}({})",
        length(container.backoff.length()),
        own.name,
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
    );
    if ended.reason == "StartError" {
        message = format!("{}; {message}", ended.message);
    } else if ended.code == 0 {
        message.push_str(
            ": the program ended with exit code 0, but restartPolicy Always expects one that keeps running; \
             for a program that ends use `gantry run`, or restartPolicy OnFailure",
        );
    }
    Some(waiting("CrashLoopBackOff", Some(message)))
}

/// A duration as Go prints it: `10s`, `2m40s`.
pub fn length(duration: std::time::Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

fn conditions(pod: &Pod, spec: &PodSpec, observed: &Observed, phase: &str) -> (Vec<Condition>, bool) {
    let sandbox = observed.sandbox.done().is_some() && observed.teardown == Step::Pending;
    let mut list =
        vec![Condition { kind: "PodReadyToStartContainers", status: sandbox, reason: None, message: None }];
    let incomplete: Vec<&str> = containers(spec, observed)
        .filter(|(own, container, init)| {
            *init && !if is_sidecar(own) { container.started() } else { container.succeeded() }
        })
        .map(|(own, _, _)| own.name.as_str())
        .collect();
    let through = initialized(spec, observed);
    list.push(Condition {
        kind: "Initialized",
        status: through,
        reason: match (through, phase) {
            (true, "Succeeded") => Some("PodCompleted"),
            (true, _) => None,
            (false, _) => Some("ContainersNotInitialized"),
        },
        message: (!through).then(|| format!("containers with incomplete status: [{}]", incomplete.join(" "))),
    });
    let unready = unready(spec, observed);
    let (all, reason, message) = match phase {
        "Succeeded" => (false, Some("PodCompleted"), None),
        "Failed" => (false, Some("PodFailed"), None),
        _ if unready.is_empty() => (true, None, None),
        _ => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            (false, Some("ContainersNotReady"), Some(message))
        }
    };
    let gates = if all { gates(pod, spec, observed) } else { Vec::new() };
    let ready = all && gates.is_empty();
    list.push(Condition {
        kind: "Ready",
        status: ready,
        reason: if all && !ready { Some("ReadinessGatesNotReady") } else { reason },
        message: if all && !ready { Some(gates.join(", ")) } else { message.clone() },
    });
    list.push(Condition { kind: "ContainersReady", status: all, reason, message });
    let scheduled =
        pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == "PodScheduled");
    if !scheduled {
        list.push(Condition { kind: "PodScheduled", status: true, reason: None, message: None });
    }
    if let Some(terminal) = &observed.terminal
        && terminal.evicted == Some(Evicted::Pressure)
    {
        list.push(Condition {
            kind: "DisruptionTarget",
            status: true,
            reason: Some("TerminationByKubelet"),
            message: terminal.message.clone(),
        });
    }
    if spec.readiness_gates.iter().flatten().any(|gate| gate.condition_type == LISTENING) {
        list.push(listening(&observed.gate));
    }
    (list, ready)
}

fn unready<'a>(spec: &'a PodSpec, observed: &'a Observed) -> Vec<&'a str> {
    containers(spec, observed)
        .filter(|(own, _, init)| !init || is_sidecar(own))
        .filter(|(_, container, _)| {
            !container.run().is_some_and(|run| run.started && run.ready && run.unhealthy.is_none())
        })
        .map(|(own, _, _)| own.name.as_str())
        .collect()
}

/// What the readiness gates object to; the Listening gate counts as it is about to be written.
fn gates(pod: &Pod, spec: &PodSpec, observed: &Observed) -> Vec<String> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let mut objections = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let kind = gate.condition_type.as_str();
        let status = if kind == LISTENING {
            Some(if listening(&observed.gate).status { "True" } else { "False" })
        } else {
            conditions.iter().find(|condition| condition.type_ == kind).map(|c| c.status.as_str())
        };
        match status {
            Some("True") => {}
            Some(status) => {
                objections
                    .push(format!("the status of pod readiness gate {kind:?} is not \"True\", but {status}"));
            }
            None => {
                objections
                    .push(format!("corresponding condition of pod readiness gate {kind:?} does not exist."));
            }
        }
    }
    objections
}

fn listening(gate: &Gate) -> Condition {
    let (status, reason, message) = match gate {
        Gate::Open(_) => (true, Some("Listening"), None),
        Gate::Closed => {
            (false, Some("NotListening"), Some("the program does not listen on any port yet".to_owned()))
        }
        Gate::LoopbackOnly(ports) => {
            let first = ports.first();
            let (address, port) =
                first.map_or((String::new(), 0), |port| (port.address.to_string(), port.port));
            let message = format!(
                "the program listens on {address}:{port} only, which nobody outside its container reaches: let it \
                 listen on :{port} (all addresses) instead"
            );
            (false, Some("LoopbackOnly"), Some(message))
        }
    };
    Condition { kind: LISTENING, status, reason, message }
}

fn write_condition(pod: &Pod, condition: &Condition, clock: Clock) -> Value {
    let status = if condition.status { "True" } else { "False" };
    let old =
        pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).find(|c| c.type_ == condition.kind);
    let since = old.filter(|old| old.status == status).and_then(|old| old.last_transition_time.as_ref());
    let mut value = json!({
        "type": condition.kind,
        "status": status,
        "lastProbeTime": null,
        "lastTransitionTime": time(since.map_or(clock.wall, |since| since.0)),
        // Explicit nulls: a merge keeps what a patch does not name.
        "reason": condition.reason,
        "message": condition.message,
    });
    if let Some(generation) = pod.metadata.generation {
        value["observedGeneration"] = json!(generation);
    }
    value
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
