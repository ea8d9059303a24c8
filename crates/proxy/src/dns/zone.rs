//! Answers from the cluster's own zone (the Kubernetes DNS specification, 1.1.0). No I/O.
//!
//! A name that exists but has nothing of the type asked is NODATA: no error, no answer, the SOA. A name that does not
//! exist is NXDOMAIN. A name outside the zone is not ours to answer.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::model::{Kind, Model, Service};

const ZONE: &str = "cluster.local.";
const TTL_SECONDS: u32 = 5;
/// The most records in an answer.
const RECORDS_MAX: usize = 256;

/// What the zone says to a question.
#[derive(Debug)]
pub(crate) enum Answer {
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    NoSuchName,
    /// Not ours: ask the host's servers.
    Elsewhere,
}

impl Answer {
    fn of(answers: Vec<Record>) -> Self {
        Self::Records { answers, additionals: Vec::new() }
    }
}

/// Makes the response, or `None` if the question is for the host's servers.
pub(crate) fn respond(model: &Model, request: &Message) -> Option<Message> {
    let mut response = Message::new(request.metadata.id, MessageType::Response, OpCode::Query);
    response.metadata = Metadata::response_from_request(&request.metadata);
    response.metadata.recursion_available = true;
    response.edns.clone_from(&request.edns);
    response.queries.clone_from(&request.queries);
    let [question] = request.queries.as_slice() else {
        response.metadata.response_code = ResponseCode::FormErr;
        return Some(response);
    };
    if request.metadata.op_code != OpCode::Query {
        response.metadata.response_code = ResponseCode::NotImp;
        return Some(response);
    }
    let (answers, additionals) = match answer(model, question) {
        Answer::Elsewhere => return None,
        Answer::Records { answers, additionals } => (answers, additionals),
        Answer::NoSuchName => {
            response.metadata.response_code = ResponseCode::NXDomain;
            (Vec::new(), Vec::new())
        }
    };
    response.metadata.authoritative = true;
    if answers.is_empty() {
        response.authorities.extend(soa());
    }
    response.answers = answers;
    response.additionals = additionals;
    Some(response)
}

fn soa() -> Option<Record> {
    let zone = Name::from_ascii(ZONE).ok()?;
    let server = Name::from_ascii("ns.dns.cluster.local.").ok()?;
    let person = Name::from_ascii("hostmaster.cluster.local.").ok()?;
    let data = SOA::new(server, person, 1, 7200, 1800, 86400, TTL_SECONDS);
    Some(Record::from_rdata(zone, TTL_SECONDS, RData::SOA(data)))
}

/// The labels left of the zone, right to left: `svc`, namespace, name …; `None` outside of the zone.
fn labels(name: &Name) -> Option<Vec<String>> {
    let text = name.to_lowercase().to_ascii();
    let mut labels: Vec<String> = text.trim_end_matches('.').split('.').rev().map(str::to_owned).collect();
    if labels.len() < 2 || labels[0] != "local" || labels[1] != "cluster" {
        return None;
    }
    labels.drain(..2);
    Some(labels)
}

pub(crate) fn answer(model: &Model, question: &Query) -> Answer {
    let Some(labels) = labels(question.name()) else { return Answer::Elsewhere };
    if !matches!(question.query_class(), DNSClass::IN | DNSClass::ANY) {
        return Answer::of(Vec::new());
    }
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let (name, kind) = (question.name(), question.query_type());
    match labels.as_slice() {
        // The zone itself, and the names between it and a Service, exist and have nothing.
        [] | ["svc" | "pod" | "dns"] => match kind {
            RecordType::SOA if labels.is_empty() => Answer::of(soa().into_iter().collect()),
            _ => Answer::of(Vec::new()),
        },
        ["svc", namespace] if has_namespace(model, namespace) => Answer::of(Vec::new()),
        ["svc", namespace, service, rest @ ..] => {
            match model.services.get(&format!("{namespace}/{service}")) {
                Some(service) => of_service(model, service, rest, name, kind),
                None => Answer::NoSuchName,
            }
        }
        ["pod", namespace, ip] if has_namespace(model, namespace) => match ip.replace('-', ".").parse() {
            Ok(ip) => Answer::of(addresses(name, kind, &[ip])),
            Err(_) => Answer::NoSuchName,
        },
        _ => Answer::NoSuchName,
    }
}

fn has_namespace(model: &Model, namespace: &str) -> bool {
    let prefix = format!("{namespace}/");
    model.services.range(prefix.clone()..).next().is_some_and(|(key, _)| key.starts_with(&prefix))
}

fn addresses(name: &Name, kind: RecordType, ips: &[Ipv4Addr]) -> Vec<Record> {
    if !matches!(kind, RecordType::A | RecordType::ANY) {
        return Vec::new();
    }
    ips.iter()
        .take(RECORDS_MAX)
        .map(|ip| Record::from_rdata(name.clone(), TTL_SECONDS, RData::A(A(*ip))))
        .collect()
}

/// An endpoint of a headless Service: its first label, its address.
struct Named {
    label: String,
    ip: Ipv4Addr,
}

fn endpoints(model: &Model, service: &Service) -> Vec<Named> {
    let mut found: Vec<Named> = model
        .slices_of(&service.key())
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.ready || service.publish_not_ready)
        .map(|endpoint| {
            let by_ip = || endpoint.address.to_string().replace('.', "-");
            Named { label: endpoint.hostname.clone().unwrap_or_else(by_ip), ip: endpoint.address }
        })
        .collect();
    found.sort_by_key(|named| named.ip);
    found.dedup_by_key(|named| named.ip);
    found
}

fn of_service(model: &Model, service: &Service, rest: &[&str], name: &Name, kind: RecordType) -> Answer {
    if service.kind == Kind::ExternalName {
        let target =
            service.external_name.as_ref().and_then(|name| Name::from_ascii(format!("{name}.")).ok());
        return match (rest, target) {
            ([], Some(target)) => {
                let data = RData::CNAME(CNAME(target));
                Answer::of(vec![Record::from_rdata(name.clone(), TTL_SECONDS, data)])
            }
            _ => Answer::NoSuchName,
        };
    }
    let endpoints = if service.cluster_ip.is_none() { endpoints(model, service) } else { Vec::new() };
    match rest {
        [] => {
            let ips: Vec<Ipv4Addr> = match service.cluster_ip {
                Some(ip) => vec![ip],
                None => endpoints.iter().map(|named| named.ip).collect(),
            };
            Answer::of(addresses(name, kind, &ips))
        }
        [protocol] if protocol.starts_with('_') => {
            let exists = service.ports.iter().any(|port| is(protocol, port.protocol.name()));
            if exists { Answer::of(Vec::new()) } else { Answer::NoSuchName }
        }
        [protocol, port] if port.starts_with('_') => {
            service_record(model, service, port, protocol, name, kind)
        }
        [label] => {
            let ips: Vec<Ipv4Addr> =
                endpoints.iter().filter(|named| named.label == *label).map(|named| named.ip).collect();
            if ips.is_empty() { Answer::NoSuchName } else { Answer::of(addresses(name, kind, &ips)) }
        }
        _ => Answer::NoSuchName,
    }
}

fn is(label: &str, name: &str) -> bool {
    label.strip_prefix('_').is_some_and(|label| label.eq_ignore_ascii_case(name))
}

/// `_port._protocol.service…`: the number of a named port, and where it is.
fn service_record(
    model: &Model,
    service: &Service,
    port: &str,
    protocol: &str,
    name: &Name,
    kind: RecordType,
) -> Answer {
    let found = service
        .ports
        .iter()
        .find(|other| !other.name.is_empty() && is(port, &other.name) && is(protocol, other.protocol.name()));
    let Some(found) = found else { return Answer::NoSuchName };
    if !matches!(kind, RecordType::SRV | RecordType::ANY) {
        return Answer::of(Vec::new());
    }
    let base = format!("{}.{}.svc.{ZONE}", service.name, service.namespace);
    let targets: Vec<(String, u16, Ipv4Addr)> = match service.cluster_ip {
        Some(ip) => vec![(base, found.port, ip)],
        None => model
            .slices_of(&service.key())
            .flat_map(|slice| {
                let number = slice.ports.iter().find(|other| other.name == found.name).map_or(0, |p| p.port);
                slice.endpoints.iter().filter(|e| e.ready || service.publish_not_ready).map(move |endpoint| {
                    let by_ip = || endpoint.address.to_string().replace('.', "-");
                    (endpoint.hostname.clone().unwrap_or_else(by_ip), number, endpoint.address)
                })
            })
            .map(|(label, number, ip)| (format!("{label}.{base}"), number, ip))
            .collect(),
    };
    let (mut answers, mut additionals) = (Vec::new(), Vec::new());
    for (target, number, ip) in targets.into_iter().take(RECORDS_MAX) {
        let Ok(target) = Name::from_ascii(target) else { continue };
        let data = RData::SRV(SRV::new(0, 100, number, target.clone()));
        answers.push(Record::from_rdata(name.clone(), TTL_SECONDS, data));
        additionals.push(Record::from_rdata(target, TTL_SECONDS, RData::A(A(ip))));
    }
    Answer::Records { answers, additionals }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Slice;
    use crate::model::tests::{object, service};
    use serde_json::json;

    fn model() -> Model {
        let mut model = Model::default();
        for value in [
            json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"clusterIP": "10.96.0.5",
                "ports": [{"name": "http", "port": 80}]}}),
            json!({"metadata": {"namespace": "default", "name": "db"}, "spec": {"clusterIP": "None",
                "ports": [{"name": "sql", "port": 5432}]}}),
            json!({"metadata": {"namespace": "default", "name": "out"},
                "spec": {"type": "ExternalName", "externalName": "example.com"}}),
        ] {
            let service = service(value);
            model.services.insert(service.key(), service);
        }
        let slice = json!({
            "metadata": {"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5433}],
            "endpoints": [{"addresses": ["10.244.0.5"], "hostname": "db-0"}, {"addresses": ["10.244.0.6"]},
                {"addresses": ["10.244.0.7"], "conditions": {"ready": false}}],
        });
        model.set_slice("default/db-1".into(), Slice::parse(&object(slice)));
        model
    }

    /// `NXDOMAIN`, `ELSEWHERE`, `NODATA`, or the records' data.
    fn ask(name: &str, kind: RecordType) -> String {
        let question = Query::query(Name::from_ascii(name).unwrap(), kind);
        match answer(&model(), &question) {
            Answer::Elsewhere => "ELSEWHERE".into(),
            Answer::NoSuchName => "NXDOMAIN".into(),
            Answer::Records { answers, .. } if answers.is_empty() => "NODATA".into(),
            Answer::Records { answers, .. } => {
                let data: Vec<String> = answers.iter().map(|record| record.data.to_string()).collect();
                data.join(" | ")
            }
        }
    }

    #[test]
    fn names_are_answered_as_the_specification_says() {
        let cases = [
            ("web.default.svc.cluster.local.", RecordType::A, "10.96.0.5"),
            ("WEB.Default.svc.cluster.LOCAL.", RecordType::A, "10.96.0.5"),
            ("web.default.svc.cluster.local.", RecordType::AAAA, "NODATA"),
            ("web.other.svc.cluster.local.", RecordType::A, "NXDOMAIN"),
            ("none.default.svc.cluster.local.", RecordType::AAAA, "NXDOMAIN"),
            ("x.web.default.svc.cluster.local.", RecordType::A, "NXDOMAIN"),
            ("default.svc.cluster.local.", RecordType::A, "NODATA"),
            ("svc.cluster.local.", RecordType::A, "NODATA"),
            ("cluster.local.", RecordType::A, "NODATA"),
            ("example.com.cluster.local.", RecordType::A, "NXDOMAIN"),
            ("db.default.svc.cluster.local.", RecordType::A, "10.244.0.5 | 10.244.0.6"),
            ("db-0.db.default.svc.cluster.local.", RecordType::A, "10.244.0.5"),
            ("10-244-0-6.db.default.svc.cluster.local.", RecordType::A, "10.244.0.6"),
            ("10-244-0-7.db.default.svc.cluster.local.", RecordType::A, "NXDOMAIN"),
            ("out.default.svc.cluster.local.", RecordType::A, "example.com."),
            (
                "_http._tcp.web.default.svc.cluster.local.",
                RecordType::SRV,
                "0 100 80 web.default.svc.cluster.local.",
            ),
            ("_http._tcp.web.default.svc.cluster.local.", RecordType::A, "NODATA"),
            ("_http._udp.web.default.svc.cluster.local.", RecordType::SRV, "NXDOMAIN"),
            ("_tcp.web.default.svc.cluster.local.", RecordType::SRV, "NODATA"),
            (
                "_sql._tcp.db.default.svc.cluster.local.",
                RecordType::SRV,
                "0 100 5433 db-0.db.default.svc.cluster.local. | \
              0 100 5433 10-244-0-6.db.default.svc.cluster.local.",
            ),
            ("1-2-3-4.default.pod.cluster.local.", RecordType::A, "1.2.3.4"),
            ("example.com.", RecordType::A, "ELSEWHERE"),
            ("local.", RecordType::A, "ELSEWHERE"),
            (".", RecordType::NS, "ELSEWHERE"),
        ];
        for (name, kind, expected) in cases {
            assert_eq!(ask(name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn a_name_that_is_not_there_comes_with_the_zone_s_soa() {
        let mut request = Message::new(7, MessageType::Query, OpCode::Query);
        let name = Name::from_ascii("none.default.svc.cluster.local.").unwrap();
        request.add_query(Query::query(name, RecordType::A));
        let response = respond(&model(), &request).unwrap();
        assert_eq!((response.metadata.id, response.metadata.response_code), (7, ResponseCode::NXDomain));
        assert!(response.metadata.authoritative && response.authorities.len() == 1);
        let bytes = response.to_vec().unwrap();
        assert_eq!(Message::from_vec(&bytes).unwrap().queries, request.queries);
        let empty = Message::new(7, MessageType::Query, OpCode::Query);
        assert_eq!(respond(&model(), &empty).unwrap().metadata.response_code, ResponseCode::FormErr);
    }
}
