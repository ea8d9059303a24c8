//! ServiceAccount: an identity for Pods.

use crate::kind::{Column, Kind};

use super::{tree, wire};

pub static KIND: Kind = Kind {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    columns: &[Column::NAME, Column::AGE],
    default: |object| wire::canonical(KIND.schema, object),
    // References to Secrets carry a name only.
    prepare: |object, _| {
        for secret in tree::list_mut(object, "/secrets") {
            if let Some(map) = secret.as_object_mut() {
                map.retain(|key, _| key == "name");
            }
        }
    },
    reset_fields: &[],
    delete_returns_object: true,
    ..Kind::EMPTY
};
