//! `gantry ps`: what runs, and where.

use std::process::ExitCode;

use clap::{ArgMatches, Args as _};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Pod, Service},
};
use kube::{ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{Command, down::running, parse};
use crate::{
    context::Context,
    deploy::no_such,
    failure::Result,
    output::{self, Row},
    workload::{APP_LABEL, REVISION, ports, trouble},
};

pub static COMMAND: Command = Command {
    name: "ps",
    about: "List programs, or the Pods of one",
    examples: &[
        ("gantry ps", "every program with its address"),
        ("gantry ps hello", "the Pods of one"),
        ("gantry ps -o wide", "with revision and image"),
        ("gantry ps -o json", "for a script"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(ps(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// A program whose Pods are listed
    #[arg(value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    output: output::Output,
}

/// A program.
#[derive(Debug, Serialize)]
struct Program {
    name: String,
    ready: i32,
    replicas: i32,
    restarts: i32,
    addresses: Vec<String>,
    age_seconds: i64,
    revision: String,
    image: String,
}

impl Row for Program {
    const HEADINGS: &'static [&'static str] =
        &["NAME", "READY", "RESTARTS", "ADDRESS", "AGE", "REVISION", "IMAGE"];
    const WIDE_FROM: usize = 5;

    fn name(&self) -> String {
        format!("deployment/{}", self.name)
    }

    fn cells(&self) -> Vec<String> {
        let address = if self.addresses.is_empty() { "-".to_owned() } else { self.addresses.join(",") };
        let ready = format!("{}/{}", self.ready, self.replicas);
        let (restarts, age) = (self.restarts.to_string(), output::age(self.age_seconds));
        vec![self.name.clone(), ready, restarts, address, age, self.revision.clone(), self.image.clone()]
    }
}

/// A Pod of a program.
#[derive(Debug, Serialize)]
struct Replica {
    name: String,
    ready: bool,
    state: String,
    restarts: i32,
    age_seconds: i64,
    address: String,
    image: String,
}

impl Row for Replica {
    const HEADINGS: &'static [&'static str] = &["POD", "READY", "STATE", "RESTARTS", "AGE", "IP", "IMAGE"];
    const WIDE_FROM: usize = 5;

    fn name(&self) -> String {
        format!("pod/{}", self.name)
    }

    fn cells(&self) -> Vec<String> {
        let ready = if self.ready { "yes" } else { "no" }.to_owned();
        let (restarts, age) = (self.restarts.to_string(), output::age(self.age_seconds));
        vec![
            self.name.clone(),
            ready,
            self.state.clone(),
            restarts,
            age,
            self.address.clone(),
            self.image.clone(),
        ]
    }
}

async fn ps(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let connection = running(context).await?;
    let namespace = context.namespace();
    let pods = match &args.name {
        Some(name) => ListParams::default().labels(&format!("{APP_LABEL}={name}")),
        None => ListParams::default(),
    };
    let all = ListParams::default();
    let (deployments, services, pod_api) = (
        connection.api::<Deployment>(namespace),
        connection.api::<Service>(namespace),
        connection.api::<Pod>(namespace),
    );
    let (deployments, services, pods) =
        tokio::try_join!(deployments.list(&all), services.list(&all), pod_api.list(&pods))?;
    let now = jiff::Timestamp::now();
    match &args.name {
        None => {
            let mut rows: Vec<Program> = deployments
                .items
                .iter()
                .map(|item| program(item, &services.items, &pods.items, now))
                .collect();
            rows.sort_by(|a, b| a.name.cmp(&b.name));
            if rows.is_empty() && !matches!(args.output.format, output::Format::Json | output::Format::Yaml) {
                context.printer.note("nothing runs; start something: gantry up DIR");
                return Ok(ExitCode::SUCCESS);
            }
            output::show(&rows, args.output.format, &context.printer)?;
        }
        Some(name) => {
            if !deployments.items.iter().any(|deployment| deployment.name_any() == *name)
                && pods.items.is_empty()
            {
                return Err(no_such(name));
            }
            let mut rows: Vec<Replica> = pods.items.iter().map(|pod| replica(pod, now)).collect();
            rows.sort_by(|a, b| a.name.cmp(&b.name));
            output::show(&rows, args.output.format, &context.printer)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn program(deployment: &Deployment, services: &[Service], pods: &[Pod], now: jiff::Timestamp) -> Program {
    let name = deployment.name_any();
    let own = pods.iter().filter(|pod| pod.labels().get(APP_LABEL) == Some(&name));
    let template = deployment.spec.as_ref().and_then(|spec| spec.template.metadata.as_ref());
    let labels = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
    // Every Service that selects the program's Pods leads to it, whoever made it.
    let selects = |service: &&Service| {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        selector.is_some_and(|wanted| {
            !wanted.is_empty() && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
        })
    };
    let addresses = services.iter().filter(selects).flat_map(|service| match ports::reach(service) {
        ports::Reach::Addresses(addresses) => addresses,
        _ => vec![],
    });
    let containers =
        deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).map(|spec| &spec.containers);
    let image = containers
        .and_then(|all| all.first())
        .and_then(|container| container.image.clone())
        .unwrap_or_default();
    Program {
        ready: deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default(),
        replicas: deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        restarts: own.map(restarts).sum(),
        addresses: addresses.collect(),
        age_seconds: age(&deployment.metadata, now),
        revision: deployment.annotations().get(REVISION).cloned().unwrap_or_default(),
        image: shortened(&image),
        name,
    }
}

fn replica(pod: &Pod, now: jiff::Timestamp) -> Replica {
    let image = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.containers.first())
        .and_then(|container| container.image.clone());
    let ready = trouble::is_ready(pod);
    let state = if pod.metadata.deletion_timestamp.is_some() {
        "ending".to_owned()
    } else if ready {
        "running".to_owned()
    } else {
        trouble::doing(pod)
    };
    Replica {
        name: pod.name_any(),
        ready,
        state,
        restarts: restarts(pod),
        age_seconds: age(&pod.metadata, now),
        address: pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default(),
        image: shortened(&image.unwrap_or_default()),
    }
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}

/// Seconds since an object was made.
pub fn age(metadata: &kube::api::ObjectMeta, now: jiff::Timestamp) -> i64 {
    metadata.creation_timestamp.as_ref().map(|time| now.as_second() - time.0.as_second()).unwrap_or_default()
}

/// An image with the first digits of its digest.
pub fn shortened(image: &str) -> String {
    let parsed = oci::Reference::parse(image);
    parsed.map_or_else(|_| image.to_owned(), |reference| crate::publish::shortened(&reference))
}
