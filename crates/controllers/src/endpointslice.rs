//! EndpointSlices: which Pods stand behind a Service, and on which ports.
//!
//! <https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/>

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use crate::cache::{Change, Key};
use crate::control::{self, Next};
use crate::error::absent_is_fine;
use crate::owner::{controller_ref, is_controlled_by};
use crate::queue::Queue;
use crate::{CONTROLLERS_USER, Context, Controller, Error, pods};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Kubernetes' own default.
const ENDPOINTS_PER_SLICE: usize = 100;

pub(crate) const CONTROLLER: Controller = Controller {
    name: "endpointslice",
    user: CONTROLLERS_USER,
    about: "lists the Pods behind each Service",
    run: |context| run(context).boxed(),
};

async fn run(context: Context) {
    let queue = Queue::new();
    control::feed(&context.scope, &queue, &context.caches.services, control::own);
    control::feed(
        &context.scope,
        &queue,
        &context.caches.endpoint_slices,
        |change: &Change<EndpointSlice>| {
            let slices = change
                .either()
                .filter(|slice| slice.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER));
            slices
                .filter_map(|slice| {
                    let service = slice.labels().get(SERVICE_NAME)?;
                    Some(Key::new(slice.namespace().unwrap_or_default(), service.clone()))
                })
                .collect()
        },
    );
    let services = context.caches.services.clone();
    control::feed(&context.scope, &queue, &context.caches.pods, move |change: &Change<Pod>| {
        let mut keys = Vec::new();
        for pod in change.either() {
            let near = services.list(&pod.namespace().unwrap_or_default());
            keys.extend(near.iter().filter(|service| selects(service, pod)).map(|one| Key::of(one.as_ref())));
        }
        keys.sort();
        keys.dedup();
        keys
    });
    context.caches.pods.ready().await;
    context.caches.endpoint_slices.ready().await;
    context.caches.services.ready().await;
    control::run(CONTROLLER.name, queue, |key| reconcile(&context, key)).await;
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn selects(service: &Service, pod: &Pod) -> bool {
    selector(service)
        .is_some_and(|selector| selector.iter().all(|(key, value)| pod.labels().get(key) == Some(value)))
}

#[derive(Debug)]
enum Action {
    Create(EndpointSlice),
    Replace(EndpointSlice),
    Delete(String),
}

/// `slices` are the Service's own. A slice that still fits is kept under its name, so that watchers see updates.
fn plan(service: &Service, pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]) -> Vec<Action> {
    let mut wanted = wanted(service, pods).into_iter();
    let mut actions = Vec::new();
    let mut kept: Vec<_> = slices.iter().collect();
    kept.sort_by_key(|slice| slice.name_any());
    for slice in kept {
        let Some(desired) = wanted.next() else {
            actions.push(Action::Delete(slice.name_any()));
            continue;
        };
        let same = slice.endpoints.as_deref().unwrap_or_default()
            == desired.endpoints.as_deref().unwrap_or_default()
            && slice.ports.clone().unwrap_or_default() == desired.ports.clone().unwrap_or_default()
            && slice.labels() == desired.labels();
        if !same {
            let mut changed = slice.as_ref().clone();
            changed.endpoints = desired.endpoints;
            changed.ports = desired.ports;
            changed.metadata.labels = desired.metadata.labels;
            actions.push(Action::Replace(changed));
        }
    }
    actions.extend(wanted.map(Action::Create));
    actions
}

/// The slices as they should be. A Service without ready Pods still has one, empty: "nobody" is an answer too.
fn wanted(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSlice> {
    let spec = service.spec.clone().unwrap_or_default();
    let unready_too = spec.publish_not_ready_addresses == Some(true);
    let mut by_ports: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    for pod in pods.iter().filter(|pod| selects(service, pod) && !pods::is_terminal(pod)) {
        let Some(endpoint) = endpoint(service, pod, unready_too) else {
            continue;
        };
        let ports = ports(spec.ports.as_deref().unwrap_or_default(), pod);
        match by_ports.iter_mut().find(|(known, _)| *known == ports) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => by_ports.push((ports, vec![endpoint])),
        }
    }
    if by_ports.is_empty() {
        by_ports.push((Vec::new(), Vec::new()));
    }
    let mut slices = Vec::new();
    for (ports, mut endpoints) in by_ports {
        endpoints.sort_by_key(|endpoint| endpoint.addresses.first().cloned());
        let mut chunks: Vec<_> = endpoints.chunks(ENDPOINTS_PER_SLICE).map(<[Endpoint]>::to_vec).collect();
        if chunks.is_empty() {
            chunks.push(Vec::new());
        }
        slices.extend(chunks.into_iter().map(|endpoints| slice(service, &ports, endpoints)));
    }
    slices
}

fn slice(service: &Service, ports: &[EndpointPort], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), service.name_any());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints),
        ports: (!ports.is_empty()).then(|| ports.to_vec()),
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![controller_ref(service)]),
            ..ObjectMeta::default()
        },
    }
}

fn endpoint(service: &Service, pod: &Pod, unready_too: bool) -> Option<Endpoint> {
    let address = pod.status.as_ref()?.pod_ip.clone().filter(|address| !address.is_empty())?;
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let spec = pod.spec.clone().unwrap_or_default();
    let hostname = spec.hostname.filter(|_| spec.subdomain.as_deref() == Some(&service.name_any()));
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(unready_too || serving && !terminating),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname,
        node_name: spec.node_name,
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: Some(pod.name_any()),
            namespace: pod.namespace(),
            uid: pod.uid(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// The Service's ports as this Pod has them; a named target port that the Pod lacks is left out.
fn ports(ports: &[ServicePort], pod: &Pod) -> Vec<EndpointPort> {
    let target = |port: &ServicePort| -> Option<i32> {
        match &port.target_port {
            None => Some(port.port),
            Some(IntOrString::Int(0)) => Some(port.port),
            Some(IntOrString::Int(number)) => Some(*number),
            Some(IntOrString::String(name)) => {
                let protocol = port.protocol.as_deref().unwrap_or("TCP");
                let containers = pod.spec.iter().flat_map(|spec| spec.containers.iter());
                let mut named = containers.flat_map(|container| container.ports.iter().flatten());
                let found = named.find(|candidate| {
                    candidate.name.as_deref() == Some(name)
                        && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
                });
                found.map(|found| found.container_port)
            }
        }
    };
    let known = ports.iter().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(target(port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    known.collect()
}

async fn reconcile(context: &Context, key: Key) -> Result<Next, Error> {
    // Slices of a Service that is gone go with it, by their owner reference.
    let Some(service) = context.caches.services.get(&key) else {
        return Ok(Next::Changed);
    };
    if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Changed);
    }
    let uid = service.uid().unwrap_or_default();
    let own: Vec<_> = context
        .caches
        .endpoint_slices
        .list(&key.namespace)
        .into_iter()
        .filter(|slice| slice.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER))
        .filter(|slice| is_controlled_by(&slice.metadata, &uid))
        .collect();
    let api = Api::<EndpointSlice>::namespaced(context.client.clone(), &key.namespace);
    for action in plan(&service, &context.caches.pods.list(&key.namespace), &own) {
        let written = match action {
            Action::Create(slice) => api
                .create(&PostParams::default(), &slice)
                .await
                .map(Some)
                .map_err(Error::api("create", format!("endpointslices of {key}")))?,
            Action::Replace(slice) => {
                let name = slice.name_any();
                let replaced = api.replace(&name, &PostParams::default(), &slice).await;
                absent_is_fine(replaced.map_err(Error::api("replace", format!("endpointslices/{name}"))))?
            }
            Action::Delete(name) => {
                let deleted = api.delete(&name, &DeleteParams::default()).await;
                absent_is_fine(deleted.map_err(Error::api("delete", format!("endpointslices/{name}"))))?;
                None
            }
        };
        if let Some(written) = written {
            context.caches.endpoint_slices.caught_up(&written).await?;
        }
    }
    Ok(Next::Changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service(more: Value) -> Service {
        let mut value = json!({"metadata": {"name": "s", "namespace": "n", "uid": "svc"},
            "spec": {"selector": {"a": "1"}, "ports": [{"port": 80, "targetPort": "web"}]}});
        json_patch::merge(&mut value, &more);
        serde_json::from_value(value).unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32, more: Value) -> Arc<Pod> {
        let mut value = json!({"metadata": {"name": name, "namespace": "n", "uid": name, "labels": {"a": "1"}},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": if ready {"True"} else {"False"}}]}});
        json_patch::merge(&mut value, &more);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn conditions(slice: &EndpointSlice) -> Vec<(String, bool, bool, bool)> {
        let read = |endpoint: &Endpoint| {
            let conditions = endpoint.conditions.clone().unwrap();
            let flag = |value: Option<bool>| value.unwrap();
            (
                endpoint.addresses[0].clone(),
                flag(conditions.ready),
                flag(conditions.serving),
                flag(conditions.terminating),
            )
        };
        slice.endpoints.iter().flatten().map(read).collect()
    }

    #[test]
    fn ready_serving_and_terminating_are_told_apart() {
        let pods = [
            pod("a", "10.0.0.1", true, 8080, json!({})),
            pod("b", "10.0.0.2", false, 8080, json!({})),
            pod(
                "c",
                "10.0.0.3",
                true,
                8080,
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ),
            pod("d", "10.0.0.4", true, 8080, json!({"status": {"phase": "Failed"}})),
            pod("e", "", true, 8080, json!({})),
        ];
        let slices = wanted(&service(json!({})), &pods);
        assert_eq!(slices.len(), 1);
        let expected = [
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", false, false, false),
            ("10.0.0.3", false, true, true),
        ];
        assert_eq!(conditions(&slices[0]), expected.map(|(ip, a, b, c)| (ip.to_owned(), a, b, c)));
        assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    }

    #[test]
    fn pods_that_name_another_port_get_a_slice_of_their_own() {
        let pods = [pod("a", "10.0.0.1", true, 8080, json!({})), pod("b", "10.0.0.2", true, 9090, json!({}))];
        let slices = wanted(&service(json!({})), &pods);
        let ports: Vec<_> =
            slices.iter().map(|slice| slice.ports.as_ref().unwrap()[0].port.unwrap()).collect();
        assert_eq!(ports, [8080, 9090]);
    }

    #[test]
    fn nobody_is_an_empty_slice_and_what_fits_is_left_alone() {
        let service = service(json!({}));
        let slices = wanted(&service, &[]);
        assert_eq!((slices.len(), slices[0].endpoints.as_ref().unwrap().len()), (1, 0));
        let mut known = slices[0].clone();
        known.metadata.name = Some("s-1".to_owned());
        assert!(plan(&service, &[], &[Arc::new(known.clone())]).is_empty());
        let pods = [pod("a", "10.0.0.1", true, 8080, json!({}))];
        let actions = plan(&service, &pods, &[Arc::new(known)]);
        assert!(matches!(&actions[..], [Action::Replace(slice)] if slice.name_any() == "s-1"), "{actions:?}");
    }

    #[test]
    fn many_pods_are_split() {
        let pods: Vec<_> =
            (0..250).map(|i| pod(&format!("p{i}"), &format!("10.0.1.{i}"), true, 80, json!({}))).collect();
        let sizes: Vec<_> = wanted(&service(json!({})), &pods)
            .iter()
            .map(|slice| slice.endpoints.as_ref().unwrap().len())
            .collect();
        assert_eq!(sizes, [100, 100, 50]);
    }
}
