//! What Deployment and ReplicaSet share: a selector, a Pod template, and how many.

use serde_json::Value;

use super::{names, pod, tree};
use crate::field::Error;

/// The names of the template's containers.
pub fn containers(object: &Value) -> String {
    joined(object, "/name")
}

/// The images of the template's containers.
pub fn images(object: &Value) -> String {
    joined(object, "/image")
}

fn joined(object: &Value, pointer: &str) -> String {
    let all: Vec<&str> =
        tree::list(object, "/spec/template/spec/containers").iter().map(|c| tree::str(c, pointer)).collect();
    all.join(",")
}

/// The selector as text: `a=b,c in (d,e),!f`, sorted by key.
pub fn selector(object: &Value) -> String {
    let mut parts: Vec<(String, String)> = tree::entries(object, "/spec/selector/matchLabels")
        .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default())))
        .collect();
    for expression in tree::list(object, "/spec/selector/matchExpressions") {
        let key = tree::str(expression, "/key");
        let mut values: Vec<&str> =
            tree::list(expression, "/values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let text = match tree::str(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), text));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    let texts: Vec<String> = parts.into_iter().map(|(_, text)| text).collect();
    texts.join(",")
}

/// Fills the Pod template.
pub fn default_template(object: &mut Value) {
    if let Some(spec) = object.pointer_mut("/spec/template/spec") {
        pod::defaults::spec(spec);
    }
}

/// Checks the selector and that the template is one that it selects.
pub fn selector_and_template(object: &Value, errors: &mut Vec<Error>) {
    let selector = tree::at(object, "/spec/selector");
    if selector.is_null() {
        errors.push(Error::required("spec.selector", ""));
    } else {
        let before = errors.len();
        label_selector(errors, "spec.selector", selector);
        let malformed = errors.len() > before;
        let labels = tree::entries(selector, "/matchLabels").count();
        if labels + tree::list(selector, "/matchExpressions").len() == 0 {
            errors.push(Error::invalid(
                "spec.selector",
                selector.clone(),
                "empty selector is invalid for deployment",
            ));
        }
        if malformed {
            errors.push(Error::invalid("spec.selector", selector.clone(), "invalid label selector"));
            return;
        }
    }
    let template = tree::at(object, "/spec/template");
    let labels = tree::at(template, "/metadata/labels");
    if selector.is_null() || !matches(selector, labels) {
        errors.push(Error::invalid(
            "spec.template.metadata.labels",
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
    label_values(errors, "spec.template.labels", labels);
    pod::validate::template(errors, "spec.template", template);
    let policy = tree::str(template, "/spec/restartPolicy");
    if policy != "Always" {
        errors.push(Error::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if tree::has(template, "/spec/activeDeadlineSeconds") {
        errors.push(Error::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
}

/// Keys and values of a set of labels.
pub fn label_values(errors: &mut Vec<Error>, path: &str, labels: &Value) {
    for (key, value) in tree::entries(labels, "") {
        names::qualified(errors, path, key);
        let value = value.as_str().unwrap_or_default();
        names::report(errors, path, value, names::label_value_problems(value));
    }
}

/// A LabelSelector's own shape.
pub fn label_selector(errors: &mut Vec<Error>, path: &str, selector: &Value) {
    label_values(errors, &format!("{path}.matchLabels"), tree::get(selector, "matchLabels"));
    for (i, expression) in tree::list(selector, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        let values = tree::list(expression, "/values");
        match tree::str(expression, "/operator") {
            "In" | "NotIn" if values.is_empty() => errors.push(Error::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.push(Error::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.push(Error::invalid(
                format!("{path}.operator"),
                other,
                "not a valid selector operator",
            )),
        }
        names::qualified(errors, &format!("{path}.key"), tree::str(expression, "/key"));
        for (j, value) in values.iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            names::report(errors, &format!("{path}.values[{j}]"), value, names::label_value_problems(value));
        }
    }
}

/// Whether a well-formed LabelSelector selects these labels.
fn matches(selector: &Value, labels: &Value) -> bool {
    let text = |key: &str| tree::get(labels, key).as_str();
    tree::entries(selector, "/matchLabels").all(|(key, value)| text(key) == value.as_str())
        && tree::list(selector, "/matchExpressions").iter().all(|expression| {
            let have = text(tree::str(expression, "/key"));
            let values = tree::list(expression, "/values");
            let among = have.is_some_and(|have| values.iter().any(|v| v == have));
            match tree::str(expression, "/operator") {
                "In" => among,
                "NotIn" => !among,
                "Exists" => have.is_some(),
                "DoesNotExist" => have.is_none(),
                _ => true,
            }
        })
}

/// No count below zero, none above the number of replicas.
pub fn counts(object: &Value, keys: &[&str], errors: &mut Vec<Error>) {
    let status = tree::get(object, "status");
    let count = |key: &str| tree::get(status, key).as_i64().unwrap_or(0);
    for key in keys {
        names::not_negative(errors, &format!("status.{key}"), count(key));
    }
    let total = count("replicas");
    for key in ["updatedReplicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if keys.contains(&key) && count(key) > total {
            let detail = "cannot be greater than status.replicas";
            errors.push(Error::invalid(format!("status.{key}"), count(key), detail));
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        errors.push(Error::invalid(
            "status.availableReplicas",
            count("availableReplicas"),
            "cannot be greater than readyReplicas",
        ));
    }
}

/// What a writer of a workload is told: its name becomes part of host names.
pub fn warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut warnings = Vec::new();
    let name = tree::str(object, "/metadata/name");
    let problems = names::label_1123_problems(name);
    if old.is_none() && !problems.is_empty() {
        warnings.push(format!(
            "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: [{}]",
            problems.join(" ")
        ));
    }
    let same = old.is_some_and(|old| tree::same(tree::get(object, "spec"), tree::get(old, "spec")));
    if !same {
        warnings.extend(pod::warnings::spec("spec.template.spec", tree::at(object, "/spec/template/spec")));
    }
    warnings
}
