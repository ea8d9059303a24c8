//! Lists: repositories, tags, referrers; in pages.

use std::sync::Arc;

use axum::{
    Json,
    extract::Request,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use oci::{Digest, Index, Reference, media_type};
use serde_json::json;

use super::{
    Reply, Server, blocking,
    failure::{Code, Failure},
    parameter, value,
};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The most entries of a page, whatever the client asks for.
const PAGE_LEN_MAX: usize = 1000;

pub(super) async fn catalog(server: Arc<Server>, request: Request) -> Reply {
    let store = server.store.clone();
    let names = blocking(move || store.repositories()).await?;
    let page = Page::cut(names, &request)?;
    Ok(page.respond("/v2/_catalog", |names| Json(json!({"repositories": names})).into_response()))
}

pub(super) async fn tags(server: Arc<Server>, name: Reference, request: Request) -> Reply {
    let (store, repository) = (server.store.clone(), name.clone());
    let tags = blocking(move || store.tags(&repository)).await?;
    let path = name.path();
    let tags =
        tags.ok_or_else(|| Failure::new(Code::NameUnknown, format!("repository {path} is not known")))?;
    let page = Page::cut(tags, &request)?;
    let url = format!("/v2/{path}/tags/list");
    Ok(page.respond(&url, |tags| Json(json!({"name": path, "tags": tags})).into_response()))
}

pub(super) async fn referrers(
    server: Arc<Server>,
    name: Reference,
    subject: Digest,
    request: Request,
) -> Reply {
    let store = server.store.clone();
    let repository = name.clone();
    let wanted = subject.clone();
    let mut referrers = blocking(move || store.referrers(&repository, &wanted)).await?;
    let filter = parameter(&request, "artifactType").filter(|filter| !filter.is_empty());
    if let Some(filter) = &filter {
        referrers.retain(|referrer| referrer.artifact_type.as_deref() == Some(filter));
    }
    let digests = referrers.iter().map(|r| r.digest.to_string()).collect();
    let page = Page::cut(digests, &request)?;
    let url = format!("/v2/{}/referrers/{subject}", name.path());
    let mut response = page.respond(&url, |digests| {
        referrers.retain(|r| digests.iter().any(|d| d == r.digest.as_str()));
        let body = Index::new(referrers).to_vec();
        ([(header::CONTENT_TYPE, media_type::OCI_INDEX)], body).into_response()
    });
    if filter.is_some() {
        response.headers_mut().insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

/// A page of a sorted list.
struct Page {
    entries: Vec<String>,
    len: usize,
    /// The filter to repeat in the link to the next page.
    filter: Option<String>,
    more: bool,
}

impl Page {
    /// The entries after `last`, at most `n`.
    fn cut(mut entries: Vec<String>, request: &Request) -> Result<Self, Failure> {
        let len = match parameter(request, "n") {
            None => PAGE_LEN_MAX,
            Some(n) => match n.parse::<u64>() {
                Ok(n) => usize::try_from(n).unwrap_or(PAGE_LEN_MAX).min(PAGE_LEN_MAX),
                Err(_) => {
                    return Err(Failure::new(Code::SizeInvalid, format!("n={n} is no number of entries")));
                }
            },
        };
        if let Some(last) = parameter(request, "last") {
            entries.retain(|entry| *entry > last);
        }
        let more = entries.len() > len && len > 0;
        entries.truncate(len);
        Ok(Page { entries, len, filter: parameter(request, "artifactType"), more })
    }

    fn respond(self, url: &str, body: impl FnOnce(&[String]) -> Response) -> Response {
        let mut response = body(&self.entries);
        if let (true, Some(last)) = (self.more, self.entries.last()) {
            let filter = self.filter.map(|f| format!("&artifactType={}", encode(&f))).unwrap_or_default();
            let link = format!("<{url}?n={}&last={}{filter}>; rel=\"next\"", self.len, encode(last));
            response.headers_mut().insert(header::LINK, value(link));
        }
        response
    }
}

/// Percent-encodes everything that is not unreserved (RFC 3986, 2.3).
fn encode(text: &str) -> String {
    crate::client::url::encode(text)
}
