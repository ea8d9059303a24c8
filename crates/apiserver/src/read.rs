//! GET of one object.

use axum::body::Body;
use http::{Response, StatusCode};
use resources::field;
use resources::status::{Cause, Status};
use store::Revision;

use crate::handle::Call;
use crate::path::Place;
use crate::{Api, object, respond};

/// The object of a path.
pub(crate) fn get(api: &Api, place: &Place, call: &Call) -> Result<Response<Body>, Status> {
    not_older_than(api, call.query.get("resourceVersion"))?;
    let entry = entry(api, place)?;
    respond::stored(call.accepted, StatusCode::OK, place.kind, &entry.value, api.now())
}

/// The stored object of a path.
pub(crate) fn entry(api: &Api, place: &Place) -> Result<store::Entry, Status> {
    let key = object::key(place.kind, &place.namespace, &place.name);
    api.store.get(&key).ok_or_else(|| Status::not_found(place.target()))
}

/// A resourceVersion parameter.
pub(crate) fn revision(text: &str) -> Result<Option<Revision>, Status> {
    number(text).map_err(|why| Status::bad_request(format!("invalid resource version: {why}")))
}

/// A watch's resourceVersion: the cache that kube-apiserver watches from words this one, and gives it no reason.
pub(crate) fn watch_revision(text: &str) -> Result<Option<Revision>, Status> {
    number(text).map_err(Status::unknown)
}

fn number(text: &str) -> Result<Option<Revision>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(|number| Some(Revision(number))).map_err(|_| {
        format!(
            "resourceVersion: Invalid value: {0}: strconv.ParseUint: parsing {0}: invalid syntax",
            field::quote(text)
        )
    })
}

/// Refuses to answer from a state older than the one asked for.
pub(crate) fn not_older_than(api: &Api, text: &str) -> Result<(), Status> {
    let Some(wanted) = revision(text)? else { return Ok(()) };
    let current = api.store.revision();
    if wanted <= current { Ok(()) } else { Err(too_large(wanted, current)) }
}

/// A state that is not there yet.
pub(crate) fn too_large(wanted: Revision, current: Revision) -> Status {
    let mut status = Status::timeout(&format!("Too large resource version: {wanted}, current: {current}"), 1);
    if let Some(details) = &mut status.details {
        details.causes = vec![Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        }];
    }
    status
}
