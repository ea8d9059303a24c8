//! Taking in a blob: written under a temporary name, hashed on the way, verified, synced, renamed.

use std::{
    fs::File,
    io::{self, Write},
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use durable::Staged;
use lifecycle::bound::{Bound, Permit};
use oci::{
    Digest,
    digest::{Algorithm, Hasher},
};
use tokio::{sync::mpsc, task};

use crate::{
    Error, Result, Store,
    room::{self, Grant},
    store::read_bounded,
};

/// The most blobs that are taken in at once: each holds a file open.
static INGESTS: LazyLock<Arc<Bound>> = LazyLock::new(|| Bound::new("images_ingests", 4096));

/// The largest blob, in bytes.
pub(crate) const BLOB_BYTES_MAX: u64 = 64 << 30;

/// Parts that wait between the network and the disk.
const FEED_PARTS: usize = 16;

/// A blob on its way in. Dropped unfinished, it leaves nothing.
pub struct Ingest {
    store: Store,
    staged: Staged,
    hasher: Hasher,
    size: u64,
    limit: u64,
    grant: Grant,
    permit: Permit,
}

impl Ingest {
    pub(crate) fn new(store: Store) -> Result<Self> {
        let permit = INGESTS.acquire(1).ok_or_else(|| Error::Busy(INGESTS.limit()))?;
        let dir = store.0.blobs.join("sha256");
        let staged = Staged::new(&dir).map_err(Error::io("making a file in", &dir))?;
        let hasher = Hasher::new(Algorithm::Sha256);
        let grant = Grant::new(room::look(&dir));
        Ok(Ingest { store, staged, hasher, size: 0, limit: BLOB_BYTES_MAX, grant, permit })
    }

    /// Refuses to grow beyond so many bytes.
    pub fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes.min(BLOB_BYTES_MAX);
        self
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes.
    pub fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        if self.size + bytes.len() as u64 > self.limit {
            return Err(Error::TooLarge { limit: self.limit });
        }
        let path = self.staged.path().to_owned();
        let written = self.grant.take(bytes.len() as u64).and_then(|()| self.staged.write_all(bytes));
        written.map_err(Error::io("writing", &path))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Verifies, and makes the blob durable under its name.
    pub fn finish(self, expected: Option<&Digest>) -> Result<Digest> {
        self.seal(expected)?.commit()
    }

    /// Verifies; the blob has no name yet.
    pub fn seal(self, expected: Option<&Digest>) -> Result<Sealed> {
        let algorithm = expected.map_or(Algorithm::Sha256, Digest::algorithm);
        let actual = match algorithm {
            Algorithm::Sha256 => self.hasher.finish(),
            // The announced algorithm is known only at the end: read again.
            algorithm => rehash(self.staged.path(), algorithm)?,
        };
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(Error::WrongDigest { expected: expected.clone(), actual });
        }
        let (store, staged, size) = (self.store, self.staged, self.size);
        Ok(Sealed { store, staged, digest: actual, size, _permit: self.permit })
    }

    /// Takes bytes from a task; the disk work happens on a thread for it.
    pub fn feed(mut self) -> Feed {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(FEED_PARTS);
        let task = task::spawn_blocking(move || {
            while let Some(part) = receiver.blocking_recv() {
                self.write_all(&part)?;
            }
            Ok(self)
        });
        Feed { sender, task }
    }
}

impl Write for Ingest {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_all(buf).map_err(|error| match error {
            Error::Io { source, .. } => source,
            other => io::Error::new(io::ErrorKind::FileTooLarge, other),
        })?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rehash(path: &std::path::Path, algorithm: Algorithm) -> Result<Digest> {
    let file = File::open(path).map_err(Error::io("opening", path))?;
    let mut hashing = oci::digest::Hashing::new(algorithm, file);
    io::copy(&mut hashing, &mut io::sink()).map_err(Error::io("reading", path))?;
    Ok(hashing.finish().1)
}

/// An ingest that a task feeds.
pub struct Feed {
    sender: mpsc::Sender<Bytes>,
    task: task::JoinHandle<Result<Ingest>>,
}

impl Feed {
    /// Hands over the next bytes. `false`: the disk refused; [`Feed::done`] tells why.
    pub async fn push(&mut self, bytes: Bytes) -> bool {
        self.sender.send(bytes).await.is_ok()
    }

    /// Waits until everything is written.
    pub async fn done(self) -> Result<Ingest> {
        drop(self.sender);
        match self.task.await {
            Ok(result) => result,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends.
            Err(_) => Err(Error::Busy(0)),
        }
    }
}

/// A verified blob that has no name yet. Dropped, it leaves nothing.
pub struct Sealed {
    store: Store,
    staged: Staged,
    digest: Digest,
    size: u64,
    _permit: Permit,
}

impl Sealed {
    /// The blob's digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The blob's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Opens the content.
    pub(crate) fn open(&self) -> Result<File> {
        File::open(self.staged.path()).map_err(Error::io("opening", self.staged.path()))
    }

    /// The content of a small blob.
    pub(crate) fn read(&self, limit: u64) -> Result<Vec<u8>> {
        read_bounded(self.open()?, limit, self.staged.path())
    }

    /// Makes the blob durable under its name. One that is there already is kept.
    pub fn commit(self) -> Result<Digest> {
        if self.store.reserve(&self.digest)? != Some(self.size) {
            let path = self.store.blob_path(&self.digest);
            self.staged.commit(&path).map_err(Error::io("writing", &path))?;
        }
        Ok(self.digest)
    }
}
