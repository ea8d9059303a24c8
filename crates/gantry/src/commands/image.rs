//! `gantry image`: what the daemon's registry holds, through `/v2/` like any other client.

use std::{fs::File, io::BufReader, path::PathBuf, process::ExitCode};

use clap::{ArgMatches, Subcommand as _};
use oci::{Platform, Reference, manifest::Content};
use serde::Serialize;

use super::{Command, down::running, parse};
use crate::{
    context::{Connection, Context},
    failure::{Failure, Result},
    output::{self, Row},
    publish::{failed, reference},
};

pub static COMMAND: Command = Command {
    name: "image",
    about: "List, remove, save and load images",
    examples: &[
        ("gantry image ls", "what the registry holds"),
        ("gantry image rm hello:latest", "remove a name"),
        ("gantry image save hello -o hello.tar", "into a file that docker load reads"),
        ("gantry image load -i hello.tar", "out of one that docker save wrote"),
    ],
    arguments: |command| {
        Action::augment_subcommands(command).subcommand_required(true).arg_required_else_help(true)
    },
    run: |context, matches| context.block_on(image(context, matches)),
};

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// List images
    Ls(output::Output),
    /// Remove images by name or digest; what runs keeps what it needs
    Rm(Rm),
    /// Write images into a tar
    Save(Save),
    /// Read images out of a tar: an OCI layout, or what docker save writes
    Load(Load),
}

#[derive(Clone, Debug, clap::Args)]
struct Rm {
    /// Images; a bare name is one of the daemon's registry
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

#[derive(Clone, Debug, clap::Args)]
struct Save {
    /// Images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// The file
    #[arg(long, short = 'o', value_name = "FILE")]
    output: PathBuf,
}

#[derive(Clone, Debug, clap::Args)]
struct Load {
    /// The file
    #[arg(long, short = 'i', value_name = "FILE")]
    input: PathBuf,
}

/// An image by name.
#[derive(Debug, Serialize)]
struct Listed {
    repository: String,
    tag: String,
    digest: String,
    size: u64,
    platform: String,
}

impl Row for Listed {
    const HEADINGS: &'static [&'static str] = &["IMAGE", "TAG", "DIGEST", "SIZE", "PLATFORM"];
    const WIDE_FROM: usize = 4;

    fn name(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    fn cells(&self) -> Vec<String> {
        let digest = self.digest.strip_prefix("sha256:").unwrap_or(&self.digest);
        let digest = digest.chars().take(12).collect();
        vec![
            self.repository.clone(),
            self.tag.clone(),
            digest,
            output::bytes(self.size),
            self.platform.clone(),
        ]
    }
}

async fn image(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let action: Action = parse(matches)?;
    let connection = match &action {
        Action::Load(_) => context.connect().await?,
        _ => running(context).await?,
    };
    match action {
        Action::Ls(output) => {
            let mut rows = Vec::new();
            for repository in connection.registry.catalog("localhost").await.map_err(failed("list images"))? {
                let repository = embedded(&repository)?;
                for tag in connection.registry.tags(&repository).await.map_err(failed("list images"))? {
                    let named = repository.with_tag(&tag).map_err(|error| Failure::from_error(&error))?;
                    rows.push(listed(&connection, &named, &tag).await?);
                }
            }
            output::show(&rows, output.format, &context.printer)?;
        }
        Action::Rm(args) => {
            // All are looked up first: a wrong name removes nothing.
            let images = args.images.iter().map(|text| embedded(text)).collect::<Result<Vec<_>>>()?;
            for image in &images {
                connection.registry.resolve(image).await.map_err(missing(image))?;
            }
            for image in &images {
                connection.registry.delete(image).await.map_err(failed("remove the image"))?;
                context.printer.step("Removed", &image.to_string(), None);
            }
        }
        Action::Save(args) => save(context, &connection, &args).await?,
        Action::Load(args) => load(context, &connection, &args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A bare name means the daemon's registry here.
fn embedded(text: &str) -> Result<Reference> {
    let first = text.split('/').next().unwrap_or_default();
    let has_domain =
        text.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let image = if has_domain { reference(text)? } else { reference(&format!("localhost/{text}"))? };
    if image.is_embedded() {
        return Ok(image);
    }
    Err(Failure::usage(format!("{text} is not in the daemon's registry"))
        .hint("see what is: gantry image ls".to_owned()))
}

fn missing(image: &Reference) -> impl Fn(registry::client::Error) -> Failure + use<> {
    let name = image.to_string();
    move |error| match error {
        registry::client::Error::NotFound(_) => {
            Failure::new(format!("no image {name}")).hint("see what there is: gantry image ls".to_owned())
        }
        other => failed("look up the image")(other),
    }
}

async fn listed(connection: &Connection, image: &Reference, tag: &str) -> Result<Listed> {
    let document = connection.registry.manifest(image).await.map_err(failed("read a manifest"))?;
    let (size, platform) = match &document.content {
        Content::Image(manifest) => (manifest.layers.iter().map(|layer| layer.size).sum(), String::new()),
        Content::Index(index) => {
            let platforms: Vec<String> =
                index.manifests.iter().filter_map(|m| m.platform.as_ref()).map(ToString::to_string).collect();
            (0, platforms.join(","))
        }
    };
    Ok(Listed {
        repository: image.name(),
        tag: tag.to_owned(),
        digest: document.descriptor.digest.to_string(),
        size,
        platform,
    })
}

/// An image store that lives as long as one command.
fn scratch() -> Result<(tempfile::TempDir, images::Store)> {
    let private = std::os::unix::fs::PermissionsExt::from_mode(durable::DIR_MODE);
    let folder = tempfile::Builder::new().prefix("gantry-image-").permissions(private).tempdir();
    let folder = folder.map_err(|error| Failure::from_error(&error).context("make a temporary folder"))?;
    let store = images::Store::open(folder.path()).map_err(store_failed("open a temporary store"))?;
    Ok((folder, store))
}

fn store_failed(step: &str) -> impl Fn(images::Error) -> Failure {
    move |error| Failure::from_error(&error).context(step).hint(error.hint())
}

async fn save(context: &Context, connection: &Connection, args: &Save) -> Result<()> {
    let images = args.images.iter().map(|text| embedded(text)).collect::<Result<Vec<_>>>()?;
    let (_folder, store) = scratch()?;
    let mut named = Vec::new();
    for image in images {
        context.printer.progress(format!("reading {image}"));
        let image = match (image.tag(), image.digest()) {
            (None, None) => image.with_tag("latest").map_err(|error| Failure::from_error(&error))?,
            _ => image,
        };
        connection.registry.pull(&image, &Platform::host(), &store).await.map_err(missing(&image))?;
        named.push(image);
    }
    let path = context.folder()?.join(&args.output);
    let elsewhere = "free space there, or choose another place with --output".to_owned();
    let wrong = |error: std::io::Error| {
        Failure::from_error(&error).context(format!("write {}", path.display())).hint(elsewhere.clone())
    };
    let folder = path.parent().unwrap_or(std::path::Path::new("/"));
    let mut staged = durable::Staged::new(folder).map_err(wrong)?;
    store.export(&named, staged.file()).map_err(|error| {
        let failure = Failure::from_error(&error).context(format!("write {}", path.display()));
        failure.hint(if error.is_disk_full() { Some(elsewhere.clone()) } else { error.hint() })
    })?;
    staged.commit(&path).map_err(wrong)?;
    context.printer.step("Saved", &path.display().to_string(), None);
    Ok(())
}

async fn load(context: &Context, connection: &Connection, args: &Load) -> Result<()> {
    let path = context.folder()?.join(&args.input);
    let file = File::open(&path)
        .map_err(|error| Failure::from_error(&error).context(format!("read {}", path.display())))?;
    let (_folder, store) = scratch()?;
    let import = |store: &images::Store, name: Option<Reference>| {
        let options = images::import::Options { name, ..images::import::Options::default() };
        store.import(BufReader::new(&file), &options).map_err(|error| {
            let lies = !matches!(error, images::Error::Io { .. } | images::Error::Busy(_));
            let hint = error.hint().or_else(|| lies.then(|| images::ARCHIVE_HINT.to_owned()));
            Failure::from_error(&error).context(format!("load {}", args.input.display())).hint(hint)
        })
    };
    let loaded = import(&store, None)?;
    for image in loaded {
        if image.names.is_empty() {
            return Err(Failure::new(format!("{} names no image", args.input.display()))
                .hint("save it by name: docker save NAME:TAG -o FILE".to_owned()));
        }
        for name in &image.names {
            // Names of other registries are kept below the daemon's own.
            let path = name.path();
            let target = reference(&format!("localhost/{path}"))?;
            let target =
                target.with_tag(name.tag_or_latest()).map_err(|error| Failure::from_error(&error))?;
            context.printer.progress(format!("loading {target}"));
            connection
                .registry
                .push(&store, &image.descriptor.digest, &target)
                .await
                .map_err(failed("load the image"))?;
            context.printer.step("Loaded", &target.to_string(), None);
        }
    }
    Ok(())
}
