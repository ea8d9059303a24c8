//! Importing images from an archive: an OCI layout in a tar (image spec, image-layout.md) or what `docker save` writes,
//! read once, as a stream.
//!
//! Invariant: nothing is named, and no blob is kept, before everything was verified: digests, sizes, manifests, diff ids,
//! and that each layer's entries stay inside the image.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, Read},
};

use oci::{
    Descriptor, Digest, ImageConfig, Index, Manifest, Reference,
    layer::{Entry, Kind, Limits, Reader, decompress, verify},
    manifest::{Content, Document},
    media_type,
};
use serde::Deserialize;

use crate::{Error, Result, Sealed, Store, store::CONFIG_BYTES_MAX};

/// Files in an archive that are not addressed by a digest and are read into memory.
const DOCUMENTS: [&str; 4] = ["index.json", "manifest.json", "oci-layout", "repositories"];

/// The most files of an archive: each is held open until all is verified.
const FILES_MAX: usize = 2048;

/// How deep indexes may nest.
const DEPTH_MAX: usize = 4;

/// What to import, and how much of it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The name of the image, for archives that name none (or one that is to be ignored). Only for archives of one image.
    pub name: Option<Reference>,
    /// Bounds on the archive, and on each layer in it.
    pub limits: Limits,
}

/// An image that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    pub names: Vec<Reference>,
    pub descriptor: Descriptor,
}

/// Why an archive is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it has neither index.json nor manifest.json")]
    NotAnArchive,
    #[error("it has {0:?} twice")]
    Duplicate(String),
    #[error("it has more than {FILES_MAX} files")]
    TooManyFiles,
    #[error("entry {0:?} leads out of it")]
    Traversal(String),
    #[error("entry {0:?} is neither file, folder nor link")]
    Kind(String),
    #[error("{0} is no valid JSON of its type")]
    Json(&'static str),
    #[error("its layout version is {0:?}, not \"1.0.0\"")]
    Layout(String),
    #[error("{0:?} is missing")]
    Missing(String),
    #[error("it has no image")]
    Empty,
    #[error("it names no image")]
    Unnamed,
    #[error("it has several images, and one name was given")]
    Several,
    #[error("indexes nest too deep")]
    TooDeep,
    #[error("image name {0:?} is not valid")]
    Name(String),
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Error::ArchiveRefused(refused)
    }
}

/// A row of `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Store {
    /// Imports every image of the archive (plain or gzip). All or nothing.
    pub fn import(&self, archive: impl Read, options: &Options) -> Result<Vec<Imported>> {
        let mut import = Import::new(self, options);
        import.read_archive(archive)?;
        let saved = import.saved()?;
        let mut images = match import.documents.contains_key("index.json") {
            true => import.read_layout()?,
            false => import.read_saved(&saved)?,
        };
        import.name(&mut images, &saved)?;
        import.commit(&images)?;
        Ok(images)
    }
}

struct Import<'a> {
    store: &'a Store,
    options: &'a Options,
    documents: BTreeMap<String, Vec<u8>>,
    blobs: HashMap<Digest, Sealed>,
    /// Digests of files by path; `docker save` addresses by path.
    paths: HashMap<String, Digest>,
    links: HashMap<String, String>,
    /// Manifests made here, for archives that have none.
    made: Vec<(Digest, Vec<u8>)>,
    /// What an image needs, in the order in which it is to be committed.
    needed: Vec<Digest>,
    verified: HashSet<(Digest, Digest)>,
    /// The configuration of each image manifest, for matching names.
    configs: Vec<(Digest, Digest)>,
}

impl<'a> Import<'a> {
    fn new(store: &'a Store, options: &'a Options) -> Self {
        Import {
            store,
            options,
            documents: BTreeMap::new(),
            blobs: HashMap::new(),
            paths: HashMap::new(),
            links: HashMap::new(),
            made: Vec::new(),
            needed: Vec::new(),
            verified: HashSet::new(),
            configs: Vec::new(),
        }
    }

    fn read_archive(&mut self, archive: impl Read) -> Result<()> {
        let stream = decompress(archive).map_err(Error::Archive)?;
        let mut reader = Reader::new(stream, self.options.limits);
        let mut seen = HashSet::new();
        while let Some(entry) = reader.next_entry().map_err(Error::Archive)? {
            let path = clean("", &entry.path).ok_or_else(|| Refused::Traversal(entry.display_path()))?;
            if entry.kind == Kind::Directory {
                continue;
            }
            if !seen.insert(path.clone()) {
                return Err(Refused::Duplicate(path).into());
            }
            if seen.len() > FILES_MAX {
                return Err(Refused::TooManyFiles.into());
            }
            match entry.kind {
                Kind::File => self.read_file(path, &entry, &mut reader)?,
                Kind::SymLink | Kind::HardLink => {
                    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                    let base = if entry.kind == Kind::SymLink { parent } else { "" };
                    let target =
                        clean(base, &entry.link).ok_or_else(|| Refused::Traversal(entry.display_path()))?;
                    self.links.insert(path, target);
                }
                _ => return Err(Refused::Kind(entry.display_path()).into()),
            }
        }
        reader.finish().map_err(Error::Archive)?;
        Ok(())
    }

    fn read_file(&mut self, path: String, entry: &Entry, content: &mut impl Read) -> Result<()> {
        let torn = |e| Error::Archive(oci::layer::Error::Torn(e));
        if DOCUMENTS.contains(&path.as_str()) {
            if entry.size > oci::manifest::SIZE_MAX {
                return Err(Error::TooLarge { limit: oci::manifest::SIZE_MAX });
            }
            let mut bytes = Vec::new();
            content.take(entry.size).read_to_end(&mut bytes).map_err(torn)?;
            self.documents.insert(path, bytes);
            return Ok(());
        }
        let expected = path
            .strip_prefix("blobs/")
            .and_then(|rest| rest.split_once('/'))
            .map(|(algorithm, hex)| Digest::parse(&format!("{algorithm}:{hex}")))
            .transpose()
            .map_err(|_| Refused::Name(path.clone()))?;
        let mut ingest = self.store.ingest()?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => ingest.write_all(&buffer[..n])?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(torn(e)),
            }
        }
        let sealed = ingest.seal(expected.as_ref())?;
        self.paths.insert(path, sealed.digest().clone());
        self.blobs.insert(sealed.digest().clone(), sealed);
        Ok(())
    }

    fn saved(&self) -> Result<Vec<Saved>> {
        let Some(bytes) = self.documents.get("manifest.json") else { return Ok(Vec::new()) };
        serde_json::from_slice(bytes).map_err(|_| Refused::Json("manifest.json").into())
    }

    fn read_layout(&mut self) -> Result<Vec<Imported>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Layout {
            image_layout_version: String,
        }
        let layout = self.documents.get("oci-layout").ok_or(Refused::Missing("oci-layout".into()))?;
        let layout: Layout = serde_json::from_slice(layout).map_err(|_| Refused::Json("oci-layout"))?;
        if layout.image_layout_version != "1.0.0" {
            return Err(Refused::Layout(layout.image_layout_version).into());
        }
        let index = self.documents.remove("index.json").unwrap_or_default();
        let document = Document::parse(index, Some(media_type::OCI_INDEX)).map_err(Error::InvalidManifest)?;
        let Content::Index(Index { manifests, .. }) = document.content else {
            return Err(Refused::Json("index.json").into());
        };
        let mut images: Vec<Imported> = Vec::new();
        for descriptor in manifests {
            self.visit(&descriptor, 0)?;
            let name = layout_name(&descriptor, self.options.name.as_ref())?;
            let plain = Descriptor { annotations: BTreeMap::new(), platform: None, ..descriptor };
            match images.iter_mut().find(|i| i.descriptor.digest == plain.digest) {
                Some(image) => image.names.extend(name),
                None => images.push(Imported { names: name.into_iter().collect(), descriptor: plain }),
            }
        }
        Ok(images)
    }

    /// Verifies a manifest or index with everything below it.
    fn visit(&mut self, descriptor: &Descriptor, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return Err(Refused::TooDeep.into());
        }
        if self.needed.contains(&descriptor.digest) {
            return Ok(());
        }
        self.expect(descriptor)?;
        let raw = self.content(&descriptor.digest)?;
        let media_type = Some(descriptor.media_type.as_str()).filter(|m| !m.is_empty());
        let refused = |source| Error::Manifest { digest: descriptor.digest.clone(), source };
        match Document::parse(raw, media_type).map_err(refused)?.content {
            Content::Image(manifest) => self.visit_image(&descriptor.digest, &manifest)?,
            Content::Index(index) => {
                let mut found = 0;
                for child in &index.manifests {
                    // An archive may hold some platforms of an index only.
                    if self.size(&child.digest)?.is_some() {
                        self.visit(child, depth + 1)?;
                        found += 1;
                    }
                }
                if found == 0 && !index.manifests.is_empty() {
                    return Err(Error::BlobMissing(index.manifests[0].digest.clone()));
                }
            }
        }
        self.needed.push(descriptor.digest.clone());
        Ok(())
    }

    fn visit_image(&mut self, digest: &Digest, manifest: &Manifest) -> Result<()> {
        for blob in manifest.blobs() {
            self.expect(blob)?;
        }
        if media_type::is_image_config(&manifest.config.media_type) {
            let refused = |source| Error::Manifest { digest: digest.clone(), source };
            manifest.validate_image().map_err(refused)?;
            let config = self.config(&manifest.config.digest)?;
            manifest.validate_config(&config).map_err(refused)?;
            for (layer, diff_id) in manifest.layers.iter().zip(&config.rootfs.diff_ids) {
                self.verify_layer(&layer.digest, diff_id)?;
            }
            self.configs.push((digest.clone(), manifest.config.digest.clone()));
        }
        for blob in manifest.blobs() {
            if !self.needed.contains(&blob.digest) {
                self.needed.push(blob.digest.clone());
            }
        }
        Ok(())
    }

    /// Makes manifests for an archive that has only Docker's own list of images.
    fn read_saved(&mut self, saved: &[Saved]) -> Result<Vec<Imported>> {
        if !self.documents.contains_key("manifest.json") {
            return Err(Refused::NotAnArchive.into());
        }
        let mut images: Vec<Imported> = Vec::new();
        for row in saved {
            let config = self.descriptor(&row.config, media_type::OCI_CONFIG)?;
            let mut layers = Vec::new();
            for path in row.layers.iter().flatten() {
                let mut layer = self.descriptor(path, media_type::OCI_LAYER)?;
                if self.is_gzip(&layer.digest)? {
                    layer.media_type = media_type::OCI_LAYER_GZIP.into();
                }
                layers.push(layer);
            }
            let manifest = Manifest::new(config, layers);
            let raw = manifest.to_vec();
            let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &raw);
            self.visit_image(&descriptor.digest, &manifest)?;
            self.made.push((descriptor.digest.clone(), raw));
            if !images.iter().any(|i| i.descriptor.digest == descriptor.digest) {
                images.push(Imported { names: Vec::new(), descriptor });
            }
        }
        Ok(images)
    }

    /// The file at a path of `docker save`, through its links.
    fn descriptor(&self, path: &str, media_type: &str) -> Result<Descriptor> {
        let missing = || Refused::Missing(path.to_owned());
        let mut at = clean("", path.as_bytes()).ok_or_else(|| Refused::Traversal(path.to_owned()))?;
        for _ in 0..8 {
            match self.links.get(&at) {
                Some(target) => at.clone_from(target),
                None => break,
            }
        }
        let digest = self.paths.get(&at).ok_or_else(missing)?;
        let size = self.size(digest)?.ok_or_else(missing)?;
        Ok(Descriptor::new(media_type, digest.clone(), size))
    }

    fn name(&self, images: &mut [Imported], saved: &[Saved]) -> Result<()> {
        if images.is_empty() {
            return Err(Refused::Empty.into());
        }
        if let Some(name) = &self.options.name {
            let [image] = images else { return Err(Refused::Several.into()) };
            image.names = vec![name.clone()];
            return Ok(());
        }
        for row in saved {
            let config = self.descriptor(&row.config, media_type::OCI_CONFIG)?.digest;
            let of_config = |image: &&mut Imported| {
                let digest = &image.descriptor.digest;
                self.configs.iter().any(|(manifest, c)| manifest == digest && *c == config)
            };
            let Some(image) = images.iter_mut().find(of_config) else { continue };
            for tag in row.repo_tags.iter().flatten() {
                let name = Reference::parse(tag).map_err(|_| Refused::Name(tag.clone()))?;
                if !image.names.contains(&name) {
                    image.names.push(name);
                }
            }
        }
        if images.iter().any(|image| image.names.is_empty()) {
            return Err(Refused::Unnamed.into());
        }
        Ok(())
    }

    /// Everything is verified: makes the blobs durable, layers first, then the names.
    fn commit(mut self, images: &[Imported]) -> Result<()> {
        for digest in &self.needed {
            match self.blobs.remove(digest) {
                Some(sealed) => drop(sealed.commit()?),
                None => drop(self.store.reserve(digest)?),
            }
        }
        for (digest, raw) in &self.made {
            self.store.put(raw, Some(digest))?;
        }
        for image in images {
            for name in &image.names {
                self.store.set_name(name, &image.descriptor)?;
            }
        }
        Ok(())
    }

    /// The size of a blob of the archive or of the store.
    fn size(&self, digest: &Digest) -> Result<Option<u64>> {
        self.blobs.get(digest).map_or_else(|| self.store.size(digest), |sealed| Ok(Some(sealed.size())))
    }

    fn expect(&self, blob: &Descriptor) -> Result<()> {
        match self.size(&blob.digest)? {
            Some(size) if size == blob.size => Ok(()),
            Some(actual) => {
                Err(Error::WrongSize { digest: blob.digest.clone(), expected: blob.size, actual })
            }
            None => Err(Error::BlobMissing(blob.digest.clone())),
        }
    }

    fn content(&self, digest: &Digest) -> Result<Vec<u8>> {
        match self.blobs.get(digest) {
            Some(sealed) => sealed.read(CONFIG_BYTES_MAX),
            None => self.store.read(digest),
        }
    }

    fn config(&self, digest: &Digest) -> Result<ImageConfig> {
        let raw = self.content(digest)?;
        ImageConfig::parse(&raw).map_err(|source| Error::Config { digest: digest.clone(), source })
    }

    fn open(&self, digest: &Digest) -> Result<std::fs::File> {
        self.blobs.get(digest).map_or_else(|| self.store.open_blob(digest), Sealed::open)
    }

    fn is_gzip(&self, digest: &Digest) -> Result<bool> {
        let mut start = [0; 2];
        let n = self.open(digest)?.read(&mut start).map_err(Error::Export)?;
        Ok(start[..n] == [0x1f, 0x8b])
    }

    fn verify_layer(&mut self, layer: &Digest, diff_id: &Digest) -> Result<()> {
        if !self.verified.insert((layer.clone(), diff_id.clone())) {
            return Ok(());
        }
        let stored = self.size(layer)?.ok_or_else(|| Error::BlobMissing(layer.clone()))?;
        verify(self.open(layer)?, diff_id, self.options.limits.of_layer(stored))
            .map_err(|source| Error::Layer { digest: layer.clone(), source })
    }
}

/// The name that a layout gives an image, by containerd's annotation or the spec's own.
fn layout_name(descriptor: &Descriptor, given: Option<&Reference>) -> Result<Option<Reference>> {
    let annotation = |key| descriptor.annotations.get(key);
    let full = annotation("io.containerd.image.name").or_else(|| {
        // The spec's own is often a tag alone, which names nothing by itself.
        annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']))
    });
    if given.is_some() {
        return Ok(None);
    }
    full.map(|name| Reference::parse(name).map_err(|_| Refused::Name(name.clone()).into())).transpose()
}

/// The clean path of an entry or of a link's target; `None` when it leads out of the archive.
fn clean(base: &str, path: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    if text.starts_with('/') || parts.is_empty() && !text.starts_with('.') {
        return None;
    }
    Some(parts.join("/"))
}
