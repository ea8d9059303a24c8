//! Questions about oneself: resources that are answered, not stored.

use axum::body::Body;
use http::{Response, StatusCode};
use resources::status::Status;
use serde_json::{Value, json};

use crate::access::{self, Action};
use crate::handle::Call;
use crate::{Api, decode, object, respond};

/// A row: a create-only resource.
#[derive(Debug)]
pub(crate) struct Review {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    /// The name of the definition.
    definition: &'static str,
    answer: fn(&Call, &Value) -> Value,
}

/// Sorted by group and plural.
pub(crate) static REVIEWS: &[Review] = &[
    Review {
        group: "authentication.k8s.io",
        version: "v1",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        kind: "SelfSubjectReview",
        definition: "io.k8s.api.authentication.v1.SelfSubjectReview",
        answer: subject,
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        kind: "SelfSubjectAccessReview",
        definition: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        answer: access,
    },
    Review {
        group: "authorization.k8s.io",
        version: "v1",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        kind: "SelfSubjectRulesReview",
        definition: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        answer: rules,
    },
];

/// The row of a resource.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Review> {
    REVIEWS.iter().find(|row| row.group == group && row.version == version && row.plural == plural)
}

pub(crate) fn answer(
    api: &Api,
    review: &Review,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let asked = decode::plain(call.body_format()?, body, review.definition)?;
    let api_version = format!("{}/{}", review.group, review.version);
    for (field, expected) in [("apiVersion", api_version.as_str()), ("kind", review.kind)] {
        if asked.get(field).and_then(Value::as_str).is_some_and(|given| given != expected) {
            return Err(Status::bad_request(format!("{field} must be {expected}")));
        }
    }
    let mut answered = json!({
        "apiVersion": api_version,
        "kind": review.kind,
        "metadata": { "creationTimestamp": object::time(api.now()) },
    });
    if let Some(spec) = asked.get("spec") {
        answered["spec"] = spec.clone();
    }
    answered["status"] = (review.answer)(call, &asked);
    Ok(respond::value(call.accepted, StatusCode::CREATED, &answered))
}

fn subject(call: &Call, _: &Value) -> Value {
    json!({ "userInfo": { "username": call.identity.user, "groups": call.identity.groups } })
}

fn access(call: &Call, asked: &Value) -> Value {
    let spec = &asked["spec"];
    let allowed = if let Some(attributes) = spec.get("resourceAttributes") {
        let text = |name: &str| attributes.get(name).and_then(Value::as_str).unwrap_or("");
        access::allowed(
            &call.identity,
            &Action {
                verb: text("verb"),
                group: text("group"),
                resource: text("resource"),
                subresource: text("subresource"),
                namespace: text("namespace"),
                name: text("name"),
            },
        )
    } else {
        let path = spec.pointer("/nonResourceAttributes/path").and_then(Value::as_str).unwrap_or("");
        access::path_allowed(&call.identity, path)
    };
    json!({ "allowed": allowed })
}

fn rules(call: &Call, asked: &Value) -> Value {
    let namespace = asked.pointer("/spec/namespace").and_then(Value::as_str).unwrap_or("");
    let resource_rules: Vec<Value> = access::rules_of(&call.identity, namespace)
        .into_iter()
        .map(|(verbs, group, resources)| {
            json!({ "verbs": verbs, "apiGroups": [group], "resources": resources })
        })
        .collect();
    let paths: Vec<&str> =
        ["/api", "/apis", "/healthz", "/livez", "/openapi", "/readyz", "/version"].to_vec();
    let any = call.identity.is_in("system:masters");
    let non_resource = if any {
        json!([{ "verbs": ["*"], "nonResourceURLs": ["*"] }])
    } else {
        json!([{ "verbs": ["get"], "nonResourceURLs": paths }])
    };
    json!({ "resourceRules": resource_rules, "nonResourceRules": non_resource, "incomplete": false })
}
