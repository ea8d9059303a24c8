//! A watcher: a cursor into the ring of one kind.

use std::sync::Arc;

use crate::ring::{Event, Ring};
use crate::{Revision, Shared, key};

/// Why a watch cannot begin or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("revision {after} is too old: events are kept behind {kept}")]
    TooOld { after: Revision, kept: Revision },
    #[error("the prefix names no kind")]
    Prefix,
}

/// Events of one prefix, in order, without gaps; or an error.
pub struct Watch {
    shared: Arc<Shared>,
    ring: Arc<Ring>,
    woken: tokio::sync::watch::Receiver<u64>,
    prefix: Box<str>,
    cursor: Revision,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, prefix: &str, after: Revision) -> Result<Self, Error> {
        let kind = key::kind(prefix).ok_or(Error::Prefix)?;
        let ring = shared.rings().of(kind);
        let mut woken = ring.subscribe();
        woken.mark_changed();
        let mut watch = Watch { shared, ring, woken, prefix: prefix.into(), cursor: after };
        // Looks at the floor only: nothing is taken.
        watch.take(&mut Vec::new(), 0)?;
        Ok(watch)
    }

    /// Takes up to `limit` events that are there now. Answers the revision up to which this watch has now
    /// told everything.
    pub fn take(&mut self, out: &mut Vec<Event>, limit: usize) -> Result<Revision, Error> {
        // The revision first: the rings hold every event up to a visible revision, and none beyond it may
        // be told, or a reader woken by it would not find its effect.
        let until = self.shared.revision();
        if until <= self.cursor {
            return Ok(self.cursor);
        }
        match self.ring.read(&self.prefix, self.cursor, until, limit, out) {
            Ok(seen) => {
                self.cursor = seen;
                Ok(seen)
            }
            Err(fell) => Err(Error::TooOld { after: self.cursor, kept: fell.floor }),
        }
    }

    /// Waits until the kind has events that `take` has not looked at (or may have: a wake may be empty).
    pub async fn changed(&mut self) {
        // The sender lives in the ring that this watch holds: it cannot be gone.
        let _ = self.woken.changed().await;
    }

    /// The next event; for callers that want no more than a stream.
    pub async fn next(&mut self) -> Result<Event, Error> {
        let mut one = Vec::with_capacity(1);
        loop {
            self.take(&mut one, 1)?;
            if let Some(event) = one.pop() {
                return Ok(event);
            }
            self.changed().await;
        }
    }
}
