//! JSON Patch (RFC 6902), as lenient as kube-apiserver: `replace` may add a key, `copy` of a missing key copies null,
//! negative indices count from the end.
//!
//! **Invariant:** no operation makes the document deeper than [`DEPTH_MAX`], so that whatever walks it afterwards
//! (writing, comparing, dropping) has a bounded stack; and all operations together do a bounded amount of work.

use serde_json::Value;

use super::{Error, Patched};
use crate::{DEPTH_MAX, depth};

/// As in kube-apiserver.
const OPERATIONS_MAX: usize = 10_000;
/// Copies may make an object so much larger, no more.
const COPIED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// Values that all operations together may look at or move: a list of a million items into whose front ten thousand are
/// put would else take minutes.
const WORK_MAX: usize = 20_000_000;

/// What the operations so far have used up.
#[derive(Default)]
struct Spent {
    copied_bytes: usize,
    work: usize,
}

impl Spent {
    fn work(&mut self, values: usize) -> Result<(), String> {
        self.work += values;
        if self.work > WORK_MAX {
            Err(format!("operations that move more than {WORK_MAX} values"))
        } else {
            Ok(())
        }
    }
}

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
    let mut spent = Spent::default();
    for operation in list {
        run(&mut patched, operation, &mut spent).map_err(Error::Unprocessable)?;
    }
    Ok(Patched { object: patched, strict: Vec::new(), shown: None })
}

fn run(document: &mut Value, operation: &Value, spent: &mut Spent) -> Result<(), String> {
    let text = |key: &str| {
        operation.get(key).and_then(Value::as_str).ok_or_else(|| format!("an operation without {key:?}"))
    };
    let value = || operation.get("value").cloned().unwrap_or(Value::Null);
    let path = text("path")?;
    match text("op")? {
        "add" => add(document, path, value(), spent),
        "remove" => remove(document, path, spent).map(|_| ()),
        "replace" if path.is_empty() => {
            *document = value();
            if document.is_object() || document.is_array() {
                return Ok(());
            }
            Err("replace operation value must be object or array".to_owned())
        }
        "replace" => replace(document, path, value(), spent),
        "move" => {
            let moved = remove(document, text("from")?, spent)?;
            add(document, path, moved, spent)
        }
        "copy" => {
            let (parent, key) = parent(document, text("from")?)?;
            let copy = get(parent, &key)?.cloned().unwrap_or(Value::Null);
            spent.copied_bytes += copy.to_string().len();
            if spent.copied_bytes > COPIED_BYTES_MAX {
                return Err(format!("copies of more than {COPIED_BYTES_MAX} bytes"));
            }
            add(document, path, copy, spent)
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

/// What comes to stand at `path` must leave the document no deeper than it may be.
fn check_depth(path: &str, value: &Value, spent: &mut Spent) -> Result<(), String> {
    let (below, values) = depth::measure(value);
    spent.work(values)?;
    let above = path.bytes().filter(|byte| *byte == b'/').count();
    if above + below > DEPTH_MAX {
        Err(format!("{path:?} would be more than {DEPTH_MAX} levels deep"))
    } else {
        Ok(())
    }
}

fn add(document: &mut Value, path: &str, value: Value, spent: &mut Spent) -> Result<(), String> {
    check_depth(path, &value, spent)?;
    let (parent, key) = parent(document, path)?;
    match parent {
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            let at = index(&key, items.len() + 1)
                .ok_or_else(|| format!("unable to access invalid index: {key}"))?;
            spent.work(items.len() - at)?;
            items.insert(at, value);
        }
        Value::Object(map) => {
            map.insert(key, value);
        }
        _ => {}
    }
    Ok(())
}

fn replace(document: &mut Value, path: &str, value: Value, spent: &mut Spent) -> Result<(), String> {
    check_depth(path, &value, spent)?;
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

fn remove(document: &mut Value, path: &str, spent: &mut Spent) -> Result<Value, String> {
    let (parent, key) = parent(document, path)?;
    let missing = || format!("unable to remove nonexistent key: {key}");
    match parent {
        Value::Array(items) => match index(&key, items.len()) {
            Some(at) => {
                spent.work(items.len() - at)?;
                Ok(items.remove(at))
            }
            None => Err(missing()),
        },
        Value::Object(map) => map.remove(&key).ok_or_else(missing),
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patch(object: &Value, operations: &Value) -> Result<Value, Error> {
        apply(object, operations.to_string().as_bytes()).map(|patched| patched.object)
    }

    #[test]
    fn copies_into_themselves_end_at_the_bound_of_depth() {
        // Each copies the whole chain to below its own end.
        let double = |power: u32| {
            let path = format!("/a{}", "/b".repeat(1 << power));
            json!({"op": "copy", "from": "/a", "path": path})
        };
        let object = json!({"a": {}});
        let made = patch(&object, &(0..6).map(double).collect()).unwrap();
        assert_eq!(depth::measure(&made).0, 65);
        let refused = patch(&object, &(0..12).map(double).collect()).unwrap_err();
        assert!(matches!(&refused, Error::Unprocessable(why) if why.contains("levels deep")), "{refused:?}");
        assert_eq!(refused.status().code, 422);
    }

    #[test]
    fn nothing_else_makes_a_document_deeper_either() {
        let mut deep = json!(1);
        for _ in 0..DEPTH_MAX - 1 {
            deep = json!([deep]);
        }
        let object = json!({"a": {}, "deep": deep});
        let at = |op: &str, path: &str| json!({"op": op, "from": "/deep", "path": path, "value": deep});
        for (op, path, fits) in [
            ("add", "/b", true),
            ("add", "/a/b", false),
            ("replace", "/a/b", false),
            ("move", "/a/b", false),
            ("move", "/b", true),
            ("copy", "/a/b", false),
        ] {
            assert_eq!(patch(&object, &json!([at(op, path)])).is_ok(), fits, "{op} {path}");
        }
    }

    #[test]
    fn operations_together_move_a_bounded_number_of_values() {
        let object = json!({"list": vec![0; 100_000]});
        let insert = json!({"op": "add", "path": "/list/0", "value": 0});
        assert!(patch(&object, &vec![insert.clone(); 100].into()).is_ok());
        assert!(matches!(patch(&object, &vec![insert; 1000].into()), Err(Error::Unprocessable(_))));
    }

    #[test]
    fn more_operations_than_kubernetes_takes_are_too_large() {
        let test = json!({"op": "test", "path": "/a", "value": 1});
        let refused = patch(&json!({"a": 1}), &vec![test; OPERATIONS_MAX + 1].into()).unwrap_err();
        assert_eq!(refused.status().code, 413);
    }

    #[test]
    fn copies_of_more_bytes_than_kubernetes_takes_are_refused() {
        let object = json!({"a": "x".repeat(COPIED_BYTES_MAX / 2)});
        let copy = |path: &str| json!({"op": "copy", "from": "/a", "path": path});
        assert!(patch(&object, &json!([copy("/b")])).is_ok());
        let refused = patch(&object, &json!([copy("/b"), copy("/c")])).unwrap_err();
        assert_eq!(refused.status().code, 422);
    }
}
