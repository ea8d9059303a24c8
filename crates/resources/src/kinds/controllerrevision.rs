//! ControllerRevision: a state that a controller can go back to; it never changes, only its number does.

use serde_json::Value;

use super::{names, tree, wire};
use crate::field::Error;
use crate::kind::{Cell, Column, Kind};

pub static KIND: Kind = Kind {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    schema: "io.k8s.api.apps.v1.ControllerRevision",
    columns: &[
        Column::NAME,
        Column::new("Controller", "string", "Whose state it is", Cell::Fn(|o, _| controller(o).into())),
        Column::new(
            "Revision",
            "string",
            "Number of the state",
            Cell::Fn(|o, _| tree::int(o, "/revision").into()),
        ),
        Column::AGE,
    ],
    default: |object| wire::canonical(KIND.schema, object),
    validate,
    reset_fields: &[],
    ..Kind::EMPTY
};

fn controller(object: &Value) -> String {
    let owner = tree::list(object, "/metadata/ownerReferences").iter().find(|o| tree::bool(o, "/controller"));
    let Some(owner) = owner else { return "<none>".to_owned() };
    let api_version = tree::str(owner, "/apiVersion");
    let kind = tree::str(owner, "/kind").to_lowercase();
    let name = tree::str(owner, "/name");
    match api_version.split_once('/') {
        Some((group, _)) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    names::not_negative(&mut errors, "revision", tree::int(object, "/revision"));
    let data = tree::get(object, "data");
    match old {
        Some(old) if data != tree::get(old, "data") => errors.push(Error::immutable("data", data.clone())),
        Some(_) => {}
        None if data.is_null() => errors.push(Error::required("data", "data is mandatory")),
        None if !data.is_object() => errors.push(Error::required("data", "data must be a valid JSON object")),
        None => {}
    }
    errors
}
