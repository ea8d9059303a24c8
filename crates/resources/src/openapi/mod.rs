//! The OpenAPI v3 document of a group and version, as `kubectl` reads it for explain, diff, apply and dry-run.
//!
//! It is made when asked for and kept by nobody here: structure comes from the facts, descriptions from `k8s-openapi`.

mod descriptions;
mod paths;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::kind::{Kind, Subresource};
use crate::kinds::KINDS;
use crate::schema::{self, Field, ListKind, Schema, Type};
use descriptions::Descriptions;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

/// The groups and versions that are served, sorted.
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let all: BTreeSet<_> = KINDS.iter().map(|k| (k.group, k.version)).collect();
    all.into_iter().collect()
}

/// The document; None when nothing of that group and version is served.
pub fn document(group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&Kind> =
        KINDS.iter().copied().filter(|k| k.group == group && k.version == version).collect();
    if kinds.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    let mut roots: BTreeSet<String> =
        ["DeleteOptions", "Status", "WatchEvent", "APIResourceList"].map(|n| format!("{META}{n}")).into();
    for kind in &kinds {
        paths::of_kind(kind, &mut paths);
        roots.insert(kind.schema.to_owned());
        roots.insert(format!("{}List", kind.schema));
        roots.extend(kind.subresources.iter().filter_map(body_schema));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "unversioned" },
        "paths": paths,
        "components": { "schemas": components(roots, &kinds) },
    }))
}

/// The definition of a subresource's body when it is not the parent's.
fn body_schema(subresource: &Subresource) -> Option<String> {
    Some(match subresource {
        Subresource::Scale(_) => "io.k8s.api.autoscaling.v1.Scale".to_owned(),
        Subresource::Binding => "io.k8s.api.core.v1.Binding".to_owned(),
        Subresource::Eviction => "io.k8s.api.policy.v1.Eviction".to_owned(),
        Subresource::Token => "io.k8s.api.authentication.v1.TokenRequest".to_owned(),
        _ => return None,
    })
}

fn components(roots: BTreeSet<String>, kinds: &[&Kind]) -> Map<String, Value> {
    let descriptions = Descriptions::of(kinds);
    let mut out = Map::new();
    let mut queue: Vec<String> = roots.into_iter().collect();
    while let Some(name) = queue.pop() {
        if out.contains_key(&name) {
            continue;
        }
        let schema = match schema::of(&name) {
            Some(schema) => definition(schema, &descriptions, &mut queue),
            None => match scalar_definition(&name) {
                Some(scalar) => described(scalar, descriptions.definition(&name)),
                None => continue,
            },
        };
        out.insert(name, schema);
    }
    out.insert(
        format!("{META}Patch"),
        json!({
            "description": "Patch is provided to give a concrete name and type to the Kubernetes PATCH request body.",
            "type": "object",
        }),
    );
    out
}

fn scalar_definition(name: &str) -> Option<Value> {
    Some(match name {
        QUANTITY => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        INT_OR_STRING => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        RAW_EXTENSION => json!({"type": "object"}),
        _ if name == format!("{META}Time") || name == format!("{META}MicroTime") => {
            json!({"format": "date-time", "type": "string"})
        }
        _ => return None,
    })
}

fn described(mut schema: Value, description: Option<&str>) -> Value {
    if let Some(description) = description {
        schema["description"] = description.into();
    }
    schema
}

fn definition(schema: &Schema, descriptions: &Descriptions, queue: &mut Vec<String>) -> Value {
    let mut out = Map::new();
    if let Some(text) = descriptions.definition(&schema.name) {
        out.insert("description".to_owned(), text.into());
    }
    out.insert("type".to_owned(), "object".into());
    if !schema.fields.is_empty() {
        let properties: Map<String, Value> = schema
            .fields
            .iter()
            .map(|f| {
                let property = property(f, queue);
                (f.name.to_owned(), described(property, descriptions.field(&schema.name, f.name)))
            })
            .collect();
        out.insert("properties".to_owned(), Value::Object(properties));
    }
    let required: Vec<Value> = schema.fields.iter().filter(|f| f.required).map(|f| f.name.into()).collect();
    if !required.is_empty() {
        out.insert("required".to_owned(), required.into());
    }
    if let Some((group, version, kind)) = schema.group_version_kind {
        out.insert(
            "x-kubernetes-group-version-kind".to_owned(),
            json!([{ "group": group, "kind": kind, "version": version }]),
        );
    }
    if schema.atomic {
        out.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
    }
    Value::Object(out)
}

fn property(field: &Field, queue: &mut Vec<String>) -> Value {
    let mut out = type_schema(&field.ty, queue);
    let mut put = |key: &str, value: Value| {
        if let Some(map) = out.as_object_mut() {
            map.insert(key.to_owned(), value);
        }
    };
    if let Type::List(list) = &field.ty {
        let list_type = match &list.kind {
            ListKind::Atomic => "atomic",
            ListKind::Set => "set",
            ListKind::Map(keys) => {
                put("x-kubernetes-list-map-keys", keys.clone().into());
                "map"
            }
        };
        put("x-kubernetes-list-type", list_type.into());
    }
    if let Some(atomic) = field.atomic {
        put("x-kubernetes-map-type", if atomic { "atomic" } else { "granular" }.into());
    }
    let strategies: Vec<&str> = [(field.patch.merge, "merge"), (field.patch.retain_keys, "retainKeys")]
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect();
    if !strategies.is_empty() {
        put("x-kubernetes-patch-strategy", strategies.join(",").into());
    }
    if let Some(key) = field.patch.merge_key {
        put("x-kubernetes-patch-merge-key", key.into());
    }
    if let Some(default) = &field.default {
        put("default", default.clone());
    }
    out
}

fn reference(name: String, queue: &mut Vec<String>) -> Value {
    let reference = json!({ "allOf": [{ "$ref": format!("#/components/schemas/{name}") }] });
    queue.push(name);
    reference
}

fn type_schema(ty: &Type, queue: &mut Vec<String>) -> Value {
    match ty {
        Type::String => json!({"type": "string"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::Int32 => json!({"type": "integer", "format": "int32"}),
        Type::Int64 => json!({"type": "integer", "format": "int64"}),
        Type::Double => json!({"type": "number", "format": "double"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Time => reference(format!("{META}Time"), queue),
        Type::MicroTime => reference(format!("{META}MicroTime"), queue),
        Type::Quantity => reference(QUANTITY.to_owned(), queue),
        Type::IntOrString => reference(INT_OR_STRING.to_owned(), queue),
        Type::Any => reference(RAW_EXTENSION.to_owned(), queue),
        Type::Object => json!({"type": "object"}),
        Type::Struct(id) => reference(id.schema().name.clone(), queue),
        Type::List(list) => json!({"type": "array", "items": type_schema(&list.items, queue)}),
        Type::Map(values) => json!({"type": "object", "additionalProperties": type_schema(values, queue)}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_is_there_and_described() {
        for (group, version) in group_versions() {
            let document = document(group, version).unwrap();
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let text = document.to_string();
            for part in text.split("#/components/schemas/").skip(1) {
                let name = part.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{group}/{version}: {name}");
            }
            for kind in KINDS.iter().filter(|k| k.group == group && k.version == version) {
                assert!(schemas[kind.schema]["description"].is_string(), "{}", kind.schema);
                let scope = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
                let path = format!("{}{scope}/{}/{{name}}", kind.api_path(), kind.plural);
                let patch = &document["paths"][&path]["patch"];
                assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], kind.kind, "{path}");
                let parameters = patch["parameters"].as_array().unwrap();
                assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
            }
        }
    }

    #[test]
    fn marks_for_patches_are_published() {
        let Some(document) = document("", "v1") else { return };
        let containers =
            &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert!(containers["description"].is_string());
    }
}
