//! What is wrong with security contexts.

use serde_json::Value;

use crate::field::Error;
use crate::kinds::{names, tree};

const ID: &str = "must be between 0 and 2147483647, inclusive";

fn id(errors: &mut Vec<Error>, path: &str, id: &Value) {
    if let Some(id) = id.as_i64()
        && !(0..=i64::from(i32::MAX)).contains(&id)
    {
        errors.push(Error::invalid(path, id, ID));
    }
}

/// `spec.securityContext`.
pub fn pod(errors: &mut Vec<Error>, path: &str, context: &Value) {
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, &format!("{path}.{key}"), tree::get(context, key));
    }
    for (i, group) in tree::list(context, "/supplementalGroups").iter().enumerate() {
        id(errors, &format!("{path}.supplementalGroups[{i}]"), group);
    }
    seccomp(errors, &format!("{path}.seccompProfile"), tree::get(context, "seccompProfile"));
    if let Some(policy) = tree::at(context, "/fsGroupChangePolicy").as_str() {
        let path = format!("{path}.fsGroupChangePolicy");
        names::one_of(errors, &path, policy, &["Always", "OnRootMismatch"]);
    }
}

/// A container's `securityContext`.
pub fn container(errors: &mut Vec<Error>, path: &str, context: &Value) {
    for key in ["runAsUser", "runAsGroup"] {
        id(errors, &format!("{path}.{key}"), tree::get(context, key));
    }
    seccomp(errors, &format!("{path}.seccompProfile"), tree::get(context, "seccompProfile"));
    if tree::at(context, "/allowPrivilegeEscalation") == &Value::Bool(false) {
        if tree::bool(context, "/privileged") {
            errors.push(Error::invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            ));
        }
        if tree::list(context, "/capabilities/add").iter().any(|c| c == "CAP_SYS_ADMIN") {
            errors.push(Error::invalid(
                path,
                context.clone(),
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN",
            ));
        }
    }
}

fn seccomp(errors: &mut Vec<Error>, path: &str, profile: &Value) {
    if profile.is_null() {
        return;
    }
    let local = tree::at(profile, "/localhostProfile").as_str();
    match tree::str(profile, "/type") {
        "" => errors
            .push(Error::required(format!("{path}.type"), "type is required when seccompProfile is set")),
        "Localhost" => match local {
            None => errors.push(Error::required(
                format!("{path}.localhostProfile"),
                "must be set when seccomp type is Localhost",
            )),
            Some(file) => super::volume::descending(errors, &format!("{path}.localhostProfile"), file),
        },
        kind => {
            if let Some(file) = local {
                let detail = "can only be set when seccomp type is Localhost";
                errors.push(Error::invalid(format!("{path}.localhostProfile"), file, detail));
            }
            names::one_of(
                errors,
                &format!("{path}.type"),
                kind,
                &["Localhost", "RuntimeDefault", "Unconfined"],
            );
        }
    }
}
