//! Which taints a Pod bears.

use serde_json::{Value, json};

use crate::field::Error;
use crate::kinds::{names, tree};

/// How long a Pod stays on a node that is not ready or cannot be reached.
const SECONDS: i64 = 300;

/// Adds what every Pod bears for a while, unless it says something about it itself.
pub fn add_defaults(spec: &mut Value) {
    let mut tolerations = tree::list(spec, "/tolerations").to_vec();
    let bears = |key: &str, tolerations: &[Value]| {
        tolerations.iter().any(|t| {
            matches!(tree::str(t, "/key"), "") && matches!(tree::str(t, "/effect"), "" | "NoExecute")
                || tree::str(t, "/key") == key && matches!(tree::str(t, "/effect"), "" | "NoExecute")
        })
    };
    let missing: Vec<&str> = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .into_iter()
        .filter(|key| !bears(key, &tolerations))
        .collect();
    for key in missing {
        tolerations.push(
            json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS}),
        );
    }
    tree::set(spec, "tolerations", tolerations);
}

/// The effect of a taint, or of a toleration (which may leave it empty).
pub fn effect(errors: &mut Vec<Error>, path: &str, effect: &str, empty: bool) {
    match effect {
        "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
        "" if empty => {}
        "" => errors.push(Error::required(path, "")),
        other => {
            errors.push(Error::not_supported(path, other, &["NoSchedule", "PreferNoSchedule", "NoExecute"]))
        }
    }
}

/// What is wrong with a Pod's tolerations.
pub fn validate(errors: &mut Vec<Error>, path: &str, tolerations: &[Value]) {
    for (i, toleration) in tolerations.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let key = tree::str(toleration, "/key");
        let operator = tree::str(toleration, "/operator");
        let value = tree::str(toleration, "/value");
        let taint = tree::str(toleration, "/effect");
        if !key.is_empty() {
            names::qualified(errors, &format!("{path}.key"), key);
        } else if operator != "Exists" {
            errors.push(Error::invalid(
                format!("{path}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        if tree::has(toleration, "/tolerationSeconds") && taint != "NoExecute" {
            errors.push(Error::invalid(
                format!("{path}.effect"),
                taint,
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
        match operator {
            "" | "Equal" => {
                let problems = names::label_value_problems(value);
                if !problems.is_empty() {
                    errors.push(Error::invalid(format!("{path}.operator"), value, problems.join(";")));
                }
            }
            "Exists" => {
                if !value.is_empty() {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    errors.push(Error::invalid(format!("{path}.operator"), value, detail));
                }
            }
            other => {
                errors.push(Error::not_supported(format!("{path}.operator"), other, &["Equal", "Exists"]));
            }
        }
        effect(errors, &format!("{path}.effect"), taint, true);
    }
}
