//! Pulling: manifest, then blobs, a few at a time, each going on where it broke off; then the name.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::BodyExt;
use images::{Ingest, Store};
use oci::{
    Descriptor, Digest, Platform, Reference,
    manifest::{Content, Document},
};
use tokio::{task, time::timeout};

use super::{
    Client, Error, Result,
    error::Subject,
    request::{Call, Endpoint},
};

/// Blobs that are downloaded at once.
const PARALLEL: usize = 3;
/// Times that one blob may break off without anything having arrived in between.
const BREAKS_MAX: u32 = 5;
/// A download that delivers nothing for so long is broken off.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

impl Client {
    /// Pulls the image for a platform into the store and names it there; gives the digest of the platform's manifest.
    /// What the store has is not downloaded again.
    pub async fn pull(&self, reference: &Reference, platform: &Platform, store: &Store) -> Result<Digest> {
        let top = self.manifest(reference).await?;
        let (chosen, index) = match &top.content {
            Content::Image(_) => (top, None),
            Content::Index(index) => {
                let child = index.select(platform).ok_or_else(|| Error::NoPlatform {
                    reference: reference.clone(),
                    platform: platform.clone(),
                    available: platforms(&index.manifests),
                })?;
                let child = self.manifest(&reference.with_digest(child.digest.clone())).await?;
                (child, Some(top))
            }
        };
        let digest = chosen.descriptor.digest.clone();
        self.pull_blobs(reference, &chosen, store).await?;
        let by_digest = reference.with_digest(digest.clone());
        let name = match (reference.digest(), reference.tag()) {
            // The tag beside a digest is a remark.
            (Some(digest), _) => reference.with_digest(digest.clone()),
            (None, _) => reference.clone(),
        };
        let store = store.clone();
        let write = move || {
            let media_type = |document: &Document| document.descriptor.media_type.clone();
            match index {
                None => drop(store.put_manifest(&name, chosen.raw.clone(), Some(&media_type(&chosen)))?),
                Some(index) => {
                    store.put_manifest(&by_digest, chosen.raw.clone(), Some(&media_type(&chosen)))?;
                    store.put_manifest(&name, index.raw.clone(), Some(&media_type(&index)))?;
                }
            }
            Ok(())
        };
        blocking(write).await?;
        Ok(digest)
    }

    async fn pull_blobs(&self, reference: &Reference, document: &Document, store: &Store) -> Result<()> {
        let Content::Image(manifest) = &document.content else {
            let source = oci::manifest::Error::NotAnImage(document.descriptor.media_type.clone());
            return Err(Error::Manifest { reference: reference.clone(), source });
        };
        let mut blobs: Vec<&Descriptor> = std::iter::once(&manifest.config).chain(&manifest.layers).collect();
        blobs.sort_by(|a, b| a.digest.cmp(&b.digest));
        blobs.dedup_by(|a, b| a.digest == b.digest);
        // The large ones first: they take longest.
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.size));
        let mut pulls = Vec::new();
        for blob in blobs {
            pulls.push(self.pull_blob(reference, blob, store));
        }
        stream::iter(pulls).buffer_unordered(PARALLEL).try_collect::<()>().await
    }

    async fn pull_blob(&self, reference: &Reference, blob: &Descriptor, store: &Store) -> Result<()> {
        let (store, digest) = (store.clone(), blob.digest.clone());
        let wanted = digest.clone();
        let opened = blocking(move || match store.reserve(&wanted)? {
            Some(_) => Ok(None),
            None => store.ingest().map(Some),
        });
        let Some(ingest) = opened.await? else { return Ok(()) };
        let mut ingest = ingest.limit(blob.size);
        let endpoint = self.endpoint(reference);
        let mut breaks = 0;
        while ingest.size() < blob.size || blob.size == 0 {
            let before = ingest.size();
            let broken;
            (ingest, broken) = self.download(&endpoint, reference, blob, ingest).await?;
            let Some(error) = broken else { break };
            breaks = if ingest.size() > before { 0 } else { breaks + 1 };
            if breaks > BREAKS_MAX {
                return Err(error);
            }
        }
        if ingest.size() != blob.size {
            let (expected, actual) = (blob.size, ingest.size());
            return Err(images::Error::WrongSize { digest, expected, actual }.into());
        }
        blocking(move || ingest.finish(Some(&digest))).await?;
        Ok(())
    }

    /// Downloads from where the ingest is. The error, if any, is one after which to try again.
    async fn download(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        blob: &Descriptor,
        ingest: Ingest,
    ) -> Result<(Ingest, Option<Error>)> {
        let what = Subject::Blob(reference.clone(), blob.digest.clone());
        let path = format!("/v2/{}/blobs/{}", reference.path(), blob.digest);
        let mut call = Call::new(Method::GET, path).pulls(reference.path());
        let start = ingest.size();
        if start > 0 {
            let range = HeaderValue::try_from(format!("bytes={start}-"));
            call = call.header(header::RANGE, range.unwrap_or(HeaderValue::from_static("bytes=0-")));
        }
        let response = self.send(endpoint, call, what.clone()).await?;
        // A registry without ranges sends the whole: pass over what is here.
        let mut skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { start };
        let mut body = response.into_body();
        let mut feed = ingest.feed();
        let mut broken = None;
        loop {
            let frame = match timeout(IDLE_TIMEOUT, body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(None) => break,
                Ok(Some(Err(source))) => {
                    broken = Some(Error::Body { what, source: source.into() });
                    break;
                }
                Err(_) => {
                    let seconds = IDLE_TIMEOUT.as_secs();
                    broken = Some(Error::Timeout { registry: endpoint.domain.clone(), seconds });
                    break;
                }
            };
            let Ok(mut data) = frame.into_data() else { continue };
            let skipped = skip.min(data.len() as u64);
            skip -= skipped;
            let data = data.split_off(skipped as usize);
            if !data.is_empty() && !feed.push(data).await {
                break;
            }
        }
        Ok((feed.done().await?, broken))
    }
}

fn platforms(manifests: &[Descriptor]) -> String {
    let mut platforms: Vec<String> =
        manifests.iter().filter_map(|d| d.platform.as_ref().map(ToString::to_string)).collect();
    platforms.sort();
    platforms.dedup();
    if platforms.is_empty() { "none that is named".into() } else { platforms.join(", ") }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> images::Result<T> + Send + 'static,
) -> Result<T> {
    match task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(Error::Ended),
    }
}
