//! Kubernetes' protobuf encoding of requests, read into the JSON that everything else works on.
//!
//! Typed Go clients send it by default and do not fall back. The numbers and types of fields are facts
//! (`table.txt`, made by `cargo xtask proto`); fields that are not in it are skipped, as protobuf asks.
//! Answers are JSON: clients that send protobuf accept both.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// What every body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Messages in messages.
const DEPTH_MAX: usize = 64;

/// Why a body is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No `k8s\0` in front.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// Ends in the middle of something.
    #[error("unexpected EOF")]
    Torn,
    /// A wire type that the field cannot have.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// The wire type.
        wire: u8,
        /// The JSON name, or the field's number.
        field: String,
    },
    /// Text that is not UTF-8, or raw JSON that is none.
    #[error("the value of {0} cannot be read")]
    Value(String),
    /// Messages nested beyond all measure.
    #[error("messages are nested too deeply")]
    Depth,
    /// No facts about that type.
    #[error("no protobuf encoding of {0} is known")]
    Unknown(String),
}

/// A body: what it says it is, and the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `apiVersion`, or "".
    pub api_version: String,
    /// `kind`, or "".
    pub kind: String,
    /// The message.
    pub raw: &'a [u8],
}

#[derive(Debug)]
enum Type {
    String,
    Bool,
    Integer,
    Double,
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Raw,
    Message(&'static str),
    List(Box<Type>),
    Map(Box<Type>),
}

#[derive(Debug)]
struct Field {
    /// "" for an inlined struct.
    name: &'static str,
    gone_when_zero: bool,
    ty: Type,
}

static TABLE: LazyLock<HashMap<&'static str, HashMap<u32, Field>>> = LazyLock::new(|| {
    include_str!("table.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split(' ');
            Some((words.next()?, words.filter_map(read_field).collect()))
        })
        .collect()
});

fn read_field(word: &'static str) -> Option<(u32, Field)> {
    let mark = word.find(['-', '='])?;
    let (name, ty) = word[mark + 1..].split_once(':')?;
    let gone_when_zero = word.as_bytes()[mark] == b'-';
    Some((word[..mark].parse().ok()?, Field { name, gone_when_zero, ty: read_type(ty) }))
}

fn read_type(text: &'static str) -> Type {
    if let Some(items) = text.strip_prefix('[') {
        return Type::List(Box::new(read_type(items)));
    }
    if let Some(values) = text.strip_prefix('%') {
        return Type::Map(Box::new(read_type(values)));
    }
    match text {
        "s" => Type::String,
        "b" => Type::Bool,
        "i" => Type::Integer,
        "d" => Type::Double,
        "y" => Type::Bytes,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        "Quantity" => Type::Quantity,
        "IntOrString" => Type::IntOrString,
        "Raw" => Type::Raw,
        message => Type::Message(message),
    }
}

/// Takes a body's envelope (runtime.Unknown) off.
pub fn open(body: &[u8]) -> Result<Envelope<'_>, Error> {
    let rest = body.strip_prefix(MAGIC).ok_or(Error::Magic)?;
    let mut envelope = Envelope { api_version: String::new(), kind: String::new(), raw: &[] };
    let mut reader = Reader(rest);
    while let Some((number, token)) = reader.next()? {
        match (number, token) {
            (1, Token::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, token)) = meta.next()? {
                    match (number, token) {
                        (1, Token::Bytes(text)) => envelope.api_version = utf8(text, "apiVersion")?,
                        (2, Token::Bytes(text)) => envelope.kind = utf8(text, "kind")?,
                        _ => {}
                    }
                }
            }
            (2, Token::Bytes(raw)) => envelope.raw = raw,
            _ => {}
        }
    }
    Ok(envelope)
}

/// Reads a message of a definition (`io.k8s.api.core.v1.Pod`) as the object that JSON would have been.
pub fn decode(definition: &str, raw: &[u8]) -> Result<Value, Error> {
    let name = definition
        .strip_prefix("io.k8s.api.")
        .or_else(|| definition.strip_prefix("io.k8s.apimachinery.pkg.apis."))
        .unwrap_or(definition);
    let mut object = Map::new();
    message(name, raw, &mut object, 0)?;
    Ok(Value::Object(object))
}

fn message(name: &str, raw: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::Depth);
    }
    let fields = TABLE.get(name).ok_or_else(|| Error::Unknown(name.to_owned()))?;
    let mut reader = Reader(raw);
    while let Some((number, token)) = reader.next()? {
        let Some(field) = fields.get(&number) else { continue };
        match (&field.ty, token) {
            (Type::Message(inner), Token::Bytes(raw)) if field.name.is_empty() => {
                message(inner, raw, object, depth + 1)?;
            }
            (Type::List(items), token) => {
                let item = value(items, token, field.name, depth)?;
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Some(list) = list.as_array_mut() {
                    list.push(item);
                }
            }
            (Type::Map(values), Token::Bytes(entry)) => {
                let (key, value) = entry_of(values, entry, field.name, depth)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut() {
                    map.insert(key, value);
                }
            }
            (ty, token) => {
                let value = value(ty, token, field.name, depth)?;
                if !(value.is_null() || field.gone_when_zero && is_zero(&value)) {
                    object.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn entry_of(values: &Type, raw: &[u8], field: &str, depth: usize) -> Result<(String, Value), Error> {
    let mut key = String::new();
    let mut found = None;
    let mut reader = Reader(raw);
    while let Some((number, token)) = reader.next()? {
        match (number, token) {
            (1, Token::Bytes(text)) => key = utf8(text, field)?,
            (2, token) => found = Some(value(values, token, field, depth)?),
            _ => {}
        }
    }
    let value = match (found, values) {
        (Some(value), _) => value,
        (None, Type::Bytes | Type::String) => Value::String(String::new()),
        (None, Type::Quantity) => Value::String("0".to_owned()),
        (None, _) => Value::Null,
    };
    Ok((key, value))
}

fn value(ty: &Type, token: Token<'_>, field: &str, depth: usize) -> Result<Value, Error> {
    Ok(match (ty, token) {
        (Type::String, Token::Bytes(text)) => utf8(text, field)?.into(),
        (Type::Bytes, Token::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Bool, Token::Varint(number)) => (number != 0).into(),
        (Type::Integer, Token::Varint(number)) => number.cast_signed().into(),
        (Type::Double, Token::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Type::Time, Token::Bytes(raw)) => time(raw, field, false)?,
        (Type::MicroTime, Token::Bytes(raw)) => time(raw, field, true)?,
        (Type::Quantity, Token::Bytes(raw)) => match first(raw, 1)? {
            Some(Token::Bytes(text)) => utf8(text, field)?.into(),
            _ => "0".into(),
        },
        (Type::IntOrString, Token::Bytes(raw)) => match first(raw, 1)? {
            Some(Token::Varint(1)) => match first(raw, 3)? {
                Some(Token::Bytes(text)) => utf8(text, field)?.into(),
                _ => "".into(),
            },
            _ => match first(raw, 2)? {
                Some(Token::Varint(number)) => number.cast_signed().into(),
                _ => 0.into(),
            },
        },
        (Type::Raw, Token::Bytes(raw)) => match first(raw, 1)? {
            Some(Token::Bytes(json)) if !json.is_empty() => {
                serde_json::from_slice(json).map_err(|_| Error::Value(field.to_owned()))?
            }
            _ => Value::Null,
        },
        (Type::Message(name), Token::Bytes(raw)) => {
            let mut object = Map::new();
            message(name, raw, &mut object, depth + 1)?;
            Value::Object(object)
        }
        (_, token) => return Err(Error::WireType { wire: token.wire(), field: field.to_owned() }),
    })
}

/// A time; an empty message is no time.
fn time(raw: &[u8], field: &str, micros: bool) -> Result<Value, Error> {
    let part = |number| {
        Ok(match first(raw, number)? {
            Some(Token::Varint(value)) => value.cast_signed(),
            _ => 0,
        })
    };
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    let (seconds, nanos): (i64, i64) = (part(1)?, part(2)?);
    let wrong = || Error::Value(field.to_owned());
    let time = Timestamp::new(seconds, i32::try_from(nanos).map_err(|_| wrong())?).map_err(|_| wrong())?;
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(time.strftime(format).to_string().into())
}

/// The last occurrence of a field.
fn first(raw: &[u8], wanted: u32) -> Result<Option<Token<'_>>, Error> {
    let mut found = None;
    let mut reader = Reader(raw);
    while let Some((number, token)) = reader.next()? {
        if number == wanted {
            found = Some(token);
        }
    }
    Ok(found)
}

fn utf8(text: &[u8], field: &str) -> Result<String, Error> {
    String::from_utf8(text.to_vec()).map_err(|_| Error::Value(field.to_owned()))
}

enum Token<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

impl Token<'_> {
    fn wire(&self) -> u8 {
        match self {
            Token::Varint(_) => 0,
            Token::Fixed64(_) => 1,
            Token::Bytes(_) => 2,
            Token::Fixed32 => 5,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u32, Token<'a>)>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Error::Torn)?;
        let token = match tag & 7 {
            0 => Token::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| Error::Torn)?;
                Token::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Error::Torn)?;
                Token::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Token::Fixed32
            }
            other => return Err(Error::WireType { wire: other as u8, field: number.to_string() }),
        };
        Ok(Some((number, token)))
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.take(1)?.first().ok_or(Error::Torn)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Torn)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Error::Torn)?;
        self.0 = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A field of bytes.
    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend_from_slice(content);
        out
    }

    #[test]
    fn a_config_map() {
        let metadata = [bytes(1, b"a"), bytes(2, b""), bytes(3, b"default"), bytes(8, b"")].concat();
        let entry = [bytes(1, b"k"), bytes(2, b"v")].concat();
        let raw = [bytes(1, &metadata), bytes(2, &entry), bytes(9, b"x")].concat();
        let meta = [bytes(1, b"v1"), bytes(2, b"ConfigMap")].concat();
        let body = [MAGIC, &bytes(1, &meta), &bytes(2, &raw)].concat();
        let envelope = open(&body).unwrap();
        assert_eq!((envelope.api_version.as_str(), envelope.kind.as_str()), ("v1", "ConfigMap"));
        assert_eq!(
            decode("io.k8s.api.core.v1.ConfigMap", envelope.raw).unwrap(),
            json!({"metadata": {"name": "a", "namespace": "default"}, "data": {"k": "v"}})
        );
        for end in 0..body.len() {
            // Torn bodies are errors or less, never a panic.
            if let Ok(envelope) = open(&body[..end]) {
                let _ = decode("io.k8s.api.core.v1.ConfigMap", envelope.raw);
            }
        }
        assert_eq!(open(b"{}"), Err(Error::Magic));
    }

    #[test]
    fn optional_zeros_stay_and_plain_ones_go() {
        let options = decode("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions", &[8, 0]).unwrap();
        assert_eq!(options, json!({"gracePeriodSeconds": 0}));
        let port = decode("io.k8s.api.core.v1.ServicePort", &[24, 80, 40, 0, 34, 4, 8, 0, 16, 80]).unwrap();
        assert_eq!(port, json!({"port": 80, "targetPort": 80}));
    }

    #[test]
    fn every_message_in_the_table_is_known() {
        fn check(ty: &Type) {
            match ty {
                Type::Message(name) => assert!(TABLE.contains_key(name), "{name}"),
                Type::List(inner) | Type::Map(inner) => check(inner),
                _ => {}
            }
        }
        TABLE.values().flat_map(HashMap::values).for_each(|field| check(&field.ty));
        for kind in crate::KINDS {
            decode(kind.schema, &[]).unwrap();
        }
    }
}
