//! Revisioned keys on disk, served from memory.
//!
//! **Invariant:** a write is answered, and visible to readers and watchers, only after it is on disk.
//! **Invariant:** revisions grow by one with each write, over restarts too; a revision names one state of
//! the whole store.
//!
//! One owner thread takes a closed set of commands over a bounded channel and commits what has queued up as
//! one durable transaction. Readers work on a persistent map: a snapshot costs nothing and never changes.
//! Watchers read a bounded ring of events that each kind has; who falls off it is told so.
//! The format on disk is `docs/format-store.md`.

mod disk;
mod key;
mod owner;
mod reserve;
mod ring;
pub mod watch;
pub mod write;

use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, RwLock};

use imbl::OrdMap;
use tokio::sync::{mpsc, oneshot};

pub use disk::Error as OpenError;
pub use redb::StorageBackend;
pub use ring::Event;
pub use watch::Watch;

use owner::Command;
use ring::Rings;

/// The store's file in its folder.
const FILE: &str = "store.redb";

/// The number of a state of the store: how many writes it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A value and the revision of the write that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub value: Arc<[u8]>,
    pub revision: Revision,
}

/// The bounds of a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pages that redb may keep in memory, in bytes; values are served from our own map.
    pub cache_bytes: usize,
    /// Events kept for the watchers of each kind.
    pub ring_events: usize,
    /// Bytes of values that those events may keep alive, for each kind.
    pub ring_bytes: usize,
    /// Bytes that are left to them once nothing new came: see [`Store::forget_old_events`].
    pub ring_bytes_old: usize,
    /// Writes that may wait for the owner; more wait in their callers.
    pub queue: usize,
    /// Bytes of keys and values: what would lead beyond is refused. All of it is in memory.
    pub quota_bytes: u64,
    /// Bytes of the disk that are set aside for the store's file, so that on a full disk objects can still be deleted
    /// and their status told.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 2 << 20,
            ring_events: 4096,
            ring_bytes: 4 << 20,
            ring_bytes_old: 1 << 20,
            queue: 256,
            quota_bytes: 1 << 30,
            reserve_bytes: 8 << 20,
        }
    }
}

/// What a write demands of the key's present state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The key is absent.
    Absent,
    /// The key was last written at this revision.
    Revision(Revision),
    /// Nothing (for a delete: that the key exists).
    Any,
}

/// One state of the store; immutable.
#[derive(Clone)]
pub struct Snapshot {
    entries: OrdMap<Arc<str>, Entry>,
    revision: Revision,
}

impl Snapshot {
    /// The revision of this state.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The entry of `key`.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// The entries whose keys start with `prefix`, in order of keys, from behind `after` on.
    pub fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> + 'a {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.entries
            .range::<_, str>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
    }
}

impl Snapshot {
    /// Writes a store of its own into `folder`, which must have none: the entries that `keep` gives back, changed or
    /// not, at this state's revision.
    pub fn write_to(
        &self,
        folder: &Path,
        keep: impl Fn(&str, &Entry) -> Option<Entry>,
    ) -> Result<(), OpenError> {
        let folder_error = |source| OpenError::Folder { path: folder.to_owned(), source };
        std::fs::create_dir_all(folder).map_err(folder_error)?;
        let kept: Vec<(&str, Entry)> =
            self.entries.iter().filter_map(|(key, entry)| Some((&**key, keep(key, entry)?))).collect();
        disk::write_copy(&folder.join(FILE), self.revision, kept.iter().map(|(key, entry)| (*key, entry)))
            .map_err(|error| OpenError::Open(Box::new(error)))
    }
}

/// The store; a clone is another handle on the same one.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    queued: Arc<lifecycle::bound::Bound>,
}

pub(crate) struct Shared {
    state: RwLock<Snapshot>,
    rings: Rings,
    reached: tokio::sync::watch::Sender<Revision>,
}

impl Shared {
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    pub(crate) fn revision(&self) -> Revision {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner()).revision
    }

    /// Shows a committed state. The events lie in the rings before: who sees the revision finds them.
    pub(crate) fn publish(&self, next: Snapshot, events: Vec<Event>) {
        let revision = next.revision;
        let touched = self.rings.append(events);
        *self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = next;
        self.reached.send_replace(revision);
        for ring in touched {
            ring.wake();
        }
    }
}

impl Store {
    /// Opens the store in `folder`, creating both if they are not there. One store has one process.
    pub fn open(folder: &Path, options: Options) -> Result<Store, OpenError> {
        let folder_error = |source| OpenError::Folder { path: folder.to_owned(), source };
        durable::create_dir_all(folder).map_err(folder_error)?;
        let path = folder.join(FILE);
        let fresh = !path.exists();
        let store =
            Store::start(disk::Disk::file(path, options.cache_bytes, options.reserve_bytes), options)?;
        if fresh {
            // The file's name must last as its content does.
            durable::sync_dir(folder).map_err(folder_error)?;
        }
        Ok(store)
    }

    /// Opens a store on backends of the caller's making; `backend` is asked again after an I/O error.
    pub fn open_on<B: StorageBackend>(
        backend: impl Fn() -> std::io::Result<B> + Send + 'static,
        options: Options,
    ) -> Result<Store, OpenError> {
        Store::start(disk::Disk::backend(backend, options.cache_bytes), options)
    }

    fn start(mut disk: disk::Disk, options: Options) -> Result<Store, OpenError> {
        let (entries, revision) = disk.load()?;
        let shared = Arc::new(Shared {
            state: RwLock::new(Snapshot { entries, revision }),
            rings: Rings::new(revision, &options),
            reached: tokio::sync::watch::Sender::new(revision),
        });
        let (commands, queue) = mpsc::channel(options.queue);
        let owner = owner::Owner::new(disk, shared.clone(), options.quota_bytes);
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || owner.run(queue))
            .map_err(OpenError::Thread)?;
        let queued = lifecycle::bound::Bound::new("store_queue_writes", commands.max_capacity() as u64);
        Ok(Store { shared, commands, queued })
    }

    /// The present state.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot()
    }

    /// The state of one kind's keys at an earlier revision, as far as its events are kept; other kinds' keys
    /// are as they are now.
    pub fn snapshot_at(&self, prefix: &str, at: Revision) -> Result<Snapshot, watch::Error> {
        let kind = key::kind(prefix).ok_or(watch::Error::Prefix)?;
        let mut snapshot = self.shared.snapshot();
        if at < snapshot.revision {
            let ring = self.shared.rings().of(kind);
            ring.rewind(&mut snapshot, at)
                .map_err(|fell| watch::Error::TooOld { after: at, kept: fell.floor })?;
        }
        Ok(snapshot)
    }

    /// The present state's revision.
    pub fn revision(&self) -> Revision {
        self.shared.revision()
    }

    /// Waits until the store has reached a revision.
    pub async fn reached(&self, revision: Revision) {
        // The sender lives as long as this handle.
        let _ = self.shared.reached.subscribe().wait_for(|present| *present >= revision).await;
    }

    /// Lets go of events that were there at the call before, the oldest first, as long as a kind's events keep more than
    /// `ring_bytes_old` alive. Whoever follows has read them long ago; of large objects they would keep the last few in
    /// memory, deleted or not, until others of that kind are written.
    pub fn forget_old_events(&self) {
        self.shared.rings().forget_old();
    }

    /// Whether writes are still taken.
    pub fn is_open(&self) -> bool {
        !self.commands.is_closed()
    }

    /// The entry of `key`.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.shared.state.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(key).cloned()
    }

    /// Writes `key` if `expect` holds and the quota allows it; `encode` is given the revision that the write gets.
    pub async fn put(
        &self,
        key: &str,
        expect: Expect,
        encode: impl FnOnce(Revision) -> Vec<u8> + Send + 'static,
    ) -> Result<Entry, write::Error> {
        self.write(key, expect, false, Box::new(encode)).await
    }

    /// [`Store::put`] beyond the quota: for what has to be written so that anything can become less.
    pub async fn put_beyond_quota(
        &self,
        key: &str,
        expect: Expect,
        encode: impl FnOnce(Revision) -> Vec<u8> + Send + 'static,
    ) -> Result<Entry, write::Error> {
        self.write(key, expect, true, Box::new(encode)).await
    }

    async fn write(
        &self,
        key: &str,
        expect: Expect,
        beyond_quota: bool,
        encode: owner::Encode,
    ) -> Result<Entry, write::Error> {
        key::check(key)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Put { key: key.into(), expect, beyond_quota, encode, reply };
        self.send(command).await?;
        answer.await.map_err(|_| write::Error::Closed)?
    }

    /// Deletes `key` if `expect` holds; `encode_last` gives the last state that watchers are told, with the
    /// deletion's revision in it. Answers that state.
    pub async fn delete(
        &self,
        key: &str,
        expect: Expect,
        encode_last: impl FnOnce(Revision) -> Vec<u8> + Send + 'static,
    ) -> Result<Entry, write::Error> {
        key::check(key)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Delete { key: key.into(), expect, encode: Box::new(encode_last), reply };
        self.send(command).await?;
        answer.await.map_err(|_| write::Error::Closed)?
    }

    async fn send(&self, command: Command) -> Result<(), write::Error> {
        self.commands.send(command).await.map_err(|_| write::Error::Closed)?;
        self.queued.set((self.commands.max_capacity() - self.commands.capacity()) as u64);
        Ok(())
    }

    /// The events behind `after` of the keys that start with `prefix`, which names one kind at least.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, watch::Error> {
        Watch::new(self.shared.clone(), prefix, after)
    }

    /// Ends the owner after the writes that are queued; later writes answer `Closed`, reads go on.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Close { reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}

impl Shared {
    pub(crate) fn rings(&self) -> &Rings {
        &self.rings
    }
}
