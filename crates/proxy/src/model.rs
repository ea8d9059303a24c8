//! What the proxy knows of the cluster: Services, EndpointSlices and Pods, reduced to what it uses. No I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use contract::name::LISTENING_ANNOTATION;
use jiff::Timestamp;
use kube::core::DynamicObject;
use network::Protocol;
use serde_json::Value;

use crate::destination::{ALLOW, Allowance};
use crate::route::AppProtocol;

pub(crate) use contract::name::{EXPOSE_ANNOTATION as EXPOSE, HOST_PORT_ANNOTATION as HOST_PORT};

/// `true`: this Service's clients are proxies of the user's own, whose `Forwarded` fields are passed on.
pub(crate) const TRUST_FORWARDED: &str = "proxy.gantry.dev/trust-forwarded";

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
    pub(crate) trusts_forwarded: bool,
    /// What its endpoints may be, beside Pods and the world.
    pub(crate) allowance: Allowance,
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
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) on_host: bool,
    /// The TCP ports on which the node saw it listen, and whether HTTP is spoken there.
    pub(crate) listening: Vec<(u16, bool)>,
    pub(crate) allowance: Allowance,
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
        let annotation = |name: &str| annotation(object, name);
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
            trusts_forwarded: annotation(TRUST_FORWARDED).is_some_and(|value| value == "true"),
            allowance: allowance(object),
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
            // Endpoints may not send traffic to the host itself, whoever wrote them; its other addresses are refused when
            // they are dialled.
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
            address: object.data["status"]["podIP"].as_str().and_then(|ip| ip.parse().ok()),
            on_host: object.data["spec"]["hostNetwork"] == true,
            listening: listening(object),
            allowance: allowance(object),
            deletion,
        })
    }
}

fn annotation<'o>(object: &'o DynamicObject, name: &str) -> Option<&'o String> {
    object.metadata.annotations.as_ref()?.get(name)
}

fn allowance(object: &DynamicObject) -> Allowance {
    let (allowance, unread) = Allowance::parse(annotation(object, ALLOW).map_or("", String::as_str));
    if !unread.is_empty() {
        tracing::warn!(
            object = key(object),
            ?unread,
            "{ALLOW} names what is neither `host` nor an IPv4 range"
        );
    }
    allowance
}

fn listening(object: &DynamicObject) -> Vec<(u16, bool)> {
    let value =
        annotation(object, LISTENING_ANNOTATION).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let seen = value.unwrap_or_default();
    let tcp = list(&seen).iter().filter(|entry| protocol(&entry["protocol"]) == Some(Protocol::Tcp));
    tcp.map(|entry| (port(&entry["port"]), entry["http"] == true)).collect()
}

/// What stands behind a Service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Behind {
    pub(crate) address: SocketAddr,
    pub(crate) pod: Option<(String, String)>,
    pub(crate) allowance: Allowance,
}

/// Services and EndpointSlices by name; what a process that looks up names shares with the one that keeps it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) services: BTreeMap<Key, Service>,
    /// By UID.
    pods: BTreeMap<String, Pod>,
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

    /// Puts or removes a Pod; returns the Services that change with what it listens on, and where.
    pub(crate) fn set_pod(&mut self, uid: &str, pod: Option<Pod>) -> Vec<Key> {
        let facts = |pod: &Pod| (pod.address, pod.on_host, pod.listening.clone());
        let is_new = pod.as_ref().map(facts) != self.pods.get(uid).map(facts);
        match pod {
            Some(pod) => self.pods.insert(uid.to_owned(), pod),
            None => self.pods.remove(uid),
        };
        if !is_new {
            return Vec::new();
        }
        let naming = |slice: &&Slice| {
            slice
                .endpoints
                .iter()
                .any(|endpoint| endpoint.pod.as_ref().is_some_and(|(other, _)| other == uid))
        };
        self.slices.values().filter(naming).map(|slice| slice.service.clone()).collect()
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
                    let allowance = if self.is_on_host(endpoint, &service.namespace) {
                        Allowance::address(endpoint.address)
                    } else {
                        service.allowance.clone()
                    };
                    found.insert(Behind { address, pod: endpoint.pod.clone(), allowance });
                }
            }
        }
        found.into_iter().collect()
    }

    /// Whether the endpoint is a Pod of the namespace that shares the host's network, at the host's address.
    fn is_on_host(&self, endpoint: &Endpoint, namespace: &str) -> bool {
        let pod = endpoint.pod.as_ref().and_then(|(uid, _)| self.pods.get(uid));
        pod.is_some_and(|pod| {
            pod.on_host && pod.address == Some(endpoint.address) && pod.namespace == namespace
        })
    }

    /// What is spoken on a Service port: by its `appProtocol`, or its slices'; else HTTP if the node saw one of its Pods
    /// speak that. One Pod is enough: a Pod whose port was looked at too early must not open a way past the parser. While
    /// nothing is known of any Pod, it stays `before`.
    pub(crate) fn app_protocol(&self, service: &Service, port: &Port, before: AppProtocol) -> AppProtocol {
        let of_port = |other: &&SlicePort| other.name == port.name && other.protocol == port.protocol;
        let key = service.key();
        let of_slices = || {
            let mut ports = self.slices_of(&key).flat_map(|slice| &slice.ports).filter(of_port);
            ports.find_map(|other| other.app_protocol.clone())
        };
        match port.app_protocol.clone().or_else(of_slices).as_deref() {
            Some("http" | "HTTP" | "kubernetes.io/ws") => return AppProtocol::Http,
            Some(_) => return AppProtocol::Opaque,
            None => {}
        }
        let mut seen = None;
        for slice in self.slices_of(&key) {
            let pods = slice.endpoints.iter().filter_map(|endpoint| self.pods.get(&endpoint.pod.as_ref()?.0));
            for (number, http) in pods.flat_map(|pod| &pod.listening) {
                if slice.ports.iter().filter(of_port).any(|target| target.port == *number) {
                    seen = Some(seen.unwrap_or(false) || *http);
                }
            }
        }
        match seen {
            Some(true) => AppProtocol::Http,
            Some(false) => AppProtocol::Opaque,
            None => before,
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
        let opaque = AppProtocol::Opaque;
        assert_eq!(model.app_protocol(&web, &web.ports[0], opaque), AppProtocol::Http);
        assert_eq!(model.app_protocol(&web, &web.ports[1], opaque), opaque);
        assert!(model.behind(&web, &web.ports[1]).is_empty());
        assert!(model.names_pod("a") && !model.names_pod("c"));
        assert_eq!(model.set_slice("default/web-1".into(), None), ["default/web"]);
        assert!(model.behind(&web, &web.ports[0]).is_empty());
    }

    fn pod(uid: &str, listening: &str) -> Pod {
        Pod::parse(&object(json!({
            "metadata": {"namespace": "default", "name": uid, "uid": uid, "annotations": {LISTENING_ANNOTATION: listening}},
            "status": {"podIP": "10.244.0.5"},
        })))
        .unwrap()
    }

    #[test]
    fn what_is_spoken_is_decided_for_the_port_by_what_the_node_saw() {
        let web = service(json!({
            "metadata": {"namespace": "default", "name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]},
        }));
        let mut slice = slice();
        slice.ports[0].app_protocol = None;
        let mut model = Model::default();
        model.set_slice("default/web-1".into(), Some(slice));
        let (http, opaque) = (AppProtocol::Http, AppProtocol::Opaque);
        let decided = |model: &Model, before| model.app_protocol(&web, &web.ports[0], before);
        assert_eq!((decided(&model, opaque), decided(&model, http)), (opaque, http), "nothing was seen");

        let seen = r#"[{"port":8080,"protocol":"TCP","http":true},{"port":9,"protocol":"TCP","http":false}]"#;
        assert_eq!(model.set_pod("a", Some(pod("a", seen))), ["default/web"]);
        assert_eq!(decided(&model, opaque), http);
        assert!(model.set_pod("a", Some(pod("a", seen))).is_empty(), "nothing is new");
        // A Pod that starts slowly, or is looked at too early, changes nothing.
        model.set_pod("b", Some(pod("b", r#"[{"port":8080,"protocol":"TCP","http":false}]"#)));
        assert_eq!(decided(&model, opaque), http);
        model.set_pod("a", None);
        assert_eq!(decided(&model, http), opaque, "all that is known says so");
        // Neither another port nor datagrams say anything.
        for other in
            [r#"[{"port":81,"http":true}]"#, r#"[{"port":8080,"protocol":"UDP","http":true}]"#, "no JSON"]
        {
            model.set_pod("b", Some(pod("b", other)));
            assert_eq!((decided(&model, opaque), decided(&model, http)), (opaque, http), "{other}");
        }
        let mut given = web.clone();
        given.ports[0].app_protocol = Some("kubernetes.io/h2c".to_owned());
        model.set_pod("a", Some(pod("a", seen)));
        assert_eq!(model.app_protocol(&given, &given.ports[0], http), opaque);
    }

    #[test]
    fn only_a_pod_on_the_host_s_network_stands_at_the_host_s_address_without_allowance() {
        let web = service(json!({
            "metadata": {"namespace": "default", "name": "web", "annotations": {ALLOW: "192.0.2.0/24"}},
            "spec": {"ports": [{"name": "http", "port": 80}]},
        }));
        let mut model = Model::default();
        model.set_slice("default/web-1".into(), Some(slice()));
        let behind = |model: &Model| model.behind(&web, &web.ports[0]).remove(0).allowance;
        assert_eq!(behind(&model), Allowance::parse("192.0.2.0/24").0);
        let mut on_host = pod("a", "");
        on_host.on_host = true;
        model.set_pod("a", Some(on_host.clone()));
        assert_eq!(behind(&model), Allowance::parse("10.244.0.5").0);
        for (namespace, address) in [("other", [10, 244, 0, 5]), ("default", [10, 244, 0, 9])] {
            let other =
                Pod { namespace: namespace.to_owned(), address: Some(address.into()), ..on_host.clone() };
            model.set_pod("a", Some(other));
            assert_eq!(behind(&model), Allowance::parse("192.0.2.0/24").0);
        }
    }
}
