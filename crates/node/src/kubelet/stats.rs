//! `GET /stats/summary`: what the Pods use, from their cgroups.

use std::sync::PoisonError;

use axum::extract::State;
use axum::response::Json;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Kubelet;
use crate::status::time;

pub(super) async fn summary(State(kubelet): State<Kubelet>) -> Json<Value> {
    let now = time(Timestamp::now());
    let mut pods = Vec::new();
    for (pod, entry) in kubelet.pods.all() {
        let handles = entry.handles.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut containers = Vec::new();
        let (mut cpu, mut used, mut working) = (0, 0, 0);
        for (name, handle) in &handles {
            let Some(Ok(stats)) = handle.real().map(runtime::Container::stats) else { continue };
            cpu += stats.cpu_usage_ns;
            used += stats.memory_usage_bytes;
            working += stats.memory_working_set_bytes;
            let mut memory = json!({
                "time": now,
                "usageBytes": stats.memory_usage_bytes,
                "workingSetBytes": stats.memory_working_set_bytes,
                "rssBytes": stats.memory_rss_bytes,
            });
            if let Some(left) = stats.memory_limit_bytes.checked_sub(stats.memory_working_set_bytes) {
                memory["availableBytes"] = json!(left);
            }
            containers.push(json!({
                "name": name,
                "cpu": {"time": now, "usageCoreNanoSeconds": stats.cpu_usage_ns},
                "memory": memory,
            }));
        }
        pods.push(json!({
            "podRef": {
                "name": pod.metadata.name,
                "namespace": pod.metadata.namespace,
                "uid": pod.metadata.uid,
            },
            "startTime": pod.status.as_ref().and_then(|status| status.start_time.clone()),
            "cpu": {"time": now, "usageCoreNanoSeconds": cpu},
            "memory": {"time": now, "usageBytes": used, "workingSetBytes": working},
            "containers": containers,
        }));
    }
    Json(json!({"node": {"nodeName": kubelet.about.node_name, "startTime": now}, "pods": pods}))
}
