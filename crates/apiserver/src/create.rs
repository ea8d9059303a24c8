//! POST: a new object.

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::Timestamp;
use resources::apply;
use resources::field;
use resources::kind::{Generation, Kind};
use resources::status::{Details, Status, Target};
use serde_json::{Map, Value};
use store::{Entry, Expect};

use crate::handle::Call;
use crate::negotiate::Accepted;
use crate::path::Place;
use crate::query::WriteOptions;
use crate::{Api, allocate, decode, expire, meta, namespace, object, respond};

/// Generated names that are tried before the client is told to.
const NAMES_TRIED: usize = 8;
/// A generated name is at most 63 characters long, five of them random.
const PREFIX_BYTES: usize = 58;

/// What became of a write.
pub(crate) enum Written {
    /// On disk.
    Stored(Entry),
    /// Dry run: what would have been stored.
    Dry(Value),
}

impl Written {
    pub(crate) fn respond(
        self,
        accepted: Accepted,
        code: StatusCode,
        kind: &Kind,
        now: Timestamp,
    ) -> Result<Response<Body>, Status> {
        match self {
            Written::Stored(entry) => respond::stored(accepted, code, kind, &entry.value, now),
            Written::Dry(object) => respond::object(accepted, code, kind, object, now),
        }
    }
}

pub(crate) async fn create(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let options = call.write_options("CreateOptions")?;
    let format = call.body_format()?;
    let mut new = decode::object(place.kind, format, body, options.validation, &mut call.warnings)?;
    let reset = apply::is_reset(&new);
    (place.kind.default)(&mut new);
    wipe(&mut new);
    meta::match_namespace(place.kind, &mut new, &place.namespace)?;
    meta::dedup_owners(&mut new, &mut call.warnings, false);
    let request =
        apply::Request { kind: place.kind, manager: &options.manager, subresource: "", now: api.now() };
    apply::update(None, &mut new, reset, &request).map_err(|error| error.status())?;
    let written = store_new(api, place, new, &options, &mut call.warnings).await?;
    written.respond(call.accepted, StatusCode::CREATED, place.kind, api.now())
}

/// What only the server sets.
pub(crate) fn wipe(new: &mut Value) {
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        object::unset(new, field);
    }
}

/// Stores an object that was decoded, defaulted and got its managers.
pub(crate) async fn store_new(
    api: &Api,
    place: &Place,
    mut new: Value,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Written, Status> {
    let kind = place.kind;
    namespace::admit(api, kind, &place.namespace, object::name(&new))?;
    object::set(&mut new, "uid", api.uid().into());
    object::set(&mut new, "creationTimestamp", object::time(api.now()).into());
    let prefix = object::text(&new, "generateName").to_owned();
    let generated = object::name(&new).is_empty() && !prefix.is_empty();
    let mut tried = 0;
    loop {
        tried += 1;
        let mut attempt = if generated { new.clone() } else { std::mem::take(&mut new) };
        if generated {
            object::set(&mut attempt, "name", generate(api, &prefix).into());
        }
        let name = object::name(&attempt).to_owned();
        match store_named(api, place, attempt, options, warnings).await {
            Err(status) if generated && status.code == 409 => {
                if tried == NAMES_TRIED {
                    return Err(no_name_left(kind, &name));
                }
            }
            result => return result,
        }
    }
}

fn generate(api: &Api, prefix: &str) -> String {
    let mut end = prefix.len().min(PREFIX_BYTES);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &prefix[..end], api.name_suffix())
}

fn no_name_left(kind: &Kind, name: &str) -> Status {
    let mut status = Status::already_exists(Target { group: kind.group, resource: kind.plural, name });
    status.message.push_str(", the server was not able to generate a unique name for the object");
    if let Some(details) = &mut status.details {
        **details = Details { retry_after_seconds: 1, ..std::mem::take(&mut **details) };
    }
    status
}

async fn store_named(
    api: &Api,
    place: &Place,
    mut new: Value,
    options: &WriteOptions,
    warnings: &mut Vec<String>,
) -> Result<Written, Status> {
    let kind = place.kind;
    (kind.prepare)(&mut new, None);
    if kind.generation != Generation::None {
        object::set(&mut new, "generation", 1.into());
    }
    let name = object::name(&new).to_owned();
    let mut errors = meta::validate(kind, &new);
    errors.extend((kind.validate)(&new, None));
    refuse_invalid(kind, &name, &errors)?;
    // Held until the write is done: what is handed out is taken once the object is stored.
    let key = object::key(kind, &place.namespace, &name);
    let _allocating = allocate::run(api, kind, &key, &mut new, None).await?;
    for warning in (kind.warnings)(&new, None) {
        warnings.push(warning);
    }
    if !matches!(object::resource_version(&new), "" | "0") {
        return Err(Status::unknown("resourceVersion should not be set on objects to be created"));
    }
    let target = Target { group: kind.group, resource: kind.plural, name: &name };
    if options.dry_run {
        object::unset(&mut new, "resourceVersion");
        return if api.store.get(&key).is_some() {
            Err(Status::already_exists(target))
        } else {
            Ok(Written::Dry(new))
        };
    }
    let stored = put(api, &key, Expect::Absent, kind, new, kind.beyond_quota).await;
    match stored {
        Ok(entry) => {
            expire::after_write(api, kind, &entry).await;
            Ok(Written::Stored(entry))
        }
        Err(store::write::Error::Exists(_)) => Err(Status::already_exists(target)),
        Err(error) => Err(not_written(target, &error)),
    }
}

/// Writes an object; `beyond_quota`: even when the store's quota is used up.
pub(crate) async fn put(
    api: &Api,
    key: &str,
    expect: Expect,
    kind: &'static Kind,
    object: Value,
    beyond_quota: bool,
) -> Result<store::Entry, store::write::Error> {
    let encode = move |revision| object::encode(kind, object, revision);
    if beyond_quota {
        api.store.put_beyond_quota(key, expect, encode).await
    } else {
        api.store.put(key, expect, encode).await
    }
}

/// 422 when there is anything wrong.
pub(crate) fn refuse_invalid(kind: &Kind, name: &str, errors: &[field::Error]) -> Result<(), Status> {
    if errors.is_empty() {
        return Ok(());
    }
    // A second view of another row's objects is refused in that row's name.
    let kind = kind.stored_as.map_or(kind, |stored| stored.kind);
    Err(Status::invalid(Target { group: kind.group, resource: kind.kind, name }, errors))
}

/// A write that the store could not do.
pub(crate) fn not_written(target: Target<'_>, error: &store::write::Error) -> Status {
    let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
    if matches!(error, store::write::Error::Quota { .. }) {
        return Status::forbidden(target, &format!("{error}{hint}"));
    }
    let cause = std::error::Error::source(error).map_or_else(String::new, |cause| format!(": {cause}"));
    tracing::error!(%error, cause, "write");
    Status::internal(format!("{error}{cause}{hint}"))
}

/// An empty `metadata` for objects that come without one.
pub(crate) fn ensure_metadata(object: &mut Value) {
    if object::metadata_mut(object).is_none()
        && let Some(map) = object.as_object_mut()
    {
        map.insert("metadata".into(), Value::Object(Map::new()));
    }
}
