//! `gantry build`: source to an image, in a registry or a file.

use std::{
    collections::BTreeMap, fs::File, io::BufWriter, io::Write as _, path::PathBuf, process::ExitCode,
    time::Instant,
};

use clap::{ArgMatches, Args as _};
use gobuild::{Target, image, layout::Layout};
use oci::Reference;
use serde::Serialize;

use super::{Command, parse};
use crate::{
    context::{Connection, Context},
    failure::{Failure, Result},
    output::{self, Format},
    publish,
};

pub static COMMAND: Command = Command {
    name: "build",
    about: "Build an image from a Go program",
    examples: &[
        ("gantry build ./hello", "into the daemon's registry"),
        ("gantry build ./hello --push registry.example.com/hello:v1", "into another registry"),
        (
            "gantry build ./hello --output hello.tar --platform linux/arm64",
            "into a file, for another machine",
        ),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(build(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// A folder with a main package, or an import path with a version
    #[arg(value_name = "TARGET")]
    target: String,
    /// Push to this reference instead of the daemon's registry
    #[arg(long, value_name = "REF")]
    push: Option<String>,
    /// Write an OCI image layout in a tar
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Platform [default: this machine's]
    #[arg(long, value_name = "linux/ARCH")]
    platform: Option<String>,
    /// How many programs Go starts at a time
    #[arg(long, short = 'p', value_name = "N")]
    parallel: Option<u32>,
    #[command(flatten)]
    build: publish::Flags,
    /// Format of what is said about the image
    #[arg(long = "format", short = 'o', value_name = "FORMAT", value_enum, default_value_t = Format::Table, hide_default_value = true)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Facts {
    image: String,
    digest: String,
    size: u64,
    go: String,
    platform: String,
    seconds: BTreeMap<&'static str, f64>,
}

async fn build(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let folder = context.folder()?;
    let architecture = args.platform.as_deref().map(architecture).transpose()?;
    let push = args.push.as_deref().map(publish::reference).transpose()?;
    let options = args.build.image(&folder)?;
    let build = args.build.options(architecture.as_deref(), args.parallel);
    let plan = publish::plan(context, &Target::parse(&args.target), build).await?;
    // A daemon that runs is found while Go compiles; one that has to be started waits for a program that compiles.
    let needs_daemon = push.as_ref().map_or(args.output.is_none(), Reference::is_embedded);
    let running = async { if needs_daemon { context.connect_running().await } else { Ok(None) } };
    let (binary, running) = tokio::join!(publish::compile(context, &plan), running);
    let (binary, mut running) = (binary?, running?);
    let mut done: Option<(Reference, image::Image)> = None;
    if let Some(path) = &args.output {
        let reference = push.clone().map_or_else(|| publish::embedded(plan.name()), Ok)?;
        let image = to_file(context, &binary, &options, &folder.join(path), &reference).await?;
        done = Some((reference.with_digest(image.descriptor.digest.clone()), image));
    }
    if let Some(reference) = &push {
        let registry = match reference.is_embedded() {
            true => connect(context, &mut running).await?.registry,
            false => context.registry_outside()?,
        };
        done = Some(publish::push(context, &registry, reference, &binary, &options).await?);
    }
    let (reference, image) = match done {
        Some(done) => done,
        None => {
            let registry = connect(context, &mut running).await?.registry;
            publish::push(context, &registry, &publish::embedded(plan.name())?, &binary, &options).await?
        }
    };
    let facts = Facts {
        image: reference.to_string(),
        digest: image.descriptor.digest.to_string(),
        size: image.size,
        go: binary.info.go.clone(),
        platform: format!("linux/{}", binary.architecture),
        seconds: [("build", binary.elapsed), ("image", image.elapsed)]
            .map(|(step, elapsed)| (step, elapsed.as_secs_f64()))
            .into(),
    };
    match args.format {
        Format::Json | Format::Yaml => output::value(&facts, args.format, &context.printer)?,
        _ => context.printer.data(&facts.image),
    }
    Ok(ExitCode::SUCCESS)
}

async fn connect(context: &Context, running: &mut Option<Connection>) -> Result<Connection> {
    match running.take() {
        Some(connection) => Ok(connection),
        None => context.connect().await,
    }
}

fn architecture(platform: &str) -> Result<String> {
    let architecture = platform.strip_prefix("linux/").filter(|rest| !rest.is_empty() && !rest.contains('/'));
    architecture.map(str::to_owned).ok_or_else(|| {
        Failure::usage(format!("--platform {platform}: not linux/ARCH"))
            .hint("--platform linux/arm64".to_owned())
    })
}

/// Writes the layout beside its place and moves it there, so that nobody sees half of it.
async fn to_file(
    context: &Context,
    binary: &gobuild::Binary,
    options: &image::Options,
    path: &std::path::Path,
    reference: &Reference,
) -> Result<image::Image> {
    let started = Instant::now();
    let layout = Layout::default();
    let image = image::assemble(binary, options, &layout).await?;
    let failed = |error: std::io::Error| {
        let full = error.kind() == std::io::ErrorKind::StorageFull;
        let hint = full.then(|| "free space there, or choose another place with --output".to_owned());
        Failure::from_error(&error).context(format!("write {}", path.display())).hint(hint)
    };
    let folder =
        path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let mut staged = durable::Staged::new(folder).map_err(failed)?;
    let written = {
        let file: &mut File = staged.file();
        let mut writer = BufWriter::with_capacity(1 << 20, file);
        layout.write(Some(&reference.name()), &mut writer).and_then(|()| writer.flush())
    };
    written.map_err(failed)?;
    staged.commit(path).map_err(failed)?;
    let facts = format!("{:<34}  {}", path.display(), output::bytes(image.size));
    context.printer.step("Wrote", &facts, Some(started.elapsed()));
    Ok(image)
}
