//! Which limits a Pod's writing has, and whether they are kept. Pure; the words are kubelet's
//! (`pkg/kubelet/eviction/eviction_manager.go`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::{plan, quantity};

const RESOURCE: &str = "ephemeral-storage";

/// What a Pod holds on disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By emptyDir on disk.
    pub volumes: BTreeMap<String, u64>,
    /// By container: its writable layer and its logs.
    pub containers: BTreeMap<String, u64>,
}

impl Usage {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.volumes.values().chain(self.containers.values()).fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

/// Whether anything of the Pod's writing is limited.
pub fn is_limited(pod: &Pod) -> bool {
    volumes(pod).any(|(_, limit)| limit.is_some()) || pod_limit(pod).is_some()
}

/// The emptyDirs on disk, with their limits.
pub fn volumes(pod: &Pod) -> impl Iterator<Item = (&str, Option<&Quantity>)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let empty = volume.empty_dir.as_ref()?;
        let on_disk = empty.medium.as_deref().unwrap_or_default().is_empty();
        // A size of zero is none, as in kubelet.
        let limit =
            empty.size_limit.as_ref().filter(|limit| quantity::value(limit).is_some_and(|size| size > 0));
        on_disk.then_some((volume.name.as_str(), limit))
    })
}

fn all(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

fn limit(container: &Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)
}

/// The Pod's own limit, in bytes: its containers' sum or its largest init container, if any has one.
fn pod_limit(pod: &Pod) -> Option<u64> {
    let spec = pod.spec.as_ref()?;
    let bytes = |container: &Container| limit(container).and_then(quantity::value);
    let sidecars = spec.init_containers.iter().flatten().filter(|container| plan::is_sidecar(container));
    let sum = spec.containers.iter().chain(sidecars).filter_map(bytes).reduce(i64::saturating_add);
    let init = spec.init_containers.iter().flatten().filter_map(bytes).max();
    u64::try_from([sum, init].into_iter().flatten().max()?).ok()
}

/// What the Pod asked for, in bytes: what it uses beyond this counts first when the disk gets full.
pub fn request(pod: &Pod) -> u64 {
    let bytes = |container: &Container| {
        let resources = container.resources.as_ref()?;
        let request = resources.requests.as_ref().and_then(|requests| requests.get(RESOURCE));
        quantity::value(request.or_else(|| resources.limits.as_ref()?.get(RESOURCE))?)
    };
    let sum =
        pod.spec.iter().flat_map(|spec| &spec.containers).filter_map(bytes).fold(0, i64::saturating_add);
    u64::try_from(sum).unwrap_or(0)
}

/// Which limit is exceeded, in words.
pub fn exceeded(pod: &Pod, usage: &Usage) -> Option<String> {
    let over = |used: u64, limit: &Quantity| {
        quantity::value(limit).is_some_and(|limit| used > u64::try_from(limit).unwrap_or(0))
    };
    for (name, limit) in volumes(pod) {
        if let Some(limit) = limit
            && over(usage.volumes.get(name).copied().unwrap_or(0), limit)
        {
            return Some(format!("Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ", limit.0));
        }
    }
    if let Some(limit) = pod_limit(pod)
        && usage.total() > limit
    {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            words(limit)
        ));
    }
    for container in all(pod) {
        if let Some(limit) = limit(container)
            && over(usage.containers.get(&container.name).copied().unwrap_or(0), limit)
        {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                container.name, limit.0
            ));
        }
    }
    None
}

/// Bytes as a quantity prints them.
pub fn words(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "Gi"), (1 << 20, "Mi"), (1 << 10, "Ki")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        let limited =
            |name: &str, limit: &str| json!({"name": name, "resources": {"limits": {RESOURCE: limit}}});
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "containers": [limited("a", "10Mi"), limited("b", "20Mi")],
            "initContainers": [limited("i", "5Mi")],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "4Mi"}}, {"name": "free", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]}}))
        .unwrap()
    }

    fn usage(volume: u64, a: u64, b: u64) -> Usage {
        Usage {
            volumes: [("v".to_owned(), volume << 20)].into(),
            containers: [("a".to_owned(), a << 20), ("b".to_owned(), b << 20)].into(),
        }
    }

    #[test]
    fn each_limit_is_named_when_it_is_exceeded_and_not_before() {
        let pod = pod();
        assert!(is_limited(&pod));
        assert_eq!(pod_limit(&pod), Some(30 << 20));
        assert_eq!(exceeded(&pod, &usage(4, 10, 16)), None);
        let said = |usage| exceeded(&pod, &usage).unwrap();
        assert_eq!(said(usage(5, 0, 0)), "Usage of EmptyDir volume \"v\" exceeds the limit \"4Mi\". ");
        assert_eq!(
            said(usage(4, 10, 17)),
            "Pod ephemeral local storage usage exceeds the total limit of containers 30Mi. "
        );
        assert_eq!(
            said(usage(0, 11, 0)),
            "Container a exceeded its local ephemeral storage limit \"10Mi\". "
        );
    }

    #[test]
    fn a_pod_without_limits_is_not_limited() {
        let free: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "0"}}]}}))
        .unwrap();
        assert!(!is_limited(&free));
        assert_eq!(exceeded(&free, &usage(1 << 20, 1 << 20, 0)), None);
        assert_eq!(words(1536 << 10), "1536Ki");
        assert_eq!(words(1 << 30), "1Gi");
        assert_eq!(words(1001), "1001");
    }
}
