//! Images: the store on this machine first, registries as the pull policy says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use base64::Engine as _;
use futures::future::BoxFuture;
use images::Store;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use lifecycle::bound::Bound;
use oci::{Digest, Platform, Reference};
use registry::{Credential, Credentials};
use tokio::sync::Semaphore;

use crate::ports::{self, Failure, Image, PullError, Request};

/// Pulls at the same time; more wait.
const PULLS_MAX: usize = 4;

/// Images of this machine.
pub struct StoredImages {
    store: Store,
    registries: registry::Config,
    client: Client,
    pulls: Semaphore,
    bound: Arc<Bound>,
    /// One pull of an image at a time: who comes second finds it here.
    under_way: Mutex<BTreeMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl StoredImages {
    /// Images of `store`; what is not there comes from where `registries` says.
    pub fn new(store: Store, registries: registry::Config, client: Client) -> Self {
        Self {
            store,
            registries,
            client,
            pulls: Semaphore::new(PULLS_MAX),
            bound: Bound::new("node_image_pulls", PULLS_MAX as u64),
            under_way: Mutex::default(),
        }
    }

    async fn get(&self, request: Request) -> Result<Image, PullError> {
        let reference = Reference::parse(&request.image).map_err(|error| PullError {
            reason: "InvalidImageName",
            message: format!("{}: {}", request.image, Failure::of(&error)),
        })?;
        let known = self.resolve(reference.clone()).await?;
        match known {
            // The embedded registry is this store: there is nothing fresher.
            Some(digest)
                if reference.is_embedded() || request.policy != "Always" || reference.digest().is_some() =>
            {
                self.open(&reference, digest, None).await
            }
            None if request.policy == "Never" => Err(PullError {
                reason: "ErrImageNeverPull",
                message: format!(
                    "Container image {:?} is not present with pull policy of Never",
                    request.image
                ),
            }),
            Some(digest) if request.policy == "Never" => self.open(&reference, digest, None).await,
            None if reference.is_embedded() => Err(PullError {
                reason: "ErrImagePull",
                message: format!(
                    "{} is not in this machine's image store; `gantry image ls` lists what is, `gantry build --push \
                     {}` puts it there",
                    request.image,
                    reference.name()
                ),
            }),
            _ => self.pull(&reference, &request).await,
        }
    }

    async fn resolve(&self, reference: Reference) -> Result<Option<Digest>, PullError> {
        let store = self.store.clone();
        let found = blocking(move || match store.resolve(&reference)? {
            // A name whose content is not here (a pull that was cut short) is no image.
            Some(descriptor) => Ok(store.has(&descriptor.digest).then_some(descriptor.digest)),
            None => Ok(None),
        });
        found.await
    }

    async fn open(
        &self,
        reference: &Reference,
        digest: Digest,
        pulled: Option<u64>,
    ) -> Result<Image, PullError> {
        let store = self.store.clone();
        let tree = blocking(move || store.tree(&digest)).await?;
        Ok(Image {
            id: format!("{}@{}", reference.name(), tree.digest),
            tree: tree.path,
            config: Arc::new(tree.config),
            pulled_bytes: pulled,
        })
    }

    async fn pull(&self, reference: &Reference, request: &Request) -> Result<Image, PullError> {
        let failed = |failure: Failure| PullError { reason: "ErrImagePull", message: failure.0 };
        let gate = self.gate(&request.image);
        let _turn = gate.lock().await;
        let _permit = self.pulls.acquire().await.map_err(|error| failed(Failure::of(&error)))?;
        let _shown = self.bound.acquire(1);
        let mut config = self.registries.clone();
        for secret in &request.secrets {
            config.credentials = self.with_secret(config.credentials, &request.namespace, secret).await;
        }
        let client = registry::Client::new(config).map_err(|error| failed(Failure::of(&error)))?;
        let pulled = client.pull(reference, &Platform::host(), &self.store).await;
        let digest = pulled.map_err(|error| {
            let hint = error.hint().map_or(String::new(), |hint| format!("; {hint}"));
            failed(Failure(format!("{}{hint}", Failure::of(&error))))
        })?;
        let bytes = self.size(digest.clone()).await;
        self.open(reference, digest, Some(bytes)).await
    }

    async fn size(&self, digest: Digest) -> u64 {
        let store = self.store.clone();
        let sum = blocking(move || {
            let document = store.document(&digest)?;
            Ok(match document.content {
                oci::manifest::Content::Image(manifest) => {
                    manifest.layers.iter().map(|layer| layer.size).sum()
                }
                oci::manifest::Content::Index(_) => 0,
            })
        });
        sum.await.unwrap_or(0)
    }

    fn gate(&self, image: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.retain(|_, gate| gate.strong_count() > 0);
        if let Some(gate) = under_way.get(image).and_then(Weak::upgrade) {
            return gate;
        }
        let gate = Arc::default();
        under_way.insert(image.to_owned(), Arc::downgrade(&gate));
        gate
    }

    /// A pull secret that is missing or broken is no error: the registry says whether it was needed.
    async fn with_secret(&self, mut credentials: Credentials, namespace: &str, name: &str) -> Credentials {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        match api.get_opt(name).await {
            Ok(Some(secret)) => {
                for (registry, credential) in of_secret(&secret) {
                    credentials = credentials.with(&registry, credential);
                }
            }
            Ok(None) => tracing::warn!(namespace, name, "the pull secret is not there"),
            Err(error) => tracing::warn!(namespace, name, %error, "read a pull secret"),
        }
        credentials
    }
}

impl ports::Images for StoredImages {
    fn image(&self, request: Request) -> BoxFuture<'_, Result<Image, PullError>> {
        Box::pin(self.get(request))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> images::Result<T> + Send + 'static,
) -> Result<T, PullError> {
    let failed = |failure: Failure| PullError { reason: "ErrImagePull", message: failure.0 };
    let done = tokio::task::spawn_blocking(work).await.map_err(|error| failed(Failure::of(&error)))?;
    done.map_err(|error| failed(Failure::of(&error)))
}

#[derive(serde::Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(serde::Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
}

/// Registries and credentials in a Secret of type dockerconfigjson (or the older dockercfg).
fn of_secret(secret: &Secret) -> Vec<(String, Credential)> {
    let data =
        |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let entries = match (data(".dockerconfigjson"), data(".dockercfg")) {
        (Some(bytes), _) => serde_json::from_slice::<DockerConfig>(bytes).map(|config| config.auths),
        (None, Some(bytes)) => serde_json::from_slice(bytes),
        (None, None) => return Vec::new(),
    };
    let Ok(entries) = entries else { return Vec::new() };
    entries.into_iter().filter_map(|(registry, entry)| Some((registry, credential(entry)?))).collect()
}

fn credential(entry: Entry) -> Option<Credential> {
    if !entry.identity_token.is_empty() {
        return Some(Credential::Identity(entry.identity_token));
    }
    if !entry.username.is_empty() {
        return Some(Credential::Basic { username: entry.username, password: entry.password });
    }
    let decoded = base64::prelude::BASE64_STANDARD.decode(entry.auth).ok()?;
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Credential::Basic { username: username.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    #[test]
    fn pull_secrets_are_read() {
        let text =
            r#"{"auths":{"r.example":{"auth":"dTpw"},"s.example":{"username":"a","password":"b"},"t":{}}}"#;
        let secret = Secret {
            data: Some([(".dockerconfigjson".to_owned(), ByteString(text.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        let basic = |username: &str, password: &str| Credential::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        let found = of_secret(&secret);
        assert_eq!(found.len(), 2);
        assert!(found[0] == ("r.example".to_owned(), basic("u", "p")));
        assert!(found[1] == ("s.example".to_owned(), basic("a", "b")));
    }
}
