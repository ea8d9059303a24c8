//! What is wrong with one field, worded as Kubernetes words it (apimachinery `util/validation/field`).

use std::fmt;

use serde_json::Value;

/// A path to a field: `spec.containers[0].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path that starts at a name; "" is the object itself.
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    /// A field below this one.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Path(name.to_owned()) } else { Path(format!("{}.{name}", self.0)) }
    }

    /// An item of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }

    /// An entry of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

impl From<&str> for Path {
    fn from(path: &str) -> Self {
        Path(path.to_owned())
    }
}

/// What sort of mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A referenced value does not exist.
    NotFound,
    /// Missing.
    Required,
    /// Must be unique and is not.
    Duplicate,
    /// Malformed or out of bounds.
    Invalid,
    /// Wrong JSON type.
    TypeInvalid,
    /// Not one of the allowed values.
    NotSupported,
    /// Well-formed, not permitted here.
    Forbidden,
    /// Too long; the value is not repeated.
    TooLong,
    /// Too short; the value is not repeated.
    TooShort,
    /// Too many items.
    TooMany,
    /// Too few items.
    TooFew,
    /// Not the user's fault.
    Internal,
}

impl Kind {
    /// The `reason` of a Status cause.
    pub const fn reason(self) -> &'static str {
        match self {
            Kind::NotFound => "FieldValueNotFound",
            Kind::Required => "FieldValueRequired",
            Kind::Duplicate => "FieldValueDuplicate",
            Kind::Invalid => "FieldValueInvalid",
            Kind::TypeInvalid => "FieldValueTypeInvalid",
            Kind::NotSupported => "FieldValueNotSupported",
            Kind::Forbidden => "FieldValueForbidden",
            Kind::TooLong => "FieldValueTooLong",
            Kind::TooShort => "FieldValueTooShort",
            Kind::TooMany => "FieldValueTooMany",
            Kind::TooFew => "FieldValueTooFew",
            Kind::Internal => "InternalError",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Kind::NotFound => "Not found",
            Kind::Required => "Required value",
            Kind::Duplicate => "Duplicate value",
            Kind::Invalid | Kind::TypeInvalid => "Invalid value",
            Kind::NotSupported => "Unsupported value",
            Kind::Forbidden => "Forbidden",
            Kind::TooLong => "Too long",
            Kind::TooShort => "Too short",
            Kind::TooMany => "Too many",
            Kind::TooFew => "Too few",
            Kind::Internal => "Internal error",
        }
    }

    const fn shows_value(self) -> bool {
        !matches!(self, Kind::Required | Kind::Forbidden | Kind::TooLong | Kind::TooShort | Kind::Internal)
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What sort.
    pub kind: Kind,
    /// Which field.
    pub path: String,
    /// Why, and what would be right.
    pub detail: String,
    /// The offending value; None leaves it out of the message.
    pub value: Option<Value>,
}

impl Error {
    /// A field that is missing.
    pub fn required(path: impl Into<PathText>, detail: impl Into<String>) -> Self {
        Self::make(Kind::Required, path, None, detail)
    }

    /// A value that is malformed.
    pub fn invalid(path: impl Into<PathText>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::make(Kind::Invalid, path, Some(value.into()), detail)
    }

    /// A value of the wrong type.
    pub fn type_invalid(
        path: impl Into<PathText>,
        value: impl Into<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self::make(Kind::TypeInvalid, path, Some(value.into()), detail)
    }

    /// A value that is there twice.
    pub fn duplicate(path: impl Into<PathText>, value: impl Into<Value>) -> Self {
        Self::make(Kind::Duplicate, path, Some(value.into()), "")
    }

    /// A reference to something that does not exist.
    pub fn not_found(path: impl Into<PathText>, value: impl Into<Value>) -> Self {
        Self::make(Kind::NotFound, path, Some(value.into()), "")
    }

    /// A value outside an enumeration; the supported ones are listed in the given order.
    pub fn not_supported(path: impl Into<PathText>, value: impl Into<Value>, supported: &[&str]) -> Self {
        let mut detail = String::new();
        if !supported.is_empty() {
            let quoted: Vec<String> = supported.iter().map(|s| quote(s)).collect();
            detail = format!("supported values: {}", quoted.join(", "));
        }
        Self::make(Kind::NotSupported, path, Some(value.into()), detail)
    }

    /// A value that may not be set here.
    pub fn forbidden(path: impl Into<PathText>, detail: impl Into<String>) -> Self {
        Self::make(Kind::Forbidden, path, None, detail)
    }

    /// A value with more than so many bytes.
    pub fn too_long(path: impl Into<PathText>, bytes_max: usize) -> Self {
        let unit = if bytes_max == 1 { "byte" } else { "bytes" };
        Self::make(Kind::TooLong, path, None, format!("may not be more than {bytes_max} {unit}"))
    }

    /// A list with more than so many items.
    pub fn too_many(path: impl Into<PathText>, actual: usize, items_max: usize) -> Self {
        let unit = if items_max == 1 { "item" } else { "items" };
        Self::make(
            Kind::TooMany,
            path,
            Some(Value::from(actual)),
            format!("must have at most {items_max} {unit}"),
        )
    }

    /// The server's own fault.
    pub fn internal(path: impl Into<PathText>, detail: impl Into<String>) -> Self {
        Self::make(Kind::Internal, path, None, detail)
    }

    /// A field that differs from the stored object and must not.
    pub fn immutable(path: impl Into<PathText>, value: impl Into<Value>) -> Self {
        Self::invalid(path, value, "field is immutable")
    }

    fn make(kind: Kind, path: impl Into<PathText>, value: Option<Value>, detail: impl Into<String>) -> Self {
        Error { kind, path: path.into().0, detail: detail.into(), value }
    }

    /// The message without the field's name: what a Status cause carries.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if let (true, Some(value)) = (self.kind.shows_value(), &self.value) {
            text.push_str(": ");
            text.push_str(&show(value));
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.is_empty() { "<nil>" } else { &self.path };
        write!(f, "{path}: {}", self.body())
    }
}

impl std::error::Error for Error {}

/// Anything that names a field: `&str`, `String`, [`Path`] or `&Path`.
#[derive(Debug)]
pub struct PathText(String);

impl From<&str> for PathText {
    fn from(path: &str) -> Self {
        PathText(path.to_owned())
    }
}
impl From<String> for PathText {
    fn from(path: String) -> Self {
        PathText(path)
    }
}
impl From<Path> for PathText {
    fn from(path: Path) -> Self {
        PathText(path.0)
    }
}
impl From<&Path> for PathText {
    fn from(path: &Path) -> Self {
        PathText(path.0.clone())
    }
}

/// Several errors as one sentence: alone as it is, more in brackets, repetitions once.
pub fn aggregate(errors: &[Error]) -> String {
    let mut seen: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !seen.contains(&text) {
            seen.push(text);
        }
    }
    match seen.len() {
        0 => String::new(),
        1 => seen.remove(0),
        _ => format!("[{}]", seen.join(", ")),
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => other.to_string(),
    }
}

/// A string quoted as Go's `%q` does.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A value as Go's `%v` shows it: `map[a:1 b:[x y]]`.
pub fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" "))
        }
        Value::Object(map) => {
            let entries: Vec<String> = map.iter().map(|(k, v)| format!("{k}:{}", go_value(v))).collect();
            format!("map[{}]", entries.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let path = Path::new("spec").child("containers").index(0).child("name");
        assert_eq!(Error::required(&path, "").to_string(), "spec.containers[0].name: Required value");
        assert_eq!(
            Error::invalid("spec.replicas", -1, "must be greater than or equal to 0").to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        assert_eq!(
            Error::not_supported("spec.type", "X", &["A", "B"]).to_string(),
            r#"spec.type: Unsupported value: "X": supported values: "A", "B""#
        );
        assert_eq!(
            Error::too_long("metadata.name", 63).to_string(),
            "metadata.name: Too long: may not be more than 63 bytes"
        );
    }

    #[test]
    fn several_in_brackets_without_repetition() {
        let a = Error::required("a", "");
        let b = Error::required("b", "");
        assert_eq!(aggregate(&[a.clone(), b, a]), "[a: Required value, b: Required value]");
    }
}
