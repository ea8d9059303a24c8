//! Why a Pod does not get ready, in the words of its status; and what its log and events add.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ContainerStatus, Event, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, LogParams},
};

use super::{LISTENING_GATE, ports};

/// Log lines that explain a failure.
const LOG_LINES: i64 = 10;
/// Starts of a program after which its ends are no accident.
const RESTARTS_MAX: i32 = 2;

/// How long something that is usually passing may last before it counts.
pub(super) const PASSING: Duration = Duration::from_secs(3);
/// The same for a node whose disk was nearly full: the taint outlives that by some ten seconds.
const PASSING_DISK: Duration = Duration::from_secs(30);
/// The taint of such a node.
const DISK_PRESSURE: &str = "node.kubernetes.io/disk-pressure";

/// A reason for which waiting is in vain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    pub message: String,
    pub hint: Option<String>,
    /// The Pod whose log and events tell more.
    pub pod: Option<String>,
    /// It may pass by itself and counts only after this time.
    pub passes_within: Option<Duration>,
    /// The container ran before, and that run's log counts.
    pub restarted: bool,
}

/// Whether a Pod takes requests.
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.0 == "True")
}

/// Status, reason and message of a Pod's condition.
fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((
        &found.status,
        found.reason.as_deref().unwrap_or_default(),
        found.message.as_deref().unwrap_or_default(),
    ))
}

/// What a Pod is at, in a few words.
pub fn doing(pod: &Pod) -> String {
    let status = container(pod);
    let state = status.and_then(|status| status.state.as_ref());
    let waiting =
        state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
    if let Some(reason) = waiting {
        return match reason {
            "ContainerCreating" | "PodInitializing" => "starting".to_owned(),
            other => other.to_owned(),
        };
    }
    match state {
        Some(state) if state.running.is_some() => {
            let gate = condition(pod, LISTENING_GATE).is_some_and(|condition| condition.0 == "True");
            if gate { "running, not ready".to_owned() } else { "running, does not listen yet".to_owned() }
        }
        Some(state) if state.terminated.is_some() => "ended".to_owned(),
        _ => "scheduling".to_owned(),
    }
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

/// Why this Pod will not get ready, if that is known.
pub fn of_pod(pod: &Pod) -> Option<Trouble> {
    let named = |trouble: Trouble| Trouble { pod: Some(pod.name_any()), ..trouble };
    if let Some(("False", "Unschedulable", message)) = condition(pod, "PodScheduled") {
        let (within, hint) = match message.contains(DISK_PRESSURE) {
            true => (PASSING_DISK, "the node's disk is nearly full: free some of it, then run this again"),
            false => (PASSING, "ask for less (--cpu, --memory), or make room: gantry ps, gantry down NAME"),
        };
        let message = format!("no room for it: {message}");
        let (hint, passes_within) = (Some(hint.to_owned()), Some(within));
        return Some(named(Trouble { message, hint, passes_within, ..Trouble::default() }));
    }
    if let Some(trouble) = container(pod).and_then(of_container) {
        return Some(named(trouble));
    }
    if let Some(("False", "LoopbackOnly", message)) = condition(pod, LISTENING_GATE) {
        let hint = match ports::all_listening(pod).first() {
            Some(first) => {
                format!("listen on \":{}\" instead of \"{}:{}\"", first.port, first.address, first.port)
            }
            None => "listen on all addresses, for example \":8080\"".to_owned(),
        };
        let message = if message.is_empty() {
            "it listens on its own loopback only".to_owned()
        } else {
            message.to_owned()
        };
        let (hint, passes_within) = (Some(hint), Some(PASSING));
        return Some(named(Trouble { message, hint, passes_within, ..Trouble::default() }));
    }
    None
}

fn of_container(status: &ContainerStatus) -> Option<Trouble> {
    let state = status.state.as_ref()?;
    let ended = state.terminated.as_ref();
    let ended = ended.or_else(|| status.last_state.as_ref().and_then(|state| state.terminated.as_ref()));
    let restarted = state.terminated.is_none() && ended.is_some();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let said = format!("{reason}: {}", text(&waiting.message));
        match reason {
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName"
            | "ImageInspectError" => {
                let hint = "check the reference: gantry image ls".to_owned();
                return Some(Trouble {
                    message: format!("its image cannot be had: {said}"),
                    hint: Some(hint),
                    ..Trouble::default()
                });
            }
            "CreateContainerError" | "CreateContainerConfigError" | "RunContainerError" => {
                return Some(Trouble {
                    message: format!("its container cannot be made: {said}"),
                    ..Trouble::default()
                });
            }
            _ => {}
        }
    }
    let ended = ended?;
    if matches!(ended.reason.as_deref(), Some("StartError" | "ContainerCannotRun")) {
        let message = format!("it cannot be started: {}", text(&ended.message));
        return Some(Trouble { message, ..Trouble::default() });
    }
    if ended.exit_code == 0 {
        return Some(Trouble {
            message: "it ended with 0, so it is not a service".to_owned(),
            hint: Some("a program that ends is run by: gantry run".to_owned()),
            restarted,
            ..Trouble::default()
        });
    }
    if ended.reason.as_deref() == Some("OOMKilled") {
        let hint = "give it more: gantry up … --memory 512Mi".to_owned();
        return Some(Trouble {
            message: "it was killed: it needs more memory than its limit".to_owned(),
            hint: Some(hint),
            restarted,
            ..Trouble::default()
        });
    }
    let backs_off =
        state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff");
    if backs_off || status.restart_count >= RESTARTS_MAX {
        let how = match (ended.signal, ended.exit_code) {
            (Some(signal), _) if signal > 0 => format!("was ended by signal {signal}"),
            (_, code) => format!("ended with exit code {code}"),
        };
        let message = match status.restart_count {
            ..=1 => format!("it {how}"),
            count => format!("it {how}, {count} times"),
        };
        return Some(Trouble { message, restarted, ..Trouble::default() });
    }
    None
}

/// Why the controller has given up.
pub fn of_deployment(deployment: &Deployment) -> Option<Trouble> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let find = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
    if let Some(condition) = find("ReplicaFailure").filter(|condition| condition.status == "True") {
        let message = condition.message.clone().unwrap_or_default();
        return Some(Trouble { message: format!("no Pod can be made: {message}"), ..Trouble::default() });
    }
    let progressing = find("Progressing").filter(|condition| condition.status == "False")?;
    let exceeded = progressing.reason.as_deref() == Some("ProgressDeadlineExceeded");
    exceeded.then(|| Trouble { message: "the progress deadline has passed".to_owned(), ..Trouble::default() })
}

/// What a Pod says that never got ready while it ran.
pub fn of_silence(pod: &Pod, seconds: u64) -> Trouble {
    let listens = condition(pod, LISTENING_GATE);
    let (message, hint) = match listens {
        Some(("True", ..)) => {
            let why = condition(pod, "ContainersReady").map(|c| c.2).filter(|text| !text.is_empty());
            (format!("not ready after {seconds} s: {}", why.unwrap_or("its readiness probe fails")), None)
        }
        _ => {
            let message = format!("it listens on no port after {seconds} s");
            (message, Some("listen on $PORT (8080), or give it longer: gantry up … --timeout 5m".to_owned()))
        }
    };
    let restarted = container(pod).is_some_and(|status| {
        status.restart_count > 0 && status.state.as_ref().is_some_and(|s| s.running.is_none())
    });
    Trouble { message, hint, pod: Some(pod.name_any()), restarted, ..Trouble::default() }
}

/// The last lines of the Pod's log and its warnings, to be shown before the error.
pub async fn tell(client: &Client, namespace: &str, trouble: &Trouble) -> String {
    let Some(name) = &trouble.pod else { return String::new() };
    let mut told = String::new();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut log = String::new();
    // The run that failed is the one before, unless the Pod never ran again.
    for previous in [trouble.restarted, false] {
        let parameters = LogParams { tail_lines: Some(LOG_LINES), previous, ..LogParams::default() };
        log = pods.logs(name, &parameters).await.unwrap_or_default();
        if !log.trim().is_empty() {
            break;
        }
    }
    if !log.trim().is_empty() {
        told.push_str(&format!("last lines of {name}:\n"));
        log.lines().for_each(|line| told.push_str(&format!("  {line}\n")));
    }
    let events: Api<Event> = Api::namespaced(client.clone(), namespace);
    let parameters = ListParams::default().fields(&format!("involvedObject.name={name}"));
    let events = events.list(&parameters).await.map(|list| list.items).unwrap_or_default();
    let mut warnings: Vec<&Event> =
        events.iter().filter(|event| event.type_.as_deref() == Some("Warning")).collect();
    warnings.sort_by_key(|event| event.metadata.creation_timestamp.clone().map(|time| time.0));
    for event in warnings.iter().rev().take(3).rev() {
        let (reason, message) =
            (event.reason.as_deref().unwrap_or_default(), event.message.as_deref().unwrap_or_default());
        told.push_str(&format!("event {reason}: {message}\n"));
    }
    told
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(status: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "x-1" }, "status": status })).unwrap()
    }

    fn with(state: Value, last: Value, restarts: i32) -> Pod {
        pod(json!({ "containerStatuses": [{ "name": "x", "image": "", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last }] }))
    }

    #[test]
    fn one_crash_is_forgiven_and_a_loop_is_not() {
        let crash = json!({ "terminated": { "exitCode": 3, "reason": "Error" } });
        assert_eq!(of_pod(&with(crash.clone(), json!({}), 0)), None);
        let waiting = json!({ "waiting": { "reason": "CrashLoopBackOff" } });
        let trouble = of_pod(&with(waiting, crash, 2)).unwrap();
        assert_eq!(trouble.message, "it ended with exit code 3, 2 times");
        assert!(trouble.restarted);
        assert_eq!(trouble.pod.as_deref(), Some("x-1"));
    }

    #[test]
    fn reasons_are_told_with_a_way_out() {
        let waiting =
            |reason: &str| with(json!({ "waiting": { "reason": reason, "message": "why" } }), json!({}), 0);
        assert!(of_pod(&waiting("ErrImagePull")).unwrap().message.contains("ErrImagePull: why"));
        assert!(of_pod(&waiting("RunContainerError")).unwrap().message.contains("why"));
        assert_eq!(of_pod(&waiting("ContainerCreating")), None);
        assert_eq!(doing(&waiting("ContainerCreating")), "starting");
        let killed = json!({ "terminated": { "exitCode": 137, "reason": "OOMKilled" } });
        assert!(of_pod(&with(killed, json!({}), 0)).unwrap().hint.unwrap().contains("--memory"));
        let full = |why: &str| {
            let condition = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why });
            of_pod(&pod(json!({ "conditions": [condition] }))).unwrap()
        };
        assert_eq!(full("cpu").passes_within, Some(PASSING));
        let disk = full(
            "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }.",
        );
        assert_eq!(disk.passes_within, Some(PASSING_DISK));
        assert!(disk.hint.unwrap().contains("disk"));
        let silent = of_silence(&with(json!({ "running": {} }), json!({}), 0), 60);
        assert_eq!(silent.message, "it listens on no port after 60 s");
    }
}
