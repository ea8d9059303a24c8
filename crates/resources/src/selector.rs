//! Label selectors (`app=x,tier in (a,b),!legacy`), LabelSelector objects and field selectors.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value};

use crate::field::quote;
use crate::kind::Kind;
use crate::kinds::names;

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
}

/// How a label is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operator {
    /// One of these values.
    In(BTreeSet<String>),
    /// None of these values, or missing.
    NotIn(BTreeSet<String>),
    /// There.
    Exists,
    /// Missing.
    DoesNotExist,
    /// A whole number above.
    GreaterThan(i64),
    /// A whole number below.
    LessThan(i64),
}

/// All of these conditions; none selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// Sorted by key.
    pub requirements: Vec<Requirement>,
    /// Selects nothing, whatever the conditions (a null LabelSelector).
    pub nothing: bool,
}

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

impl Requirement {
    fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        let value = labels.and_then(|l| l.get(&self.key)).and_then(Value::as_str);
        match (&self.operator, value) {
            (Operator::Exists, value) => value.is_some(),
            (Operator::DoesNotExist, value) => value.is_none(),
            (Operator::In(values), Some(value)) => values.contains(value),
            (Operator::NotIn(values), Some(value)) => !values.contains(value),
            (Operator::NotIn(_), None) => true,
            (Operator::GreaterThan(limit), Some(value)) => value.parse::<i64>().is_ok_and(|v| v > *limit),
            (Operator::LessThan(limit), Some(value)) => value.parse::<i64>().is_ok_and(|v| v < *limit),
            (Operator::In(_) | Operator::GreaterThan(_) | Operator::LessThan(_), None) => false,
        }
    }
}

impl Labels {
    /// Reads the text of a `labelSelector` parameter.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut requirements = Parser { rest: text }.parse()?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels { requirements, nothing: false })
    }

    /// Reads a LabelSelector object; null selects nothing, an empty one everything.
    pub fn from_object(selector: &Value) -> Result<Self, Error> {
        if selector.is_null() {
            return Ok(Labels { requirements: Vec::new(), nothing: true });
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or("").to_owned();
            requirements.push(Requirement { key: key.clone(), operator: Operator::In([value].into()) });
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |key: &str| expression.get(key).and_then(Value::as_str).unwrap_or("");
            let values: BTreeSet<String> = expression
                .get("values")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect();
            let operator = match text("operator") {
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(Error(format!("{} is not a valid label selector operator", quote(other))));
                }
            };
            requirements.push(Requirement { key: text("key").to_owned(), operator });
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Labels { requirements, nothing: false })
    }

    /// Reads a plain map of labels (`spec.selector` of a Service).
    pub fn from_map(selector: &Value) -> Self {
        let requirements = selector
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In([value.as_str().unwrap_or("").to_owned()].into()),
            })
            .collect();
        Labels { requirements, nothing: false }
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether labels are selected.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(labels))
    }

    /// Whether an object's labels are selected.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(object.pointer("/metadata/labels").and_then(Value::as_object))
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.requirements.iter().map(Requirement::to_string).collect();
        f.write_str(&texts.join(","))
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |values: &BTreeSet<String>| values.iter().cloned().collect::<Vec<_>>().join(",");
        let key = &self.key;
        match &self.operator {
            Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", list(values)),
            Operator::In(values) => write!(f, "{key} in ({})", list(values)),
            Operator::NotIn(values) if values.len() == 1 => write!(f, "{key}!={}", list(values)),
            Operator::NotIn(values) => write!(f, "{key} notin ({})", list(values)),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan(limit) => write!(f, "{key}>{limit}"),
            Operator::LessThan(limit) => write!(f, "{key}<{limit}"),
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
}

const SYMBOLS: &[char] = &['=', '!', '(', ')', ',', '>', '<'];

impl<'a> Parser<'a> {
    /// The next token without taking it; "" at the end.
    fn peek(&self) -> &'a str {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        for symbol in ["==", "!=", "=", "!", "(", ")", ",", ">", "<"] {
            if rest.starts_with(symbol) {
                return &rest[..symbol.len()];
            }
        }
        let end = rest.find(|c: char| c.is_ascii_whitespace() || SYMBOLS.contains(&c)).unwrap_or(rest.len());
        &rest[..end]
    }

    fn take(&mut self) -> &'a str {
        let token = self.peek();
        let start = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.rest = &start[token.len()..];
        token
    }

    fn found<T>(&self, found: &str, expected: &str) -> Result<T, Error> {
        Err(Error(format!("unable to parse requirement: found '{found}', expected: {expected}")))
    }

    fn parse(&mut self) -> Result<Vec<Requirement>, Error> {
        let mut out = Vec::new();
        loop {
            let token = self.peek();
            if token.is_empty() && out.is_empty() {
                return Ok(out);
            }
            if token != "!" && (token.is_empty() || token.starts_with(SYMBOLS)) {
                return Err(Error(format!("found '{token}', expected: !, identifier, or 'end of string'")));
            }
            out.push(self.requirement()?);
            match self.take() {
                "" => return Ok(out),
                "," => {
                    let next = self.peek();
                    if next != "!" && (next.is_empty() || next.starts_with(SYMBOLS)) {
                        return Err(Error(format!("found '{next}', expected: identifier after ','")));
                    }
                }
                other => {
                    return Err(Error(format!("found '{other}', expected: ',' or 'end of string'")));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        let negated = self.peek() == "!";
        if negated {
            self.take();
        }
        let key = self.take();
        if key.is_empty() || key.starts_with(SYMBOLS) {
            return self.found(key, "identifier");
        }
        check_key(key)?;
        let key = key.to_owned();
        if negated {
            return Ok(Requirement { key, operator: Operator::DoesNotExist });
        }
        let operator = match self.peek() {
            "" | "," => Operator::Exists,
            "=" | "==" => {
                self.take();
                Operator::In([self.value(&key)?].into())
            }
            "!=" => {
                self.take();
                Operator::NotIn([self.value(&key)?].into())
            }
            "in" => {
                self.take();
                Operator::In(self.values(&key)?)
            }
            "notin" => {
                self.take();
                Operator::NotIn(self.values(&key)?)
            }
            sign @ (">" | "<") => {
                self.take();
                let text = self.value(&key)?;
                let number = text.parse::<i64>().map_err(|_| {
                    Error(format!(
                        "unable to parse requirement: values[0]: Invalid value: {}: for 'Gt', 'Lt' operators, the value must be an integer",
                        quote(&text)
                    ))
                })?;
                if sign == ">" { Operator::GreaterThan(number) } else { Operator::LessThan(number) }
            }
            other => return self.found(other, "in, notin, =, ==, !=, gt, lt"),
        };
        Ok(Requirement { key, operator })
    }

    /// One value; missing is "".
    fn value(&mut self, key: &str) -> Result<String, Error> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            token if token.starts_with(SYMBOLS) => self.found(token, "identifier"),
            token => {
                self.take();
                check_value(key, token)?;
                Ok(token.to_owned())
            }
        }
    }

    fn values(&mut self, key: &str) -> Result<BTreeSet<String>, Error> {
        let token = self.take();
        if token != "(" {
            return Err(Error(format!("unable to parse requirement: found '{token}' expected: '('")));
        }
        let mut out = BTreeSet::new();
        let mut wanted = true;
        loop {
            match self.take() {
                ")" => {
                    if wanted {
                        out.insert(String::new());
                    }
                    return Ok(out);
                }
                "," => {
                    if wanted {
                        out.insert(String::new());
                    }
                    wanted = true;
                }
                "" if !wanted => return self.found("", "',' or ')'"),
                "" => return self.found("", "',', ')' or identifier"),
                token if token.starts_with(SYMBOLS) => return self.found(token, "',', ')' or identifier"),
                token => {
                    if !wanted {
                        return self.found(token, "',' or ')'");
                    }
                    check_value(key, token)?;
                    out.insert(token.to_owned());
                    wanted = false;
                }
            }
        }
    }
}

fn check_key(key: &str) -> Result<(), Error> {
    let problems = names::qualified_problems(key);
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error(format!(
        "unable to parse requirement: <nil>: Invalid value: {}: {}",
        quote(key),
        problems.join("; ")
    )))
}

fn check_value(key: &str, value: &str) -> Result<(), Error> {
    let problems = names::label_value_problems(value);
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error(format!(
        "unable to parse requirement: values[0][{key}]: Invalid value: {}: {}",
        quote(value),
        problems.join("; ")
    )))
}

/// A `fieldSelector`: fields that must or must not have a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    /// Field, whether it must be equal, value.
    pub terms: Vec<(String, bool, String)>,
}

impl Fields {
    /// Reads the parameter (`status.phase=Running,metadata.name!=x`) and checks that the kind knows each field.
    pub fn parse(text: &str, kind: &Kind) -> Result<Self, Error> {
        let mut terms = Vec::new();
        for term in split(text, ',').into_iter().filter(|t| !t.is_empty()) {
            let (field, equal, value) = split_term(term)
                .ok_or_else(|| Error(format!("invalid selector: '{text}'; can't understand '{term}'")))?;
            let known = field == "metadata.name"
                || (field == "metadata.namespace" && kind.namespaced())
                || kind.selectable_fields.iter().any(|(name, _)| *name == field);
            if !known {
                return Err(Error(if kind.selectable_fields.is_empty() {
                    format!(
                        "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        quote(field)
                    )
                } else {
                    format!("field label not supported: {field}")
                }));
            }
            terms.push((field.to_owned(), equal, unescape(value)?));
        }
        Ok(Fields { terms })
    }

    /// Whether everything is selected.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `metadata.name` must have, if it must have one.
    pub fn name(&self) -> Option<&str> {
        self.terms
            .iter()
            .find(|(field, equal, _)| *equal && field == "metadata.name")
            .map(|(_, _, v)| v.as_str())
    }

    /// Whether an object is selected.
    pub fn matches(&self, kind: &Kind, object: &Value) -> bool {
        self.terms.iter().all(|(field, equal, wanted)| {
            let plain =
                |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
            let value = match field.as_str() {
                "metadata.name" => plain("/metadata/name"),
                "metadata.namespace" => plain("/metadata/namespace"),
                other => kind
                    .selectable_fields
                    .iter()
                    .find(|(name, _)| *name == other)
                    .map_or_else(String::new, |(_, read)| read(object)),
            };
            (value == *wanted) == *equal
        })
    }
}

/// Splits at a character that no backslash stands before.
fn split(text: &str, at: char) -> Vec<&str> {
    let mut out = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (index, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == at {
            out.push(&text[start..index]);
            start = index + c.len_utf8();
        }
    }
    out.push(&text[start..]);
    out
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let mut escaped = false;
    for (index, c) in term.char_indices() {
        if escaped {
            escaped = false;
            continue;
        }
        let rest = &term[index..];
        match c {
            '\\' => escaped = true,
            _ if rest.starts_with("!=") => return Some((&term[..index], false, &rest[2..])),
            _ if rest.starts_with("==") => return Some((&term[..index], true, &rest[2..])),
            '=' => return Some((&term[..index], true, &rest[1..])),
            _ => {}
        }
    }
    None
}

fn unescape(value: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(Error(format!("invalid field selector: invalid escape sequence: \\{other}")));
                }
            },
            '=' | ',' => {
                return Err(Error(format!("invalid field selector: unescaped character in value: {c}")));
            }
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_print_canonically_and_select() {
        let labels = json!({"app": "x", "tier": "a", "n": "5"});
        let labels = labels.as_object();
        for (text, printed, selected) in [
            ("", "", true),
            ("app=x", "app=x", true),
            ("app==x,tier!=b", "app=x,tier!=b", true),
            ("tier in (a, b)", "tier in (a,b)", true),
            ("tier notin (a,b)", "tier notin (a,b)", false),
            ("app", "app", true),
            ("!app", "!app", false),
            (" ! missing ", "!missing", true),
            ("missing!=a", "missing!=a", true),
            ("missing notin (a)", "missing!=a", true),
            ("app=", "app=", false),
            ("n>4,n<6", "n>4,n<6", true),
            ("x in (,a)", "x in (,a)", false),
            ("in in (in)", "in=in", false),
        ] {
            let selector = Labels::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.to_string(), printed, "{text}");
            assert_eq!(selector.matches(labels), selected, "{text}");
        }
        for text in ["=a", "a=b=c", "a b", "a in x", "a in (b", "a,", "a>b", "a==!b", ",a", "-a=b", "a=-"] {
            assert!(Labels::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_null_object_selects_nothing() {
        assert!(!Labels::from_object(&Value::Null).unwrap().matches(None));
        assert!(Labels::from_object(&json!({})).unwrap().matches(None));
        let selector = json!({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]});
        assert!(Labels::from_object(&selector).unwrap().matches(None));
    }

    #[test]
    fn fields_are_known_ones() {
        let kind = Kind {
            selectable_fields: &[("type", |o| o["type"].as_str().unwrap_or("").to_owned())],
            ..Kind::EMPTY
        };
        let fields = Fields::parse(r"metadata.name=a\,b,type!=T", &kind).unwrap();
        assert_eq!(fields.name(), Some("a,b"));
        assert!(fields.matches(&kind, &json!({"metadata": {"name": "a,b"}, "type": "U"})));
        assert!(!fields.matches(&kind, &json!({"metadata": {"name": "a,b"}, "type": "T"})));
        assert_eq!(
            Fields::parse("spec.x=1", &kind).unwrap_err().to_string(),
            "field label not supported: spec.x"
        );
        assert!(Fields::parse("metadata.name", &kind).is_err());
    }
}
