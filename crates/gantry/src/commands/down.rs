//! `gantry down`: ends programs.

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgMatches, Args as _};
use futures::TryStreamExt as _;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{
    Api,
    api::{DeleteParams, PropagationPolicy},
    runtime::{WatchStreamExt as _, watcher, watcher::Event},
};

use super::{Command, parse};
use crate::{
    context::{Connection, Context},
    deploy::no_such,
    failure::{Failure, Result},
    workload::{APP_LABEL, manifests},
};

pub static COMMAND: Command = Command {
    name: "down",
    about: "End programs and remove their services",
    examples: &[
        ("gantry down hello", "end it, and wait until it has ended"),
        ("gantry down hello --no-wait", "only ask for it"),
        ("gantry down -f app.yaml", "delete what manifests name"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(down(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// Names of programs
    #[arg(value_name = "NAME", required_unless_present = "file")]
    names: Vec<String>,
    /// Delete what manifests name
    #[arg(long = "filename", short = 'f', id = "file", value_name = "FILE", conflicts_with = "names")]
    files: Vec<PathBuf>,
    /// Do not wait until the programs have ended
    #[arg(long)]
    no_wait: bool,
}

async fn down(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let connection = running(context).await?;
    if !args.files.is_empty() {
        return files(context, &connection, &args).await;
    }
    // All are looked up first: a wrong name changes nothing.
    for name in &args.names {
        let (deployment, service) = (
            connection.api::<Deployment>(context.namespace()),
            connection.api::<Service>(context.namespace()),
        );
        if deployment.get_opt(name).await?.is_none() && service.get_opt(name).await?.is_none() {
            return Err(no_such(name));
        }
    }
    for name in &args.names {
        delete(&connection, context.namespace(), name).await?;
    }
    for name in &args.names {
        if !args.no_wait {
            ended(context, &connection, name).await?;
        }
        context.printer.step("Ended", name, None);
    }
    Ok(ExitCode::SUCCESS)
}

/// A daemon that runs, as nothing can be ended otherwise.
pub async fn running(context: &Context) -> Result<Connection> {
    let connection = context.connect_running().await?;
    connection.ok_or_else(|| {
        let hint = format!("gantry daemon start{}", context.settings.state_flag());
        Failure::new("no daemon runs").hint(hint)
    })
}

async fn delete(connection: &Connection, namespace: &str, name: &str) -> Result<()> {
    let parameters =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    absent(connection.api::<Deployment>(namespace).delete(name, &parameters).await.map(drop))?;
    absent(connection.api::<Service>(namespace).delete(name, &DeleteParams::default()).await.map(drop))
}

/// What is gone need not be deleted.
fn absent(result: std::result::Result<(), kube::Error>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other?),
    }
}

/// Waits until a program's Pods are gone.
async fn ended(context: &Context, connection: &Connection, name: &str) -> Result<()> {
    let config = watcher::Config::default().labels(&format!("{APP_LABEL}={name}"));
    let pods: Api<Pod> = connection.api(context.namespace());
    let gone = gone(pods, config, |left| context.printer.progress(format!("{name}: {left} to end")));
    tokio::select! {
        result = gone => result,
        () = context.cancel.cancelled() => Err(Failure::interrupted(format!("{name} is being ended and goes on doing so"))),
    }
}

/// Waits until the watched objects are gone.
pub async fn gone<K>(api: Api<K>, config: watcher::Config, mut progress: impl FnMut(usize)) -> Result<()>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let mut left = std::collections::BTreeSet::new();
    let mut listed = false;
    let key = |object: &K| object.meta().uid.clone().unwrap_or_default();
    let mut events = Box::pin(watcher(api, config).default_backoff());
    while !listed || !left.is_empty() {
        match events.try_next().await? {
            Some(Event::Init) => left.clear(),
            Some(Event::InitApply(object) | Event::Apply(object)) => drop(left.insert(key(&object))),
            Some(Event::Delete(object)) => drop(left.remove(&key(&object))),
            Some(Event::InitDone) => listed = true,
            None => break,
        }
        progress(left.len());
    }
    Ok(())
}

async fn files(context: &Context, connection: &Connection, args: &Args) -> Result<ExitCode> {
    let documents = manifests::read(&args.files)?;
    let mut objects = manifests::resolve(&connection.client, documents, context.namespace()).await?;
    // What was applied last goes first.
    objects.reverse();
    for object in &objects {
        let parameters = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        absent(object.api.delete(&object.name, &parameters).await.map(drop))?;
        context.printer.step("Deleted", &object.label(), None);
    }
    Ok(ExitCode::SUCCESS)
}
