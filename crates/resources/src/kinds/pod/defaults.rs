//! What a Pod's author leaves out.

use serde_json::{Map, Value, json};

use crate::kinds::{tree, wire};
use crate::quantity::Quantity;

/// Fills a Pod.
pub fn pod(object: &mut Value) {
    wire::canonical(super::KIND.schema, object);
    let Some(body) = object.get_mut("spec") else { return };
    spec(body);
    for list in ["/containers", "/initContainers"] {
        tree::list_mut(body, list).for_each(requests_from_limits);
    }
    pod_requests(body);
    if tree::get(body, "enableServiceLinks").is_null() {
        tree::set(body, "enableServiceLinks", true);
    }
    if tree::bool(body, "/hostNetwork") {
        for list in ["/containers", "/initContainers"] {
            host_ports(body, list);
        }
    }
    // The first address stands in the list, too.
    if let Some(status) = object.get_mut("status") {
        for (one, all) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
            let ip = tree::get(status, one).clone();
            let first = tree::get(status, all).pointer("/0/ip").cloned().unwrap_or_default();
            match (ip.as_str().is_none_or(str::is_empty), first.is_null()) {
                (false, true) => tree::set(status, all, json!([{"ip": ip}])),
                (true, false) => tree::set(status, one, first),
                _ => {}
            }
        }
    }
}

/// Fills a Pod's spec, or a template's.
pub fn spec(spec: &mut Value) {
    tree::fill(spec, "dnsPolicy", "ClusterFirst");
    tree::fill(spec, "restartPolicy", "Always");
    tree::fill(spec, "securityContext", Value::Object(Map::new()));
    if tree::get(spec, "terminationGracePeriodSeconds").is_null() {
        tree::set(spec, "terminationGracePeriodSeconds", 30);
    }
    tree::fill(spec, "schedulerName", "default-scheduler");
    // The old name of the field follows the new one.
    let account = match tree::str(spec, "/serviceAccountName") {
        "" => tree::str(spec, "/serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !account.is_empty() {
        tree::set(spec, "serviceAccountName", account.clone());
        tree::set(spec, "serviceAccount", account);
    }
    tree::list_mut(spec, "/volumes").for_each(volume);
    for list in ["/containers", "/initContainers", "/ephemeralContainers"] {
        tree::list_mut(spec, list).for_each(container);
    }
}

fn container(container: &mut Value) {
    let latest = is_latest(tree::str(container, "/image"));
    tree::fill(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    tree::fill(container, "terminationMessagePath", "/dev/termination-log");
    tree::fill(container, "terminationMessagePolicy", "File");
    for port in tree::list_mut(container, "/ports") {
        tree::fill(port, "protocol", "TCP");
    }
    for variable in tree::list_mut(container, "/env") {
        if let Some(reference) = variable.pointer_mut("/valueFrom/fieldRef") {
            tree::fill(reference, "apiVersion", "v1");
        }
        if let Some(reference) = variable.pointer_mut("/valueFrom/resourceFieldRef") {
            tree::fill(reference, "divisor", "0");
        }
        if let Some(reference) = variable.pointer_mut("/valueFrom/fileKeyRef")
            && tree::get(reference, "optional").is_null()
        {
            tree::set(reference, "optional", false);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).filter(|p| p.is_object()) {
            defaults_of_probe(probe);
        }
    }
    for hook in ["/lifecycle/postStart/httpGet", "/lifecycle/preStop/httpGet"] {
        if let Some(action) = container.pointer_mut(hook) {
            http_get(action);
        }
    }
    for list in ["/resources/limits", "/resources/requests"] {
        if let Some(amounts) = container.pointer_mut(list).and_then(Value::as_object_mut) {
            amounts.values_mut().for_each(round_up_to_milli);
        }
    }
    if let Some(context) = container.get_mut("securityContext").filter(|c| c.is_object()) {
        // Nothing is filled in: an absent procMount is the default one.
        if tree::str(context, "/procMount").is_empty() {
            tree::remove(context, "procMount");
        }
    }
}

/// An image without tag and digest, or with the tag `latest`.
fn is_latest(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !digest,
    }
}

fn defaults_of_probe(probe: &mut Value) {
    for (key, default) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        tree::fill_number(probe, key, default);
    }
    if let Some(action) = probe.get_mut("httpGet").filter(|a| a.is_object()) {
        http_get(action);
    }
    if let Some(action) = probe.get_mut("grpc").filter(|a| a.is_object())
        && tree::get(action, "service").is_null()
    {
        tree::set(action, "service", "");
    }
}

fn http_get(action: &mut Value) {
    tree::fill(action, "path", "/");
    tree::fill(action, "scheme", "HTTP");
}

const MODE: i64 = 0o644;

fn volume(volume: &mut Value) {
    let sources = volume
        .as_object()
        .map_or(0, |map| map.iter().filter(|(key, v)| *key != "name" && !v.is_null()).count());
    if sources == 0 {
        tree::set(volume, "emptyDir", json!({}));
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(key).filter(|s| s.is_object())
            && tree::get(source, "defaultMode").is_null()
        {
            tree::set(source, "defaultMode", MODE);
        }
    }
    if let Some(path) = volume.get_mut("hostPath").filter(|p| p.is_object())
        && tree::get(path, "type").is_null()
    {
        tree::set(path, "type", "");
    }
    if let Some(image) = volume.get_mut("image").filter(|i| i.is_object()) {
        let latest = is_latest(tree::str(image, "/reference"));
        tree::fill(image, "pullPolicy", if latest { "Always" } else { "IfNotPresent" });
    }
    tree::list_mut(volume, "/downwardAPI/items").for_each(downward_item);
    for source in tree::list_mut(volume, "/projected/sources") {
        tree::list_mut(source, "/downwardAPI/items").for_each(downward_item);
        if let Some(token) = source.get_mut("serviceAccountToken").filter(|t| t.is_object())
            && tree::get(token, "expirationSeconds").is_null()
        {
            tree::set(token, "expirationSeconds", 3600);
        }
    }
}

fn downward_item(item: &mut Value) {
    if let Some(reference) = item.get_mut("fieldRef").filter(|r| r.is_object()) {
        tree::fill(reference, "apiVersion", "v1");
    }
    if let Some(reference) = item.get_mut("resourceFieldRef").filter(|r| r.is_object()) {
        tree::fill(reference, "divisor", "0");
    }
}

/// Amounts are kept to a thousandth.
fn round_up_to_milli(amount: &mut Value) {
    if let Some(parsed) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) {
        let rounded = Quantity::from_milli(parsed.milli());
        if rounded != parsed {
            *amount = Value::String(rounded.to_string());
        }
    }
}

/// In a Pod (not in a template) what is limited but not requested is requested in full.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else {
        return;
    };
    let Some(resources) = tree::child_mut(container, "resources") else { return };
    let Some(requests) = tree::object_mut(resources, "requests") else { return };
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

/// The same for the resources of the whole Pod, after what its containers request.
fn pod_requests(spec: &mut Value) {
    let Some(limits) = tree::at(spec, "/resources/limits").as_object().filter(|l| !l.is_empty()).cloned()
    else {
        return;
    };
    let mut sums: Map<String, Value> = Map::new();
    for container in tree::list(spec, "/containers") {
        for (name, amount) in tree::entries(container, "/resources/requests") {
            let more = amount.as_str().and_then(|a| a.parse::<Quantity>().ok());
            let before = sums.get(name).and_then(Value::as_str).and_then(|a| a.parse::<Quantity>().ok());
            if let Some(more) = more {
                let sum = before.map_or(more, |before| before.plus(&more));
                sums.insert(name.clone(), sum.to_string().into());
            }
        }
    }
    let Some(resources) = tree::child_mut(spec, "resources") else { return };
    let Some(requests) = tree::object_mut(resources, "requests") else { return };
    for (name, amount) in sums.into_iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory")) {
        requests.entry(name).or_insert(amount);
    }
    for (name, amount) in limits {
        requests.entry(name).or_insert(amount);
    }
}

/// On the host's network a container's port is the host's.
fn host_ports(spec: &mut Value, list: &str) {
    for container in tree::list_mut(spec, list) {
        for port in tree::list_mut(container, "/ports") {
            let number = tree::int(port, "/containerPort");
            tree::fill_number(port, "hostPort", number);
        }
    }
}
