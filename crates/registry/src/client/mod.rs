//! A client for any registry: resolve, pull, push.

#![expect(
    clippy::result_large_err,
    reason = "an error names its image, and a request costs more than moving it"
)]

mod auth;
mod error;
mod pull;
mod push;
mod request;
mod transport;
pub(crate) mod url;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use oci::{
    Descriptor, Digest, Reference,
    manifest::{Document, SIZE_MAX},
};

use self::{
    auth::Tokens,
    error::Subject,
    request::{Call, Endpoint},
    transport::Http,
};
pub use self::{error::Error, push::Source};
use crate::{Credential, Credentials};

pub(crate) const CONTENT_DIGEST: &str = "docker-content-digest";

type Result<T, E = Error> = std::result::Result<T, E>;

/// How to reach registries.
#[derive(Debug, Clone, Default)]
pub struct Config {
    pub credentials: Credentials,
    /// Where the embedded registry listens: what the domain `localhost`, with any port or none, means.
    pub embedded: Option<SocketAddr>,
    /// Domains that are spoken to without TLS; loopback addresses always are.
    pub insecure: Vec<String>,
    /// Certificates of further authorities, PEM.
    pub extra_ca: Option<Vec<u8>>,
}

/// A registry client. Cheap to clone; clones share connections and tokens.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    config: Config,
    http: Http,
    tokens: Tokens,
}

impl Client {
    /// A client; opens no connection yet.
    pub fn new(config: Config) -> Result<Self> {
        let http = transport::http(config.extra_ca.as_deref())?;
        Ok(Client(Arc::new(Inner { config, http, tokens: Tokens::default() })))
    }

    /// What a reference names now: digest, size and media type of the manifest or index.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let endpoint = self.endpoint(reference);
        let call =
            Call::new(Method::HEAD, manifest_path(reference)).pulls(reference.path()).accepts_manifests();
        let response = self.send(&endpoint, call, Subject::Manifest(reference.clone())).await?;
        let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let digest = text(CONTENT_DIGEST).and_then(|text| Digest::parse(text).ok());
        let size = text("content-length").and_then(|text| text.parse().ok());
        match (digest, size, text("content-type")) {
            (Some(digest), Some(size), Some(media_type)) => Ok(Descriptor::new(media_type, digest, size)),
            // Some registries leave these out.
            _ => Ok(self.manifest(reference).await?.descriptor),
        }
    }

    /// The manifest or index that a reference names, verified against its digest if it has one.
    pub async fn manifest(&self, reference: &Reference) -> Result<Document> {
        let endpoint = self.endpoint(reference);
        let call =
            Call::new(Method::GET, manifest_path(reference)).pulls(reference.path()).accepts_manifests();
        let subject = Subject::Manifest(reference.clone());
        let response = self.send(&endpoint, call, subject.clone()).await?;
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (media_type, promised) = (header("content-type"), header(CONTENT_DIGEST));
        let body = Limited::new(response.into_body(), SIZE_MAX as usize).collect().await;
        let raw = body.map_err(|source| Error::Body { what: subject, source })?.to_bytes().to_vec();
        let promised = promised.and_then(|text| Digest::parse(&text).ok());
        if let Some(expected) = reference.digest().or(promised.as_ref()) {
            let actual = Digest::of_with(expected.algorithm(), &raw);
            if actual != *expected {
                return Err(Error::WrongDigest { reference: reference.clone(), actual });
            }
        }
        let refused = |source| Error::Manifest { reference: reference.clone(), source };
        let mut document = Document::parse(raw, media_type.as_deref()).map_err(refused)?;
        if let Some(digest) = reference.digest() {
            document.descriptor.digest = digest.clone();
        }
        Ok(document)
    }

    /// Has the reference's repository this blob?
    pub async fn has_blob(&self, reference: &Reference, digest: &Digest) -> Result<bool> {
        let endpoint = self.endpoint(reference);
        let path = format!("/v2/{}/blobs/{digest}", reference.path());
        let call = Call::new(Method::HEAD, path).pulls(reference.path());
        match self.send(&endpoint, call, Subject::Blob(reference.clone(), digest.clone())).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts a manifest under the reference's digest or tag; gives its digest.
    pub async fn put_manifest(&self, reference: &Reference, media_type: &str, raw: Bytes) -> Result<Digest> {
        let digest = match reference.digest() {
            Some(digest) => Digest::of_with(digest.algorithm(), &raw),
            None => Digest::of(&raw),
        };
        let endpoint = self.endpoint(reference);
        let content_type = HeaderValue::try_from(media_type)
            .map_err(|_| Error::MediaType { reference: reference.clone(), media_type: media_type.into() })?;
        let call = Call::new(Method::PUT, manifest_path(reference))
            .pushes(reference.path())
            .header(header::CONTENT_TYPE, content_type)
            .body(Source::Bytes(raw));
        self.send(&endpoint, call, Subject::Manifest(reference.clone())).await?;
        Ok(digest)
    }

    /// The tags of the reference's repository.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let first = format!("/v2/{}/tags/list", reference.path());
        let subject = Subject::Tags(reference.clone());
        let call = |path| Call::new(Method::GET, path).pulls(reference.path());
        self.pages(&self.endpoint(reference), first, subject, call, |page: Page| page.tags).await
    }

    /// The repositories of a registry, where it tells them.
    pub async fn catalog(&self, registry: &str) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let subject = Subject::Registry(registry.to_owned());
        let call = |path| Call::new(Method::GET, path);
        let first = "/v2/_catalog".to_owned();
        self.pages(&self.endpoint_of(registry), first, subject, call, |page: Page| page.repositories).await
    }

    /// Reads a list page by page.
    async fn pages<P: serde::de::DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        first: String,
        subject: Subject,
        call: impl Fn(String) -> Call,
        items: impl Fn(P) -> Option<Vec<String>>,
    ) -> Result<Vec<String>> {
        const PAGES_MAX: usize = 1000;
        let (mut path, mut all) = (first, Vec::new());
        for _ in 0..PAGES_MAX {
            let response = self.send(endpoint, call(path), subject.clone()).await?;
            let next = response.headers().get(header::LINK).and_then(|l| url::next_page(l.to_str().ok()?));
            let body = Limited::new(response.into_body(), SIZE_MAX as usize).collect().await;
            let body = body.map_err(|source| Error::Body { what: subject.clone(), source })?.to_bytes();
            let page: P = serde_json::from_slice(&body)
                .map_err(|source| Error::Answer { what: subject.clone(), source })?;
            all.extend(items(page).unwrap_or_default());
            match next {
                Some(next) => path = next,
                None => break,
            }
        }
        Ok(all)
    }

    /// Deletes the manifest or tag that the reference names; `false` if it was not there.
    pub async fn delete(&self, reference: &Reference) -> Result<bool> {
        let endpoint = self.endpoint(reference);
        let call = Call::new(Method::DELETE, manifest_path(reference)).deletes(reference.path());
        match self.send(&endpoint, call, Subject::Manifest(reference.clone())).await {
            Ok(_) => Ok(true),
            Err(Error::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Tries a credential on a registry: for logging in.
    pub async fn check(&self, registry: &str, credential: Credential) -> Result<()> {
        let config = Config {
            credentials: Credentials::default().with(registry, credential),
            ..self.0.config.clone()
        };
        let http = self.0.http.clone();
        let client = Client(Arc::new(Inner { config, http, tokens: Tokens::default() }));
        let endpoint = client.endpoint_of(registry);
        client
            .send(&endpoint, Call::new(Method::GET, "/v2/"), Subject::Registry(registry.to_owned()))
            .await?;
        Ok(())
    }

    fn endpoint(&self, reference: &Reference) -> Endpoint {
        self.endpoint_of(reference.domain())
    }

    fn endpoint_of(&self, domain: &str) -> Endpoint {
        Endpoint::new(domain, &self.0.config)
    }
}

fn manifest_path(reference: &Reference) -> String {
    format!("/v2/{}/manifests/{}", reference.path(), reference.manifest())
}

impl Call {
    fn accepts_manifests(self) -> Self {
        self.header(header::ACCEPT, HeaderValue::from_static(ACCEPT_MANIFESTS))
    }
}

/// [`media_type::MANIFESTS`] as one header; the test holds the two together.
const ACCEPT_MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json";

/// Does the status mean that it is not there?
fn is_absent(status: StatusCode) -> bool {
    status == StatusCode::NOT_FOUND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_for_every_kind_of_manifest() {
        assert_eq!(ACCEPT_MANIFESTS, oci::media_type::MANIFESTS.join(", "));
    }
}
