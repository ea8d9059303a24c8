//! `metadata.managedFields`: who set what, when. Read from and written to an object.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::set::Set;

/// Update managers beyond this number are put together, oldest first.
pub const UPDATE_MANAGERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Server-side apply.
    Apply,
    /// Everything else.
    Update,
}

impl Operation {
    const fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What tells one entry from another. An applier's version is not part of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Field manager.
    pub manager: String,
    /// How it writes.
    pub operation: Operation,
    /// apiVersion of an updater, "" of an applier.
    pub api_version: String,
    /// "" or the subresource through which it writes.
    pub subresource: String,
}

impl Identity {
    /// The identity of a manager that now writes.
    pub fn new(manager: &str, operation: Operation, api_version: &str, subresource: &str) -> Self {
        let manager = if manager.is_empty() { "unknown" } else { manager };
        Identity {
            manager: manager.to_owned(),
            operation,
            api_version: if operation == Operation::Apply { String::new() } else { api_version.to_owned() },
            subresource: subresource.to_owned(),
        }
    }

    /// As a conflict names it: `"x" using v1`.
    pub fn show(&self) -> String {
        let mut text = crate::field::quote(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {}", crate::field::quote(&self.subresource)));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// What one manager owns.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The fields.
    pub set: Set,
    /// Version in which it wrote them.
    pub api_version: String,
    /// When; None after a write that changed nothing.
    pub time: Option<String>,
}

/// All managers of an object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managed {
    /// By identity.
    pub entries: BTreeMap<Identity, Entry>,
}

impl Managed {
    /// What an object says; nothing when it cannot be read.
    pub fn of(object: &Value) -> Managed {
        Self::read(object).unwrap_or_default()
    }

    /// What an object says; None when it cannot be read.
    pub fn read(object: &Value) -> Option<Managed> {
        let mut managed = Managed::default();
        for entry in object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten()
        {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("");
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            };
            if text("apiVersion").is_empty() || text("fieldsType") != "FieldsV1" {
                return None;
            }
            let identity = Identity {
                manager: text("manager").to_owned(),
                operation,
                api_version: if operation == Operation::Apply {
                    String::new()
                } else {
                    text("apiVersion").to_owned()
                },
                subresource: text("subresource").to_owned(),
            };
            let set = match entry.get("fieldsV1") {
                None | Some(Value::Null) => Set::default(),
                Some(fields) => Set::decode(fields).ok()?,
            };
            let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
            managed.entries.insert(identity, Entry { set, api_version: text("apiVersion").to_owned(), time });
        }
        Some(managed)
    }

    /// Writes `metadata.managedFields`, sorted as Kubernetes does.
    pub fn write(&self, object: &mut Value) {
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        if self.entries.is_empty() {
            metadata.remove("managedFields");
            return;
        }
        let mut entries: Vec<(&Identity, &Entry)> = self.entries.iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            let key = |i: &Identity, e: &Entry| (i.operation, seconds(e.time.as_deref()));
            key(a, x).cmp(&key(b, y)).then_with(|| {
                (&a.manager, &x.api_version, &a.subresource).cmp(&(
                    &b.manager,
                    &y.api_version,
                    &b.subresource,
                ))
            })
        });
        let list: Vec<Value> = entries.into_iter().map(|(i, e)| entry_value(i, e)).collect();
        metadata.insert("managedFields".to_owned(), list.into());
    }

    /// Puts the oldest updaters of a version together until no more than [`UPDATE_MANAGERS_MAX`] are left.
    pub fn cap(&mut self) {
        let mut updaters: Vec<Identity> =
            self.entries.keys().filter(|i| i.operation == Operation::Update).cloned().collect();
        let mut length = updaters.len();
        if length <= UPDATE_MANAGERS_MAX {
            return;
        }
        updaters.sort_by_key(|i| (seconds(self.entries[i].time.as_deref()), i.clone()));
        let mut first_of: BTreeMap<String, Identity> = BTreeMap::new();
        for identity in updaters {
            if length <= UPDATE_MANAGERS_MAX {
                break;
            }
            let version = self.entries[&identity].api_version.clone();
            let Some(first) = first_of.get(&version) else {
                first_of.insert(version, identity);
                continue;
            };
            let bucket = Identity::new(ANCIENT, Operation::Update, &version, "");
            if !self.entries.contains_key(&bucket)
                && let Some(entry) = self.entries.remove(first)
            {
                self.entries.insert(bucket.clone(), entry);
            }
            let Some(entry) = self.entries.remove(&identity) else { continue };
            if let Some(ancient) = self.entries.get_mut(&bucket) {
                ancient.set = entry.set.union(&ancient.set);
                ancient.time = entry.time;
            }
            length -= 1;
        }
    }
}

fn seconds(time: Option<&str>) -> i64 {
    time.and_then(|t| t.parse::<Timestamp>().ok()).map_or(0, Timestamp::as_second)
}

fn entry_value(identity: &Identity, entry: &Entry) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| out.insert(key.to_owned(), value);
    put("manager", identity.manager.clone().into());
    put("operation", identity.operation.as_str().into());
    put("apiVersion", entry.api_version.clone().into());
    if let Some(time) = &entry.time {
        put("time", time.clone().into());
    }
    put("fieldsType", "FieldsV1".into());
    put("fieldsV1", entry.set.encode());
    if !identity.subresource.is_empty() {
        put("subresource", identity.subresource.clone().into());
    }
    Value::Object(out)
}
