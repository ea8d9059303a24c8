//! ObjectMeta: what every kind's metadata must satisfy (apimachinery `api/validation/objectmeta`).

use resources::field::{self, Path};
use resources::kind::{Kind, Name};
use resources::kinds::names;
use resources::status::Status;
use serde_json::{Value, json};

use crate::object;

const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

fn label_1035_problems(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > 63 {
        out.push("must be no more than 63 bytes".to_owned());
    }
    let bytes = name.as_bytes();
    let whole = bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if !whole {
        out.push("a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')".to_owned());
    }
    out
}

fn path_segment_problems(name: &str, prefix: bool) -> Vec<String> {
    if !prefix && matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].into_iter().filter(|c| name.contains(c)).map(|c| format!("may not contain '{c}'")).collect()
}

fn name_problems(kind: &Kind, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    // A prefix may end in a dash; the generated suffix follows it.
    let name = if prefix && name.len() > 1 && name.ends_with('-') && kind.name != Name::PathSegment {
        masked = format!("{}a", name.get(..name.len() - 2).unwrap_or(""));
        masked.as_str()
    } else {
        name
    };
    match kind.name {
        Name::Subdomain => names::subdomain_problems(name),
        Name::Label => names::label_1123_problems(name),
        Name::Label1035 => label_1035_problems(name),
        Name::PathSegment => path_segment_problems(name, prefix),
    }
}

/// All that is wrong with an object's metadata.
pub(crate) fn validate(kind: &Kind, object: &Value) -> Vec<field::Error> {
    let mut errors = Vec::new();
    // Deeper than that the object, with its owners' fields, could not be read back.
    if resources::depth::measure(object).0 > resources::DEPTH_MAX {
        let why = format!("is nested more than {} levels deep", resources::DEPTH_MAX);
        errors.push(field::Error::forbidden("", why));
    }
    let path = Path::new("metadata");
    let generate = object::text(object, "generateName");
    if !generate.is_empty() {
        let problems = name_problems(kind, generate, true);
        names::report(&mut errors, path.child("generateName").as_str(), generate, problems);
    }
    let name = object::name(object);
    if name.is_empty() {
        errors.push(field::Error::required(path.child("name"), "name or generateName is required"));
    } else {
        names::report(&mut errors, "metadata.name", name, name_problems(kind, name, false));
    }
    let namespace = object::namespace(object);
    match (kind.namespaced(), namespace.is_empty()) {
        (true, true) => errors.push(field::Error::required(path.child("namespace"), "")),
        (true, false) => {
            names::report(
                &mut errors,
                "metadata.namespace",
                namespace,
                names::label_1123_problems(namespace),
            );
        }
        (false, false) => {
            errors.push(field::Error::forbidden(path.child("namespace"), "not allowed on this type"));
        }
        (false, true) => {}
    }
    labels(object, &mut errors);
    annotations(object, &mut errors);
    owners(object, &mut errors);
    finalizers(object, &mut errors);
    errors
}

fn strings<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = (&'a String, &'a str)> {
    object::get(object, field)
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| (key, value.as_str().unwrap_or("")))
}

fn labels(object: &Value, errors: &mut Vec<field::Error>) {
    for (key, value) in strings(object, "labels") {
        names::qualified(errors, "metadata.labels", key);
        names::report(errors, "metadata.labels", value, names::label_value_problems(value));
    }
}

fn annotations(object: &Value, errors: &mut Vec<field::Error>) {
    let mut bytes = 0;
    for (key, value) in strings(object, "annotations") {
        let problems = names::qualified_problems(&key.to_lowercase());
        names::report(errors, "metadata.annotations", key, problems);
        bytes += key.len() + value.len();
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        errors.push(field::Error::too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
}

fn owners(object: &Value, errors: &mut Vec<field::Error>) {
    let path = Path::new("metadata").child("ownerReferences");
    let list = object::get(object, "ownerReferences").as_array().map_or(&[][..], Vec::as_slice);
    let mut controller: Option<String> = None;
    for owner in list {
        let text = |name: &str| owner.get(name).and_then(Value::as_str).unwrap_or("");
        let api_version = text("apiVersion");
        if api_version.is_empty() {
            let detail = "version must not be empty";
            errors.push(field::Error::invalid(path.child("apiVersion"), api_version, detail));
        }
        for name in ["kind", "name", "uid"] {
            if text(name).is_empty() {
                errors.push(field::Error::invalid(path.child(name), "", "must not be empty"));
            }
        }
        if api_version == "v1" && text("kind") == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(field::Error::invalid(&path, owner.clone(), detail));
        }
        if owner.get("controller") == Some(&Value::Bool(true)) {
            let this = format!("{}/{}", text("kind"), text("name"));
            if let Some(first) = &controller {
                let detail = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                );
                errors.push(field::Error::invalid(&path, json!(list), detail));
            } else {
                controller = Some(this);
            }
        }
    }
}

fn finalizers(object: &Value, errors: &mut Vec<field::Error>) {
    let all = object::finalizers(object);
    for finalizer in &all {
        names::qualified(errors, "metadata.finalizers", finalizer);
    }
    for (i, finalizer) in all.iter().enumerate() {
        if !finalizer.contains('/') && ![ORPHAN, FOREGROUND, "kubernetes"].contains(finalizer) {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            errors.push(field::Error::invalid(format!("metadata.finalizers[{i}]"), *finalizer, detail));
        }
    }
    if all.contains(&ORPHAN) && all.contains(&FOREGROUND) {
        let detail = format!("finalizer {ORPHAN} and {FOREGROUND} cannot be both set");
        errors.push(field::Error::invalid("metadata.finalizers", json!(all), detail));
    }
}

/// All that is wrong with a change of metadata, beyond [`validate`].
pub(crate) fn validate_update(object: &Value, old: &Value) -> Vec<field::Error> {
    let mut errors = Vec::new();
    let path = Path::new("metadata");
    if object::is_deleting(old) {
        let before = object::finalizers(old);
        let mut added: Vec<&str> =
            object::finalizers(object).into_iter().filter(|name| !before.contains(name)).collect();
        added.sort_unstable();
        added.dedup();
        if !added.is_empty() {
            let listed: Vec<String> = added.iter().map(|name| field::quote(name)).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                listed.join(", ")
            );
            errors.push(field::Error::forbidden(path.child("finalizers"), detail));
        }
    }
    for field in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        let (new, old) = (object::get(object, field), object::get(old, field));
        if new != old {
            errors.push(field::Error::immutable(path.child(field), new.clone()));
        }
    }
    errors
}

/// The namespace of an object is that of the path.
pub(crate) fn match_namespace(kind: &Kind, object: &mut Value, namespace: &str) -> Result<(), Status> {
    let wanted = if kind.namespaced() { namespace } else { "" };
    let given = object::namespace(object);
    if given == wanted {
        if wanted.is_empty() {
            object::unset(object, "namespace");
        }
        return Ok(());
    }
    if given.is_empty() || wanted.is_empty() {
        if wanted.is_empty() {
            object::unset(object, "namespace");
        } else {
            object::set(object, "namespace", wanted.into());
        }
        return Ok(());
    }
    Err(Status::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

/// The name of an object is that of the path.
pub(crate) fn match_name(object: &Value, name: &str) -> Result<(), Status> {
    let given = object::name(object);
    if given == name {
        return Ok(());
    }
    if given.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        )));
    }
    Err(Status::bad_request(format!(
        "the name of the object ({given}) does not match the name on the URL ({name})"
    )))
}

/// Drops owner references that are there twice.
pub(crate) fn dedup_owners(object: &mut Value, warnings: &mut Vec<String>, after_admission: bool) {
    let Some(owners) = object::metadata_mut(object)
        .and_then(|metadata| metadata.get_mut("ownerReferences"))
        .and_then(Value::as_array_mut)
    else {
        return;
    };
    let mut kept: Vec<Value> = Vec::new();
    let mut twice = Vec::new();
    for owner in owners.drain(..) {
        if kept.contains(&owner) {
            twice.push(owner.get("uid").and_then(Value::as_str).unwrap_or("").to_owned());
        } else {
            kept.push(owner);
        }
    }
    *owners = kept;
    if !twice.is_empty() {
        let when = if after_admission { " after mutating admission happens" } else { "" };
        warnings.push(format!(
            ".metadata.ownerReferences contains duplicate entries{when}; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            twice.join(", ")
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { kind: "ConfigMap", plural: "configmaps", ..Kind::EMPTY };

    #[test]
    fn metadata_is_checked_whole() {
        let object = json!({"metadata": {
            "name": "Ä", "namespace": "default", "labels": {"a b": "c d"}, "finalizers": ["x y"],
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}],
        }});
        let paths: Vec<String> = validate(&KIND, &object).into_iter().map(|error| error.path).collect();
        assert_eq!(
            paths,
            [
                "metadata.name",
                "metadata.labels",
                "metadata.labels",
                "metadata.ownerReferences.uid",
                "metadata.finalizers",
                "metadata.finalizers[0]"
            ]
        );
    }

    #[test]
    fn a_generated_name_may_have_a_prefix_with_a_dash() {
        let object = json!({"metadata": {"generateName": "a-", "name": "a-x", "namespace": "b"}});
        assert_eq!(validate(&KIND, &object), []);
    }

    #[test]
    fn identity_is_immutable() {
        let old = json!({"metadata": {"name": "a", "uid": "1"}});
        let new = json!({"metadata": {"name": "a", "uid": "2"}});
        let errors = validate_update(&new, &old);
        assert_eq!(errors[0].to_string(), "metadata.uid: Invalid value: \"2\": field is immutable");
    }
}
