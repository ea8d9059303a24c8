//! A sink that is an OCI image layout in a tar (image spec, image-layout.md), written at once when it is finished.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs::File,
    io::{self, Read, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use oci::{Descriptor, Digest, Index, layer, media_type};

use crate::{Sink, Source};

/// Keeps descriptions of blobs until [`Layout::write`]; files that are put must live until then.
#[derive(Debug, Default)]
pub struct Layout {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<String, (Descriptor, Source)>,
    manifests: Vec<Descriptor>,
}

impl Layout {
    /// Writes `oci-layout`, `index.json` and the blobs; the images are named by the `ref.name` annotation.
    pub fn write(&self, name: Option<&str>, sink: impl Write) -> io::Result<()> {
        let state = self.lock();
        // A layout is a tar like a layer: sorted, without dates.
        let options = layer::Options { gzip: false, ..layer::Options::default() };
        let mut tar = layer::Writer::new(sink, options)?;
        let manifests = state.manifests.iter().cloned().map(|mut manifest| {
            if let Some(name) = name {
                let names = &mut manifest.annotations;
                names.insert("org.opencontainers.image.ref.name".to_owned(), name.to_owned());
                names.insert("io.containerd.image.name".to_owned(), name.to_owned());
            }
            manifest
        });
        let index = Index::new(manifests.collect()).to_vec();
        let marker = br#"{"imageLayoutVersion":"1.0.0"}"#;
        tar.file("oci-layout", 0o644, marker.len() as u64, &marker[..])?;
        tar.file("index.json", 0o644, index.len() as u64, index.as_slice())?;
        for (descriptor, kept) in state.blobs.values() {
            let path =
                format!("blobs/{}/{}", descriptor.digest.algorithm().as_str(), descriptor.digest.hex());
            let content: Box<dyn Read> = match kept {
                Source::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
                Source::File(path) => Box::new(File::open(path)?),
            };
            tar.file(&path, 0o644, descriptor.size, content)?;
        }
        tar.finish()?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, descriptor: &Descriptor, kept: Source) {
        self.lock().blobs.insert(descriptor.digest.as_str().to_owned(), (descriptor.clone(), kept));
    }
}

impl Sink for Layout {
    type Error = Infallible;

    async fn has_blob(&self, digest: &Digest) -> Result<bool, Infallible> {
        Ok(self.lock().blobs.contains_key(digest.as_str()))
    }

    async fn put_blob(&self, descriptor: &Descriptor, source: Source) -> Result<(), Infallible> {
        self.keep(descriptor, source);
        Ok(())
    }

    async fn put_manifest(&self, descriptor: &Descriptor, bytes: Bytes) -> Result<(), Infallible> {
        self.keep(descriptor, Source::Bytes(bytes));
        let mut listed = descriptor.clone();
        if listed.media_type.is_empty() {
            media_type::OCI_MANIFEST.clone_into(&mut listed.media_type);
        }
        self.lock().manifests.push(listed);
        Ok(())
    }
}
