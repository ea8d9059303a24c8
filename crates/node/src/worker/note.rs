//! Taking note of what tasks, probes and the API brought.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinError;

use super::seed::{ended, lock, since};
use super::{Done, PUBLISH_RETRY, Worker, tasks, timestamp};
use crate::backoff::Backoff;
use crate::observed::{Ended, Gate, Run, State, Step, Stop, Trouble, Unhealthy};
use crate::ports::{ApiError, Event, Failure, Image, PullError};
use crate::probe::{self, Purpose, Report};
use crate::{drain, plan, status};

/// Between two tries at a network, volumes, an object that is missing, or a clean-up.
const RETRY: Duration = Duration::from_secs(2);
/// The exit code of what could not be started, as container runtimes have it.
const START_ERROR_CODE: i32 = 128;

impl Worker {
    pub(super) fn finished(&mut self, done: Result<Done, JoinError>) {
        match done {
            Ok(done) => self.note(done),
            Err(error) => {
                tracing::error!(pod = self.pod.metadata.name, %error, "a task of the Pod's worker ended badly")
            }
        }
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Attached(result) => {
                if let Err(failure) = &result {
                    self.say_failure("FailedCreatePodSandBox", failure);
                }
                self.observed.sandbox = self.step_of("FailedCreatePodSandBox", result);
            }
            Done::Mounted(result) => {
                if let Err(failure) = &result {
                    self.say_failure("FailedMount", failure);
                }
                self.observed.volumes = self.step_of("FailedMount", result);
            }
            Done::Refreshed(Err(failure)) => self.say_failure("FailedMount", &failure),
            Done::Pulled { container, result, took } => self.pulled(&container, result, took),
            Done::Started { container, attempt, result } => self.started(&container, attempt, result),
            Done::PostStarted { container, attempt, result } => {
                self.post_started(&container, attempt, result)
            }
            Done::PreStopped { container, attempt, result } => self.pre_stopped(&container, attempt, result),
            Done::Signalled { container, result: Err(failure) } => {
                tracing::warn!(pod = self.pod.metadata.name, container, %failure, "signal a container");
                self.signal_again(&container);
            }
            Done::Exited { container, attempt, exit, message } => {
                self.exited(&container, attempt, &exit, message)
            }
            Done::Published { status, result } => self.published(status, *result),
            Done::TornDown(result) => {
                if let Err(failure) = &result {
                    self.say_failure("FailedKillPod", failure);
                }
                self.observed.teardown = self.step_of("FailedKillPod", result);
            }
            Done::Deleted(result) => {
                self.observed.deletion = match result {
                    // Once it is gone the watch says so.
                    Ok(()) | Err(ApiError::Gone) => Step::Done(()),
                    Err(ApiError::Failed(message)) => self.step_of("FailedDelete", Err(Failure(message))),
                };
            }
            Done::Refreshed(Ok(())) | Done::Signalled { result: Ok(()), .. } | Done::Nothing => {}
        }
    }

    fn step_of<T>(&self, reason: &str, result: Result<T, Failure>) -> Step<T> {
        match result {
            Ok(value) => Step::Done(value),
            Err(failure) => Step::Failed(self.trouble(reason, failure.0)),
        }
    }

    fn trouble(&self, reason: &str, message: String) -> Trouble {
        let at = self.clock().now;
        Trouble { reason: reason.to_owned(), message, at, retry_at: at + RETRY }
    }

    fn pulled(&mut self, name: &str, result: Result<Image, PullError>, took: Duration) {
        let wanted = self.spec_of(name).and_then(|spec| spec.image.clone()).unwrap_or_default();
        let now = self.clock().now;
        match result {
            Ok(image) => {
                let message = match image.pulled_bytes {
                    Some(bytes) => format!(
                        "Successfully pulled image {wanted:?} in {}ms. Image size: {bytes} bytes.",
                        took.as_millis()
                    ),
                    None => format!("Container image {wanted:?} already present on machine"),
                };
                self.say(Some(name), Event::normal("Pulled", message));
                let Some(container) = self.observed.containers.get_mut(name) else { return };
                container.pull_backoff.reset();
                container.image = Step::Done(Arc::new(image));
            }
            Err(error) => {
                let message = format!("Failed to pull image {wanted:?}: {error}");
                self.say(Some(name), Event::warning("Failed", message));
                self.say(Some(name), Event::warning("Failed", format!("Error: {}", error.reason)));
                let Some(container) = self.observed.containers.get_mut(name) else { return };
                container.pull_backoff.fail_waiting(now);
                let retry_at = container.pull_backoff.waiting(now).unwrap_or(now);
                container.image = Step::Failed(Trouble {
                    reason: error.reason.to_owned(),
                    message: error.message,
                    at: now,
                    retry_at,
                });
            }
        }
    }

    fn started(&mut self, name: &str, attempt: u32, result: Result<tasks::Started, tasks::StartError>) {
        match result {
            Ok(started) => {
                self.say(Some(name), Event::normal("Created", format!("Container created: {name}")));
                self.say(Some(name), Event::normal("Started", format!("Container started: {name}")));
                self.running(name, attempt, started);
            }
            Err(tasks::StartError::Config { reason, failure }) => {
                self.say(Some(name), Event::warning("Failed", format!("Error: {failure}")));
                let trouble = self.trouble(reason, failure.0);
                let Some(container) = self.observed.containers.get_mut(name) else { return };
                container.config = Some(trouble);
                // Nothing was made: the run before is the last one still.
                container.state = container.last.clone().map_or(State::Waiting, State::Exited);
            }
            Err(tasks::StartError::Run { failure, handle }) => {
                self.say(Some(name), Event::warning("Failed", format!("Error: {failure}")));
                self.stale.extend(handle);
                let clock = self.clock();
                let over = Ended {
                    attempt,
                    id: crate::spec::id(&self.uid, name, attempt),
                    code: START_ERROR_CODE,
                    signal: None,
                    reason: "StartError".to_owned(),
                    message: failure.0,
                    started_at: None,
                    finished_at: clock.wall,
                };
                self.over(name, over, Duration::ZERO);
            }
        }
    }

    fn running(&mut self, name: &str, attempt: u32, started: tasks::Started) {
        let clock = self.clock();
        let spec = self.spec_of(name).cloned().unwrap_or_default();
        let hook = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.clone());
        let main = super::seed::is_probed(&self.pod, name);
        let run = Run {
            attempt,
            id: started.handle.id().to_owned(),
            since: clock.now,
            started_at: timestamp(started.at),
            started: main && hook.is_none() && !probe::has(&spec, Purpose::Startup),
            ready: !probe::has(&spec, Purpose::Readiness),
            unhealthy: None,
        };
        self.signals.insert(name.to_owned(), started.stop_signal);
        let before = lock(&self.handles).insert(name.to_owned(), started.handle);
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        container.state = State::Running(run.clone());
        container.config = None;
        self.watch_exit(name, &run);
        self.discard(before);
        match (hook, self.ask()) {
            (Some(hook), Some(ask)) => {
                let name = name.to_owned();
                self.tasks.spawn(async move {
                    let result = tasks::hook(&hook, &spec, &*ask).await;
                    Done::PostStarted { container: name, attempt, result }
                });
            }
            _ => self.begin_probes(name),
        }
        if main {
            self.observed.gate = Gate::Closed;
            self.begin_gate();
        }
    }

    /// The records of earlier runs are not needed once the next one runs.
    fn discard(&mut self, before: Option<Arc<dyn crate::ports::Container>>) {
        let old: Vec<_> = std::mem::take(&mut self.stale).into_iter().chain(before).collect();
        if old.is_empty() {
            return;
        }
        self.tasks.spawn(async move {
            for container in old {
                if let Err(failure) = container.delete().await {
                    tracing::warn!(container = container.id(), %failure, "remove what is left of a container");
                }
            }
            Done::Nothing
        });
    }

    fn post_started(&mut self, name: &str, attempt: u32, result: Result<(), String>) {
        let now = self.clock().now;
        let startup = self.spec_of(name).is_some_and(|spec| probe::has(spec, Purpose::Startup));
        if let Err(message) = &result {
            self.say(
                Some(name),
                Event::warning("FailedPostStartHook", format!("PostStartHook failed: {message}")),
            );
        }
        let Some(run) = self.run_mut(name, attempt) else { return };
        match result {
            Ok(()) => {
                run.started = !startup;
                self.begin_probes(name);
            }
            Err(_) => {
                let message = "failed its PostStart hook".to_owned();
                run.unhealthy = Some(Unhealthy { message, at: now, grace: None });
            }
        }
    }

    fn pre_stopped(&mut self, name: &str, attempt: u32, result: Result<(), String>) {
        if let Err(message) = result {
            self.say(
                Some(name),
                Event::warning("FailedPreStopHook", format!("PreStopHook failed: {message}")),
            );
        }
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        if let State::Stopping { run, stop } = &mut container.state
            && run.attempt == attempt
            && let Stop::PreStop { kill_at } = stop
        {
            *stop = Stop::Signal { kill_at: *kill_at };
        }
    }

    /// A signal that could not be sent is sent again, by the next plan; a kill likewise.
    fn signal_again(&mut self, name: &str) {
        let now = self.clock().now;
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        if let State::Stopping { stop, .. } = &mut container.state
            && matches!(stop, Stop::Killed { .. })
        {
            *stop = Stop::Signalled { kill_at: now + RETRY };
        }
    }

    fn exited(&mut self, name: &str, attempt: u32, exit: &runtime::Exit, message: String) {
        let now = self.clock().now;
        let Some(container) = self.observed.containers.get(name) else { return };
        let Some(run) = container.run().filter(|run| run.attempt == attempt) else { return };
        let ran = since(run.since, now);
        let over = ended(attempt, &run.id, exit, message);
        if let Some(handle) = lock(&self.handles).remove(name) {
            self.stale.push(handle);
        }
        self.over(name, over, ran);
    }

    /// A run is over.
    fn over(&mut self, name: &str, over: Ended, ran: Duration) {
        self.probes.remove(name);
        let now = self.clock().now;
        let init = self.is_init(name);
        let spec = self.spec_of(name).cloned().unwrap_or_default();
        let restarts =
            self.pod.spec.as_ref().is_some_and(|pod| plan::policy(pod, &spec, init).restarts(&over));
        let leaving = self.pod.metadata.deletion_timestamp.is_some() || self.observed.gone;
        let Some(container) = self.observed.containers.get_mut(name) else { return };
        container.backoff.fail(now, ran);
        container.state = State::Exited(over);
        if spec.image_pull_policy.as_deref() == Some("Always") {
            container.image = Step::Pending;
        }
        let wait: Backoff = container.backoff;
        if !init {
            self.gate_scope = None;
            self.observed.gate = Gate::Closed;
        }
        if restarts && !leaving && wait.waiting(now).is_some() {
            let meta = &self.pod.metadata;
            let message = format!(
                "Back-off restarting failed container {name} in pod {}_{}({})",
                meta.name.as_deref().unwrap_or_default(),
                meta.namespace.as_deref().unwrap_or_default(),
                self.uid
            );
            self.say(Some(name), Event::warning("BackOff", message));
        }
    }

    fn run_mut(&mut self, name: &str, attempt: u32) -> Option<&mut Run> {
        self.observed.containers.get_mut(name)?.run_mut().filter(|run| run.attempt == attempt)
    }

    pub(super) fn reported(&mut self, report: Report) {
        let now = self.clock().now;
        if let Some(failure) = &report.failure {
            let message = format!("{} probe failed: {failure}", report.purpose.name());
            self.say(Some(&report.container), Event::warning("Unhealthy", message));
        }
        let grace = self.spec_of(&report.container).and_then(probe::grace_s);
        let grace = grace.map(drain::seconds_of);
        let Some(run) = self.run_mut(&report.container, report.attempt) else { return };
        match (report.purpose, report.result) {
            (Purpose::Startup, Some(true)) => run.started = true,
            (Purpose::Readiness, Some(ready)) => run.ready = ready,
            (Purpose::Startup | Purpose::Liveness, Some(false)) => {
                let message = format!("failed {} probe", report.purpose.name().to_lowercase());
                run.unhealthy.get_or_insert(Unhealthy { message, at: now, grace });
            }
            (Purpose::Liveness, Some(true)) | (_, None) => {}
        }
    }

    fn published(
        &mut self,
        status: status::Status,
        result: Result<k8s_openapi::api::core::v1::Pod, ApiError>,
    ) {
        self.publishing = false;
        let now = self.clock().now;
        match result {
            Ok(pod) => {
                let published = &mut self.observed.published;
                published.ended = status.ended;
                published.unready_since = match status.ready {
                    true => None,
                    false => Some(published.unready_since.unwrap_or(now)),
                };
                self.acknowledged = Some(status.patch);
                self.publish_at = None;
                if pod.metadata.uid == self.pod.metadata.uid && super::newer(&pod, &self.pod) {
                    self.pod = Arc::new(pod);
                }
            }
            Err(error) => {
                if error != ApiError::Gone {
                    tracing::warn!(pod = self.pod.metadata.name, %error, "write a Pod's status");
                }
                // When it is gone the watch says so; until then this does no harm.
                self.publish_at = Some(now + PUBLISH_RETRY);
            }
        }
    }
}
