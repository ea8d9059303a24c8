//! Requests and limits as the kernel gets them: cgroup values, QoS class, `oom_score_adj`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;

/// A Pod's quality of service class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has limits for cpu and memory, equal to its requests.
    Guaranteed,
    /// Some container asks for something.
    Burstable,
    /// Nobody asks for anything.
    BestEffort,
}

impl Qos {
    /// The name in `status.qosClass`.
    pub fn name(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// What a container asks for and may use at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a core that it asks for.
    pub cpu_request_milli: Option<i64>,
    /// Thousandths of a core at most.
    pub cpu_limit_milli: Option<i64>,
    /// Memory that it asks for.
    pub memory_request_bytes: Option<i64>,
    /// Memory at most.
    pub memory_limit_bytes: Option<i64>,
}

type List = BTreeMap<String, Quantity>;

fn get(list: &Option<List>, name: &str) -> Option<Quantity> {
    list.as_ref()?.get(name).cloned()
}

/// The container's own numbers; a request that is missing is its limit.
pub fn of(resources: Option<&ResourceRequirements>) -> Limits {
    let Some(resources) = resources else { return Limits::default() };
    let milli =
        |list: &Option<List>, name| get(list, name).and_then(|q| quantity::milli(&q)).filter(|q| *q > 0);
    let bytes =
        |list: &Option<List>, name| get(list, name).and_then(|q| quantity::value(&q)).filter(|q| *q > 0);
    let cpu_limit_milli = milli(&resources.limits, "cpu");
    let memory_limit_bytes = bytes(&resources.limits, "memory");
    Limits {
        cpu_request_milli: milli(&resources.requests, "cpu").or(match get(&resources.requests, "cpu") {
            Some(_) => None,
            None => cpu_limit_milli,
        }),
        cpu_limit_milli,
        memory_request_bytes: bytes(&resources.requests, "memory").or(memory_limit_bytes),
        memory_limit_bytes,
    }
}

fn all(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()))
}

/// The Pod's class, from cpu and memory of all its containers.
pub fn qos(pod: &Pod) -> Qos {
    let mut asked = false;
    let mut guaranteed = true;
    for container in all(pod) {
        let limits = of(container.resources.as_ref());
        asked |= limits != Limits::default();
        guaranteed &= limits.cpu_limit_milli.is_some()
            && limits.memory_limit_bytes.is_some()
            && limits.cpu_limit_milli == limits.cpu_request_milli
            && limits.memory_limit_bytes == limits.memory_request_bytes;
    }
    match (asked, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// kubelet's `oom_score_adj`: what asked for much of the machine's memory is killed late.
pub fn oom_score_adj(pod: &Pod, container: &Container, machine_memory_bytes: u64) -> i32 {
    match qos(pod) {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = of(container.resources.as_ref()).memory_request_bytes.unwrap_or(0);
            let share = i128::from(request) * 1000 / i128::from(machine_memory_bytes.max(1));
            (1000 - i32::try_from(share).unwrap_or(1000)).clamp(3, 999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(resources: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}))
            .unwrap()
    }

    #[test]
    fn classes_and_scores() {
        let machine = 1000 << 20;
        for (resources, class, score) in [
            (json!({}), "BestEffort", 1000),
            (json!({"requests": {"memory": "100Mi"}}), "Burstable", 900),
            (json!({"limits": {"cpu": "1", "memory": "64Mi"}}), "Guaranteed", -997),
            (json!({"requests": {"cpu": "1m"}, "limits": {"cpu": "1", "memory": "64Mi"}}), "Burstable", 936),
            (json!({"requests": {"memory": "10000Mi"}}), "Burstable", 3),
        ] {
            let pod = pod(resources.clone());
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(qos(&pod).name(), class, "{resources}");
            assert_eq!(oom_score_adj(&pod, container, machine), score, "{resources}");
        }
    }
}
