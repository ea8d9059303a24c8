//! What the server serves: aggregated and legacy discovery, all from the rows of the kinds.

use std::net::SocketAddr;

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use resources::KINDS;
use resources::kind::Kind;
use resources::status::Status;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::negotiate::{self, Accepted, Format};
use crate::path::Root;
use crate::query::Query;
use crate::{respond, reviews};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// One way to see a group and version's resources: name, singular, namespaced, kind …, from either table.
struct Resource {
    name: String,
    singular: &'static str,
    namespaced: bool,
    kind: &'static str,
    /// Group and version of the body when they are not the path's.
    body: Option<(&'static str, &'static str)>,
    verbs: Vec<&'static str>,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
}

/// The groups that come first, in kube-apiserver's order of priority; others follow by name.
const PRIORITY: &[&str] = &[
    "",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
];

/// Groups and versions in the order that clients prefer them.
fn versions() -> Vec<(&'static str, &'static str)> {
    let rows = KINDS.iter().map(|kind| (kind.group, kind.version));
    let reviews = reviews::REVIEWS.iter().map(|review| (review.group, review.version));
    let mut all: Vec<_> = rows.chain(reviews).collect();
    let rank = |group: &str| PRIORITY.iter().position(|name| *name == group).unwrap_or(PRIORITY.len());
    all.sort_unstable_by_key(|(group, version)| (rank(group), *group, *version));
    all.dedup();
    all
}

fn kinds_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    KINDS.iter().copied().filter(move |kind| kind.group == group && kind.version == version)
}

fn verbs_of(kind: &Kind) -> Vec<&'static str> {
    kind.verbs.to_vec()
}

fn resources_of(group: &str, version: &str) -> Vec<Resource> {
    let mut all = Vec::new();
    for kind in kinds_of(group, version) {
        all.push(Resource {
            name: kind.plural.to_owned(),
            singular: kind.singular,
            namespaced: kind.namespaced(),
            kind: kind.kind,
            body: None,
            verbs: verbs_of(kind),
            short_names: kind.short_names,
            categories: kind.categories,
        });
        for subresource in kind.subresources {
            let body = subresource.body();
            all.push(Resource {
                name: format!("{}/{}", kind.plural, subresource.name()),
                singular: "",
                namespaced: kind.namespaced(),
                kind: body.map_or(kind.kind, |(_, _, kind)| kind),
                body: body
                    .map(|(group, version, _)| (group, version))
                    .filter(|at| *at != (kind.group, kind.version)),
                verbs: subresource.verbs().to_vec(),
                short_names: &[],
                categories: &[],
            });
        }
    }
    for review in reviews::REVIEWS.iter().filter(|row| row.group == group && row.version == version) {
        all.push(Resource {
            name: review.plural.to_owned(),
            singular: review.singular,
            namespaced: false,
            kind: review.kind,
            body: None,
            verbs: vec!["create"],
            short_names: &[],
            categories: &[],
        });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The two aggregated documents, encoded once.
pub(crate) struct Documents {
    /// Where clients reach the server.
    addresses: Value,
    core: Document,
    groups: Document,
}

struct Document {
    bytes: bytes::Bytes,
    etag: HeaderValue,
}

impl Document {
    fn new(value: &Value) -> Self {
        let bytes = serde_json::to_vec(value).unwrap_or_default();
        let hash = hex::encode_upper(Sha256::digest(&bytes));
        let etag = HeaderValue::from_str(&format!("\"{hash}\"")).unwrap_or(HeaderValue::from_static("\"\""));
        Document { bytes: bytes.into(), etag }
    }
}

impl Documents {
    pub(crate) fn new(advertise: Option<SocketAddr>) -> Self {
        let addresses = match advertise {
            Some(address) => json!([{ "clientCIDR": "0.0.0.0/0", "serverAddress": address.to_string() }]),
            None => json!([]),
        };
        let (core, groups): (Vec<_>, Vec<_>) =
            versions().into_iter().partition(|(group, _)| group.is_empty());
        Documents {
            addresses,
            core: Document::new(&aggregated(&core)),
            groups: Document::new(&aggregated(&groups)),
        }
    }

    /// `/api` or `/apis`.
    pub(crate) fn root(&self, root: Root, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let wants_aggregated = negotiate::clauses(headers).into_iter().find_map(|clause| {
            let json = matches!(clause.kind, "application/json" | "application/*" | "*/*");
            match clause.parameter("as") {
                "" if json => Some(false),
                "APIGroupDiscoveryList"
                    if json
                        && clause.parameter("g") == "apidiscovery.k8s.io"
                        && clause.parameter("v") == "v2" =>
                {
                    Some(true)
                }
                _ => None,
            }
        });
        let mut response = if wants_aggregated == Some(true) {
            let document = if root == Root::Legacy { &self.core } else { &self.groups };
            tagged(document, AGGREGATED, headers)
        } else {
            let accepted = negotiate::accept(headers, &Query::default())?;
            let list = match root {
                Root::Legacy => json!({
                    "kind": "APIVersions",
                    "versions": ["v1"],
                    "serverAddressByClientCIDRs": self.addresses,
                }),
                Root::Groups => json!({
                    "kind": "APIGroupList",
                    "apiVersion": "v1",
                    "groups": group_names().into_iter().map(|name| api_group(name, false)).collect::<Vec<_>>(),
                }),
            };
            respond::value(accepted, StatusCode::OK, &list)
        };
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        Ok(response)
    }
}

/// A document with an ETag, or 304.
fn tagged(document: &Document, media_type: &'static str, headers: &HeaderMap) -> Response<Body> {
    let known = headers.get(header::IF_NONE_MATCH).is_some_and(|tag| *tag == document.etag);
    let mut response = if known {
        respond::bytes(StatusCode::NOT_MODIFIED, media_type, Body::empty())
    } else {
        respond::bytes(StatusCode::OK, media_type, document.bytes.clone())
    };
    response.headers_mut().insert(header::ETAG, document.etag.clone());
    response
}

fn aggregated(versions: &[(&'static str, &'static str)]) -> Value {
    let mut groups: Vec<(&str, Vec<Value>)> = Vec::new();
    for (group, version) in versions {
        let entry = json!({
            "version": version,
            "freshness": "Current",
            "resources": aggregated_resources(group, version),
        });
        match groups.iter_mut().find(|(name, _)| name == group) {
            Some((_, entries)) => entries.push(entry),
            None => groups.push((group, vec![entry])),
        }
    }
    let items: Vec<Value> = groups
        .into_iter()
        .map(|(name, versions)| {
            let metadata = if name.is_empty() { json!({}) } else { json!({ "name": name }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resources(group: &str, version: &str) -> Vec<Value> {
    let mut top: Vec<Value> = Vec::new();
    for resource in resources_of(group, version) {
        // Empty is the resource's own group and version.
        let (body_group, body_version) = resource.body.unwrap_or_default();
        let response_kind = json!({ "group": body_group, "version": body_version, "kind": resource.kind });
        if let Some((_, sub)) = resource.name.split_once('/') {
            let entry = json!({ "subresource": sub, "responseKind": response_kind, "verbs": resource.verbs });
            // Sorted by name: the parent comes before its subresources.
            if let Some(parent) = top.last_mut() {
                match parent.get_mut("subresources").and_then(Value::as_array_mut) {
                    Some(entries) => entries.push(entry),
                    None => parent["subresources"] = json!([entry]),
                }
            }
            continue;
        }
        let mut entry = json!({
            "resource": resource.name,
            "responseKind": response_kind,
            "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": resource.singular,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        top.push(entry);
    }
    top
}

fn group_names() -> Vec<&'static str> {
    let mut names: Vec<_> = versions().into_iter().map(|(group, _)| group).collect();
    names.dedup();
    names.retain(|name| !name.is_empty());
    names
}

fn api_group(name: &str, with_type: bool) -> Value {
    let of_group: Vec<Value> = versions()
        .into_iter()
        .filter(|(group, _)| *group == name)
        .map(|(group, version)| json!({ "groupVersion": format!("{group}/{version}"), "version": version }))
        .collect();
    let mut group = json!({ "name": name, "versions": of_group, "preferredVersion": of_group.first() });
    if with_type {
        group["kind"] = "APIGroup".into();
        group["apiVersion"] = "v1".into();
    }
    group
}

/// `/apis/<group>`.
pub(crate) fn group(name: &str, headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accept(headers, query)?;
    if !group_names().contains(&name) {
        return nothing(&format!("/apis/{name}"));
    }
    Ok(respond::value(accepted, StatusCode::OK, &api_group(name, true)))
}

/// A path where nothing is: a Status below a group that is served, else a line of text, as clients know it.
pub(crate) fn nothing(path: &str) -> Result<Response<Body>, Status> {
    let mut parts = path.split('/').skip(1);
    let served = match (parts.next(), parts.next()) {
        (Some("api"), Some(_)) => true,
        (Some("apis"), Some(group)) => group.is_empty() || group_names().contains(&group),
        _ => false,
    };
    if served {
        return Err(Status::path_not_found());
    }
    Ok(respond::bytes(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", Body::from("404 page not found\n")))
}

/// `/api/v1`, `/apis/<group>/<version>`.
pub(crate) fn version(
    group: &str,
    version: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Response<Body>, Status> {
    let accepted = negotiate::accept(headers, query)?;
    let resources = resources_of(group, version);
    if resources.is_empty() {
        return nothing(&format!("/apis/{group}/{version}"));
    }
    let entries: Vec<Value> = resources
        .iter()
        .map(|resource| {
            let mut entry = json!({
                "name": resource.name,
                "singularName": resource.singular,
                "namespaced": resource.namespaced,
                "kind": resource.kind,
                "verbs": resource.verbs,
            });
            if let Some((group, version)) = resource.body {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            if !resource.short_names.is_empty() {
                entry["shortNames"] = json!(resource.short_names);
            }
            if !resource.categories.is_empty() {
                entry["categories"] = json!(resource.categories);
            }
            entry
        })
        .collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut list = json!({
        "kind": "APIResourceList",
        "groupVersion": group_version,
        "resources": entries,
    });
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    Ok(respond::value(accepted, StatusCode::OK, &list))
}

/// `/`: the paths that there are.
pub(crate) fn paths(headers: &HeaderMap, query: &Query) -> Result<Response<Body>, Status> {
    let accepted =
        negotiate::accept(headers, query).unwrap_or(Accepted { format: Format::Json, ..Accepted::PLAIN });
    let mut paths: Vec<String> =
        ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v3", "/readyz", "/version"]
            .map(str::to_owned)
            .to_vec();
    for (group, version) in versions() {
        if group.is_empty() {
            paths.push(format!("/api/{version}"));
        } else {
            paths.push(format!("/apis/{group}"));
            paths.push(format!("/apis/{group}/{version}"));
        }
    }
    paths.sort();
    paths.dedup();
    Ok(respond::value(accepted, StatusCode::OK, &json!({ "paths": paths })))
}

/// The groups and versions that are served, as paths below the root.
pub(crate) fn version_paths() -> Vec<(String, &'static str, &'static str)> {
    versions()
        .into_iter()
        .map(|(group, version)| match group {
            "" => (format!("api/{version}"), group, version),
            _ => (format!("apis/{group}/{version}"), group, version),
        })
        .collect()
}
