//! `meta.k8s.io/v1` Table: what `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kind::{Cell, Column, Kind};

/// Help text of the Name column.
pub const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
/// Help text of the Age and Created At columns.
pub const AGE_DESCRIPTION: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";

/// What each row carries of its object (`includeObject`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// PartialObjectMetadata.
    #[default]
    Metadata,
    /// All of it.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter; "" is the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(IncludeObject::Metadata),
            "None" => Some(IncludeObject::None),
            "Object" => Some(IncludeObject::Object),
            _ => None,
        }
    }
}

const FALLBACK: &[Column] = &[
    Column::NAME,
    Column {
        name: "Created At",
        type_: "date",
        format: "",
        description: AGE_DESCRIPTION,
        priority: 0,
        cell: Cell::Pointer("/metadata/creationTimestamp"),
    },
];

fn columns_of(kind: &Kind) -> &'static [Column] {
    if kind.columns.is_empty() { FALLBACK } else { kind.columns }
}

/// `columnDefinitions` of a kind.
pub fn columns(kind: &Kind) -> Value {
    columns_of(kind)
        .iter()
        .map(|c| {
            json!({
                "name": c.name, "type": c.type_, "format": c.format,
                "description": c.description, "priority": c.priority,
            })
        })
        .collect()
}

/// One row.
pub fn row(kind: &Kind, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let cells: Vec<Value> = columns_of(kind).iter().map(|c| cell(c, object, now)).collect();
    let mut row = Map::new();
    row.insert("cells".to_owned(), cells.into());
    let shown = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(object),
        IncludeObject::Object => object.clone(),
    };
    row.insert("object".to_owned(), shown);
    if let Some(condition) = (kind.row_condition)(object) {
        row.insert("conditions".to_owned(), json!([condition]));
    }
    Value::Object(row)
}

/// The object's metadata as a `PartialObjectMetadata`.
pub fn partial_metadata(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// A whole table. `metadata` is the list's (resourceVersion, continue …) or the object's resourceVersion alone;
/// `headings` is false for all but the first event of a watch.
pub fn table<'a>(
    kind: &Kind,
    objects: impl IntoIterator<Item = &'a Value>,
    metadata: Value,
    include: IncludeObject,
    now: Timestamp,
    headings: bool,
) -> Value {
    let rows: Vec<Value> = objects.into_iter().map(|o| row(kind, o, include, now)).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if headings { columns(kind) } else { Value::Null },
        "rows": rows,
    })
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    match column.cell {
        Cell::Fn(f) => f(object, now),
        Cell::Age(pointer) => age(object.pointer(pointer), now).into(),
        Cell::Pointer(pointer) => match object.pointer(pointer) {
            Some(value) if !value.is_null() => value.clone(),
            _ => match column.type_ {
                "integer" | "number" => 0.into(),
                "boolean" => false.into(),
                _ => "".into(),
            },
        },
    }
}

/// The age of an RFC 3339 time, as kubectl shows it.
pub fn age(time: Option<&Value>, now: Timestamp) -> String {
    match time.and_then(Value::as_str).and_then(|t| t.parse::<Timestamp>().ok()) {
        Some(then) => human_duration(now.as_second() - then.as_second()),
        None => "<unknown>".to_owned(),
    }
}

/// A number of seconds in at most two units (`3d4h`), as kubectl shows it.
pub fn human_duration(seconds: i64) -> String {
    let two = |a: i64, unit_a: char, b: i64, unit_b: char| {
        if b == 0 { format!("{a}{unit_a}") } else { format!("{a}{unit_a}{b}{unit_b}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, year) = (hours / 24, 365);
    if seconds < -1 {
        "<invalid>".to_owned()
    } else if seconds < 0 {
        "0s".to_owned()
    } else if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        two(minutes, 'm', seconds % 60, 's')
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        two(hours, 'h', minutes % 60, 'm')
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 24 * 8 {
        two(days, 'd', hours % 24, 'h')
    } else if days < year * 2 {
        format!("{days}d")
    } else if days < year * 8 {
        two(days / year, 'y', days % year, 'd')
    } else {
        format!("{}y", days / year)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (601, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 1800, "3h30m"),
            (47 * 3600, "47h"),
            (48 * 3600, "2d"),
            (50 * 3600, "2d2h"),
            (8 * 86400, "8d"),
            (800 * 86400, "2y70d"),
            (3000 * 86400, "8y"),
        ] {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
