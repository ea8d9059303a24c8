//! Namespace: the scope of names; it is deleted when `spec.finalizers` is empty.

use serde_json::{Value, json};

use super::{names, tree, wire};
use crate::field;
use crate::kind::{Cell, Column, Deletion, Kind, Name, Scope, Subresource};

/// The finalizer that every Namespace starts with.
pub const FINALIZER: &str = "kubernetes";
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub static KIND: Kind = Kind {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    scope: Scope::Cluster,
    verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
    schema: "io.k8s.api.core.v1.Namespace",
    subresources: &[Subresource::Finalize, Subresource::Status],
    columns: &[
        Column::NAME,
        Column::new(
            "Status",
            "string",
            "Active, or Terminating while its objects go",
            Cell::Pointer("/status/phase"),
        ),
        Column::AGE,
    ],
    name: Name::Label,
    deletion: Deletion::SpecFinalizers,
    default,
    prepare,
    validate,
    validate_status,
    selectable_fields: &[
        ("name", |o| tree::str(o, "/metadata/name").to_owned()),
        ("status.phase", |o| tree::str(o, "/status/phase").to_owned()),
    ],
    delete_returns_object: true,
    ..Kind::EMPTY
};

fn default(object: &mut Value) {
    wire::canonical(KIND.schema, object);
    let name = tree::str(object, "/metadata/name").to_owned();
    if !name.is_empty()
        && let Some(meta) = tree::child_mut(object, "metadata")
        && let Some(labels) = tree::object_mut(meta, "labels")
    {
        labels.insert(NAME_LABEL.to_owned(), name.into());
    }
    if let Some(status) = tree::child_mut(object, "status") {
        tree::fill(status, "phase", "Active");
    }
}

fn prepare(object: &mut Value, old: Option<&Value>) {
    match old {
        None => {
            tree::set(object, "status", json!({"phase": "Active"}));
            let name = tree::str(object, "/metadata/name").to_owned();
            if let Some(meta) = tree::child_mut(object, "metadata")
                && let Some(labels) = tree::object_mut(meta, "labels")
            {
                labels.insert(NAME_LABEL.to_owned(), name.into());
            }
            let Some(spec) = tree::child_mut(object, "spec") else { return };
            let mut finalizers = tree::list(spec, "/finalizers").to_vec();
            if !finalizers.iter().any(|f| f == FINALIZER) {
                finalizers.push(FINALIZER.into());
            }
            tree::set(spec, "finalizers", finalizers);
        }
        Some(old) => {
            tree::take_from(object, old, "status");
            let finalizers = tree::at(old, "/spec/finalizers").clone();
            let Some(spec) = tree::child_mut(object, "spec") else { return };
            if finalizers.is_null() {
                tree::remove(spec, "finalizers");
            } else {
                tree::set(spec, "finalizers", finalizers);
            }
        }
    }
}

fn validate(object: &Value, _: Option<&Value>) -> Vec<field::Error> {
    let mut errors = Vec::new();
    for finalizer in tree::list(object, "/spec/finalizers") {
        let name = finalizer.as_str().unwrap_or_default();
        let path = "spec.finalizers".to_owned();
        names::qualified(&mut errors, &path, name);
        if !name.contains('/') && name != FINALIZER {
            errors.push(field::Error::invalid(
                path,
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}

fn validate_status(new: &Value, _: &Value) -> Vec<field::Error> {
    let terminating = tree::has(new, "/metadata/deletionTimestamp");
    let phase = tree::str(new, "/status/phase");
    let expected = if terminating { "Terminating" } else { "Active" };
    if phase == expected {
        return Vec::new();
    }
    let detail = if terminating {
        "may only be 'Terminating' if `deletionTimestamp` is not empty"
    } else {
        "may only be 'Active' if `deletionTimestamp` is empty"
    };
    vec![field::Error::invalid("status.Phase", phase, detail)]
}
