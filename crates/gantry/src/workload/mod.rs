//! A program as Kubernetes objects: what `up` and `run` apply, and how what becomes of them is read.

pub mod manifests;
pub mod ports;
pub mod rollout;
pub mod spec;
pub mod trouble;

pub use contract::name::{
    BOUND_CONDITION as BOUND, EXPOSE_ANNOTATION as EXPOSE, HOST_PORT_ANNOTATION as HOST_PORT,
    LISTENING_ANNOTATION as LISTENING, LISTENING_CONDITION as LISTENING_GATE,
};

/// The field manager of all that `up` applies.
pub const MANAGER: &str = "gantry";
/// The field manager of `spec.replicas`, so that what `scale` sets outlasts the next `up`.
pub const SCALE_MANAGER: &str = "gantry-scale";
/// The label that joins a program's objects.
pub const APP_LABEL: &str = "app";
/// Says on a Pod that it belongs to `gantry run`; no Service selects it.
pub const RUN_LABEL: &str = "gantry.dev/run";
/// The revision that the Deployment controller writes.
pub const REVISION: &str = "deployment.kubernetes.io/revision";

/// Checks a name against RFC 1123's label, which Services and Pods need.
pub fn check_name(name: &str) -> crate::failure::Result<()> {
    let is_label = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        && !name.starts_with('-')
        && !name.ends_with('-');
    // Services want a letter first (RFC 1035).
    if is_label && name.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Ok(());
    }
    let message = format!(
        "{name:?} is no name for a service: lower-case letters, digits and -, a letter first, at most 63"
    );
    let suggested = label(name);
    Err(crate::failure::Failure::new(message).hint(format!("gantry up … --name {suggested}")))
}

/// The nearest name that is a label.
pub fn label(name: &str) -> String {
    let mut label = String::new();
    for char in name.chars().map(|char| char.to_ascii_lowercase()) {
        match char {
            'a'..='z' | '0'..='9' => label.push(char),
            _ if !label.is_empty() && !label.ends_with('-') => label.push('-'),
            _ => {}
        }
    }
    if label.starts_with(|first: char| first.is_ascii_digit()) {
        label.insert_str(0, "app-");
    }
    label.truncate(52);
    let label = label.trim_end_matches('-');
    if label.is_empty() { "app".to_owned() } else { label.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for name in ["hello", "go-app", "a1"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "Hello", "-a", "a-", "a.b", "a_b", "1a", &"a".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
            assert!(check_name(&label(name)).is_ok(), "{name} {}", label(name));
        }
    }
}
