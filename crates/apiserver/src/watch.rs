//! Watches: a stream of JSON lines from the ring of a kind's events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use resources::kind::Kind;
use resources::status::Status;
use resources::table;
use serde_json::{Value, json};
use store::{Event, Revision, Snapshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::handle::Call;
use crate::negotiate::{Format, Shape};
use crate::path::Place;
use crate::query::ListOptions;
use crate::select::Selection;
use crate::{Api, negotiate, object, read, respond};

/// Seconds between the bookmarks of a watch that asked for them.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Seconds that a watch lasts when its client names no time: from one to two times this.
const LASTING_SECONDS: u64 = 1800;
/// Events looked at for one piece of the stream.
const BATCH: usize = 256;
/// Bytes after which a piece of the stream is sent.
const PIECE_BYTES: usize = 64 * 1024;

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// A watch under way.
struct Feed {
    api: Arc<Api>,
    kind: &'static Kind,
    selection: Selection,
    shape: Shape,
    bookmarks: bool,
    prefix: Arc<str>,
    /// The state that is sent first, and the last key sent of it.
    initial: Option<(Snapshot, Option<Arc<str>>)>,
    /// After the state comes the bookmark that says so.
    announce_end: bool,
    headings_sent: bool,
    watch: store::Watch,
    seen: Revision,
    next_bookmark: Instant,
    deadline: Instant,
    draining: CancellationToken,
    ended: bool,
}

/// A stream of what happens to a collection or to one object.
pub(crate) async fn watch(api: &Arc<Api>, place: &Place, call: &Call) -> Result<Response<Body>, Status> {
    let mut options = ListOptions::parse(&call.query)?;
    options.watch = true;
    let selection = Selection::parse(place.kind, &options, &place.name)?;
    if call.accepted.format != Format::Json {
        return Err(Status::not_acceptable(&[negotiate::JSON]));
    }
    if call.accepted.shape == (Shape::Partial { list: true }) {
        return Err(respond::not_acceptable(
            "you requested PartialObjectMetadataList, but a watch has no lists",
        ));
    }
    let asked = read::watch_revision(&options.resource_version)?;
    let prefix = object::prefix(place.kind, &place.namespace);
    let from_now = asked.is_none_or(|revision| revision.0 == 0);
    let snapshot = api.store.snapshot();
    let with_state = options.send_initial.unwrap_or(from_now);
    if with_state
        && let Some(wanted) = asked
        && wanted > snapshot.revision()
    {
        return Err(read::too_large(wanted, snapshot.revision()));
    }
    let after = match asked {
        Some(revision) if !with_state && revision.0 > 0 => revision,
        _ => snapshot.revision(),
    };
    let watch = match api.store.watch(&prefix, after) {
        Ok(watch) => watch,
        Err(store::watch::Error::TooOld { after, kept }) => {
            let line = error_line(&Status::too_old(after.0, kept.0));
            return Ok(respond::bytes(StatusCode::OK, negotiate::JSON, line));
        }
        Err(error) => return Err(Status::internal(error.to_string())),
    };
    let lasting = match options.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok()) {
        Some(seconds) if seconds > 0 => seconds,
        _ => LASTING_SECONDS + api.number() % LASTING_SECONDS,
    };
    let now = Instant::now();
    let feed = Feed {
        api: api.clone(),
        kind: place.kind,
        selection,
        shape: call.accepted.shape,
        bookmarks: options.bookmarks,
        prefix: prefix.into(),
        initial: with_state.then_some((snapshot, None)),
        announce_end: options.send_initial == Some(true) && options.bookmarks,
        headings_sent: false,
        watch,
        seen: after,
        next_bookmark: now + BOOKMARK,
        deadline: now + Duration::from_secs(lasting),
        draining: call.draining.clone().unwrap_or_default(),
        ended: false,
    };
    let stream = futures::stream::unfold(feed, |mut feed| async move {
        let piece = feed.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(piece), feed))
    });
    Ok(respond::bytes(StatusCode::OK, negotiate::JSON, Body::from_stream(stream)))
}

fn error_line(status: &Status) -> Vec<u8> {
    line("ERROR", &status.to_value())
}

fn line(event: &str, object: &Value) -> Vec<u8> {
    format!("{{\"type\":\"{event}\",\"object\":{object}}}\n").into_bytes()
}

impl Feed {
    /// The next piece of the stream; none at its end.
    async fn next(&mut self) -> Option<Bytes> {
        let mut out = Vec::new();
        loop {
            if self.ended {
                return None;
            }
            match self.fill(&mut out) {
                Ok(()) => {}
                Err(status) => {
                    // The client lists anew; what was told before stands.
                    out.extend_from_slice(&error_line(&status));
                    self.ended = true;
                }
            }
            if !out.is_empty() {
                return Some(out.into());
            }
            tokio::select! {
                () = self.watch.changed() => {}
                () = tokio::time::sleep_until(self.next_bookmark), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK;
                    out.extend_from_slice(&self.bookmark(json!({})));
                    return Some(out.into());
                }
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    return self.bookmarks.then(|| self.bookmark(json!({})).into());
                }
                () = self.draining.cancelled() => return None,
            }
        }
    }

    /// Writes what there is to tell now, up to a piece.
    fn fill(&mut self, out: &mut Vec<u8>) -> Result<(), Status> {
        while let Some((snapshot, last)) = self.initial.take() {
            let mut reached = None;
            let prefix = self.prefix.clone();
            for (key, entry) in snapshot.range(&prefix, last.as_deref()) {
                if self.selection.matches(self.kind, key, &entry.value) {
                    self.tell("ADDED", &entry.value, out)?;
                    if out.len() >= PIECE_BYTES {
                        reached = Some(key.clone());
                        break;
                    }
                }
            }
            if reached.is_some() {
                self.initial = Some((snapshot, reached));
                return Ok(());
            }
            if self.announce_end {
                self.announce_end = false;
                out.extend_from_slice(&self.bookmark(json!({ INITIAL_EVENTS_END: "true" })));
            }
        }
        let mut events = Vec::new();
        let before = self.seen;
        self.seen = self.watch.take(&mut events, BATCH).map_err(|error| match error {
            store::watch::Error::TooOld { after, kept } => Status::too_old(after.0, kept.0),
            store::watch::Error::Prefix => Status::internal(error.to_string()),
        })?;
        for event in &events {
            self.event(event, out)?;
        }
        if out.is_empty() && self.seen > before && events.len() == BATCH {
            // A whole batch that was not for this watcher: there may be more.
            return self.fill(out);
        }
        Ok(())
    }

    /// One write, as this watcher sees it: entering its selection is ADDED, leaving it DELETED.
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) -> Result<(), Status> {
        let selects = |value: &[u8]| self.selection.matches(self.kind, &event.key, value);
        let was = event.before.as_ref().is_some_and(|entry| selects(&entry.value));
        match (&event.now, &event.before, &event.last) {
            (Some(now), _, _) if selects(now) => self.tell(if was { "MODIFIED" } else { "ADDED" }, now, out),
            (Some(_), Some(before), _) if was => {
                let mut gone = object::decode(self.kind, &before.value)?;
                object::set(&mut gone, "resourceVersion", event.revision.to_string().into());
                self.tell_object("DELETED", gone, out);
                Ok(())
            }
            (None, _, Some(last)) if was => self.tell("DELETED", last, out),
            _ => Ok(()),
        }
    }

    fn tell(&mut self, event: &str, encoded: &[u8], out: &mut Vec<u8>) -> Result<(), Status> {
        if self.shape != Shape::Whole {
            let object = object::decode(self.kind, encoded)?;
            self.tell_object(event, object, out);
            return Ok(());
        }
        out.extend_from_slice(format!("{{\"type\":\"{event}\",\"object\":").as_bytes());
        out.extend_from_slice(&object::wire(self.kind, encoded)?);
        out.extend_from_slice(b"}\n");
        Ok(())
    }

    fn tell_object(&mut self, event: &str, object: Value, out: &mut Vec<u8>) {
        let shown = self.shaped(object);
        out.extend_from_slice(&line(event, &shown));
    }

    fn shaped(&mut self, object: Value) -> Value {
        match self.shape {
            Shape::Whole => object,
            Shape::Partial { .. } => table::partial_metadata(&object),
            Shape::Table(include) => {
                let headings = !std::mem::replace(&mut self.headings_sent, true);
                let metadata = json!({ "resourceVersion": object::resource_version(&object) });
                table::table(self.kind, [&object], metadata, include, self.api.now(), headings)
            }
        }
    }

    fn bookmark(&mut self, annotations: Value) -> Vec<u8> {
        let mut metadata = json!({ "resourceVersion": self.seen.to_string() });
        if annotations.as_object().is_some_and(|map| !map.is_empty()) {
            metadata["annotations"] = annotations;
        }
        let mark =
            json!({ "kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata });
        let shown = self.shaped(mark);
        line("BOOKMARK", &shown)
    }
}
