//! The one-node scheduler: a Pod is bound when a node has room for it and nothing forbids it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use k8s_openapi::api::core::v1::{
    Binding, Node, NodeSelectorTerm, ObjectReference, Pod, PodSpec, Taint, Toleration,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cache::{Change, Key};
use crate::control::{self, Next};
use crate::event::Type;
use crate::queue::Queue;
use crate::{Context, Controller, Error, SCHEDULER_USER, pods};

const SCHEDULER_NAME: &str = "default-scheduler";

pub(crate) const CONTROLLER: Controller = Controller {
    name: "scheduler",
    user: SCHEDULER_USER,
    about: "binds Pods to a node that has room for them",
    run: |context| run(context).boxed(),
};

async fn run(context: Context) {
    let queue = Queue::new();
    let waiting = context.caches.pods.clone();
    let all_waiting = move || {
        let pods = waiting.list("");
        pods.iter().filter(|pod| wants_node(pod)).map(|pod| Key::of(pod.as_ref())).collect::<Vec<_>>()
    };
    let others = all_waiting.clone();
    control::feed(&context.scope, &queue, &context.caches.pods, move |change: &Change<Pod>| {
        match &change.now {
            Some(pod) if wants_node(pod) => vec![Key::of(pod.as_ref())],
            // A Pod that has ended leaves room for those that wait.
            Some(pod) if !pods::is_terminal(pod) => Vec::new(),
            _ => others(),
        }
    });
    control::feed(&context.scope, &queue, &context.caches.nodes, move |_: &Change<Node>| all_waiting());
    context.caches.pods.ready().await;
    context.caches.nodes.ready().await;
    control::run(CONTROLLER.name, queue, |key| reconcile(&context, key)).await;
}

fn wants_node(pod: &Pod) -> bool {
    pods::is_active(pod)
        && pod.spec.as_ref().is_some_and(|spec| {
            spec.node_name.as_deref().unwrap_or_default().is_empty()
                && spec.scheduler_name.as_deref().unwrap_or(SCHEDULER_NAME) == SCHEDULER_NAME
                && spec.scheduling_gates.as_ref().is_none_or(Vec::is_empty)
        })
}

/// Which node takes the Pod, or why none does.
fn plan(pod: &Pod, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Result<String, String> {
    if nodes.is_empty() {
        return Err("0/0 nodes are available: no nodes available to schedule pods.".to_owned());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(i128, String)> = None;
    for node in nodes {
        match room(pod, node, pods) {
            Ok(left) => {
                if best.as_ref().is_none_or(|(most, _)| left > *most) {
                    best = Some((left, node.name_any()));
                }
            }
            Err(reason) => *reasons.entry(reason).or_default() += 1,
        }
    }
    best.map(|(_, name)| name).ok_or_else(|| {
        let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", "))
    })
}

/// How much cpu (in thousandths of a core) the node has left with the Pod on it.
fn room(pod: &Pod, node: &Node, pods: &[Arc<Pod>]) -> Result<i128, String> {
    let spec = pod.spec.clone().unwrap_or_default();
    let node_spec = node.spec.clone().unwrap_or_default();
    if node_spec.unschedulable == Some(true) {
        return Err("node(s) were unschedulable".to_owned());
    }
    if !matches_node(&spec, node) {
        return Err("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let hard = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    if let Some(taint) =
        node_spec.taints.iter().flatten().filter(hard).find(|taint| !tolerates(tolerations, taint))
    {
        let value = taint.value.as_deref().unwrap_or_default();
        return Err(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
    }
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let on_node: Vec<_> = pods
        .iter()
        .filter(|other| !pods::is_terminal(other) && other.uid() != pod.uid())
        .filter(|other| other.spec.as_ref().and_then(|spec| spec.node_name.clone()) == Some(node.name_any()))
        .collect();
    if let Some(limit) = allocatable.get("pods").and_then(milli)
        && (on_node.len() as i128 + 1) * 1000 > limit
    {
        return Err("Too many pods".to_owned());
    }
    let mut cpu_left = 0;
    for (resource, wanted) in requests(&spec) {
        let Some(total) = allocatable.get(&resource).and_then(milli) else {
            return Err(format!("Insufficient {resource}"));
        };
        let used: i128 =
            on_node.iter().filter_map(|other| requests(other.spec.as_ref()?).get(&resource).copied()).sum();
        if wanted > 0 && used + wanted > total {
            return Err(format!("Insufficient {resource}"));
        }
        if resource == "cpu" {
            cpu_left = total - used - wanted;
        }
    }
    Ok(cpu_left)
}

/// What the Pod asks for by resource, in thousandths: the larger of its containers' sum and its largest init container.
fn requests(spec: &PodSpec) -> BTreeMap<String, i128> {
    let mut sum: BTreeMap<String, i128> = BTreeMap::new();
    for container in &spec.containers {
        for (name, quantity) in container.resources.iter().flat_map(|r| r.requests.iter().flatten()) {
            *sum.entry(name.clone()).or_default() += milli(quantity).unwrap_or(0);
        }
    }
    for container in spec.init_containers.iter().flatten() {
        for (name, quantity) in container.resources.iter().flat_map(|r| r.requests.iter().flatten()) {
            let entry = sum.entry(name.clone()).or_default();
            *entry = (*entry).max(milli(quantity).unwrap_or(0));
        }
    }
    for (name, quantity) in spec.overhead.iter().flatten() {
        *sum.entry(name.clone()).or_default() += milli(quantity).unwrap_or(0);
    }
    sum
}

/// A quantity in thousandths, rounded up.
fn milli(quantity: &Quantity) -> Option<i128> {
    quantity.0.parse::<resources::quantity::Quantity>().ok().map(|quantity| quantity.milli().into())
}

fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().unwrap_or_default();
        let key = toleration.key.as_deref().unwrap_or_default();
        let exists = toleration.operator.as_deref() == Some("Exists");
        (effect.is_empty() || effect == taint.effect)
            && (key == taint.key || key.is_empty() && exists)
            && (exists
                || toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default())
    })
}

fn matches_node(spec: &PodSpec, node: &Node) -> bool {
    let labels = node.labels();
    if !spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|required| required.node_selector_terms.iter().any(|term| matches_term(term, node)))
}

fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let labels = term
        .match_expressions
        .iter()
        .flatten()
        .map(|wanted| (wanted, node.labels().get(&wanted.key).cloned()));
    let fields = term
        .match_fields
        .iter()
        .flatten()
        .map(|wanted| (wanted, (wanted.key == "metadata.name").then(|| node.name_any())));
    let mut any = false;
    let all = labels.chain(fields).all(|(wanted, value)| {
        any = true;
        let values = wanted.values.as_deref().unwrap_or_default();
        let number = |text: Option<&String>| text.and_then(|text| text.parse::<i64>().ok());
        match (wanted.operator.as_str(), &value) {
            ("In", Some(value)) => values.contains(value),
            ("NotIn", value) => value.as_ref().is_none_or(|value| !values.contains(value)),
            ("Exists", value) => value.is_some(),
            ("DoesNotExist", value) => value.is_none(),
            ("Gt", value) => {
                number(value.as_ref()) > number(values.first()) && number(values.first()).is_some()
            }
            ("Lt", Some(value)) => {
                number(Some(value)).is_some() && number(Some(value)) < number(values.first())
            }
            _ => false,
        }
    });
    any && all
}

async fn reconcile(context: &Context, key: Key) -> Result<Next, Error> {
    let Some(pod) = context.caches.pods.get(&key).filter(|pod| wants_node(pod)) else {
        return Ok(Next::Changed);
    };
    let api = Api::<Pod>::namespaced(context.client.clone(), &key.namespace);
    match plan(&pod, &context.caches.nodes.list(""), &context.caches.pods.list("")) {
        Ok(node) => bind(context, &api, &pod, &key, &node).await?,
        Err(message) => refuse(context, &api, &pod, &key, &message).await?,
    }
    Ok(Next::Changed)
}

async fn bind(context: &Context, api: &Api<Pod>, pod: &Pod, key: &Key, node: &str) -> Result<(), Error> {
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(key.name.clone()),
            namespace: Some(key.namespace.clone()),
            uid: pod.uid(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let bound: Result<serde_json::Value, _> =
        api.create_subresource("binding", &key.name, &PostParams::default(), &binding).await;
    crate::error::absent_is_fine(bound.map_err(Error::api("create", format!("binding of pods/{key}"))))?;
    let message = format!("Successfully assigned {key} to {node}");
    context.events.say(pod, Type::Normal, "Scheduled", message);
    // The next plan counts this Pod as the node's only once the watch has said so.
    if let Ok(current) = api.get(&key.name).await {
        context.caches.pods.caught_up(&current).await?;
    }
    Ok(())
}

async fn refuse(context: &Context, api: &Api<Pod>, pod: &Pod, key: &Key, message: &str) -> Result<(), Error> {
    let said = pods::condition(pod, "PodScheduled");
    if said.is_some_and(|said| said.status == "False" && said.message.as_deref() == Some(message)) {
        return Ok(());
    }
    let patch = json!({"status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastTransitionTime": said
            .filter(|said| said.status == "False")
            .and_then(|said| said.last_transition_time.clone())
            .unwrap_or(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now())),
    }]}});
    let patched = api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    crate::error::absent_is_fine(patched.map_err(Error::api("patch", format!("pods/{key}"))))?;
    context.events.say(pod, Type::Warning, "FailedScheduling", message);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(more: serde_json::Value) -> Arc<Node> {
        let mut value = json!({"metadata": {"name": "n", "labels": {"disk": "ssd"}},
            "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}}});
        json_patch::merge(&mut value, &more);
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn pod(name: &str, spec: serde_json::Value) -> Arc<Pod> {
        let mut whole = json!({"containers": [{"name": "c"}]});
        json_patch::merge(&mut whole, &spec);
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "uid": name}, "spec": whole})).unwrap(),
        )
    }

    fn asks(cpu: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
    }

    #[test]
    fn a_pod_goes_where_it_fits_and_may_go() {
        let on_node = |cpu: &str| {
            let mut spec = asks(cpu);
            spec["nodeName"] = json!("n");
            pod("other", spec)
        };
        let tainted = node(json!({"spec": {"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}}));
        let cases = [
            (pod("p", json!({})), node(json!({})), vec![], Ok("n")),
            (pod("p", asks("1500m")), node(json!({})), vec![on_node("500m")], Ok("n")),
            (pod("p", asks("1501m")), node(json!({})), vec![on_node("500m")], Err("1 Insufficient cpu")),
            (pod("p", json!({"nodeSelector": {"disk": "ssd"}})), node(json!({})), vec![], Ok("n")),
            (
                pod("p", json!({"nodeSelector": {"disk": "tape"}})),
                node(json!({})),
                vec![],
                Err("1 node(s) didn't match"),
            ),
            (
                pod("p", json!({})),
                node(json!({"spec": {"unschedulable": true}})),
                vec![],
                Err("were unschedulable"),
            ),
            (pod("p", json!({})), tainted.clone(), vec![], Err("untolerated taint {k: v}")),
            (
                pod("p", json!({"tolerations": [{"key": "k", "operator": "Exists"}]})),
                tainted,
                vec![],
                Ok("n"),
            ),
            (
                pod("p", json!({})),
                node(json!({"status": {"allocatable": {"pods": "1"}}})),
                vec![on_node("1m")],
                Err("Too many pods"),
            ),
        ];
        for (index, (pod, node, others, expected)) in cases.into_iter().enumerate() {
            match (plan(&pod, &[node], &others), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "case {index}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "case {index}: {found}"),
                (found, _) => panic!("case {index}: {found:?}"),
            }
        }
    }

    #[test]
    fn quantities_are_read_in_thousandths() {
        for (text, expected) in [
            ("1", 1000),
            ("250m", 250),
            ("1Ki", 1_024_000),
            ("0.5", 500),
            ("1e3", 1_000_000),
            ("1G", 1_000_000_000_000),
        ] {
            assert_eq!(milli(&Quantity(text.to_owned())), Some(expected), "{text}");
        }
    }
}
