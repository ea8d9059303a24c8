//! `gantry up`: source to serving.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{ArgMatches, Args as _};
use gobuild::Target;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Service};
use serde::Serialize;

use super::{Command, duration, parse};
use crate::{
    context::{Connection, Context},
    deploy::{self, Done, Rollout},
    failure::{Failure, Result},
    output::{self, Format},
    publish,
    workload::{
        check_name, label, manifests,
        spec::{Memory, Mount, Publish, Spec, check_cpu, parse_variable, parse_variables},
    },
};

pub static COMMAND: Command = Command {
    name: "up",
    about: "Build a Go program and run it as a service, or replace the version that runs",
    examples: &[
        ("gantry up ./hello", "the program in a folder"),
        (
            "gantry up ./hello --name greeter --env LANG=en -- --verbose",
            "with a name, a variable and an argument",
        ),
        ("gantry up ./hello -p 80:8080 --replicas 3 --memory 128Mi", "on port 80, three times"),
        ("gantry up golang.org/x/example/helloserver@latest", "a program from the module proxy"),
        ("gantry up -f app.yaml", "manifests, with ko:// references built"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(up(context, matches)),
};

/// What a program is run with; `run` has these too.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Program")]
pub struct ProgramFlags {
    /// Name of the service [default: the program's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Set a variable; a bare KEY takes its value from here
    #[arg(long, short = 'e', value_name = "KEY=VALUE")]
    pub env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<PathBuf>,
    /// CPU limit: cores, or thousandths with an m
    #[arg(long, value_name = "CPU")]
    pub cpu: Option<String>,
    /// Memory limit; GOMEMLIMIT becomes 90 % of it
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Show a folder or file of this machine to the program
    #[arg(long, value_name = "SRC:DST[:ro]")]
    pub mount: Vec<String>,
}

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// A folder with a main package, or an import path with a version
    #[arg(value_name = "TARGET", required_unless_present = "file")]
    target: Option<String>,
    /// Arguments for the program
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
    /// Apply manifests; ko:// references in them are built
    #[arg(long = "filename", short = 'f', id = "file", value_name = "FILE", conflicts_with = "target")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    program: ProgramFlags,
    /// Number of replicas; left as it is when not given
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Ports; without it they follow what the program listens on
    #[arg(long = "publish", short = 'p', value_name = "[HOST:]CONTAINER")]
    publish: Vec<String>,
    /// Listen beyond loopback, on all addresses or on one
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "0.0.0.0", require_equals = true)]
    expose: Option<String>,
    /// How long the new version may take to get ready
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    timeout: Duration,
    #[command(flatten)]
    build: publish::Flags,
    #[command(flatten)]
    output: output::Output,
}

impl ProgramFlags {
    /// The part of the specification that these flags decide.
    pub fn spec(&self, context: &Context, arguments: &[String]) -> Result<Spec> {
        let folder = context.folder()?;
        if let Some(name) = &self.name {
            check_name(name)?;
        }
        let lookup = |key: &str| std::env::var(key).ok();
        let mut environment = Vec::new();
        for file in &self.env_file {
            let text = std::fs::read_to_string(folder.join(file));
            let text = text.map_err(|error| {
                Failure::from_error(&error).context(format!("--env-file {}", file.display()))
            })?;
            environment
                .extend(parse_variables(&text, lookup).map_err(|failure| failure.context(file.display()))?);
        }
        for text in &self.env {
            environment.push(parse_variable(text, lookup)?);
        }
        self.cpu.as_deref().map_or(Ok(()), check_cpu)?;
        Ok(Spec {
            name: self.name.clone().unwrap_or_default(),
            namespace: context.namespace().to_owned(),
            arguments: arguments.to_vec(),
            environment,
            cpu: self.cpu.clone(),
            memory: self.memory.as_deref().map(Memory::parse).transpose()?,
            mounts: self.mount.iter().map(|text| Mount::parse(text, &folder)).collect::<Result<_>>()?,
            ..Spec::default()
        })
    }
}

/// What `-o json` says.
#[derive(Debug, Serialize)]
struct Facts {
    name: String,
    namespace: String,
    image: String,
    go: String,
    revision: String,
    ready: i32,
    replicas: i32,
    addresses: Vec<String>,
    seconds: BTreeMap<&'static str, f64>,
}

async fn up(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    match &args.target {
        Some(target) => program(context, &args, &Target::parse(target)).await,
        None => files(context, &args).await,
    }
}

async fn program(context: &Context, args: &Args, target: &Target) -> Result<ExitCode> {
    let mut spec = args.program.spec(context, &args.arguments)?;
    spec.publish = args.publish.iter().map(|text| Publish::parse(text)).collect::<Result<_>>()?;
    spec.expose.clone_from(&args.expose);
    let image_options = args.build.image(&context.folder()?)?;
    let plan = publish::plan(context, target, args.build.options(None, None)).await?;
    if spec.name.is_empty() {
        spec.name = label(plan.name());
    }
    // A running daemon is asked for what there is while Go compiles. One that has to be started waits for the
    // compiler: a program that does not compile changes nothing.
    let (binary, existing) = tokio::join!(publish::compile(context, &plan), look(context, &spec));
    let binary = binary?;
    let (connection, service) = match existing? {
        Some(existing) => existing,
        None => (context.connect().await?, None),
    };
    deploy::check_ports(&connection, &spec, service.as_ref()).await?;
    let reference = publish::embedded(plan.name())?;
    let (reference, image) =
        publish::push(context, &connection.registry, &reference, &binary, &image_options).await?;
    spec.image = reference.to_string();

    let started = Instant::now();
    let deployments = connection.api::<Deployment>(&spec.namespace);
    let mut deployment: Deployment = deploy::apply(&deployments, &spec.name, &spec.deployment()).await?;
    if let Some(replicas) = args.replicas {
        deployment = deploy::set_replicas(&deployments, &spec.namespace, &spec.name, replicas).await?;
    }
    let applied = started.elapsed();
    context.printer.step("Applied", &format!("deployment/{}", spec.name), Some(applied));
    let rollout = Rollout {
        context,
        connection: &connection,
        namespace: &spec.namespace,
        name: &spec.name,
        generation: deployment.metadata.generation.unwrap_or_default(),
        spec: Some(&spec),
        had_service: service.is_some(),
        timeout: args.timeout,
    };
    let started = Instant::now();
    let done = rollout.follow().await?;
    let ready = started.elapsed();
    context.printer.step("Ready", &format!("{}/{}", done.ready, done.wanted), Some(ready));
    let seconds = [("build", binary.elapsed), ("image", image.elapsed), ("apply", applied), ("ready", ready)];
    let facts = Facts {
        name: spec.name.clone(),
        namespace: spec.namespace.clone(),
        image: spec.image.clone(),
        go: binary.info.go.clone(),
        revision: done.revision,
        ready: done.ready,
        replicas: done.wanted,
        addresses: done.addresses,
        seconds: seconds.into_iter().map(|(step, elapsed)| (step, elapsed.as_secs_f64())).collect(),
    };
    match args.output.format {
        Format::Json | Format::Yaml => output::value(&facts, args.output.format, &context.printer)?,
        Format::Name => context.printer.data(format!("deployment/{}", facts.name)),
        Format::Table | Format::Wide => {
            facts.addresses.iter().for_each(|address| context.printer.data(address))
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Connects to a daemon that runs and reads the Service that there may be; the connection is warm then.
async fn look(context: &Context, spec: &Spec) -> Result<Option<(Connection, Option<Service>)>> {
    let Some(connection) = context.connect_running().await? else { return Ok(None) };
    let service = connection.api::<Service>(&spec.namespace).get_opt(&spec.name).await?;
    Ok(Some((connection, service)))
}

async fn files(context: &Context, args: &Args) -> Result<ExitCode> {
    let mut documents = manifests::read(&args.files)?;
    let references = manifests::references(&documents);
    let connection = context.connect().await?;
    let images = publish::ko(context, &connection.registry, &references, &args.build).await?;
    manifests::fill(&mut documents, &images);
    let started = Instant::now();
    let objects = manifests::resolve(&connection.client, documents, context.namespace()).await?;
    let applied = manifests::apply(&objects).await?;
    let labels: Vec<String> = objects.iter().map(manifests::Resolved::label).collect();
    context.printer.step("Applied", &labels.join(", "), Some(started.elapsed()));
    let mut finished: Vec<(String, Done)> = Vec::new();
    for (object, applied) in objects.iter().zip(&applied).filter(|(object, _)| object.is_deployment()) {
        let started = Instant::now();
        let rollout = Rollout {
            context,
            connection: &connection,
            namespace: object.namespace.as_deref().unwrap_or(context.namespace()),
            name: &object.name,
            generation: applied.metadata.generation.unwrap_or_default(),
            spec: None,
            had_service: true,
            timeout: args.timeout,
        };
        let done = rollout.follow().await?;
        let facts = format!("{}  {}/{}", object.name, done.ready, done.wanted);
        context.printer.step("Ready", &facts, Some(started.elapsed()));
        finished.push((object.name.clone(), done));
    }
    match args.output.format {
        Format::Json | Format::Yaml => {
            let items: Vec<_> = finished
                .iter()
                .map(|(name, done)| {
                    serde_json::json!({ "name": name, "ready": done.ready,
                "replicas": done.wanted, "revision": done.revision, "addresses": done.addresses })
                })
                .collect();
            let value = serde_json::json!({ "objects": labels, "deployments": items });
            output::value(&value, args.output.format, &context.printer)?;
        }
        Format::Name => labels.iter().for_each(|label| context.printer.data(label)),
        Format::Table | Format::Wide => {
            finished
                .iter()
                .flat_map(|(_, done)| &done.addresses)
                .for_each(|address| context.printer.data(address));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::command_line;

    fn args(line: &str) -> Args {
        let matches = command_line().try_get_matches_from(line.split_whitespace()).unwrap();
        parse(matches.subcommand().unwrap().1).unwrap()
    }

    #[test]
    fn flags_and_arguments_are_told_apart() {
        let read = args("gantry up ./x --expose -p 80:8080 --ldflags -X=main.v=1 -- -v --name y");
        assert_eq!(read.target.as_deref(), Some("./x"));
        assert_eq!(read.expose.as_deref(), Some("0.0.0.0"));
        assert_eq!(read.arguments, ["-v", "--name", "y"]);
        assert_eq!(read.build.ldflags.as_deref(), Some("-X=main.v=1"));
        assert_eq!(read.timeout, Duration::from_secs(120));
        let read = args("gantry up -f a.yaml -f b.yaml");
        assert_eq!(read.files.len(), 2);
        assert!(read.target.is_none());
    }
}
