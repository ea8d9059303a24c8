//! Lease: who holds something, and since when.

use serde_json::Value;

use super::{tree, wire};
use crate::field;
use crate::kind::{Cell, Column, Kind};

pub static KIND: Kind = Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    schema: "io.k8s.api.coordination.v1.Lease",
    columns: &[
        Column::NAME,
        Column::new("Holder", "string", "Who holds it", Cell::Pointer("/spec/holderIdentity")),
        Column::AGE,
    ],
    default: |object| wire::canonical(KIND.schema, object),
    // Coordinated leader election is not served: its fields are dropped, as with its feature gate off.
    prepare: |object, old| {
        let Some(spec) = object.get_mut("spec") else { return };
        for key in ["strategy", "preferredHolder"] {
            if old.is_none_or(|old| tree::get(tree::get(old, "spec"), key).is_null()) {
                tree::remove(spec, key);
            }
        }
    },
    validate,
    create_on_update: true,
    unconditional_update: false,
    beyond_quota: true,
    reset_fields: &[],
    ..Kind::EMPTY
};

fn validate(object: &Value, _: Option<&Value>) -> Vec<field::Error> {
    let mut errors = Vec::new();
    if let Some(seconds) = tree::at(object, "/spec/leaseDurationSeconds").as_i64()
        && seconds <= 0
    {
        errors.push(field::Error::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
    }
    if let Some(count) = tree::at(object, "/spec/leaseTransitions").as_i64()
        && count < 0
    {
        errors.push(field::Error::invalid(
            "spec.leaseTransitions",
            count,
            "must be greater than or equal to 0",
        ));
    }
    errors
}
