//! Service: one address for a set of Pods.

use serde_json::{Value, json};

use super::{tree, wire};
use crate::field::Error;
use crate::kind::{self, AllocateError, Allocator, Cell, Column, Kind, Name, Subresource};

mod validate;

/// How long a client stays with its endpoint unless told otherwise.
const CLIENT_IP_TIMEOUT_SECONDS: i64 = 10_800;

pub static KIND: Kind = Kind {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    schema: "io.k8s.api.core.v1.Service",
    subresources: &[Subresource::Status],
    columns: &[
        Column::NAME,
        Column::new("Type", "string", "How the service is reached", Cell::Pointer("/spec/type")),
        Column::new(
            "Cluster-IP",
            "string",
            "Address within the cluster",
            Cell::Fn(|o, _| cluster_ip(o).into()),
        ),
        Column::new(
            "External-IP",
            "string",
            "Addresses from outside",
            Cell::Fn(|o, _| external_ip(o).into()),
        ),
        Column::new("Port(s)", "string", "Ports, with node ports", Cell::Fn(|o, _| ports(o).into())),
        Column::AGE,
        Column::new("Selector", "string", "Which Pods", Cell::Fn(|o, _| selector(o).into())).wide(),
    ],
    name: Name::Label,
    default,
    prepare,
    validate: validate::service,
    validate_status: validate::status,
    allocate: Some(allocate),
    selectable_fields: &[
        ("spec.clusterIP", |o| tree::str(o, "/spec/clusterIP").to_owned()),
        ("spec.type", |o| tree::str(o, "/spec/type").to_owned()),
    ],
    create_on_update: true,
    delete_returns_object: true,
    ..Kind::EMPTY
};

fn kind_of(object: &Value) -> &str {
    tree::str(object, "/spec/type")
}

fn needs_cluster_ip(object: &Value) -> bool {
    kind_of(object) != "ExternalName"
}

fn needs_node_port(object: &Value) -> bool {
    match kind_of(object) {
        "NodePort" => true,
        "LoadBalancer" => tree::at(object, "/spec/allocateLoadBalancerNodePorts") != &Value::Bool(false),
        _ => false,
    }
}

fn needs_health_port(object: &Value) -> bool {
    kind_of(object) == "LoadBalancer" && tree::str(object, "/spec/externalTrafficPolicy") == "Local"
}

fn externally_accessible(object: &Value) -> bool {
    matches!(kind_of(object), "LoadBalancer" | "NodePort")
        || (kind_of(object) == "ClusterIP" && !tree::list(object, "/spec/externalIPs").is_empty())
}

fn headless(object: &Value) -> bool {
    tree::str(object, "/spec/clusterIPs/0") == "None" || tree::str(object, "/spec/clusterIP") == "None"
}

fn default(object: &mut Value) {
    wire::canonical(KIND.schema, object);
    let Some(spec) = object.get_mut("spec") else { return };
    tree::fill(spec, "sessionAffinity", "None");
    match tree::str(spec, "/sessionAffinity") {
        "None" => tree::remove(spec, "sessionAffinityConfig"),
        "ClientIP" if !tree::has(spec, "/sessionAffinityConfig/clientIP/timeoutSeconds") => {
            tree::set(
                spec,
                "sessionAffinityConfig",
                json!({"clientIP": {"timeoutSeconds": CLIENT_IP_TIMEOUT_SECONDS}}),
            );
        }
        _ => {}
    }
    tree::fill(spec, "type", "ClusterIP");
    for port in tree::list_mut(spec, "/ports") {
        tree::fill(port, "protocol", "TCP");
        let target = tree::get(port, "targetPort");
        if target.is_null() || target == &json!(0) || target == "" {
            let number = tree::get(port, "port").clone();
            tree::set(port, "targetPort", number);
        }
    }
    let kind = tree::str(spec, "/type").to_owned();
    if matches!(kind.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        tree::fill(spec, "internalTrafficPolicy", "Cluster");
    }
    let load_balancer = kind == "LoadBalancer";
    if load_balancer && tree::get(spec, "allocateLoadBalancerNodePorts").is_null() {
        tree::set(spec, "allocateLoadBalancerNodePorts", true);
    }
    if externally_accessible(object)
        && let Some(spec) = object.get_mut("spec")
    {
        tree::fill(spec, "externalTrafficPolicy", "Cluster");
    }
    if load_balancer {
        for ingress in tree::list_mut(object, "/status/loadBalancer/ingress") {
            if !tree::str(ingress, "/ip").is_empty() {
                tree::fill(ingress, "ipMode", "VIP");
            }
        }
    }
}

fn prepare(object: &mut Value, old: Option<&Value>) {
    match old {
        None => {
            tree::set(object, "status", json!({"loadBalancer": {}}));
            if let Some(spec) = object.get_mut("spec")
                && tree::list(spec, "/clusterIPs").is_empty()
                && let Some(ip) = spec.get("clusterIP").cloned()
            {
                tree::set(spec, "clusterIPs", vec![ip]);
            }
        }
        Some(old) => {
            normalise_cluster_ips(object, old);
            keep_allocated(object, old);
            kind::prepare_status_kept(object, Some(old));
            drop_dependent(object, old);
        }
    }
    if kind_of(object) == "ExternalName"
        && let Some(spec) = object.get_mut("spec")
    {
        tree::remove(spec, "internalTrafficPolicy");
    }
}

/// `clusterIP` and `clusterIPs` follow each other when a client wrote only one of them.
fn normalise_cluster_ips(object: &mut Value, old: &Value) {
    let old_ip = tree::str(old, "/spec/clusterIP").to_owned();
    let old_ips = tree::at(old, "/spec/clusterIPs").clone();
    let Some(spec) = object.get_mut("spec") else { return };
    let ip = tree::str(spec, "/clusterIP").to_owned();
    if !tree::list(&old_ips, "").is_empty() && tree::list(spec, "/clusterIPs").is_empty() && ip == old_ip {
        tree::set(spec, "clusterIPs", old_ips.clone());
    }
    if ip != old_ip && tree::same(tree::get(spec, "clusterIPs"), &old_ips) {
        if ip.is_empty() {
            tree::remove(spec, "clusterIPs");
        } else {
            tree::set(spec, "clusterIPs", vec![ip]);
        }
    }
}

/// What the server handed out stays when a client leaves it out.
fn keep_allocated(object: &mut Value, old: &Value) {
    let (addressed, ported, health) = (
        needs_cluster_ip(old) && needs_cluster_ip(object),
        needs_node_port(old) && needs_node_port(object),
        needs_health_port(old) && needs_health_port(object),
    );
    let Some(spec) = object.get_mut("spec") else { return };
    if addressed {
        for key in ["clusterIP", "clusterIPs", "ipFamilyPolicy", "ipFamilies"] {
            let kept = tree::get(tree::get(old, "spec"), key);
            if tree::get(spec, key).is_null() && !kept.is_null() {
                tree::set(spec, key, kept.clone());
            }
        }
    }
    if ported {
        let used: Vec<i64> = tree::list(spec, "/ports").iter().map(|p| tree::int(p, "/nodePort")).collect();
        let before: Vec<(String, i64)> = tree::list(old, "/spec/ports")
            .iter()
            .map(|p| (tree::str(p, "/name").to_owned(), tree::int(p, "/nodePort")))
            .collect();
        for port in tree::list_mut(spec, "/ports") {
            let known = before.iter().rev().find(|(name, _)| name == tree::str(port, "/name"));
            if let Some((_, number)) = known
                && tree::int(port, "/nodePort") == 0
                && *number != 0
                && !used.contains(number)
            {
                tree::set(port, "nodePort", *number);
            }
        }
    }
    if health && tree::int(spec, "/healthCheckNodePort") == 0 {
        tree::take_from(spec, tree::get(old, "spec"), "healthCheckNodePort");
    }
}

/// A change of type drops the fields that only the old type has, unless the client changed them too.
fn drop_dependent(object: &mut Value, old: &Value) {
    let lost = [
        (
            needs_cluster_ip(old) && !needs_cluster_ip(object),
            &["clusterIPs", "clusterIP", "ipFamilies", "ipFamilyPolicy"][..],
        ),
        (needs_health_port(old) && !needs_health_port(object), &["healthCheckNodePort"]),
        (
            kind_of(old) == "LoadBalancer" && kind_of(object) != "LoadBalancer",
            &["allocateLoadBalancerNodePorts", "loadBalancerClass"],
        ),
        (externally_accessible(old) && !externally_accessible(object), &["externalTrafficPolicy"]),
    ];
    let node_ports = matches!(kind_of(old), "NodePort" | "LoadBalancer")
        && !matches!(kind_of(object), "NodePort" | "LoadBalancer")
        && tree::list(old, "/spec/ports").len() == tree::list(object, "/spec/ports").len();
    let not_balanced = kind_of(object) != "LoadBalancer";
    let Some(spec) = object.get_mut("spec") else { return };
    for (_, keys) in lost.iter().filter(|(lost, _)| *lost) {
        for key in *keys {
            if tree::same(tree::get(spec, key), tree::get(tree::get(old, "spec"), key)) {
                tree::remove(spec, key);
            }
        }
    }
    if node_ports {
        let before: Vec<i64> =
            tree::list(old, "/spec/ports").iter().map(|p| tree::int(p, "/nodePort")).collect();
        for (port, number) in tree::list_mut(spec, "/ports").zip(before) {
            if tree::int(port, "/nodePort") == number {
                tree::remove(port, "nodePort");
            }
        }
    }
    if not_balanced && let Some(status) = object.get_mut("status") {
        tree::set(status, "loadBalancer", json!({}));
    }
}

fn allocate(object: &mut Value, old: Option<&Value>, allocator: &mut dyn Allocator) -> Result<(), Error> {
    if needs_cluster_ip(object) {
        families(object);
        address(object, old, allocator)?;
    }
    if needs_node_port(object) {
        node_ports(object, old, allocator)?;
    }
    if needs_health_port(object) && tree::int(object, "/spec/healthCheckNodePort") == 0 {
        let port = allocator
            .node_port(None, "TCP")
            .map_err(|e| failed("spec.healthCheckNodePort", 0.into(), "port", &e))?;
        if let Some(spec) = object.get_mut("spec") {
            tree::set(spec, "healthCheckNodePort", port);
        }
    }
    Ok(())
}

/// The cluster has IPv4 service addresses only; a headless Service without selector may name both families.
fn families(object: &mut Value) {
    let free = headless(object) && tree::entries(object, "/spec/selector").next().is_none();
    let Some(spec) = object.get_mut("spec") else { return };
    tree::fill(spec, "ipFamilyPolicy", if free { "RequireDualStack" } else { "SingleStack" });
    if tree::list(spec, "/ipFamilies").is_empty() {
        let both = free && tree::str(spec, "/ipFamilyPolicy") != "SingleStack";
        tree::set(spec, "ipFamilies", if both { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) });
    }
}

fn address(object: &mut Value, old: Option<&Value>, allocator: &mut dyn Allocator) -> Result<(), Error> {
    if headless(object) {
        return Ok(());
    }
    let requested = tree::str(object, "/spec/clusterIP").to_owned();
    let unchanged =
        old.is_some_and(|old| needs_cluster_ip(old) && tree::str(old, "/spec/clusterIP") == requested);
    if unchanged && !requested.is_empty() {
        return Ok(());
    }
    let shown = tree::at(object, "/spec/clusterIPs").clone();
    let ip = allocator.cluster_ip(requested.parse().ok()).map_err(|error| {
        let error = match error {
            AllocateError::OutOfRange { .. } => {
                "the provided network does not match the current range".to_owned()
            }
            error => error.to_string(),
        };
        let detail = if requested.is_empty() {
            format!("failed to allocate IP: {error}")
        } else {
            format!("failed to allocate IP {requested}: {error}")
        };
        Error::invalid("spec.clusterIPs", shown, detail)
    })?;
    if let Some(spec) = object.get_mut("spec") {
        tree::set(spec, "clusterIP", ip.to_string());
        tree::set(spec, "clusterIPs", vec![ip.to_string()]);
    }
    Ok(())
}

fn node_ports(object: &mut Value, old: Option<&Value>, allocator: &mut dyn Allocator) -> Result<(), Error> {
    let held: Vec<(i64, String)> = old
        .map(|old| tree::list(old, "/spec/ports"))
        .unwrap_or_default()
        .iter()
        .map(|p| (tree::int(p, "/nodePort"), tree::str(p, "/protocol").to_owned()))
        .collect();
    // One number serves several protocols of the same Service port.
    let mut given: Vec<(i64, u16)> = Vec::new();
    for (i, port) in tree::list_mut(object, "/spec/ports").enumerate() {
        let (wanted, protocol) = (tree::int(port, "/nodePort"), tree::str(port, "/protocol").to_owned());
        if wanted != 0 && held.iter().any(|(number, p)| *number == wanted && *p == protocol) {
            continue;
        }
        let path = format!("spec.ports[{i}].nodePort");
        let number = tree::int(port, "/port");
        let shared = given.iter().find(|(p, _)| *p == number).map(|(_, node_port)| *node_port);
        let requested = if wanted != 0 { u16::try_from(wanted).ok() } else { shared };
        let node_port = allocator
            .node_port(requested, &protocol)
            .map_err(|e| failed(&path, wanted.into(), "port", &e))?;
        given.push((number, node_port));
        tree::set(port, "nodePort", node_port);
    }
    Ok(())
}

fn failed(path: &str, value: Value, what: &str, error: &AllocateError) -> Error {
    match error {
        AllocateError::Full => Error::internal(path, format!("failed to allocate a {what}: {error}")),
        AllocateError::Taken(_) => Error::invalid(path, value, error.to_string()),
        AllocateError::OutOfRange { range, .. } => Error::invalid(
            path,
            value,
            format!("provided {what} is not in the valid range. The range of valid {what}s is {range}"),
        ),
    }
}

fn cluster_ip(object: &Value) -> &str {
    match tree::str(object, "/spec/clusterIPs/0") {
        "" => "<none>",
        ip => ip,
    }
}

fn external_ip(object: &Value) -> String {
    let own: Vec<&str> = tree::list(object, "/spec/externalIPs").iter().filter_map(Value::as_str).collect();
    match kind_of(object) {
        "ClusterIP" | "NodePort" if own.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => own.join(","),
        "LoadBalancer" => {
            let mut all: Vec<&str> = tree::list(object, "/status/loadBalancer/ingress")
                .iter()
                .map(|i| {
                    Some(tree::str(i, "/ip")).filter(|ip| !ip.is_empty()).unwrap_or(tree::str(i, "/hostname"))
                })
                .filter(|text| !text.is_empty())
                .collect();
            all.sort_unstable();
            all.dedup();
            all.extend(own);
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => tree::str(object, "/spec/externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(object: &Value) -> String {
    let ports: Vec<String> = tree::list(object, "/spec/ports")
        .iter()
        .map(|p| {
            let (port, protocol) = (tree::int(p, "/port"), tree::str(p, "/protocol"));
            match tree::int(p, "/nodePort") {
                0 => format!("{port}/{protocol}"),
                node_port => format!("{port}:{node_port}/{protocol}"),
            }
        })
        .collect();
    if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }
}

fn selector(object: &Value) -> String {
    let pairs: Vec<String> = tree::entries(object, "/spec/selector")
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}
