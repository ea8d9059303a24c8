//! One row of the table of kinds: everything that the API server, discovery, OpenAPI and the printer know of a kind.
//!
//! A built-in kind is a `static` made with `..Kind::EMPTY` in `kinds/<kind>.rs` and one line of [`crate::KINDS`].
//! Everything here is pure: no row does I/O; what must be allocated comes through [`Allocator`].
//!
//! The order in which the API server uses a row, for a create or an update of the main resource:
//! decode and [`crate::schema::check`] → `default` → [`crate::apply`] (field ownership) → `prepare` → generation →
//! metadata and `validate` → `allocate` → store.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

use crate::field;

/// Where objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One name space for the whole cluster.
    Cluster,
    /// Names are unique within a Namespace.
    Namespaced,
}

/// When `metadata.generation` grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// The kind has no generation.
    None,
    /// Starts at 1; grows when something outside `metadata` and `status` changes.
    Spec,
    /// As `Spec`, and also when `metadata.annotations` change (Deployment).
    SpecAndAnnotations,
    /// As `Spec`, and also when `metadata.labels` change (EndpointSlice).
    SpecAndLabels,
}

/// What DELETE means for a kind.
#[derive(Clone, Copy, Debug)]
pub enum Deletion {
    /// The object goes at once (unless it has finalizers).
    Immediate,
    /// The object gets a deletionTimestamp first. The function turns the object and the requested
    /// `gracePeriodSeconds` into the seconds to grant; 0 removes the object at once.
    Graceful(fn(&Value, Option<i64>) -> i64),
    /// The object stays, in phase Terminating, until `spec.finalizers` is empty (Namespace).
    SpecFinalizers,
}

/// The rule for `metadata.name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// RFC 1123 subdomain, at most 253 characters.
    Subdomain,
    /// RFC 1123 label, at most 63 characters.
    Label,
    /// RFC 1035 label (starts with a letter), at most 63 characters.
    Label1035,
    /// Anything that can be a path segment (RBAC names).
    PathSegment,
}

/// The paths of a scale subresource, as JSON pointers.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// Desired replicas, written through the subresource.
    pub spec_replicas: &'static str,
    /// Observed replicas.
    pub status_replicas: &'static str,
    /// A LabelSelector object, shown as a string in `status.selector`.
    pub selector: &'static str,
}

impl Scale {
    /// Deployment, ReplicaSet, StatefulSet.
    pub const STANDARD: Scale = Scale {
        spec_replicas: "/spec/replicas",
        status_replicas: "/status/replicas",
        selector: "/spec/selector",
    };
}

/// What stands behind `/<name>/<subresource>`.
#[derive(Clone, Copy, Debug)]
pub enum Subresource {
    /// get, patch, update of the same object; only `status` (and what the kind allows) changes.
    Status,
    /// get, patch, update of autoscaling/v1 Scale.
    Scale(Scale),
    /// get: the container's log.
    Log,
    /// get, create: stream.
    Attach,
    /// get, create: stream.
    Exec,
    /// get, create: stream.
    PortForward,
    /// create of v1 Binding.
    Binding,
    /// create of policy/v1 Eviction.
    Eviction,
    /// get, patch, update of the same object; only ephemeral containers change.
    EphemeralContainers,
    /// get, patch, update of the same object; only resources change.
    Resize,
    /// update of the same object; only `spec.finalizers` changes (Namespace).
    Finalize,
    /// create of authentication.k8s.io/v1 TokenRequest (ServiceAccount).
    Token,
    /// Any verb: HTTP to what the object stands for (Node, Pod, Service).
    Proxy,
}

impl Subresource {
    /// The last path segment.
    pub const fn name(&self) -> &'static str {
        match self {
            Subresource::Status => "status",
            Subresource::Scale(_) => "scale",
            Subresource::Log => "log",
            Subresource::Attach => "attach",
            Subresource::Exec => "exec",
            Subresource::PortForward => "portforward",
            Subresource::Binding => "binding",
            Subresource::Eviction => "eviction",
            Subresource::EphemeralContainers => "ephemeralcontainers",
            Subresource::Resize => "resize",
            Subresource::Finalize => "finalize",
            Subresource::Token => "token",
            Subresource::Proxy => "proxy",
        }
    }

    /// What discovery lists, sorted.
    pub const fn verbs(&self) -> &'static [&'static str] {
        match self {
            Subresource::Status
            | Subresource::Scale(_)
            | Subresource::EphemeralContainers
            | Subresource::Resize => &["get", "patch", "update"],
            Subresource::Log => &["get"],
            Subresource::Attach | Subresource::Exec | Subresource::PortForward => &["create", "get"],
            Subresource::Binding | Subresource::Eviction | Subresource::Token => &["create"],
            Subresource::Finalize => &["update"],
            Subresource::Proxy => &["create", "delete", "get", "patch", "update"],
        }
    }

    /// Group, version and kind of the body when it is not the parent's, as discovery shows them.
    pub const fn body(&self) -> Option<(&'static str, &'static str, &'static str)> {
        match self {
            Subresource::Scale(_) => Some(("autoscaling", "v1", "Scale")),
            Subresource::Binding => Some(("", "v1", "Binding")),
            Subresource::Eviction => Some(("policy", "v1", "Eviction")),
            Subresource::Token => Some(("authentication.k8s.io", "v1", "TokenRequest")),
            Subresource::Attach => Some(("", "v1", "PodAttachOptions")),
            Subresource::Exec => Some(("", "v1", "PodExecOptions")),
            Subresource::PortForward => Some(("", "v1", "PodPortForwardOptions")),
            _ => None,
        }
    }
}

/// How a cell of a table gets its value.
#[derive(Clone, Copy, Debug)]
pub enum Cell {
    /// A JSON pointer; missing prints as an empty string for strings, 0 for integers.
    Pointer(&'static str),
    /// A JSON pointer to a time, shown as an age (`5m`); missing prints `<unknown>`.
    Age(&'static str),
    /// Computed from the object and the present time.
    Fn(fn(&Value, Timestamp) -> Value),
}

/// One column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading, as Kubernetes spells it ("Ready").
    pub name: &'static str,
    /// OpenAPI type: "string", "integer", "date", "boolean", "number".
    pub type_: &'static str,
    /// OpenAPI format; "name" marks the column that identifies the row.
    pub format: &'static str,
    /// Shown by some clients as help.
    pub description: &'static str,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
    /// Where the value comes from.
    pub cell: Cell,
}

impl Column {
    /// The column that every kind starts with.
    pub const NAME: Column = Column {
        name: "Name",
        type_: "string",
        format: "name",
        description: crate::table::NAME_DESCRIPTION,
        priority: 0,
        cell: Cell::Pointer("/metadata/name"),
    };
    /// The column that most kinds end with (before the wide ones).
    pub const AGE: Column = Column {
        name: "Age",
        type_: "string",
        format: "",
        description: crate::table::AGE_DESCRIPTION,
        priority: 0,
        cell: Cell::Age("/metadata/creationTimestamp"),
    };

    /// A column shown always.
    pub const fn new(name: &'static str, type_: &'static str, description: &'static str, cell: Cell) -> Self {
        Column { name, type_, format: "", description, priority: 0, cell }
    }

    /// The same column, only in wide output.
    pub const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// Why an allocation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// Somebody else has it.
    #[error("provided {0} is already allocated")]
    Taken(&'static str),
    /// Not in the range that this server hands out; carries the range.
    #[error("the provided {what} is not in the valid range. The range of valid {what}s is {range}")]
    OutOfRange {
        /// "IP" or "port".
        what: &'static str,
        /// As printed to the user.
        range: String,
    },
    /// Nothing is left.
    #[error("range is full")]
    Full,
}

/// What a row may ask the API server for while an object is written. What was handed out is kept if the write
/// succeeds; the API server derives what is in use from the stored objects.
pub trait Allocator {
    /// A service address: the requested one, or a free one.
    fn cluster_ip(&mut self, requested: Option<IpAddr>) -> Result<IpAddr, AllocateError>;
    /// A node port for a protocol ("TCP", "UDP", "SCTP"): the requested one, or a free one.
    fn node_port(&mut self, requested: Option<u16>, protocol: &str) -> Result<u16, AllocateError>;
}

/// Fills allocated fields in a new object; old is there on update.
pub type Allocate = fn(&mut Value, Option<&Value>, &mut dyn Allocator) -> Result<(), field::Error>;

/// A field usable in `fieldSelector`, beyond `metadata.name` and `metadata.namespace`.
pub type SelectableField = (&'static str, fn(&Value) -> String);

/// Objects that go by themselves after a while.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Seconds that an object is kept after its last use.
    pub seconds: i64,
    /// Objects that are kept; beyond that the longest unused go.
    pub objects_max: usize,
    /// When an object was last of use.
    pub last_use: fn(&Value) -> Option<Timestamp>,
}

/// How objects of one row are kept as objects of another one.
#[derive(Clone, Copy, Debug)]
pub struct StoredAs {
    /// The row that keeps them.
    pub kind: &'static Kind,
    /// From this row's form (apiVersion included) to the keeping row's.
    pub encode: fn(&mut Value),
    /// Back.
    pub decode: fn(&mut Value),
}

/// A kind of object that the API server stores.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// API group, "" for core.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// CamelCase kind.
    pub kind: &'static str,
    /// Path segment.
    pub plural: &'static str,
    /// Lower-case kind.
    pub singular: &'static str,
    /// Names for the command line.
    pub short_names: &'static [&'static str],
    /// Groups of kinds for the command line ("all").
    pub categories: &'static [&'static str],
    /// Cluster or namespaced.
    pub scope: Scope,
    /// Verbs of the main resource, sorted.
    pub verbs: &'static [&'static str],
    /// Name of the definition in the facts table, "io.k8s.api.core.v1.Pod".
    pub schema: &'static str,
    /// What stands below the object.
    pub subresources: &'static [Subresource],
    /// Columns of the table; empty means Name and Created At.
    pub columns: &'static [Column],
    /// What a row of the table says of the whole object: that it is over, for instance.
    pub row_condition: fn(&Value) -> Option<Value>,
    /// Rule for `metadata.name`.
    pub name: Name,
    /// When `metadata.generation` grows.
    pub generation: Generation,
    /// What DELETE does.
    pub deletion: Deletion,
    /// Fills in what the user left out. Idempotent.
    pub default: fn(&mut Value),
    /// Create and update of the main resource, after defaulting: drops or keeps what the caller may not set
    /// (see [`prepare_status_kept`]).
    pub prepare: fn(&mut Value, Option<&Value>),
    /// Update through `/status`: takes everything but the status from the old object (see [`prepare_status_only`]).
    pub prepare_status: fn(&mut Value, &Value),
    /// All that is wrong with a new object (old is there on update). ObjectMeta is checked by the API server.
    pub validate: fn(&Value, Option<&Value>) -> Vec<field::Error>,
    /// All that is wrong with an update through `/status`: new, old.
    pub validate_status: fn(&Value, &Value) -> Vec<field::Error>,
    /// Allocated fields.
    pub allocate: Option<Allocate>,
    /// Fields for `fieldSelector`.
    pub selectable_fields: &'static [SelectableField],
    /// A PUT to a name that does not exist creates it.
    pub create_on_update: bool,
    /// A PUT without resourceVersion is allowed.
    pub unconditional_update: bool,
    /// Whether objects are written even when the store's quota is used up: the daemon's own hold on things.
    pub beyond_quota: bool,
    /// A DELETE that removes the object at once answers the object, not a Status.
    pub delete_returns_object: bool,
    /// What a writer is told although the object is accepted (`Warning` headers); old is there on update.
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// Another row that keeps the objects; this row is a second way to see them (events.k8s.io).
    pub stored_as: Option<&'static StoredAs>,
    /// How long objects are kept.
    pub retention: Option<Retention>,
    /// Dotted paths that no manager owns through the main resource.
    pub reset_fields: &'static [&'static str],
    /// Dotted paths that no manager owns through `/status`.
    pub reset_fields_status: &'static [&'static str],
}

/// What most kinds allow.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Kind {
    /// The row to start from: `Kind { group: …, ..Kind::EMPTY }`.
    pub const EMPTY: Kind = Kind {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        verbs: ALL_VERBS,
        schema: "",
        subresources: &[],
        columns: &[],
        row_condition: |_| None,
        name: Name::Subdomain,
        generation: Generation::None,
        deletion: Deletion::Immediate,
        default: no_default,
        prepare: no_prepare,
        prepare_status: prepare_status_only,
        validate: no_validate,
        validate_status: no_validate_status,
        allocate: None,
        selectable_fields: &[],
        create_on_update: false,
        unconditional_update: true,
        beyond_quota: false,
        delete_returns_object: false,
        warnings: |_, _| Vec::new(),
        stored_as: None,
        retention: None,
        reset_fields: &["status"],
        reset_fields_status: &["spec"],
    };

    /// "v1" or "apps/v1".
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// "pods" or "deployments.apps": what messages say.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// "Pod" or "Deployment.apps": what messages about invalid objects say.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// "/api/v1" or "/apis/apps/v1".
    pub fn api_path(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// Whether objects live in a Namespace.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name() == name)
    }

    /// Whether `/status` exists.
    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|s| matches!(s, Subresource::Status))
    }
}

fn no_default(_: &mut Value) {}
fn no_prepare(_: &mut Value, _: Option<&Value>) {}
fn no_validate(_: &Value, _: Option<&Value>) -> Vec<field::Error> {
    Vec::new()
}
fn no_validate_status(_: &Value, _: &Value) -> Vec<field::Error> {
    Vec::new()
}

/// `prepare` of a kind with a status: a create drops it, an update keeps the old one.
pub fn prepare_status_kept(new: &mut Value, old: Option<&Value>) {
    let Some(map) = new.as_object_mut() else { return };
    match old.and_then(|o| o.get("status")) {
        Some(status) => map.insert("status".to_owned(), status.clone()),
        None => map.remove("status"),
    };
}

/// `prepare_status` of most kinds: spec and every other top-level field come from the old object; of the metadata
/// the caller may still change what the main resource would let it.
pub fn prepare_status_only(new: &mut Value, old: &Value) {
    let (Some(map), Some(old)) = (new.as_object_mut(), old.as_object()) else { return };
    let keep = ["apiVersion", "kind", "metadata", "status"];
    map.retain(|key, _| keep.contains(&key.as_str()));
    for (key, value) in old {
        if !keep.contains(&key.as_str()) {
            map.insert(key.clone(), value.clone());
        }
    }
}
