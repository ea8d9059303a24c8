//! The patches of PATCH: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), strategic merge patch. Apply patches are in
//! [`crate::apply`].

pub mod json;
pub mod merge;
pub mod strategic;

use serde_json::Value;

use crate::field;
use crate::schema::{self, Schema, Validation, Words};
use crate::status::{Status, Target};

/// Which patch, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
}

impl Kind {
    /// By media type without parameters.
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        match media_type {
            "application/json-patch+json" => Some(Kind::Json),
            "application/merge-patch+json" => Some(Kind::Merge),
            "application/strategic-merge-patch+json" => Some(Kind::Strategic),
            _ => None,
        }
    }
}

/// Why a patch is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The patch itself is malformed.
    #[error("{0}")]
    BadRequest(String),
    /// It cannot be applied to this object.
    #[error("{0}")]
    Unprocessable(String),
    /// More operations than allowed.
    #[error("The allowed maximum operations in a JSON patch is {allowed}, got {found}")]
    TooLarge {
        /// Allowed operations.
        allowed: usize,
        /// Operations in the patch.
        found: usize,
    },
    /// What Kubernetes answers with 500.
    #[error("{0}")]
    Unclassified(String),
}

impl Error {
    /// As the client sees it.
    pub fn status(&self) -> Status {
        match self {
            Error::BadRequest(message) => Status::bad_request(message),
            Error::Unprocessable(_) => Status::unprocessable(),
            Error::TooLarge { .. } => Status::too_large(&self.to_string()),
            Error::Unclassified(message) => Status::unknown(message),
        }
    }
}

/// The object that a patch makes of another one, pruned; and what to warn about. The object has no defaults yet and is
/// not in canonical form.
pub fn apply(
    kind: Kind,
    schema: &'static Schema,
    object: &Value,
    body: &[u8],
    validation: Validation,
) -> Result<(Value, Vec<String>), Status> {
    let patched = match kind {
        Kind::Json => json::apply(object, body),
        Kind::Merge => merge::apply(object, body),
        Kind::Strategic => strategic::apply(schema, object, body),
    };
    let Patched { object: mut patched, mut strict, shown } = patched.map_err(|e| e.status())?;
    let shown = |patched: &Value| shown.clone().unwrap_or_else(|| patched.to_string());
    let invalid = |value: String, why: String| {
        let target = Target { group: "", resource: "", name: "" };
        Status::invalid(target, &[field::Error::invalid("patch", value, why)])
    };
    let words = if kind == Kind::Strategic { Words::Converter } else { Words::Json };
    let before = patched.clone();
    strict.extend(
        schema::prune(schema, &mut patched, words).map_err(|e| invalid(shown(&before), e.to_string()))?,
    );
    match validation {
        Validation::Ignore => Ok((patched, Vec::new())),
        Validation::Warn => Ok((patched, strict)),
        Validation::Strict if strict.is_empty() => Ok((patched, strict)),
        Validation::Strict => Err(invalid(shown(&before), schema::strict(&strict))),
    }
}

/// What a patch made.
#[derive(Clone, Debug, PartialEq)]
pub struct Patched {
    /// The new object.
    pub object: Value,
    /// Duplicate fields of the patch.
    pub strict: Vec<String>,
    /// What messages show of the patch; None shows the new object.
    pub shown: Option<String>,
}
