//! The owner thread: commands in, groups of durable commits out.

use std::sync::Arc;

use lifecycle::bound::Bound;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};

use crate::disk::{Change, Disk};
use crate::{Entry, Event, Expect, Revision, Shared, Snapshot, write};

/// By so much an object may grow on a full disk, if it does not pass the quota: the marks of a deletion, a status.
const GROWTH_BYTES_MAX: usize = 4096;

/// Writes, and bytes of them, that one commit may take: until it is done they are in memory more than once.
const GROUP_MAX: usize = 128;
const GROUP_BYTES_MAX: u64 = 4 << 20;

pub(crate) type Encode = Box<dyn FnOnce(Revision) -> Vec<u8> + Send>;
type Reply = oneshot::Sender<Result<Entry, write::Error>>;

pub(crate) enum Command {
    Put { key: Arc<str>, expect: Expect, beyond_quota: bool, encode: Encode, reply: Reply },
    Delete { key: Arc<str>, expect: Expect, encode: Encode, reply: Reply },
    Close { reply: oneshot::Sender<()> },
}

pub(crate) struct Owner {
    disk: Disk,
    shared: Arc<Shared>,
    /// A group whose commit failed, and of which only the disk knows whether it arrived.
    doubtful: Option<Group>,
    /// Bytes of keys and values in the published state.
    bytes: u64,
    quota_bytes: u64,
    quota: Arc<Bound>,
}

fn size(key: &str, value: &[u8]) -> u64 {
    (key.len() + value.len()) as u64
}

/// Writes that share a commit.
struct Group {
    next: Snapshot,
    changes: Vec<Change>,
    events: Vec<Event>,
    replies: Vec<(Reply, Entry)>,
    /// Bytes of keys and values in the next state, and of what is written.
    bytes: u64,
    written: u64,
    quota: u64,
    /// The disk is full: the reserve is for what passes the quota, for deletions, and for what hardly grows.
    short: bool,
}

impl Group {
    fn new(present: Snapshot, bytes: u64, quota: u64, short: bool) -> Self {
        let (changes, events, replies) = Default::default();
        Group { next: present, changes, events, replies, bytes, written: 0, quota, short }
    }

    fn is_full(&self) -> bool {
        self.changes.len() >= GROUP_MAX || self.written >= GROUP_BYTES_MAX
    }

    fn check(&self, key: &str, expect: Expect) -> Result<Option<Entry>, write::Error> {
        let present = self.next.get(key).cloned();
        match (expect, present) {
            (Expect::Any, present) => Ok(present),
            (Expect::Absent, None) => Ok(None),
            (Expect::Absent, Some(entry)) => Err(write::Error::Exists(entry)),
            (Expect::Revision(_), None) => Err(write::Error::Missing),
            (Expect::Revision(revision), Some(entry)) if entry.revision == revision => Ok(Some(entry)),
            (Expect::Revision(_), Some(entry)) => Err(write::Error::Changed(entry)),
        }
    }

    fn put(&mut self, key: Arc<str>, expect: Expect, beyond_quota: bool, encode: Encode, reply: Reply) {
        let before = match self.check(&key, expect) {
            Ok(before) => before,
            Err(refused) => return answer(reply, Err(refused)),
        };
        let revision = Revision(self.next.revision.0 + 1);
        let value: Arc<[u8]> = encode(revision).into();
        let most = before.as_ref().map_or(0, |before| before.value.len() + GROWTH_BYTES_MAX);
        if self.short && !beyond_quota && value.len() > most {
            return answer(reply, Err(write::Error::short()));
        }
        let old = before.as_ref().map_or(0, |before| size(&key, &before.value));
        let new = size(&key, &value);
        // What becomes smaller always passes.
        if !beyond_quota && new > old && self.bytes - old + new > self.quota {
            let error = write::Error::Quota { used: self.bytes, wanted: new - old, limit: self.quota };
            return answer(reply, Err(error));
        }
        self.bytes = self.bytes - old + new;
        self.written += new;
        let entry = Entry { value: value.clone(), revision };
        self.next.revision = revision;
        self.next.entries.insert(key.clone(), entry.clone());
        self.changes.push(Change { key: key.clone(), entry: Some(entry.clone()) });
        self.events.push(Event { key, revision, now: Some(value), before, last: None });
        self.replies.push((reply, entry));
    }

    fn delete(&mut self, key: Arc<str>, expect: Expect, encode: Encode, reply: Reply) {
        let before = match self.check(&key, expect) {
            Ok(Some(before)) => before,
            Ok(None) => return answer(reply, Err(write::Error::Missing)),
            Err(refused) => return answer(reply, Err(refused)),
        };
        let revision = Revision(self.next.revision.0 + 1);
        let last: Arc<[u8]> = encode(revision).into();
        self.bytes -= size(&key, &before.value);
        self.written += size(&key, &last);
        self.next.revision = revision;
        self.next.entries.remove(&*key);
        self.changes.push(Change { key: key.clone(), entry: None });
        self.events.push(Event { key, revision, now: None, before: Some(before), last: Some(last.clone()) });
        self.replies.push((reply, Entry { value: last, revision }));
    }
}

fn answer(reply: Reply, result: Result<Entry, write::Error>) {
    // Who no longer waits for the answer has given it up.
    let _ = reply.send(result);
}

impl Owner {
    pub(crate) fn new(disk: Disk, shared: Arc<Shared>, quota_bytes: u64) -> Self {
        let quota = Bound::new("store_bytes", quota_bytes);
        let bytes = shared.snapshot().entries.iter().map(|(key, entry)| size(key, &entry.value)).sum();
        quota.set(bytes);
        Owner { disk, shared, doubtful: None, bytes, quota_bytes, quota }
    }

    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        while let Some(first) = queue.blocking_recv() {
            if let Err(error) = self.settle() {
                refuse(first, error);
                continue;
            }
            let short = self.disk.is_short();
            let mut group = Group::new(self.shared.snapshot(), self.bytes, self.quota_bytes, short);
            let mut close = None;
            let mut next = Some(first);
            while let Some(command) = next {
                match command {
                    Command::Put { key, expect, beyond_quota, encode, reply } => {
                        group.put(key, expect, beyond_quota, encode, reply);
                    }
                    Command::Delete { key, expect, encode, reply } => {
                        group.delete(key, expect, encode, reply);
                    }
                    Command::Close { reply } => {
                        close = Some(reply);
                        break;
                    }
                }
                next = if group.is_full() { None } else { queue.try_recv().ok() };
            }
            if !group.changes.is_empty() {
                self.commit(group);
            }
            if let Some(reply) = close {
                drop(self);
                let _ = reply.send(());
                return;
            }
        }
    }

    fn commit(&mut self, group: Group) {
        let Err(failed) = self.disk.commit(group.next.revision, &group.changes) else {
            self.publish(group);
            return;
        };
        // The file is opened anew: only it knows whether the commit arrived.
        let failed = write::Error::from_disk(failed);
        warn!(error = &failed as &dyn std::error::Error, "a commit failed; the store is opened anew");
        let arrived = self.disk.reopen();
        match arrived {
            Ok(revision) if revision == group.next.revision => self.publish(group),
            Ok(_) => {
                for (reply, _) in group.replies {
                    answer(reply, Err(failed.clone()));
                }
            }
            Err(reopen) => {
                error!(error = &reopen as &dyn std::error::Error, "the store cannot be opened");
                let mut group = group;
                for (reply, _) in group.replies.drain(..) {
                    answer(reply, Err(failed.clone()));
                }
                self.doubtful = Some(group);
            }
        }
    }

    /// After an error that left the file closed: opens it and takes in what had arrived nevertheless.
    fn settle(&mut self) -> Result<(), write::Error> {
        if self.disk.is_open() {
            return Ok(());
        }
        let revision = self.disk.reopen().map_err(write::Error::from_disk)?;
        if let Some(group) = self.doubtful.take()
            && group.next.revision == revision
        {
            self.publish(group);
        }
        Ok(())
    }

    fn publish(&mut self, group: Group) {
        self.bytes = group.bytes;
        self.quota.set(group.bytes);
        self.shared.publish(group.next, group.events);
        for (reply, entry) in group.replies {
            answer(reply, Ok(entry));
        }
    }
}

fn refuse(command: Command, error: write::Error) {
    match command {
        Command::Put { reply, .. } | Command::Delete { reply, .. } => answer(reply, Err(error)),
        Command::Close { reply } => {
            let _ = reply.send(());
        }
    }
}
