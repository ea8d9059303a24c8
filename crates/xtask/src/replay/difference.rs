//! Where two answers differ, and which differences may stay.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

/// One difference.
#[derive(Debug)]
pub struct Difference {
    path: String,
    expected: Option<Value>,
    actual: Option<Value>,
}

/// All differences between the golden answer and ours.
pub fn of(expected: &Value, actual: &Value) -> Vec<Difference> {
    let mut out = Vec::new();
    walk(String::new(), Some(expected), Some(actual), &mut out);
    out
}

fn walk(path: String, expected: Option<&Value>, actual: Option<&Value>, out: &mut Vec<Difference>) {
    match (expected, actual) {
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            let mut keys: Vec<&String> = x.keys().chain(y.keys()).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                walk(format!("{path}/{}", key.replace('/', "~1")), x.get(key), y.get(key), out);
            }
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            for i in 0..x.len().max(y.len()) {
                walk(format!("{path}/{i}"), x.get(i), y.get(i), out);
            }
        }
        (x, y) if x == y => {}
        (x, y) => out.push(Difference { path, expected: x.cloned(), actual: y.cloned() }),
    }
}

impl Difference {
    fn line(&self) -> String {
        let show = |value: &Option<Value>| value.as_ref().map_or("nothing".to_owned(), Value::to_string);
        format!("{}: {} expected, got {}", self.path, show(&self.expected), show(&self.actual))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    step: String,
    path: String,
    #[expect(dead_code, reason = "for the reader of the table; a row without one is refused")]
    reason: String,
}

/// The table of differences that may stay.
#[derive(Debug)]
pub struct Allowed(Vec<Row>);

impl Allowed {
    /// Reads the table.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Allowed(serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())?))
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The lines of what may not stay, and whether something else may.
    pub fn filter(&self, step: &str, differences: Vec<Difference>) -> (Vec<String>, bool) {
        let count = differences.len();
        let lines: Vec<String> = differences
            .into_iter()
            .filter(|d| !self.0.iter().any(|row| matches(&row.step, step) && matches(&row.path, &d.path)))
            .map(|d| d.line())
            .collect();
        let tolerated = lines.len() < count;
        (lines, tolerated)
    }
}

/// `*` stands for anything within a segment, `**` for anything.
fn matches(pattern: &str, text: &str) -> bool {
    if let Some(rest) = pattern.strip_prefix("**") {
        return (0..=text.len()).filter(|i| text.is_char_boundary(*i)).any(|i| matches(rest, &text[i..]));
    }
    if let Some(rest) = pattern.strip_prefix('*') {
        let end = text.find('/').unwrap_or(text.len());
        return (0..=end).filter(|i| text.is_char_boundary(*i)).any(|i| matches(rest, &text[i..]));
    }
    match (pattern.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some(p), Some(t)) if p == t => matches(&pattern[p.len_utf8()..], &text[t.len_utf8()..]),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_have_paths() {
        let found = of(&json!({"a": [1, {"b/c": 2}]}), &json!({"a": [1, {"b/c": 3}, 4]}));
        let paths: Vec<&str> = found.iter().map(|d| d.path.as_str()).collect();
        assert_eq!(paths, ["/a/1/b~1c", "/a/2"]);
    }

    #[test]
    fn globs() {
        assert!(matches("tables/*", "tables/pod"));
        assert!(!matches("*", "tables/pod"));
        assert!(matches("/body/**/description", "/body/columnDefinitions/3/description"));
    }
}
