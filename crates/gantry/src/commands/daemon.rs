//! `gantry daemon`: the process behind the commands.

pub mod backup;
pub mod install;
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

use super::{Command, down::gone, parse};
use crate::{
    access,
    context::Context,
    failure::{Failure, Result},
    launch::{self, Started, Stopped},
    output::{self, Format},
    version::VERSION,
};

/// A certificate that runs out sooner was not renewed in time.
const WARN_DAYS: i64 = 30;
/// How long a daemon has to end.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

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
    Restore(backup::Restore),
    /// Say whether it runs, where it listens and where its log is
    Status(output::Output),
}

#[derive(Clone, Debug, clap::Args)]
struct Stop {
    /// End all programs first
    #[arg(long)]
    all: bool,
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
        Action::Stop(args) => context.block_on(stop(context, args.all)),
        Action::Upgrade(args) => upgrade::upgrade(context, &args),
        Action::Install => context.block_on(install::install(context)),
        Action::Backup(args) => backup::backup(context, &args),
        Action::Restore(args) => backup::restore(context, &args),
        Action::Status(output) => context.block_on(status(context, output.format)),
    }
}

fn run(context: &Context) -> Result<ExitCode> {
    root(context, "run")?;
    let mut ready = || {
        if let Err(error) = (Started::Ready { version: VERSION.to_owned() }).tell() {
            context.printer.warning(format!("tell that the daemon is ready: {error}"));
        }
    };
    match (context.hooks.daemon)(&context.settings.state_dir, &mut ready) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            let said = format!("{error:#}").replace('\n', " ");
            let full = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
            let full = full.map(std::io::Error::kind).any(|kind| kind == std::io::ErrorKind::StorageFull);
            let hint = full.then(|| "free space there, or name another folder with --state-dir".to_owned());
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
    Ok(ExitCode::SUCCESS)
}

fn root(context: &Context, action: &str) -> Result<()> {
    if context.settings.is_root {
        return Ok(());
    }
    let hint = format!("sudo gantry daemon {action}{}", context.settings.state_flag());
    Err(Failure::new("the daemon makes namespaces, mounts and cgroups, which only root may").hint(hint))
}

/// Stops the daemon; with `all` every program ends first.
pub async fn stop(context: &Context, all: bool) -> Result<ExitCode> {
    let mut in_order = false;
    if all && let Some(connection) = context.connect_running().await? {
        end_all(context, &connection.client).await?;
        in_order = true;
    }
    context.printer.progress("waiting for the daemon to end");
    let stopped = launch::stop(&context.settings, STOP_DEADLINE).await?;
    if all {
        root(context, "stop --all")?;
        let removed = (context.hooks.remove_outside)(&context.settings.state_dir)?;
        removed.iter().for_each(|what| context.printer.step("Removed", what, None));
        if !in_order && removed.iter().any(|what| what.starts_with("container")) {
            context.printer.warning(
                "no daemon ran: the programs got SIGTERM at once, and ten seconds whatever their grace period is",
            );
        }
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
    Ok(ExitCode::SUCCESS)
}

/// Deletes what makes Pods, then the Pods, and waits until they have ended.
async fn end_all(context: &Context, client: &Client) -> Result<()> {
    let parameters =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    let all = kube::api::ListParams::default();
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone()).list(&all).await?;
    for namespace in namespaces.items.iter().filter_map(|namespace| namespace.metadata.name.as_deref()) {
        Api::<Deployment>::namespaced(client.clone(), namespace).delete_collection(&parameters, &all).await?;
        Api::<ReplicaSet>::namespaced(client.clone(), namespace).delete_collection(&parameters, &all).await?;
        Api::<Pod>::namespaced(client.clone(), namespace).delete_collection(&parameters, &all).await?;
        let services = Api::<Service>::namespaced(client.clone(), namespace);
        for service in services.list(&all).await? {
            let name = service.metadata.name.unwrap_or_default();
            // The API server's own, which it would make again.
            if name != "kubernetes" {
                services.delete(&name, &DeleteParams::default()).await?;
            }
        }
    }
    let progress = |left| context.printer.progress(format!("{left} Pods to end"));
    tokio::select! {
        result = gone(Api::<Pod>::all(client.clone()), watcher::Config::default(), progress) => result,
        () = context.cancel.cancelled() => Err(Failure::interrupted("all programs are being ended; the daemon still runs")),
    }
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
