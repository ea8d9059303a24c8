//! PUT, and what every change of a stored object shares: compare-and-swap with the checks of an update.

use axum::body::Body;
use http::{Response, StatusCode};
use resources::apply;
use resources::field;
use resources::kind::{Deletion, Generation, Kind, Subresource};
use resources::status::Status;
use serde_json::Value;
use store::{Entry, Expect};

use crate::create::{self, Written};
use crate::handle::Call;
use crate::path::Place;
use crate::query::WriteOptions;
use crate::{Api, allocate, decode, meta, object};

/// Times that a change is tried anew because the object changed meanwhile.
const ATTEMPTS: usize = 64;

/// How a change is made.
pub(crate) struct Change<'a> {
    pub place: &'a Place,
    pub options: &'a WriteOptions,
    /// A missing object is created.
    pub creates: bool,
    /// The object names the uid that it means.
    pub uid_is_precondition: bool,
}

/// Makes the new object of the stored one (none when it is to be created), managers included.
pub(crate) type Transform<'a> =
    &'a mut (dyn FnMut(Option<&Value>, &mut Vec<String>) -> Result<Value, Status> + Send);

pub(crate) async fn update(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let options = call.write_options("UpdateOptions")?;
    let format = call.body_format()?;
    let mut sent = decode::object(place.kind, format, body, options.validation, &mut call.warnings)?;
    let reset = apply::is_reset(&sent);
    (place.kind.default)(&mut sent);
    meta::match_namespace(place.kind, &mut sent, &place.namespace)?;
    meta::match_name(&sent, &place.name)?;
    meta::dedup_owners(&mut sent, &mut call.warnings, false);
    // What is written through `/finalize` is owned as if it came through the object itself.
    let subresource = match place.subresource {
        Some(Subresource::Finalize) => "",
        _ => place.subresource_name(),
    };
    let mut transform = |live: Option<&Value>, _: &mut Vec<String>| {
        let mut new = sent.clone();
        let request =
            apply::Request { kind: place.kind, manager: &options.manager, subresource, now: api.now() };
        if live.is_none() {
            create::wipe(&mut new);
        }
        apply::update(live, &mut new, reset, &request).map_err(|error| error.status())?;
        Ok(new)
    };
    let change = Change {
        place,
        options: &options,
        creates: place.kind.create_on_update && place.subresource.is_none(),
        uid_is_precondition: true,
    };
    let (written, created) = run(api, &change, &mut call.warnings, &mut transform).await?;
    let code = if created { StatusCode::CREATED } else { StatusCode::OK };
    written.respond(call.accepted, code, place.kind, api.now())
}

/// Changes an object, or creates it; answers whether it was created.
pub(crate) async fn run(
    api: &Api,
    change: &Change<'_>,
    warnings: &mut Vec<String>,
    transform: Transform<'_>,
) -> Result<(Written, bool), Status> {
    let place = change.place;
    let key = object::key(place.kind, &place.namespace, &place.name);
    for _ in 0..ATTEMPTS {
        let mut said = Vec::new();
        let Some(entry) = api.store.get(&key) else {
            if !change.creates {
                return Err(Status::not_found(place.target()));
            }
            let new = transform(None, &mut said)?;
            match create::store_new(api, place, new, change.options, &mut said).await {
                // Somebody was faster: it is an update now.
                Err(status) if status.code == 409 && api.store.get(&key).is_some() => continue,
                written => {
                    warnings.append(&mut said);
                    return written.map(|written| (written, true));
                }
            }
        };
        if let Some(written) = attempt(api, change, &key, &entry, &mut said, transform).await? {
            warnings.append(&mut said);
            return Ok((written, false));
        }
    }
    Err(Status::modified(place.target()))
}

/// One try; none when the object changed meanwhile.
async fn attempt(
    api: &Api,
    change: &Change<'_>,
    key: &str,
    entry: &Entry,
    warnings: &mut Vec<String>,
    transform: Transform<'_>,
) -> Result<Option<Written>, Status> {
    let place = change.place;
    let kind = place.kind;
    let old = object::decode(kind, &entry.value)?;
    let mut new = transform(Some(&old), warnings)?;
    if change.uid_is_precondition {
        check_uid(place, &new, &old)?;
    }
    check_version(place, &mut new, &old)?;
    keep_generation(&mut new, &old);
    let status = !matches!(place.subresource, None | Some(Subresource::Scale(_) | Subresource::Finalize));
    if matches!(place.subresource, Some(Subresource::Finalize)) {
        // Here alone `spec.finalizers` can be taken away; the status stays.
        if let Some(kept) = old.get("status") {
            new["status"] = kept.clone();
        }
    } else if status {
        (kind.prepare_status)(&mut new, &old);
    } else {
        (kind.prepare)(&mut new, Some(&old));
    }
    keep_system_fields(&mut new, &old);
    raise_generation(kind, &mut new, &old, status);
    let mut errors = meta::validate(kind, &new);
    errors.extend(meta::validate_update(&new, &old));
    errors.extend(if status {
        (kind.validate_status)(&new, &old)
    } else {
        (kind.validate)(&new, Some(&old))
    });
    dedup(&mut errors);
    create::refuse_invalid(kind, &place.name, &errors)?;
    let allocating =
        if status { None } else { Some(allocate::run(api, kind, key, &mut new, Some(&old)).await?) };
    if !status {
        warnings.extend((kind.warnings)(&new, Some(&old)));
    }
    apply::keep_times(&old, &mut new);
    if is_end(kind, &new, &old) {
        return end(api, change, key, entry, new).await;
    }
    if new == old {
        return Ok(Some(Written::Stored(entry.clone())));
    }
    if change.options.dry_run {
        return Ok(Some(Written::Dry(new)));
    }
    let expect = Expect::Revision(entry.revision);
    // What reports, holds or ends something is written beyond the quota: else nothing could become less.
    let beyond_quota = status || kind.beyond_quota || object::is_deleting(&old);
    let stored = create::put(api, key, expect, kind, new, beyond_quota).await;
    drop(allocating);
    match stored {
        Ok(entry) => Ok(Some(Written::Stored(entry))),
        Err(store::write::Error::Changed(_) | store::write::Error::Missing) => Ok(None),
        Err(error) => Err(create::not_written(place.target(), &error)),
    }
}

/// The last finalizer went: so does the object.
async fn end(
    api: &Api,
    change: &Change<'_>,
    key: &str,
    entry: &Entry,
    last: Value,
) -> Result<Option<Written>, Status> {
    if change.options.dry_run {
        return Ok(Some(Written::Dry(last)));
    }
    let kind = change.place.kind;
    let answer = last.clone();
    let encode = move |revision| object::encode(kind, last, revision);
    match api.store.delete(key, Expect::Revision(entry.revision), encode).await {
        Ok(_) => Ok(Some(Written::Dry(answer))),
        Err(store::write::Error::Changed(_) | store::write::Error::Missing) => Ok(None),
        Err(error) => Err(create::not_written(change.place.target(), &error)),
    }
}

/// Whether an update takes away what kept a deleted object.
fn is_end(kind: &Kind, new: &Value, old: &Value) -> bool {
    let grace = object::get(old, "deletionGracePeriodSeconds").as_i64().unwrap_or(0);
    let kept_by_spec = matches!(kind.deletion, Deletion::SpecFinalizers)
        && new.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    object::is_deleting(old) && grace == 0 && object::finalizers(new).is_empty() && !kept_by_spec
}

fn check_uid(place: &Place, new: &Value, old: &Value) -> Result<(), Status> {
    let (given, stored) = (object::text(new, "uid"), object::text(old, "uid"));
    if given.is_empty() || given == stored {
        return Ok(());
    }
    let path = match place.kind.plural {
        "services" => "services/specs",
        "nodes" => "minions",
        plural => plural,
    };
    let namespace = if place.namespace.is_empty() { String::new() } else { format!("/{}", place.namespace) };
    Err(Status::conflict(
        place.target(),
        &format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{path}{namespace}/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {given}, UID in object meta: {stored}",
            place.name
        ),
    ))
}

/// The version that the writer has seen must be the stored one; none means whichever is stored, where the
/// kind allows that.
fn check_version(place: &Place, new: &mut Value, old: &Value) -> Result<(), Status> {
    let stored = object::resource_version(old).to_owned();
    let given = object::resource_version(new);
    match given {
        "" | "0" if place.kind.unconditional_update => {
            object::set(new, "resourceVersion", stored.into());
            Ok(())
        }
        "" | "0" => {
            let detail = "must be specified for an update";
            let error = field::Error::invalid("metadata.resourceVersion", 0, detail);
            Err(Status::invalid(place.target(), &[error]))
        }
        given if given == stored => Ok(()),
        given if given.parse::<u64>().is_err() => Err(Status::bad_request(format!(
            "resourceVersion: Invalid value: {0}: strconv.ParseUint: parsing {0}: invalid syntax",
            field::quote(given)
        ))),
        _ => Err(Status::modified(place.target())),
    }
}

fn keep_generation(new: &mut Value, old: &Value) {
    match object::get(old, "generation") {
        Value::Null => object::unset(new, "generation"),
        generation => object::set(new, "generation", generation.clone()),
    }
}

/// What no update changes.
fn keep_system_fields(new: &mut Value, old: &Value) {
    if object::text(new, "uid").is_empty() {
        object::set(new, "uid", object::get(old, "uid").clone());
    }
    for field in ["creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        let stored = object::get(old, field);
        if !stored.is_null() {
            object::set(new, field, stored.clone());
        }
    }
}

/// The generation grows with the desired state; through a subresource no metadata counts.
fn raise_generation(kind: &Kind, new: &mut Value, old: &Value, subresource: bool) {
    let counted = match kind.generation {
        Generation::None => return,
        Generation::SpecAndAnnotations if !subresource => Some("annotations"),
        Generation::SpecAndLabels if !subresource => Some("labels"),
        _ => None,
    };
    let desired = |object: &Value| {
        let mut map = object.as_object().cloned().unwrap_or_default();
        let metadata = map.remove("metadata");
        map.remove("status");
        (map, counted.and_then(|field| metadata.and_then(|metadata| metadata.get(field).cloned())))
    };
    if desired(new) != desired(old) {
        let generation = object::get(old, "generation").as_i64().unwrap_or(0);
        object::set(new, "generation", (generation + 1).into());
    }
}

/// An error is told once, whichever check found it.
fn dedup(errors: &mut Vec<field::Error>) {
    let mut seen: Vec<field::Error> = Vec::new();
    errors.retain(|error| {
        let fresh = !seen.contains(error);
        if fresh {
            seen.push(error.clone());
        }
        fresh
    });
}
