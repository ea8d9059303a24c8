//! `gantry scale`: how many replicas.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{ArgMatches, Args as _};
use k8s_openapi::api::apps::v1::Deployment;

use super::{Command, down::running, duration, parse};
use crate::{
    context::Context,
    deploy::{self, Rollout},
    failure::Result,
};

pub static COMMAND: Command = Command {
    name: "scale",
    about: "Set the number of replicas; it lasts until it is set again",
    examples: &[
        ("gantry scale hello 3", "three replicas, and wait until they are ready"),
        ("gantry scale hello 0", "none, for now"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(scale(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// The program
    #[arg(value_name = "NAME")]
    name: String,
    /// How many
    #[arg(value_name = "REPLICAS")]
    replicas: u32,
    /// Do not wait until they are ready
    #[arg(long)]
    no_wait: bool,
    /// How long they may take to get ready
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    timeout: Duration,
}

async fn scale(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let connection = running(context).await?;
    let namespace = context.namespace();
    deploy::deployment(&connection, namespace, &args.name).await?;
    let started = Instant::now();
    let deployments = connection.api::<Deployment>(namespace);
    let scaled = deploy::set_replicas(&deployments, namespace, &args.name, args.replicas).await?;
    if args.no_wait {
        context.printer.step(
            "Scaled",
            &format!("{} to {}", args.name, args.replicas),
            Some(started.elapsed()),
        );
        return Ok(ExitCode::SUCCESS);
    }
    let rollout = Rollout {
        context,
        connection: &connection,
        namespace,
        name: &args.name,
        generation: scaled.metadata.generation.unwrap_or_default(),
        spec: None,
        had_service: true,
        timeout: args.timeout,
    };
    let done = rollout.follow().await?;
    context.printer.step(
        "Scaled",
        &format!("{}  {}/{}", args.name, done.ready, done.wanted),
        Some(started.elapsed()),
    );
    Ok(ExitCode::SUCCESS)
}
