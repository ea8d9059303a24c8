//! What is wrong with a Pod, or with the template of one.

use serde_json::Value;

use super::{container, security, tolerations, update, volume};
use crate::field::Error;
use crate::kinds::{names, tree};

/// A Pod that is created, or updated.
pub fn pod(object: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    let body = tree::get(object, "spec");
    spec(&mut errors, "spec", body, true);
    match old {
        None => {
            if !tree::list(body, "/ephemeralContainers").is_empty() {
                errors.push(Error::forbidden("spec.ephemeralContainers", "cannot be set on create"));
            }
            if !tree::str(body, "/nodeName").is_empty() && !tree::list(body, "/schedulingGates").is_empty() {
                errors.push(Error::forbidden(
                    "spec.nodeName",
                    "cannot be set until all schedulingGates have been cleared",
                ));
            }
        }
        Some(old) => update::spec(&mut errors, body, tree::get(old, "spec")),
    }
    errors
}

/// A template at a path; its labels are checked with its selector.
pub fn template(errors: &mut Vec<Error>, path: &str, template: &Value) {
    for (key, _) in tree::entries(template, "/metadata/annotations") {
        names::qualified(errors, &format!("{path}.annotations"), &key.to_lowercase());
    }
    let path = format!("{path}.spec");
    spec(errors, &path, tree::get(template, "spec"), false);
    if !tree::list(template, "/spec/ephemeralContainers").is_empty() {
        errors.push(Error::forbidden(
            format!("{path}.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

fn spec(errors: &mut Vec<Error>, path: &str, spec: &Value, is_pod: bool) {
    let volumes = volume::volumes(errors, &format!("{path}.volumes"), tree::list(spec, "/volumes"));
    let context = container::Context { spec, volumes: &volumes, is_pod };
    container::regular(errors, &format!("{path}.containers"), &context);
    container::init(errors, &format!("{path}.initContainers"), &context);
    container::ephemeral(errors, &format!("{path}.ephemeralContainers"), &context);
    host_network(errors, path, spec);
    names::one_of(
        errors,
        &format!("{path}.restartPolicy"),
        tree::str(spec, "/restartPolicy"),
        &["Always", "OnFailure", "Never"],
    );
    names::one_of(
        errors,
        &format!("{path}.dnsPolicy"),
        tree::str(spec, "/dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    crate::kinds::workload::label_values(
        errors,
        &format!("{path}.nodeSelector"),
        tree::get(spec, "nodeSelector"),
    );
    security::pod(errors, &format!("{path}.securityContext"), tree::get(spec, "securityContext"));
    dns(errors, path, spec);
    for (i, gate) in tree::list(spec, "/readinessGates").iter().enumerate() {
        let path = format!("{path}.readinessGates[{i}].conditionType");
        names::qualified(errors, &path, tree::str(gate, "/conditionType"));
    }
    gates(errors, path, spec);
    named(errors, path, spec);
    if let Some(seconds) = tree::at(spec, "/activeDeadlineSeconds").as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.push(Error::invalid(
            format!("{path}.activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    tolerations::validate(errors, &format!("{path}.tolerations"), tree::list(spec, "/tolerations"));
    for (i, alias) in tree::list(spec, "/hostAliases").iter().enumerate() {
        let ip = tree::str(alias, "/ip");
        if ip.parse::<std::net::IpAddr>().is_err() {
            errors.push(Error::invalid(
                format!("{path}.hostAliases[{i}].ip"),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
        for name in tree::list(alias, "/hostnames") {
            let name = name.as_str().unwrap_or_default();
            names::subdomain(errors, &format!("{path}.hostAliases[{i}].hostnames"), name);
        }
    }
}

fn named(errors: &mut Vec<Error>, path: &str, spec: &Value) {
    let mut check = |key: &str, rule: fn(&mut Vec<Error>, &str, &str)| {
        let name = tree::get(spec, key).as_str().unwrap_or_default();
        if !name.is_empty() {
            rule(errors, &format!("{path}.{key}"), name);
        }
    };
    check("serviceAccountName", names::subdomain);
    check("nodeName", names::subdomain);
    check("hostname", names::label_1123);
    check("subdomain", names::label_1123);
    check("priorityClassName", names::subdomain);
    check("runtimeClassName", names::subdomain);
    if let Some(policy) = tree::at(spec, "/preemptionPolicy").as_str() {
        let path = format!("{path}.preemptionPolicy");
        names::one_of(errors, &path, policy, &["PreemptLowerPriority", "Never"]);
    }
}

fn host_network(errors: &mut Vec<Error>, path: &str, spec: &Value) {
    if !tree::bool(spec, "/hostNetwork") {
        return;
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in tree::list(tree::get(spec, list), "").iter().enumerate() {
            for (j, port) in tree::list(container, "/ports").iter().enumerate() {
                let host = tree::int(port, "/hostPort");
                if host != tree::int(port, "/containerPort") {
                    errors.push(Error::invalid(
                        format!("{path}.{list}[{i}].ports[{j}].hostPort"),
                        host,
                        "must match `containerPort` when `hostNetwork` is true",
                    ));
                }
            }
        }
    }
}

fn gates(errors: &mut Vec<Error>, path: &str, spec: &Value) {
    let mut seen = Vec::new();
    for (i, gate) in tree::list(spec, "/schedulingGates").iter().enumerate() {
        let name = tree::str(gate, "/name");
        let path = format!("{path}.schedulingGates[{i}]");
        names::qualified(errors, &path, name);
        if seen.contains(&name) {
            errors.push(Error::duplicate(path, name));
        }
        seen.push(name);
    }
}

const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;

fn dns(errors: &mut Vec<Error>, path: &str, spec: &Value) {
    let config = tree::get(spec, "dnsConfig");
    let servers = tree::list(config, "/nameservers");
    let path = format!("{path}.dnsConfig");
    if tree::str(spec, "/dnsPolicy") == "None" {
        if config.is_null() {
            errors.push(Error::required(path, "must provide `dnsConfig` when `dnsPolicy` is None"));
            return;
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            errors.push(Error::required(format!("{path}.nameservers"), detail));
            return;
        }
    }
    if servers.len() > NAMESERVERS_MAX {
        errors.push(Error::invalid(
            format!("{path}.nameservers"),
            servers.to_vec(),
            format!("must not have more than {NAMESERVERS_MAX} nameservers"),
        ));
    }
    for (i, server) in servers.iter().enumerate() {
        let text = server.as_str().unwrap_or_default();
        if text.parse::<std::net::IpAddr>().is_err() {
            errors.push(Error::invalid(
                format!("{path}.nameservers[{i}]"),
                text,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ));
        }
    }
    let searches = tree::list(config, "/searches");
    if searches.len() > SEARCHES_MAX {
        errors.push(Error::invalid(
            format!("{path}.searches"),
            searches.to_vec(),
            format!("must not have more than {SEARCHES_MAX} search paths"),
        ));
    }
    for (i, option) in tree::list(config, "/options").iter().enumerate() {
        if tree::str(option, "/name").is_empty() {
            errors.push(Error::required(format!("{path}.options[{i}]"), "must not be empty"));
        }
    }
}
