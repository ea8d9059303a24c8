//! Images and tars, right and wrong, made without gantry's own code.

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, RngCore};
use serde_json::{Value, json};
use sha2::Digest;
use tar::EntryType;

pub(in crate::accept) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(in crate::accept) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{:x}", sha2::Sha256::digest(bytes))
}

/// An image of one layer.
pub(in crate::accept) struct Image {
    pub(in crate::accept) layer: Vec<u8>,
    pub(in crate::accept) config: Vec<u8>,
    pub(in crate::accept) manifest: Vec<u8>,
}

impl Image {
    /// Of a layer whose tar has the digest `diff_id`.
    pub(in crate::accept) fn new(layer: Vec<u8>, diff_id: &str) -> Self {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/file"]},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        });
        Self::with_config(layer, config.to_string().into_bytes())
    }

    fn with_config(layer: Vec<u8>, config: Vec<u8>) -> Self {
        let media_type = if layer.starts_with(&[0x1f, 0x8b]) { LAYER_GZIP } else { LAYER };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config), "layers": [descriptor(media_type, &layer)],
        });
        Self { layer, config, manifest: manifest.to_string().into_bytes() }
    }

    /// Of a layer of one file with so many random bytes.
    pub(in crate::accept) fn random(random: &mut StdRng, bytes: std::ops::Range<usize>) -> Result<Self> {
        let mut content = vec![0; random.random_range(bytes)];
        random.fill_bytes(&mut content);
        let layer = tar(&[Entry::file("file", content)])?;
        // crane takes every layer for gzip.
        Ok(Self::new(gzip(&layer)?, &digest(&layer)))
    }

    pub(in crate::accept) fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// The manifest, changed.
    pub(in crate::accept) fn change(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut manifest = serde_json::from_slice(&self.manifest)?;
        change(&mut manifest);
        self.manifest = manifest.to_string().into_bytes();
        Ok(())
    }

    /// The files of an OCI layout: oci-layout, index.json, manifest, config, layer.
    pub(in crate::accept) fn layout(&self, name: &str) -> Vec<Entry> {
        let mut manifest = descriptor(MANIFEST, &self.manifest);
        manifest["annotations"] = json!({"io.containerd.image.name": name});
        vec![
            Entry::file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            Entry::file("index.json", index(&manifest)),
            Entry::blob(self.manifest.clone()),
            Entry::blob(self.config.clone()),
            Entry::blob(self.layer.clone()),
        ]
    }

    /// The files of `docker save`, before it knew layouts.
    pub(in crate::accept) fn saved(&self, name: &str, layer: &str) -> Vec<Entry> {
        let rows = json!([{"Config": "config.json", "RepoTags": [name], "Layers": [layer]}]);
        vec![
            Entry::file("config.json", self.config.clone()),
            Entry::file("layer/layer.tar", self.layer.clone()),
            Entry::file("manifest.json", rows.to_string().into_bytes()),
        ]
    }
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(bytes), "size": bytes.len()})
}

pub(in crate::accept) fn index(manifest: &Value) -> Vec<u8> {
    json!({"schemaVersion": 2, "manifests": [manifest]}).to_string().into_bytes()
}

/// A tar's entry, with any path, however wrong.
pub(in crate::accept) struct Entry {
    pub(in crate::accept) kind: EntryType,
    pub(in crate::accept) path: String,
    pub(in crate::accept) link: String,
    pub(in crate::accept) bytes: Vec<u8>,
    /// When another size than the content's is declared.
    pub(in crate::accept) size: Option<u64>,
}

impl Entry {
    pub(in crate::accept) fn file(path: &str, bytes: Vec<u8>) -> Self {
        Self { kind: EntryType::Regular, path: path.to_owned(), link: String::new(), bytes, size: None }
    }

    pub(in crate::accept) fn link(kind: EntryType, path: &str, link: &str) -> Self {
        Self { kind, link: link.to_owned(), ..Self::file(path, Vec::new()) }
    }

    fn blob(bytes: Vec<u8>) -> Self {
        Self::file(&digest(&bytes).replace("sha256:", "blobs/sha256/"), bytes)
    }
}

pub(in crate::accept) fn tar(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        // Not by the setters, which refuse what is wrong.
        let bytes = header.as_mut_bytes();
        bytes.get_mut(..entry.path.len()).context("long path")?.copy_from_slice(entry.path.as_bytes());
        let link = bytes.get_mut(157..157 + entry.link.len()).context("long link")?;
        link.copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(entry.size.unwrap_or(entry.bytes.len() as u64));
        header.set_cksum();
        builder.append(&header, entry.bytes.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

pub(in crate::accept) fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    std::io::Write::write_all(&mut encoder, bytes)?;
    Ok(encoder.finish()?)
}
