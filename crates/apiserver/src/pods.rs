//! What stands below a Pod: binding, eviction, and the streams that kubelet's API serves.

use axum::body::Body;
use axum::extract::Request;
use http::{Response, StatusCode, Uri};
use resources::field;
use resources::kind::Subresource;
use resources::status::Status;
use serde_json::{Value, json};
use store::Expect;
use tower::ServiceExt;

use crate::handle::Call;
use crate::path::Place;
use crate::query::{DeleteOptions, Query};
use crate::{Api, create, decode, delete, object, read, respond};

const ATTEMPTS: usize = 64;

fn success(call: &Call) -> Response<Body> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    respond::value(call.accepted, StatusCode::CREATED, &status)
}

/// Gives a Pod its node.
pub(crate) async fn bind(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let options = call.write_options("CreateOptions")?;
    let binding = decode::plain(call.body_format()?, body, "io.k8s.api.core.v1.Binding")?;
    if object::name(&binding) != place.name {
        return Err(Status::bad_request("name in URL does not match name in Binding object"));
    }
    let target =
        |field: &str| binding.pointer(&format!("/target/{field}")).and_then(Value::as_str).unwrap_or("");
    let mut errors = Vec::new();
    if !matches!(target("kind"), "" | "Node") {
        errors.push(field::Error::not_supported("target.kind", target("kind"), &["Node", "<empty>"]));
    }
    if target("name").is_empty() {
        errors.push(field::Error::required("target.name", ""));
    }
    if !errors.is_empty() {
        return Err(Status::unknown(field::aggregate(&errors)));
    }
    let key = object::key(place.kind, &place.namespace, &place.name);
    for _ in 0..ATTEMPTS {
        let entry = read::entry(api, place)?;
        let mut pod = object::decode(place.kind, &entry.value)?;
        assign(&mut pod, &binding, target("name"), &object::time(api.now())).map_err(|why| {
            Status::conflict(resources::status::Target { resource: "pods/binding", ..place.target() }, &why)
        })?;
        if options.dry_run {
            return Ok(success(call));
        }
        let kind = place.kind;
        let expect = Expect::Revision(entry.revision);
        // What was admitted may run.
        match create::put(api, &key, expect, kind, pod, true).await {
            Ok(_) => return Ok(success(call)),
            Err(store::write::Error::Changed(_) | store::write::Error::Missing) => {}
            Err(error) => return Err(create::not_written(place.target(), &error)),
        }
    }
    Err(Status::modified(place.target()))
}

/// Why a Pod cannot be bound, or the bound Pod.
fn assign(pod: &mut Value, binding: &Value, node: &str, now: &str) -> Result<(), String> {
    let name = object::name(pod).to_owned();
    let uid = object::text(binding, "uid");
    if !uid.is_empty() && uid != object::text(pod, "uid") {
        return Err(format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::text(pod, "uid")
        ));
    }
    if object::is_deleting(pod) {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("");
    if !bound.is_empty() {
        return Err(format!("pod {name} is already assigned to node {}", field::quote(bound)));
    }
    if pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = node.into();
    for field in ["annotations", "labels"] {
        if let Some(more) = object::get(binding, field).as_object()
            && let Some(metadata) = object::metadata_mut(pod)
            && let Some(map) = metadata.entry(field).or_insert_with(|| json!({})).as_object_mut()
        {
            map.extend(more.clone());
        }
    }
    let Some(map) = pod.as_object_mut() else { return Ok(()) };
    let status = map.entry("status").or_insert_with(|| json!({}));
    let scheduled =
        json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now });
    match status.get_mut("conditions").and_then(Value::as_array_mut) {
        Some(conditions) => {
            conditions.retain(|condition| condition["type"] != "PodScheduled");
            conditions.push(scheduled);
        }
        None => status["conditions"] = json!([scheduled]),
    }
    Ok(())
}

/// Deletes a Pod on somebody's behalf. There are no disruption budgets to ask.
pub(crate) async fn evict(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let create = call.write_options("CreateOptions")?;
    let eviction = decode::plain(call.body_format()?, body, "io.k8s.api.policy.v1.Eviction")?;
    if object::name(&eviction) != place.name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options =
        DeleteOptions::parse(&call.query, Some(eviction.get("deleteOptions").unwrap_or(&json!({}))))?;
    options.dry_run |= create.dry_run;
    delete::run(api, place, &options).await?;
    Ok(success(call))
}

/// Forwards a stream to kubelet's API: logs, attach, exec. Upgrades pass with the request's extensions.
pub(crate) async fn stream(
    api: &Api,
    request: Request,
    place: &Place,
    subresource: &Subresource,
    query: &Query,
) -> Result<Response<Body>, Status> {
    if place.kind.plural != "pods" {
        return Err(Status::method_not_allowed());
    }
    let entry = read::entry(api, place)?;
    let pod = object::decode(place.kind, &entry.value)?;
    let scheduled =
        pod.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|node| !node.is_empty());
    if matches!(subresource, Subresource::PortForward) && scheduled {
        return forward(api, request, &format!("/portForward/{}/{}", place.namespace, place.name), &[]).await;
    }
    let pairs = match subresource {
        Subresource::Log => log_pairs(query)?,
        Subresource::Attach | Subresource::Exec => stream_pairs(query, subresource)?,
        _ => return Err(Status::unavailable(format!("{} is not served yet", subresource.name()))),
    };
    let container = container_of(&pod, query.get("container"))?;
    if !scheduled {
        return match subresource {
            Subresource::Log => Ok(respond::bytes(StatusCode::OK, "text/plain", Body::empty())),
            _ => Err(Status::bad_request(format!("pod {} does not have a host assigned", place.name))),
        };
    }
    let root = match subresource {
        Subresource::Log => "containerLogs",
        Subresource::Attach => "attach",
        _ => "exec",
    };
    let path = format!("/{root}/{}/{}/{container}", place.namespace, place.name);
    forward(api, request, &path, &pairs).await
}

async fn forward(
    api: &Api,
    mut request: Request,
    path: &str,
    pairs: &[(&'static str, String)],
) -> Result<Response<Body>, Status> {
    let kubelet =
        api.kubelet.get().ok_or_else(|| Status::unavailable("the node's agent is not there yet"))?;
    let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
    let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    *request.uri_mut() = uri.parse::<Uri>().map_err(|error| Status::bad_request(error.to_string()))?;
    match kubelet.clone().oneshot(request).await {
        Ok(response) => Ok(response),
        Err(never) => match never {},
    }
}

/// Percent-encodes everything that is not plain in a query.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

type Pairs = Vec<(&'static str, String)>;

fn log_pairs(query: &Query) -> Result<Pairs, Status> {
    let mut pairs = Pairs::new();
    let mut errors = Vec::new();
    for name in ["follow", "previous", "timestamps"] {
        if query.flag(name) == Some(true) {
            pairs.push((name, "true".into()));
        }
    }
    let smallest = [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)];
    for (name, least) in smallest {
        if let Some(number) = query.integer(name)? {
            if number < least {
                let detail = format!("must be greater than or equal to {least}");
                let detail = if least == 1 { "must be greater than 0".to_owned() } else { detail };
                errors.push(field::Error::invalid(name, number, detail));
            }
            pairs.push((name, number.to_string()));
        }
    }
    let since = query.get("sinceTime");
    if !since.is_empty() {
        if query.integer("sinceSeconds")?.is_some() {
            errors.push(field::Error::forbidden(
                "",
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        pairs.push(("sinceTime", since.to_owned()));
    }
    let stream = query.get("stream");
    if !stream.is_empty() {
        if !matches!(stream, "All" | "Stdout" | "Stderr") {
            errors.push(field::Error::not_supported("stream", stream, &["All", "Stderr", "Stdout"]));
        }
        pairs.push(("stream", stream.to_owned()));
    }
    if errors.is_empty() {
        return Ok(pairs);
    }
    let target = resources::status::Target { group: "", resource: "PodLogOptions", name: "" };
    Err(Status::invalid(target, &errors))
}

/// Kubelet's names for what the client asks of a stream.
fn stream_pairs(query: &Query, subresource: &Subresource) -> Result<Pairs, Status> {
    let mut pairs = Pairs::new();
    let flag = |name: &str, default: bool| query.flag(name).unwrap_or(default);
    let wanted =
        [("input", flag("stdin", false)), ("output", flag("stdout", true)), ("error", flag("stderr", true))];
    if wanted.iter().all(|(_, on)| !on) {
        return Err(Status::bad_request("at least one of stdin, stdout, stderr must be set"));
    }
    for (name, on) in wanted.into_iter().chain([("tty", flag("tty", false))]) {
        if on {
            pairs.push((name, "1".into()));
        }
    }
    if matches!(subresource, Subresource::Exec) {
        pairs.extend(query.all("command").map(|word| ("command", word.to_owned())));
        if !pairs.iter().any(|(name, _)| *name == "command") {
            return Err(Status::bad_request("you must specify at least 1 command for the container"));
        }
    }
    Ok(pairs)
}

/// The container that is meant: the named one, the annotated one, or the only one.
fn container_of(pod: &Value, asked: &str) -> Result<String, Status> {
    let names = |field: &str| -> Vec<String> {
        let list = pod.pointer(&format!("/spec/{field}")).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let (containers, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let name = object::name(pod);
    if !asked.is_empty() {
        let known = containers.iter().chain(&init).chain(&ephemeral).any(|name| name == asked);
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
        };
    }
    let annotated = object::get(pod, "annotations")["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(annotated) = annotated
        && containers.iter().any(|name| name == annotated)
    {
        return Ok(annotated.to_owned());
    }
    if let [only] = containers.as_slice() {
        return Ok(only.clone());
    }
    let mut text = format!(
        "a container name must be specified for pod {name}, choose one of: [{}]",
        containers.join(" ")
    );
    if !init.is_empty() {
        text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    Err(Status::bad_request(text))
}
