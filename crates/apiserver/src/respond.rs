//! Answers: objects in the shape that was asked for, and Status for failures.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use jiff::Timestamp;
use resources::kind::Kind;
use resources::status::Status;
use resources::table;
use serde_json::{Value, json};

use crate::negotiate::{Accepted, Format, Shape};
use crate::object;

/// A response with a body of bytes.
pub(crate) fn bytes(code: StatusCode, media_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A value in the client's format.
pub(crate) fn value(accepted: Accepted, code: StatusCode, value: &Value) -> Response<Body> {
    bytes(code, accepted.format.media_type(), write(accepted, value))
}

fn write(accepted: Accepted, value: &Value) -> Vec<u8> {
    // A Value always has an encoding; an empty body would be the least wrong answer if one day it had none.
    match accepted.format {
        Format::Yaml => serde_yaml_ng::to_string(value).unwrap_or_default().into_bytes(),
        Format::Json if accepted.pretty => serde_json::to_vec_pretty(value).unwrap_or_default(),
        Format::Json => {
            let mut line = serde_json::to_vec(value).unwrap_or_default();
            line.push(b'\n');
            line
        }
    }
}

/// A failure.
pub(crate) fn failure(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(Accepted::PLAIN, code, &status.to_value());
    if let Some(details) = &status.details
        && details.retry_after_seconds > 0
    {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(details.retry_after_seconds));
    }
    response
}

/// An object in the shape that was asked for.
pub(crate) fn shaped(shape: Shape, kind: &Kind, object: Value, now: Timestamp) -> Result<Value, Status> {
    match shape {
        Shape::Whole => Ok(object),
        Shape::Partial { list: false } => Ok(table::partial_metadata(&object)),
        Shape::Partial { list: true } => Err(not_a_list(kind)),
        Shape::Table(include) => {
            let metadata = json!({ "resourceVersion": object::resource_version(&object) });
            Ok(table::table(kind, [&object], metadata, include, now, true))
        }
    }
}

/// 406 for a list shape of one object.
fn not_a_list(kind: &Kind) -> Status {
    not_acceptable(&format!(
        "you requested PartialObjectMetadataList, but the requested object is not a list (*{}.{})",
        kind.version, kind.kind
    ))
}

/// 406 with a reason of its own.
pub(crate) fn not_acceptable(why: &str) -> Status {
    let mut status = Status::not_acceptable(&[]);
    status.message = why.to_owned();
    status
}

/// One object.
pub(crate) fn object(
    accepted: Accepted,
    code: StatusCode,
    kind: &Kind,
    object: Value,
    now: Timestamp,
) -> Result<Response<Body>, Status> {
    Ok(value(accepted, code, &shaped(accepted.shape, kind, object, now)?))
}

/// One object that lies encoded in the store.
pub(crate) fn stored(
    accepted: Accepted,
    code: StatusCode,
    kind: &Kind,
    encoded: &[u8],
    now: Timestamp,
) -> Result<Response<Body>, Status> {
    if accepted.is_plain() {
        let mut line = object::wire(kind, encoded)?;
        line.push(b'\n');
        return Ok(bytes(code, crate::negotiate::JSON, line));
    }
    object(accepted, code, kind, object::decode(kind, encoded)?, now)
}

/// `Warning` headers, as RFC 9110 had them and clients show them.
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    const BYTES_MAX: usize = 4 * 1024;
    let mut room = BYTES_MAX;
    let mut seen: Vec<&str> = Vec::new();
    for text in warnings {
        if seen.contains(&text.as_str()) || text.len() > room {
            continue;
        }
        seen.push(text);
        room -= text.len();
        let quoted: String = text
            .chars()
            .filter(|character| !character.is_control())
            .flat_map(|character| match character {
                '"' | '\\' => vec!['\\', character],
                other => vec![other],
            })
            .collect();
        if let Ok(header) = HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, header);
        }
    }
}
