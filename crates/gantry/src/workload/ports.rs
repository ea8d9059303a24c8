//! What a Pod listens on, and under which addresses a Service can be reached.

use k8s_openapi::api::core::v1::{Pod, Service};
use kube::ResourceExt as _;
use serde::{Deserialize, Serialize};

use super::{BOUND, EXPOSE, HOST_PORT, LISTENING};

/// An entry of the Pod annotation `node.gantry.dev/listening`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Listening {
    pub port: u16,
    pub protocol: String,
    pub address: String,
    pub http: bool,
    pub loopback: bool,
}

impl Default for Listening {
    fn default() -> Self {
        Self { port: 0, protocol: "TCP".to_owned(), address: String::new(), http: false, loopback: false }
    }
}

/// What others can reach of what the Pod listens on; HTTP first, as the node wrote it.
pub fn listening(pod: &Pod) -> Vec<Listening> {
    let mut reachable = all_listening(pod);
    reachable.retain(|entry| !entry.loopback && entry.port > 0);
    let mut seen = Vec::new();
    // One entry each for IPv4 and IPv6 is one port.
    reachable.retain(|entry| {
        let key = (entry.port, entry.protocol.clone());
        let is_new = !seen.contains(&key);
        seen.push(key);
        is_new
    });
    reachable
}

/// All that the Pod listens on.
pub fn all_listening(pod: &Pod) -> Vec<Listening> {
    let text = pod.annotations().get(LISTENING);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// How a Service is reached from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The proxy has not said yet.
    Unknown,
    /// One address for each port.
    Addresses(Vec<String>),
    /// The proxy could not listen, and why.
    Refused(String),
}

/// Reads a Service's status.
pub fn reach(service: &Service) -> Reach {
    let kind = service.spec.as_ref().and_then(|spec| spec.type_.as_deref());
    if kind != Some("LoadBalancer") {
        // It is for the inside alone: nobody will give it an address of this machine.
        return Reach::Addresses(Vec::new());
    }
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_deref()).unwrap_or_default();
    let status = service.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let current = service.metadata.generation;
    let stale = |seen: Option<i64>| matches!((seen, current), (Some(seen), Some(current)) if seen < current);
    if let Some(condition) = conditions.iter().find(|c| c.type_ == BOUND && !stale(c.observed_generation))
        && condition.status == "False"
    {
        return Reach::Refused(condition.message.clone());
    }
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).and_then(|list| list.first());
    let Some(chosen) = ingress.and_then(|ingress| ingress.ports.as_deref()) else { return Reach::Unknown };
    // Without leave to take another port only the very numbers are an answer to the present spec.
    let may_differ = service.annotations().contains_key(HOST_PORT);
    let answers = ports.iter().zip(chosen).all(|(port, chosen)| may_differ || port.port == chosen.port);
    if chosen.len() != ports.len() || ports.is_empty() || !answers {
        return Reach::Unknown;
    }
    let host = match service.annotations().get(EXPOSE).map(String::as_str) {
        None | Some("0.0.0.0" | "::" | "") => "localhost",
        Some(address) => address,
    };
    let addresses = ports.iter().zip(chosen).map(|(port, chosen)| {
        let scheme = match port.app_protocol.as_deref() {
            Some("http" | "kubernetes.io/h2c" | "kubernetes.io/ws") => "http://",
            _ if port.name.as_deref().is_some_and(|name| name.starts_with("http")) => "http://",
            _ => "",
        };
        // The same number may be there twice, once for each protocol.
        let protocol = if chosen.protocol == "UDP" { "/udp" } else { "" };
        format!("{scheme}{host}:{}{protocol}", chosen.port)
    });
    Reach::Addresses(addresses.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn loopback_and_doubles_are_left_out() {
        let text = r#"[{"port":8080,"protocol":"TCP","address":"::","http":true},
            {"port":8080,"protocol":"TCP","address":"0.0.0.0","http":true},
            {"port":6060,"protocol":"TCP","address":"127.0.0.1","loopback":true}]"#;
        let pod = json!({ "metadata": { "annotations": { LISTENING: text } } });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(listening(&pod).iter().map(|l| l.port).collect::<Vec<_>>(), [8080]);
        assert_eq!(all_listening(&pod).len(), 3);
    }

    #[test]
    fn the_status_decides_the_address() {
        let service = |status: serde_json::Value| -> Service {
            let ports = json!([{ "name": "http", "port": 8080, "appProtocol": "http" }, { "name": "tcp-1", "port": 1 }]);
            let object = json!({ "metadata": { "annotations": { HOST_PORT: "auto" } }, "spec": { "type": "LoadBalancer", "ports": ports }, "status": status });
            serde_json::from_value(object).unwrap()
        };
        assert_eq!(reach(&service(json!({}))), Reach::Unknown);
        let mut inside = service(json!({}));
        inside.spec.as_mut().unwrap().type_ = Some("ClusterIP".to_owned());
        assert_eq!(reach(&inside), Reach::Addresses(vec![]), "waits for nothing");
        let ports = json!([{ "port": 8081, "protocol": "TCP" }, { "port": 1, "protocol": "TCP" }]);
        let status = json!({ "loadBalancer": { "ingress": [{ "ip": "127.0.0.1", "ports": ports }] } });
        let addresses = ["http://localhost:8081", "localhost:1"].map(str::to_owned).to_vec();
        assert_eq!(reach(&service(status)), Reach::Addresses(addresses));
        let both = json!({ "spec": { "type": "LoadBalancer", "ports": [{ "port": 53 }, { "port": 53, "protocol": "UDP" }] },
            "status": { "loadBalancer": { "ingress": [{ "ports": [{ "port": 53, "protocol": "TCP" }, { "port": 53, "protocol": "UDP" }] }] } } });
        let addresses = ["localhost:53", "localhost:53/udp"].map(str::to_owned).to_vec();
        assert_eq!(reach(&serde_json::from_value(both).unwrap()), Reach::Addresses(addresses));
        let taken = json!({ "conditions": [{ "type": BOUND, "status": "False", "reason": "PortTaken",
            "message": "port 80 is taken by nginx", "lastTransitionTime": "2026-01-01T00:00:00Z" }] });
        assert_eq!(reach(&service(taken)), Reach::Refused("port 80 is taken by nginx".to_owned()));
    }
}
