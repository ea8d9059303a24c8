//! ReplicaSet: so many Pods of one template.

use serde_json::{Value, json};

use super::{deployment, names, tree, wire, workload};
use crate::field::Error;
use crate::kind::{self, Cell, Column, Generation, Kind, Scale, Subresource};

pub static KIND: Kind = Kind {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    subresources: &[Subresource::Scale(Scale::STANDARD), Subresource::Status],
    columns: &[
        Column::NAME,
        Column::new(
            "Desired",
            "integer",
            "Pods wanted",
            Cell::Fn(|o, _| json!(tree::int(o, "/spec/replicas"))),
        ),
        Column::new(
            "Current",
            "integer",
            "Pods that exist",
            Cell::Fn(|o, _| json!(tree::int(o, "/status/replicas"))),
        ),
        Column::new(
            "Ready",
            "integer",
            "Pods that are ready",
            Cell::Fn(|o, _| json!(tree::int(o, "/status/readyReplicas"))),
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
    generation: Generation::Spec,
    default: |object| {
        wire::canonical(KIND.schema, object);
        workload::default_template(object);
        if let Some(spec) = object.get_mut("spec") {
            tree::fill(spec, "replicas", 1);
        }
    },
    prepare: |object, old| {
        kind::prepare_status_kept(object, old);
        wire::canonical(KIND.schema, object);
    },
    validate,
    validate_status: |new, _| {
        let mut errors = Vec::new();
        workload::counts(
            new,
            &[
                "replicas",
                "fullyLabeledReplicas",
                "readyReplicas",
                "availableReplicas",
                "observedGeneration",
                "terminatingReplicas",
            ],
            &mut errors,
        );
        errors
    },
    warnings: workload::warnings,
    selectable_fields: &[("status.replicas", |o| tree::int(o, "/status/replicas").to_string())],
    ..Kind::EMPTY
};

fn validate(object: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    names::not_negative(&mut errors, "spec.replicas", tree::int(object, "/spec/replicas"));
    names::not_negative(&mut errors, "spec.minReadySeconds", tree::int(object, "/spec/minReadySeconds"));
    workload::selector_and_template(object, &mut errors);
    if let Some(old) = old {
        deployment::immutable_selector(object, old, &mut errors);
    }
    errors
}
