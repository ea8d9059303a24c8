//! Exporting images: one tar that is an OCI layout and what `docker save` writes at once, so that `docker load`, `skopeo`,
//! `podman` and [`Store::import`] read it. The same images give the same bytes.

use std::{collections::BTreeSet, io::Write};

use oci::{
    Descriptor, Digest, Index, Platform, Reference,
    layer::{Options, Writer},
    manifest::Content,
};
use serde::Serialize;

use crate::{Error, Result, Store};

/// A row of `docker save`'s manifest.json.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

impl Store {
    /// Writes the named images into an archive.
    pub fn export<W: Write>(&self, references: &[Reference], writer: W) -> Result<W> {
        let mut blobs = BTreeSet::new();
        let mut manifests = Vec::new();
        let mut saved: Vec<Saved> = Vec::new();
        for reference in references {
            let unknown = || Error::NameUnknown(reference.familiar());
            let mut descriptor = self.resolve(reference)?.ok_or_else(unknown)?;
            self.collect(&descriptor.digest, &mut blobs)?;
            if let Ok(image) = self.image(&descriptor.digest, &Platform::host()) {
                let config = blob_name(&image.manifest.config.digest);
                let layers = image.manifest.layers.iter().map(|l| blob_name(&l.digest)).collect();
                let tag = reference.digest().is_none().then(|| tagged(reference));
                match saved.iter_mut().find(|row| row.config == config) {
                    Some(row) => row.repo_tags.extend(tag),
                    None => saved.push(Saved { config, repo_tags: tag.into_iter().collect(), layers }),
                }
            }
            let full = tagged(reference);
            descriptor.annotations.insert("io.containerd.image.name".into(), full.clone());
            descriptor.annotations.insert("org.opencontainers.image.ref.name".into(), full);
            manifests.push(descriptor);
        }
        self.write_archive(writer, manifests, &saved, &blobs)
    }

    fn write_archive<W: Write>(
        &self,
        writer: W,
        manifests: Vec<Descriptor>,
        saved: &[Saved],
        blobs: &BTreeSet<Digest>,
    ) -> Result<W> {
        let options = Options { gzip: false, ..Options::default() };
        let mut archive = Writer::new(writer, options).map_err(Error::Export)?;
        let index = Index::new(manifests).to_vec();
        let saved = serde_json::to_vec(saved).map_err(|e| Error::Export(e.into()))?;
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        let documents: [(&str, &[u8]); 3] =
            [("index.json", &index), ("manifest.json", &saved), ("oci-layout", layout)];
        for (name, bytes) in documents {
            archive.file(name, 0o644, bytes.len() as u64, bytes).map_err(Error::Export)?;
        }
        for digest in blobs {
            let file = self.open_blob(digest)?;
            let size = self.size(digest)?.ok_or_else(|| Error::BlobMissing(digest.clone()))?;
            archive.file(&blob_name(digest), 0o644, size, file).map_err(Error::Export)?;
        }
        Ok(archive.finish().map_err(Error::Export)?.0)
    }

    /// Adds everything that a manifest or index needs. Of an index, what is not here is left out.
    fn collect(&self, digest: &Digest, blobs: &mut BTreeSet<Digest>) -> Result<()> {
        if !blobs.insert(digest.clone()) {
            return Ok(());
        }
        match self.document(digest)?.content {
            Content::Image(manifest) => blobs.extend(manifest.blobs().map(|b| b.digest.clone())),
            Content::Index(index) => {
                for child in index.manifests.iter().filter(|child| self.has(&child.digest)) {
                    self.collect(&child.digest, blobs)?;
                }
            }
        }
        Ok(())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn tagged(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => format!("{}@{digest}", reference.name()),
        None => format!("{}:{}", reference.name(), reference.tag_or_latest()),
    }
}
