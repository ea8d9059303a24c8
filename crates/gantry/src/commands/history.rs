//! `gantry history`: the versions of a program that can be gone back to.

use std::process::ExitCode;

use clap::{ArgMatches, Args as _};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::{ResourceExt as _, api::ListParams};
use serde::Serialize;

use super::{Command, down::running, parse, ps};
use crate::{
    context::{Connection, Context},
    deploy,
    failure::Result,
    output::{self, Row},
    workload::REVISION,
};

pub static COMMAND: Command = Command {
    name: "history",
    about: "List the versions of a program",
    examples: &[
        ("gantry history hello", "oldest first; the last one serves"),
        ("gantry rollback hello --to-revision 2", "go back to one of them"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(history(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// The program
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    output: output::Output,
}

#[derive(Debug, Serialize)]
struct Version {
    revision: i64,
    current: bool,
    ready: i32,
    age_seconds: i64,
    image: String,
    cause: String,
}

impl Row for Version {
    const HEADINGS: &'static [&'static str] = &["REVISION", "CURRENT", "READY", "AGE", "IMAGE", "CAUSE"];
    const WIDE_FROM: usize = 5;

    fn name(&self) -> String {
        self.revision.to_string()
    }

    fn cells(&self) -> Vec<String> {
        let current = if self.current { "yes" } else { "" }.to_owned();
        let age = output::age(self.age_seconds);
        vec![
            self.revision.to_string(),
            current,
            self.ready.to_string(),
            age,
            self.image.clone(),
            self.cause.clone(),
        ]
    }
}

async fn history(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let connection = running(context).await?;
    let deployment = deploy::deployment(&connection, context.namespace(), &args.name).await?;
    let sets = revisions(&connection, context.namespace(), &deployment).await?;
    let now = jiff::Timestamp::now();
    let rows: Vec<Version> = sets
        .iter()
        .map(|(revision, set)| {
            let pod = set.spec.as_ref().and_then(|spec| spec.template.as_ref()?.spec.as_ref());
            let image = pod.and_then(|pod| pod.containers.first()?.image.clone()).unwrap_or_default();
            Version {
                revision: *revision,
                current: set.annotations().get(REVISION) == deployment.annotations().get(REVISION),
                ready: set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default(),
                age_seconds: ps::age(&set.metadata, now),
                image: ps::shortened(&image),
                cause: set.annotations().get("kubernetes.io/change-cause").cloned().unwrap_or_default(),
            }
        })
        .collect();
    output::show(&rows, args.output.format, &context.printer)?;
    Ok(ExitCode::SUCCESS)
}

/// A Deployment's ReplicaSets by revision, oldest first.
pub async fn revisions(
    connection: &Connection,
    namespace: &str,
    deployment: &Deployment,
) -> Result<Vec<(i64, ReplicaSet)>> {
    let selector =
        deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let sets = connection
        .api::<ReplicaSet>(namespace)
        .list(&ListParams::default().labels(&labels.join(",")))
        .await?;
    let mut revisions: Vec<(i64, ReplicaSet)> = sets
        .items
        .into_iter()
        .filter(|set| {
            set.owner_references().iter().any(|owner| Some(&owner.uid) == deployment.metadata.uid.as_ref())
        })
        .filter_map(|set| Some((set.annotations().get(REVISION)?.parse().ok()?, set)))
        .collect();
    revisions.sort_by_key(|(revision, _)| *revision);
    Ok(revisions)
}
