//! This machine's Node object and its Lease.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node as Object, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::adapters::MANAGER;
use crate::machine::Machine;
use crate::status::time;

/// Between two renewals of the Lease, as kubelet has it.
const RENEW: Duration = Duration::from_secs(10);
const LEASE_S: i32 = 40;
const DISK_PRESSURE_TAINT: &str = "node.kubernetes.io/disk-pressure";
const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Renewals between two writes of the Node's status.
const STATUS_EVERY: u32 = 30;
/// After a write that failed.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// Pods that one node takes.
const PODS_MAX: u32 = 250;

/// Who registers.
pub(crate) struct Registration {
    pub client: Client,
    pub name: String,
    pub machine: Machine,
    pub pod_cidr: Option<String>,
    /// The port of the kubelet API for a real API server; 0 when it is reached in the process.
    pub kubelet_port: u16,
    /// Whether the disk of the state folder is nearly full.
    pub disk_pressure: watch::Receiver<bool>,
}

impl Registration {
    /// Registers, then renews until dropped.
    pub async fn run(mut self) {
        let mut wait = RETRY_FIRST;
        while let Err(error) = self.register().await {
            tracing::warn!(node = self.name, %error, "register the node");
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_LONGEST);
        }
        let mut round = 0_u32;
        loop {
            if let Err(error) = self.renew().await {
                tracing::warn!(node = self.name, %error, "renew the node's lease");
            }
            let changed = tokio::select! {
                () = tokio::time::sleep(RENEW) => false,
                changed = self.disk_pressure.changed() => match changed {
                    Ok(()) => true,
                    Err(_) => return,
                },
            };
            round = round.wrapping_add(1);
            if (changed || round.is_multiple_of(STATUS_EVERY))
                && let Err(error) = self.register().await
            {
                tracing::warn!(node = self.name, %error, "write the node's status");
            }
        }
    }

    async fn register(&self) -> kube::Result<()> {
        let api: Api<Object> = Api::all(self.client.clone());
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let object: Object = serde_json::from_value(self.object()).map_err(kube::Error::SerdeError)?;
        let old = match api.create(&params, &object).await {
            Ok(created) => created,
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = json!({"metadata": {"labels": self.labels()}});
                let params =
                    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                api.patch(&self.name, &params, &Patch::Merge(&patch)).await?
            }
            Err(error) => return Err(error),
        };
        self.taint(&api, &old).await?;
        let patch = json!({"status": self.status(&old, Timestamp::now())});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        api.patch_status(&self.name, &params, &Patch::Strategic(&patch)).await.map(drop)
    }

    /// Under disk pressure the scheduler binds no Pod here that does not tolerate it. (A node lifecycle controller would
    /// do this from the condition.)
    async fn taint(&self, api: &Api<Object>, old: &Object) -> kube::Result<()> {
        let pressed = *self.disk_pressure.borrow();
        let taints = old.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        if taints.iter().any(|taint| taint.key == DISK_PRESSURE_TAINT) == pressed {
            return Ok(());
        }
        let mut taints: Vec<Taint> =
            taints.into_iter().filter(|taint| taint.key != DISK_PRESSURE_TAINT).collect();
        if pressed {
            taints.push(Taint {
                key: DISK_PRESSURE_TAINT.to_owned(),
                effect: "NoSchedule".to_owned(),
                time_added: Some(Time(Timestamp::now())),
                ..Taint::default()
            });
        }
        // The list is one value: whoever changed it meanwhile must not be undone.
        let patch = json!({"metadata": {"resourceVersion": old.metadata.resource_version}, "spec": {"taints": taints}});
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        api.patch(&self.name, &params, &Patch::Merge(&patch)).await.map(drop)
    }

    fn labels(&self) -> Value {
        json!({
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": self.machine.architecture,
            "beta.kubernetes.io/os": "linux",
            "beta.kubernetes.io/arch": self.machine.architecture,
        })
    }

    fn object(&self) -> Value {
        let mut spec = json!({});
        if let Some(cidr) = &self.pod_cidr {
            spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        }
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": self.name, "labels": self.labels()}, "spec": spec})
    }

    fn status(&self, old: &Object, now: Timestamp) -> Value {
        let machine = &self.machine;
        let resources = json!({
            "cpu": format!("{}m", machine.cpu_milli),
            "memory": format!("{}Ki", machine.memory_bytes / 1024),
            "ephemeral-storage": format!("{}Ki", machine.disk_bytes / 1024),
            "pods": PODS_MAX.to_string(),
        });
        let old = old.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let condition = |kind: &str, status: &str, reason: &str, message: &str| {
            let same = old.iter().find(|condition| condition.type_ == kind && condition.status == status);
            let since =
                same.and_then(|condition| condition.last_transition_time.as_ref()).map_or(now, |t| t.0);
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": time(now), "lastTransitionTime": time(since)})
        };
        json!({
            "capacity": resources,
            "allocatable": resources,
            "addresses": [
                {"type": "InternalIP", "address": machine.address.to_string()},
                {"type": "Hostname", "address": self.name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.kubelet_port}},
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                match *self.disk_pressure.borrow() {
                    true => condition("DiskPressure", "True", "KubeletHasDiskPressure", "kubelet has disk pressure"),
                    false => condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                },
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
            "nodeInfo": {
                "machineID": machine.machine_id,
                "systemUUID": machine.system_uuid,
                "bootID": machine.boot_id,
                "kernelVersion": machine.kernel,
                "osImage": machine.os_image,
                "containerRuntimeVersion": concat!("gantry://", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": concat!("v1.36.0+gantry-", env!("CARGO_PKG_VERSION")),
                "kubeProxyVersion": "",
                "operatingSystem": "linux",
                "architecture": machine.architecture,
            },
        })
    }

    async fn renew(&self) -> kube::Result<()> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        let patch =
            json!({"spec": {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_S, "renewTime": now}});
        match api.patch(&self.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": self.name, "namespace": LEASE_NAMESPACE}, "spec": patch["spec"]});
                let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
                api.create(&PostParams::default(), &lease).await.map(drop)
            }
            result => result.map(drop),
        }
    }
}
