//! Uploads (distribution spec, "Pushing blobs"): in one request, in two, in chunks; resumable while the daemon lives.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::BodyExt;
use images::Ingest;
use lifecycle::bound::Bound;
use oci::{Digest, Reference};
use tokio::sync::Mutex as AsyncMutex;
use uuid::Uuid;

use super::{
    CONTENT_DIGEST, Reply, Server, blocking,
    failure::{Code, Failure},
    parameter,
    route::parse_digest,
    value,
};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// The most uploads under way.
static SESSIONS: LazyLock<Arc<Bound>> = LazyLock::new(|| Bound::new("registry_upload_sessions", 1024));

/// An upload that nobody continued for so long is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(3600);

/// What is read of a body that cannot be kept; a client that sends more is cut off.
const DRAIN_BYTES_MAX: usize = 256 << 20;

/// The uploads under way.
#[derive(Default)]
pub(super) struct Uploads(Mutex<HashMap<String, Session>>);

#[derive(Clone)]
struct Session {
    name: Reference,
    touched: Instant,
    /// `None` while a request fills it.
    ingest: Arc<AsyncMutex<Option<Ingest>>>,
}

impl Uploads {
    fn insert(&self, name: Reference, ingest: Ingest) -> Result<String, Failure> {
        let mut sessions = self.0.lock().unwrap_or_else(|e| e.into_inner());
        sessions.retain(|_, session| session.touched.elapsed() < IDLE_MAX);
        if sessions.len() as u64 >= SESSIONS.limit() {
            SESSIONS.refuse();
            return Err(Failure::new(Code::TooManyRequests, "too many uploads are under way")
                .header(header::RETRY_AFTER, HeaderValue::from_static("10")));
        }
        let id = Uuid::new_v4().to_string();
        let ingest = Arc::new(AsyncMutex::new(Some(ingest)));
        sessions.insert(id.clone(), Session { name, touched: Instant::now(), ingest });
        SESSIONS.set(sessions.len() as u64);
        Ok(id)
    }

    fn find(&self, name: &Reference, id: &str) -> Result<Session, Failure> {
        let mut sessions = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let session = sessions.get_mut(id).filter(|session| session.name == *name);
        let session = session.ok_or_else(unknown)?;
        session.touched = Instant::now();
        Ok(session.clone())
    }

    fn remove(&self, name: &Reference, id: &str) -> Result<(), Failure> {
        self.find(name, id)?;
        let mut sessions = self.0.lock().unwrap_or_else(|e| e.into_inner());
        sessions.remove(id);
        SESSIONS.set(sessions.len() as u64);
        Ok(())
    }
}

pub(super) async fn start(server: Arc<Server>, name: Reference, request: Request) -> Reply {
    if let Some(mount) = parameter(&request, "mount") {
        let digest = parse_digest(&mount)?;
        let (store, wanted) = (server.store.clone(), digest.clone());
        if blocking(move || store.reserve(&wanted)).await?.is_some() {
            return Ok(created(&name, &digest));
        }
    }
    let store = server.store.clone();
    let ingest = blocking(move || store.ingest()).await?;
    let whole = parameter(&request, "digest").map(|digest| parse_digest(&digest)).transpose()?;
    if let Some(digest) = whole {
        let (ingest, complete) = fill(ingest, request.into_body()).await?;
        complete?;
        return finish(&name, ingest, digest).await;
    }
    let id = server.uploads.insert(name.clone(), ingest)?;
    Ok(progress(StatusCode::ACCEPTED, &name, &id, 0))
}

pub(super) async fn status(server: Arc<Server>, name: Reference, id: String) -> Reply {
    let session = server.uploads.find(&name, &id)?;
    let size = session.ingest.lock().await.as_ref().map(Ingest::size).ok_or_else(unknown)?;
    Ok(progress(StatusCode::NO_CONTENT, &name, &id, size))
}

pub(super) async fn patch(server: Arc<Server>, name: Reference, id: String, request: Request) -> Reply {
    let size = append(server, &name, &id, request).await?;
    Ok(progress(StatusCode::ACCEPTED, &name, &id, size))
}

pub(super) async fn put(server: Arc<Server>, name: Reference, id: String, request: Request) -> Reply {
    let digest = parameter(&request, "digest");
    let digest =
        digest.ok_or_else(|| Failure::new(Code::DigestInvalid, "the digest parameter is missing"))?;
    let digest = parse_digest(&digest)?;
    append(Arc::clone(&server), &name, &id, request).await?;
    let session = server.uploads.find(&name, &id)?;
    let ingest = session.ingest.lock().await.take().ok_or_else(unknown)?;
    server.uploads.remove(&name, &id)?;
    finish(&name, ingest, digest).await
}

pub(super) async fn cancel(server: Arc<Server>, name: Reference, id: String) -> Reply {
    server.uploads.remove(&name, &id)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Adds a request's body to an upload. What arrived of a broken request stays, so that the client can go on from there.
async fn append(server: Arc<Server>, name: &Reference, id: &str, request: Request) -> Result<u64, Failure> {
    let session = server.uploads.find(name, id)?;
    let mut slot = Arc::clone(&session.ingest).try_lock_owned().map_err(|_| {
        Failure::new(Code::BlobUploadInvalid, "another request is sending to this upload")
            .status(StatusCode::CONFLICT)
    })?;
    let size = slot.as_ref().map(Ingest::size).ok_or_else(unknown)?;
    if let Some(range) = request.headers().get(header::CONTENT_RANGE) {
        check_content_range(range, size, name, id)?;
    }
    // A task of its own: it must put the upload back even if the connection, and with it this future, goes away.
    let (name, id) = (name.clone(), id.to_owned());
    let task = tokio::spawn(async move {
        let Some(ingest) = slot.take() else { return Err(unknown()) };
        match fill(ingest, request.into_body()).await {
            Ok((ingest, complete)) => {
                let size = ingest.size();
                *slot = Some(ingest);
                complete.map(|()| size)
            }
            Err(failure) => {
                // The disk refused: there is nothing to go on from.
                let _ = server.uploads.remove(&name, &id);
                Err(failure)
            }
        }
    });
    task.await.map_err(|_| unknown())?
}

/// Writes a body into an ingest. The inner result tells whether the body was whole.
async fn fill(ingest: Ingest, mut body: Body) -> Result<(Ingest, Result<(), Failure>), Failure> {
    let mut feed = ingest.feed();
    let mut complete = Ok(());
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                let Ok(data) = frame.into_data() else { continue };
                if !feed.push(data).await {
                    drain(&mut body).await;
                    break;
                }
            }
            Err(_) => {
                complete = Err(Failure::new(Code::BlobUploadInvalid, "the request's body was cut short"));
                break;
            }
        }
    }
    Ok((feed.done().await?, complete))
}

/// Reads on without keeping: a client that still sends would see its connection break, and never why.
async fn drain(body: &mut Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > DRAIN_BYTES_MAX {
            break;
        }
    }
}

async fn finish(name: &Reference, ingest: Ingest, digest: Digest) -> Reply {
    let digest = blocking(move || ingest.finish(Some(&digest))).await?;
    Ok(created(name, &digest))
}

fn check_content_range(range: &HeaderValue, size: u64, name: &Reference, id: &str) -> Result<(), Failure> {
    let text = range.to_str().unwrap_or_default();
    let text = text.strip_prefix("bytes ").unwrap_or(text).split('/').next().unwrap_or_default();
    let start = text.split_once('-').and_then(|(start, end)| {
        let (start, end) = (start.parse::<u64>().ok()?, end.parse::<u64>().ok()?);
        (start <= end).then_some(start)
    });
    match start {
        Some(start) if start == size => Ok(()),
        None => Err(Failure::new(Code::BlobUploadInvalid, "the Content-Range cannot be read")),
        Some(start) => {
            let message = format!("the chunk starts at {start}, but {size} bytes are here");
            Err(Failure::new(Code::RangeInvalid, message)
                .header(header::LOCATION, location(name, id))
                .header(header::RANGE, received(size)))
        }
    }
}

fn progress(status: StatusCode, name: &Reference, id: &str, size: u64) -> Response {
    let headers = [
        (header::LOCATION, location(name, id)),
        (header::RANGE, received(size)),
        (UPLOAD_UUID, value(id)),
        (header::CONTENT_LENGTH, value("0")),
    ];
    match status {
        // RFC 9110, 8.6: no Content-Length with 204.
        StatusCode::NO_CONTENT => {
            let [location, range, id, _] = headers;
            (status, [location, range, id]).into_response()
        }
        status => (status, headers).into_response(),
    }
}

fn created(name: &Reference, digest: &Digest) -> Response {
    let location = value(format!("/v2/{}/blobs/{digest}", name.path()));
    (StatusCode::CREATED, [(header::LOCATION, location), (CONTENT_DIGEST, value(digest.as_str()))])
        .into_response()
}

fn location(name: &Reference, id: &str) -> HeaderValue {
    value(format!("/v2/{}/blobs/uploads/{id}", name.path()))
}

/// The inclusive range that arrived; the spec has no way to write an empty one.
fn received(size: u64) -> HeaderValue {
    value(format!("0-{}", size.saturating_sub(1)))
}

fn unknown() -> Failure {
    Failure::new(Code::BlobUploadUnknown, "the upload is not known")
}
