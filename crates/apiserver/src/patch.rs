//! PATCH: JSON patch, merge patch, strategic merge patch, and server-side apply.

use axum::body::Body;
use http::{Response, StatusCode};
use resources::apply;
use resources::schema::Validation;
use resources::status::Status;
use serde_json::Value;

use crate::handle::Call;
use crate::path::Place;
use crate::query::{FieldValidation, WriteOptions};
use crate::update::{self, Change};
use crate::{Api, create, decode, meta, negotiate, object};

const APPLY: &str = "application/apply-patch+yaml";

/// Which patch a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Apply,
    Other(resources::patch::Kind),
}

/// The type of a request's patch.
pub(crate) fn type_of(call: &Call) -> Result<Type, Status> {
    match negotiate::content_type(&call.headers) {
        APPLY => Ok(Type::Apply),
        other => resources::patch::Kind::of_media_type(other)
            .map(Type::Other)
            .ok_or_else(Status::unknown_patch_type),
    }
}

pub(crate) fn options(call: &Call, patch: Type) -> Result<WriteOptions, Status> {
    WriteOptions::parse(&call.query, "PatchOptions", patch == Type::Apply, call.user_agent())
}

pub(crate) fn validation(options: &WriteOptions) -> Validation {
    match options.validation {
        FieldValidation::Ignore => Validation::Ignore,
        FieldValidation::Warn => Validation::Warn,
        FieldValidation::Strict => Validation::Strict,
    }
}

/// An apply configuration; duplicate fields are warnings or an error.
pub(crate) fn configuration(
    body: &[u8],
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let undecodable = |error: String| Status::bad_request(format!("error decoding YAML: {error}"));
    // JSON is YAML; the JSON reader is the faster one and names duplicate fields.
    if body.first() == Some(&b'{')
        && let Ok(decoded) = resources::schema::decode_free(body)
    {
        match options.validation {
            FieldValidation::Strict if !decoded.strict.is_empty() => {
                return Err(Status::bad_request(format!(
                    "error strict decoding YAML: {}",
                    decoded.strict.join(", ")
                )));
            }
            FieldValidation::Warn => warnings.extend(decoded.strict),
            FieldValidation::Strict | FieldValidation::Ignore => {}
        }
        return Ok(decoded.object);
    }
    let value = resources::yaml::value(body).map_err(|error| undecodable(error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(undecodable("the document is no object".into())) }
}

pub(crate) async fn patch(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let patch = type_of(call)?;
    let options = options(call, patch)?;
    let subresource = place.subresource_name();
    let config = match patch {
        Type::Apply => Some(configuration(body, &options, &mut call.warnings)?),
        Type::Other(_) => None,
    };
    let mut transform = |live: Option<&Value>, warnings: &mut Vec<String>| {
        let request =
            apply::Request { kind: place.kind, manager: &options.manager, subresource, now: api.now() };
        let mut new = match (patch, &config) {
            (Type::Other(patch), _) => {
                let live = live.ok_or_else(|| Status::not_found(place.target()))?;
                patched(place, patch, live, body, &options, &request, warnings)?
            }
            (Type::Apply, config) => {
                let config = config.as_ref().unwrap_or(&Value::Null);
                let mut new =
                    apply::apply(live, config, options.force, &request).map_err(|error| error.status())?;
                create::ensure_metadata(&mut new);
                (place.kind.default)(&mut new);
                new
            }
        };
        if live.is_none() {
            fresh(place, &mut new)?;
        }
        meta::match_namespace(place.kind, &mut new, &place.namespace)?;
        meta::match_name(&new, &place.name)?;
        meta::dedup_owners(&mut new, warnings, true);
        Ok(new)
    };
    let change = Change {
        place,
        options: &options,
        creates: patch == Type::Apply && subresource.is_empty(),
        uid_is_precondition: false,
    };
    let (written, created) = update::run(api, &change, &mut call.warnings, &mut transform).await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    written.respond(call.accepted, code, place.kind, api.now())
}

fn patched(
    place: &Place,
    patch: resources::patch::Kind,
    live: &Value,
    body: &[u8],
    options: &WriteOptions,
    request: &apply::Request<'_>,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let schema = decode::schema_of(place.kind)?;
    let (mut new, said) = resources::patch::apply(patch, schema, live, body, validation(options))?;
    warnings.extend(said);
    object::name_type(place.kind, &mut new);
    create::ensure_metadata(&mut new);
    let reset = apply::is_reset(&new);
    (place.kind.default)(&mut new);
    apply::update(Some(live), &mut new, reset, request).map_err(|error| error.status())?;
    Ok(new)
}

/// An apply that creates.
fn fresh(place: &Place, new: &mut Value) -> Result<(), Status> {
    let uid = object::text(new, "uid");
    if !uid.is_empty() {
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(Status::conflict(place.target(), &why));
    }
    create::wipe(new);
    Ok(())
}
