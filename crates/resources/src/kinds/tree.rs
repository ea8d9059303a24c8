//! Reading and filling JSON objects: what the kinds' files share. Missing and `null` read as the zero value, as they
//! do for a client that decodes into a struct.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// The value below `key`, or `null`.
pub fn get<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&NULL)
}

/// The value at a JSON pointer, or `null`.
pub fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&NULL)
}

/// The string at a JSON pointer, or "".
pub fn str<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer).as_str().unwrap_or("")
}

/// The integer at a JSON pointer, or 0.
pub fn int(value: &Value, pointer: &str) -> i64 {
    at(value, pointer).as_i64().unwrap_or(0)
}

/// The boolean at a JSON pointer, or false.
pub fn bool(value: &Value, pointer: &str) -> bool {
    at(value, pointer).as_bool().unwrap_or(false)
}

/// The list at a JSON pointer, or an empty one.
pub fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    at(value, pointer).as_array().map_or(&[], Vec::as_slice)
}

/// The entries of the map at a JSON pointer, sorted by key.
pub fn entries<'a>(value: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, pointer).as_object().into_iter().flatten()
}

/// Whether there is something other than `null` at a JSON pointer.
pub fn has(value: &Value, pointer: &str) -> bool {
    !at(value, pointer).is_null()
}

/// The elements of the list below `key`, to be changed.
pub fn list_mut<'a>(value: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The object below `key`, made if it is missing or `null`. A value of another type stays, and `None` is the answer.
pub fn object_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    let child = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    if child.is_null() {
        *child = Value::Object(Map::new());
    }
    child.as_object_mut()
}

/// The same as a [`Value`], for going deeper.
pub fn child_mut<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object_mut(value, key)?;
    value.get_mut(key)
}

/// Sets `key` when it is missing, `null` or "".
pub fn fill(value: &mut Value, key: &str, default: impl Into<Value>) {
    let Some(map) = value.as_object_mut() else { return };
    let missing = match map.get(key) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if missing {
        map.insert(key.to_owned(), default.into());
    }
}

/// Sets `key` when it is missing, `null` or 0.
pub fn fill_number(value: &mut Value, key: &str, default: i64) {
    let Some(map) = value.as_object_mut() else { return };
    if map.get(key).is_none_or(|v| v.is_null() || v.as_i64() == Some(0)) {
        map.insert(key.to_owned(), default.into());
    }
}

/// Removes `key`.
pub fn remove(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut() {
        map.remove(key);
    }
}

/// Sets `key`.
pub fn set(value: &mut Value, key: &str, new: impl Into<Value>) {
    if let Some(map) = value.as_object_mut() {
        map.insert(key.to_owned(), new.into());
    }
}

/// Takes `key` from another object: copied when it is there, removed when it is not.
pub fn take_from(value: &mut Value, old: &Value, key: &str) {
    match old.get(key) {
        Some(kept) => set(value, key, kept.clone()),
        None => remove(value, key),
    }
}

/// Equal when what is missing, `null`, an empty list and an empty map count as the same.
pub fn same(a: &Value, b: &Value) -> bool {
    fn empty(v: &Value) -> bool {
        match v {
            Value::Null => true,
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.values().all(Value::is_null),
            _ => false,
        }
    }
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            x.iter().all(|(k, v)| same(v, y.get(k).unwrap_or(&NULL)))
                && y.iter().all(|(k, v)| x.contains_key(k) || empty(v))
        }
        (Value::Array(x), Value::Array(y)) => x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y)),
        _ => a == b || (empty(a) && empty(b)),
    }
}
