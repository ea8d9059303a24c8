//! Pods and what they refer to, through a `kube::Client`.

use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::Store;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::ports::{self, ApiError, Failure};

/// The field manager of this node's writes.
pub const MANAGER: &str = "gantry-node";
/// How long a container's start waits for the first list of Services.
const SERVICES_WAIT: Duration = Duration::from_secs(5);

/// How long an answer of the API may take.
const ANSWER_LONGEST: Duration = Duration::from_secs(30);

/// Gives a call its bound.
async fn answered<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(ANSWER_LONGEST, call).await {
        Ok(result) => result,
        Err(_) => {
            let said = format!("the API did not answer within {} s", ANSWER_LONGEST.as_secs());
            Err(kube::Error::Service(std::io::Error::new(std::io::ErrorKind::TimedOut, said).into()))
        }
    }
}

/// Pods in the API.
pub struct ApiPods(pub Client);

impl ApiPods {
    fn api(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.0.clone(), pod.metadata.namespace.as_deref().unwrap_or("default"))
    }
}

fn error(error: kube::Error) -> ApiError {
    match &error {
        kube::Error::Api(status) if status.code == 404 => ApiError::Gone,
        kube::Error::Api(status) => ApiError::Failed(status.message.clone()),
        _ => ApiError::Failed(Failure::of(&error).0),
    }
}

impl ports::Pods for ApiPods {
    fn patch_status(&self, pod: &Pod, patch: Value) -> BoxFuture<'static, Result<Pod, ApiError>> {
        let (api, name) = (self.api(pod), pod.name_any());
        Box::pin(async move {
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            let status = Patch::Strategic(&patch);
            let patch_status = api.patch_status(&name, &params, &status);
            let written = answered(patch_status).await.map_err(error)?;
            let Some(wanted) = patch["metadata"]["annotations"].as_object() else { return Ok(written) };
            let has = |(key, value): (&String, &Value)| {
                written.annotations().get(key).map(String::as_str) == value.as_str()
            };
            if wanted.iter().all(has) {
                return Ok(written);
            }
            // A server whose status subresource leaves annotations alone.
            let patch = json!({"metadata": {"uid": written.metadata.uid, "annotations": wanted}});
            answered(api.patch(&name, &params, &Patch::Merge(&patch))).await.map_err(error)
        })
    }

    fn delete(&self, pod: &Pod) -> BoxFuture<'static, Result<(), ApiError>> {
        let (api, name) = (self.api(pod), pod.name_any());
        let uid = pod.metadata.uid.clone();
        Box::pin(async move {
            let preconditions = Preconditions { uid, resource_version: None };
            let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
            match answered(api.delete(&name, &params)).await {
                Ok(_) => Ok(()),
                // Another Pod has the name by now.
                Err(kube::Error::Api(status)) if status.code == 409 => Err(ApiError::Gone),
                Err(failed) => Err(error(failed)),
            }
        })
    }
}

/// ConfigMaps, Secrets, Services, tokens.
pub struct ApiObjects {
    /// The API.
    pub client: Client,
    /// Every Service; one watch for all Pods.
    pub services: Store<Service>,
}

impl ports::Objects for ApiObjects {
    fn config_map(&self, namespace: &str, name: &str) -> BoxFuture<'_, Result<Option<ConfigMap>, Failure>> {
        let api = Api::namespaced(self.client.clone(), namespace);
        let name = name.to_owned();
        Box::pin(async move { answered(api.get_opt(&name)).await.map_err(|error| Failure::of(&error)) })
    }

    fn secret(&self, namespace: &str, name: &str) -> BoxFuture<'_, Result<Option<Secret>, Failure>> {
        let api = Api::namespaced(self.client.clone(), namespace);
        let name = name.to_owned();
        Box::pin(async move { answered(api.get_opt(&name)).await.map_err(|error| Failure::of(&error)) })
    }

    fn services(&self, namespace: &str) -> BoxFuture<'_, Vec<Service>> {
        let namespace = namespace.to_owned();
        Box::pin(async move {
            // Without them a container gets no links; it is not kept from running.
            if tokio::time::timeout(SERVICES_WAIT, self.services.wait_until_ready()).await.is_err() {
                tracing::warn!(
                    "the list of Services did not arrive in time: environment without Service links"
                );
            }
            let linked = |service: &Service| {
                let of = service.metadata.namespace.as_deref().unwrap_or_default();
                of == namespace || of == "default" && service.metadata.name.as_deref() == Some("kubernetes")
            };
            self.services.state_filter(linked).iter().map(|service| (**service).clone()).collect()
        })
    }

    fn token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        seconds: i64,
    ) -> BoxFuture<'_, Result<String, Failure>> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
        let account = account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|audience| vec![audience.to_owned()]),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                expiration_seconds: Some(seconds),
            }),
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
        Box::pin(async move {
            let params = PostParams::default();
            let answer: Result<TokenRequest, _> =
                answered(api.create_subresource("token", &account, &params, &request)).await;
            let answer = answer.map_err(|error| {
                Failure(format!("get a token of service account {account}: {}", Failure::of(&error)))
            })?;
            answer
                .status
                .and_then(|status| status.token)
                .ok_or_else(|| Failure("the API gave no token".to_owned()))
        })
    }

    fn changes(
        &self,
        namespace: &str,
        config_maps: Vec<String>,
        secrets: Vec<String>,
    ) -> BoxStream<'static, ()> {
        let of = |name: String| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let maps =
            config_maps.into_iter().map(|name| words(watcher(maps.clone(), of(name)).default_backoff()));
        let all: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secrets = secrets.into_iter().map(|name| words(watcher(all.clone(), of(name)).default_backoff()));
        futures::stream::select_all(maps.chain(secrets)).boxed()
    }
}

/// Something for each change; what a new list brings counts as one.
fn words<K: Send + 'static>(
    events: impl futures::Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
) -> BoxStream<'static, ()> {
    let changed = |event: watcher::Event<K>| match event {
        watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone => Some(()),
        watcher::Event::Init | watcher::Event::InitApply(_) => None,
    };
    events
        .inspect_err(|error| tracing::debug!(%error, "watch what a volume shows"))
        .filter_map(move |event| std::future::ready(event.ok().and_then(changed)))
        .boxed()
}
