//! EndpointSlice: where the Pods of a Service can be reached.

use std::net::IpAddr;

use serde_json::Value;

use super::{names, tree, wire};
use crate::field::Error;
use crate::kind::{Cell, Column, Generation, Kind};

const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
/// So many entries are shown in a cell; the rest is counted.
const SHOWN_MAX: usize = 3;

pub static KIND: Kind = Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    columns: &[
        Column::NAME,
        Column::new("AddressType", "string", "IPv4, IPv6 or FQDN", Cell::Pointer("/addressType")),
        Column::new("Ports", "string", "Ports of every endpoint", Cell::Fn(|o, _| ports(o).into())),
        Column::new("Endpoints", "string", "Addresses", Cell::Fn(|o, _| endpoints(o).into())),
        Column::AGE,
    ],
    generation: Generation::SpecAndLabels,
    default,
    prepare: |object, _| {
        // An empty list is not told from a missing one where objects are kept.
        for key in ["endpoints", "ports"] {
            if tree::list(object, &format!("/{key}")).is_empty() {
                tree::set(object, key, Value::Null);
            }
        }
    },
    validate,
    reset_fields: &[],
    ..Kind::EMPTY
};

fn default(object: &mut Value) {
    wire::canonical(KIND.schema, object);
    for port in tree::list_mut(object, "/ports") {
        if tree::get(port, "name").is_null() {
            tree::set(port, "name", "");
        }
        if tree::get(port, "protocol").is_null() {
            tree::set(port, "protocol", "TCP");
        }
    }
}

fn ports(object: &Value) -> String {
    shorten(tree::list(object, "/ports").iter().map(|port| match tree::get(port, "port").as_i64() {
        Some(number) => number.to_string(),
        None => tree::get(port, "name").as_str().unwrap_or("*").to_owned(),
    }))
}

fn endpoints(object: &Value) -> String {
    shorten(
        tree::list(object, "/endpoints")
            .iter()
            .flat_map(|endpoint| tree::list(endpoint, "/addresses"))
            .map(|address| address.as_str().unwrap_or_default().to_owned()),
    )
}

fn shorten(items: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = items.collect();
    match all.len() {
        0 => "<unset>".to_owned(),
        n if n > SHOWN_MAX => format!("{} + {} more...", all[..SHOWN_MAX].join(","), n - SHOWN_MAX),
        _ => all.join(","),
    }
}

fn validate(object: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    let kind = tree::str(object, "/addressType");
    if kind.is_empty() {
        errors.push(Error::required("addressType", ""));
    } else {
        names::one_of(&mut errors, "addressType", kind, &["FQDN", "IPv4", "IPv6"]);
    }
    validate_ports(object, &mut errors);
    let unchanged =
        old.is_some_and(|old| tree::same(tree::get(object, "endpoints"), tree::get(old, "endpoints")));
    if !unchanged {
        validate_endpoints(object, kind, &mut errors);
    }
    if old.is_some_and(|old| tree::str(old, "/addressType") != kind) {
        errors.push(Error::immutable("addressType", kind));
    }
    errors
}

fn validate_ports(object: &Value, errors: &mut Vec<Error>) {
    let ports = tree::list(object, "/ports");
    if ports.len() > PORTS_MAX {
        errors.push(Error::too_many("ports", ports.len(), PORTS_MAX));
        return;
    }
    let mut seen = Vec::new();
    for (i, port) in ports.iter().enumerate() {
        let name = tree::str(port, "/name");
        if !name.is_empty() {
            names::label_1123(errors, &format!("ports[{i}].name"), name);
        }
        if seen.contains(&name) {
            errors.push(Error::duplicate(format!("ports[{i}].name"), name));
        }
        seen.push(name);
        let protocol = tree::str(port, "/protocol");
        names::one_of(errors, &format!("ports[{i}].protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        if let Some(app) = tree::at(port, "/appProtocol").as_str() {
            names::qualified(errors, &format!("ports[{i}].appProtocol"), app);
        }
    }
}

fn validate_endpoints(object: &Value, kind: &str, errors: &mut Vec<Error>) {
    let endpoints = tree::list(object, "/endpoints");
    if endpoints.len() > ENDPOINTS_MAX {
        errors.push(Error::too_many("endpoints", endpoints.len(), ENDPOINTS_MAX));
        return;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        let addresses = tree::list(endpoint, "/addresses");
        let path = format!("endpoints[{i}].addresses");
        if addresses.is_empty() {
            errors.push(Error::required(path.as_str(), "must contain at least 1 address"));
        } else if addresses.len() > ADDRESSES_MAX {
            errors.push(Error::too_many(path.as_str(), addresses.len(), ADDRESSES_MAX));
        }
        for (j, address) in addresses.iter().enumerate() {
            validate_address(&path, j, address.as_str().unwrap_or_default(), kind, errors);
        }
        if let Some(node) = tree::at(endpoint, "/nodeName").as_str() {
            names::subdomain(errors, &format!("endpoints[{i}].nodeName"), node);
        }
        if let Some(host) = tree::at(endpoint, "/hostname").as_str() {
            names::label_1123(errors, &format!("endpoints[{i}].hostname"), host);
        }
    }
}

fn validate_address(list: &str, index: usize, address: &str, kind: &str, errors: &mut Vec<Error>) {
    let path = format!("{list}[{index}]");
    if kind == "FQDN" {
        names::subdomain(errors, &path, address.trim_end_matches('.'));
        return;
    }
    let Ok(parsed) = address.parse::<IpAddr>() else {
        errors.push(Error::invalid(
            path,
            address,
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ));
        return;
    };
    if parsed.is_ipv4() != (kind == "IPv4") {
        errors.push(Error::invalid(list, address, format!("must be an {kind} address")));
    }
    for (wrong, what) in [
        (parsed.is_unspecified(), format!("may not be unspecified ({parsed})")),
        (parsed.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (link_local(parsed), "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (
            link_local_multicast(parsed),
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        ),
    ] {
        if wrong {
            errors.push(Error::invalid(path.as_str(), address, what));
        }
    }
}

fn link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

fn link_local_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    }
}
