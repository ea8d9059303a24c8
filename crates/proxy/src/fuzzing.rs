//! What reads bytes of clients and backends, for the fuzzer.

use std::sync::LazyLock;

use hickory_proto::op::Message;
use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::dns::respond;
use crate::http1::body::{Body, Framing};
use crate::http1::head;
use crate::model::{Model, Service, Slice};

/// A request and a response with what follows them: forwarded, they are read as what they were.
pub fn http1(input: &[u8]) {
    let Some(end) = head::end(input, 0) else {
        let _ = (head::hopeless(input), head::hopeless_request(input));
        return;
    };
    let (head, rest) = input.split_at(end);
    let mut fields = Vec::new();
    if let Ok(request) = head::request(head, &mut fields) {
        let mut out = Vec::new();
        let client = head::Client { address: "192.0.2.1", trusted: input.len().is_multiple_of(2) };
        head::forward_request(head, &request, &fields, client, &mut out);
        assert_eq!(head::end(&out, 0), Some(out.len()), "one head, and nothing behind it");
        let mut again = Vec::new();
        // Two fields more than were allowed may be one too many.
        if let Ok(read) = head::request(&out, &mut again) {
            assert_eq!(read.framing, request.framing, "the backend sees another body");
        } else {
            assert!(fields.len() + 3 > head::FIELDS_MAX || out.len() > head::HEAD_BYTES_MAX, "it is refused");
        }
        follow(request.framing, rest);
    }
    fields.clear();
    if let Ok(response) = head::response(head, input.len().is_multiple_of(3), &mut fields) {
        let mut out = Vec::new();
        head::forward_response(head, &response, &fields, true, &mut out);
        assert_eq!(head::end(&out, 0), Some(out.len()), "one head, and nothing behind it");
        follow(response.framing, rest);
    }
}

/// A body ends at the same place in however many pieces it comes.
fn follow(framing: Framing, bytes: &[u8]) {
    let mut whole = Body::new(framing);
    let at_once = whole.advance(bytes);
    let (mut pieces, mut taken) = (Body::new(framing), 0);
    let mut broken = false;
    for byte in bytes.chunks(1) {
        match pieces.advance(byte) {
            Ok(count) => taken += count,
            Err(_) => {
                broken = true;
                break;
            }
        }
    }
    match at_once {
        Ok(count) => assert!(!broken && count == taken && whole == pieces, "pieces are read otherwise"),
        Err(_) => assert!(broken, "in pieces it is whole"),
    }
}

/// One Service of each kind that names are answered for.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let object = |value: Value| serde_json::from_value::<DynamicObject>(value).ok();
    let mut model = Model::default();
    for (name, spec) in [
        ("web", json!({"clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80}]})),
        ("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        ("out", json!({"type": "ExternalName", "externalName": "example.com"})),
    ] {
        let value = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        if let Some(service) = object(value).map(|object| Service::parse(&object)) {
            model.services.insert(service.key(), service);
        }
    }
    let endpoint =
        |number: u8| json!({"addresses": [format!("10.244.0.{number}")], "hostname": format!("db-{number}")});
    let slice = json!({
        "metadata": {"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5433}],
        "endpoints": (1..60).map(endpoint).collect::<Vec<_>>(),
    });
    model.set_slice("default/db-1".into(), object(slice).and_then(|object| Slice::parse(&object)));
    model
});

/// A question, as a Pod asks it.
pub fn dns(input: &[u8]) {
    let Ok(request) = Message::from_vec(input) else { return };
    if let Some(response) = respond(&MODEL, &request) {
        let bytes = response.to_vec();
        assert!(
            bytes.is_err() || Message::from_vec(&bytes.unwrap_or_default()).is_ok(),
            "an answer nobody reads"
        );
    }
}
