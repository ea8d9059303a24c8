//! Server-side apply and the tracking of field owners for every other write
//! (structured-merge-diff and apimachinery `util/managedfields`).
//!
//! Both functions work on objects in canonical form ([`crate::schema::canonical`]) with defaults filled in, before the
//! kind's `prepare`. What they own is decided by comparing such objects, so a field that the server fills in later
//! (an allocated address, a status kept) belongs to nobody.

mod element;
mod managed;
mod set;
mod typed;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use element::Element;
pub use managed::{Identity, Managed, Operation, UPDATE_MANAGERS_MAX};
pub use set::{Path, Set};

use crate::kind::Kind;
use crate::schema::{self, Schema};
use crate::status::{Cause, Status};
use managed::Entry;
use typed::Comparison;

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
/// Fields that no manager owns.
const STRIPPED: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "metadata.name",
    "metadata.namespace",
    "metadata.creationTimestamp",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.clusterName",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
];

/// Who writes, and through what.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The kind of the object.
    pub kind: &'a Kind,
    /// The field manager: `fieldManager`, else [`manager_of_user_agent`].
    pub manager: &'a str,
    /// "" or "status", "scale" …
    pub subresource: &'a str,
    /// Now; kept in whole seconds.
    pub now: Timestamp,
}

/// Why an apply is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Other managers own fields that the configuration would change.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration is no object of this kind.
    #[error("{0}")]
    BadRequest(String),
    /// The configuration does not fit the schema.
    #[error("failed to create typed patch object ({object}): {}", typed_message(.errors))]
    Typed {
        /// Namespace, name and kind.
        object: String,
        /// All that is wrong.
        errors: Vec<String>,
    },
    /// No such definition.
    #[error("no schema {0:?}")]
    Schema(&'static str),
}

/// A field that another manager owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Whose.
    pub owner: Identity,
    /// Which.
    pub path: Path,
}

impl Error {
    /// As the client sees it.
    pub fn status(&self) -> Status {
        match self {
            Error::Conflicts(conflicts) => {
                let causes = conflicts
                    .iter()
                    .map(|c| Cause {
                        reason: "FieldManagerConflict".to_owned(),
                        message: format!("conflict with {}", c.owner.show()),
                        field: set::show(&c.path),
                    })
                    .collect();
                Status::apply_conflict(self.to_string(), causes)
            }
            Error::BadRequest(message) => Status::bad_request(message),
            Error::Typed { .. } | Error::Schema(_) => Status::unknown(self.to_string()),
        }
    }
}

fn typed_message(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.owner.show(),
            set::show(&one.path)
        );
    }
    let mut lines: Vec<String> = Vec::new();
    let mut owner = None;
    for conflict in conflicts {
        if owner != Some(&conflict.owner) {
            lines.push(format!("conflicts with {}:", conflict.owner.show()));
            owner = Some(&conflict.owner);
        }
        lines.push(format!("- {}", set::show(&conflict.path)));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// `["a" "b"]`, as Go's `%q` shows a list.
fn quoted_list(texts: &[&str]) -> String {
    let quoted: Vec<String> = texts.iter().map(|t| crate::field::quote(t)).collect();
    format!("[{}]", quoted.join(" "))
}

/// The manager of a request without `fieldManager`: the User-Agent up to the first slash, at most 128 bytes.
pub fn manager_of_user_agent(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or("");
    let mut out = String::new();
    for c in name.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > 128 {
            break;
        }
        out.push(c);
    }
    out
}

/// Whether a body asks to forget all field owners: `managedFields` is `[]` or `[{}]`. To be asked before the body is
/// brought into canonical form.
pub fn is_reset(body: &Value) -> bool {
    match body.pointer("/metadata/managedFields").and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    }
}

/// Tracks the owners of a create, update or patch (not apply). `live` is the stored object, None on create; `new` gets
/// its `managedFields`. `reset` is [`is_reset`] of the body.
pub fn update(
    live: Option<&Value>,
    new: &mut Value,
    reset: bool,
    request: &Request<'_>,
) -> Result<(), Error> {
    let schema = schema_of(request.kind)?;
    schema::canonical(request.kind.schema, new);
    let of_live = || live.map(Managed::of).unwrap_or_default();
    let managed = if !request.subresource.is_empty() {
        of_live()
    } else if reset {
        Managed::default()
    } else {
        match Managed::read(new) {
            Some(managed) if !managed.entries.is_empty() => managed,
            _ => of_live(),
        }
    };
    forget(new);
    // An object that nobody ever tracked stays so, unless this write makes it.
    if managed.entries.is_empty() && live.is_some() {
        return Ok(());
    }
    let empty;
    let old = match live {
        Some(live) => live,
        None => {
            empty = empty_object(request.kind);
            &empty
        }
    };
    let mut managed = track(schema, old, new, managed, request.manager, request);
    managed.cap();
    managed.write(new);
    Ok(())
}

/// Applies a configuration. `live` is the stored object, None when the apply creates it. The result has its
/// `managedFields`, is in canonical form and has no defaults yet.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    force: bool,
    request: &Request<'_>,
) -> Result<Value, Error> {
    let schema = schema_of(request.kind)?;
    check_config(schema, config, request)?;
    let empty = empty_object(request.kind);
    let mut old = live.cloned().unwrap_or_else(|| empty.clone());
    let mut managed = Managed::of(&old);
    forget(&mut old);
    if managed.entries.is_empty() {
        managed = track(schema, &empty, &old, managed, "before-first-apply", request);
        managed.cap();
    }
    let result = merge(schema, &old, config, managed.clone(), force, request);
    let result = match result {
        Err(Error::Conflicts(conflicts)) if request.manager == "kubectl" => {
            match allowed_by_last_applied(schema, &old, conflicts, request) {
                Ok(()) => merge(schema, &old, config, managed, true, request),
                Err(rest) => Err(Error::Conflicts(rest)),
            }
        }
        other => other,
    };
    let (mut object, managed) = result?;
    if request.manager == "kubectl" {
        refresh_last_applied(&mut object, config);
    }
    schema::canonical(request.kind.schema, &mut object);
    managed.write(&mut object);
    Ok(object)
}

/// Keeps the stored times when nothing but the times of managers changed, so that a write that changes nothing makes no
/// new revision. To be called last, on the object as it would be stored.
pub fn keep_times(live: &Value, new: &mut Value) {
    let entries = |object: &Value| -> Vec<Value> {
        let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        let mut list = list.cloned().unwrap_or_default();
        for entry in &mut list {
            if let Some(map) = entry.as_object_mut() {
                map.remove("time");
            }
        }
        list
    };
    let (old_entries, new_entries) = (entries(live), entries(new));
    if new_entries.is_empty() || old_entries != new_entries {
        return;
    }
    let (mut a, mut b) = (live.clone(), new.clone());
    forget(&mut a);
    forget(&mut b);
    if a == b {
        *new = live.clone();
    }
}

fn schema_of(kind: &Kind) -> Result<&'static Schema, Error> {
    schema::of(kind.schema).ok_or(Error::Schema(kind.schema))
}

/// An object of the kind in which nothing is set: what is always written is there.
fn empty_object(kind: &Kind) -> Value {
    let mut object = json!({});
    schema::canonical(kind.schema, &mut object);
    object
}

fn forget(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
}

fn reset_fields(request: &Request<'_>) -> Set {
    let fields = match request.subresource {
        "" => request.kind.reset_fields,
        "status" => request.kind.reset_fields_status,
        _ => &[],
    };
    let mut set = Set::default();
    fields.iter().for_each(|f| set.insert_dotted(f));
    set
}

fn strip(set: &Set) -> Set {
    let mut stripped = Set::default();
    STRIPPED.iter().for_each(|f| stripped.insert_dotted(f));
    set.difference(&stripped)
}

fn now(request: &Request<'_>) -> Option<String> {
    Some(format!("{:.0}", request.now))
}

/// Entries in versions that this server does not serve are dropped.
fn served(managed: Managed, request: &Request<'_>) -> Managed {
    let version = request.kind.api_version();
    Managed { entries: managed.entries.into_iter().filter(|(_, e)| e.api_version == version).collect() }
}

/// Gives what changed between two objects to a manager that updates.
fn track(
    schema: &'static Schema,
    old: &Value,
    new: &Value,
    managed: Managed,
    manager: &str,
    request: &Request<'_>,
) -> Managed {
    let mut managed = served(managed, request);
    let ignored = reset_fields(request);
    let comparison = Comparison::of(schema, old, new).without(&ignored);
    let changed = comparison.modified.union(&comparison.added);
    for entry in managed.entries.values_mut() {
        entry.set = entry.set.difference(&changed).difference(&comparison.removed);
    }
    managed.entries.retain(|_, e| !e.set.is_empty());
    let set = strip(&changed);
    if set.is_empty() {
        return managed;
    }
    let api_version = request.kind.api_version();
    let identity = Identity::new(manager, Operation::Update, &api_version, request.subresource);
    let set = managed.entries.get(&identity).map_or_else(|| set.clone(), |previous| set.union(&previous.set));
    managed.entries.insert(identity, Entry { set, api_version, time: now(request) });
    managed
}

fn check_config(schema: &'static Schema, config: &Value, request: &Request<'_>) -> Result<(), Error> {
    let text = |pointer: &str| config.pointer(pointer).and_then(Value::as_str).unwrap_or("");
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    let shown = if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") };
    if api_version != request.kind.api_version() || kind != request.kind.kind {
        return Err(Error::BadRequest(format!("invalid object type: {shown}, Kind={kind}")));
    }
    if config.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Error::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let errors = typed::validate(schema, config);
    if errors.is_empty() {
        return Ok(());
    }
    let object = format!("{}/{}; {shown}, Kind={kind}", text("/metadata/namespace"), text("/metadata/name"));
    Err(Error::Typed { object, errors })
}

/// The heart of apply: the merged object without what the manager no longer sets, and the new owners.
fn merge(
    schema: &'static Schema,
    old: &Value,
    config: &Value,
    managed: Managed,
    force: bool,
    request: &Request<'_>,
) -> Result<(Value, Managed), Error> {
    let mut managed = served(managed, request);
    let api_version = request.kind.api_version();
    let identity = Identity::new(request.manager, Operation::Apply, &api_version, request.subresource);
    let ignored = reset_fields(request);
    let merged = typed::merge(schema, old, config);
    let set = typed::field_set(schema, config).recursive_difference(&ignored);
    let last = managed.entries.remove(&identity);
    let time = last.as_ref().and_then(|e| e.time.clone());
    managed.entries.insert(identity.clone(), Entry { set, api_version, time });
    let new = match &last {
        Some(last) if !last.set.is_empty() => prune(schema, merged, &managed, &last.set),
        _ => merged,
    };
    let comparison = Comparison::of(schema, old, &new).without(&ignored);
    let changed = comparison.modified.union(&comparison.added);
    let mut conflicts = Vec::new();
    for (owner, entry) in managed.entries.iter_mut().filter(|(owner, _)| **owner != identity) {
        let taken = entry.set.intersection(&changed);
        conflicts.extend(taken.paths().into_iter().map(|path| Conflict { owner: owner.clone(), path }));
        entry.set = entry.set.difference(&taken).difference(&comparison.removed);
    }
    if !force && !conflicts.is_empty() {
        return Err(Error::Conflicts(conflicts));
    }
    if let Some(own) = managed.entries.get_mut(&identity) {
        own.set = strip(&own.set);
        // A write that changes no value leaves the time as it was.
        if new != *old {
            own.time = now(request);
        }
    }
    managed.entries.retain(|_, e| !e.set.is_empty());
    Ok((new, managed))
}

/// Removes what the manager set last time, sets no longer, and nobody else owns.
fn prune(schema: &'static Schema, merged: Value, managed: &Managed, last: &Set) -> Value {
    let node = Some(typed::Node::root(schema));
    let named = |set: &Set| set.with_named_parents(node);
    let paths = |value: &Value| named(&typed::field_set(schema, value));
    let last = named(last);
    let pruned = typed::remove(schema, &merged, &last);
    // Owned items come back: removing a parent took them along.
    let owned = managed.entries.values().fold(Set::default(), |all, e| all.union(&e.set));
    let all = paths(&merged);
    let pruned = typed::remove(schema, &merged, &all.difference(&paths(&pruned).union(&named(&owned))));
    // So do items that nobody ever owned.
    typed::remove(schema, &merged, &all.difference(&paths(&pruned)).intersection(&last))
}

/// Conflicts over fields that client-side apply set and nobody changed since are none for kubectl; returns the others.
fn allowed_by_last_applied(
    schema: &'static Schema,
    live: &Value,
    conflicts: Vec<Conflict>,
    request: &Request<'_>,
) -> Result<(), Vec<Conflict>> {
    let last = last_applied(live).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let Some(last) = last.filter(|l| l.get("apiVersion") == Some(&request.kind.api_version().into())) else {
        return Err(conflicts);
    };
    let comparison = Comparison::of(schema, &last, live);
    let allowed = typed::field_set(schema, &last)
        .difference(&comparison.modified)
        .difference(&comparison.added)
        .difference(&comparison.removed);
    let allowed = allowed.paths();
    let rest: Vec<Conflict> = conflicts.into_iter().filter(|c| !allowed.contains(&c.path)).collect();
    if rest.is_empty() { Ok(()) } else { Err(rest) }
}

fn last_applied(object: &Value) -> Option<&str> {
    let annotations = object.pointer("/metadata/annotations")?;
    annotations.get(LAST_APPLIED)?.as_str().filter(|text| !text.is_empty())
}

/// Keeps client-side apply's annotation in step with what kubectl applies on the server's side.
fn refresh_last_applied(object: &mut Value, config: &Value) {
    if last_applied(object).is_none() {
        return;
    }
    let mut config = config.clone();
    if let Some(annotations) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{config}\n");
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.insert(LAST_APPLIED.to_owned(), text.into());
        let bytes: usize = annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
        if bytes > ANNOTATIONS_BYTES_MAX {
            annotations.remove(LAST_APPLIED);
        }
    }
}

#[cfg(test)]
mod tests;
