//! Objects that go by themselves: Events. Whoever writes one sweeps now and then, so nothing runs when nothing
//! is written, and their number is bounded.

use futures::future::join_all;
use resources::kind::{Kind, Retention};
use store::{Entry, Expect};

use crate::{Api, object};

/// Writes between two sweeps.
const EVERY: u64 = 64;

/// Sweeps if it is time to, after a write.
pub(crate) async fn after_write(api: &Api, kind: &'static Kind, written: &Entry) {
    let keeper = kind.stored_as.map_or(kind, |stored| stored.kind);
    if let Some(retention) = &keeper.retention
        && written.revision.0.is_multiple_of(EVERY)
    {
        sweep(api, keeper, retention).await;
    }
}

/// Deletes what is old or too much.
async fn sweep(api: &Api, kind: &'static Kind, retention: &Retention) {
    let snapshot = api.store.snapshot();
    let now = api.now().as_second();
    let prefix = object::prefix(kind, "");
    let mut all = Vec::new();
    for (key, entry) in snapshot.range(&prefix, None) {
        // What cannot be read is the oldest of all.
        let used = object::decode(kind, &entry.value).ok().and_then(|object| (retention.last_use)(&object));
        all.push((used.map_or(0, |used| used.as_second()), key, entry));
    }
    all.sort_by_key(|(used, _, _)| *used);
    let surplus = all.len().saturating_sub(retention.objects_max);
    let gone = all
        .iter()
        .enumerate()
        .filter(|(index, (used, _, _))| *index < surplus || now.saturating_sub(*used) > retention.seconds);
    join_all(gone.map(|(_, (_, key, entry))| {
        let last = object::decode(kind, &entry.value).unwrap_or_default();
        let encode = move |revision| object::encode(kind, last, revision);
        // One that was used meanwhile stays, and one that is gone is gone.
        api.store.delete(key, Expect::Revision(entry.revision), encode)
    }))
    .await;
}
