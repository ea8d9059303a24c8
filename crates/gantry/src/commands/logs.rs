//! `gantry logs`: what programs said.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use clap::{ArgMatches, Args as _};
use futures::{
    AsyncBufReadExt as _, AsyncReadExt as _, TryStreamExt as _, io::BufReader, stream::FuturesUnordered,
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, LogParams},
    runtime::{WatchStreamExt as _, watcher, watcher::Event},
};

use super::{Command, down::running, duration, parse};
use crate::{context::Context, deploy::no_such, failure::Result, printer::Printer, workload::APP_LABEL};

/// A longer line is cut into several.
const LINE_BYTES_MAX: u64 = 1 << 20;

pub static COMMAND: Command = Command {
    name: "logs",
    about: "Show what a program wrote",
    examples: &[
        ("gantry logs hello", "all that is kept"),
        ("gantry logs hello -f --tail 10", "the last lines, and those to come"),
        ("gantry logs hello --previous", "of the run before"),
        ("gantry logs hello-5d8c9-x2x7p", "of one Pod"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(logs(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// A program or a Pod
    #[arg(value_name = "NAME")]
    name: String,
    /// Go on with lines to come, also of Pods to come
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "N")]
    tail: Option<i64>,
    /// Only lines of this last time
    #[arg(long, value_name = "TIME", value_parser = duration)]
    since: Option<Duration>,
    /// Of the run before the last restart
    #[arg(long, short = 'p')]
    previous: bool,
    /// Put the time before each line
    #[arg(long)]
    timestamps: bool,
}

impl Args {
    fn parameters(&self) -> LogParams {
        LogParams {
            follow: self.follow,
            tail_lines: self.tail,
            since_seconds: self.since.map(|since| i64::try_from(since.as_secs().max(1)).unwrap_or(i64::MAX)),
            previous: self.previous,
            timestamps: self.timestamps,
            ..LogParams::default()
        }
    }
}

async fn logs(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let connection = running(context).await?;
    let pods: Api<Pod> = connection.api(context.namespace());
    let labelled = format!("{APP_LABEL}={}", args.name);
    let mut found = pods.list(&ListParams::default().labels(&labelled)).await?.items;
    let is_program = !found.is_empty();
    if !is_program {
        found.extend(pods.get_opt(&args.name).await?);
    }
    if found.is_empty() {
        return Err(no_such(&args.name));
    }
    found.sort_by_key(|pod| (pod.creation_timestamp().map(|time| time.0), pod.name_any()));
    let shown = async {
        if args.follow && is_program {
            return follow(context, &pods, &labelled, &args).await;
        }
        let several = found.len() > 1;
        for pod in &found {
            let name = pod.name_any();
            let prefix = if several { format!("[{name}] ") } else { String::new() };
            show(&pods, &name, &prefix, &args.parameters(), &context.printer).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = shown => result?,
        // Nobody waits for more, and nothing was changed.
        () = context.cancel.cancelled() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows the logs of all Pods of a program, with those that a rollout brings.
async fn follow(context: &Context, pods: &Api<Pod>, labelled: &str, args: &Args) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut shown = FuturesUnordered::new();
    let mut events =
        Box::pin(watcher(pods.clone(), watcher::Config::default().labels(labelled)).default_backoff());
    loop {
        tokio::select! {
            event = events.try_next() => {
                let (Some(Event::Apply(pod) | Event::InitApply(pod)), true) = (event?, true) else { continue };
                let has_started = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref()).is_some_and(|all| {
                    all.iter().any(|status| status.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some()))
                });
                let runs = all_starts(&pod);
                if has_started && seen.insert((pod.name_any(), runs)) {
                    let (name, pods, mut parameters) = (pod.name_any(), pods.clone(), args.parameters());
                    // Of a Pod that comes later, or runs again, every line is new.
                    if seen.len() > 1 && runs > 0 {
                        parameters.tail_lines = None;
                    }
                    let printer = &context.printer;
                    shown.push(async move {
                        let prefix = format!("[{name}] ");
                        show(&pods, &name, &prefix, &parameters, printer).await
                    });
                }
            }
            // A log that ends, ends because its container did.
            Some(_) = futures::StreamExt::next(&mut shown) => {}
        }
    }
}

fn all_starts(pod: &Pod) -> i32 {
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
    statuses.into_iter().flatten().map(|status| status.restart_count).sum()
}

/// Shows one Pod's log line by line.
pub async fn show(
    pods: &Api<Pod>,
    name: &str,
    prefix: &str,
    parameters: &LogParams,
    printer: &Printer,
) -> Result<()> {
    let stream = pods.log_stream(name, parameters).await?;
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = (&mut stream).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await;
        let count = count.map_err(|error| {
            crate::failure::Failure::from_error(&error).context(format!("read the log of {name}"))
        })?;
        if count == 0 {
            return Ok(());
        }
        if prefix.is_empty() {
            printer.bytes(&line);
        } else {
            let mut prefixed = prefix.as_bytes().to_vec();
            prefixed.extend(&line);
            printer.bytes(&prefixed);
        }
    }
}
