//! What the author of a Pod is told although the Pod is accepted.

use serde_json::Value;

use crate::field;
use crate::kinds::{names, tree};
use crate::quantity::Quantity;

/// Warnings for a new Pod; updates have none.
pub fn pod(object: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some() {
        return Vec::new();
    }
    let mut warnings = Vec::new();
    let problems = names::label_1123_problems(tree::str(object, "/metadata/name"));
    if !problems.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        ));
    }
    warnings.extend(spec("spec", tree::get(object, "spec")));
    warnings
}

/// Warnings for a Pod's spec at a path.
pub fn spec(path: &str, spec: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    names_of(&mut warnings, path, spec);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (i, container) in tree::list(tree::get(spec, list), "").iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            fractions(&mut warnings, &path, container);
            hidden_variables(&mut warnings, &path, container);
        }
    }
    ports(&mut warnings, path, spec);
    if tree::int(spec, "/terminationGracePeriodSeconds") < 0 {
        warnings.push(format!(
            "{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    warnings
}

fn names_of(warnings: &mut Vec<String>, path: &str, spec: &Value) {
    let mut seen = Vec::new();
    for (i, alias) in tree::list(spec, "/hostAliases").iter().enumerate() {
        let ip = tree::str(alias, "/ip");
        if seen.contains(&ip) {
            warnings.push(format!("{path}.hostAliases[{i}].ip: duplicate ip {}", field::quote(ip)));
        }
        seen.push(ip);
    }
    let mut seen = Vec::new();
    for (i, secret) in tree::list(spec, "/imagePullSecrets").iter().enumerate() {
        let name = tree::str(secret, "/name");
        if seen.contains(&name) {
            let quoted = field::quote(name);
            warnings.push(format!("{path}.imagePullSecrets[{i}].name: duplicate name {quoted}"));
        }
        seen.push(name);
    }
}

fn fractions(warnings: &mut Vec<String>, path: &str, container: &Value) {
    for name in ["memory", "ephemeral-storage"] {
        for list in ["limits", "requests"] {
            let amount = tree::get(tree::get(tree::get(container, "resources"), list), name).as_str();
            let fraction =
                amount.and_then(|a| a.parse::<Quantity>().ok()).is_some_and(|q| q.milli() % 1000 != 0);
            if let Some(amount) = amount.filter(|_| fraction) {
                warnings.push(format!(
                    "{path}.resources.{list}[{name}]: fractional byte value {} is invalid, must be an integer",
                    field::quote(amount)
                ));
            }
        }
    }
}

/// A later variable of the same name that does not use the earlier one.
fn hidden_variables(warnings: &mut Vec<String>, path: &str, container: &Value) {
    let mut seen = Vec::new();
    for (i, variable) in tree::list(container, "/env").iter().enumerate() {
        let name = tree::str(variable, "/name");
        if !seen.contains(&name) {
            seen.push(name);
            continue;
        }
        let own = format!("$({name})");
        let value = tree::str(variable, "/value");
        if tree::has(variable, "/valueFrom") || value == own || !value.contains(&own) {
            warnings.push(format!(
                "{path}.env[{i}]: hides previous definition of {}, which may be dropped when using apply",
                field::quote(name)
            ));
        }
    }
}

fn ports(warnings: &mut Vec<String>, path: &str, spec: &Value) {
    let mut seen: Vec<(i64, &str, &Value, String)> = Vec::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in tree::list(tree::get(spec, list), "").iter().enumerate() {
            for (j, port) in tree::list(container, "/ports").iter().enumerate() {
                let here = format!("{path}.{list}[{i}].ports[{j}]");
                let (number, protocol) = (tree::int(port, "/containerPort"), tree::str(port, "/protocol"));
                for (_, _, other, there) in seen.iter().filter(|(n, p, ..)| *n == number && *p == protocol) {
                    let host = |port: &Value| tree::int(port, "/hostPort");
                    let ip = |port: &Value| tree::str(port, "/hostIP").to_owned();
                    if host(port) == host(other) && ip(port) == ip(other) {
                        warnings.push(format!("{here}: duplicate port definition with {there}"));
                    } else if host(port) == 0 || host(other) == 0 {
                        warnings.push(format!("{here}: overlapping port definition with {there}"));
                    } else if host(port) == host(other) && ip(port).is_empty() != ip(other).is_empty() {
                        warnings.push(format!("{here}: dangerously ambiguous port definition with {there}"));
                    }
                }
                seen.push((number, protocol, port, here));
            }
        }
    }
}
