//! The downward API: fields of the Pod and resources of a container, as text.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::{limits, quantity};

/// What only the node knows.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// The address of the machine, `status.hostIP`.
    pub host_ip: String,
    /// The Pod's own address, once it has one; until then the Pod's status is asked.
    pub pod_ip: Option<String>,
    /// Thousandths of a core that Pods may use: what a container without a limit gets to see.
    pub cpu_milli: i64,
    /// Memory that Pods may use.
    pub memory_bytes: i64,
    /// Disk that Pods may use.
    pub disk_bytes: i64,
}

/// The value of a field path, or `None` if the downward API has no such field.
pub fn pod(pod: &Pod, path: &str, node: &Node) -> Option<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some(key) = subscript(path, "metadata.labels") {
        return Some(meta.labels.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Some(meta.annotations.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let pod_ip = || {
        let status = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
        node.pod_ip.clone().or(status).unwrap_or_default()
    };
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.iter().flatten()),
        "metadata.annotations" => lines(meta.annotations.iter().flatten()),
        "spec.nodeName" => spec?.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec?.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" | "status.hostIPs" => node.host_ip.clone(),
        "status.podIP" | "status.podIPs" => pod_ip(),
        _ => return None,
    })
}

fn subscript<'a>(path: &'a str, field: &str) -> Option<&'a str> {
    path.strip_prefix(field)?.strip_prefix("['")?.strip_suffix("']")
}

/// Labels or annotations as a downward API file has them: sorted, `key="value"` with Go's escapes.
fn lines<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    let mut text = String::new();
    for (key, value) in map {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(key);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '"' => text.push_str("\\\""),
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_control() => {
                    // Writing into a String cannot fail.
                    let _ = write!(text, "\\u{:04x}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text
}

/// The value of a `resourceFieldRef`: in units of its divisor, rounded up.
pub fn resource(pod: &Pod, own: &Container, selector: &ResourceFieldSelector, node: &Node) -> Option<String> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own,
        Some(name) => {
            let spec = pod.spec.as_ref()?;
            spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)?
        }
    };
    let limits = limits::of(container.resources.as_ref());
    let disk = |limit: bool| {
        let resources = container.resources.as_ref();
        let list = resources.and_then(|r| if limit { r.limits.as_ref() } else { r.requests.as_ref() });
        list.and_then(|list| list.get("ephemeral-storage")).and_then(quantity::value)
    };
    // Everything in thousandths, so that one division serves all.
    let (milli, default_divisor_milli) = match selector.resource.as_str() {
        "limits.cpu" => (limits.cpu_limit_milli.unwrap_or(node.cpu_milli), 1000),
        "requests.cpu" => (limits.cpu_request_milli.unwrap_or(0), 1000),
        "limits.memory" => {
            (limits.memory_limit_bytes.unwrap_or(node.memory_bytes).saturating_mul(1000), 1000)
        }
        "requests.memory" => (limits.memory_request_bytes.unwrap_or(0).saturating_mul(1000), 1000),
        "limits.ephemeral-storage" => (disk(true).unwrap_or(node.disk_bytes).saturating_mul(1000), 1000),
        "requests.ephemeral-storage" => (disk(false).unwrap_or(0).saturating_mul(1000), 1000),
        _ => return None,
    };
    let divisor = selector.divisor.as_ref().and_then(quantity::milli).filter(|divisor| *divisor > 0);
    let divisor = divisor.unwrap_or(default_divisor_milli);
    Some(((milli + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_read() {
        let subject: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "labels": {"b": "2\"", "a": "1"}},
            "spec": {"containers": []}
        }))
        .unwrap();
        let node = Node { host_ip: "192.0.2.1".to_owned(), ..Node::default() };
        let get = |path| pod(&subject, path, &node);
        assert_eq!(get("metadata.labels['a']").as_deref(), Some("1"));
        assert_eq!(get("metadata.labels").as_deref(), Some("a=\"1\"\nb=\"2\\\"\""));
        assert_eq!(get("status.hostIP").as_deref(), Some("192.0.2.1"));
        assert_eq!(get("spec.nothing"), None);
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let subject: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "65Mi"}}}]}}))
        .unwrap();
        let own = &subject.spec.as_ref().unwrap().containers[0];
        let node = Node { memory_bytes: 7, ..Node::default() };
        for (name, divisor, expected) in [
            ("limits.cpu", None, Some("2")),
            ("limits.cpu", Some("1m"), Some("1500")),
            ("limits.memory", Some("1Mi"), Some("65")),
            ("limits.memory", None, Some("68157440")),
            ("requests.ephemeral-storage", None, Some("0")),
            ("limits.gpu", None, None),
        ] {
            let selector: ResourceFieldSelector =
                serde_json::from_value(json!({"resource": name, "divisor": divisor})).unwrap();
            assert_eq!(resource(&subject, own, &selector, &node).as_deref(), expected, "{name} {divisor:?}");
        }
    }
}
