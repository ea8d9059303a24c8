//! The image around a binary: layers by how often they change, a configuration without dates, a manifest.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use bytes::Bytes;
use oci::{Descriptor, Digest, ImageConfig, Manifest, Platform, layer, media_type};

pub use crate::files::Addition;
use crate::{
    Binary, Sink, Source, base,
    files::{self},
};

/// Where ko puts the files beside a program, and the variable that tells the program.
const KO_DATA: &str = "/var/run/ko";

/// What goes into the image besides the binary.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub add: Vec<Addition>,
    /// Labels of the configuration.
    pub labels: BTreeMap<String, String>,
}

/// An image that its sink has.
#[derive(Clone, Debug)]
pub struct Image {
    /// Of the manifest.
    pub descriptor: Descriptor,
    pub config: ImageConfig,
    /// Bytes of all layers as they are sent.
    pub size: u64,
    pub elapsed: std::time::Duration,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write the layer {layer}")]
    Layer { layer: &'static str, source: io::Error },
    #[error(transparent)]
    Files(#[from] files::Error),
    #[error("{step}")]
    Sink { step: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the task that writes the layers ended early")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Files(files::Error::Malformed { .. }) => {
                Some("for example --add ./config.yaml:/etc/app/".to_owned())
            }
            Self::Layer { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("free space in $TMPDIR".to_owned())
            }
            _ => None,
        }
    }
}

/// A layer whose bytes wait in a file.
struct Spooled {
    layer: layer::Layer,
    path: PathBuf,
}

/// Lays out the image and puts what the sink lacks.
pub async fn assemble<S: Sink>(binary: &Binary, options: &Options, sink: &S) -> Result<Image, Error> {
    let started = Instant::now();
    let folder = binary.path.parent().unwrap_or(Path::new("/")).to_owned();
    let spooled = spool(binary, options, folder);
    // The base layer's question to the sink costs nothing while the binary is compressed.
    let (base, spooled) = tokio::join!(put_base(sink), spooled);
    let (base, spooled) = (base?, spooled?);
    let mut layers = vec![base];
    layers.extend(spooled.iter().map(|spooled| spooled.layer.clone()));
    let config = config(binary, options, &layers);
    let bytes = Bytes::from(config.to_vec());
    let config_descriptor = Descriptor::of(media_type::OCI_CONFIG, &bytes);
    // The sink keeps each durably before it answers: what waits for the disk waits together.
    let put_layers = async {
        for Spooled { layer, path } in spooled {
            put(sink, &layer.descriptor, Source::File(path)).await?;
        }
        Ok::<(), Error>(())
    };
    let put_config = put(sink, &config_descriptor, Source::Bytes(bytes));
    // To the end of both, so that of two errors always the same is told.
    let (put_layers, put_config) = tokio::join!(put_layers, put_config);
    put_layers.and(put_config)?;
    let size = layers.iter().map(|layer| layer.descriptor.size).sum();
    let descriptors = layers.into_iter().map(|layer| layer.descriptor).collect();
    let mut manifest = Manifest::new(config_descriptor, descriptors);
    manifest.annotations = annotations(binary);
    let bytes = Bytes::from(manifest.to_vec());
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
    let put = sink.put_manifest(&descriptor, bytes).await;
    put.map_err(|error| Error::Sink { step: "put the manifest", source: error.into() })?;
    Ok(Image { descriptor, config, size, elapsed: started.elapsed() })
}

async fn put_base<S: Sink>(sink: &S) -> Result<layer::Layer, Error> {
    if let Some(pinned) = base::pinned()
        && has(sink, &pinned.descriptor.digest).await?
    {
        return Ok(pinned);
    }
    let (bytes, layer) = tokio::task::spawn_blocking(base::build)
        .await?
        .map_err(|source| Error::Layer { layer: "with certificates and time zones", source })?;
    put(sink, &layer.descriptor, Source::Bytes(bytes)).await?;
    Ok(layer)
}

async fn has<S: Sink>(sink: &S, digest: &Digest) -> Result<bool, Error> {
    let answer = sink.has_blob(digest).await;
    answer.map_err(|error| Error::Sink { step: "ask for a blob", source: error.into() })
}

async fn put<S: Sink>(sink: &S, descriptor: &Descriptor, source: Source) -> Result<(), Error> {
    if has(sink, &descriptor.digest).await? {
        return Ok(());
    }
    let put = sink.put_blob(descriptor, source).await;
    put.map_err(|error| Error::Sink { step: "put a blob", source: error.into() })
}

/// Writes the layers that depend on the program: data beside it, what was added, the binary itself.
async fn spool(binary: &Binary, options: &Options, folder: PathBuf) -> Result<Vec<Spooled>, Error> {
    let (path, size) = (binary.path.clone(), binary.size);
    let place = binary_path(binary);
    let add = options.add.clone();
    let data = ko_data(binary);
    tokio::task::spawn_blocking(move || {
        let mut spooled = Vec::new();
        if let Some(source) = data {
            let data = Addition { source, destination: KO_DATA.to_owned() };
            spooled.push(write_layer("kodata", &folder, |writer| Ok(files::write(&[data], writer)?))?);
        }
        if !add.is_empty() {
            spooled.push(write_layer("added files", &folder, |writer| Ok(files::write(&add, writer)?))?);
        }
        spooled.push(write_layer("with the program", &folder, |writer| {
            let file = File::open(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
            let written = writer.file(&place, 0o755, size, file);
            written.map_err(|source| Error::Layer { layer: "with the program", source })
        })?);
        Ok(spooled)
    })
    .await?
}

fn write_layer(
    name: &'static str,
    folder: &Path,
    fill: impl FnOnce(&mut layer::Writer<BufWriter<File>>) -> Result<(), Error>,
) -> Result<Spooled, Error> {
    let failed = |source| Error::Layer { layer: name, source };
    let path = folder.join(format!("layer-{}", name.replace(' ', "-")));
    let file = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(failed)?);
    let mut writer = layer::Writer::new(file, layer::Options::default()).map_err(failed)?;
    fill(&mut writer)?;
    let (mut file, layer) = writer.finish().map_err(failed)?;
    file.flush().map_err(failed)?;
    Ok(Spooled { layer, path })
}

fn ko_data(binary: &Binary) -> Option<PathBuf> {
    binary.source.as_ref().map(|source| source.join("kodata")).filter(|path| path.is_dir())
}

fn binary_path(binary: &Binary) -> String {
    format!("/app/{}", binary.file_name)
}

fn config(binary: &Binary, options: &Options, layers: &[layer::Layer]) -> ImageConfig {
    let mut config = ImageConfig::new(&Platform::new("linux", &binary.architecture));
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let run = &mut config.config;
    run.entrypoint = vec![binary_path(binary)];
    run.user = format!("{0}:{0}", base::USER);
    run.working_dir = "/".to_owned();
    run.env = vec![
        "PATH=/app:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        "HOME=/tmp".to_owned(),
        format!("SSL_CERT_FILE={}", base::CERTIFICATES),
        format!("ZONEINFO={}", base::ZONES),
    ];
    if ko_data(binary).is_some() {
        run.env.push(format!("KO_DATA_PATH={KO_DATA}"));
    }
    run.labels = annotations(binary);
    run.labels.extend(options.labels.clone());
    config
}

/// What is known of the program and stays the same wherever it is built.
fn annotations(binary: &Binary) -> BTreeMap<String, String> {
    let mut known = BTreeMap::from([
        ("org.opencontainers.image.title".to_owned(), binary.file_name.clone()),
        ("dev.gantry.go.version".to_owned(), binary.info.go.clone()),
    ]);
    if let Some((module, version)) = &binary.info.module {
        known.insert("dev.gantry.go.package".to_owned(), binary.info.package.clone());
        known.insert("dev.gantry.go.module".to_owned(), module.clone());
        if version.starts_with('v') {
            known.insert("org.opencontainers.image.version".to_owned(), version.clone());
        }
    }
    known
}
