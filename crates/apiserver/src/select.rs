//! Which objects a list or a watch shows.

use std::sync::Arc;

use resources::kind::Kind;
use resources::selector::{Fields, Labels};
use resources::status::Status;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::object;
use crate::query::ListOptions;

/// Label and field selectors of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    labels: Labels,
    fields: Fields,
    /// The field selector says no more than this name.
    name_only: Option<String>,
}

#[derive(Deserialize)]
struct Labelled {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    labels: Option<Map<String, Value>>,
}

impl Selection {
    /// Reads the selectors; `name` is the path's, for a watch of one object.
    pub(crate) fn parse(kind: &Kind, options: &ListOptions, name: &str) -> Result<Self, Status> {
        let labels =
            Labels::parse(&options.label_selector).map_err(|error| Status::bad_request(error.to_string()))?;
        let mut fields = Fields::parse(&options.field_selector, kind)
            .map_err(|error| Status::bad_request(error.to_string()))?;
        if !name.is_empty() {
            if fields.name().is_some_and(|selected| selected != name) {
                return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
            }
            if fields.name().is_none() {
                fields.terms.push(("metadata.name".into(), true, name.into()));
            }
        }
        let name_only = match fields.terms.as_slice() {
            [(field, true, name)] if field == "metadata.name" => Some(name.clone()),
            _ => None,
        };
        Ok(Selection { labels, fields, name_only })
    }

    /// Whether everything is shown.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether a stored object is shown. Bytes that cannot be read are not.
    pub(crate) fn matches(&self, kind: &Kind, key: &Arc<str>, encoded: &[u8]) -> bool {
        if self.is_everything() {
            return true;
        }
        if let Some(name) = &self.name_only {
            if key.rsplit('/').next() != Some(name) {
                return false;
            }
        } else if !self.fields.is_everything() {
            let Ok(object) = object::decode(kind, encoded) else { return false };
            return self.matches_object(kind, &object);
        }
        if self.labels.is_everything() {
            return true;
        }
        serde_json::from_slice::<Labelled>(encoded)
            .is_ok_and(|object| self.labels.matches(object.metadata.labels.as_ref()))
    }

    fn matches_object(&self, kind: &Kind, object: &Value) -> bool {
        self.fields.matches(kind, object) && self.labels.matches_object(object)
    }
}
