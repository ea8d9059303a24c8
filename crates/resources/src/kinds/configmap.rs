//! ConfigMap: configuration as keys and values.

use serde_json::{Value, json};

use super::{names, tree, wire};
use crate::field;
use crate::kind::{Cell, Column, Kind};

/// All keys and values together, in bytes.
const SIZE_MAX: usize = 1024 * 1024;

pub static KIND: Kind = Kind {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    columns: &[
        Column::NAME,
        Column::new(
            "Data",
            "string",
            "Number of keys",
            Cell::Fn(|o, _| {
                json!(tree::entries(o, "/data").count() + tree::entries(o, "/binaryData").count())
            }),
        ),
        Column::AGE,
    ],
    default: |object| wire::canonical(KIND.schema, object),
    validate,
    reset_fields: &[],
    ..Kind::EMPTY
};

fn validate(object: &Value, old: Option<&Value>) -> Vec<field::Error> {
    let mut errors = Vec::new();
    if let Some(old) = old.filter(|old| tree::bool(old, "/immutable")) {
        if !tree::bool(object, "/immutable") {
            errors.push(field::Error::forbidden("immutable", "field is immutable when `immutable` is set"));
        }
        for key in ["data", "binaryData"] {
            if !tree::same(tree::get(object, key), tree::get(old, key)) {
                errors.push(field::Error::forbidden(key, "field is immutable when `immutable` is set"));
            }
        }
    }
    let mut size = 0;
    for (key, value) in tree::entries(object, "/data") {
        let path = format!("data[{key}]");
        names::report(&mut errors, &path, key, names::config_key_problems(key));
        if tree::get(tree::get(object, "binaryData"), key).is_string() {
            errors.push(field::Error::invalid(path, key.as_str(), "duplicate of key present in binaryData"));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in tree::entries(object, "/binaryData") {
        names::report(&mut errors, &format!("binaryData[{key}]"), key, names::config_key_problems(key));
        size += super::secret::decoded_len(value);
    }
    if size > SIZE_MAX {
        errors.push(field::Error::too_long("", SIZE_MAX));
    }
    errors
}
