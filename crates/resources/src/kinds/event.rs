//! Event: something that happened to an object. The rows `v1` and `events.k8s.io/v1` show the same objects; they are
//! kept as `v1`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{names, tree, wire};
use crate::field::Error;
use crate::kind::{Cell, Column, Kind, Retention, StoredAs};
use crate::table;

pub static KIND: Kind = Kind {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    schema: "io.k8s.api.core.v1.Event",
    columns: COLUMNS,
    default: |object| wire::canonical(KIND.schema, object),
    validate: |object, _| validate(object, "reportingComponent"),
    selectable_fields: SELECTABLE,
    create_on_update: true,
    reset_fields: &[],
    retention: Some(Retention { seconds: 3600, objects_max: 2000, last_use }),
    ..Kind::EMPTY
};

/// The same objects in the group `events.k8s.io`.
pub static EVENTS_KIND: Kind = Kind {
    group: "events.k8s.io",
    schema: "io.k8s.api.events.v1.Event",
    default: |object| wire::canonical(EVENTS_KIND.schema, object),
    validate: |object, old| {
        let mut object = object.clone();
        encode(&mut object);
        let mut errors = validate(&object, "reportingController");
        if old.is_none() {
            validate_new(&object, &mut errors);
        }
        errors
    },
    selectable_fields: EVENTS_SELECTABLE,
    stored_as: Some(&StoredAs { kind: &KIND, encode, decode }),
    ..KIND
};

/// The latest time in an event of the row `v1`.
fn last_use(object: &Value) -> Option<Timestamp> {
    let times = ["/metadata/creationTimestamp", "/lastTimestamp", "/eventTime", "/series/lastObservedTime"];
    times.iter().filter_map(|pointer| tree::str(object, pointer).parse().ok()).max()
}

/// Names in `events.k8s.io/v1`, and in `v1`.
const RENAMED: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

fn encode(object: &mut Value) {
    tree::set(object, "apiVersion", "v1");
    rename(object, |(there, here)| (there, here));
    wire::canonical(KIND.schema, object);
}

fn decode(object: &mut Value) {
    tree::set(object, "apiVersion", "events.k8s.io/v1");
    rename(object, |(there, here)| (here, there));
    wire::canonical(EVENTS_KIND.schema, object);
}

fn rename(object: &mut Value, direction: fn((&'static str, &'static str)) -> (&'static str, &'static str)) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in RENAMED.iter().copied().map(direction) {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

const COLUMNS: &[Column] = &[
    Column::new("Last Seen", "string", "When it happened last", Cell::Fn(|o, now| last_seen(o, now).into())),
    Column::new("Type", "string", "Normal or Warning", Cell::Fn(|o, _| tree::str(o, "/type").into())),
    Column::new("Reason", "string", "Why, as one word", Cell::Fn(|o, _| tree::str(o, "/reason").into())),
    Column::new("Object", "string", "What it happened to", Cell::Fn(|o, _| target(o).into())),
    Column::new(
        "Subobject",
        "string",
        "Which part of the object",
        Cell::Fn(|o, _| tree::str(subject(o), "/fieldPath").into()),
    )
    .wide(),
    Column::new("Source", "string", "Who reported it", Cell::Fn(|o, _| source(o).into())).wide(),
    Column::new(
        "Message",
        "string",
        "What happened, in words",
        Cell::Fn(|o, _| either(o, "/message", "/note").as_str().unwrap_or_default().trim().into()),
    ),
    Column::new(
        "First Seen",
        "string",
        "When it happened first",
        Cell::Fn(|o, now| first_seen(o, now).into()),
    )
    .wide(),
    Column::new("Count", "string", "How often it happened", Cell::Fn(|o, _| json!(count(o)))).wide(),
    Column { priority: 1, ..Column::NAME },
];

fn either<'a>(object: &'a Value, first: &str, second: &str) -> &'a Value {
    let value = tree::at(object, first);
    if value.is_null() { tree::at(object, second) } else { value }
}

fn age(time: &Value, now: Timestamp) -> String {
    table::age(Some(time).filter(|t| !t.is_null()), now)
}

fn subject(object: &Value) -> &Value {
    either(object, "/involvedObject", "/regarding")
}

fn first_seen(object: &Value, now: Timestamp) -> String {
    let first = either(object, "/firstTimestamp", "/deprecatedFirstTimestamp");
    age(if first.is_null() { tree::at(object, "/eventTime") } else { first }, now)
}

fn last_seen(object: &Value, now: Timestamp) -> String {
    let series = tree::at(object, "/series");
    if !series.is_null() {
        return age(tree::at(series, "/lastObservedTime"), now);
    }
    let last = either(object, "/lastTimestamp", "/deprecatedLastTimestamp");
    if last.is_null() { first_seen(object, now) } else { age(last, now) }
}

fn count(object: &Value) -> i64 {
    if tree::has(object, "/series") {
        return tree::int(object, "/series/count");
    }
    either(object, "/count", "/deprecatedCount").as_i64().filter(|n| *n != 0).unwrap_or(1)
}

fn target(object: &Value) -> String {
    let subject = subject(object);
    let kind = tree::str(subject, "/kind").to_lowercase();
    match tree::str(subject, "/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(object: &Value) -> String {
    let source = either(object, "/source", "/deprecatedSource");
    let or = |a: &str, b: &Value| {
        if a.is_empty() { b.as_str().unwrap_or_default().to_owned() } else { a.to_owned() }
    };
    let component =
        or(tree::str(source, "/component"), either(object, "/reportingComponent", "/reportingController"));
    let instance = or(tree::str(source, "/host"), tree::at(object, "/reportingInstance"));
    if instance.is_empty() { component } else { format!("{component}, {instance}") }
}

/// The subject's fields under the names that each group gives them, and what both share.
macro_rules! selectable {
    ($subject:literal, $reporter:literal) => {
        &[
            (concat!($subject, ".kind"), |o| tree::str(subject(o), "/kind").to_owned()),
            (concat!($subject, ".namespace"), |o| tree::str(subject(o), "/namespace").to_owned()),
            (concat!($subject, ".name"), |o| tree::str(subject(o), "/name").to_owned()),
            (concat!($subject, ".uid"), |o| tree::str(subject(o), "/uid").to_owned()),
            (concat!($subject, ".apiVersion"), |o| tree::str(subject(o), "/apiVersion").to_owned()),
            (concat!($subject, ".resourceVersion"), |o| tree::str(subject(o), "/resourceVersion").to_owned()),
            (concat!($subject, ".fieldPath"), |o| tree::str(subject(o), "/fieldPath").to_owned()),
            ("reason", |o| tree::str(o, "/reason").to_owned()),
            ($reporter, |o| {
                either(o, "/reportingComponent", "/reportingController")
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            }),
            ("type", |o| tree::str(o, "/type").to_owned()),
            ("source", |o| {
                let source = either(o, "/source", "/deprecatedSource");
                match tree::str(source, "/component") {
                    "" => {
                        either(o, "/reportingComponent", "/reportingController").as_str().unwrap_or_default()
                    }
                    component => component,
                }
                .to_owned()
            }),
        ]
    };
}

const SELECTABLE: &[crate::kind::SelectableField] = selectable!("involvedObject", "reportingComponent");
const EVENTS_SELECTABLE: &[crate::kind::SelectableField] = selectable!("regarding", "reportingController");

/// What both groups ask for; the object is in the form of `v1`.
fn validate(object: &Value, reporter: &str) -> Vec<Error> {
    let mut errors = Vec::new();
    let namespace = tree::str(object, "/metadata/namespace");
    let involved = tree::str(object, "/involvedObject/namespace");
    let mismatch = || Error::invalid("involvedObject.namespace", involved, "does not match event.namespace");
    if tree::at(object, "/eventTime").is_null() {
        if namespace != involved && !(involved.is_empty() && matches!(namespace, "" | "default")) {
            errors.push(mismatch());
        }
        return errors;
    }
    if involved.is_empty() && !matches!(namespace, "default" | "kube-system") {
        errors.push(mismatch());
    }
    let component = tree::str(object, "/reportingComponent");
    if component.is_empty() {
        errors.push(Error::required(reporter, ""));
    }
    names::qualified(&mut errors, reporter, component);
    for (key, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)] {
        let text = tree::get(object, key).as_str().unwrap_or_default();
        if text.is_empty() && key != "message" {
            errors.push(Error::required(key, ""));
        }
        if text.len() > max {
            errors.push(Error::invalid(key, "", format!("can have at most {max} characters")));
        }
    }
    errors
}

/// What a new object of `events.k8s.io` must have besides.
fn validate_new(object: &Value, errors: &mut Vec<Error>) {
    if tree::has(object, "/series") {
        if tree::int(object, "/series/count") < 2 {
            errors.push(Error::invalid("series.count", "", "should be at least 2"));
        }
        if !tree::has(object, "/series/lastObservedTime") {
            errors.push(Error::required("series.lastObservedTime", ""));
        }
    }
    if !tree::has(object, "/eventTime") {
        errors.push(Error::required("eventTime", ""));
    }
    let kind = tree::str(object, "/type");
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(Error::invalid("type", "", format!("has invalid value: {kind}")));
    }
    for (key, set) in [
        ("firstTimestamp", tree::has(object, "/firstTimestamp")),
        ("lastTimestamp", tree::has(object, "/lastTimestamp")),
        ("count", tree::int(object, "/count") != 0),
        ("source", tree::entries(object, "/source").next().is_some()),
    ] {
        if set {
            errors.push(Error::invalid(key, "", "needs to be unset"));
        }
    }
}
