//! What is wrong with a Service.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{externally_accessible, headless, kind_of, needs_health_port};
use crate::field::Error;
use crate::kinds::{names, tree};

const ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

pub fn service(object: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    if let Some(old) = old {
        unchanged(object, old, &mut errors);
    }
    type_rules(object, &mut errors);
    ports(object, &mut errors);
    for (key, value) in tree::entries(object, "/spec/selector") {
        names::qualified(&mut errors, "spec.selector", key);
        let value = value.as_str().unwrap_or_default();
        names::report(&mut errors, "spec.selector", value, names::label_value_problems(value));
    }
    affinity(object, &mut errors);
    if kind_of(object) != "ExternalName" {
        cluster_ips(object, &mut errors);
    }
    for (i, ip) in tree::list(object, "/spec/externalIPs").iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if text.parse::<IpAddr>().is_err() {
            errors.push(Error::invalid(format!("spec.externalIPs[{i}]"), text, ADDRESS));
        }
    }
    let kind = kind_of(object);
    names::one_of(&mut errors, "spec.type", kind, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    numbers(object, &mut errors);
    balancer_only(object, &mut errors);
    policies(object, &mut errors);
    errors
}

fn unchanged(object: &Value, old: &Value, errors: &mut Vec<Error>) {
    if kind_of(object) != "ExternalName" && kind_of(old) != "ExternalName" {
        let (ips, old_ips) = (tree::list(object, "/spec/clusterIPs"), tree::list(old, "/spec/clusterIPs"));
        let both_headless = headless(object) && headless(old);
        if !both_headless && ips.is_empty() && !old_ips.is_empty() {
            errors.push(Error::invalid(
                "spec.clusterIPs[0]",
                json!(ips),
                "primary clusterIP can not be unset",
            ));
        } else if !both_headless {
            for (i, ip) in old_ips.iter().enumerate().take(ips.len()) {
                if *ip != ips[i] {
                    errors.push(Error::invalid(
                        format!("spec.clusterIPs[{i}]"),
                        json!(ips),
                        "may not change once set",
                    ));
                }
            }
        }
        let (families, old_families) =
            (tree::list(object, "/spec/ipFamilies"), tree::list(old, "/spec/ipFamilies"));
        if !headless(object)
            && !headless(old)
            && !families.is_empty()
            && families.first() != old_families.first()
        {
            errors.push(Error::invalid("spec.ipFamilies[0]", json!(families), "may not change once set"));
        }
    }
    let class = tree::at(object, "/spec/loadBalancerClass");
    if kind_of(object) == "LoadBalancer"
        && kind_of(old) == "LoadBalancer"
        && class != tree::at(old, "/spec/loadBalancerClass")
    {
        errors.push(Error::invalid("spec.loadBalancerClass", class.clone(), "may not change once set"));
    }
    let port = tree::int(object, "/spec/healthCheckNodePort");
    if needs_health_port(object)
        && needs_health_port(old)
        && port != tree::int(old, "/spec/healthCheckNodePort")
    {
        errors.push(Error::forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
}

fn type_rules(object: &Value, errors: &mut Vec<Error>) {
    let kind = kind_of(object);
    if tree::list(object, "/spec/ports").is_empty() && !headless(object) && kind != "ExternalName" {
        errors.push(Error::required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if headless(object) => errors.push(Error::invalid(
            "spec.clusterIPs[0]",
            "None",
            format!("may not be set to 'None' for {kind} services"),
        )),
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if tree::has(tree::get(object, "spec"), &format!("/{key}")) {
                    errors.push(Error::forbidden(
                        format!("spec.{key}"),
                        "may not be set for ExternalName services",
                    ));
                }
            }
            let name = tree::str(object, "/spec/externalName");
            match name.strip_suffix('.').unwrap_or(name) {
                "" => errors.push(Error::required("spec.externalName", "")),
                name => names::subdomain(errors, "spec.externalName", name),
            }
        }
        _ => {}
    }
}

fn ports(object: &Value, errors: &mut Vec<Error>) {
    let ports = tree::list(object, "/spec/ports");
    let mut seen = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{i}]");
        let name = tree::str(port, "/name");
        if name.is_empty() {
            if ports.len() > 1 {
                errors.push(Error::required(format!("{path}.name"), ""));
            }
        } else {
            names::label_1123(errors, &format!("{path}.name"), name);
            if seen.contains(&name) {
                errors.push(Error::duplicate(format!("{path}.name"), name));
            }
            seen.push(name);
        }
        let number = tree::int(port, "/port");
        if let Some(problem) = names::port_number_problem(number) {
            errors.push(Error::invalid(format!("{path}.port"), number, problem));
        }
        let protocol = tree::str(port, "/protocol");
        names::one_of(errors, &format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        names::port_or_name(errors, &format!("{path}.targetPort"), tree::get(port, "targetPort"));
        if let Some(app) = tree::at(port, "/appProtocol").as_str() {
            names::qualified(errors, &format!("{path}.appProtocol"), app);
        }
    }
}

fn affinity(object: &Value, errors: &mut Vec<Error>) {
    let affinity = tree::str(object, "/spec/sessionAffinity");
    names::one_of(errors, "spec.sessionAffinity", affinity, &["ClientIP", "None"]);
    if affinity == "ClientIP" {
        let seconds = tree::int(object, "/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
        if !(1..=86_400).contains(&seconds) {
            errors.push(Error::invalid(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                seconds,
                "must be greater than 0 and less than 86400",
            ));
        }
    }
}

fn cluster_ips(object: &Value, errors: &mut Vec<Error>) {
    let (ip, ips) = (tree::str(object, "/spec/clusterIP"), tree::list(object, "/spec/clusterIPs"));
    match (ip, ips.first()) {
        ("", Some(_)) => errors.push(Error::invalid(
            "spec.clusterIPs",
            json!(ips),
            "must be empty when `clusterIP` is not specified",
        )),
        ("", None) => {}
        (_, None) => errors.push(Error::required("spec.clusterIPs", "")),
        (ip, Some(first)) if first != ip => {
            errors.push(Error::invalid("spec.clusterIPs", json!(ips), "first value must match `clusterIP`"));
        }
        _ => {}
    }
    let mut seen = Vec::new();
    for (i, family) in tree::list(object, "/spec/ipFamilies").iter().enumerate() {
        let path = format!("spec.ipFamilies[{i}]");
        names::one_of(errors, &path, family.as_str().unwrap_or_default(), &["IPv4", "IPv6"]);
        if seen.contains(&family) {
            errors.push(Error::duplicate(path.as_str(), family.clone()));
        }
        if !headless(object) && family == "IPv6" {
            errors.push(Error::invalid(path, family.clone(), "not configured on this cluster"));
        }
        seen.push(family);
    }
    if let Some(policy) = tree::at(object, "/spec/ipFamilyPolicy").as_str() {
        let supported = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        names::one_of(errors, "spec.ipFamilyPolicy", policy, &supported);
        if policy == "RequireDualStack" && !headless(object) {
            errors.push(Error::invalid(
                "spec.ipFamilyPolicy",
                policy,
                "this cluster is not configured for dual-stack services",
            ));
        }
    }
    for (i, ip) in ips.iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if i == 0 && text == "None" {
            if ips.len() > 1 {
                errors.push(Error::invalid(
                    "spec.clusterIPs",
                    json!(ips),
                    "'None' must be the first and only value",
                ));
            }
        } else if text.parse::<IpAddr>().is_err() {
            errors.push(Error::invalid(format!("spec.clusterIPs[{i}]"), text, ADDRESS));
        }
    }
    if ips.len() > 2 {
        errors.push(Error::invalid("spec.clusterIPs", json!(ips), "may only hold up to 2 values"));
    }
}

fn numbers(object: &Value, errors: &mut Vec<Error>) {
    let ports = tree::list(object, "/spec/ports");
    if kind_of(object) == "ClusterIP" {
        for (i, port) in ports.iter().enumerate() {
            if tree::int(port, "/nodePort") != 0 {
                let detail = "may not be used when `type` is 'ClusterIP'";
                errors.push(Error::forbidden(format!("spec.ports[{i}].nodePort"), detail));
            }
        }
    }
    let mut node_ports = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let key = (tree::str(port, "/protocol"), tree::int(port, "/nodePort"));
        if key.1 == 0 {
            continue;
        }
        if node_ports.contains(&key) {
            errors.push(Error::duplicate(format!("spec.ports[{i}].nodePort"), key.1));
        }
        node_ports.push(key);
    }
    let mut seen = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let key = (tree::str(port, "/protocol"), tree::int(port, "/port"));
        if seen.contains(&key) {
            let shown = json!({"port": key.1, "protocol": key.0, "targetPort": 0});
            errors.push(Error::duplicate(format!("spec.ports[{i}]"), shown));
        }
        seen.push(key);
    }
}

fn balancer_only(object: &Value, errors: &mut Vec<Error>) {
    if kind_of(object) == "LoadBalancer" {
        if let Some(class) = tree::at(object, "/spec/loadBalancerClass").as_str() {
            names::qualified(errors, "spec.loadBalancerClass", class);
        }
        return;
    }
    let detail = "may only be used when `type` is 'LoadBalancer'";
    if !tree::list(object, "/spec/loadBalancerSourceRanges").is_empty() {
        errors.push(Error::forbidden("spec.LoadBalancerSourceRanges", detail));
    }
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if tree::has(tree::get(object, "spec"), &format!("/{key}")) {
            errors.push(Error::forbidden(format!("spec.{key}"), detail));
        }
    }
}

fn policies(object: &Value, errors: &mut Vec<Error>) {
    let external = tree::str(object, "/spec/externalTrafficPolicy");
    if externally_accessible(object) {
        names::one_of(errors, "spec.externalTrafficPolicy", external, &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errors.push(Error::invalid(
            "spec.externalTrafficPolicy",
            external,
            "may only be set for externally-accessible services",
        ));
    }
    let port = tree::int(object, "/spec/healthCheckNodePort");
    if port != 0 && !needs_health_port(object) {
        errors.push(Error::invalid(
            "spec.healthCheckNodePort",
            port,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
    if let Some(internal) = tree::at(object, "/spec/internalTrafficPolicy").as_str() {
        names::one_of(errors, "spec.internalTrafficPolicy", internal, &["Cluster", "Local"]);
    }
    if let Some(distribution) = tree::at(object, "/spec/trafficDistribution").as_str() {
        let supported = ["PreferClose", "PreferSameZone", "PreferSameNode"];
        names::one_of(errors, "spec.trafficDistribution", distribution, &supported);
    }
}

pub fn status(new: &Value, _: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    let ingress = tree::list(new, "/status/loadBalancer/ingress");
    if kind_of(new) != "LoadBalancer" && !ingress.is_empty() {
        errors.push(Error::forbidden(
            "status.loadBalancer.ingress",
            "may only be used when `spec.type` is 'LoadBalancer'",
        ));
        return errors;
    }
    for (i, entry) in ingress.iter().enumerate() {
        let path = format!("status.loadBalancer.ingress[{i}]");
        let (ip, mode, host) =
            (tree::str(entry, "/ip"), tree::at(entry, "/ipMode"), tree::str(entry, "/hostname"));
        if !ip.is_empty() && ip.parse::<IpAddr>().is_err() {
            errors.push(Error::invalid(format!("{path}.ip"), ip, ADDRESS));
        }
        match mode.as_str() {
            None if !ip.is_empty() => {
                errors.push(Error::required(format!("{path}.ipMode"), "must be specified when `ip` is set"));
            }
            Some(_) if ip.is_empty() => {
                errors.push(Error::forbidden(
                    format!("{path}.ipMode"),
                    "may not be specified when `ip` is not set",
                ));
            }
            Some(mode) => names::one_of(&mut errors, &format!("{path}.ipMode"), mode, &["Proxy", "VIP"]),
            None => {}
        }
        if !host.is_empty() {
            names::subdomain(&mut errors, &format!("{path}.hostname"), host);
            if host.parse::<IpAddr>().is_ok() {
                let detail = "must be a DNS name, not an IP address";
                errors.push(Error::invalid(format!("{path}.hostname"), host, detail));
            }
        }
    }
    errors
}
