//! The body of a list, piece by piece: what a client has not read yet is not in memory twice.
//!
//! **Invariant:** beside the stored objects, which are there anyway, a list holds one piece or one object at a time.

use std::io;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use jiff::Timestamp;
use resources::kind::Kind;
use resources::status::Status;
use resources::table::{self, IncludeObject};
use serde_json::{Value, json};
use store::Entry;

use crate::negotiate::{Accepted, Format, Shape};
use crate::{object, respond};

/// Bytes after which a piece is sent.
const PIECE_BYTES: usize = 64 * 1024;
/// A stored object of so many bytes is a piece of its own, and is not copied.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// How an item is made of a stored object.
#[derive(Clone, Copy)]
enum Item {
    /// The stored bytes, as they are.
    Stored,
    Whole,
    Partial,
    Row(IncludeObject),
}

/// What stands around the items and between them.
struct Frame {
    head: Vec<u8>,
    between: &'static [u8],
    tail: &'static [u8],
}

struct Listing {
    kind: &'static Kind,
    accepted: Accepted,
    now: Timestamp,
    item: Item,
    entries: std::vec::IntoIter<Entry>,
    frame: Frame,
    /// What is written of the next piece.
    piece: Vec<u8>,
    /// A stored object that follows the piece.
    stored: Option<Bytes>,
    first: bool,
    ended: bool,
}

/// A list of `entries`; `metadata` is the list's own.
pub(crate) fn respond(
    kind: &'static Kind,
    accepted: Accepted,
    entries: Vec<Entry>,
    metadata: Value,
    now: Timestamp,
) -> Result<Response<Body>, Status> {
    let (item, around, field) = match accepted.shape {
        Shape::Whole => {
            let list = json!({
                "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata,
            });
            (if accepted.is_plain() { Item::Stored } else { Item::Whole }, list, "items")
        }
        Shape::Table(include) => {
            let mut table = table::table(kind, [], metadata, include, now, true);
            if let Some(map) = table.as_object_mut() {
                map.remove("rows");
            }
            (Item::Row(include), table, "rows")
        }
        Shape::Partial { list: true } => {
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            });
            (Item::Partial, list, "items")
        }
        Shape::Partial { list: false } => {
            return Err(respond::not_acceptable(&format!(
                "you requested PartialObjectMetadata, but the requested object is a list (*{}.{}List)",
                kind.version, kind.kind
            )));
        }
    };
    let frame = frame(accepted, &around, field, entries.is_empty());
    let mut listing = Listing {
        kind,
        accepted,
        now,
        item,
        entries: entries.into_iter(),
        piece: frame.head.clone(),
        frame,
        stored: None,
        first: true,
        ended: false,
    };
    // A short list is one piece with a length; the first item also shows whether items can be made at all.
    listing.fill()?;
    let body = if listing.ended && listing.stored.is_none() {
        Body::from(std::mem::take(&mut listing.piece))
    } else {
        Body::from_stream(stream::iter(listing))
    };
    Ok(respond::bytes(StatusCode::OK, accepted.format.media_type(), body))
}

/// Writes what stands around the items: `around` with a list as its last field.
fn frame(accepted: Accepted, around: &Value, field: &str, empty: bool) -> Frame {
    match (accepted.format, accepted.pretty) {
        (Format::Yaml, _) => {
            let mut head = serde_yaml_ng::to_string(around).unwrap_or_default();
            head.push_str(field);
            head.push_str(if empty { ": []\n" } else { ":\n" });
            Frame { head: head.into(), between: b"", tail: b"" }
        }
        (Format::Json, true) => {
            let text = serde_json::to_string_pretty(around).unwrap_or_default();
            let head = format!("{},\n  \"{field}\": [", text.strip_suffix("\n}").unwrap_or(&text));
            Frame { head: head.into(), between: b",", tail: if empty { b"]\n}" } else { b"\n  ]\n}" } }
        }
        (Format::Json, false) => {
            let text = around.to_string();
            let head = format!("{},\"{field}\":[", text.strip_suffix('}').unwrap_or(&text));
            Frame { head: head.into(), between: b",", tail: b"]}\n" }
        }
    }
}

impl Listing {
    /// Writes items until a piece is full, a stored object follows, or there are none.
    fn fill(&mut self) -> Result<(), Status> {
        while self.piece.len() < PIECE_BYTES && self.stored.is_none() && !self.ended {
            let Some(entry) = self.entries.next() else {
                self.ended = true;
                self.piece.extend_from_slice(self.frame.tail);
                return Ok(());
            };
            if !std::mem::replace(&mut self.first, false) {
                self.piece.extend_from_slice(self.frame.between);
            }
            self.write(entry)?;
        }
        Ok(())
    }

    fn write(&mut self, entry: Entry) -> Result<(), Status> {
        let object = match self.item {
            Item::Stored if self.kind.stored_as.is_none() && entry.value.len() > COPIED_BYTES_MAX => {
                self.stored = Some(Bytes::from_owner(entry.value));
                return Ok(());
            }
            Item::Stored => return object::item(self.kind, &entry.value, &mut self.piece),
            _ => object::decode(self.kind, &entry.value)?,
        };
        let item = match self.item {
            Item::Row(include) => table::row(self.kind, &object, include, self.now),
            Item::Partial => table::partial_metadata(&object),
            Item::Stored | Item::Whole => without_type(object),
        };
        match (self.accepted.format, self.accepted.pretty) {
            (Format::Yaml, _) => {
                let text =
                    serde_yaml_ng::to_string(&[item]).map_err(|error| Status::internal(error.to_string()))?;
                self.piece.extend_from_slice(text.as_bytes());
            }
            (Format::Json, true) => {
                // Line ends within strings are escaped: each one here begins a line to indent.
                let text = serde_json::to_string_pretty(&item).unwrap_or_default();
                self.piece.extend_from_slice(format!("\n{text}").replace('\n', "\n    ").as_bytes());
            }
            (Format::Json, false) => self.piece.extend_from_slice(item.to_string().as_bytes()),
        }
        Ok(())
    }
}

impl Iterator for Listing {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.piece.is_empty()
            && let Some(stored) = self.stored.take()
        {
            return Some(Ok(stored));
        }
        if let Err(status) = self.fill() {
            // The head is out: an answer that breaks off is all that can be said.
            tracing::error!(error = status.message, "list");
            self.ended = true;
            self.entries = Vec::new().into_iter();
            return Some(Err(io::Error::other(status.message)));
        }
        if self.piece.is_empty() {
            return self.stored.take().map(Ok);
        }
        Some(Ok(std::mem::take(&mut self.piece).into()))
    }
}

fn without_type(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    object
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use resources::KINDS;
    use store::Revision;

    use super::*;

    fn entries(count: usize, bytes: usize) -> Vec<Entry> {
        let entry = |index: usize| {
            let text =
                json!({"metadata": {"name": format!("m{index}")}, "data": {"k": "x\n".repeat(bytes / 2)}});
            Entry { value: Arc::from(text.to_string().into_bytes()), revision: Revision(index as u64) }
        };
        (0..count).map(entry).collect()
    }

    async fn body(accepted: Accepted, entries: Vec<Entry>) -> (Vec<u8>, usize) {
        let kind = KINDS.iter().find(|kind| kind.plural == "configmaps").unwrap();
        let metadata = json!({"resourceVersion": "7"});
        let mut body = respond(kind, accepted, entries, metadata, Timestamp::UNIX_EPOCH).unwrap().into_body();
        let (mut whole, mut largest) = (Vec::new(), 0);
        while let Some(frame) = body.frame().await {
            let data = frame.unwrap().into_data().unwrap();
            largest = largest.max(data.len());
            whole.extend_from_slice(&data);
        }
        (whole, largest)
    }

    #[tokio::test]
    async fn every_form_holds_every_item_and_comes_in_pieces() {
        let shapes = [
            (Shape::Whole, "items", "/metadata/name"),
            (Shape::Partial { list: true }, "items", "/metadata/name"),
            (Shape::Table(IncludeObject::Metadata), "rows", "/cells/0"),
        ];
        for (shape, field, name) in shapes {
            for (format, pretty) in [(Format::Json, false), (Format::Json, true), (Format::Yaml, false)] {
                for (count, bytes) in [(0, 0), (1, 10), (3, 40_000), (500, 1000)] {
                    let accepted = Accepted { format, shape, pretty };
                    let (text, largest) = body(accepted, entries(count, bytes)).await;
                    let list: Value = match format {
                        Format::Json => serde_json::from_slice(&text).unwrap(),
                        Format::Yaml => serde_yaml_ng::from_slice(&text).unwrap(),
                    };
                    let items = list[field].as_array().unwrap();
                    assert_eq!(items.len(), count, "{shape:?} {format:?}");
                    assert_eq!(list["metadata"]["resourceVersion"], "7");
                    for (index, item) in items.iter().enumerate() {
                        assert_eq!(item.pointer(name).unwrap(), &format!("m{index}"));
                    }
                    // YAML indents each line of a text.
                    assert!(largest < PIECE_BYTES + 5 * bytes + 4096, "a piece of {largest} bytes");
                }
            }
        }
    }

    #[tokio::test]
    async fn pretty_is_what_one_writer_would_have_written() {
        let accepted = Accepted { format: Format::Json, shape: Shape::Whole, pretty: true };
        for count in [0, 1, 3] {
            let (text, _) = body(accepted, entries(count, 10)).await;
            let list: Value = serde_json::from_slice(&text).unwrap();
            let mut lines: Vec<&str> = std::str::from_utf8(&text).unwrap().lines().collect();
            let whole = serde_json::to_string_pretty(&list).unwrap();
            let mut expected: Vec<&str> = whole.lines().collect();
            // Only the order of the fields may differ, and so the commas behind them.
            for lines in [&mut lines, &mut expected] {
                lines.iter_mut().for_each(|line| *line = line.trim_end_matches(','));
                lines.sort_unstable();
            }
            assert_eq!(lines, expected);
        }
    }
}
