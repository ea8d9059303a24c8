//! Manifests: by tag or digest; put, got, deleted.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, Limited};
use oci::{Reference, manifest::SIZE_MAX};

use super::{
    CONTENT_DIGEST, Reply, Server, blocking,
    failure::{Code, Failure},
    route::with_manifest,
    value,
};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

pub(super) async fn get(server: Arc<Server>, name: Reference, reference: String) -> Reply {
    let wanted = match with_manifest(&name, &reference) {
        Ok(wanted) => wanted,
        // What is no tag is no manifest either.
        Err(failure) if reference.contains(':') => return Err(failure),
        Err(_) => return Err(unknown(&name, &reference)),
    };
    let store = server.store.clone();
    let found = blocking(move || {
        let Some(descriptor) = store.resolve(&wanted)? else { return Ok(None) };
        let raw = store.read(&descriptor.digest)?;
        Ok(Some((descriptor, raw)))
    });
    let (descriptor, raw) = found.await?.ok_or_else(|| unknown(&name, &reference))?;
    // For HEAD the server leaves the body out and keeps the length.
    let mut response = Response::new(Body::from(raw));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, value(descriptor.media_type));
    headers.insert(header::ETAG, value(format!("\"{}\"", descriptor.digest)));
    headers.insert(CONTENT_DIGEST, value(descriptor.digest.as_str()));
    Ok(response)
}

pub(super) async fn put(server: Arc<Server>, name: Reference, reference: String, request: Request) -> Reply {
    let wanted = with_manifest(&name, &reference)?;
    let media_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = Limited::new(request.into_body(), SIZE_MAX as usize);
    let raw = match body.collect().await {
        Ok(collected) => collected.to_bytes().to_vec(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the manifest is larger than {SIZE_MAX} bytes");
            return Err(Failure::new(Code::ManifestInvalid, message).status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        Err(_) => return Err(Failure::new(Code::ManifestInvalid, "the request's body was cut short")),
    };
    let store = server.store.clone();
    let document = blocking(move || store.put_manifest(&wanted, raw, media_type.as_deref())).await?;
    let digest = &document.descriptor.digest;
    let location = value(format!("/v2/{}/manifests/{digest}", name.path()));
    let headers = [(header::LOCATION, location), (CONTENT_DIGEST, value(digest.as_str()))];
    let mut response = (StatusCode::CREATED, headers).into_response();
    if let Some(subject) = document.subject() {
        response.headers_mut().insert(SUBJECT, value(subject.digest.as_str()));
    }
    Ok(response)
}

pub(super) async fn delete(server: Arc<Server>, name: Reference, reference: String) -> Reply {
    let wanted = with_manifest(&name, &reference)?;
    let store = server.store.clone();
    if blocking(move || store.remove_name(&wanted)).await? {
        return Ok(StatusCode::ACCEPTED.into_response());
    }
    Err(unknown(&name, &reference))
}

fn unknown(name: &Reference, reference: &str) -> Failure {
    Failure::new(Code::ManifestUnknown, format!("{} has no manifest {reference}", name.path()))
}
