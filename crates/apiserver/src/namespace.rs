//! The life of Namespaces: nothing is created in one that is missing or ends.

use resources::kind::{Deletion, Kind};
use resources::status::{Cause, Status, Target};
use serde_json::Value;

use crate::Api;

/// Namespaces that cannot be deleted.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Whether an object may be created in a namespace.
pub(crate) fn admit(api: &Api, kind: &Kind, namespace: &str, name: &str) -> Result<(), Status> {
    if !kind.namespaced() {
        return Ok(());
    }
    let target = Target { group: "", resource: "namespaces", name: namespace };
    let entry =
        api.store.get(&format!("/core/namespaces/{namespace}")).ok_or_else(|| Status::not_found(target))?;
    let stored: Value = serde_json::from_slice(&entry.value)
        .map_err(|error| Status::internal(format!("a stored Namespace cannot be read: {error}")))?;
    if stored.pointer("/status/phase").and_then(Value::as_str) != Some("Terminating") {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut status = Status::forbidden(Target { group: kind.group, resource: kind.plural, name }, &why);
    if let Some(details) = &mut status.details {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        });
    }
    Err(status)
}

/// Whether an object may be deleted.
pub(crate) fn admit_delete(kind: &Kind, name: &str) -> Result<(), Status> {
    if !matches!(kind.deletion, Deletion::SpecFinalizers) || !IMMORTAL.contains(&name) {
        return Ok(());
    }
    let target = Target { group: kind.group, resource: kind.plural, name };
    Err(Status::forbidden(target, "this namespace may not be deleted"))
}
