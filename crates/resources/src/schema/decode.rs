//! From bytes to an object that a schema accepts: unknown fields are dropped and named, duplicate ones named, wrong
//! types refused. Messages are those of Kubernetes' decoder (sigs.k8s.io/json), in the order of the document.

use std::collections::HashSet;
use std::fmt;

use base64::Engine as _;
use jiff::Timestamp;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{Schema, Type};
use crate::field::quote;
use crate::quantity::Quantity;

/// No more than so many unknown and duplicate fields are named.
const STRICT_ERRORS_MAX: usize = 100;

/// What to do about unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validation {
    /// Nothing.
    Ignore,
    /// Say so in `Warning` headers.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

impl Validation {
    /// Reads the query parameter; "" is the default.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Warn" => Some(Validation::Warn),
            "Ignore" => Some(Validation::Ignore),
            "Strict" => Some(Validation::Strict),
            _ => None,
        }
    }
}

/// An object, and what was wrong but can be lived with.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// The object, without unknown fields.
    pub object: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.bar"`: warnings, or the text of [`strict`].
    pub strict: Vec<String>,
}

/// Joins what [`Decoded::strict`] holds as Kubernetes does.
pub fn strict(messages: &[String]) -> String {
    format!("strict decoding error: {}", messages.join(", "))
}

/// Why a body is no object of its schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No JSON.
    #[error("{0}")]
    Syntax(String),
    /// A value that the field cannot hold.
    #[error("{0}")]
    Type(String),
}

/// Reads a JSON body as an object of that definition.
pub fn decode(schema: &'static Schema, raw: &[u8]) -> Result<Decoded, Error> {
    run(Expect::Struct(schema), raw)
}

/// Reads any JSON, naming duplicate fields: patch bodies.
pub fn decode_free(raw: &[u8]) -> Result<Decoded, Error> {
    run(Expect::Free { named: true }, raw)
}

/// Drops unknown fields from a value that did not come from [`decode`] (the result of a patch), and checks its types.
pub fn prune(schema: &'static Schema, value: &mut Value, words: Words) -> Result<Vec<String>, Error> {
    let mut context = Context { words, ..Context::default() };
    let seed = Seed { context: &mut context, expect: Expect::Struct(schema) };
    *value = seed.deserialize(std::mem::take(value)).map_err(|e| Error::Syntax(e.to_string()))?;
    context.finish()
}

fn run(expect: Expect<'_>, raw: &[u8]) -> Result<Decoded, Error> {
    let mut context = Context::default();
    let mut deserializer = serde_json::Deserializer::from_slice(raw);
    let object = Seed { context: &mut context, expect }
        .deserialize(&mut deserializer)
        .and_then(|object| deserializer.end().map(|()| object))
        .map_err(|e| syntax(&e, raw))?;
    Ok(Decoded { object, strict: context.finish()? })
}

fn syntax(error: &serde_json::Error, raw: &[u8]) -> Error {
    if error.is_eof() {
        return Error::Syntax("unexpected end of JSON input".to_owned());
    }
    let line = raw.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or(b"");
    let found = line.get(error.column().saturating_sub(1)).copied().unwrap_or(b' ');
    Error::Syntax(format!("invalid character '{}' looking for beginning of value", char::from(found)))
}

#[derive(Clone, Copy)]
enum Expect<'t> {
    Struct(&'static Schema),
    Type(&'t Type),
    /// Anything; with duplicates named or not.
    Free {
        named: bool,
    },
}

/// Whose words a type error is told in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Words {
    /// Those of the decoder of JSON.
    #[default]
    Json,
    /// Those of the converter of untyped objects, through which strategic merge patches go.
    Converter,
}

#[derive(Default)]
struct Context {
    words: Words,
    /// `.name` and `[0]`, for unknown and duplicate fields.
    path: String,
    /// Field names without indices and map keys, for type errors.
    fields: Vec<&'static str>,
    /// Innermost struct.
    owner: Option<&'static Schema>,
    strict: Vec<String>,
    seen: HashSet<String>,
    error: Option<String>,
}

impl Context {
    fn finish(self) -> Result<Vec<String>, Error> {
        match self.error {
            Some(error) => Err(Error::Type(error)),
            None => Ok(self.strict),
        }
    }

    fn named<T>(&mut self, name: &str, f: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        let result = f(self);
        self.path.truncate(length);
        result
    }

    fn strict(&mut self, what: &str, name: &str) {
        let message = self.named(name, |c| format!("{what} field {}", quote(&c.path)));
        if self.strict.len() < STRICT_ERRORS_MAX && self.seen.insert(message.clone()) {
            self.strict.push(message);
        }
    }

    fn mismatch(&mut self, found: &str, expect: Expect<'_>) {
        if self.words == Words::Converter {
            return self.fail(converter_words(found, expect));
        }
        let go_type = scalar_name(expect);
        let place = match self.owner {
            Some(owner) => format!("struct field {}.{}", owner.short_name(), self.fields.join(".")),
            None => "value".to_owned(),
        };
        self.fail(format!("json: cannot unmarshal {found} into Go {place} of type {go_type}"));
    }

    /// The first error counts.
    fn fail(&mut self, message: String) {
        self.error.get_or_insert(message);
    }
}

struct Seed<'c, 't> {
    context: &'c mut Context,
    expect: Expect<'t>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        match self.expect {
            Expect::Free { .. } | Expect::Type(Type::Any | Type::Bool) => {}
            Expect::Type(Type::Quantity) => self.context.fail(crate::quantity::Error::Format.to_string()),
            expect => self.context.mismatch("bool", expect),
        }
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(number(self, value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(number(self, value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, |n| number(self, n)))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        let failure = match self.expect {
            Expect::Free { .. } | Expect::Type(Type::Any | Type::String | Type::IntOrString) => None,
            Expect::Type(Type::Bytes) => {
                let clean: String = value.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
                base64::engine::general_purpose::STANDARD.decode(clean).err().map(|e| base64_error(&e))
            }
            Expect::Type(Type::Time | Type::MicroTime) => time_error(self.expect, &value),
            Expect::Type(Type::Quantity) => value.trim().parse::<Quantity>().err().map(|e| e.to_string()),
            expect => {
                self.context.mismatch("string", expect);
                None
            }
        };
        if let Some(failure) = failure {
            self.context.fail(failure);
        }
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let items = match self.expect {
            Expect::Type(Type::List(list)) => Expect::Type(&list.items),
            Expect::Free { named } => Expect::Free { named },
            expect => {
                if !matches!(expect, Expect::Type(Type::Any)) {
                    self.context.mismatch("array", expect);
                }
                Expect::Free { named: false }
            }
        };
        let context = self.context;
        let length = context.path.len();
        let mut out = Vec::new();
        loop {
            context.path.push_str(&format!("[{}]", out.len()));
            let item = seq.next_element_seed(Seed { context: &mut *context, expect: items });
            context.path.truncate(length);
            match item? {
                Some(item) => out.push(zero_of_null(items, item)),
                None => return Ok(Value::Array(out)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        let context = self.context;
        match self.expect {
            Expect::Struct(schema) => fields(context, schema, map),
            Expect::Type(Type::Struct(id)) => fields(context, id.schema(), map),
            Expect::Type(Type::Map(values)) => entries(context, Expect::Type(values), true, map),
            Expect::Free { named } => entries(context, Expect::Free { named }, named, map),
            Expect::Type(Type::Any | Type::Object) => {
                entries(context, Expect::Free { named: false }, false, map)
            }
            expect => {
                context.mismatch("object", expect);
                entries(context, Expect::Free { named: false }, false, map)
            }
        }
    }
}

fn fields<'de, A: MapAccess<'de>>(
    context: &mut Context,
    schema: &'static Schema,
    mut map: A,
) -> Result<Value, A::Error> {
    let mut out = Map::new();
    let outer = context.owner.replace(schema);
    while let Some(name) = map.next_key::<String>()? {
        let Some(field) = schema.field(&name) else {
            context.strict("unknown", &name);
            map.next_value::<serde::de::IgnoredAny>()?;
            continue;
        };
        if out.contains_key(&name) {
            context.strict("duplicate", &name);
        }
        context.fields.push(field.name);
        let value = context
            .named(&name, |context| map.next_value_seed(Seed { context, expect: Expect::Type(&field.ty) }))?;
        context.fields.pop();
        context.owner = Some(schema);
        out.insert(name, value);
    }
    context.owner = outer;
    Ok(Value::Object(out))
}

fn entries<'de, A: MapAccess<'de>>(
    context: &mut Context,
    values: Expect<'_>,
    named: bool,
    mut map: A,
) -> Result<Value, A::Error> {
    let mut out = Map::new();
    while let Some(name) = map.next_key::<String>()? {
        if named && out.contains_key(&name) {
            context.strict("duplicate", &name);
        }
        let value = context.named(&name, |context| map.next_value_seed(Seed { context, expect: values }))?;
        out.insert(name, zero_of_null(values, value));
    }
    Ok(Value::Object(out))
}

/// A null among strings is "", as nothing else can stand there.
fn zero_of_null(expect: Expect<'_>, value: Value) -> Value {
    match (expect, value) {
        (Expect::Type(Type::String), Value::Null) => Value::String(String::new()),
        (_, value) => value,
    }
}

fn number(seed: Seed<'_, '_>, value: Number) -> Value {
    let fits = |min: i64, max: i64| value.as_i64().is_some_and(|v| (min..=max).contains(&v));
    let ok = match seed.expect {
        Expect::Free { .. } | Expect::Type(Type::Any | Type::Double | Type::Quantity) => true,
        Expect::Type(Type::Int32 | Type::IntOrString) => fits(i32::MIN.into(), i32::MAX.into()),
        Expect::Type(Type::Int64) => fits(i64::MIN, i64::MAX),
        expect => {
            seed.context.mismatch("number", expect);
            return value.into();
        }
    };
    if !ok {
        seed.context.mismatch(&format!("number {value}"), seed.expect);
    }
    value.into()
}

/// Go's reflection can turn an integer into a string, and says so; about others it says what it wanted.
fn converter_words(found: &str, expect: Expect<'_>) -> String {
    let number = found.strip_prefix("number").map(str::trim);
    let kind = match (found, number) {
        ("array", _) => "slice",
        ("object", _) => "map",
        (_, Some(value)) if value.contains('.') => "float64",
        (_, Some(_)) => "int64",
        _ => found,
    };
    match expect {
        Expect::Struct(_) | Expect::Type(Type::Struct(_)) => format!("cannot restore struct from: {kind}"),
        Expect::Type(Type::Map(_)) => format!("cannot restore map from {kind}"),
        Expect::Type(Type::List(_) | Type::Bytes) => format!("cannot restore slice from {kind}"),
        expect => {
            let wanted = scalar_name(expect);
            let convertible = match kind {
                "int64" => wanted == "string" || wanted.starts_with("int"),
                "float64" => wanted.starts_with("int"),
                _ => false,
            };
            if convertible {
                format!("cannot convert {kind} to {wanted}")
            } else {
                format!("unrecognized type: {wanted}")
            }
        }
    }
}

/// The Go type that a decoder reports; types with a decoder of their own report what they read first.
fn scalar_name(expect: Expect<'_>) -> String {
    match expect {
        Expect::Struct(schema) => schema.go_name(),
        Expect::Type(Type::Time | Type::MicroTime) => "string".to_owned(),
        Expect::Type(Type::IntOrString) => "int32".to_owned(),
        Expect::Type(ty) => ty.go_name(),
        Expect::Free { .. } => "interface {}".to_owned(),
    }
}

fn base64_error(error: &base64::DecodeError) -> String {
    let at = match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => *at,
        base64::DecodeError::InvalidLength(length) => *length,
        base64::DecodeError::InvalidPadding => 0,
    };
    format!("illegal base64 data at input byte {at}")
}

/// Where the fraction of a second stands in RFC 3339.
const FRACTION: usize = "2006-01-02T15:04:05".len();

/// A MicroTime has six digits after the second, no more and no fewer.
fn fraction_error(text: &str) -> Option<(&str, &'static str)> {
    let rest = text.get(FRACTION..).unwrap_or_default();
    let digits = rest.strip_prefix('.').map_or(0, |r| r.bytes().take_while(u8::is_ascii_digit).count());
    match digits {
        6 => None,
        7.. => Some((&rest[7..], "Z07:00")),
        _ => Some((rest, ".000000")),
    }
}

fn time_error(expect: Expect<'_>, text: &str) -> Option<String> {
    let micro = matches!(expect, Expect::Type(Type::MicroTime));
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let (rest, part) = if text.parse::<Timestamp>().is_ok() {
        if !micro {
            return None;
        }
        fraction_error(text)?
    } else {
        // Go names the part of the layout at which it stopped.
        let year = text.len() >= 4 && text.as_bytes()[..4].iter().all(u8::is_ascii_digit);
        if year { (&text[4..], "-") } else { (text, "2006") }
    };
    Some(format!(
        "parsing time {} as {}: cannot parse {} as {}",
        quote(text),
        quote(layout),
        quote(rest),
        quote(part)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::of;
    use super::*;

    fn deployment(raw: &str) -> Result<Vec<String>, String> {
        let schema = of("io.k8s.api.apps.v1.Deployment").unwrap();
        decode(schema, raw.as_bytes()).map(|d| d.strict).map_err(|e| e.to_string())
    }

    #[test]
    fn unknown_and_duplicate_fields_in_document_order() {
        let raw = r#"{"metadata":{"lables":{},"labels":{"a":"b","a":"c"}},"spec":{"template":{"spec":{"foo":1,
            "containers":[{"bar":1,"ports":[{"containerPort":1,"y":1,"y":2}]}]}}}}"#;
        assert_eq!(
            deployment(raw).unwrap(),
            [
                r#"unknown field "metadata.lables""#,
                r#"duplicate field "metadata.labels.a""#,
                r#"unknown field "spec.template.spec.foo""#,
                r#"unknown field "spec.template.spec.containers[0].bar""#,
                r#"unknown field "spec.template.spec.containers[0].ports[0].y""#,
            ]
        );
    }

    #[test]
    fn type_errors_are_words_of_gos_decoder() {
        let spec = "json: cannot unmarshal";
        for (raw, message) in [
            (
                r#"{"spec":{"replicas":"three","selector":{"matchLabels":{"a":1}}}}"#,
                format!("{spec} string into Go struct field DeploymentSpec.spec.replicas of type int32"),
            ),
            (
                r#"{"spec":{"selector":{"matchLabels":{"a":1}}}}"#,
                format!(
                    "{spec} number into Go struct field LabelSelector.spec.selector.matchLabels of type string"
                ),
            ),
            (
                r#"{"spec":{"template":{"spec":{"containers":[{"env":[{"value":1}]}]}}}}"#,
                format!(
                    "{spec} number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string"
                ),
            ),
            (
                r#"{"spec":{"template":{"spec":{"containers":{}}}}}"#,
                format!(
                    "{spec} object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container"
                ),
            ),
            (
                r#"{"spec":{"replicas":3000000000}}"#,
                format!(
                    "{spec} number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32"
                ),
            ),
            (
                r#"{"spec":[]}"#,
                format!("{spec} array into Go struct field Deployment.spec of type v1.DeploymentSpec"),
            ),
            (
                r#"{"metadata":{"labels":[]}}"#,
                format!(
                    "{spec} array into Go struct field ObjectMeta.metadata.labels of type map[string]string"
                ),
            ),
            (
                r#"{"metadata":{"creationTimestamp":"foo"}}"#,
                r#"parsing time "foo" as "2006-01-02T15:04:05Z07:00": cannot parse "foo" as "2006""#
                    .to_owned(),
            ),
            (r#"{"spec":"#, "unexpected end of JSON input".to_owned()),
        ] {
            assert_eq!(deployment(raw).unwrap_err(), message, "{raw}");
        }
    }

    #[test]
    fn pruning_a_value_names_what_it_drops() {
        let schema = of("io.k8s.api.core.v1.ConfigMap").unwrap();
        let mut value = serde_json::json!({"data": {"a": "b"}, "dat": 1});
        assert_eq!(prune(schema, &mut value, Words::Json).unwrap(), [r#"unknown field "dat""#]);
        assert_eq!(value, serde_json::json!({"data": {"a": "b"}}));
    }
}
