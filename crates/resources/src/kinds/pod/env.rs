//! What is wrong with a container's environment, and with references to fields and amounts.

use serde_json::Value;

use crate::field::Error;
use crate::kinds::{names, tree};

const FIELDS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const AMOUNTS: [&str; 6] = [
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Checks `env`.
pub fn variables(errors: &mut Vec<Error>, path: &str, variables: &[Value]) {
    for (i, variable) in variables.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let name = tree::str(variable, "/name");
        if name.is_empty() {
            errors.push(Error::required(format!("{path}.name"), ""));
        } else {
            names::report(errors, &format!("{path}.name"), name, names::env_problems(name));
        }
        let source = tree::get(variable, "valueFrom");
        if !source.is_null() {
            value_from(
                errors,
                &format!("{path}.valueFrom"),
                source,
                !tree::str(variable, "/value").is_empty(),
            );
        }
    }
}

fn value_from(errors: &mut Vec<Error>, path: &str, source: &Value, has_value: bool) {
    let reference = |key: &str| Some(tree::get(source, key)).filter(|r| !r.is_null());
    let mut count = 0;
    if let Some(field) = reference("fieldRef") {
        count += 1;
        field_ref(errors, &format!("{path}.fieldRef"), field, &FIELDS);
    }
    if let Some(amount) = reference("resourceFieldRef") {
        count += 1;
        resource_ref(errors, &format!("{path}.resourceFieldRef"), amount, false);
    }
    for key in ["configMapKeyRef", "secretKeyRef"] {
        let Some(selector) = reference(key) else { continue };
        count += 1;
        names::subdomain(errors, &format!("{path}.{key}.name"), tree::str(selector, "/name"));
        match tree::str(selector, "/key") {
            "" => errors.push(Error::required(format!("{path}.{key}.key"), "")),
            name => {
                names::report(errors, &format!("{path}.{key}.key"), name, names::config_key_problems(name))
            }
        }
    }
    if reference("fileKeyRef").is_some() {
        count += 1;
    }
    let detail = if count == 0 {
        "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
    } else if has_value {
        "may not be specified when `value` is not empty"
    } else if count > 1 {
        "may not have more than one field specified at a time"
    } else {
        return;
    };
    errors.push(Error::invalid(path, "", detail));
}

/// A field of the Pod that its containers may read.
pub fn field_ref(errors: &mut Vec<Error>, path: &str, reference: &Value, allowed: &[&str]) {
    let field = tree::str(reference, "/fieldPath");
    if field.is_empty() {
        errors.push(Error::required(format!("{path}.fieldPath"), ""));
        return;
    }
    match field.split_once("['").and_then(|(map, key)| Some((map, key.strip_suffix("']")?))) {
        Some(("metadata.annotations", key)) => names::qualified(errors, path, &key.to_lowercase()),
        Some(("metadata.labels", key)) => names::qualified(errors, path, key),
        Some((map, _)) => errors.push(Error::invalid(path, map, "does not support subscript")),
        None if allowed.contains(&field) => {}
        None if known_field(field) => {
            errors.push(Error::not_supported(format!("{path}.fieldPath"), field, allowed));
        }
        None => errors.push(Error::invalid(
            format!("{path}.fieldPath"),
            field,
            format!("error converting fieldPath: field label not supported: {field}"),
        )),
    }
}

fn known_field(field: &str) -> bool {
    FIELDS.contains(&field)
        || matches!(
            field,
            "metadata.annotations"
                | "metadata.labels"
                | "spec.restartPolicy"
                | "spec.schedulerName"
                | "status.phase"
        )
}

/// An amount of a container's resources that it may read.
pub fn resource_ref(errors: &mut Vec<Error>, path: &str, reference: &Value, named: bool) {
    let amount = tree::str(reference, "/resource");
    if named && tree::str(reference, "/containerName").is_empty() {
        errors.push(Error::required(format!("{path}.containerName"), ""));
    } else if amount.is_empty() {
        errors.push(Error::required(format!("{path}.resource"), ""));
    } else if !AMOUNTS.contains(&amount)
        && !amount.starts_with("requests.hugepages-")
        && !amount.starts_with("limits.hugepages-")
    {
        errors.push(Error::not_supported(format!("{path}.resource"), amount, &AMOUNTS));
    }
}

/// Checks `envFrom`.
pub fn sources(errors: &mut Vec<Error>, path: &str, sources: &[Value]) {
    for (i, source) in sources.iter().enumerate() {
        let prefix = tree::str(source, "/prefix");
        if !prefix.is_empty() {
            names::report(errors, &format!("{path}[{i}].prefix"), prefix, names::env_problems(prefix));
        }
        let mut count = 0;
        for key in ["configMapRef", "secretRef"] {
            let reference = tree::get(source, key);
            if reference.is_null() {
                continue;
            }
            count += 1;
            match tree::str(reference, "/name") {
                "" => errors.push(Error::required(format!("{path}[{i}].{key}.name"), "")),
                name => names::subdomain(errors, &format!("{path}[{i}].{key}.name"), name),
            }
        }
        match count {
            0 => errors.push(Error::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => {
                errors.push(Error::invalid(path, "", "may not have more than one field specified at a time"))
            }
        }
    }
}
