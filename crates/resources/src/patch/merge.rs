//! JSON Merge Patch (RFC 7386).

use serde_json::{Map, Value};

use super::{Error, Patched};
use crate::schema;

/// Lays the patch over the object; null removes.
pub fn apply(object: &Value, body: &[u8]) -> Result<Patched, Error> {
    let decoded =
        schema::decode_free(body).map_err(|e| Error::BadRequest(format!("error decoding patch: {e}")))?;
    if !decoded.object.is_object() {
        let what = if decoded.object.is_array() { "array" } else { "value" };
        return Err(Error::BadRequest(format!(
            "error decoding patch: json: cannot unmarshal {what} into Go value of type map[string]interface {{}}"
        )));
    }
    let mut patched = object.clone();
    lay_over(&mut patched, decoded.object);
    Ok(Patched { object: patched, strict: decoded.strict, shown: None })
}

fn lay_over(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = without_nulls(patch);
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.remove(&key);
        } else {
            lay_over(map.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Objects in lists have no target, so their nulls remove nothing and go.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        Value::Object(map) => Value::Object(
            map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        ),
        scalar => scalar,
    }
}
