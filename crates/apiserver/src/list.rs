//! Lists: from one snapshot, the stored bytes one after the other.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use http::Response;
use resources::kind::Kind;
use resources::status::Status;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::{Entry, Revision, Snapshot};

use crate::handle::Call;
use crate::path::Place;
use crate::query::ListOptions;
use crate::select::Selection;
use crate::{Api, listing, object, read};

const OTHER_PAGE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// How long a list waits for a state that is not there yet.
const FRESH: Duration = Duration::from_secs(3);

/// A page: what matched, and where the next one starts.
struct Page {
    keys: Vec<Arc<str>>,
    entries: Vec<Entry>,
    revision: Revision,
    next: Option<String>,
    remaining: Option<usize>,
}

/// Reads tokens as Go does: what is left over in the last character does not matter.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// A token for the next page.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// −1: whatever is there now.
    rv: i64,
    start: String,
}

impl Token {
    fn encode(revision: i64, start: &str) -> String {
        let token = Token { v: "meta.k8s.io/v1".into(), rv: revision, start: start.to_owned() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Token, Status> {
        let invalid = |why: String| {
            Status::bad_request(format!("invalid continue token: continue key is not valid{why}"))
        };
        let bytes = LENIENT.decode(text).map_err(|error| invalid(format!(": {error}")))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| match bytes.first() {
            Some(first) if *first != b'{' => invalid(format!(
                ": invalid character '{}' looking for beginning of value",
                char::from(*first)
            )),
            _ => invalid(format!(": {error}")),
        })?;
        if token.v != "meta.k8s.io/v1" {
            return Err(invalid(": server does not recognize this encoded version".into()));
        }
        if token.rv == 0 {
            return Err(invalid(": incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into()));
        }
        if token.start.is_empty() {
            return Err(invalid(": encoded start key empty (version meta.k8s.io/v1)".into()));
        }
        Ok(token)
    }
}

/// A collection.
pub(crate) async fn list(api: &Api, place: &Place, call: &Call) -> Result<Response<Body>, Status> {
    let options = ListOptions::parse(&call.query)?;
    let selection = Selection::parse(place.kind, &options, &place.name)?;
    let prefix = object::prefix(place.kind, &place.namespace);
    let (snapshot, start) = state(api, place.kind, &prefix, &options).await?;
    let page = page(place.kind, &snapshot, &prefix, start.as_deref(), options.limit, &selection);
    let metadata = metadata(&page);
    listing::respond(place.kind, call.accepted, page.entries, metadata, api.now())
}

/// What a deletion of a collection is about: namespaces and names, and the answer.
pub(crate) async fn for_deletion(
    api: &Api,
    place: &Place,
    call: &Call,
    options: &ListOptions,
) -> Result<(Vec<(String, String)>, Response<Body>), Status> {
    let selection = Selection::parse(place.kind, options, &place.name)?;
    let prefix = object::prefix(place.kind, &place.namespace);
    let (snapshot, start) = state(api, place.kind, &prefix, options).await?;
    let page = page(place.kind, &snapshot, &prefix, start.as_deref(), options.limit, &selection);
    let names = page.keys.iter().filter_map(|key| object::names(place.kind, key)).collect();
    let metadata = metadata(&page);
    Ok((names, listing::respond(place.kind, call.accepted, page.entries, metadata, api.now())?))
}

/// The state to list, and the key to start at.
async fn state(
    api: &Api,
    kind: &Kind,
    prefix: &str,
    options: &ListOptions,
) -> Result<(Snapshot, Option<String>), Status> {
    let asked = read::revision(&options.resource_version)?;
    if !options.continuation.is_empty() {
        if asked.is_some_and(|revision| revision.0 != 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = Token::decode(&options.continuation)?;
        let start = format!("{prefix}{}", token.start.trim_start_matches('/'));
        let Ok(revision) = u64::try_from(token.rv) else {
            return Ok((api.store.snapshot(), Some(start)));
        };
        let kind_prefix = object::prefix(kind, "");
        return match api.store.snapshot_at(&kind_prefix, Revision(revision)) {
            Ok(snapshot) => Ok((snapshot, Some(start))),
            Err(_) => {
                let mut expired = Status::expired(OTHER_PAGE_EXPIRED);
                expired.continuation = Token::encode(-1, &token.start);
                Err(expired)
            }
        };
    }
    let exact = options.version_match == "Exact" || options.version_match.is_empty() && options.limit > 0;
    match asked {
        Some(revision) if revision.0 > 0 => {
            wait_for(api, revision).await?;
            if !exact {
                return Ok((api.store.snapshot(), None));
            }
            match api.store.snapshot_at(&object::prefix(kind, ""), revision) {
                Ok(snapshot) => Ok((snapshot, None)),
                Err(store::watch::Error::TooOld { kept, .. }) => Err(Status::too_old(revision.0, kept.0)),
                Err(error) => Err(Status::internal(error.to_string())),
            }
        }
        _ => Ok((api.store.snapshot(), None)),
    }
}

/// Waits a moment for a revision that another server, or the future, has named.
async fn wait_for(api: &Api, revision: Revision) -> Result<(), Status> {
    let current = api.store.revision();
    if revision <= current {
        return Ok(());
    }
    let reached = api.store.reached(revision);
    match tokio::time::timeout(FRESH, reached).await {
        Ok(()) => Ok(()),
        Err(_) => Err(read::too_large(revision, api.store.revision())),
    }
}

fn page(
    kind: &Kind,
    snapshot: &Snapshot,
    prefix: &str,
    start: Option<&str>,
    limit: i64,
    selection: &Selection,
) -> Page {
    let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    // A token's start is the key behind the last one: that key with a zero byte.
    let after = start.map(|start| start.trim_end_matches('\0'));
    let (mut keys, mut entries) = (Vec::new(), Vec::new());
    let mut rows = snapshot.range(prefix, after);
    for (key, entry) in rows.by_ref() {
        if !selection.matches(kind, key, &entry.value) {
            continue;
        }
        if entries.len() == limit {
            let next =
                keys.last().map(|key: &Arc<str>| format!("{}\0", key.strip_prefix(prefix).unwrap_or(key)));
            let remaining = selection.is_everything().then(|| 1 + rows.count());
            return Page { keys, entries, revision: snapshot.revision(), next, remaining };
        }
        entries.push(entry.clone());
        keys.push(key.clone());
    }
    Page { keys, entries, revision: snapshot.revision(), next: None, remaining: None }
}

fn metadata(page: &Page) -> Value {
    let mut metadata = json!({ "resourceVersion": page.revision.to_string() });
    if let Some(next) = &page.next {
        let revision = i64::try_from(page.revision.0).unwrap_or(-1);
        metadata["continue"] = Token::encode(revision, next).into();
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_foreign_ones_do_not() {
        let token = Token::decode(&Token::encode(7, "default/a\0")).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "default/a\0"));
        assert_eq!(Token::decode("zzz%").err().unwrap().code, 400);
        assert!(Token::decode(&URL_SAFE_NO_PAD.encode(r#"{"v":"x","rv":1,"start":"a"}"#)).is_err());
    }
}
