//! Bodies into objects.

use std::borrow::Cow;

use resources::kind::Kind;
use resources::protobuf;
use resources::schema::{self, Schema};
use resources::status::Status;
use serde_json::Value;

use crate::negotiate::BodyFormat;
use crate::object;
use crate::query::FieldValidation;

/// The definition of a kind.
pub(crate) fn schema_of(kind: &Kind) -> Result<&'static Schema, Status> {
    schema::of(kind.schema).ok_or_else(|| Status::internal(format!("{} has no schema", kind.kind)))
}

/// The JSON text of a body; `definition` says what a protobuf body is.
fn json_of<'a>(format: BodyFormat, body: &'a [u8], definition: &str) -> Result<Cow<'a, [u8]>, String> {
    match format {
        BodyFormat::Json => Ok(body.into()),
        BodyFormat::Protobuf => {
            let value = transcode(body, definition).map_err(|error| error.to_string())?;
            serde_json::to_vec(&value).map(Into::into).map_err(|error| error.to_string())
        }
        BodyFormat::Yaml => {
            let value = resources::yaml::value(body).map_err(|error| error.to_string())?;
            serde_json::to_vec(&value).map(Into::into).map_err(|error| error.to_string())
        }
    }
}

/// A protobuf body as the JSON that it stands for.
fn transcode(body: &[u8], definition: &str) -> Result<Value, protobuf::Error> {
    let envelope = protobuf::open(body)?;
    let mut value = protobuf::decode(definition, envelope.raw)?;
    if let Some(map) = value.as_object_mut() {
        for (name, text) in [("apiVersion", envelope.api_version), ("kind", envelope.kind)] {
            if !text.is_empty() {
                map.insert(name.to_owned(), text.into());
            }
        }
    }
    Ok(value)
}

/// A body that is no object of a kind: options, reviews, small requests.
pub(crate) fn plain(format: BodyFormat, body: &[u8], definition: &str) -> Result<Value, Status> {
    json_of(format, body, definition)
        .and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()))
        .map_err(Status::bad_request)
}

/// A body as an object of a kind, with its type set. Unknown and duplicate fields are dropped, and are
/// warnings or an error as the client asked.
pub(crate) fn object(
    kind: &Kind,
    format: BodyFormat,
    body: &[u8],
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<Value, Status> {
    let unrecognised = |error: String| {
        Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {error} ({})",
            kind.kind,
            summary(body)
        ))
    };
    let json = json_of(format, body, kind.schema).map_err(unrecognised)?;
    let head: Head =
        serde_json::from_slice(&json).map_err(|error| unrecognised(head_error(&error, &json)))?;
    check_type(kind, &head)?;
    let refuse = |text: String| {
        let version = head.api_version.as_deref().map_or(kind.version, version_of);
        Status::bad_request(format!(
            "{0} in version \"{version}\" cannot be handled as a {0}: {text}",
            kind.kind
        ))
    };
    let decoded = schema::decode(schema_of(kind)?, &json).map_err(|error| refuse(error.to_string()))?;
    match validation {
        FieldValidation::Strict if !decoded.strict.is_empty() => {
            return Err(refuse(schema::strict(&decoded.strict)));
        }
        FieldValidation::Warn => warnings.extend(decoded.strict),
        FieldValidation::Strict | FieldValidation::Ignore => {}
    }
    let mut decoded = decoded.object;
    object::name_type(kind, &mut decoded);
    Ok(decoded)
}

#[derive(serde::Deserialize)]
struct Head {
    #[serde(rename = "apiVersion", default)]
    api_version: Option<String>,
    #[serde(default)]
    kind: Option<String>,
}

/// Why the type of a body cannot be read, in the words of Go's decoder.
fn head_error(error: &serde_json::Error, json: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let what = match json.trim_ascii_start().first() {
        Some(b'[') => "array",
        Some(b'"') => "string",
        Some(b't' | b'f') => "bool",
        Some(b'0'..=b'9' | b'-') => "number",
        _ => return error.to_string(),
    };
    format!(
        r#"json: cannot unmarshal {what} into Go value of type struct {{ APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }}"#
    )
}

fn version_of(api_version: &str) -> &str {
    api_version.rsplit('/').next().unwrap_or(api_version)
}

/// What the body says it is must be what the path says.
fn check_type(kind: &Kind, head: &Head) -> Result<(), Status> {
    let wanted = kind.api_version();
    let given = head.api_version.as_deref().filter(|text| !text.is_empty()).unwrap_or(&wanted);
    let given_kind = head.kind.as_deref().filter(|text| !text.is_empty()).unwrap_or(kind.kind);
    if given == wanted && given_kind == kind.kind {
        return Ok(());
    }
    let version = version_of(given);
    let why = if resources::kind_of_object(given, given_kind).is_some() {
        let group = if kind.group.is_empty() { "core" } else { kind.group.split('.').next().unwrap_or("") };
        format!("converting ({version}.{given_kind}) to ({group}.{}): unknown conversion", kind.kind)
    } else {
        format!(
            "no kind \"{given_kind}\" is registered for version \"{given}\" in scheme \"pkg/runtime/scheme.go:111\""
        )
    };
    Err(Status::bad_request(format!(
        "{given_kind} in version \"{version}\" cannot be handled as a {}: {why}",
        kind.kind
    )))
}

/// The start of a body, for messages.
fn summary(body: &[u8]) -> String {
    const BYTES: usize = 30;
    let start = &body[..body.len().min(BYTES)];
    let dots = if body.len() > BYTES { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{dots}", String::from_utf8_lossy(start)),
        Some(_) => format!("{}{dots}", hex::encode(start)),
    }
}
