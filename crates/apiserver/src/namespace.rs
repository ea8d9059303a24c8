//! The life of Namespaces: nothing is created in one that is missing or ends.

use axum::body::Body;
use http::{Response, StatusCode};
use resources::kind::{Deletion, Kind};
use resources::status::{Cause, Status, Target};
use serde_json::{Value, json};

use crate::handle::Call;
use crate::path::Place;
use crate::update::{self, Change};
use crate::{Api, decode, meta, object};

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

/// Takes finalizers from `spec`; with the last one the Namespace goes.
pub(crate) async fn finalize(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let options = call.write_options("UpdateOptions")?;
    let sent = decode::object(place.kind, call.body_format()?, body, options.validation, &mut call.warnings)?;
    meta::match_name(&sent, &place.name)?;
    let finalizers = sent.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
    let mut transform = |live: Option<&Value>, _: &mut Vec<String>| {
        let mut new = live.cloned().ok_or_else(|| Status::not_found(place.target()))?;
        let Some(map) = new.as_object_mut() else { return Ok(new) };
        let spec = map.entry("spec").or_insert_with(|| json!({}));
        if finalizers.as_array().is_some_and(Vec::is_empty) {
            if let Some(spec) = spec.as_object_mut() {
                spec.remove("finalizers");
            }
        } else {
            spec["finalizers"] = finalizers.clone();
        }
        object::set(&mut new, "resourceVersion", object::get(&sent, "resourceVersion").clone());
        Ok(new)
    };
    let change = Change { place, options: &options, creates: false, uid_is_precondition: true };
    let (written, _) = update::run(api, &change, &mut call.warnings, &mut transform).await?;
    written.respond(call.accepted, StatusCode::OK, place.kind, api.now())
}
