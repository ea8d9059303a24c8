//! JSON Patch (RFC 6902), as lenient as kube-apiserver: `replace` may add a key, `copy` of a missing key copies null,
//! negative indices count from the end.

use serde_json::Value;

use super::{Error, Patched};

/// As in kube-apiserver.
const OPERATIONS_MAX: usize = 10_000;
/// Copies may make an object so much larger, no more.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Applies the operations in turn; all or none.
pub fn apply(object: &Value, body: &[u8]) -> Result<Patched, Error> {
    let operations = crate::schema::decode_free(body)
        .map_err(|e| Error::BadRequest(format!("error decoding patch: {e}")))?
        .object;
    let Some(list) = operations.as_array() else {
        let found = match operations {
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            _ => "bool",
        };
        return Err(Error::BadRequest(format!(
            "error decoding patch: json: cannot unmarshal {found} into Go value of type []handlers.jsonPatchOp"
        )));
    };
    if list.len() > OPERATIONS_MAX {
        return Err(Error::TooLarge { allowed: OPERATIONS_MAX, found: list.len() });
    }
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in list {
        run(&mut patched, operation, &mut copied).map_err(Error::Unprocessable)?;
    }
    Ok(Patched { object: patched, strict: Vec::new(), shown: None })
}

fn run(document: &mut Value, operation: &Value, copied: &mut usize) -> Result<(), String> {
    let text = |key: &str| {
        operation.get(key).and_then(Value::as_str).ok_or_else(|| format!("an operation without {key:?}"))
    };
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    let path = text("path")?;
    match text("op")? {
        "add" => add(document, path, value()),
        "remove" => remove(document, path).map(|_| ()),
        "replace" if path.is_empty() => {
            *document = value();
            if document.is_object() || document.is_array() {
                return Ok(());
            }
            Err("replace operation value must be object or array".to_owned())
        }
        "replace" => replace(document, path, value()),
        "move" => {
            let moved = remove(document, text("from")?)?;
            add(document, path, moved)
        }
        "copy" => {
            let (parent, key) = parent(document, text("from")?)?;
            let copy = get(parent, &key)?.cloned().unwrap_or(Value::Null);
            *copied += copy.to_string().len();
            if *copied > COPIED_BYTES_MAX {
                return Err(format!("copies of more than {COPIED_BYTES_MAX} bytes"));
            }
            add(document, path, copy)
        }
        "test" => {
            let expected = value();
            let found = if path.is_empty() {
                Some(&*document)
            } else {
                let (parent, key) = parent(document, path)?;
                get(parent, &key)?
            };
            if *found.unwrap_or(&Value::Null) == expected {
                return Ok(());
            }
            Err(format!("testing value {path} failed"))
        }
        other => Err(format!("unexpected kind: {other}")),
    }
}

/// The container that a path leads into, and the last step.
fn parent<'d>(document: &'d mut Value, path: &str) -> Result<(&'d mut Value, String), String> {
    let missing = || format!("doc is missing path: {path:?}");
    let mut steps: Vec<String> =
        path.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    let last = steps.pop().ok_or_else(missing)?;
    let mut place = document;
    for step in steps {
        place = match place {
            Value::Object(map) => map.get_mut(&step),
            Value::Array(items) => index(&step, items.len()).and_then(|i| items.get_mut(i)),
            _ => None,
        }
        .ok_or_else(missing)?;
    }
    if place.is_object() || place.is_array() { Ok((place, last)) } else { Err(missing()) }
}

/// A place in a list of so many items; negative ones count from the end.
fn index(step: &str, length: usize) -> Option<usize> {
    let index: i64 = step.parse().ok()?;
    let length = i64::try_from(length).ok()?;
    let index = if index < 0 { index + length } else { index };
    usize::try_from(index).ok().filter(|_| index < length)
}

fn get<'d>(container: &'d Value, key: &str) -> Result<Option<&'d Value>, String> {
    match container {
        Value::Array(items) => match index(key, items.len()) {
            Some(index) => Ok(items.get(index)),
            None => Err(format!("unable to access invalid index: {key}")),
        },
        other => Ok(other.get(key)),
    }
}

fn add(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (parent, key) = parent(document, path)?;
    match parent {
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let at = index(&key, items.len() + 1)
                .ok_or_else(|| format!("unable to access invalid index: {key}"))?;
            items.insert(at, value);
        }
        Value::Object(map) => {
            map.insert(key, value);
        }
        _ => {}
    }
    Ok(())
}

fn replace(document: &mut Value, path: &str, value: Value) -> Result<(), String> {
    let (parent, key) = parent(document, path)?;
    match parent {
        Value::Array(items) => {
            let at = index(&key, items.len()).ok_or_else(|| format!("doc is missing key: {path}"))?;
            items[at] = value;
        }
        Value::Object(map) => {
            map.insert(key, value);
        }
        _ => {}
    }
    Ok(())
}

fn remove(document: &mut Value, path: &str) -> Result<Value, String> {
    let (parent, key) = parent(document, path)?;
    let missing = || format!("unable to remove nonexistent key: {key}");
    match parent {
        Value::Array(items) => match index(&key, items.len()) {
            Some(at) => Ok(items.remove(at)),
            None => Err(missing()),
        },
        Value::Object(map) => map.remove(&key).ok_or_else(missing),
        _ => Err(missing()),
    }
}
