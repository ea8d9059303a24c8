//! The table of Kubernetes kinds and what is done with their objects: schemas, strict decoding, patches,
//! server-side apply, selectors, tables, OpenAPI, Status. Pure: no I/O, no clock, no global state but facts.
//!
//! Objects are [`serde_json::Value`]s that a schema describes; they never pass through typed structs, so nothing that
//! a client wrote is lost unless the schema says that it is unknown.

pub mod apply;
pub mod depth;
pub mod field;
pub mod kind;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod yaml;

mod facts;

pub use depth::DEPTH_MAX;
pub use kind::{Allocator, Cell, Column, Deletion, Generation, Kind, Scale, Scope, Subresource};
pub use kinds::KINDS;

/// The row of a group, version and plural.
pub fn kind_of_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().copied().find(|k| k.group == group && k.version == version && k.plural == plural)
}

/// The row of an object's apiVersion and kind.
pub fn kind_of_object(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    KINDS.iter().copied().find(|k| k.group == group && k.version == version && k.kind == kind)
}
