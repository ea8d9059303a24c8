//! What is wrong with probes and hooks.

use serde_json::Value;

use crate::field::Error;
use crate::kinds::{names, tree};

/// All probes of a container.
pub fn probes(errors: &mut Vec<Error>, path: &str, container: &Value) {
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = tree::get(container, key);
        if probe.is_null() {
            continue;
        }
        let path = format!("{path}.{key}");
        handler(errors, &path, probe, &["exec", "httpGet", "tcpSocket", "grpc"], None);
        for number in
            ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
        {
            let value = tree::get(probe, number).as_i64().unwrap_or(0);
            names::not_negative(errors, &format!("{path}.{number}"), value);
        }
        let grace = tree::at(probe, "/terminationGracePeriodSeconds").as_i64();
        if let Some(seconds) = grace.filter(|s| *s <= 0) {
            let path = format!("{path}.terminationGracePeriodSeconds");
            errors.push(Error::invalid(path, seconds, "must be greater than 0"));
        }
        if key == "readinessProbe" {
            if let Some(seconds) = grace {
                let path = format!("{path}.terminationGracePeriodSeconds");
                errors.push(Error::invalid(path, seconds, "must not be set for readinessProbes"));
            }
        } else {
            let threshold = tree::int(probe, "/successThreshold");
            if threshold != 1 {
                errors.push(Error::invalid(format!("{path}.successThreshold"), threshold, "must be 1"));
            }
        }
    }
}

/// Hooks of a container; a hook may not sleep longer than the Pod may take to end.
pub fn lifecycle(errors: &mut Vec<Error>, path: &str, container: &Value, spec: &Value) {
    let grace = tree::at(spec, "/terminationGracePeriodSeconds").as_i64();
    for key in ["postStart", "preStop"] {
        let hook = tree::get(tree::get(container, "lifecycle"), key);
        if !hook.is_null() {
            let path = format!("{path}.lifecycle.{key}");
            handler(errors, &path, hook, &["exec", "httpGet", "tcpSocket", "sleep"], grace);
        }
    }
    if tree::has(container, "/lifecycle/stopSignal") && tree::str(spec, "/os/name").is_empty() {
        errors.push(Error::forbidden(
            format!("{path}.lifecycle.stopSignal"),
            "may not be set for containers with empty `spec.os.name`",
        ));
    }
}

fn handler(errors: &mut Vec<Error>, path: &str, value: &Value, kinds: &[&str], grace: Option<i64>) {
    let mut count = 0;
    for kind in kinds {
        let action = tree::get(value, kind);
        if action.is_null() {
            continue;
        }
        let path = format!("{path}.{kind}");
        count += 1;
        if count > 1 {
            errors.push(Error::forbidden(path, "may not specify more than 1 handler type"));
            continue;
        }
        match *kind {
            "exec" => {
                if tree::list(action, "/command").is_empty() {
                    errors.push(Error::required(format!("{path}.command"), ""));
                }
            }
            "httpGet" => http(errors, &path, action),
            "sleep" => sleep(errors, &path, tree::int(action, "/seconds"), grace),
            _ => names::port_or_name(errors, &format!("{path}.port"), tree::get(action, "port")),
        }
    }
    if count == 0 {
        errors.push(Error::required(path, "must specify a handler type"));
    }
}

fn http(errors: &mut Vec<Error>, path: &str, action: &Value) {
    if tree::str(action, "/path").is_empty() {
        errors.push(Error::required(format!("{path}.path"), ""));
    }
    names::port_or_name(errors, &format!("{path}.port"), tree::get(action, "port"));
    names::one_of(errors, &format!("{path}.scheme"), tree::str(action, "/scheme"), &["HTTP", "HTTPS"]);
    for header in tree::list(action, "/httpHeaders") {
        let name = tree::str(header, "/name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            errors.push(Error::invalid(
                format!("{path}.httpHeaders"),
                name,
                "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')",
            ));
        }
    }
}

fn sleep(errors: &mut Vec<Error>, path: &str, seconds: i64, grace: Option<i64>) {
    if let Some(grace) = grace
        && !(0..=grace).contains(&seconds)
    {
        errors.push(Error::invalid(
            path,
            seconds,
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
        ));
    }
}
