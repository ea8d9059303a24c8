//! From a target to an image in a registry: what `up`, `run` and `build` have in common.

use bytes::Bytes;
use gobuild::{Binary, Plan, Sink, Source, Target, image, image::Addition};
use oci::{Descriptor, Digest, Reference};

use crate::{
    context::{Context, registry_failure},
    failure::{Failure, Result},
    follow, output,
    workload::label,
};

/// Flags about compiling and the image.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Build")]
pub struct Flags {
    /// Flags for Go's linker, added to -s -w
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    pub ldflags: Option<String>,
    /// Build tags, comma-separated
    #[arg(long, value_name = "TAGS")]
    pub tags: Option<String>,
    /// Put a file or folder into the image; can be given several times
    #[arg(long, value_name = "SRC:DST")]
    pub add: Vec<String>,
}

impl Flags {
    /// Gobuild's options.
    pub fn options(&self, architecture: Option<&str>, parallel: Option<u32>) -> gobuild::Options {
        let default = gobuild::Options::default();
        gobuild::Options {
            architecture: architecture.map_or(default.architecture, str::to_owned),
            ldflags: self.ldflags.clone(),
            tags: self.tags.clone(),
            parallel,
        }
    }

    /// What goes into the image besides the program.
    pub fn image(&self, folder: &std::path::Path) -> Result<image::Options> {
        let mut add = Vec::new();
        for text in &self.add {
            let addition = Addition::parse(text)?;
            let source = folder.join(&addition.source);
            if !source.exists() {
                let message = format!("--add {text}: no such file: {}", addition.source.display());
                return Err(Failure::new(message).hint("paths are seen from the current folder".to_owned()));
            }
            add.push(Addition { source, ..addition });
        }
        Ok(image::Options { add, ..image::Options::default() })
    }
}

/// Decides what a target means.
pub async fn plan(context: &Context, target: &Target, options: gobuild::Options) -> Result<Plan> {
    Ok(Plan::resolve(target, options, context.toolchain()?, &context.cancel).await?)
}

/// Compiles, and says so.
pub async fn compile(context: &Context, plan: &Plan) -> Result<Binary> {
    context.printer.progress(format!("compiling {}", plan.name()));
    let show = |line: &str| {
        if line.starts_with("go: ") {
            context.printer.progress(line.trim_start_matches("go: "));
        }
    };
    let binary = plan.compile(&context.cancel, &show).await?;
    let facts = format!("{}  {} linux/{}", binary.name, binary.info.go, binary.architecture);
    context.printer.step("Built", &facts, Some(binary.elapsed));
    Ok(binary)
}

/// Assembles the image into a registry and says so; gives the reference with its digest.
pub async fn push(
    context: &Context,
    registry: &registry::Client,
    reference: &Reference,
    binary: &Binary,
    options: &image::Options,
) -> Result<(Reference, image::Image)> {
    context.printer.progress(format!("writing the image of {}", binary.name));
    let sink = Registry { client: registry.clone(), reference: reference.clone() };
    let assembled = async { image::assemble(binary, options, &sink).await.map_err(explain) };
    let assembled: futures::future::LocalBoxFuture<'_, _> = match reference.is_embedded() {
        true => Box::pin(follow::while_it_answers(context, assembled)),
        false => Box::pin(assembled),
    };
    let image = tokio::select! {
        image = assembled => image?,
        () = context.cancel.cancelled() => return Err(Failure::interrupted("the image was not finished, nothing was changed")),
    };
    let by_digest = reference.with_digest(image.descriptor.digest.clone());
    let facts = format!("{:<34}  {}", shortened(&by_digest), output::bytes(image.size));
    context.printer.step("Image", &facts, Some(image.elapsed));
    Ok((by_digest, image))
}

/// The registry's own hint is nested in gobuild's error.
fn explain(error: image::Error) -> Failure {
    let hint = match &error {
        image::Error::Sink { source, .. } => {
            source.downcast_ref::<registry::client::Error>().and_then(registry::client::Error::hint)
        }
        _ => None,
    };
    Failure::from(error).hint(hint)
}

/// The tag under which the embedded registry lists a program's newest image.
pub fn embedded(name: &str) -> Result<Reference> {
    let reference = Reference::embedded(&label(name)).and_then(|reference| reference.with_tag("latest"));
    reference.map_err(|error| Failure::from_error(&error))
}

/// A reference that people can read: the digest's first digits.
pub fn shortened(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => {
            format!("{}@sha256:{}…", reference.name(), &digest.hex()[..8.min(digest.hex().len())])
        }
        None => reference.familiar(),
    }
}

/// Builds `ko://` targets into the embedded registry, one after the other: Go uses all cores by itself.
pub async fn ko(
    context: &Context,
    registry: &registry::Client,
    references: &[String],
    flags: &Flags,
) -> Result<std::collections::BTreeMap<String, String>> {
    let mut images = std::collections::BTreeMap::new();
    let options = flags.image(&context.folder()?)?;
    for text in references {
        let target = Target::parse_ko(text);
        let named = |failure: Failure| failure.context(text);
        let plan = plan(context, &target, flags.options(None, None)).await.map_err(named)?;
        let binary = compile(context, &plan).await.map_err(named)?;
        let reference = embedded(plan.name())?;
        let (reference, _) = push(context, registry, &reference, &binary, &options).await?;
        images.insert(text.clone(), reference.to_string());
    }
    Ok(images)
}

/// A registry's repository as gobuild's sink.
struct Registry {
    client: registry::Client,
    reference: Reference,
}

impl Sink for Registry {
    type Error = registry::client::Error;

    async fn has_blob(&self, digest: &Digest) -> std::result::Result<bool, registry::client::Error> {
        self.client.has_blob(&self.reference, digest).await
    }

    async fn put_blob(
        &self,
        descriptor: &Descriptor,
        source: Source,
    ) -> std::result::Result<(), registry::client::Error> {
        let source = match source {
            Source::Bytes(bytes) => registry::client::Source::Bytes(bytes),
            Source::File(path) => registry::client::Source::File(path),
        };
        self.client.put_blob(&self.reference, descriptor, source).await
    }

    async fn put_manifest(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
    ) -> std::result::Result<(), registry::client::Error> {
        let put = self.client.put_manifest(&self.reference, &descriptor.media_type, bytes);
        put.await.map(drop)
    }
}

/// Refuses an image name that is none.
pub fn reference(text: &str) -> Result<Reference> {
    Reference::parse(text).map_err(|error| Failure::from_error(&error).hint(error.hint()))
}

/// A registry failure behind a step.
pub fn failed(step: &str) -> impl Fn(registry::client::Error) -> Failure {
    move |error| registry_failure(error).context(step)
}
