//! Client and server together, and the client against registries that are busy, strict, broken or lying.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use images::Store;
use oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, Reference, layer, media_type};
use registry::{
    Client, Config, Credential, Credentials,
    client::{Error, Source},
    server::{Auth, router},
};
use tokio::net::TcpListener;

const TOKEN: &str = "secret";

/// Serves until the test's runtime ends.
async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// A registry with an image `app:1`, and that image's manifest.
fn filled(dir: &Path) -> (Store, Digest) {
    let store = Store::open(dir).unwrap();
    let content: Vec<u8> =
        (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let fill =
        |w: &mut layer::Writer<Vec<u8>>| w.file("app", 0o755, content.len() as u64, content.as_slice());
    let (bytes, layer) = layer::write(layer::Options::default(), fill).unwrap();
    let mut config = ImageConfig::new(&Platform::host());
    config.rootfs.diff_ids = vec![layer.diff_id];
    let config = config.to_vec();
    store.put(&bytes, None).unwrap();
    store.put(&config, None).unwrap();
    let manifest = Manifest::new(Descriptor::of(media_type::OCI_CONFIG, &config), vec![layer.descriptor]);
    let digest = Digest::of(&manifest.to_vec());
    store.put_manifest(&"localhost/app:1".parse().unwrap(), manifest.to_vec(), None).unwrap();
    (store, digest)
}

fn reference(address: SocketAddr, rest: &str) -> Reference {
    format!("{address}/{rest}").parse().unwrap()
}

fn client() -> Client {
    Client::new(Config::default()).unwrap()
}

#[tokio::test]
async fn pushes_and_pulls_what_is_not_there_yet() {
    let (a, b, c) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, digest) = filled(a.path());
    let server = Store::open(b.path()).unwrap();
    let address = serve(router(server.clone(), Auth::Writes(vec![TOKEN.into()]))).await;
    let name: Reference = "localhost:5050/deep/app:1".parse().unwrap();
    let denied = Client::new(Config { embedded: Some(address), ..Config::default() }).unwrap();
    let error = denied.push(&source, &digest, &name).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    assert_eq!(error.hint().unwrap(), "log in: `gantry registry login localhost:5050`");
    let basic = Credential::Basic { username: "any".into(), password: TOKEN.into() };
    denied.check("localhost:5050", basic.clone()).await.unwrap();
    let credentials = Credentials::default().with("localhost:5050", basic);
    let client = Client::new(Config { credentials, embedded: Some(address), ..Config::default() }).unwrap();
    assert_eq!(client.push(&source, &digest, &name).await.unwrap(), digest);
    assert_eq!(client.push(&source, &digest, &name).await.unwrap(), digest);
    assert_eq!(server.repositories().unwrap(), ["deep/app"]);
    // Reading needs no credential.
    let resolved = denied.resolve(&name).await.unwrap();
    assert_eq!((resolved.digest, resolved.media_type.as_str()), (digest.clone(), media_type::OCI_MANIFEST));
    let target = Store::open(c.path()).unwrap();
    assert_eq!(denied.pull(&name, &Platform::host(), &target).await.unwrap(), digest);
    assert!(target.tree(&digest).unwrap().path.join("app").is_file());
    assert_eq!(denied.tags(&name).await.unwrap(), ["1"]);
    assert!(client.delete(&name).await.unwrap());
    let error = denied.resolve(&name).await.unwrap_err();
    assert!(matches!(error, Error::NotFound(_)) && error.hint().is_some(), "{error:?}");
}

#[tokio::test]
async fn pulls_the_platforms_image_of_an_index() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, digest) = filled(a.path());
    let entry = |digest: &Digest, platform: Platform| {
        let size = server.size(digest).unwrap().unwrap_or(7);
        let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), size);
        descriptor.platform = Some(platform);
        descriptor
    };
    // The other platform's manifest is not even there.
    let other = entry(&Digest::of(b"other"), Platform::new("linux", "s390x"));
    let index = Index::new(vec![other, entry(&digest, Platform::host())]).to_vec();
    let index_digest = Digest::of(&index);
    server.put_manifest(&"localhost/app:multi".parse().unwrap(), index, None).unwrap();
    let address = serve(router(server, Auth::Open)).await;
    let target = Store::open(b.path()).unwrap();
    let name = reference(address, "app:multi");
    assert_eq!(client().pull(&name, &Platform::host(), &target).await.unwrap(), digest);
    assert_eq!(target.resolve(&name).unwrap().unwrap().digest, index_digest);
    assert_eq!(target.tree(&index_digest).unwrap().digest, digest);
    let error = client().pull(&name, &Platform::new("linux", "riscv64"), &target).await.unwrap_err();
    assert!(error.to_string().contains("linux/s390x"), "{error}");
    let again = target.export(&[name], Vec::new()).unwrap();
    assert!(!again.is_empty());
}

#[tokio::test]
async fn mounts_and_uploads_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let address = serve(router(store.clone(), Auth::Open)).await;
    let name = reference(address, "a/b");
    let blob = Descriptor::of("application/octet-stream", b"content");
    assert!(!client().mount(&name, &blob.digest, "other").await.unwrap());
    assert!(!client().has_blob(&name, &blob.digest).await.unwrap());
    client().put_blob(&name, &blob, Source::Bytes(Bytes::from_static(b"content"))).await.unwrap();
    assert!(client().has_blob(&name, &blob.digest).await.unwrap());
    assert!(client().mount(&name, &blob.digest, "other").await.unwrap());
    let wrong =
        client().put_blob(&name, &Descriptor::of("x", b"y"), Source::Bytes(Bytes::from_static(b"z"))).await;
    assert!(matches!(wrong, Err(Error::Status { status: StatusCode::BAD_REQUEST, .. })), "{wrong:?}");
    let left = std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(left, 1, "nothing is left of the refused upload");
}

#[tokio::test]
async fn an_upload_that_the_registry_forgot_is_begun_anew() {
    /// Knows no upload, so many times.
    async fn forgets(State(times): State<Arc<AtomicUsize>>, request: Request, next: Next) -> Response {
        let forget = |left: usize| left.checked_sub(1);
        if request.method() == Method::PUT
            && times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, forget).is_ok()
        {
            return StatusCode::NOT_FOUND.into_response();
        }
        next.run(request).await
    }
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let times = Arc::new(AtomicUsize::new(1));
    let forgetful = router(store, Auth::Open).layer(middleware::from_fn_with_state(times.clone(), forgets));
    let name = reference(serve(forgetful).await, "a/b");
    let blob = Descriptor::of("application/octet-stream", b"content");
    let content = || Source::Bytes(Bytes::from_static(b"content"));
    client().put_blob(&name, &blob, content()).await.unwrap();
    assert!(client().has_blob(&name, &blob.digest).await.unwrap());
    times.store(100, Ordering::SeqCst);
    let error = client().put_blob(&name, &blob, content()).await.unwrap_err();
    assert!(matches!(error, Error::UploadLost { .. }), "{error:?}");
    assert!(error.hint().is_some());
    assert_eq!(times.load(Ordering::SeqCst), 97);
}

#[tokio::test]
async fn waits_when_the_registry_is_busy() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, digest) = filled(a.path());
    async fn busy(State(count): State<Arc<AtomicUsize>>, request: Request, next: Next) -> Response {
        if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return (StatusCode::TOO_MANY_REQUESTS, [(header::RETRY_AFTER, "0")]).into_response();
        }
        next.run(request).await
    }
    let count = Arc::new(AtomicUsize::new(0));
    let layered = router(server, Auth::Open).layer(middleware::from_fn_with_state(count.clone(), busy));
    let name = reference(serve(layered).await, "app:1");
    let target = Store::open(b.path()).unwrap();
    assert_eq!(client().pull(&name, &Platform::host(), &target).await.unwrap(), digest);
    assert!(count.load(Ordering::SeqCst) >= 6);
}

/// Sends a part of each blob and then breaks the connection, the first two times.
async fn breaks(State(count): State<Arc<AtomicUsize>>, request: Request, next: Next) -> Response {
    let is_blob = request.uri().path().contains("/blobs/") && request.method() == Method::GET;
    let response = next.run(request).await;
    if !is_blob || count.fetch_add(1, Ordering::SeqCst) >= 3 {
        return response;
    }
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let half = bytes.slice(..bytes.len() / 2);
    let broken = std::io::Error::other("broken on purpose");
    let stream = futures::stream::iter([Ok(half), Err(broken)]);
    Response::from_parts(parts, Body::from_stream(stream))
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_was() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, digest) = filled(a.path());
    let count = Arc::new(AtomicUsize::new(0));
    let layered = router(server, Auth::Open).layer(middleware::from_fn_with_state(count.clone(), breaks));
    let name = reference(serve(layered).await, "app:1");
    let target = Store::open(b.path()).unwrap();
    client().pull(&name, &Platform::host(), &target).await.unwrap();
    assert!(count.load(Ordering::SeqCst) > 3);
    target.tree(&digest).unwrap();
}

#[tokio::test]
async fn what_is_not_what_was_asked_for_is_refused() {
    async fn lies(request: Request, next: Next) -> Response {
        let is_blob = request.uri().path().contains("/blobs/");
        let (parts, body) = next.run(request).await.into_parts();
        let mut bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap().to_vec();
        if let (true, Some(last)) = (is_blob, bytes.last_mut()) {
            *last ^= 1;
        }
        Response::from_parts(parts, Body::from(bytes))
    }
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (server, digest) = filled(a.path());
    let name = reference(serve(router(server, Auth::Open).layer(middleware::from_fn(lies))).await, "app:1");
    let target = Store::open(b.path()).unwrap();
    let error = client().pull(&name, &Platform::host(), &target).await.unwrap_err();
    assert!(matches!(error, Error::Store(images::Error::WrongDigest { .. })), "{error:?}");
    assert!(target.names().unwrap().is_empty() && !target.has(&digest));
    let other = name.with_digest(Digest::of(b"other"));
    assert!(matches!(client().pull(&other, &Platform::host(), &target).await, Err(Error::NotFound(_))));
}

type Asked = Arc<Mutex<Vec<String>>>;

#[tokio::test]
async fn fetches_a_token_for_exactly_what_it_does() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (source, digest) = filled(a.path());
    let asked = Asked::default();
    async fn token(State(asked): State<Asked>, headers: HeaderMap, request: Request) -> Response {
        let who = headers.get(header::AUTHORIZATION).map_or("nobody", |v| v.to_str().unwrap());
        asked.lock().unwrap().push(format!("{who} {}", request.uri().query().unwrap_or_default()));
        axum::Json(serde_json::json!({"token": TOKEN, "expires_in": 300})).into_response()
    }
    let service = serve(Router::new().route("/token", get(token)).with_state(asked.clone())).await;
    let challenge = format!("Bearer realm=\"http://{service}/token\",service=\"reg\",scope=\"ignored\"");
    async fn strict(State(challenge): State<String>, request: Request, next: Next) -> Response {
        let shown = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        if shown == Some(&format!("Bearer {TOKEN}")) {
            return next.run(request).await;
        }
        (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response()
    }
    let server = router(Store::open(b.path()).unwrap(), Auth::Open)
        .layer(middleware::from_fn_with_state(challenge, strict));
    let name = reference(serve(server).await, "app:1");
    let basic = Credential::Basic { username: "u".into(), password: "p".into() };
    let credentials = Credentials::default().with(name.domain(), basic);
    let client = Client::new(Config { credentials, ..Config::default() }).unwrap();
    client.push(&source, &digest, &name).await.unwrap();
    client.mount(&name, &digest, "other").await.unwrap();
    let mut asked = asked.lock().unwrap().clone();
    asked.sort();
    asked.dedup();
    let expect = [
        "Basic dTpw service=reg&scope=repository%3Aapp%3Apull",
        "Basic dTpw service=reg&scope=repository%3Aapp%3Apull%2Cpush",
        "Basic dTpw service=reg&scope=repository%3Aapp%3Apull%2Cpush&scope=repository%3Aother%3Apull",
    ];
    assert_eq!(asked, expect);
}

#[tokio::test]
async fn a_redirect_elsewhere_does_not_carry_the_credential() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = filled(a.path());
    async fn content(State(store): State<Store>, request: Request) -> Response {
        if request.headers().contains_key(header::AUTHORIZATION) {
            return StatusCode::BAD_REQUEST.into_response();
        }
        let hex = request.uri().path().rsplit(':').next().unwrap().to_owned();
        let digest = Digest::parse(&format!("sha256:{hex}")).unwrap();
        std::fs::read(store.blob_path(&digest)).unwrap().into_response()
    }
    let elsewhere = serve(Router::new().fallback(get(content)).with_state(store.clone())).await;
    async fn redirects(State(to): State<SocketAddr>, request: Request, next: Next) -> Response {
        if request.headers().get(header::AUTHORIZATION).is_none() {
            let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"x\"")];
            return (StatusCode::UNAUTHORIZED, challenge).into_response();
        }
        let path = request.uri().path();
        if path.contains("/blobs/") {
            let location = [(header::LOCATION, format!("http://{to}{path}"))];
            return (StatusCode::TEMPORARY_REDIRECT, location).into_response();
        }
        next.run(request).await
    }
    let server = router(store, Auth::Open).layer(middleware::from_fn_with_state(elsewhere, redirects));
    let name = reference(serve(server).await, "app:1");
    let basic = Credential::Basic { username: "u".into(), password: "p".into() };
    let credentials = Credentials::default().with(name.domain(), basic);
    let client = Client::new(Config { credentials, ..Config::default() }).unwrap();
    client.pull(&name, &Platform::host(), &Store::open(b.path()).unwrap()).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_registry_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let error = client().resolve(&reference(address, "app:1")).await.unwrap_err();
    assert!(
        matches!(&error, Error::Connect { registry, .. } if *registry == address.to_string()),
        "{error:?}"
    );
}
