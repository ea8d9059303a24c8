//! DELETE: at once, gracefully, or once finalizers are gone.

use std::sync::OnceLock;

use axum::body::Body;
use futures::{StreamExt, stream};
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use resources::kind::Deletion;
use resources::status::{Status, Target};
use serde_json::{Value, json};
use store::{Entry, Expect};

use crate::handle::Call;
use crate::path::Place;
use crate::query::{DeleteOptions, ListOptions, Propagation};
use crate::{Api, create, decode, list, namespace, object, respond};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS: usize = 64;
/// Objects of a collection that are deleted at the same time, so that they share the store's commits. Each of them may
/// be in memory a few times meanwhile.
const AT_ONCE: usize = 16;

/// What became of the object.
pub(crate) enum Deleted {
    /// It is gone; this was its last state.
    Gone(Value),
    /// It stays for now.
    Stays(Value),
    /// It was on its way already, and nothing changed.
    Pending(Value),
}

/// What one try decided.
enum Step {
    Write(Value),
    Remove(Value),
    Nothing(Value),
}

fn options_of(call: &Call, body: &[u8]) -> Result<DeleteOptions, Status> {
    if body.is_empty() {
        return DeleteOptions::parse(&call.query, None);
    }
    let sent =
        decode::plain(call.body_format()?, body, "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions")?;
    if sent.get("kind").and_then(Value::as_str).is_some_and(|kind| kind != "DeleteOptions") {
        return Err(Status::bad_request("decoded object cannot be converted to DeleteOptions"));
    }
    DeleteOptions::parse(&call.query, Some(&sent))
}

pub(crate) async fn delete(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let options = options_of(call, body)?;
    let deleted = run(api, place, &options).await?;
    let kind = place.kind;
    let now = api.now();
    let accepted_code = if options.orphan == Some(false) { StatusCode::ACCEPTED } else { StatusCode::OK };
    match deleted {
        Deleted::Stays(object) => respond::object(call.accepted, accepted_code, kind, object, now),
        Deleted::Pending(object) if kind.delete_returns_object => {
            respond::object(call.accepted, accepted_code, kind, object, now)
        }
        Deleted::Gone(object) if kind.delete_returns_object => {
            respond::object(call.accepted, StatusCode::OK, kind, object, now)
        }
        Deleted::Gone(object) | Deleted::Pending(object) => {
            let status = Status::success(place.target(), object::text(&object, "uid"));
            Ok(respond::value(call.accepted, StatusCode::OK, &status))
        }
    }
}

/// Deletes everything that a list with the same parameters shows.
pub(crate) async fn collection(
    api: &Api,
    place: &Place,
    call: &mut Call,
    body: &[u8],
) -> Result<Response<Body>, Status> {
    let options = options_of(call, body)?;
    let listing = ListOptions::parse(&call.query)?;
    let (names, response) = list::for_deletion(api, place, call, &listing).await?;
    let failed: OnceLock<Status> = OnceLock::new();
    let ask = |(namespace, name)| {
        let one = Place { namespace, name, ..place.clone() };
        let (options, failed) = (&options, &failed);
        async move {
            match run(api, &one, options).await {
                // Of several failures the first one is told.
                Err(status) if status.code != 404 => drop(failed.set(status)),
                _ => {}
            }
        }
    };
    // After a failure what was begun ends, and nothing else is begun.
    stream::iter(names)
        .take_while(|_| std::future::ready(failed.get().is_none()))
        .map(ask)
        .buffer_unordered(AT_ONCE)
        .collect::<()>()
        .await;
    failed.into_inner().map_or(Ok(response), Err)
}

/// Deletes one object as its kind and the options say.
pub(crate) async fn run(api: &Api, place: &Place, options: &DeleteOptions) -> Result<Deleted, Status> {
    let kind = place.kind;
    namespace::admit_delete(kind, &place.name)?;
    let key = object::key(kind, &place.namespace, &place.name);
    for _ in 0..ATTEMPTS {
        let entry = api.store.get(&key).ok_or_else(|| Status::not_found(place.target()))?;
        let old = object::decode(kind, &entry.value)?;
        check_preconditions(place, options, &old)?;
        let step = match kind.deletion {
            Deletion::SpecFinalizers => namespace_step(old, options, api.now()),
            Deletion::Immediate => finish(old, options, None, api.now()),
            Deletion::Graceful(seconds) => graceful(old, options, seconds, api.now()),
        };
        if let Some(deleted) = execute(api, place, &key, &entry, step, options.dry_run).await? {
            return Ok(deleted);
        }
    }
    Err(Status::modified(place.target()))
}

async fn execute(
    api: &Api,
    place: &Place,
    key: &str,
    entry: &Entry,
    step: Step,
    dry_run: bool,
) -> Result<Option<Deleted>, Status> {
    let kind = place.kind;
    let expect = Expect::Revision(entry.revision);
    let (gone, result) = match step {
        Step::Nothing(object) => return Ok(Some(Deleted::Pending(object))),
        Step::Write(object) if dry_run => return Ok(Some(Deleted::Stays(object))),
        Step::Remove(object) if dry_run => return Ok(Some(Deleted::Gone(object))),
        Step::Write(object) => (false, create::put(api, key, expect, kind, object, true).await),
        Step::Remove(object) => (
            true,
            api.store.delete(key, expect, move |revision| object::encode(kind, object, revision)).await,
        ),
    };
    match result {
        Ok(entry) => {
            let object = object::decode(kind, &entry.value)?;
            Ok(Some(if gone { Deleted::Gone(object) } else { Deleted::Stays(object) }))
        }
        Err(store::write::Error::Changed(_) | store::write::Error::Missing) => Ok(None),
        Err(error) => Err(create::not_written(place.target(), &error)),
    }
}

fn check_preconditions(place: &Place, options: &DeleteOptions, old: &Value) -> Result<(), Status> {
    let kind = place.kind;
    let by_kind = Target { group: kind.group, resource: kind.kind, name: &place.name };
    let stored_uid = object::text(old, "uid");
    if let Some(uid) = options.uid.as_deref()
        && uid != stored_uid
    {
        if matches!(kind.deletion, Deletion::SpecFinalizers) {
            let why =
                format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored_uid}");
            return Err(Status::conflict(place.target(), &why));
        }
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({stored_uid}). The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(by_kind, &why));
    }
    let stored_version = object::resource_version(old);
    if let Some(version) = options.resource_version.as_deref()
        && version != stored_version
    {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({stored_version}). The object might have been modified"
        );
        return Err(Status::conflict(by_kind, &why));
    }
    Ok(())
}

/// The finalizers by which the garbage collector learns what becomes of dependents.
fn with_collector_finalizers(object: &mut Value, options: &DeleteOptions) {
    let before: Vec<String> = object::finalizers(object).into_iter().map(str::to_owned).collect();
    let (orphan, foreground) = match (options.orphan, options.propagation) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(policy)) => (policy == Propagation::Orphan, policy == Propagation::Foreground),
        (None, None) => {
            let first = before.iter().find(|name| *name == ORPHAN || *name == FOREGROUND);
            (first.is_some_and(|name| name == ORPHAN), first.is_some_and(|name| name == FOREGROUND))
        }
    };
    let mut after: Vec<String> =
        before.iter().filter(|name| *name != ORPHAN && *name != FOREGROUND).cloned().collect();
    if orphan {
        after.push(ORPHAN.into());
    }
    if foreground {
        after.push(FOREGROUND.into());
    }
    let same = before.len() == after.len() && before.iter().all(|name| after.contains(name));
    if same {
        return;
    }
    if after.is_empty() {
        object::unset(object, "finalizers");
    } else {
        object::set(object, "finalizers", json!(after));
    }
}

/// The step after grace is decided; `granted` is the grace of a kind that has one.
fn finish(mut object: Value, options: &DeleteOptions, granted: Option<i64>, now: Timestamp) -> Step {
    with_collector_finalizers(&mut object, options);
    let kept = !object::finalizers(&object).is_empty();
    match granted {
        Some(seconds) if seconds > 0 || kept => Step::Write(object),
        Some(_) => Step::Remove(object),
        None if kept => {
            mark(&mut object, now);
            Step::Write(object)
        }
        None => Step::Remove(object),
    }
}

/// A deleted object that waits for its finalizers.
fn mark(object: &mut Value, now: Timestamp) {
    if !object::is_deleting(object) {
        raise_generation(object);
    }
    let until = object::text(object, "deletionTimestamp").parse::<Timestamp>().ok();
    if until.is_none_or(|until| until > now) {
        object::set(object, "deletionTimestamp", object::time(now).into());
    }
    object::set(object, "deletionGracePeriodSeconds", 0.into());
}

fn raise_generation(object: &mut Value) {
    let generation = object::get(object, "generation").as_i64().unwrap_or(0);
    if generation > 0 {
        object::set(object, "generation", (generation + 1).into());
    }
}

fn graceful(
    mut object: Value,
    options: &DeleteOptions,
    seconds: fn(&Value, Option<i64>) -> i64,
    now: Timestamp,
) -> Step {
    // A negative grace means the shortest one.
    let asked = options.grace_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds });
    let later = |base: Timestamp, seconds: i64| {
        base.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(base)
    };
    if !object::is_deleting(&object) {
        let granted = seconds(&object, asked);
        object::set(&mut object, "deletionTimestamp", object::time(later(now, granted)).into());
        object::set(&mut object, "deletionGracePeriodSeconds", granted.into());
        raise_generation(&mut object);
        return finish(object, options, Some(granted), now);
    }
    let granted = object::get(&object, "deletionGracePeriodSeconds").as_i64().unwrap_or(0);
    if granted == 0 {
        return finish(object, options, None, now);
    }
    // A grace that runs can only be shortened.
    let Some(mut asked) = asked.filter(|asked| *asked < granted) else { return Step::Nothing(object) };
    let until = object::text(&object, "deletionTimestamp").parse::<Timestamp>().unwrap_or(now);
    let mut until = later(until, asked - granted);
    if until < now {
        until = now;
        if asked != 0 {
            asked = 1;
        }
    }
    object::set(&mut object, "deletionTimestamp", object::time(until).into());
    object::set(&mut object, "deletionGracePeriodSeconds", asked.into());
    finish(object, options, Some(asked), now)
}

/// A Namespace goes when its content is gone: whoever empties it takes the last finalizer from its spec.
fn namespace_step(mut object: Value, options: &DeleteOptions, now: Timestamp) -> Step {
    if !object::is_deleting(&object) {
        object::set(&mut object, "deletionTimestamp", object::time(now).into());
        if let Some(map) = object.as_object_mut() {
            let status = map.entry("status").or_insert_with(|| json!({}));
            status["phase"] = "Terminating".into();
        }
        with_collector_finalizers(&mut object, options);
        return Step::Write(object);
    }
    let kept =
        object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if kept { Step::Nothing(object) } else { finish(object, options, None, now) }
}
