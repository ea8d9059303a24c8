//! What the proxy writes to the API: conditions of Pods and Services, its Lease. Server-side apply, each with its own
//! field manager.

use std::time::Duration;

use contract::{Holder, drain};
use jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::drain::Reason;
use crate::model::{Pod, Service};

pub(crate) use contract::name::BOUND_CONDITION as BOUND;

const SERVICE_MANAGER: &str = "proxy.gantry.dev";
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

pub(crate) fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
}

pub(crate) fn pods() -> ApiResource {
    resource("", "v1", "Pod", "pods")
}

pub(crate) fn services() -> ApiResource {
    resource("", "v1", "Service", "services")
}

pub(crate) fn slices() -> ApiResource {
    resource("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
}

fn leases() -> ApiResource {
    resource("coordination.k8s.io", "v1", "Lease", "leases")
}

/// Whether asking again cannot help: the object is gone, or is another one by that name.
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 410))
}

/// Says that the Pod is drained; tries for as long as there is such a Pod.
pub(crate) async fn say_drained(client: &Client, name: &str, pod: &Pod, reason: Reason) {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &pod.namespace, &pods());
    let body = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
        "status": {"conditions": [{
            "type": contract::drain::condition(name),
            "status": "True",
            "reason": reason.name(),
            "lastTransitionTime": now(),
        }]},
    });
    apply(&api, &pod.name, &contract::drain::manager(name), &body).await;
}

/// Writes the ports that the host listens on for a LoadBalancer, and whether that worked.
pub(crate) async fn say_bound(client: &Client, service: &Service, bound: &Bound) {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &service.namespace, &services());
    let ports: Vec<Value> = bound
        .ports
        .iter()
        .map(|(port, protocol)| json!({"port": port, "protocol": protocol.name()}))
        .collect();
    let ingress = if ports.is_empty() { json!([]) } else { json!([{"ip": bound.ip, "ports": ports}]) };
    let body = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": service.name, "namespace": service.namespace},
        "status": {
            "loadBalancer": {"ingress": ingress},
            "conditions": [{
                "type": BOUND,
                "status": bound.condition.0,
                "reason": bound.condition.1,
                "message": bound.condition.2,
                "observedGeneration": service.generation,
                "lastTransitionTime": now(),
            }],
        },
    });
    apply(&api, &service.name, SERVICE_MANAGER, &body).await;
}

/// What a LoadBalancer's status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) ip: String,
    pub(crate) ports: Vec<(u16, network::Protocol)>,
    pub(crate) condition: (String, String, String),
}

/// Takes the Lease: from now on the node waits for this proxy before it stops a Pod. Tries until it is there.
pub(crate) async fn take_lease(client: &Client, name: &str) {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), drain::NAMESPACE, &leases());
    // By this the daemon knows, also after a restart, when nobody is left to wait for.
    let annotations = match Holder::this() {
        Ok(holder) => json!({drain::HOLDER: holder.to_json()}),
        Err(error) => {
            tracing::warn!(%error, "the lease does not say which process holds it");
            json!({})
        }
    };
    let body = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": drain::NAMESPACE,
            "labels": {drain::LABEL: drain::LABEL_VALUE},
            "annotations": annotations,
        },
        "spec": {"holderIdentity": name, "acquireTime": micro_now()},
    });
    let params = PatchParams::apply(&contract::drain::manager(name)).force();
    let mut pause = RETRY_FIRST;
    // Here even "not found" passes: the namespace may be about to be made.
    while let Err(error) = api.patch(name, &params, &Patch::Apply(&body)).await {
        tracing::warn!(%error, lease = name, "take the proxy's lease");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// Gives the Lease up, if the API is there.
pub(crate) async fn give_up_lease(client: &Client, name: &str) {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), drain::NAMESPACE, &leases());
    if let Err(error) = api.delete(name, &DeleteParams::default()).await {
        tracing::warn!(%error, lease = name, "give up the proxy's lease");
    }
}

async fn apply(api: &Api<DynamicObject>, name: &str, manager: &str, body: &Value) {
    let params = PatchParams::apply(manager).force();
    let mut pause = RETRY_FIRST;
    loop {
        match api.patch_status(name, &params, &Patch::Apply(body)).await {
            Ok(_) => return,
            Err(error) if is_final(&error) => {
                return tracing::debug!(%error, name, "apply a condition to what is gone");
            }
            Err(error) => tracing::warn!(%error, name, "apply a condition"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

fn now() -> String {
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(0)).timestamp_to_string(&Timestamp::now())
}

fn micro_now() -> String {
    jiff::fmt::temporal::DateTimePrinter::new().precision(Some(6)).timestamp_to_string(&Timestamp::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_api_wants_them() {
        assert_eq!(now().len(), "2026-11-21T03:15:29Z".len());
        assert_eq!(micro_now().len(), "2026-11-21T03:15:29.000000Z".len());
    }
}
