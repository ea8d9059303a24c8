//! The shapes of names (RFC 1123, RFC 1035, RFC 6335, qualified names) with Kubernetes' words for what is wrong.

use crate::field::{self, Error};

/// A name that DNS takes as a label, and what every message about it says.
pub const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
const ENV_NAME: &str =
    "a valid environment variable name must consist only of printable ASCII characters other than '='";

fn label(name: &str, first: fn(u8) -> bool) -> bool {
    let bytes = name.as_bytes();
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    bytes.first().is_some_and(|b| first(*b))
        && bytes.last().is_some_and(|b| inner(*b))
        && bytes.iter().all(|b| inner(*b) || *b == b'-')
}

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

/// What is wrong with an RFC 1123 label.
pub fn label_1123_problems(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > 63 {
        out.push(too_long(63));
    }
    if !label(name, |b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        let dots = subdomain_problems(name).is_empty();
        out.push(if dots { "must not contain dots" } else { LABEL_1123 }.to_owned());
    }
    out
}

/// What is wrong with an RFC 1123 subdomain.
pub fn subdomain_problems(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > 253 {
        out.push(too_long(253));
    }
    if !name.split('.').all(|part| label(part, |b| b.is_ascii_lowercase() || b.is_ascii_digit())) {
        out.push(SUBDOMAIN_1123.to_owned());
    }
    out
}

fn name_part(part: &str) -> bool {
    let bytes = part.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// What is wrong with a qualified name (`example.com/name`).
pub fn qualified_problems(value: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut parts = value.splitn(3, '/');
    let first = parts.next().unwrap_or_default();
    let name = match (parts.next(), parts.next()) {
        (None, _) => first,
        (Some(name), None) => {
            if first.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(
                    subdomain_problems(first).into_iter().map(|problem| format!("prefix part {problem}")),
                );
            }
            name
        }
        _ => {
            let rule = QUALIFIED.trim_start_matches("name part ");
            return vec![format!(
                "a valid label key {rule} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        out.push(format!("name part {}", too_long(63)));
    }
    if !name_part(name) {
        out.push(QUALIFIED.to_owned());
    }
    out
}

/// What is wrong with a label's value.
pub fn label_value_problems(value: &str) -> Vec<String> {
    let mut out = Vec::new();
    if value.len() > 63 {
        out.push(too_long(63));
    }
    if !value.is_empty() && !name_part(value) {
        out.push(LABEL_VALUE.to_owned());
    }
    out
}

/// What is wrong with a key of a ConfigMap or Secret.
pub fn config_key_problems(key: &str) -> Vec<String> {
    let mut out = Vec::new();
    if key.len() > 253 {
        out.push("must be no more than 253 characters".to_owned());
    }
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        out.push(CONFIG_KEY.to_owned());
    } else if key == "." {
        out.push("must not be '.'".to_owned());
    } else if key == ".." {
        out.push("must not be '..'".to_owned());
    } else if key.starts_with("..") {
        out.push("must not start with '..'".to_owned());
    }
    out
}

/// What is wrong with the name of an environment variable.
pub fn env_problems(name: &str) -> Vec<String> {
    if name.is_empty() {
        vec!["environment variable name must be non-empty".to_owned()]
    } else if !name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        vec![ENV_NAME.to_owned()]
    } else {
        Vec::new()
    }
}

/// What is wrong with a port's name (RFC 6335 service names).
pub fn port_problems(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// What is wrong with a port number.
pub fn port_number_problem(port: i64) -> Option<String> {
    (!(1..=65535).contains(&port)).then(|| "must be between 1 and 65535, inclusive".to_owned())
}

/// One `Invalid` error for each problem.
pub fn report(errors: &mut Vec<Error>, path: &str, value: &str, problems: Vec<String>) {
    errors.extend(problems.into_iter().map(|problem| Error::invalid(path, value, problem)));
}

/// Checks a qualified name.
pub fn qualified(errors: &mut Vec<Error>, path: &str, value: &str) {
    report(errors, path, value, qualified_problems(value));
}

/// Checks an RFC 1123 label.
pub fn label_1123(errors: &mut Vec<Error>, path: &str, value: &str) {
    report(errors, path, value, label_1123_problems(value));
}

/// Checks an RFC 1123 subdomain.
pub fn subdomain(errors: &mut Vec<Error>, path: &str, value: &str) {
    report(errors, path, value, subdomain_problems(value));
}

/// Checks that a number is not negative.
pub fn not_negative(errors: &mut Vec<Error>, path: &str, value: i64) {
    if value < 0 {
        errors.push(Error::invalid(path, value, "must be greater than or equal to 0"));
    }
}

/// Checks that a text is one of several.
pub fn one_of(errors: &mut Vec<Error>, path: &str, value: &str, supported: &[&str]) {
    if !supported.contains(&value) {
        errors.push(field::Error::not_supported(path, value, supported));
    }
}

/// Checks a port that is a number, or the name of a container's port.
pub fn port_or_name(errors: &mut Vec<Error>, path: &str, port: &serde_json::Value) {
    match port {
        serde_json::Value::String(name) => report(errors, path, name, port_problems(name)),
        other => {
            let number = other.as_i64().unwrap_or(0);
            if let Some(problem) = port_number_problem(number) {
                errors.push(Error::invalid(path, number, problem));
            }
        }
    }
}
