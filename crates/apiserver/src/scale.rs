//! The scale subresource: a number of replicas, seen as autoscaling/v1 Scale.

use axum::body::Body;
use http::{Response, StatusCode};
use resources::apply;
use resources::field;
use resources::kind::{Kind, Scale};
use resources::schema;
use resources::selector::Labels;
use resources::status::{Status, Target};
use serde_json::{Value, json};

use crate::create::Written;
use crate::handle::Call;
use crate::negotiate::Accepted;
use crate::path::Place;
use crate::query::WriteOptions;
use crate::update::{self, Change};
use crate::{Api, decode, meta, object, patch, read, respond};

const DEFINITION: &str = "io.k8s.api.autoscaling.v1.Scale";

/// The Scale of an object.
fn of(object: &Value, paths: &Scale) -> Value {
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        let value = object::get(object, field);
        if !value.is_null() {
            metadata[field] = value.clone();
        }
    }
    let selector = object.pointer(paths.selector).unwrap_or(&Value::Null);
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {},
        "status": { "replicas": number(paths.status_replicas) },
    });
    let replicas = number(paths.spec_replicas);
    if replicas != 0 {
        scale["spec"]["replicas"] = replicas.into();
    }
    if let Ok(labels) = Labels::from_object(selector)
        && !selector.is_null()
    {
        scale["status"]["selector"] = labels.to_string().into();
    }
    scale
}

fn answer(accepted: Accepted, object: &Value, paths: &Scale) -> Response<Body> {
    respond::value(accepted, StatusCode::OK, &of(object, paths))
}

pub(crate) fn get(api: &Api, place: &Place, paths: &Scale, call: &Call) -> Result<Response<Body>, Status> {
    let entry = read::entry(api, place)?;
    Ok(answer(call.accepted, &object::decode(place.kind, &entry.value)?, paths))
}

pub(crate) async fn update(
    api: &Api,
    place: &Place,
    paths: &Scale,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let options = call.write_options("UpdateOptions")?;
    let sent = decode::plain(call.body_format()?, body, DEFINITION)?;
    check_type(&sent)?;
    meta::match_name(&sent, &place.name)?;
    let mut make = |_: &Value, _: &mut Vec<String>| Ok(sent.clone());
    write(api, place, paths, call, &options, &mut make).await
}

pub(crate) async fn patch(
    api: &Api,
    place: &Place,
    paths: &Scale,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let kind = patch::type_of(call)?;
    let options = patch::options(call, kind)?;
    let definition = schema::of(DEFINITION).ok_or_else(|| Status::internal("Scale has no schema"))?;
    let kind = match kind {
        patch::Type::Other(kind) => kind,
        patch::Type::Apply => {
            let config = patch::configuration(body, &options, &mut call.warnings)?;
            return apply(api, place, paths, call, &options, &config).await;
        }
    };
    let validation = patch::validation(&options);
    let mut make = |scale: &Value, warnings: &mut Vec<String>| {
        let (patched, said) = resources::patch::apply(kind, definition, scale, body, validation)?;
        warnings.extend(said);
        Ok(patched)
    };
    write(api, place, paths, call, &options, &mut make).await
}

/// Of a Scale only the replicas can be written: applying one is applying them to the object itself.
async fn apply(
    api: &Api,
    place: &Place,
    paths: &Scale,
    call: &mut Call,
    options: &WriteOptions,
    config: &Value,
) -> Result<Response<Body>, Status> {
    check_type(config)?;
    let replicas = config.pointer("/spec/replicas").and_then(Value::as_i64);
    let mut own = json!({
        "apiVersion": place.kind.api_version(),
        "kind": place.kind.kind,
        "metadata": { "name": place.name },
        "spec": {},
    });
    if let Some(replicas) = replicas {
        check_replicas(place, replicas)?;
        set(place.kind, &mut own, paths.spec_replicas, replicas)?;
    }
    let mut transform = |live: Option<&Value>, _: &mut Vec<String>| {
        let live = live.ok_or_else(|| Status::not_found(place.target()))?;
        let request = apply::Request {
            kind: place.kind,
            manager: &options.manager,
            subresource: "scale",
            now: api.now(),
        };
        let mut new = apply::apply(Some(live), &own, options.force, &request).map_err(conflict)?;
        (place.kind.default)(&mut new);
        forget_time(&mut new, &options.manager);
        Ok(new)
    };
    let change = Change { place, options, creates: false, uid_is_precondition: false };
    let (written, _) = update::run(api, &change, &mut call.warnings, &mut transform).await?;
    shown(place, paths, call.accepted, written)
}

/// Owners of the replicas are named in the version of the Scale.
fn conflict(error: apply::Error) -> Status {
    match error {
        apply::Error::Conflicts(mut conflicts) => {
            for conflict in &mut conflicts {
                "autoscaling/v1".clone_into(&mut conflict.owner.api_version);
            }
            apply::Error::Conflicts(conflicts).status()
        }
        error => error.status(),
    }
}

/// What is written through a Scale has no time, as with kube-apiserver.
fn forget_time(object: &mut Value, manager: &str) {
    let entries = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut);
    for entry in entries.into_iter().flatten().filter_map(Value::as_object_mut) {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("");
        if text("manager") == manager && text("subresource") == "scale" {
            entry.remove("time");
        }
    }
}

fn check_type(sent: &Value) -> Result<(), Status> {
    let text = |name: &str| sent.get(name).and_then(Value::as_str).unwrap_or("");
    if matches!(text("apiVersion"), "" | "autoscaling/v1") && matches!(text("kind"), "" | "Scale") {
        return Ok(());
    }
    Err(Status::bad_request(format!(
        "{} in version \"{}\" cannot be handled as a Scale: no kind \"{0}\" is registered",
        text("kind"),
        text("apiVersion")
    )))
}

/// Makes the new Scale of the present one.
type Make<'a> = &'a mut (dyn FnMut(&Value, &mut Vec<String>) -> Result<Value, Status> + Send);

async fn write(
    api: &Api,
    place: &Place,
    paths: &Scale,
    call: &mut Call,
    options: &WriteOptions,
    make: Make<'_>,
) -> Result<Response<Body>, Status> {
    let mut transform = |live: Option<&Value>, warnings: &mut Vec<String>| {
        let live = live.ok_or_else(|| Status::not_found(place.target()))?;
        let scale = make(&of(live, paths), warnings)?;
        let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        check_replicas(place, replicas)?;
        let mut new = live.clone();
        object::set(&mut new, "resourceVersion", object::get(&scale, "resourceVersion").clone());
        let uid = object::text(&scale, "uid");
        if !uid.is_empty() {
            object::set(&mut new, "uid", uid.into());
        }
        set(place.kind, &mut new, paths.spec_replicas, replicas)?;
        let request = apply::Request {
            kind: place.kind,
            manager: &options.manager,
            subresource: "scale",
            now: api.now(),
        };
        apply::update(Some(live), &mut new, false, &request).map_err(|error| error.status())?;
        forget_time(&mut new, &options.manager);
        Ok(new)
    };
    let change = Change { place, options, creates: false, uid_is_precondition: true };
    let (written, _) = update::run(api, &change, &mut call.warnings, &mut transform).await?;
    shown(place, paths, call.accepted, written)
}

fn check_replicas(place: &Place, replicas: i64) -> Result<(), Status> {
    if replicas >= 0 {
        return Ok(());
    }
    let error = field::Error::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
    let target = Target { group: "autoscaling", resource: "Scale", name: &place.name };
    Err(Status::invalid(target, &[error]))
}

/// The Scale of what was written.
fn shown(
    place: &Place,
    paths: &Scale,
    accepted: Accepted,
    written: Written,
) -> Result<Response<Body>, Status> {
    let object = match written {
        Written::Stored(entry) => object::decode(place.kind, &entry.value)?,
        Written::Dry(object) => object,
    };
    Ok(answer(accepted, &object, paths))
}

fn set(kind: &Kind, object: &mut Value, pointer: &str, replicas: i64) -> Result<(), Status> {
    let (parent, field) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let map = object.pointer_mut(parent).and_then(Value::as_object_mut);
    let map = map.ok_or_else(|| Status::internal(format!("{} has no {parent}", kind.kind)))?;
    map.insert(field.to_owned(), replicas.into());
    Ok(())
}
