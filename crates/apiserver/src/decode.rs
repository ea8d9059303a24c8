//! Bodies into objects.

use resources::kind::Kind;
use resources::schema::{self, Schema};
use resources::status::Status;
use serde_json::Value;

use crate::negotiate::Format;
use crate::object;
use crate::query::FieldValidation;

/// The definition of a kind.
pub(crate) fn schema_of(kind: &Kind) -> Result<&'static Schema, Status> {
    schema::of(kind.schema).ok_or_else(|| Status::internal(format!("{} has no schema", kind.kind)))
}

/// The JSON text of a body.
pub(crate) fn json_of(format: Format, body: &[u8]) -> Result<std::borrow::Cow<'_, [u8]>, String> {
    match format {
        Format::Json => Ok(body.into()),
        Format::Yaml => {
            let value: Value = serde_yaml_ng::from_slice(body).map_err(|error| error.to_string())?;
            serde_json::to_vec(&value).map(Into::into).map_err(|error| error.to_string())
        }
    }
}

/// A body without a schema of ours: options, reviews, small requests.
pub(crate) fn plain(format: Format, body: &[u8]) -> Result<Value, Status> {
    json_of(format, body)
        .and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string()))
        .map_err(Status::bad_request)
}

/// A body as an object of a kind, with its type set. Unknown and duplicate fields are dropped, and are
/// warnings or an error as the client asked.
pub(crate) fn object(
    kind: &Kind,
    format: Format,
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
    let json = json_of(format, body).map_err(unrecognised)?;
    let head: Head = serde_json::from_slice(&json).map_err(|error| unrecognised(error.to_string()))?;
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
            "no kind \"{given_kind}\" is registered for version \"{given}\" in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
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
