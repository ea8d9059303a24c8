//! The last events of each kind, bounded in number and bytes.
//!
//! A watcher is a cursor into its kind's ring, so a thousand watchers queue nothing; one whose cursor fell
//! off the ring is too slow and is told so.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, RwLock};

use lifecycle::bound::Bound;

use crate::{Entry, Revision, Snapshot, key};

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

pub(crate) struct Rings {
    by_kind: RwLock<HashMap<Box<str>, Arc<Ring>>>,
    /// What happened up to this revision is in no ring: it was before this process.
    base: Revision,
    events_max: usize,
    bytes_max: usize,
    /// Of the fullest ring.
    bound: Arc<Bound>,
}

impl Rings {
    pub(crate) fn new(base: Revision, events_max: usize, bytes_max: usize) -> Self {
        let bound = Bound::new("store_ring_bytes", bytes_max as u64);
        Rings { by_kind: RwLock::default(), base, events_max, bytes_max, bound }
    }

    pub(crate) fn of(&self, kind: &str) -> Arc<Ring> {
        if let Some(ring) = self.by_kind.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(kind) {
            return ring.clone();
        }
        let mut rings = self.by_kind.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        rings
            .entry(kind.into())
            .or_insert_with(|| Arc::new(Ring::new(self.base, self.events_max, self.bytes_max)))
            .clone()
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
        let rings = self.by_kind.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        self.bound.set(rings.values().map(|ring| ring.bytes() as u64).max().unwrap_or(0));
        drop(rings);
        touched.into_iter().map(|(_, ring)| ring).collect()
    }
}

pub(crate) struct Ring {
    events: RwLock<Events>,
    woken: tokio::sync::watch::Sender<u64>,
    events_max: usize,
    bytes_max: usize,
}

struct Events {
    queue: VecDeque<Event>,
    bytes: usize,
    /// Every event behind this revision is in the queue.
    floor: Revision,
}

/// The cursor's place is no longer in the ring.
pub(crate) struct FellOff {
    pub(crate) floor: Revision,
}

impl Ring {
    fn new(floor: Revision, events_max: usize, bytes_max: usize) -> Self {
        Ring {
            events: RwLock::new(Events { queue: VecDeque::new(), bytes: 0, floor }),
            woken: tokio::sync::watch::Sender::new(0),
            events_max,
            bytes_max,
        }
    }

    fn push(&self, event: Event) {
        let mut events = self.events.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        events.bytes += event.bytes();
        events.queue.push_back(event);
        while events.queue.len() > self.events_max
            || (events.bytes > self.bytes_max && events.queue.len() > 1)
        {
            let Some(old) = events.queue.pop_front() else { break };
            events.bytes -= old.bytes();
            events.floor = old.revision;
        }
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
