//! `gantry daemon`: the process behind the commands.

pub mod backup;
pub mod install;
pub mod restore;
pub mod upgrade;

use std::{process::ExitCode, time::Duration};

use clap::{ArgMatches, Subcommand as _};
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Pod, Service},
};
use kube::{
    Api, Client,
    api::{DeleteParams, PropagationPolicy},
    runtime::watcher,
};
use serde::Serialize;

use super::{
    Command,
    down::{gone, resisting},
    duration, parse,
};
use crate::{
    access,
    context::Context,
    failure::{Failure, Result},
    kernel,
    launch::{self, Started, Stopped},
    output::{self, Format},
    version::VERSION,
};

/// A certificate that runs out sooner was not renewed in time.
const WARN_DAYS: i64 = 30;
/// How long a daemon has to end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// How long the kernel has to end a daemon that was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// What is kept of a deadline to tell what resisted.
const NAMING: Duration = Duration::from_millis(500);

pub static COMMAND: Command = Command {
    name: "daemon",
    about: "Run, start, stop, upgrade, back up and look at the daemon",
    examples: &[
        ("sudo gantry daemon start", "in the background; up does that by itself for root"),
        ("gantry daemon status", "is it there, where does it listen, where is its log"),
        ("sudo gantry daemon stop", "containers and ports stay"),
        ("sudo gantry daemon stop --all", "end all programs first"),
        ("sudo gantry daemon run", "in the foreground, under a service manager"),
        ("sudo gantry daemon install", "as a service of systemd, which starts it after a reboot"),
        ("sudo gantry daemon upgrade", "to the gantry that runs this; no request is lost"),
        ("sudo gantry daemon backup all.gantry", "objects, images, keys, while it runs"),
        ("sudo gantry daemon restore all.gantry", "into an empty state folder"),
    ],
    arguments: |command| {
        Action::augment_subcommands(command).subcommand_required(true).arg_required_else_help(true)
    },
    run: daemon,
};

#[derive(Clone, Debug, clap::Subcommand)]
enum Action {
    /// Run in the foreground
    Run,
    /// Start in the background, and wait until it serves
    Start,
    /// Stop it; containers and published ports stay
    Stop(Stop),
    /// Let another binary take over from the daemon and the proxy; programs and their ports stay
    Upgrade(upgrade::Upgrade),
    /// Have systemd run it, from now on and after a reboot
    Install,
    /// Write everything that is to be kept into one file, while the daemon runs
    Backup(backup::Backup),
    /// Make a state folder from a backup
    Restore(restore::Restore),
    /// Say whether it runs, where it listens and where its log is
    Status(output::Output),
}

#[derive(Clone, Debug, clap::Args)]
struct Stop {
    /// End all programs first
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    patience: Patience,
}

/// How long `stop --all` and `uninstall` wait for programs.
#[derive(Clone, Debug, clap::Args)]
pub struct Patience {
    /// How long the programs may take to end, before they are killed
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    pub timeout: Duration,
}

/// What `status` says.
#[derive(Debug, Serialize)]
struct Status {
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    state_dir: String,
    log: String,
    /// Until the caller's client certificate runs out; it is renewed long before.
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_days_left: Option<i64>,
    #[serde(flatten)]
    endpoints: Option<access::Endpoints>,
}

fn daemon(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    match parse::<Action>(matches)? {
        Action::Run => run(context),
        Action::Start => context.block_on(start(context)),
        Action::Stop(args) => context.block_on(async {
            let resisted = stop(context, args.all.then_some(args.patience.timeout)).await?;
            all_ended(&resisted).map(|()| ExitCode::SUCCESS)
        }),
        Action::Upgrade(args) => upgrade::upgrade(context, &args),
        Action::Install => context.block_on(install::install(context)),
        Action::Backup(args) => backup::backup(context, &args),
        Action::Restore(args) => restore::restore(context, &args),
        Action::Status(output) => context.block_on(status(context, output.format)),
    }
}

fn run(context: &Context) -> Result<ExitCode> {
    root(context, "run")?;
    if let Err(error) = kernel::check() {
        let _ = Started::Failed { error: error.to_string(), hint: Some(error.hint()) }.tell();
        return Err(error.into());
    }
    let mut ready = || {
        if let Err(error) = (Started::Ready { version: VERSION.to_owned() }).tell() {
            context.printer.warning(format!("tell that the daemon is ready: {error}"));
        }
    };
    match (context.hooks.daemon)(&context.settings.state_dir, &mut ready) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let said = format!("{error:#}").replace('\n', " ");
            let hint = (context.hooks.hint)(&error);
            let _ = Started::Failed { error: said, hint: hint.clone() }.tell();
            Err(Failure::from(error).hint(hint))
        }
    }
}

async fn start(context: &Context) -> Result<ExitCode> {
    if launch::answers(&context.settings.state_dir).await?
        && launch::holder(&context.settings.state_dir)?.is_some()
    {
        context.printer.note(format!("a daemon runs already in {}", context.settings.state_dir.display()));
        return Ok(ExitCode::SUCCESS);
    }
    root(context, "start")?;
    context.printer.progress("starting the daemon");
    let started = std::time::Instant::now();
    let is_ours = launch::ensure(&context.settings, &context.cancel).await?;
    let facts = format!("daemon in {}", context.settings.state_dir.display());
    // Of two that start one at once, one waits for the other's.
    context.printer.step(if is_ours { "Started" } else { "Running" }, &facts, Some(started.elapsed()));
    say_if_full(context);
    Ok(ExitCode::SUCCESS)
}

/// A daemon starts on a full disk too; what will not work there is said.
fn say_if_full(context: &Context) {
    let dir = &context.settings.state_dir;
    // Nothing else depends on it.
    let Ok(disk) = node::storage::pressure::Disk::look(dir) else { return };
    if disk.is_short() {
        context.printer.warning(format!(
            "the disk of {} is nearly full: {} KiB of {} are available; programs can be deleted, what is new may be \
             refused, and programs that hold much of it are evicted. Free space there",
            dir.display(),
            disk.available / 1024,
            disk.total / 1024
        ));
    }
}

fn root(context: &Context, action: &str) -> Result<()> {
    if context.settings.is_root {
        return Ok(());
    }
    let hint = format!("sudo gantry daemon {action}{}", context.settings.state_flag());
    Err(Failure::new("the daemon makes namespaces, mounts and cgroups, which only root may").hint(hint))
}

/// Stops the daemon, and with `all` every program before it. Each step has a deadline, so that this ends whatever
/// resists; gives what did.
pub async fn stop(context: &Context, all: Option<Duration>) -> Result<Vec<String>> {
    let mut resisted = Vec::new();
    let mut in_order = false;
    if all.is_some() || launch::answers(&context.settings.state_dir).await? {
        root(context, if all.is_some() { "stop --all" } else { "stop" })?;
    }
    if let Some(timeout) = all {
        in_order = end_all(context, timeout, &mut resisted).await?;
    }
    context.printer.progress("waiting for the daemon to end");
    let stopped = match launch::stop(&context.settings, STOP_DEADLINE).await {
        Err(failure) if all.is_some() => {
            context.printer.warning(format!("{}; it is killed", failure.message()));
            launch::kill(&context.settings, KILL_DEADLINE).await?
        }
        stopped => stopped?,
    };
    if all.is_some() {
        let removed = (context.hooks.remove_outside)(&context.settings.state_dir)?;
        removed.ended.iter().for_each(|what| context.printer.step("Removed", what, None));
        if !in_order && removed.ended.iter().any(|what| what.starts_with("container")) {
            context
                .printer
                .warning("the programs got SIGTERM at once, and ten seconds whatever their grace period is");
        }
        // What the API kept is of no consequence once its container is gone.
        resisted.iter().for_each(|what| context.printer.warning(what));
        resisted = removed.resisted;
    }
    match stopped {
        Stopped::Ended => context.printer.step(
            "Stopped",
            &format!("daemon in {}", context.settings.state_dir.display()),
            None,
        ),
        Stopped::WasNotRunning => {
            context.printer.note(format!("no daemon runs in {}", context.settings.state_dir.display()))
        }
    }
    Ok(resisted)
}

/// Nothing, or the error that says what is still there.
pub fn all_ended(resisted: &[String]) -> Result<()> {
    if resisted.is_empty() {
        return Ok(());
    }
    let hint = "a process that SIGKILL does not end waits in the kernel, mostly for a disk: see its state in ps; then run this again";
    Err(Failure::new(format!("not everything could be removed: {}", resisted.join("; ")))
        .hint(hint.to_owned()))
}

/// Ends all programs through the API, in order and with their grace periods; false when that did not come to its end.
async fn end_all(context: &Context, timeout: Duration, resisted: &mut Vec<String>) -> Result<bool> {
    let deadline = tokio::time::Instant::now() + timeout;
    let connected = tokio::time::timeout_at(deadline, context.connect_running()).await;
    let connection = match connected {
        Ok(Ok(Some(connection))) => connection,
        Ok(Ok(None)) => return Ok(false),
        Ok(Err(failure)) => {
            resisted.push(format!("the programs were not ended in order: {}", failure.message()));
            return Ok(false);
        }
        Err(_) => return Ok(false),
    };
    let ended = delete_all(context, &connection.client, deadline, resisted);
    let ended = tokio::select! {
        ended = tokio::time::timeout_at(deadline, ended) => ended,
        () = context.cancel.cancelled() => {
            return Err(Failure::interrupted("all programs are being ended; the daemon still runs"));
        }
    };
    match ended {
        Ok(Ok(left)) if left.is_empty() => return Ok(resisted.is_empty()),
        Ok(Ok(left)) => {
            resisted.push(format!("not ended after {} s: {}", timeout.as_secs(), resisting(&left)))
        }
        Ok(Err(failure)) => {
            resisted.push(format!("the programs were not ended in order: {}", failure.message()))
        }
        Err(_) => {
            resisted.push(format!("the API server has not ended the programs after {} s", timeout.as_secs()))
        }
    }
    Ok(false)
}

/// Deletes what makes Pods, then the Pods, and waits until they have ended; gives the Pods that have not by then. What
/// cannot be deleted is noted, and the rest is deleted all the same.
async fn delete_all(
    context: &Context,
    client: &Client,
    deadline: tokio::time::Instant,
    resisted: &mut Vec<String>,
) -> Result<Vec<Pod>> {
    let parameters =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    let all = kube::api::ListParams::default();
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone()).list(&all).await?;
    for namespace in namespaces.items.iter().filter_map(|namespace| namespace.metadata.name.as_deref()) {
        let deployments = Api::<Deployment>::namespaced(client.clone(), namespace);
        let sets = Api::<ReplicaSet>::namespaced(client.clone(), namespace);
        let pods = Api::<Pod>::namespaced(client.clone(), namespace);
        let deleted = [
            ("Deployments", deployments.delete_collection(&parameters, &all).await.map(drop)),
            ("ReplicaSets", sets.delete_collection(&parameters, &all).await.map(drop)),
            ("Pods", pods.delete_collection(&parameters, &all).await.map(drop)),
            ("Services", delete_services(client, namespace).await),
        ];
        for (kind, result) in deleted {
            if let Err(error) = result {
                resisted.push(format!("{kind} in {namespace}: {}", Failure::from(error).message()));
            }
        }
    }
    let progress = |left| context.printer.progress(format!("{left} Pods to end"));
    // A little sooner than the caller's own deadline, so that those that are left can be named.
    let patience = deadline.saturating_duration_since(tokio::time::Instant::now()).saturating_sub(NAMING);
    gone(Api::<Pod>::all(client.clone()), watcher::Config::default(), patience, progress).await
}

async fn delete_services(client: &Client, namespace: &str) -> std::result::Result<(), kube::Error> {
    let services = Api::<Service>::namespaced(client.clone(), namespace);
    for service in services.list(&kube::api::ListParams::default()).await? {
        let name = service.metadata.name.unwrap_or_default();
        // The API server's own, which it would make again.
        if name != "kubernetes" {
            services.delete(&name, &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

async fn status(context: &Context, format: Format) -> Result<ExitCode> {
    let state_dir = &context.settings.state_dir;
    let running = launch::answers(state_dir).await?;
    let access = access::Access::find(&context.settings).ok();
    let status = Status {
        running,
        certificate_days_left: access.as_ref().and_then(access::Access::days_left),
        pid: launch::holder(state_dir)?.map(|pid| pid.as_raw_nonzero().get()),
        state_dir: state_dir.display().to_string(),
        log: access::log_path(state_dir).display().to_string(),
        endpoints: access::Endpoints::read(state_dir)?.filter(|_| running),
    };
    match format {
        Format::Json | Format::Yaml => output::value(&status, format, &context.printer)?,
        _ => {
            let say = |key: &str, value: &str| context.printer.data(format!("{key:<12}{value}"));
            let version = status.endpoints.as_ref().map(|endpoints| endpoints.version.as_str());
            let version =
                version.filter(|version| !version.is_empty()).map(|version| format!(", gantry {version}"));
            let process = status.pid.map(|pid| format!(", process {pid}"));
            let running = format!("running{}{}", version.unwrap_or_default(), process.unwrap_or_default());
            say("daemon", if status.running { &running } else { "not running" });
            if let Some(endpoints) = &status.endpoints {
                say("kubernetes", &endpoints.kubernetes);
                say("registry", &endpoints.registry);
                say("console", &endpoints.console);
            }
            say("state", &status.state_dir);
            say("log", &status.log);
            if let Some(access) = &access {
                say("kubeconfig", &access.kubeconfig.display().to_string());
            }
            if let Some(days) = status.certificate_days_left {
                say("certificate", &format!("good for {days} days"));
            }
        }
    }
    if let Some(days) = status.certificate_days_left.filter(|days| *days < WARN_DAYS) {
        context.printer.warning(format!(
            "the client certificate is good for {days} days; a daemon that runs renews it 60 days before: gantry daemon start"
        ));
    }
    Ok(if running { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
