//! The last events of each kind, bounded in number and bytes.
//!
//! A watcher is a cursor into its kind's ring, so a thousand watchers queue nothing; one whose cursor fell
//! off the ring is too slow and is told so.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, RwLock};

use lifecycle::bound::Bound;

use crate::{Entry, Options, Revision, Snapshot, key};

/// One write, as watchers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub key: Arc<str>,
    pub revision: Revision,
    /// The value after the write; none after a deletion.
    pub now: Option<Arc<[u8]>>,
    /// What the write replaced or deleted.
    pub before: Option<Entry>,
    /// For a deletion, the last state with the deletion's revision in it.
    pub last: Option<Arc<[u8]>>,
}

impl Event {
    fn bytes(&self) -> usize {
        // The value before may be kept alive by an earlier event too, but need not: only the sum is never too small.
        let before = self.before.as_ref().map_or(0, |entry| entry.value.len());
        self.now.as_ref().or(self.last.as_ref()).map_or(0, |value| value.len()) + before + self.key.len()
    }
}

/// Of each ring.
#[derive(Clone, Copy)]
struct Limits {
    events: usize,
    bytes: usize,
    bytes_old: usize,
}

pub(crate) struct Rings {
    by_kind: RwLock<HashMap<Box<str>, Arc<Ring>>>,
    /// What happened up to this revision is in no ring: it was before this process.
    base: Revision,
    limits: Limits,
    /// Of the fullest ring.
    bound: Arc<Bound>,
}

impl Rings {
    pub(crate) fn new(base: Revision, options: &Options) -> Self {
        let bound = Bound::new("store_ring_bytes", options.ring_bytes as u64);
        let (events, bytes, bytes_old) = (options.ring_events, options.ring_bytes, options.ring_bytes_old);
        Rings { by_kind: RwLock::default(), base, limits: Limits { events, bytes, bytes_old }, bound }
    }

    pub(crate) fn of(&self, kind: &str) -> Arc<Ring> {
        if let Some(ring) = self.by_kind.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(kind) {
            return ring.clone();
        }
        let mut rings = self.by_kind.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        rings.entry(kind.into()).or_insert_with(|| Arc::new(Ring::new(self.base, self.limits))).clone()
    }

    /// Appends committed events; the rings answered are to be woken once the state is visible.
    pub(crate) fn append(&self, events: Vec<Event>) -> Vec<Arc<Ring>> {
        let mut touched: Vec<(Box<str>, Arc<Ring>)> = Vec::new();
        for event in events {
            let kind = key::kind(&event.key).unwrap_or("/");
            let ring = match touched.iter().find(|(name, _)| &**name == kind) {
                Some((_, ring)) => ring.clone(),
                None => {
                    let ring = self.of(kind);
                    touched.push((kind.into(), ring.clone()));
                    ring
                }
            };
            ring.push(event);
        }
        self.measure();
        touched.into_iter().map(|(_, ring)| ring).collect()
    }
}

impl Rings {
    fn measure(&self) {
        let rings = self.by_kind.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.bound.set(rings.values().map(|ring| ring.bytes() as u64).max().unwrap_or(0));
    }

    pub(crate) fn forget_old(&self) {
        let rings = self.by_kind.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        rings.values().for_each(|ring| ring.forget_old());
        drop(rings);
        self.measure();
    }
}

pub(crate) struct Ring {
    events: RwLock<Events>,
    woken: tokio::sync::watch::Sender<u64>,
    limits: Limits,
}

struct Events {
    queue: VecDeque<Event>,
    bytes: usize,
    /// Every event behind this revision is in the queue.
    floor: Revision,
    /// The newest event at the last [`Ring::forget_old`].
    old: Revision,
}

impl Events {
    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.queue.pop_front() {
            self.bytes -= oldest.bytes();
            self.floor = oldest.revision;
        }
    }
}

/// The cursor's place is no longer in the ring.
pub(crate) struct FellOff {
    pub(crate) floor: Revision,
}

impl Ring {
    fn new(floor: Revision, limits: Limits) -> Self {
        Ring {
            events: RwLock::new(Events { queue: VecDeque::new(), bytes: 0, floor, old: floor }),
            woken: tokio::sync::watch::Sender::new(0),
            limits,
        }
    }

    fn push(&self, event: Event) {
        let mut events = self.events.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        events.bytes += event.bytes();
        events.queue.push_back(event);
        while events.queue.len() > self.limits.events
            || (events.bytes > self.limits.bytes && events.queue.len() > 1)
        {
            events.drop_oldest();
        }
    }

    fn forget_old(&self) {
        let mut events = self.events.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let old = events.old;
        while events.bytes > self.limits.bytes_old
            && events.queue.front().is_some_and(|event| event.revision <= old)
        {
            events.drop_oldest();
        }
        // What a burst needed, and nobody needs any more.
        events.queue.shrink_to_fit();
        events.old = events.queue.back().map_or(events.floor, |event| event.revision);
    }

    fn bytes(&self) -> usize {
        self.events.read().unwrap_or_else(|poisoned| poisoned.into_inner()).bytes
    }

    pub(crate) fn wake(&self) {
        self.woken.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(crate) fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.woken.subscribe()
    }

    /// Takes back in `snapshot` every event behind `at`.
    pub(crate) fn rewind(&self, snapshot: &mut Snapshot, at: Revision) -> Result<(), FellOff> {
        let events = self.events.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if at < events.floor {
            return Err(FellOff { floor: events.floor });
        }
        let present = snapshot.revision;
        for event in events.queue.iter().rev().take_while(|event| event.revision > at) {
            if event.revision > present {
                continue;
            }
            match &event.before {
                Some(entry) => snapshot.entries.insert(event.key.clone(), entry.clone()),
                None => snapshot.entries.remove(&*event.key),
            };
        }
        snapshot.revision = at;
        Ok(())
    }

    /// Copies up to `limit` matching events in `(after, until]` to `out`; answers the revision up to which
    /// everything was looked at.
    pub(crate) fn read(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
        limit: usize,
        out: &mut Vec<Event>,
    ) -> Result<Revision, FellOff> {
        let events = self.events.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if after < events.floor {
            return Err(FellOff { floor: events.floor });
        }
        let start = events.queue.partition_point(|event| event.revision <= after);
        let mut seen = after;
        let mut taken = 0;
        for event in events.queue.range(start..) {
            if event.revision > until {
                break;
            }
            if event.key.starts_with(prefix) {
                if taken == limit {
                    return Ok(seen);
                }
                out.push(event.clone());
                taken += 1;
            }
            seen = event.revision;
        }
        Ok(until.max(seen))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, bytes: usize) -> Event {
        let now = Some(Arc::from(vec![b'x'; bytes]));
        Event { key: Arc::from("/a/b/c"), revision: Revision(revision), now, before: None, last: None }
    }

    #[test]
    fn events_are_forgotten_from_the_second_look_on_and_small_ones_never() {
        let ring = Ring::new(Revision(0), Limits { events: 100, bytes: 10_000, bytes_old: 2000 });
        let kept =
            || ring.events.read().unwrap().queue.iter().map(|event| event.revision.0).collect::<Vec<_>>();
        for revision in 1..=5 {
            ring.push(event(revision, 1000));
        }
        ring.forget_old();
        assert_eq!(kept(), [1, 2, 3, 4, 5], "they have just come");
        ring.push(event(6, 1900));
        ring.forget_old();
        assert_eq!(kept(), [6]);
        assert!(ring.read("/", Revision(4), Revision(6), 9, &mut Vec::new()).is_err(), "5 is gone");
        let mut found = Vec::new();
        assert!(
            ring.read("/", Revision(5), Revision(6), 9, &mut found).is_ok_and(|seen| seen == Revision(6))
        );
        assert_eq!(found.len(), 1);
        ring.forget_old();
        assert_eq!(kept(), [6], "it is small enough");
        ring.push(event(7, 8000));
        for expected in [vec![7], vec![]] {
            ring.forget_old();
            assert_eq!(kept(), expected);
        }
        // Who was up to date stays so.
        assert!(ring.read("/", Revision(7), Revision(9), 9, &mut Vec::new()).is_ok());
    }
}
