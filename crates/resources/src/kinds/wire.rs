//! What of an object of a built-in kind is on the wire: fields that clients' structs drop when they are zero, fields
//! that are always written, quantities and times in canonical form. `wire.txt` holds the marks (`cargo xtask wire`).

use std::collections::HashMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::quantity::Quantity;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// Gone when zero.
    Zero,
    /// Gone when null.
    Null,
    /// Always there; with this when it is missing.
    Text,
    Number,
    Bool,
    Nothing,
    Struct,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    One,
    List,
    Map,
}

struct Field {
    name: &'static str,
    mark: Mark,
    shape: Shape,
    target: &'static str,
}

static TABLE: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| {
    include_str!("wire.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.filter_map(field).collect()))
        })
        .collect()
});

fn field(word: &'static str) -> Option<Field> {
    let end = word.find(['-', '*', '"', '0', '!', '~', '{'])?;
    let mark = match word.as_bytes()[end] {
        b'-' => Mark::Zero,
        b'*' => Mark::Null,
        b'"' => Mark::Text,
        b'0' => Mark::Number,
        b'!' => Mark::Bool,
        b'{' => Mark::Struct,
        _ => Mark::Nothing,
    };
    let rest = &word[end + 1..];
    let (shape, target) = match rest.as_bytes().first() {
        Some(b'[') => (Shape::List, &rest[1..]),
        Some(b'%') => (Shape::Map, &rest[1..]),
        _ => (Shape::One, rest),
    };
    Some(Field { name: &word[..end], mark, shape, target })
}

/// Brings an object of a definition (`io.k8s.api.core.v1.Pod`) into the form in which it is stored and shown. Unknown
/// fields stay. Idempotent.
pub fn canonical(definition: &str, value: &mut Value) {
    let name = definition
        .strip_prefix("io.k8s.api.")
        .or_else(|| definition.strip_prefix("io.k8s.apimachinery.pkg.apis."))
        .unwrap_or(definition);
    walk(name, value);
}

fn walk(name: &str, value: &mut Value) {
    match name {
        "" => {}
        "Quantity" => quantity(value),
        "meta.v1.Time" => time(value, 0),
        "meta.v1.MicroTime" => time(value, 6),
        _ => {
            if let (Some(fields), Some(map)) = (TABLE.get(name), value.as_object_mut()) {
                for field in fields {
                    walk_field(field, map);
                }
            }
        }
    }
}

fn walk_field(field: &Field, map: &mut Map<String, Value>) {
    let gone = match map.get(field.name) {
        None => true,
        Some(value) => match field.mark {
            Mark::Zero => is_zero(value),
            _ => value.is_null(),
        },
    };
    if gone {
        let zero = match field.mark {
            Mark::Zero | Mark::Null => {
                map.remove(field.name);
                return;
            }
            Mark::Text => Value::String(String::new()),
            Mark::Number => Value::from(0),
            Mark::Bool => Value::Bool(false),
            Mark::Nothing => Value::Null,
            Mark::Struct => Value::Object(Map::new()),
        };
        map.insert(field.name.to_owned(), zero);
    }
    let Some(value) = map.get_mut(field.name) else { return };
    match (field.shape, value) {
        (Shape::One, value) => walk(field.target, value),
        (Shape::List, Value::Array(list)) if !field.target.is_empty() => {
            list.iter_mut().for_each(|item| walk(field.target, item));
        }
        (Shape::Map, Value::Object(entries)) if !field.target.is_empty() => {
            entries.values_mut().for_each(|item| walk(field.target, item));
        }
        _ => {}
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn quantity(value: &mut Value) {
    let text = match &*value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null => "0".to_owned(),
        _ => return,
    };
    if let Ok(parsed) = text.parse::<Quantity>() {
        *value = Value::String(parsed.to_string());
    }
}

/// RFC 3339 in UTC, with so many digits of a second.
fn time(value: &mut Value, digits: usize) {
    let Some(parsed) = value.as_str().and_then(|text| text.parse::<Timestamp>().ok()) else { return };
    *value = Value::String(format!("{parsed:.digits$}"));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn zeros_go_and_structs_stay() {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {}},
            "spec": {"hostNetwork": false, "containers": [{"name": "a", "env": [], "resources": {"limits": {"cpu": "1000m"}}}]},
        });
        canonical("io.k8s.api.core.v1.Pod", &mut pod);
        assert_eq!(
            pod,
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"},
                "spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": "1"}}}]},
                "status": {},
            })
        );
        let once = pod.clone();
        canonical("io.k8s.api.core.v1.Pod", &mut pod);
        assert_eq!(pod, once);
    }

    #[test]
    fn times_are_utc() {
        let mut lease = json!({"spec": {"renewTime": "2026-01-02T03:04:05.5+01:00"}});
        canonical("io.k8s.api.coordination.v1.Lease", &mut lease);
        assert_eq!(lease["spec"]["renewTime"], "2026-01-02T02:04:05.500000Z");
    }
}
