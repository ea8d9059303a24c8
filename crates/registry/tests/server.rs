//! The server's answers where the outside suites do not look: errors, limits, resumed uploads, paging.

use axum::{
    Router,
    body::Body,
    http::{Method, Request, Response, StatusCode, header},
};
use http_body_util::BodyExt;
use images::Store;
use oci::{Descriptor, Digest, Manifest, media_type};
use registry::server::{Auth, router};
use tower::ServiceExt;

async fn send(router: &Router, method: Method, path: &str, body: &[u8]) -> Response<Body> {
    let request =
        Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, media_type::OCI_MANIFEST);
    router.clone().oneshot(request.body(Body::from(body.to_vec())).unwrap()).await.unwrap()
}

async fn code(response: Response<Body>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    (status, json["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
}

fn header_of(response: &Response<Body>, name: &str) -> String {
    response.headers().get(name).map_or(String::new(), |v| v.to_str().unwrap().to_owned())
}

fn open() -> (tempfile::TempDir, Store, Router) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let router = router(store.clone(), Auth::Open);
    (dir, store, router)
}

fn artifact(store: &Store, text: &str) -> Vec<u8> {
    store.put(b"{}", None).unwrap();
    store.put(text.as_bytes(), None).unwrap();
    let layer = Descriptor::of("text/plain", text.as_bytes());
    Manifest::new(Descriptor::of(media_type::OCI_EMPTY, b"{}"), vec![layer]).to_vec()
}

#[tokio::test]
async fn errors_have_the_specs_codes() {
    let (_dir, store, router) = open();
    let absent = Digest::of(b"absent");
    let missing = Manifest::new(Descriptor::of(media_type::OCI_EMPTY, b"absent"), vec![]).to_vec();
    let good = artifact(&store, "x");
    let large = vec![b' '; (4 << 20) + 1];
    let cases: Vec<(Method, String, &[u8], u16, &str)> = vec![
        (Method::GET, format!("/v2/a/blobs/{absent}"), b"", 404, "BLOB_UNKNOWN"),
        (Method::GET, "/v2/a/blobs/sha256:x".into(), b"", 400, "DIGEST_INVALID"),
        (Method::GET, "/v2/A/tags/list".into(), b"", 400, "NAME_INVALID"),
        (Method::GET, "/v2/a/tags/list".into(), b"", 404, "NAME_UNKNOWN"),
        (Method::GET, "/v2/a/manifests/x".into(), b"", 404, "MANIFEST_UNKNOWN"),
        (Method::GET, "/v2/a/manifests/.x".into(), b"", 404, "MANIFEST_UNKNOWN"),
        (Method::PUT, "/v2/a/manifests/.x".into(), &good, 400, "MANIFEST_INVALID"),
        (Method::PUT, "/v2/a/manifests/x".into(), b"{", 400, "MANIFEST_INVALID"),
        (Method::PUT, "/v2/a/manifests/x".into(), &missing, 404, "MANIFEST_BLOB_UNKNOWN"),
        (Method::PUT, "/v2/a/manifests/x".into(), &large, 413, "MANIFEST_INVALID"),
        (Method::PUT, format!("/v2/a/manifests/{absent}"), &good, 400, "DIGEST_INVALID"),
        (Method::DELETE, "/v2/a/manifests/x".into(), b"", 404, "MANIFEST_UNKNOWN"),
        (Method::PATCH, "/v2/a/blobs/uploads/x".into(), b"", 404, "BLOB_UPLOAD_UNKNOWN"),
        (Method::POST, format!("/v2/a/blobs/uploads/?digest={absent}"), b"x", 400, "DIGEST_INVALID"),
        (Method::PUT, "/v2/_catalog".into(), b"", 405, "UNSUPPORTED"),
        (Method::GET, "/v2/a/nothing".into(), b"", 404, "UNKNOWN"),
    ];
    for (method, path, body, status, expect) in cases {
        let got = code(send(&router, method.clone(), &path, body).await).await;
        assert_eq!(got, (status, expect.to_owned()), "{method} {path}");
    }
}

#[tokio::test]
async fn an_upload_is_resumed_and_chunks_must_join() {
    let (dir, store, router) = open();
    let started = send(&router, Method::POST, "/v2/a/b/blobs/uploads/", b"").await;
    assert_eq!(started.status(), StatusCode::ACCEPTED);
    let location = header_of(&started, "location");
    let patch = |range: &'static str, body: &'static [u8]| {
        let request =
            Request::builder().method(Method::PATCH).uri(&location).header(header::CONTENT_RANGE, range);
        router.clone().oneshot(request.body(Body::from(body)).unwrap())
    };
    assert_eq!(header_of(&patch("0-3", b"0123").await.unwrap(), "range"), "0-3");
    let gap = patch("9-9", b"9").await.unwrap();
    assert_eq!((gap.status(), header_of(&gap, "range").as_str()), (StatusCode::RANGE_NOT_SATISFIABLE, "0-3"));
    // A connection that breaks in the middle of a chunk leaves what arrived.
    let parts = [Ok(bytes::Bytes::from_static(b"45")), Err(std::io::Error::other("broken"))];
    let torn = Request::builder().method(Method::PATCH).uri(&location);
    let torn = torn.body(Body::from_stream(futures::stream::iter(parts))).unwrap();
    assert_eq!(router.clone().oneshot(torn).await.unwrap().status(), StatusCode::BAD_REQUEST);
    let status = send(&router, Method::GET, &location, b"").await;
    assert_eq!((status.status(), header_of(&status, "range").as_str()), (StatusCode::NO_CONTENT, "0-5"));
    let other = location.replace("a/b", "other");
    assert_eq!(send(&router, Method::GET, &other, b"").await.status(), StatusCode::NOT_FOUND);
    let digest = Digest::of(b"01234567");
    let done = send(&router, Method::PUT, &format!("{location}?digest={digest}"), b"67").await;
    assert_eq!(done.status(), StatusCode::CREATED);
    assert!(store.has(&digest));
    assert_eq!(std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 1);
    assert_eq!(send(&router, Method::GET, &location, b"").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn lists_come_in_pages() {
    let (_dir, store, router) = open();
    let manifest = artifact(&store, "x");
    for tag in ["c", "a", "b"] {
        send(&router, Method::PUT, &format!("/v2/r/manifests/{tag}"), &manifest).await;
    }
    let mut path = "/v2/r/tags/list?n=2".to_owned();
    let mut seen = Vec::new();
    while !path.is_empty() {
        let response = send(&router, Method::GET, &path, b"").await;
        let link = header_of(&response, "link");
        path = link.strip_prefix('<').and_then(|l| l.split_once('>')).map_or("", |(p, _)| p).to_owned();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        seen.push(serde_json::from_slice::<serde_json::Value>(&body).unwrap()["tags"].to_string());
    }
    assert_eq!(seen, [r#"["a","b"]"#, r#"["c"]"#]);
}

#[tokio::test]
async fn a_blob_that_an_image_needs_stays() {
    let (_dir, store, router) = open();
    let manifest = artifact(&store, "x");
    send(&router, Method::PUT, "/v2/r/manifests/t", &manifest).await;
    let path = format!("/v2/r/blobs/{}", Digest::of(b"x"));
    assert_eq!(code(send(&router, Method::DELETE, &path, b"").await).await, (403, "DENIED".to_owned()));
    let by_digest = format!("/v2/r/manifests/{}", Digest::of(&manifest));
    assert_eq!(send(&router, Method::DELETE, &by_digest, b"").await.status(), StatusCode::ACCEPTED);
    assert_eq!(send(&router, Method::GET, "/v2/r/manifests/t", b"").await.status(), StatusCode::NOT_FOUND);
    assert_eq!(send(&router, Method::DELETE, &path, b"").await.status(), StatusCode::ACCEPTED);
    let got = send(&router, Method::GET, &path, b"").await;
    assert_eq!(
        (got.status(), header_of(&got, "x-content-type-options")),
        (StatusCode::NOT_FOUND, "nosniff".into())
    );
}

#[tokio::test]
async fn a_closed_registry_answers_nobody_without_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let router = router(Store::open(dir.path()).unwrap(), Auth::Everything(vec!["t".into()]));
    let blob = format!("/v2/a/blobs/{}", Digest::of(b"x"));
    for path in ["/v2/", "/v2/_catalog", "/v2/a/tags/list", "/v2/a/manifests/x", blob.as_str()] {
        for method in [Method::GET, Method::HEAD] {
            let response = send(&router, method.clone(), path, b"").await;
            assert_eq!(response.status().as_u16(), 401, "{method} {path}");
        }
        let request = Request::get(path).header(header::AUTHORIZATION, "Bearer t").body(Body::empty());
        assert_ne!(router.clone().oneshot(request.unwrap()).await.unwrap().status().as_u16(), 401, "{path}");
    }
}

#[tokio::test]
async fn writing_needs_the_token_and_reading_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let router = router(Store::open(dir.path()).unwrap(), Auth::Writes(vec!["t".into()]));
    for (method, path, status) in [
        (Method::GET, "/v2/", 401),
        (Method::POST, "/v2/a/blobs/uploads/", 401),
        (Method::PUT, "/v2/a/manifests/x", 401),
        (Method::DELETE, "/v2/a/manifests/x", 401),
        (Method::GET, "/v2/_catalog", 200),
        (Method::GET, "/v2/a/manifests/x", 404),
    ] {
        let response = send(&router, method.clone(), path, b"").await;
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        assert_eq!(header_of(&response, "www-authenticate").is_empty(), status != 401);
    }
}
