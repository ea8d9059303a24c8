//! Archives for the tests: images that are right, and tars in any order and form.

use std::io;

use oci::{
    Descriptor, Digest, ImageConfig, Index, Manifest, Platform,
    layer::{Options, Writer, write},
    media_type,
};

/// An image in parts, so that a test can damage one of them.
#[derive(Clone)]
pub struct Parts {
    pub layers: Vec<Vec<u8>>,
    pub config: ImageConfig,
    pub manifest: Manifest,
}

impl Parts {
    /// An image of these layers, each `(bytes, diff id)`.
    pub fn new(layers: Vec<(Vec<u8>, Digest)>) -> Self {
        let mut config = ImageConfig::new(&Platform::host());
        config.config.cmd = vec!["/hello".into()];
        config.rootfs.diff_ids = layers.iter().map(|(_, id)| id.clone()).collect();
        let media_type = |bytes: &[u8]| {
            if bytes.starts_with(&[0x1f, 0x8b]) { media_type::OCI_LAYER_GZIP } else { media_type::OCI_LAYER }
        };
        let layers: Vec<Vec<u8>> = layers.into_iter().map(|(bytes, _)| bytes).collect();
        let descriptors = layers.iter().map(|bytes| Descriptor::of(media_type(bytes), bytes)).collect();
        let manifest = Manifest::new(Descriptor::of(media_type::OCI_CONFIG, &config.to_vec()), descriptors);
        Parts { layers, config, manifest }
    }

    /// A small image of two layers.
    pub fn hello() -> Self {
        let base = layer(|w| {
            w.directory("tmp", 0o1777)?;
            w.file("etc/passwd", 0o644, 5, &b"root:"[..])?;
            w.symlink("var/run", "/run")
        });
        let top = layer(|w| w.file("hello", 0o755, 7, &b"program"[..]));
        Parts::new(vec![base, top])
    }

    /// The files of an OCI layout.
    pub fn layout(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let manifest = self.manifest.to_vec();
        let mut descriptor = Descriptor::of(media_type::OCI_MANIFEST, &manifest);
        descriptor.annotations.insert("io.containerd.image.name".into(), name.into());
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), Index::new(vec![descriptor]).to_vec()),
            blob(&manifest),
            blob(&self.config.to_vec()),
        ];
        files.extend(self.layers.iter().map(|bytes| blob(bytes)));
        files
    }

    /// The files of an old `docker save`.
    #[allow(dead_code, reason = "not every test file uses it")]
    pub fn saved(&self, name: &str) -> Vec<(String, Vec<u8>)> {
        let config = self.config.to_vec();
        let config_name = format!("{}.json", Digest::of(&config).hex());
        let names: Vec<String> = (0..self.layers.len()).map(|i| format!("layer{i}/layer.tar")).collect();
        let rows = serde_json::json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
        let mut files: Vec<(String, Vec<u8>)> = names.into_iter().zip(self.layers.iter().cloned()).collect();
        files.push((config_name, config));
        files.push(("manifest.json".into(), rows.to_string().into_bytes()));
        files
    }
}

/// A file named by its digest.
pub fn blob(bytes: &[u8]) -> (String, Vec<u8>) {
    (format!("blobs/sha256/{}", Digest::of(bytes).hex()), bytes.to_vec())
}

/// A gzip layer made by our own writer, with its diff id.
pub fn layer(fill: impl FnOnce(&mut Writer<Vec<u8>>) -> io::Result<()>) -> (Vec<u8>, Digest) {
    let (bytes, layer) = write(Options::default(), fill).unwrap();
    (bytes, layer.diff_id)
}

/// A plain layer made by another's writer, which writes what ours refuses.
pub fn raw_layer(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> (Vec<u8>, Digest) {
    let mut builder = tar::Builder::new(Vec::new());
    fill(&mut builder);
    let bytes = builder.into_inner().unwrap();
    let digest = Digest::of(&bytes);
    (bytes, digest)
}

/// Adds an entry with any path and link, however wrong.
pub fn raw_entry(
    builder: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    link: &str,
    data: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, data).unwrap();
}

/// An archive of files, in this order.
pub fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    raw_layer(|builder| {
        for (path, bytes) in files {
            raw_entry(builder, tar::EntryType::Regular, path, "", bytes);
        }
    })
    .0
}
