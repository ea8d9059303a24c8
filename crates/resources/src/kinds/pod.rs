//! Pod: containers that run together.

use serde_json::{Value, json};

use super::{tree, wire};
use crate::kind::{self, Deletion, Generation, Kind, Subresource};

mod cells;
mod container;
pub mod defaults;
mod env;
mod probe;
mod quality;
mod security;
pub mod tolerations;
mod update;
pub mod validate;
mod volume;
pub mod warnings;

pub static KIND: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Pod",
    subresources: &[
        Subresource::Attach,
        Subresource::Binding,
        Subresource::EphemeralContainers,
        Subresource::Eviction,
        Subresource::Exec,
        Subresource::Log,
        Subresource::PortForward,
        Subresource::Resize,
        Subresource::Status,
    ],
    columns: cells::COLUMNS,
    row_condition: cells::over,
    generation: Generation::Spec,
    deletion: Deletion::Graceful(grace_seconds),
    default: defaults::pod,
    prepare,
    prepare_status,
    validate: validate::pod,
    validate_status: |_, _| Vec::new(),
    warnings: warnings::pod,
    selectable_fields: &[
        ("spec.nodeName", |o| tree::str(o, "/spec/nodeName").to_owned()),
        ("spec.restartPolicy", |o| tree::str(o, "/spec/restartPolicy").to_owned()),
        ("spec.schedulerName", |o| tree::str(o, "/spec/schedulerName").to_owned()),
        ("spec.serviceAccountName", |o| tree::str(o, "/spec/serviceAccountName").to_owned()),
        ("spec.hostNetwork", |o| tree::bool(o, "/spec/hostNetwork").to_string()),
        ("status.phase", |o| tree::str(o, "/status/phase").to_owned()),
        ("status.podIP", |o| tree::str(o, "/status/podIPs/0/ip").to_owned()),
        ("status.podIPs", |o| tree::str(o, "/status/podIPs/0/ip").to_owned()),
        ("status.nominatedNodeName", |o| tree::str(o, "/status/nominatedNodeName").to_owned()),
    ],
    reset_fields_status: &["spec", "metadata.deletionTimestamp", "metadata.ownerReferences"],
    delete_returns_object: true,
    ..Kind::EMPTY
};

/// What the caller asks for, else what the spec says; nobody waits for a Pod that runs nowhere or has ended.
fn grace_seconds(pod: &Value, requested: Option<i64>) -> i64 {
    let scheduled = !tree::str(pod, "/spec/nodeName").is_empty();
    let ended = matches!(tree::str(pod, "/status/phase"), "Failed" | "Succeeded");
    if !scheduled || ended {
        return 0;
    }
    let seconds = requested.or(tree::at(pod, "/spec/terminationGracePeriodSeconds").as_i64()).unwrap_or(0);
    if seconds < 0 { 1 } else { seconds }
}

fn prepare(pod: &mut Value, old: Option<&Value>) {
    match old {
        None => {
            let mut status = json!({"phase": "Pending", "qosClass": quality::class(pod)});
            if !tree::list(pod, "/spec/schedulingGates").is_empty() {
                status["conditions"] = json!([{
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "SchedulingGated",
                    "message": "Scheduling is blocked due to non-empty scheduling gates",
                    "lastProbeTime": null,
                    "lastTransitionTime": tree::at(pod, "/metadata/creationTimestamp"),
                }]);
            }
            tree::set(pod, "status", status);
            admit(pod);
        }
        Some(old) => kind::prepare_status_kept(pod, Some(old)),
    }
    wire::canonical(KIND.schema, pod);
}

/// What kube-apiserver's default admission adds to a new Pod: priority (there are no PriorityClasses but the two built
/// in), and how long it stays on a node that is not ready or cannot be reached.
fn admit(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec") else { return };
    if tree::get(spec, "priority").is_null() {
        let priority = match tree::str(spec, "/priorityClassName") {
            "system-node-critical" => 2_000_001_000,
            "system-cluster-critical" => 2_000_000_000,
            _ => 0,
        };
        tree::set(spec, "priority", priority);
    }
    tree::fill(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerations::add_defaults(spec);
}

/// Through `/status` only the status changes; owners cannot be lost there, nor the class that was set on creation.
fn prepare_status(pod: &mut Value, old: &Value) {
    kind::prepare_status_only(pod, old);
    let before = tree::get(old, "metadata");
    if let Some(meta) = pod.get_mut("metadata") {
        for key in ["ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            tree::take_from(meta, before, key);
        }
    }
    if let Some(status) = tree::child_mut(pod, "status")
        && tree::str(status, "/qosClass").is_empty()
    {
        tree::take_from(status, tree::get(old, "status"), "qosClass");
    }
    wire::canonical(KIND.schema, pod);
}
