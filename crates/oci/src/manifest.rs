//! Manifests and indexes (image spec, manifest.md and image-index.md), and their validation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Descriptor, Digest, ImageConfig, Platform, media_type, null_as_default};

/// The largest manifest that is read (distribution spec, "Pushing manifests": at least 4 MiB must be accepted).
pub const SIZE_MAX: u64 = 4 << 20;

/// The most layers of an image that is unpacked.
pub const LAYERS_MAX: usize = 512;

/// Why bytes are no manifest, or why a manifest does not hold together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("manifest is {0} bytes, more than {SIZE_MAX}")]
    TooLarge(u64),
    #[error("manifest is no valid JSON of its type")]
    Json(#[source] serde_json::Error),
    #[error("manifest says media type {inside:?} but is served as {outside:?}")]
    MediaTypeMismatch { inside: String, outside: String },
    #[error("media type {0:?} is no manifest that is known")]
    UnknownMediaType(String),
    #[error("manifest has schema version {0}; only 2 is supported")]
    SchemaVersion(u64),
    #[error("manifest has both layers and manifests, and no media type that tells which it is")]
    Ambiguous,
    #[error("the configuration has media type {0:?}: not an image that can run")]
    NotAnImage(String),
    #[error("layer {digest} has media type {media_type:?}, which is no file-system layer")]
    UnknownLayer { digest: Digest, media_type: String },
    #[error("the image has {0} layers, more than {LAYERS_MAX}")]
    TooManyLayers(usize),
    #[error("the image has {layers} layers, but its configuration lists {diff_ids} diff ids")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("the configuration's root file system is of type {0:?}, not \"layers\"")]
    RootFsType(String),
    #[error("the index lists {0} more than once with different sizes or types")]
    Conflict(Digest),
}

/// The manifest of one image or artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    /// Lowest first.
    #[serde(default, deserialize_with = "null_as_default")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// An OCI image manifest.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Writes it compactly; the same value gives the same bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Is it an image that can be unpacked, by its own word?
    pub fn validate_image(&self) -> Result<(), Error> {
        if !media_type::is_image_config(&self.config.media_type) {
            return Err(Error::NotAnImage(self.config.media_type.clone()));
        }
        if self.layers.len() > LAYERS_MAX {
            return Err(Error::TooManyLayers(self.layers.len()));
        }
        let unknown = self.layers.iter().find(|l| media_type::layer_compression(&l.media_type).is_none());
        unknown.map_or(Ok(()), |layer| {
            let (digest, media_type) = (layer.digest.clone(), layer.media_type.clone());
            Err(Error::UnknownLayer { digest, media_type })
        })
    }

    /// Do manifest and configuration tell of the same layers?
    pub fn validate_config(&self, config: &ImageConfig) -> Result<(), Error> {
        if config.rootfs.kind != "layers" {
            return Err(Error::RootFsType(config.rootfs.kind.clone()));
        }
        let (layers, diff_ids) = (self.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(Error::LayerCount { layers, diff_ids });
        }
        Ok(())
    }

    /// Everything that must be there for the manifest to be whole: configuration and distributable layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let layers = self.layers.iter().filter(|l| media_type::is_distributable(&l.media_type));
        std::iter::once(&self.config).chain(layers)
    }
}

/// An index of manifests, one for each platform, or of anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_as_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An OCI index.
    pub fn new(manifests: Vec<Descriptor>) -> Self {
        Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.into()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Writes it compactly; the same value gives the same bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The first manifest for the platform; an entry that names no platform fits when it is the only one.
    pub fn select(&self, platform: &Platform) -> Option<&Descriptor> {
        let fits = |d: &&Descriptor| d.platform.as_ref().is_some_and(|p| platform.accepts(p));
        let only = || match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        };
        self.manifests.iter().find(fits).or_else(only)
    }
}

/// A parsed manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one at a time is held, and matching on it stays plain")]
pub enum Content {
    Image(Manifest),
    Index(Index),
}

/// A manifest or index with the bytes that were received, which are what its digest speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    pub raw: Vec<u8>,
    pub descriptor: Descriptor,
    pub content: Content,
}

/// The fields that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: u64,
    #[serde(default, deserialize_with = "null_as_default")]
    media_type: String,
    #[serde(default)]
    manifests: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or index. `outside` is the media type it came with (Content-Type, descriptor); the type
    /// inside may be absent, but may not differ.
    pub fn parse(raw: Vec<u8>, outside: Option<&str>) -> Result<Self, Error> {
        if raw.len() as u64 > SIZE_MAX {
            return Err(Error::TooLarge(raw.len() as u64));
        }
        let probe: Probe = serde_json::from_slice(&raw).map_err(Error::Json)?;
        let outside = outside.map(|o| o.split(';').next().unwrap_or(o).trim()).filter(|o| !o.is_empty());
        let generic = |o: &str| matches!(o, "application/json" | "application/octet-stream" | "text/plain");
        let media_type = match (probe.media_type.as_str(), outside.filter(|o| !generic(o))) {
            ("", Some(outside)) => outside.to_owned(),
            ("", None) => match (probe.manifests.is_some(), probe.layers.is_some() || probe.config.is_some())
            {
                (true, true) => return Err(Error::Ambiguous),
                (true, false) => media_type::OCI_INDEX.to_owned(),
                (false, _) => media_type::OCI_MANIFEST.to_owned(),
            },
            (inside, Some(outside)) if inside != outside => {
                return Err(Error::MediaTypeMismatch { inside: inside.into(), outside: outside.into() });
            }
            (inside, _) => inside.to_owned(),
        };
        if probe.schema_version != 2 {
            return Err(Error::SchemaVersion(probe.schema_version));
        }
        let content = if media_type::is_index(&media_type) {
            if probe.layers.is_some() || probe.config.is_some() {
                return Err(Error::Ambiguous);
            }
            let index: Index = serde_json::from_slice(&raw).map_err(Error::Json)?;
            refuse_conflicts(&index.manifests)?;
            Content::Index(index)
        } else if media_type::is_manifest(&media_type) {
            if probe.manifests.is_some() {
                return Err(Error::Ambiguous);
            }
            Content::Image(serde_json::from_slice(&raw).map_err(Error::Json)?)
        } else {
            return Err(Error::UnknownMediaType(media_type));
        };
        let descriptor = Descriptor::of(media_type, &raw);
        Ok(Document { raw, descriptor, content })
    }

    /// The manifest that this one speaks about.
    pub fn subject(&self) -> Option<&Descriptor> {
        match &self.content {
            Content::Image(manifest) => manifest.subject.as_ref(),
            Content::Index(index) => index.subject.as_ref(),
        }
    }

    /// The artifact type as the referrers API gives it: the manifest's own, else its configuration's media type.
    pub fn artifact_type(&self) -> Option<&str> {
        match &self.content {
            Content::Image(manifest) => {
                Some(manifest.artifact_type.as_deref().unwrap_or(&manifest.config.media_type))
            }
            Content::Index(index) => index.artifact_type.as_deref(),
        }
    }

    /// The manifest's own annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match &self.content {
            Content::Image(manifest) => &manifest.annotations,
            Content::Index(index) => &index.annotations,
        }
    }
}

fn refuse_conflicts(manifests: &[Descriptor]) -> Result<(), Error> {
    let mut seen: BTreeMap<&Digest, &Descriptor> = BTreeMap::new();
    for descriptor in manifests {
        let other = seen.entry(&descriptor.digest).or_insert(descriptor);
        if other.size != descriptor.size || other.media_type != descriptor.media_type {
            return Err(Error::Conflict(descriptor.digest.clone()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let config = Descriptor::of(media_type::OCI_CONFIG, b"{}");
        Manifest::new(config, vec![Descriptor::of(media_type::OCI_LAYER_GZIP, b"layer")])
    }

    #[test]
    fn keeps_the_bytes_and_accepts_an_absent_media_type() {
        let mut m = manifest();
        m.media_type = None;
        let raw = format!("  {}\n", String::from_utf8(m.to_vec()).unwrap()).into_bytes();
        let document = Document::parse(raw.clone(), None).unwrap();
        assert_eq!(document.raw, raw);
        assert_eq!(document.descriptor.digest, Digest::of(&raw));
        assert_eq!(document.descriptor.media_type, media_type::OCI_MANIFEST);
        let typed = Document::parse(raw, Some(media_type::DOCKER_MANIFEST)).unwrap();
        assert_eq!(typed.descriptor.media_type, media_type::DOCKER_MANIFEST);
        let index = Document::parse(br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(), None).unwrap();
        assert!(matches!(index.content, Content::Index(_)));
    }

    #[test]
    fn refuses_documents_that_do_not_hold_together() {
        let parse = |text: &str, outside| Document::parse(text.as_bytes().to_vec(), outside);
        assert!(matches!(parse("{", None), Err(Error::Json(_))));
        assert!(matches!(parse(r#"{"schemaVersion":1,"layers":[]}"#, None), Err(Error::SchemaVersion(1))));
        assert!(matches!(
            parse(r#"{"schemaVersion":2,"mediaType":"text/x"}"#, None),
            Err(Error::UnknownMediaType(_))
        ));
        assert!(matches!(
            parse(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, None),
            Err(Error::Ambiguous)
        ));
        let text = String::from_utf8(manifest().to_vec()).unwrap();
        assert!(matches!(parse(&text, Some(media_type::OCI_INDEX)), Err(Error::MediaTypeMismatch { .. })));
        let d = Descriptor::of(media_type::OCI_MANIFEST, b"x");
        let mut other = d.clone();
        other.size += 1;
        let index = String::from_utf8(Index::new(vec![d, other]).to_vec()).unwrap();
        assert!(matches!(parse(&index, None), Err(Error::Conflict(_))));
        assert!(matches!(Document::parse(vec![b' '; 5 << 20], None), Err(Error::TooLarge(_))));
    }

    #[test]
    fn validates_an_image_before_it_is_unpacked() {
        let mut m = manifest();
        m.validate_image().unwrap();
        let mut config = ImageConfig::new(&Platform::new("linux", "amd64"));
        assert!(matches!(m.validate_config(&config), Err(Error::LayerCount { layers: 1, diff_ids: 0 })));
        config.rootfs.kind = "windows".into();
        assert!(matches!(m.validate_config(&config), Err(Error::RootFsType(_))));
        m.layers[0].media_type = "text/plain".into();
        assert!(matches!(m.validate_image(), Err(Error::UnknownLayer { .. })));
        m.config.media_type = media_type::OCI_EMPTY.into();
        assert!(matches!(m.validate_image(), Err(Error::NotAnImage(_))));
    }

    #[test]
    fn selects_by_platform() {
        let mut amd = Descriptor::of(media_type::OCI_MANIFEST, b"amd");
        amd.platform = Some(Platform::new("linux", "amd64"));
        let mut arm = Descriptor::of(media_type::OCI_MANIFEST, b"arm");
        arm.platform = Some(Platform::new("linux", "arm64"));
        let index = Index::new(vec![amd.clone(), arm.clone()]);
        assert_eq!(index.select(&Platform::new("linux", "arm64")), Some(&arm));
        assert_eq!(index.select(&Platform::new("linux", "s390x")), None);
        amd.platform = None;
        assert_eq!(Index::new(vec![amd.clone()]).select(&Platform::new("linux", "s390x")), Some(&amd));
    }
}
