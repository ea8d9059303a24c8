//! What the proxy knows of the cluster: Services, EndpointSlices and Pods, reduced to what it uses. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use jiff::Timestamp;
use kube::core::DynamicObject;
use network::Protocol;
use serde_json::Value;

use crate::route::Speech;

pub(crate) use contract::name::{EXPOSE_ANNOTATION as EXPOSE, HOST_PORT_ANNOTATION as HOST_PORT};

/// `namespace/name`
pub(crate) type Key = String;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// `None` with a headless Service.
    pub(crate) cluster_ip: Option<Ipv4Addr>,
    pub(crate) external_name: Option<String>,
    pub(crate) ports: Vec<Port>,
    pub(crate) auto_port: bool,
    pub(crate) expose: Option<IpAddr>,
    pub(crate) publish_not_ready: bool,
    pub(crate) generation: i64,
    /// `status.loadBalancer.ingress[0].ports`
    pub(crate) ingress: Vec<(u16, Protocol)>,
    /// The Bound condition: status, reason, message.
    pub(crate) bound: Option<(String, String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: u16,
    pub(crate) app_protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    pub(crate) service: Key,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) ports: Vec<SlicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: Ipv4Addr,
    pub(crate) ready: bool,
    pub(crate) hostname: Option<String>,
    /// The Pod's UID and name.
    pub(crate) pod: Option<(String, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlicePort {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) app_protocol: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) deletion: Option<Deletion>,
}

/// A Pod is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deletion {
    /// `metadata.deletionTimestamp`: when it has to be gone.
    pub(crate) at: Timestamp,
    pub(crate) grace_seconds: i64,
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn optional_text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn port(value: &Value) -> u16 {
    value.as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(0)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn protocol(value: &Value) -> Option<Protocol> {
    match value.as_str() {
        None | Some("TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some(_) => None,
    }
}

pub(crate) fn key(object: &DynamicObject) -> Key {
    let meta = &object.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default())
}

impl Service {
    pub(crate) fn parse(object: &DynamicObject) -> Self {
        let (spec, status) = (&object.data["spec"], &object.data["status"]);
        let annotation = |name: &str| object.metadata.annotations.as_ref().and_then(|all| all.get(name));
        let ports = list(&spec["ports"]).iter().filter_map(|value| {
            Some(Port {
                name: text(&value["name"]),
                protocol: protocol(&value["protocol"])?,
                port: port(&value["port"]),
                node_port: port(&value["nodePort"]),
                app_protocol: optional_text(&value["appProtocol"]),
            })
        });
        let ingress = list(&status["loadBalancer"]["ingress"][0]["ports"]);
        let bound =
            list(&status["conditions"]).iter().find(|condition| condition["type"] == crate::status::BOUND);
        Self {
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            name: object.metadata.name.clone().unwrap_or_default(),
            kind: match spec["type"].as_str() {
                Some("NodePort") => Kind::NodePort,
                Some("LoadBalancer") => Kind::LoadBalancer,
                Some("ExternalName") => Kind::ExternalName,
                _ => Kind::ClusterIp,
            },
            cluster_ip: spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok()),
            external_name: optional_text(&spec["externalName"]),
            ports: ports.filter(|port| port.port != 0).collect(),
            auto_port: annotation(HOST_PORT).is_some_and(|value| value == "auto"),
            expose: annotation(EXPOSE).and_then(|value| value.parse().ok()),
            publish_not_ready: spec["publishNotReadyAddresses"] == true,
            generation: object.metadata.generation.unwrap_or(0),
            ingress: ingress
                .iter()
                .filter_map(|value| Some((port(&value["port"]), protocol(&value["protocol"])?)))
                .collect(),
            bound: bound
                .map(|found| (text(&found["status"]), text(&found["reason"]), text(&found["message"]))),
        }
    }

    pub(crate) fn key(&self) -> Key {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl Slice {
    /// `None` if it is of no Service, or not of IPv4 addresses.
    pub(crate) fn parse(object: &DynamicObject) -> Option<Self> {
        let labels = object.metadata.labels.as_ref()?;
        let service = labels.get("kubernetes.io/service-name")?;
        if object.data["addressType"] != "IPv4" {
            return None;
        }
        let endpoints = list(&object.data["endpoints"]).iter().filter_map(|value| {
            let address: Ipv4Addr = value["addresses"][0].as_str()?.parse().ok()?;
            // Endpoints may not send traffic to the host itself, whoever wrote them.
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                return None;
            }
            let target = &value["targetRef"];
            let is_pod = target["kind"] == "Pod";
            Some(Endpoint {
                address,
                ready: value["conditions"]["ready"] != false,
                hostname: optional_text(&value["hostname"]),
                pod: optional_text(&target["uid"]).filter(|_| is_pod).map(|uid| (uid, text(&target["name"]))),
            })
        });
        let ports = list(&object.data["ports"]).iter().filter_map(|value| {
            Some(SlicePort {
                name: text(&value["name"]),
                protocol: protocol(&value["protocol"])?,
                port: port(&value["port"]),
                app_protocol: optional_text(&value["appProtocol"]),
            })
        });
        Some(Self {
            service: format!("{}/{service}", object.metadata.namespace.as_deref().unwrap_or_default()),
            endpoints: endpoints.collect(),
            ports: ports.collect(),
        })
    }
}

impl Pod {
    pub(crate) fn parse(object: &DynamicObject) -> Option<Self> {
        let meta = &object.metadata;
        let deletion = meta
            .deletion_timestamp
            .as_ref()
            .map(|at| Deletion { at: at.0, grace_seconds: meta.deletion_grace_period_seconds.unwrap_or(30) });
        Some(Self {
            uid: meta.uid.clone()?,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            deletion,
        })
    }
}

/// What stands behind a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Behind {
    pub(crate) address: SocketAddr,
    pub(crate) pod: Option<(String, String)>,
}

/// Services and EndpointSlices by name; what a process that looks up names shares with the one that keeps it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) services: BTreeMap<Key, Service>,
    slices: BTreeMap<Key, Slice>,
    by_service: BTreeMap<Key, BTreeSet<Key>>,
}

impl Model {
    /// Puts or removes a slice; returns the Services that change.
    pub(crate) fn set_slice(&mut self, key: Key, slice: Option<Slice>) -> Vec<Key> {
        let mut changed = Vec::new();
        if let Some(old) = self.slices.remove(&key) {
            if let Some(of_service) = self.by_service.get_mut(&old.service) {
                of_service.remove(&key);
                if of_service.is_empty() {
                    self.by_service.remove(&old.service);
                }
            }
            changed.push(old.service);
        }
        if let Some(slice) = slice {
            self.by_service.entry(slice.service.clone()).or_default().insert(key.clone());
            if !changed.contains(&slice.service) {
                changed.push(slice.service.clone());
            }
            self.slices.insert(key, slice);
        }
        changed
    }

    pub(crate) fn slice_keys(&self) -> Vec<Key> {
        self.slices.keys().cloned().collect()
    }

    pub(crate) fn slices_of(&self, service: &Key) -> impl Iterator<Item = &Slice> {
        self.by_service.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key))
    }

    /// Whether any slice names the Pod.
    pub(crate) fn names_pod(&self, uid: &str) -> bool {
        self.slices
            .values()
            .flat_map(|slice| &slice.endpoints)
            .any(|endpoint| endpoint.pod.as_ref().is_some_and(|(other, _)| other == uid))
    }

    /// The ready endpoints of a Service port.
    pub(crate) fn behind(&self, service: &Service, port: &Port) -> Vec<Behind> {
        let mut found = BTreeSet::new();
        for slice in self.slices_of(&service.key()) {
            let of_port = |other: &&SlicePort| other.name == port.name && other.protocol == port.protocol;
            for target in slice.ports.iter().filter(of_port).filter(|target| target.port != 0) {
                for endpoint in slice.endpoints.iter().filter(|e| e.ready || service.publish_not_ready) {
                    let address = SocketAddr::from((endpoint.address, target.port));
                    found.insert(Behind { address, pod: endpoint.pod.clone() });
                }
            }
        }
        found.into_iter().collect()
    }

    /// What is spoken on a Service port.
    pub(crate) fn speech(&self, service: &Service, port: &Port) -> Speech {
        let of_slices = || {
            self.slices_of(&service.key())
                .flat_map(|slice| &slice.ports)
                .find(|other| other.name == port.name)
                .and_then(|other| other.app_protocol.clone())
        };
        match port.app_protocol.clone().or_else(of_slices).as_deref() {
            None => Speech::Unknown,
            Some("http" | "HTTP" | "kubernetes.io/ws") => Speech::Http,
            Some(_) => Speech::Opaque,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    pub(crate) fn service(value: Value) -> Service {
        Service::parse(&object(value))
    }

    fn slice() -> Slice {
        Slice::parse(&object(json!({
            "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP", "appProtocol": "http"}],
            "endpoints": [
                {"addresses": ["10.244.0.5"], "conditions": {"ready": true},
                 "targetRef": {"kind": "Pod", "name": "web-a", "uid": "a"}},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": false},
                 "targetRef": {"kind": "Pod", "name": "web-b", "uid": "b"}},
                {"addresses": ["10.244.0.7"]},
                {"addresses": ["127.0.0.1"]},
            ],
        })))
        .unwrap()
    }

    #[test]
    fn a_port_s_backends_are_the_ready_endpoints_under_its_name() {
        let web = service(json!({
            "metadata": {"namespace": "default", "name": "web", "annotations": {HOST_PORT: "auto"}},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.5",
                     "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "other", "port": 81}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "127.0.0.1", "ports": [{"port": 8081, "protocol": "TCP"}]}]}},
        }));
        assert!(web.auto_port && web.kind == Kind::LoadBalancer);
        assert_eq!(web.ingress, [(8081, Protocol::Tcp)]);
        let mut model = Model::default();
        assert_eq!(model.set_slice("default/web-1".into(), Some(slice())), ["default/web"]);
        let behind = model.behind(&web, &web.ports[0]);
        let addresses: Vec<String> = behind.iter().map(|behind| behind.address.to_string()).collect();
        assert_eq!(addresses, ["10.244.0.5:8080", "10.244.0.7:8080"]);
        assert_eq!(model.speech(&web, &web.ports[0]), Speech::Http);
        assert!(model.behind(&web, &web.ports[1]).is_empty());
        assert!(model.names_pod("a") && !model.names_pod("c"));
        assert_eq!(model.set_slice("default/web-1".into(), None), ["default/web"]);
        assert!(model.behind(&web, &web.ports[0]).is_empty());
    }
}
