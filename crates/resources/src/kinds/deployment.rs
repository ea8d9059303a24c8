//! Deployment: replicas of a Pod template, replaced without interruption when the template changes.

use serde_json::{Value, json};

use super::{names, tree, wire, workload};
use crate::field::Error;
use crate::kind::{self, Cell, Column, Generation, Kind, Scale, Subresource};

pub static KIND: Kind = Kind {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.Deployment",
    subresources: &[Subresource::Scale(Scale::STANDARD), Subresource::Status],
    columns: &[
        Column::NAME,
        Column::new(
            "Ready",
            "string",
            "Pods that are ready, of those wanted",
            Cell::Fn(|o, _| ready(o).into()),
        ),
        Column::new(
            "Up-to-date",
            "string",
            "Pods of the newest template",
            Cell::Fn(|o, _| json!(tree::int(o, "/status/updatedReplicas"))),
        ),
        Column::new(
            "Available",
            "string",
            "Pods that have been ready long enough",
            Cell::Fn(|o, _| json!(tree::int(o, "/status/availableReplicas"))),
        ),
        Column::AGE,
        Column::new(
            "Containers",
            "string",
            "Containers of the template",
            Cell::Fn(|o, _| workload::containers(o).into()),
        )
        .wide(),
        Column::new(
            "Images",
            "string",
            "Images of the template",
            Cell::Fn(|o, _| workload::images(o).into()),
        )
        .wide(),
        Column::new(
            "Selector",
            "string",
            "Which Pods belong to it",
            Cell::Fn(|o, _| workload::selector(o).into()),
        )
        .wide(),
    ],
    generation: Generation::SpecAndAnnotations,
    default,
    prepare: |object, old| {
        kind::prepare_status_kept(object, old);
        wire::canonical(KIND.schema, object);
    },
    prepare_status: |object, old| {
        kind::prepare_status_only(object, old);
        if let Some(meta) = object.get_mut("metadata") {
            tree::take_from(meta, tree::get(old, "metadata"), "labels");
        }
    },
    validate,
    validate_status,
    warnings: workload::warnings,
    reset_fields_status: &["spec", "metadata.labels"],
    ..Kind::EMPTY
};

fn ready(object: &Value) -> String {
    format!("{}/{}", tree::int(object, "/status/readyReplicas"), tree::int(object, "/spec/replicas"))
}

fn default(object: &mut Value) {
    wire::canonical(KIND.schema, object);
    workload::default_template(object);
    let Some(spec) = object.get_mut("spec") else { return };
    tree::fill(spec, "replicas", 1);
    tree::fill(spec, "revisionHistoryLimit", 10);
    tree::fill(spec, "progressDeadlineSeconds", 600);
    let Some(strategy) = tree::child_mut(spec, "strategy") else { return };
    tree::fill(strategy, "type", "RollingUpdate");
    if tree::str(strategy, "/type") == "RollingUpdate"
        && let Some(rolling) = tree::child_mut(strategy, "rollingUpdate")
    {
        for key in ["maxUnavailable", "maxSurge"] {
            if tree::get(rolling, key).is_null() {
                tree::set(rolling, key, "25%");
            }
        }
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    names::not_negative(&mut errors, "spec.replicas", tree::int(object, "/spec/replicas"));
    workload::selector_and_template(object, &mut errors);
    strategy(object, &mut errors);
    let min_ready = tree::int(object, "/spec/minReadySeconds");
    names::not_negative(&mut errors, "spec.minReadySeconds", min_ready);
    names::not_negative(
        &mut errors,
        "spec.revisionHistoryLimit",
        tree::int(object, "/spec/revisionHistoryLimit"),
    );
    if let Some(deadline) = tree::at(object, "/spec/progressDeadlineSeconds").as_i64() {
        names::not_negative(&mut errors, "spec.progressDeadlineSeconds", deadline);
        if deadline <= min_ready {
            errors.push(Error::invalid(
                "spec.progressDeadlineSeconds",
                deadline,
                "must be greater than minReadySeconds",
            ));
        }
    }
    if let Some(old) = old {
        immutable_selector(object, old, &mut errors);
    }
    errors
}

/// The selector of a Deployment or ReplicaSet never changes.
pub(super) fn immutable_selector(object: &Value, old: &Value, errors: &mut Vec<Error>) {
    let selector = tree::at(object, "/spec/selector");
    if !tree::same(selector, tree::at(old, "/spec/selector")) {
        errors.push(Error::immutable("spec.selector", selector.clone()));
    }
}

fn strategy(object: &Value, errors: &mut Vec<Error>) {
    let strategy = tree::at(object, "/spec/strategy");
    match tree::str(strategy, "/type") {
        "Recreate" => {
            if tree::has(strategy, "/rollingUpdate") {
                errors.push(Error::forbidden(
                    "spec.strategy.rollingUpdate",
                    "may not be specified when strategy `type` is 'Recreate'",
                ));
            }
        }
        "RollingUpdate" => rolling_update(tree::get(strategy, "rollingUpdate"), errors),
        _ => errors.push(Error::not_supported(
            "spec.strategy",
            strategy.clone(),
            &["Recreate", "RollingUpdate"],
        )),
    }
}

fn rolling_update(rolling: &Value, errors: &mut Vec<Error>) {
    let mut numbers = [0, 0];
    for (number, key) in numbers.iter_mut().zip(["maxUnavailable", "maxSurge"]) {
        let path = format!("spec.strategy.rollingUpdate.{key}");
        let value = tree::get(rolling, key);
        match value.as_str() {
            Some(text) => match percent(text) {
                Some(percent) => *number = percent,
                None => errors.push(Error::invalid(
                    path,
                    text,
                    "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
                )),
            },
            None => {
                *number = value.as_i64().unwrap_or(0);
                names::not_negative(errors, &path, *number);
            }
        }
    }
    let unavailable = tree::get(rolling, "maxUnavailable");
    let path = "spec.strategy.rollingUpdate.maxUnavailable";
    if numbers == [0, 0] {
        errors.push(Error::invalid(path, unavailable.clone(), "may not be 0 when `maxSurge` is 0"));
    }
    if unavailable.as_str().and_then(percent).is_some_and(|percent| percent > 100) {
        errors.push(Error::invalid(path, unavailable.clone(), "must not be greater than 100%"));
    }
}

fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn validate_status(new: &Value, old: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    workload::counts(
        new,
        &[
            "observedGeneration",
            "replicas",
            "updatedReplicas",
            "readyReplicas",
            "availableReplicas",
            "unavailableReplicas",
            "terminatingReplicas",
            "collisionCount",
        ],
        &mut errors,
    );
    let (count, before) = (tree::at(new, "/status/collisionCount"), tree::at(old, "/status/collisionCount"));
    if before.as_i64().is_some_and(|before| count.as_i64().is_none_or(|count| count < before)) {
        errors.push(Error::invalid(
            "status.collisionCount",
            count.as_i64().unwrap_or(0),
            "cannot be decremented",
        ));
    }
    errors
}
