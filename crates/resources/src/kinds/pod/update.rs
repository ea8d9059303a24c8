//! What of a Pod's spec may change once it exists: images, a shorter deadline, more tolerations, fewer gates.

use serde_json::Value;

use crate::field::Error;
use crate::kinds::tree;

const FIXED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n";

/// Compares the new spec with the old one.
pub fn spec(errors: &mut Vec<Error>, new: &Value, old: &Value) {
    for key in ["containers", "initContainers"] {
        if tree::list(tree::get(new, key), "").len() != tree::list(tree::get(old, key), "").len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(Error::forbidden(format!("spec.{key}"), detail));
            return;
        }
    }
    let (deadline, before) =
        (tree::at(new, "/activeDeadlineSeconds").as_i64(), tree::at(old, "/activeDeadlineSeconds").as_i64());
    match (deadline, before) {
        (Some(deadline), Some(before)) if deadline > before => {
            let detail = "must be less than or equal to previous value";
            errors.push(Error::invalid("spec.activeDeadlineSeconds", deadline, detail));
            return;
        }
        (None, Some(_)) => errors.push(Error::invalid(
            "spec.activeDeadlineSeconds",
            Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => {}
    }
    tolerations(errors, new, old);
    gates(errors, new, old);
    if !tree::same(&masked(new, old), old) {
        errors.push(Error::forbidden("spec", FIXED));
    }
}

/// The new spec with what may change taken from the old one.
fn masked(new: &Value, old: &Value) -> Value {
    let mut masked = new.clone();
    for key in ["containers", "initContainers"] {
        let images: Vec<Value> =
            tree::list(tree::get(old, key), "").iter().map(|c| tree::get(c, "image").clone()).collect();
        let path = format!("/{key}");
        for (container, image) in tree::list_mut(&mut masked, &path).zip(images) {
            tree::set(container, "image", image);
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        tree::take_from(&mut masked, old, key);
    }
    if tree::int(old, "/terminationGracePeriodSeconds") < 0
        && tree::int(new, "/terminationGracePeriodSeconds") == 1
    {
        tree::take_from(&mut masked, old, "terminationGracePeriodSeconds");
    }
    masked
}

fn tolerations(errors: &mut Vec<Error>, new: &Value, old: &Value) {
    let now = tree::list(new, "/tolerations");
    let same = |a: &Value, b: &Value| {
        ["key", "operator", "value", "effect"]
            .iter()
            .all(|key| tree::get(a, key).as_str().unwrap_or("") == tree::get(b, key).as_str().unwrap_or(""))
    };
    let kept = tree::list(old, "/tolerations").iter().all(|before| now.iter().any(|t| same(t, before)));
    if !kept {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(Error::forbidden("spec.tolerations", detail));
    }
}

fn gates(errors: &mut Vec<Error>, new: &Value, old: &Value) {
    let before = tree::list(old, "/schedulingGates");
    let mut added: Vec<&str> = tree::list(new, "/schedulingGates")
        .iter()
        .filter(|gate| !before.contains(gate))
        .map(|gate| tree::str(gate, "/name"))
        .collect();
    added.sort_unstable();
    if !added.is_empty() {
        errors.push(Error::forbidden(
            "spec.schedulingGates",
            format!("only deletion is allowed, but found new scheduling gates '{}'", added.join(",")),
        ));
    }
}
