//! `gantry run`: a program that ends, attached.

use std::{io::IsTerminal as _, process::ExitCode};

use clap::{ArgMatches, Args as _};
use futures::{AsyncReadExt as _, TryStreamExt as _};
use gobuild::Target;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod};
use kube::{
    Api, Client,
    api::{AttachParams, AttachedProcess, DeleteParams, PostParams},
    runtime::{watcher, watcher::Event},
};

use super::{Command, parse, up::ProgramFlags};
use crate::{
    context::{Connection, Context},
    failure::{Failure, Result},
    follow::{self, Silence},
    publish,
    workload::{label, trouble},
};
use tokio::io::AsyncWriteExt as _;

/// Seconds that a program has to end in after an interruption.
const GRACE_SECONDS: u32 = 2;
/// Exit code when the program's own is not known.
const UNKNOWN: u8 = 125;
/// Bytes of a log of which the beginning is surely still there: the node keeps more (its files are of 10 MiB).
const SHOWN_BYTES_MAX: u64 = 10 << 20;
/// Bytes of output that are shown at once.
const CHUNK_BYTES: usize = 64 << 10;

pub static COMMAND: Command = Command {
    name: "run",
    about: "Build a Go program that ends, run it attached, and give its exit code",
    examples: &[
        ("gantry run ./job", "its output, its exit code, nothing left"),
        ("gantry run ./job -e DAY=monday -- --dry-run", "with a variable and an argument"),
        ("gantry run -q ./job < in > out 2> log", "its input and both its outputs, as in a shell"),
    ],
    arguments: |command| Args::augment_args(command),
    run: |context, matches| context.block_on(run(context, matches)),
};

#[derive(Clone, Debug, clap::Args)]
struct Args {
    /// A folder with a main package, or an import path with a version
    #[arg(value_name = "TARGET")]
    target: String,
    /// Arguments for the program
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
    /// Give the terminal's input to the program; a pipe or a file is given without this
    #[arg(long, short = 'i')]
    interactive: bool,
    #[command(flatten)]
    program: ProgramFlags,
    #[command(flatten)]
    build: publish::Flags,
}

async fn run(context: &Context, matches: &ArgMatches) -> Result<ExitCode> {
    let args: Args = parse(matches)?;
    let mut spec = args.program.spec(context, &args.arguments)?;
    let options = args.build.image(&context.folder()?)?;
    let plan = publish::plan(context, &Target::parse(&args.target), args.build.options(None, None)).await?;
    if spec.name.is_empty() {
        spec.name = label(plan.name());
    }
    let (binary, connection) = tokio::join!(publish::compile(context, &plan), context.connect_running());
    let binary = binary?;
    let connection = match connection? {
        Some(connection) => connection,
        None => context.connect().await?,
    };
    let reference = publish::embedded(plan.name())?;
    let (reference, _) = publish::push(context, &connection.registry, &reference, &binary, &options).await?;
    spec.image = reference.to_string();

    let stdin = args.interactive || !std::io::stdin().is_terminal();
    let pods: Api<Pod> = connection.api(context.namespace());
    let name = format!("{}-{}", spec.name, suffix());
    let pod: Pod =
        serde_json::from_value(spec.run_pod(&name, stdin)).map_err(|error| Failure::from_error(&error))?;
    pods.create(&PostParams::default(), &pod).await?;
    let ended = tokio::select! {
        ended = attached(context, &connection, &pods, &name, stdin) => ended,
        () = context.cancel.cancelled() => Err(Failure::interrupted(format!("{} was stopped, nothing is left", spec.name))),
    };
    // Whatever happened, the Pod goes; its deletion goes on by itself once it is accepted.
    let grace = DeleteParams { grace_period_seconds: Some(GRACE_SECONDS), ..DeleteParams::default() };
    match pods.delete(&name, &grace).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => {
            context.printer.warning(format!("pod/{name} is left: {error}; kubectl delete pod {name}"));
        }
    }
    let ended = ended?;
    if ended.reason.as_deref() == Some("OOMKilled") {
        context.printer.warning("the program needed more memory than its limit: gantry run … --memory 512Mi");
    }
    Ok(ExitCode::from(u8::try_from(ended.exit_code).unwrap_or(UNKNOWN)))
}

/// Shows the Pod's output until it ends; gives how it ended.
async fn attached(
    context: &Context,
    connection: &Connection,
    pods: &Api<Pod>,
    name: &str,
    stdin: bool,
) -> Result<ContainerStateTerminated> {
    let mut events =
        follow::watch(pods.clone(), watcher::Config::default().fields(&format!("metadata.name={name}")));
    let mut shown = false;
    while let Some(event) = events.try_next().await? {
        let pod = match event {
            Event::Apply(pod) | Event::InitApply(pod) => pod,
            Event::Delete(_) => return Err(Failure::new(format!("pod/{name} was deleted by somebody else"))),
            Event::Init | Event::InitDone => continue,
        };
        let status = pod.status.as_ref();
        let container = status.and_then(|status| status.container_statuses.as_ref()?.first());
        let state = container.and_then(|container| container.state.as_ref());
        let started = state.is_some_and(|state| state.running.is_some() || state.terminated.is_some());
        if started && !shown {
            context.printer.progress_done();
            // Ends when the program does; how it ended is in the events behind.
            let output = output(context, &connection.client, pods, name);
            if stdin && state.is_some_and(|state| state.running.is_some()) {
                tokio::select! {
                    output = output => output?,
                    never = feed(context, connection, name) => match never {},
                }
            } else {
                output.await?;
            }
            shown = true;
        }
        if let Some(ended) = state.and_then(|state| state.terminated.clone()) {
            if let Some(trouble) = trouble::of_pod(&pod)
                .filter(|_| ended.exit_code != 0 && ended.reason.as_deref() == Some("StartError"))
            {
                return Err(Failure::new(format!("{name}: {}", trouble.message)).hint(trouble.hint));
            }
            return Ok(ended);
        }
        match trouble::of_pod(&pod) {
            Some(trouble) if trouble.passes_within.is_none() => {
                return Err(
                    Failure::new(format!("{name} was not started: {}", trouble.message)).hint(trouble.hint)
                );
            }
            _ if !started => context.printer.progress(trouble::doing(&pod)),
            _ => {}
        }
        if status.and_then(|status| status.phase.as_deref()) == Some("Failed") {
            let why = status
                .and_then(|status| status.message.clone().or(status.reason.clone()))
                .unwrap_or_default();
            return Err(Failure::new(format!("{name} failed: {why}")));
        }
    }
    Err(Failure::new(format!("the watch on pod/{name} ended")))
}

/// Shows both streams of the program, each on ours of the same name, until it ends.
async fn output(context: &Context, client: &Client, pods: &Api<Pod>, name: &str) -> Result<()> {
    tokio::try_join!(
        stream(client, pods, name, "Stdout", |bytes| context.printer.bytes(bytes)),
        stream(client, pods, name, "Stderr", |bytes| context.printer.error_bytes(bytes)),
    )?;
    Ok(())
}

/// The log of one stream, as it is written (PodLogOptions' `stream`). When the daemon dies in between, the next one has
/// the same log: what was shown is passed over.
async fn stream(
    client: &Client,
    pods: &Api<Pod>,
    name: &str,
    stream: &str,
    show: impl Fn(&[u8]),
) -> Result<()> {
    let mut shown = 0;
    let mut silence = Silence::default();
    loop {
        match read(client, pods, name, stream, &mut shown, &mut silence, &show).await {
            Ok(()) => return Ok(()),
            Err(error @ kube::Error::Api(_)) => {
                return Err(Failure::from(error).context(format!("read the output of {name}")));
            }
            Err(error) if shown > SHOWN_BYTES_MAX => {
                let why = Failure::from_error(&error)
                    .context(format!("the output of {name} broke off after {shown} bytes"));
                return Err(
                    why.hint("its beginning is no longer kept, so that it cannot be gone on with".to_owned())
                );
            }
            Err(error) => silence.lasts(error).await?,
        }
    }
}

/// Reads a log from its beginning and shows what comes after the first `shown` bytes.
async fn read(
    client: &Client,
    pods: &Api<Pod>,
    name: &str,
    stream: &str,
    shown: &mut u64,
    silence: &mut Silence,
    show: &impl Fn(&[u8]),
) -> std::result::Result<(), kube::Error> {
    let query = format!("follow=true&stream={stream}");
    let request = http::Request::get(format!("{}/{name}/log?{query}", pods.resource_url())).body(Vec::new());
    let mut bytes = client.request_stream(request.map_err(kube::Error::HttpError)?).await?;
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut passed = 0;
    loop {
        let count = bytes.read(&mut buffer).await.map_err(|error| kube::Error::Service(error.into()))?;
        if count == 0 {
            return Ok(());
        }
        silence.is_over();
        let known = usize::try_from(*shown - passed).unwrap_or(usize::MAX).min(count);
        passed += count as u64;
        if passed > *shown {
            *shown = passed;
            show(&buffer[known..count]);
        }
    }
}

/// Gives our standard input to the program, to its end. The program's own end is what its output tells.
async fn feed(context: &Context, connection: &Connection, name: &str) -> std::convert::Infallible {
    match attach(context, connection, name).await {
        Ok(mut attached) => {
            if let Some(mut input) = attached.stdin() {
                // A program that closes its input does not want the rest.
                let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut input).await;
                let _ = input.shutdown().await;
            }
            let _ = attached.join().await;
        }
        // One that has ended already needs none.
        Err(_) if ended(connection, context.namespace(), name).await => {}
        Err(failure) => {
            context.printer.warning(format!("the program waits for input that cannot be given: {failure}"));
        }
    }
    std::future::pending().await
}

async fn attach(context: &Context, connection: &Connection, name: &str) -> Result<AttachedProcess> {
    let pods: Api<Pod> = Api::namespaced(context.upgrading(connection)?, context.namespace());
    let parameters = AttachParams { stdin: true, stdout: false, stderr: false, ..AttachParams::default() };
    Ok(pods.attach(name, &parameters).await?)
}

async fn ended(connection: &Connection, namespace: &str, name: &str) -> bool {
    let pod = connection.api::<Pod>(namespace).get_opt(name).await;
    pod.is_ok_and(|pod| {
        let phase = pod.and_then(|pod| pod.status?.phase);
        phase.is_none_or(|phase| phase == "Succeeded" || phase == "Failed")
    })
}

/// Five characters, as Kubernetes makes names unique.
fn suffix() -> String {
    const CHARACTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes: [u8; 5] = rand::random();
    bytes.iter().map(|byte| char::from(CHARACTERS[usize::from(*byte) % CHARACTERS.len()])).collect()
}
