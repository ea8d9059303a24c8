//! What takes time: volumes, starting, hooks, cleaning up. None of it knows the worker's state.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler, Pod, ServiceAccountTokenProjection};

use super::Deps;
use crate::env::Sources;
use crate::ports::{Container, Failure, Image, Sandbox};
use crate::probe::Ask;
use crate::probe::action::Action;
use crate::spec::{self, annotation};
use crate::{drain, etc, logs, volumes};

/// What a termination message may be long, as kubelet has it.
const TERMINATION_BYTES_MAX: u64 = 4096;
/// The same for one made of the last log lines.
const TERMINATION_LOG_BYTES_MAX: usize = 2048;
const TERMINATION_LOG_LINES_MAX: usize = 80;
/// Runs whose logs are kept besides the current one's.
const OLD_LOGS_MAX: u32 = 1;
/// What a program's loader exits with when it lacks a shared library.
const CANNOT_LOAD_CODE: i32 = 127;
/// One answer to a hook's request.
const HOOK_TIMEOUT: Duration = Duration::from_secs(30);

/// A container that runs.
pub(super) struct Started {
    pub handle: Arc<dyn Container>,
    pub at: SystemTime,
    pub stop_signal: i32,
}

/// Why a container does not run.
pub(super) enum StartError {
    /// It could not even be described.
    Config { reason: &'static str, failure: Failure },
    /// It could not be made, or its program could not be executed.
    Run { failure: Failure, handle: Option<Arc<dyn Container>> },
}

/// A step on this machine that takes longer counts as failed, and is tried again: a Pod never waits for what may not come.
const STEP_LONGEST: Duration = Duration::from_secs(120);

/// Gives a step its bound.
pub(super) async fn bounded<T>(
    what: &str,
    step: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(STEP_LONGEST, step).await {
        Ok(result) => result,
        Err(_) => Err(Failure(format!("{what}: no end within {} s", STEP_LONGEST.as_secs()))),
    }
}

/// Runs work that blocks on files.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::of(&error))
}

/// Makes the Pod's volumes, or brings them up to date.
pub(super) async fn mount(deps: &Deps, pod: &Arc<Pod>) -> Result<(), Failure> {
    let pod = Arc::clone(pod);
    let dir = deps.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default());
    let has_volumes =
        pod.spec.as_ref().is_some_and(|spec| spec.volumes.as_ref().is_some_and(|list| !list.is_empty()));
    if !has_volumes {
        return Ok(());
    }
    let (maps, secrets) = volumes::content::names(&pod);
    let sources =
        sources(deps, &pod, maps.into_iter().collect(), secrets.into_iter().collect(), false).await?;
    let tokens = tokens(deps, &pod).await?;
    blocking(move || volumes::make(&pod, &dir, &sources, &tokens)).await?.map_err(|error| Failure::of(&error))
}

async fn tokens(deps: &Deps, pod: &Pod) -> Result<volumes::content::Tokens, Failure> {
    let mut tokens = volumes::content::Tokens::new();
    for source in token_sources(pod) {
        let seconds = source.expiration_seconds.unwrap_or(3600);
        let token = deps.objects.token(pod, source.audience.as_deref(), seconds).await?;
        tokens.insert(source.path, token);
    }
    Ok(tokens)
}

fn token_sources(pod: &Pod) -> Vec<ServiceAccountTokenProjection> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected =
        volumes.flat_map(|volume| volume.projected.iter().flat_map(|p| p.sources.iter().flatten()));
    projected.filter_map(|source| source.service_account_token.clone()).collect()
}

/// Fetches what is named; what is not there is left out.
async fn sources(
    deps: &Deps,
    pod: &Pod,
    maps: BTreeSet<String>,
    secrets: BTreeSet<String>,
    services: bool,
) -> Result<Sources, Failure> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut sources = Sources { node: deps.node.clone(), ..Sources::default() };
    for name in maps {
        if let Some(map) = deps.objects.config_map(namespace, &name).await? {
            sources.config_maps.insert(name, map);
        }
    }
    for name in secrets {
        if let Some(secret) = deps.objects.secret(namespace, &name).await? {
            sources.secrets.insert(name, secret);
        }
    }
    if services {
        sources.services = deps.objects.services(namespace).await;
    }
    Ok(sources)
}

/// The ConfigMaps and Secrets that a container's environment names.
fn named(container: &Spec) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|reference| reference.name.clone()));
    }
    for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        maps.extend(from.config_map_key_ref.iter().map(|reference| reference.name.clone()));
        secrets.extend(from.secret_key_ref.iter().map(|reference| reference.name.clone()));
    }
    (maps, secrets)
}

/// Makes and starts a container.
pub(super) async fn start(
    deps: &Deps,
    pod: &Arc<Pod>,
    container: &Spec,
    attempt: u32,
    image: &Arc<Image>,
    sandbox: &Sandbox,
) -> Result<Started, StartError> {
    let config = |failure| StartError::Config { reason: "CreateContainerConfigError", failure };
    let (maps, secrets) = named(container);
    let mut sources = sources(deps, pod, maps, secrets, true).await.map_err(config)?;
    sources.node.pod_ip = Some(sandbox.ip.to_string());
    let described = {
        let (pod, container, image, sandbox) =
            (Arc::clone(pod), container.clone(), Arc::clone(image), sandbox.clone());
        let pod_dir = deps.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default());
        let log_dir = deps.log_dir(&pod).join(&container.name);
        let (dns, memory_bytes) = (deps.dns_ip, u64::try_from(deps.node.memory_bytes).unwrap_or(0));
        blocking(move || {
            prepare(&pod, &container, attempt, &pod_dir, &log_dir).map_err(|error| Failure::of(&error))?;
            etc::write(&pod, &pod_dir, sandbox.ip, dns).map_err(|error| Failure::of(&error))?;
            let input = spec::Input {
                pod: &pod,
                container: &container,
                attempt,
                image: &image,
                sandbox: &sandbox,
                sources: &sources,
                pod_dir: &pod_dir,
                log_dir: &log_dir,
                memory_bytes,
            };
            spec::of(&input).map_err(|error| Failure::of(&error))
        })
        .await
    };
    let described = described.and_then(|spec| spec).map_err(config)?;
    let stop_signal = described.annotations.get(annotation::STOP_SIGNAL).and_then(|text| text.parse().ok());
    let explained = |failure: Failure| match deps.containers.explain(&described) {
        Some(why) => Failure(format!("{why} ({failure})")),
        None => failure,
    };
    let handle = match deps.containers.create(described.clone()).await {
        Ok(handle) => handle,
        Err(failure) => return Err(StartError::Run { failure: explained(failure), handle: None }),
    };
    match handle.start().await {
        Ok(at) => Ok(Started { handle, at, stop_signal: stop_signal.unwrap_or(15) }),
        Err(failure) => Err(StartError::Run { failure: explained(failure), handle: Some(handle) }),
    }
}

/// Makes the folders and files that a run needs, and lets go of the logs of old ones.
fn prepare(pod: &Pod, container: &Spec, attempt: u32, pod_dir: &Path, log_dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(pod_dir.join("containers"))?;
    std::fs::create_dir_all(log_dir)?;
    let words = spec::termination_file(pod_dir, &container.name, attempt);
    std::fs::write(&words, b"")?;
    // The program may run as anyone.
    std::fs::set_permissions(&words, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    if let Some(old) = attempt.checked_sub(OLD_LOGS_MAX + 1) {
        remove(&spec::termination_file(pod_dir, &container.name, old))?;
        for file in logs::files(&spec::log_file(log_dir, old)) {
            remove(&file)?;
        }
    }
    tracing::debug!(pod = pod.metadata.name, container = container.name, attempt, "prepared");
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Runs a `postStart` or `preStop` hook.
pub(super) async fn hook(hook: &LifecycleHandler, container: &Spec, ask: &dyn Ask) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(drain::seconds_of(sleep.seconds)).await;
        return Ok(());
    }
    if let Some(get) = &hook.http_get {
        return ask.ask(&Action::of_http(get, container)?, HOOK_TIMEOUT).await;
    }
    if hook.exec.is_some() {
        return Err("exec hooks are not supported here; use httpGet or sleep".to_owned());
    }
    Ok(())
}

/// What a container that ended has to say: its termination message, or its last log lines if it wants that.
pub(super) async fn last_words(
    deps: &Deps,
    pod: &Pod,
    container: &Spec,
    attempt: u32,
    exit: &runtime::Exit,
    made_from: Option<&runtime::Spec>,
) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let words = spec::termination_file(&deps.pod_dir(uid), &container.name, attempt);
    let log = spec::log_file(&deps.log_dir(pod).join(&container.name), attempt);
    let fall_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    let failed = exit.code != Some(0);
    let read = blocking(move || {
        let text = read_bounded(&words);
        if text.is_empty() && fall_back && failed { tail(&log) } else { text }
    });
    let text = read.await.unwrap_or_default();
    if text.is_empty()
        && matches!(exit.code, Some(CANNOT_LOAD_CODE))
        && let Some(why) = made_from.and_then(|spec| deps.containers.explain(spec))
    {
        return why;
    }
    text
}

fn read_bounded(path: &PathBuf) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    // No file means no words.
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(TERMINATION_BYTES_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn tail(log: &Path) -> String {
    let lines = logs::last_lines(log, TERMINATION_LOG_LINES_MAX).unwrap_or_default();
    let mut text = lines.concat();
    if text.len() > TERMINATION_LOG_BYTES_MAX {
        let mut cut = text.len() - TERMINATION_LOG_BYTES_MAX;
        while !text.is_char_boundary(cut) {
            cut += 1;
        }
        text.drain(..cut);
    }
    text
}

/// Removes dead containers and volumes.
pub(super) async fn clear(
    deps: &Deps,
    uid: &str,
    containers: Vec<Arc<dyn Container>>,
) -> Result<(), Failure> {
    for container in containers {
        container.delete().await?;
    }
    let volumes = deps.pod_dir(uid).join("volumes");
    blocking(move || {
        volumes::unmount_below(&volumes)?;
        match durable::remove_dir_all(&volumes) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    })
    .await?
    .map_err(|error| Failure::of(&error))
}

/// Removes what was kept for as long as the object was there.
pub(super) async fn forget(deps: &Deps, pod: &Pod) {
    let dirs = [deps.pod_dir(pod.metadata.uid.as_deref().unwrap_or_default()), deps.log_dir(pod)];
    let removed = blocking(move || {
        for dir in dirs {
            if let Err(error) = durable::remove_dir_all(&dir)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(dir = %dir.display(), %error, "remove a Pod's folder");
            }
        }
    });
    // Only a runtime that shuts down refuses; the next start cleans up.
    let _ = removed.await;
}
