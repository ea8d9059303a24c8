//! Secret: small confidential data, base64 on the wire.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{names, tree, wire};
use crate::field;
use crate::kind::{Cell, Column, Kind};

/// All values together, in bytes.
const SIZE_MAX: usize = 1024 * 1024;

pub static KIND: Kind = Kind {
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    schema: "io.k8s.api.core.v1.Secret",
    columns: &[
        Column::NAME,
        Column::new("Type", "string", "What the data is", Cell::Pointer("/type")),
        Column::new(
            "Data",
            "string",
            "Number of keys",
            Cell::Fn(|o, _| json!(tree::entries(o, "/data").count())),
        ),
        Column::AGE,
    ],
    default,
    prepare: |object, old| {
        if let Some(old) = old
            && tree::str(object, "/type").is_empty()
        {
            tree::take_from(object, old, "type");
        }
    },
    validate,
    selectable_fields: &[("type", |o| tree::str(o, "/type").to_owned())],
    reset_fields: &[],
    ..Kind::EMPTY
};

fn default(object: &mut Value) {
    wire::canonical(KIND.schema, object);
    tree::fill(object, "type", "Opaque");
    let texts: Vec<(String, Value)> = tree::entries(object, "/stringData")
        .map(|(key, text)| (key.clone(), STANDARD.encode(text.as_str().unwrap_or_default()).into()))
        .collect();
    if !texts.is_empty() {
        if let Some(data) = tree::object_mut(object, "data") {
            data.extend(texts);
        }
        tree::remove(object, "stringData");
    }
}

/// Bytes that a base64 string stands for.
pub(super) fn decoded_len(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default().trim_end_matches('=');
    text.len() * 3 / 4
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<field::Error> {
    let mut errors = Vec::new();
    if let Some(old) = old {
        immutable(object, old, &mut errors);
    }
    let mut size = 0;
    for (key, value) in tree::entries(object, "/data") {
        names::report(&mut errors, &format!("data[{key}]"), key, names::config_key_problems(key));
        size += decoded_len(value);
    }
    if size > SIZE_MAX {
        errors.push(field::Error::too_long("data", SIZE_MAX));
    }
    let data = tree::get(object, "data");
    let missing = |key: &str| tree::get(data, key).is_null();
    match tree::str(object, "/type") {
        "kubernetes.io/service-account-token" if account(object).is_empty() => {
            errors
                .push(field::Error::required("metadata.annotations[kubernetes.io/service-account.name]", ""));
        }
        "kubernetes.io/dockercfg" => json_key(data, ".dockercfg", &mut errors),
        "kubernetes.io/dockerconfigjson" => json_key(data, ".dockerconfigjson", &mut errors),
        "kubernetes.io/basic-auth" if missing("username") && missing("password") => {
            errors.push(field::Error::required("data[username]", ""));
            errors.push(field::Error::required("data[password]", ""));
        }
        "kubernetes.io/ssh-auth" if tree::str(data, "/ssh-privatekey").is_empty() => {
            errors.push(field::Error::required("data[ssh-privatekey]", ""));
        }
        "kubernetes.io/tls" => {
            for key in ["tls.crt", "tls.key"] {
                if missing(key) {
                    errors.push(field::Error::required(format!("data[{key}]"), ""));
                }
            }
        }
        _ => {}
    }
    errors
}

/// The ServiceAccount that a token is of.
fn account(object: &Value) -> &str {
    let annotations = tree::at(object, "/metadata/annotations");
    tree::get(annotations, "kubernetes.io/service-account.name").as_str().unwrap_or_default()
}

fn immutable(object: &Value, old: &Value, errors: &mut Vec<field::Error>) {
    let kind = tree::get(object, "type");
    if kind != tree::get(old, "type") {
        errors.push(field::Error::immutable("type", kind.clone()));
    }
    if !tree::bool(old, "/immutable") {
        return;
    }
    if !tree::bool(object, "/immutable") {
        errors.push(field::Error::forbidden("immutable", "field is immutable when `immutable` is set"));
    }
    if !tree::same(tree::get(object, "data"), tree::get(old, "data")) {
        errors.push(field::Error::forbidden("data", "field is immutable when `immutable` is set"));
    }
}

/// The value below a key must be a JSON document.
fn json_key(data: &Value, key: &str, errors: &mut Vec<field::Error>) {
    let path = format!("data[{key}]");
    match data.get(key).and_then(Value::as_str) {
        None => errors.push(field::Error::required(path, "")),
        Some(text) => {
            let parsed = STANDARD.decode(text).ok().map(|bytes| serde_json::from_slice::<Value>(&bytes));
            if !matches!(parsed, Some(Ok(_))) {
                errors.push(field::Error::invalid(path, "<secret contents redacted>", "invalid JSON"));
            }
        }
    }
}
