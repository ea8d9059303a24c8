//! `gantry down`: ends programs.

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgMatches, Args as _};
use futures::TryStreamExt as _;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, PropagationPolicy},
    runtime::{watcher, watcher::Event},
};

use super::{Command, duration, parse};
use crate::{
    context::{Connection, Context},
    deploy::no_such,
    failure::{Failure, Result},
    follow,
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
    /// How long they may take to end
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    timeout: Duration,
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
            ended(context, &connection, name, args.timeout).await?;
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
async fn ended(context: &Context, connection: &Connection, name: &str, timeout: Duration) -> Result<()> {
    let config = watcher::Config::default().labels(&format!("{APP_LABEL}={name}"));
    let pods: Api<Pod> = connection.api(context.namespace());
    let gone = gone(pods, config, timeout, |left| context.printer.progress(format!("{name}: {left} to end")));
    let left = tokio::select! {
        result = gone => result?,
        () = context.cancel.cancelled() => return Err(Failure::interrupted(format!("{name} is being ended and goes on doing so"))),
    };
    if left.is_empty() {
        return Ok(());
    }
    let seconds = timeout.as_secs();
    Err(Failure::new(format!("{name} has not ended after {seconds} s: {}", resisting(&left))).hint(format!(
        "it is being ended and goes on doing so; wait longer: gantry down {name} --timeout 10m"
    )))
}

/// Pods that have not ended, with what holds them as far as it is known.
pub fn resisting(pods: &[Pod]) -> String {
    let one = |pod: &Pod| {
        let place = format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        match pod.finalizers() {
            [] => place,
            finalizers => format!("{place} is kept by the finalizer {}", finalizers.join(", ")),
        }
    };
    pods.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Waits until the watched objects are gone, or the time is over; gives those that are left then.
pub async fn gone<K>(
    api: Api<K>,
    config: watcher::Config,
    timeout: Duration,
    mut progress: impl FnMut(usize),
) -> Result<Vec<K>>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    let mut left = BTreeMap::new();
    let mut listed = false;
    let key = |object: &K| object.meta().uid.clone().unwrap_or_default();
    let mut events = follow::watch(api, config);
    let deadline = tokio::time::Instant::now() + timeout;
    while !listed || !left.is_empty() {
        let Ok(event) = tokio::time::timeout_at(deadline, events.try_next()).await else { break };
        match event? {
            Some(Event::Init) => left.clear(),
            Some(Event::InitApply(object) | Event::Apply(object)) => drop(left.insert(key(&object), object)),
            Some(Event::Delete(object)) => drop(left.remove(&key(&object))),
            Some(Event::InitDone) => listed = true,
            None => break,
        }
        progress(left.len());
    }
    Ok(left.into_values().collect())
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_keeps_a_pod_is_named() {
        let pod =
            |meta: serde_json::Value| -> Pod { serde_json::from_value(json!({ "metadata": meta })).unwrap() };
        let pods = [
            pod(json!({ "name": "a", "namespace": "x", "finalizers": ["example.com/keep"] })),
            pod(json!({ "name": "b", "namespace": "y" })),
        ];
        assert_eq!(resisting(&pods), "pod x/a is kept by the finalizer example.com/keep; pod y/b");
    }
}
