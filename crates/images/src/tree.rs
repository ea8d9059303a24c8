//! Unpacked trees: `trees/<chain id>/rootfs`, read-only by agreement, one for each stack of layers.
//!
//! A tree is a cache of blobs, which are durable; so its files are not synced. `complete` in its folder names the
//! boot in which it was unpacked: after another boot, when a power cut may have torn it, it is unpacked anew.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use oci::{
    Descriptor, Digest, ImageConfig, Manifest, Platform,
    layer::{Limits, decompress, expect},
    manifest::Content,
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Store, clone::clone_tree, room::Room, unpack::Unpacker};

const VERSION: u8 = 1;
/// Prefix of folders that are being unpacked or removed.
const TEMPORARY: &str = ".tmp-";

/// An image's file system, ready to be run.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The root file system. Shared by every container of the image: never write to it.
    pub path: PathBuf,
    pub config: ImageConfig,
    /// Of the image's manifest (of the chosen one, when asked with an index).
    pub digest: Digest,
}

#[derive(Serialize, Deserialize)]
struct Complete {
    version: u8,
    boot: String,
}

/// An image whose manifest and configuration hold together.
pub(crate) struct Image {
    pub digest: Digest,
    pub manifest: Manifest,
    pub config: ImageConfig,
}

impl Store {
    /// The unpacked tree of the image with this manifest (of an index: the image for this machine). Unpacks it if
    /// need be; layers that lie, are torn, or lead out of the image are refused, and leave nothing.
    pub fn tree(&self, digest: &Digest) -> Result<Tree> {
        let image = self.image(digest, &Platform::host())?;
        let _gate = self.0.tree_gate.read().unwrap_or_else(|e| e.into_inner());
        let path = self.ensure(&image, image.manifest.layers.len())?.join("rootfs");
        Ok(Tree { path, config: image.config, digest: image.digest })
    }

    /// The image that a manifest or index stands for on a platform.
    pub(crate) fn image(&self, digest: &Digest, platform: &Platform) -> Result<Image> {
        let mut digest = digest.clone();
        // An index may list an index; deeper nesting is refused by running out of steps.
        for _ in 0..4 {
            let document = self.document(&digest)?;
            match document.content {
                Content::Index(index) => {
                    let chosen = index.select(platform).ok_or_else(|| Error::NoPlatform {
                        digest: digest.clone(),
                        platform: Box::new(platform.clone()),
                    })?;
                    digest = chosen.digest.clone();
                }
                Content::Image(manifest) => {
                    let refused = |source| Error::Manifest { digest: digest.clone(), source };
                    manifest.validate_image().map_err(refused)?;
                    let config = self.config(&manifest.config.digest)?;
                    manifest.validate_config(&config).map_err(refused)?;
                    return Ok(Image { digest, manifest, config });
                }
            }
        }
        Err(Error::NoPlatform { digest, platform: Box::new(platform.clone()) })
    }

    /// The folder of the tree of the first `count` layers.
    ///
    /// All layers but the last make a tree of their own, and the whole is a copy of it by hard links: an image that
    /// is built again with only its last layer changed costs that layer.
    fn ensure(&self, image: &Image, count: usize) -> Result<PathBuf> {
        let name = tree_name(&image.config, count);
        let path = self.0.trees.join(&name);
        let lock = self.unpacking(&name);
        let held = lock.lock().unwrap_or_else(|e| e.into_inner());
        let result = if self.is_complete(&path) { Ok(path) } else { self.unpack(image, count, &path) };
        drop(held);
        drop(lock);
        let mut unpacking = self.0.unpacking.lock().unwrap_or_else(|e| e.into_inner());
        unpacking.retain(|_, lock| Arc::strong_count(lock) > 1);
        result
    }

    fn unpack(&self, image: &Image, count: usize, path: &Path) -> Result<PathBuf> {
        let whole = count == image.manifest.layers.len();
        let base = if whole && count > 1 {
            Some((count - 1, self.ensure(image, count - 1)?))
        } else {
            let complete = |k: &usize| self.is_complete(&self.0.trees.join(tree_name(&image.config, *k)));
            (1..count).rev().find(complete).map(|k| (k, self.0.trees.join(tree_name(&image.config, k))))
        };
        let temporary = Temporary::new(&self.0.trees)?;
        let root = temporary.0.join("rootfs");
        fs::create_dir(&root).map_err(Error::io("making", &root))?;
        // The container's `/`, unless a layer says otherwise; the folders above let only root pass.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).map_err(Error::io("opening", &root))?;
        let start = match base {
            Some((k, base)) => {
                clone_tree(&base.join("rootfs"), &root)?;
                k
            }
            None => 0,
        };
        for at in start..count {
            self.unpack_layer(&image.manifest.layers[at], &image.config.rootfs.diff_ids[at], &root)?;
        }
        let complete = Complete { version: VERSION, boot: self.0.boot.clone() };
        let marker = temporary.0.join("complete");
        let bytes = serde_json::to_vec(&complete).map_err(|e| Error::io("encoding", &marker)(e.into()))?;
        fs::write(&marker, bytes).map_err(Error::io("writing", &marker))?;
        if path.exists() {
            // Of another boot, or damaged.
            discard(&self.0.trees, path)?;
        }
        fs::rename(&temporary.0, path).map_err(Error::io("renaming", path))?;
        Ok(path.to_owned())
    }

    fn unpack_layer(&self, layer: &Descriptor, diff_id: &Digest, root: &Path) -> Result<()> {
        let refused = |source| Error::Layer { digest: layer.digest.clone(), source };
        let blob = self.open_blob(&layer.digest)?;
        let stream = decompress(blob).map_err(refused)?;
        let hashing = oci::digest::Hashing::new(diff_id.algorithm(), stream);
        let room = Room::at(root).map_err(Error::io("looking for free space below", root))?;
        // The blob's own size: a manifest may say anything.
        let most = Limits::default().of_layer(self.size(&layer.digest)?.unwrap_or(0));
        let limits =
            Limits { bytes: most.bytes.min(room.bytes), entries: most.entries.min(room.files), ..most };
        let rest =
            Unpacker::open(root)?.unpack(hashing, &layer.digest, limits).map_err(|error| match error {
                // Not the layer's fault, but the disk's.
                Error::Layer { source: oci::layer::Error::TooMuch { limit, .. }, digest }
                    if limit < most.bytes =>
                {
                    Error::NoRoom { digest, bytes: room.bytes }
                }
                Error::Layer { source: oci::layer::Error::TooLarge { size, .. }, digest }
                    if size <= most.bytes =>
                {
                    Error::NoRoom { digest, bytes: room.bytes }
                }
                error => error,
            })?;
        expect(diff_id, rest).map_err(refused)
    }

    fn is_complete(&self, path: &Path) -> bool {
        let bytes = fs::read(path.join("complete")).unwrap_or_default();
        serde_json::from_slice::<Complete>(&bytes)
            .is_ok_and(|c| c.version == VERSION && !c.boot.is_empty() && c.boot == self.0.boot)
    }

    fn unpacking(&self, name: &str) -> Arc<Mutex<()>> {
        let mut unpacking = self.0.unpacking.lock().unwrap_or_else(|e| e.into_inner());
        Arc::clone(unpacking.entry(name.to_owned()).or_default())
    }
}

/// The folder's name for the first `count` layers of an image.
pub(crate) fn tree_name(config: &ImageConfig, count: usize) -> String {
    let chain = config.chain_id(count);
    chain.map_or_else(|| "empty".into(), |id| format!("{}-{}", id.algorithm().as_str(), id.hex()))
}

/// Removes what a crash left half-unpacked.
pub(crate) fn sweep(trees: &Path) -> Result<()> {
    for entry in fs::read_dir(trees).map_err(Error::io("listing", trees))? {
        let entry = entry.map_err(Error::io("listing", trees))?;
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            let path = entry.path();
            durable::remove_dir_all(&path).map_err(Error::io("removing", &path))?;
        }
    }
    Ok(())
}

/// Removes a tree so that a crash on the way leaves only what [`sweep`] removes.
pub(crate) fn discard(trees: &Path, path: &Path) -> Result<()> {
    let temporary = Temporary::new(trees)?;
    fs::rename(path, temporary.0.join("old")).map_err(Error::io("removing", path))?;
    durable::remove_dir_all(&temporary.0).map_err(Error::io("removing", &temporary.0))
}

/// A folder that is removed with its content unless it was renamed.
struct Temporary(PathBuf);

impl Temporary {
    fn new(trees: &Path) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = trees.join(format!("{TEMPORARY}{}-{number}", std::process::id()));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Temporary(path)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("making", &path)(e)),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.0.exists()
            && let Err(error) = durable::remove_dir_all(&self.0)
        {
            tracing::warn!(path = %self.0.display(), %error, "a half-unpacked tree stays until the next start");
        }
    }
}
