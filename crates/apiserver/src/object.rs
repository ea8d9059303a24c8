//! Objects as they lie in the store and as they go over the wire.
//!
//! The store keeps an object's JSON without `apiVersion` and `kind`, which the key says; lists send it so, and
//! a single object gets them put in front.

use resources::kind::Kind;
use resources::status::Status;
use serde_json::{Map, Value};
use store::Revision;

/// The row that keeps the objects of a kind.
pub(crate) fn keeper(kind: &Kind) -> &Kind {
    kind.stored_as.map_or(kind, |stored| stored.kind)
}

/// Where the objects of a kind lie, all or those of one namespace ("" is all).
pub(crate) fn prefix(kind: &Kind, namespace: &str) -> String {
    let keeper = keeper(kind);
    let group = if keeper.group.is_empty() { "core" } else { keeper.group };
    if namespace.is_empty() || !kind.namespaced() {
        format!("/{group}/{}/", keeper.plural)
    } else {
        format!("/{group}/{}/{namespace}/", keeper.plural)
    }
}

/// Where one object lies.
pub(crate) fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    let mut key = prefix(kind, namespace);
    key.push_str(name);
    key
}

/// Namespace ("" where a kind has none) and name of the object that lies there.
pub(crate) fn names(kind: &Kind, key: &str) -> Option<(String, String)> {
    let rest = key.strip_prefix(prefix(kind, "").as_str())?;
    let (namespace, name) = if kind.namespaced() { rest.split_once('/')? } else { ("", rest) };
    Some((namespace.to_owned(), name.to_owned()))
}

/// The bytes to store.
pub(crate) fn encode(kind: &Kind, mut object: Value, revision: Revision) -> Vec<u8> {
    if let Some(stored) = kind.stored_as {
        (stored.encode)(&mut object);
    }
    if let Some(map) = object.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    set(&mut object, "resourceVersion", revision.to_string().into());
    // A Value always has an encoding.
    serde_json::to_vec(&object).unwrap_or_default()
}

/// A stored object with its type.
pub(crate) fn decode(kind: &Kind, encoded: &[u8]) -> Result<Value, Status> {
    let mut object: Value = serde_json::from_slice(encoded)
        .map_err(|error| Status::internal(format!("a stored {} cannot be read: {error}", kind.kind)))?;
    let keeper = keeper(kind);
    name_type(keeper, &mut object);
    if let Some(stored) = kind.stored_as {
        (stored.decode)(&mut object);
        name_type(kind, &mut object);
    }
    Ok(object)
}

/// Sets `apiVersion` and `kind`.
pub(crate) fn name_type(kind: &Kind, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), kind.api_version().into());
        map.insert("kind".into(), kind.kind.into());
    }
}

/// A stored object as one JSON text with its type.
pub(crate) fn wire(kind: &Kind, encoded: &[u8]) -> Result<Vec<u8>, Status> {
    if kind.stored_as.is_some() {
        let object = decode(kind, encoded)?;
        return Ok(serde_json::to_vec(&object).unwrap_or_default());
    }
    let head = format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", kind.kind, kind.api_version());
    let mut text = Vec::with_capacity(head.len() + encoded.len() + 1);
    text.extend_from_slice(head.as_bytes());
    text.extend_from_slice(encoded.get(1..).unwrap_or_default());
    Ok(text)
}

/// A stored object as an item of a list: without its type.
pub(crate) fn item(kind: &Kind, encoded: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
    if kind.stored_as.is_none() {
        out.extend_from_slice(encoded);
        return Ok(());
    }
    let mut object = decode(kind, encoded)?;
    if let Some(map) = object.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    out.extend_from_slice(&serde_json::to_vec(&object).unwrap_or_default());
    Ok(())
}

/// `metadata`, made if it is missing.
pub(crate) fn metadata_mut(object: &mut Value) -> Option<&mut Map<String, Value>> {
    let map = object.as_object_mut()?;
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if metadata.is_null() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut()
}

/// Sets a field of `metadata`.
pub(crate) fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.insert(field.to_owned(), value);
    }
}

/// Removes a field of `metadata`.
pub(crate) fn unset(object: &mut Value, field: &str) {
    if let Some(metadata) = metadata_mut(object) {
        metadata.remove(field);
    }
}

/// A field of `metadata`, or null.
pub(crate) fn get<'a>(object: &'a Value, field: &str) -> &'a Value {
    static NULL: Value = Value::Null;
    object.get("metadata").and_then(|metadata| metadata.get(field)).unwrap_or(&NULL)
}

/// A string of `metadata`, or "".
pub(crate) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    get(object, field).as_str().unwrap_or("")
}

/// `metadata.name`, or "".
pub(crate) fn name(object: &Value) -> &str {
    text(object, "name")
}

/// `metadata.namespace`, or "".
pub(crate) fn namespace(object: &Value) -> &str {
    text(object, "namespace")
}

/// `metadata.resourceVersion`, or "".
pub(crate) fn resource_version(object: &Value) -> &str {
    text(object, "resourceVersion")
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Value) -> Vec<&str> {
    get(object, "finalizers").as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether the object waits for its end.
pub(crate) fn is_deleting(object: &Value) -> bool {
    !get(object, "deletionTimestamp").is_null()
}

/// A time as objects carry it: whole seconds.
pub(crate) fn time(timestamp: jiff::Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_type_is_not_stored_and_comes_back() {
        let kind = Kind { kind: "ConfigMap", plural: "configmaps", ..Kind::EMPTY };
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "binaryData": {}, "metadata": {"name": "a"},
        });
        let stored = encode(&kind, object, Revision(7));
        assert_eq!(stored, br#"{"binaryData":{},"metadata":{"name":"a","resourceVersion":"7"}}"#);
        let wire: Value = serde_json::from_slice(&wire(&kind, &stored).unwrap()).unwrap();
        assert_eq!(wire, decode(&kind, &stored).unwrap());
        assert_eq!(wire["kind"], "ConfigMap");
        assert_eq!(key(&kind, "default", "a"), "/core/configmaps/default/a");
    }
}
