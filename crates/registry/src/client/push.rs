//! Pushing: what the registry lacks, then manifests, children first.

use std::path::PathBuf;

use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt, future::BoxFuture, stream};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use images::Store;
use oci::{Descriptor, Digest, Reference, manifest::Content};

use super::{
    Client, Error, Result,
    error::Subject,
    pull::blocking,
    request::{Call, Endpoint},
    url,
};

/// Blobs that are uploaded at once.
const PARALLEL: usize = 3;

/// How often an upload is begun that the registry forgets.
const UPLOADS_MAX: usize = 3;

/// The content of a blob.
#[derive(Debug, Clone)]
pub enum Source {
    Bytes(Bytes),
    /// A file that stays as it is until it is sent.
    File(PathBuf),
}

impl Client {
    /// Uploads a blob to the reference's repository. A registry that was started anew meanwhile no longer knows an
    /// upload; then another is begun.
    pub async fn put_blob(&self, reference: &Reference, blob: &Descriptor, source: Source) -> Result<()> {
        for _ in 1..UPLOADS_MAX {
            match self.upload(reference, blob, source.clone()).await {
                Err(Error::UploadLost { .. }) => {}
                result => return result,
            }
        }
        self.upload(reference, blob, source).await
    }

    /// POST, then one PUT that streams it.
    async fn upload(&self, reference: &Reference, blob: &Descriptor, source: Source) -> Result<()> {
        let endpoint = self.endpoint(reference);
        let what = Subject::Blob(reference.clone(), blob.digest.clone());
        let start = Call::new(Method::POST, uploads(reference)).pushes(reference.path());
        let response = self.send(&endpoint, start, what.clone()).await?;
        let location = upload_location(&endpoint, reference, &what, response.headers())?;
        let call = Call::new(Method::PUT, url::with_parameter(&location, "digest", blob.digest.as_str()))
            .pushes(reference.path())
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .body(source);
        match self.send(&endpoint, call, what).await {
            Err(Error::NotFound(what)) => Err(Error::UploadLost { what }),
            result => result.map(drop),
        }
    }

    /// Asks the registry to take a blob from another of its repositories. `false`: it does not, so it must be uploaded.
    pub async fn mount(&self, reference: &Reference, digest: &Digest, from: &str) -> Result<bool> {
        let endpoint = self.endpoint(reference);
        let what = Subject::Blob(reference.clone(), digest.clone());
        let path = format!(
            "{}?mount={}&from={}",
            uploads(reference),
            url::encode(digest.as_str()),
            url::encode(from)
        );
        let call = Call::new(Method::POST, path).pushes(reference.path()).pulls(from);
        let response = self.send(&endpoint, call, what.clone()).await?;
        if response.status() == StatusCode::CREATED {
            return Ok(true);
        }
        // The registry began an upload instead, which is not wanted; it forgets it sooner or later by itself.
        if let Ok(location) = upload_location(&endpoint, reference, &what, response.headers()) {
            let call = Call::new(Method::DELETE, location.to_string()).pushes(reference.path());
            let _ = self.send(&endpoint, call, what).await;
        }
        Ok(false)
    }

    /// Pushes an image or index of the store, with all that it needs, under a reference; gives its digest.
    pub async fn push(&self, store: &Store, digest: &Digest, reference: &Reference) -> Result<Digest> {
        self.push_document(store.clone(), digest.clone(), reference.clone()).await
    }

    fn push_document(
        &self,
        store: Store,
        digest: Digest,
        reference: Reference,
    ) -> BoxFuture<'_, Result<Digest>> {
        async move {
            let (reader, wanted) = (store.clone(), digest.clone());
            let document = blocking(move || reader.document(&wanted)).await?;
            match &document.content {
                Content::Index(index) => {
                    for child in index.manifests.iter().filter(|child| store.has(&child.digest)) {
                        let name = reference.with_digest(child.digest.clone());
                        self.push_document(store.clone(), child.digest.clone(), name).await?;
                    }
                }
                Content::Image(manifest) => {
                    let mut blobs: Vec<&Descriptor> = manifest.blobs().collect();
                    blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
                    blobs.dedup_by(|a, b| a.digest == b.digest);
                    let mut pushes = Vec::new();
                    for blob in blobs {
                        pushes.push(self.push_blob(&store, &reference, blob));
                    }
                    stream::iter(pushes).buffer_unordered(PARALLEL).try_collect::<()>().await?;
                }
            }
            let raw = Bytes::from(document.raw);
            self.put_manifest(&reference, &document.descriptor.media_type, raw).await
        }
        .boxed()
    }

    async fn push_blob(&self, store: &Store, reference: &Reference, blob: &Descriptor) -> Result<()> {
        if self.has_blob(reference, &blob.digest).await? {
            return Ok(());
        }
        if !store.has(&blob.digest) {
            return Err(images::Error::BlobMissing(blob.digest.clone()).into());
        }
        self.put_blob(reference, blob, Source::File(store.blob_path(&blob.digest))).await
    }
}

fn uploads(reference: &Reference) -> String {
    format!("/v2/{}/blobs/uploads/", reference.path())
}

fn upload_location(
    endpoint: &Endpoint,
    reference: &Reference,
    what: &Subject,
    headers: &http::HeaderMap,
) -> Result<Uri> {
    let base = format!("{}{}", endpoint.origin, uploads(reference)).parse::<Uri>().ok();
    let location = headers.get(header::LOCATION).and_then(|l| l.to_str().ok());
    let joined = base.zip(location).and_then(|(base, location)| url::join(&base, location));
    joined.ok_or_else(|| Error::NoLocation { what: what.clone() })
}
