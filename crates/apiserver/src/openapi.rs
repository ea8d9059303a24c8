//! OpenAPI: one document for each group and version, encoded when it is first asked for.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use resources::status::Status;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::discovery;
use crate::negotiate::{self, Accepted};
use crate::query::Query;
use crate::respond;

/// The documents by their path below `/openapi/v3/`.
pub(crate) struct Documents(BTreeMap<String, Document>);

struct Document {
    group: &'static str,
    version: &'static str,
    encoded: OnceLock<Encoded>,
}

struct Encoded {
    bytes: Bytes,
    hash: String,
}

impl Document {
    fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| {
            let document = resources::openapi::document(self.group, self.version);
            let bytes = serde_json::to_vec(&document).unwrap_or_default();
            Encoded { hash: hex::encode_upper(Sha256::digest(&bytes)), bytes: bytes.into() }
        })
    }
}

/// Stands in the index for a document's content: what is compiled in decides it.
fn fingerprint(path: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(env!("CARGO_PKG_VERSION"));
    hash.update(path);
    for kind in resources::KINDS {
        hash.update(kind.schema);
        hash.update(format!("{:?}{:?}", kind.verbs, kind.subresources));
    }
    hex::encode_upper(hash.finalize())
}

impl Documents {
    pub(crate) fn new() -> Self {
        let of = |(path, group, version)| (path, Document { group, version, encoded: OnceLock::new() });
        Documents(discovery::version_paths().into_iter().map(of).collect())
    }

    /// `/openapi/v3`.
    pub(crate) fn index(&self, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let accepted = negotiate::accept(headers, &Query::default()).unwrap_or(Accepted::PLAIN);
        let paths: serde_json::Map<String, Value> = self
            .0
            .keys()
            .map(|path| {
                // The hash must not cost the document's encoding, which most clients never ask for.
                let url = format!("/openapi/v3/{path}?hash={}", fingerprint(path));
                (path.clone(), json!({ "serverRelativeURL": url }))
            })
            .collect();
        Ok(respond::value(accepted, StatusCode::OK, &json!({ "paths": paths })))
    }

    /// `/openapi/v3/<path>`.
    pub(crate) fn document(
        &self,
        path: &str,
        headers: &HeaderMap,
        query: &Query,
    ) -> Result<Response<Body>, Status> {
        let document = self.0.get(path).ok_or_else(Status::path_not_found)?;
        let json = negotiate::clauses(headers)
            .iter()
            .all(|clause| !matches!(clause.kind, "application/json" | "application/*" | "*/*"));
        if json && headers.contains_key(header::ACCEPT) {
            return Err(Status::not_acceptable(&[negotiate::JSON]));
        }
        let encoded = document.encoded();
        let tag = HeaderValue::from_str(&format!("\"{}\"", encoded.hash));
        let known =
            matches!((&tag, headers.get(header::IF_NONE_MATCH)), (Ok(tag), Some(asked)) if tag == asked);
        let mut response = if known {
            respond::bytes(StatusCode::NOT_MODIFIED, negotiate::JSON, Body::empty())
        } else {
            respond::bytes(StatusCode::OK, negotiate::JSON, encoded.bytes.clone())
        };
        if let Ok(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        if query.get("hash") == fingerprint(path) {
            let forever = HeaderValue::from_static("public, immutable");
            response.headers_mut().insert(header::CACHE_CONTROL, forever);
        }
        Ok(response)
    }
}

/// What clients name version 2 in its protobuf form.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `/openapi/v2`: a document without a path. kubectl asks for it about kinds that version 3 does not name; a failure
/// would hide from its user that there is no such kind.
pub(crate) fn v2(headers: &HeaderMap) -> Response<Body> {
    let (title, version) = ("gantry", format!("v1.{}.0", crate::EMULATED_MINOR));
    if negotiate::clauses(headers).iter().any(|clause| clause.kind.contains("proto-openapi")) {
        // message Document { string swagger = 1; Info info = 2; }, message Info { string title = 1; string version = 2; }
        let info = [field(1, title.as_bytes()), field(2, version.as_bytes())].concat();
        let document = [field(1, b"2.0"), field(2, &info)].concat();
        return respond::bytes(StatusCode::OK, V2_PROTOBUF, document);
    }
    let document = json!({"swagger": "2.0", "info": {"title": title, "version": version}, "paths": {}});
    respond::value(Accepted::PLAIN, StatusCode::OK, &document)
}

/// A length-delimited protobuf field of fewer than 128 bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    debug_assert!(bytes.len() < 128, "the length is one byte");
    [&[number << 3 | 2, bytes.len() as u8], bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_has_two_forms() {
        let mut headers = HeaderMap::new();
        assert_eq!(v2(&headers).headers()[header::CONTENT_TYPE], "application/json");
        headers.insert(header::ACCEPT, HeaderValue::from_static(V2_PROTOBUF));
        assert_eq!(v2(&headers).headers()[header::CONTENT_TYPE], V2_PROTOBUF);
        assert_eq!(field(2, b"ab"), [0x12, 2, b'a', b'b']);
    }
}
