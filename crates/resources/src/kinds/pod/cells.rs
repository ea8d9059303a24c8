//! The cells of `kubectl get pods`: one word for the state of all containers, how many are ready, how often they
//! were restarted.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Cell, Column};
use crate::kinds::tree;
use crate::table;

pub const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::new(
        "Ready",
        "string",
        "Containers that are ready, of all",
        Cell::Fn(|o, _| summary(o).ready().into()),
    ),
    Column::new(
        "Status",
        "string",
        "State of all containers in a word",
        Cell::Fn(|o, _| summary(o).reason.into()),
    ),
    Column::new(
        "Restarts",
        "string",
        "How often containers were restarted, and when last",
        Cell::Fn(|o, now| summary(o).restarts(now).into()),
    ),
    Column::AGE,
    Column::new("IP", "string", "Address", Cell::Fn(|o, _| or_none(tree::str(o, "/status/podIPs/0/ip"))))
        .wide(),
    Column::new("Node", "string", "Where it runs", Cell::Fn(|o, _| or_none(tree::str(o, "/spec/nodeName"))))
        .wide(),
    Column::new(
        "Nominated Node",
        "string",
        "Where it may run once others have left",
        Cell::Fn(|o, _| or_none(tree::str(o, "/status/nominatedNodeName"))),
    )
    .wide(),
    Column::new(
        "Readiness Gates",
        "string",
        "Conditions that must hold besides",
        Cell::Fn(|o, _| gates(o).into()),
    )
    .wide(),
];

/// Says that a Pod is over, and how it ended.
pub fn over(pod: &Value) -> Option<Value> {
    let (phase, message) = match tree::str(pod, "/status/phase") {
        phase @ "Succeeded" => (phase, "The pod has completed successfully."),
        phase @ "Failed" => (phase, "The pod failed."),
        _ => return None,
    };
    Some(json!({"type": "Completed", "status": "True", "reason": phase, "message": message}))
}

fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn ready(&self) -> String {
        format!("{}/{}", self.ready, self.total)
    }

    fn restarts(&self, now: Timestamp) -> String {
        match self.last_restart {
            Some(last) if self.restarts != 0 => {
                let seconds = now.as_second() - last.as_second();
                format!("{} ({} ago)", self.restarts, table::human_duration(seconds))
            }
            _ => self.restarts.to_string(),
        }
    }

    fn count(&mut self, container: &Value) {
        self.restarts += tree::int(container, "/restartCount");
        let finished = tree::str(container, "/lastState/terminated/finishedAt").parse::<Timestamp>().ok();
        self.last_restart = self.last_restart.max(finished);
    }
}

/// An init container that stays beside the others.
fn is_sidecar(pod: &Value, name: &str) -> bool {
    tree::list(pod, "/spec/initContainers")
        .iter()
        .any(|c| tree::str(c, "/name") == name && tree::str(c, "/restartPolicy") == "Always")
}

fn condition(pod: &Value, kind: &str) -> bool {
    tree::list(pod, "/status/conditions")
        .iter()
        .any(|c| tree::str(c, "/type") == kind && tree::str(c, "/status") == "True")
}

fn summary(pod: &Value) -> Summary {
    let phase = tree::str(pod, "/status/phase");
    let own = tree::str(pod, "/status/reason");
    let sidecars = tree::list(pod, "/spec/initContainers")
        .iter()
        .filter(|c| tree::str(c, "/restartPolicy") == "Always")
        .count();
    let mut out = Summary {
        ready: 0,
        total: tree::list(pod, "/spec/containers").len() + sidecars,
        reason: if own.is_empty() { phase } else { own }.to_owned(),
        restarts: 0,
        last_restart: None,
    };
    let gated = tree::list(pod, "/status/conditions")
        .iter()
        .any(|c| tree::str(c, "/type") == "PodScheduled" && tree::str(c, "/reason") == "SchedulingGated");
    if gated {
        "SchedulingGated".clone_into(&mut out.reason);
    }
    let mut sidecar_restarts = empty();
    let initialising = init_containers(pod, &mut out, &mut sidecar_restarts);
    if !initialising || condition(pod, "Initialized") {
        out.restarts = sidecar_restarts.restarts;
        out.last_restart = sidecar_restarts.last_restart;
        containers(pod, &mut out);
    }
    if tree::has(pod, "/metadata/deletionTimestamp") {
        if own == "NodeLost" {
            "Unknown".clone_into(&mut out.reason);
        } else if !matches!(phase, "Failed" | "Succeeded") {
            "Terminating".clone_into(&mut out.reason);
        }
    }
    out
}

fn empty() -> Summary {
    Summary { ready: 0, total: 0, reason: String::new(), restarts: 0, last_restart: None }
}

/// Walks the init containers up to the first that is not done; true when there is one.
fn init_containers(pod: &Value, out: &mut Summary, sidecars: &mut Summary) -> bool {
    let all = tree::list(pod, "/spec/initContainers").len();
    for (i, container) in tree::list(pod, "/status/initContainerStatuses").iter().enumerate() {
        out.count(container);
        let sidecar = is_sidecar(pod, tree::str(container, "/name"));
        if sidecar {
            sidecars.count(container);
        }
        let terminated = tree::at(container, "/state/terminated");
        if !terminated.is_null() && tree::int(terminated, "/exitCode") == 0 {
            continue;
        }
        if sidecar && tree::bool(container, "/started") {
            out.ready += usize::from(tree::bool(container, "/ready"));
            continue;
        }
        let waiting = tree::str(container, "/state/waiting/reason");
        out.reason = if !terminated.is_null() {
            format!("Init:{}", ended(terminated))
        } else if !waiting.is_empty() && waiting != "PodInitializing" {
            format!("Init:{waiting}")
        } else {
            format!("Init:{i}/{all}")
        };
        return true;
    }
    false
}

fn ended(terminated: &Value) -> String {
    match (tree::str(terminated, "/reason"), tree::int(terminated, "/signal")) {
        ("", 0) => format!("ExitCode:{}", tree::int(terminated, "/exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn containers(pod: &Value, out: &mut Summary) {
    let mut running = false;
    let mut failure = String::new();
    for container in tree::list(pod, "/status/containerStatuses").iter().rev() {
        out.count(container);
        let waiting = tree::str(container, "/state/waiting/reason");
        let terminated = tree::at(container, "/state/terminated");
        if !waiting.is_empty() {
            waiting.clone_into(&mut out.reason);
        } else if !terminated.is_null() {
            out.reason = ended(terminated);
            if tree::int(terminated, "/exitCode") != 0 {
                failure.clone_from(&out.reason);
            }
        } else if tree::bool(container, "/ready") && tree::has(container, "/state/running") {
            running = true;
            out.ready += 1;
        }
    }
    // A Pod of which something still runs is not over.
    if out.reason == "Completed" {
        if running && condition(pod, "Ready") {
            "Running".clone_into(&mut out.reason);
        } else if !failure.is_empty() {
            out.reason = failure;
        } else if running {
            "NotReady".clone_into(&mut out.reason);
        }
    }
}

fn gates(pod: &Value) -> String {
    let gates = tree::list(pod, "/spec/readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let open = gates.iter().filter(|g| condition(pod, tree::str(g, "/conditionType"))).count();
    format!("{open}/{}", gates.len())
}
