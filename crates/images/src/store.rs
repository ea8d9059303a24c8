//! The store's folders, and blobs by digest.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::SystemTime,
};

use oci::{Digest, ImageConfig, digest::Algorithm, manifest::Document};

use crate::{Error, Ingest, Result};

/// The largest image configuration that is read, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// The image store of one state folder. Cheap to clone; one process at a time.
#[derive(Clone)]
pub struct Store(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub blobs: PathBuf,
    pub names: PathBuf,
    pub trees: PathBuf,
    /// Shared by whoever adds names, exclusive for whoever removes: what was seen to be there stays while it is named.
    pub gate: RwLock<()>,
    /// Shared by whoever unpacks, exclusive for whoever removes trees.
    pub tree_gate: RwLock<()>,
    /// One lock for each tree that is being unpacked.
    pub unpacking: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Trees are not synced; after another boot they are unpacked anew.
    pub boot: String,
    _lock: durable::Lock,
}

impl Store {
    /// Opens the store in the state folder, making it if need be, and removes what a crash left half-done.
    pub fn open(state: &Path) -> Result<Self> {
        let (blobs, names, trees) = (state.join("blobs"), state.join("names"), state.join("trees"));
        for dir in [&blobs.join("sha256"), &blobs.join("sha512"), &names, &trees] {
            durable::create_dir_all(dir).map_err(Error::io("making", dir))?;
        }
        let lock = durable::Lock::acquire(&blobs.join("lock")).map_err(Error::Locked)?;
        for algorithm in ["sha256", "sha512"] {
            let dir = blobs.join(algorithm);
            durable::sweep(&dir).map_err(Error::io("cleaning", &dir))?;
        }
        crate::names::sweep(&names)?;
        crate::tree::sweep(&trees)?;
        let boot =
            fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned();
        Ok(Store(Arc::new(Inner {
            blobs,
            names,
            trees,
            gate: RwLock::default(),
            tree_gate: RwLock::default(),
            unpacking: Mutex::default(),
            boot,
            _lock: lock,
        })))
    }

    /// Where the blob is, or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.0.blobs.join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// Is the blob here?
    pub fn has(&self, digest: &Digest) -> bool {
        self.blob_path(digest).is_file()
    }

    /// The blob's size in bytes, if it is here.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("looking at", &path)(e)),
        }
    }

    /// Like [`Store::size`], and keeps the blob from being collected for the next hour: for who announces that it
    /// need not be sent.
    pub fn reserve(&self, digest: &Digest) -> Result<Option<u64>> {
        let _gate = self.0.gate.read().unwrap_or_else(|e| e.into_inner());
        let path = self.blob_path(digest);
        match File::options().append(true).open(&path) {
            Ok(file) => {
                file.set_modified(SystemTime::now()).map_err(Error::io("touching", &path))?;
                Ok(Some(file.metadata().map_err(Error::io("looking at", &path))?.len()))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("opening", &path)(e)),
        }
    }

    /// Opens the blob for reading.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let path = self.blob_path(digest);
        File::open(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::BlobMissing(digest.clone()),
            _ => Error::io("opening", &path)(e),
        })
    }

    /// The content of a small blob, such as a manifest or a configuration.
    pub fn read(&self, digest: &Digest) -> Result<Vec<u8>> {
        let file = self.open_blob(digest)?;
        read_bounded(file, CONFIG_BYTES_MAX, &self.blob_path(digest))
    }

    /// The manifest or index with this digest.
    pub fn document(&self, digest: &Digest) -> Result<Document> {
        let raw = self.read(digest)?;
        let actual = Digest::of_with(digest.algorithm(), &raw);
        if actual != *digest {
            return Err(Error::WrongDigest { expected: digest.clone(), actual });
        }
        let refused = |source| Error::Manifest { digest: digest.clone(), source };
        let mut document = Document::parse(raw, None).map_err(refused)?;
        document.descriptor.digest = digest.clone();
        Ok(document)
    }

    /// The image configuration with this digest.
    pub fn config(&self, digest: &Digest) -> Result<ImageConfig> {
        let raw = self.read(digest)?;
        ImageConfig::parse(&raw).map_err(|source| Error::Config { digest: digest.clone(), source })
    }

    /// Starts to take in a blob.
    pub fn ingest(&self) -> Result<Ingest> {
        Ingest::new(self.clone())
    }

    /// Takes in a blob that is in memory.
    pub fn put(&self, bytes: &[u8], expected: Option<&Digest>) -> Result<Digest> {
        let mut ingest = self.ingest()?;
        ingest.write_all(bytes)?;
        ingest.finish(expected)
    }

    /// Every blob: digest, size, time of the last change.
    pub(crate) fn blobs(&self) -> Result<Vec<(Digest, u64, SystemTime)>> {
        let mut blobs = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let dir = self.0.blobs.join(algorithm.as_str());
            for entry in fs::read_dir(&dir).map_err(Error::io("listing", &dir))? {
                let entry = entry.map_err(Error::io("listing", &dir))?;
                let name = entry.file_name();
                let text = format!("{}:{}", algorithm.as_str(), name.to_string_lossy());
                let (Ok(digest), Ok(metadata)) = (Digest::parse(&text), entry.metadata()) else { continue };
                blobs.push((digest, metadata.len(), metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)));
            }
        }
        Ok(blobs)
    }

    /// Bytes that blobs take, and their number.
    pub fn usage(&self) -> Result<(u64, u64)> {
        let blobs = self.blobs()?;
        Ok((blobs.iter().map(|(_, size, _)| size).sum(), blobs.len() as u64))
    }
}

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_bounded(file: File, limit: u64, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(Error::io("reading", path))?;
    if bytes.len() as u64 > limit { Err(Error::TooLarge { limit }) } else { Ok(bytes) }
}
