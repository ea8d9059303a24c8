//! Node: a machine that runs Pods.

use serde_json::Value;

use super::pod::tolerations;
use super::{names, tree, wire};
use crate::field::Error;
use crate::kind::{self, Cell, Column, Kind, Scope, Subresource};

pub static KIND: Kind = Kind {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    scope: Scope::Cluster,
    schema: "io.k8s.api.core.v1.Node",
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::new(
            "Status",
            "string",
            "Ready or not, and whether new Pods may come",
            Cell::Fn(|o, _| status(o).into()),
        ),
        Column::new("Roles", "string", "Roles from the node's labels", Cell::Fn(|o, _| roles(o).into())),
        Column::AGE,
        Column::new(
            "Version",
            "string",
            "Version of its node agent",
            Cell::Pointer("/status/nodeInfo/kubeletVersion"),
        ),
        Column::new(
            "Internal-IP",
            "string",
            "Address within the cluster",
            Cell::Fn(|o, _| address(o, "InternalIP").into()),
        )
        .wide(),
        Column::new(
            "External-IP",
            "string",
            "Address from outside",
            Cell::Fn(|o, _| address(o, "ExternalIP").into()),
        )
        .wide(),
        Column::new("OS-Image", "string", "Operating system", Cell::Fn(|o, _| known(o, "osImage").into()))
            .wide(),
        Column::new("Kernel-Version", "string", "Kernel", Cell::Fn(|o, _| kernel(o).into())).wide(),
        Column::new(
            "Container-Runtime",
            "string",
            "Container runtime",
            Cell::Fn(|o, _| known(o, "containerRuntimeVersion").into()),
        )
        .wide(),
    ],
    default,
    // A Node may be created with a status: it is what its agent already knows.
    prepare: |object, old| {
        if old.is_some() {
            kind::prepare_status_kept(object, old);
        }
    },
    validate,
    validate_status: |new, old| update(new, old),
    selectable_fields: &[("spec.unschedulable", |o| tree::bool(o, "/spec/unschedulable").to_string())],
    ..Kind::EMPTY
};

fn default(object: &mut Value) {
    wire::canonical(KIND.schema, object);
    if let Some(status) = object.get_mut("status")
        && tree::get(status, "allocatable").is_null()
        && let Some(capacity) = status.get("capacity").cloned()
    {
        tree::set(status, "allocatable", capacity);
    }
    if let Some(spec) = object.get_mut("spec") {
        let first = tree::at(spec, "/podCIDRs/0").clone();
        let single = tree::get(spec, "podCIDR").clone();
        match (single.is_null(), first.is_null()) {
            (false, true) => tree::set(spec, "podCIDRs", vec![single]),
            (true, false) => tree::set(spec, "podCIDR", first),
            _ => {}
        }
    }
}

fn status(object: &Value) -> String {
    let ready = tree::list(object, "/status/conditions").iter().find(|c| tree::str(c, "/type") == "Ready");
    let mut text = match ready.map(|c| tree::str(c, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if tree::bool(object, "/spec/unschedulable") {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(object: &Value) -> String {
    let mut roles: Vec<&str> = tree::entries(object, "/metadata/labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn address<'a>(object: &'a Value, kind: &str) -> &'a str {
    tree::list(object, "/status/addresses")
        .iter()
        .find(|a| tree::str(a, "/type") == kind)
        .map_or("<none>", |a| tree::str(a, "/address"))
}

fn known<'a>(object: &'a Value, key: &str) -> &'a str {
    match tree::get(tree::at(object, "/status/nodeInfo"), key).as_str() {
        None | Some("") => "<unknown>",
        Some(text) => text,
    }
}

fn kernel(object: &Value) -> String {
    let kernel = known(object, "kernelVersion");
    match tree::str(object, "/status/nodeInfo/architecture") {
        "" => kernel.to_owned(),
        architecture => format!("{kernel} ({architecture})"),
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    taints(object, &mut errors);
    if let Some(old) = old {
        errors.extend(update(object, old));
    }
    errors
}

fn taints(object: &Value, errors: &mut Vec<Error>) {
    let mut seen = Vec::new();
    for (i, taint) in tree::list(object, "/spec/taints").iter().enumerate() {
        let path = format!("metadata.taints[{i}]");
        let (key, value, effect) =
            (tree::str(taint, "/key"), tree::str(taint, "/value"), tree::str(taint, "/effect"));
        names::qualified(errors, &format!("{path}.key"), key);
        names::report(errors, &format!("{path}.value"), value, names::label_value_problems(value));
        tolerations::effect(errors, &format!("{path}.effect"), effect, false);
        if seen.contains(&(key, effect)) {
            errors.push(Error::duplicate(path, taint.clone()));
        }
        seen.push((key, effect));
    }
}

fn update(new: &Value, old: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    taints(new, &mut errors);
    let mut seen: Vec<&Value> = Vec::new();
    for (i, address) in tree::list(new, "/status/addresses").iter().enumerate() {
        if seen.contains(&address) {
            errors.push(Error::duplicate(format!("status.addresses[{i}]"), address.clone()));
        }
        seen.push(address);
    }
    let cidrs = tree::list(old, "/spec/podCIDRs");
    if !cidrs.is_empty() && cidrs != tree::list(new, "/spec/podCIDRs") {
        errors.push(Error::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let provider = tree::str(old, "/spec/providerID");
    if !provider.is_empty() && provider != tree::str(new, "/spec/providerID") {
        errors.push(Error::forbidden(
            "spec.providerID",
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    errors
}
