//! Carrying out what was planned: each action notes that it is under way and starts a task.

use std::sync::Arc;
use std::time::Duration;

use lifecycle::Scope;
use tokio::time::Instant;

use super::seed::{is_probed, lock};
use super::tasks::bounded;
use super::{Done, Worker, tasks};
use crate::observed::{Run, State, Step, Stop};
use crate::plan::Action;
use crate::ports::{Event, Failure, Request, Sandbox};
use crate::probe::{self, Ask, action};
use crate::status::LISTENING;

/// From one SIGKILL to the next.
const KILL_AGAIN: Duration = Duration::from_secs(10);

impl Worker {
    pub(super) fn execute(&mut self, action: Action) {
        match action {
            Action::Attach => self.begin_attach(),
            Action::Mount => {
                self.observed.volumes = Step::Busy;
                let (deps, pod) = (Arc::clone(&self.deps), Arc::clone(&self.pod));
                self.tasks.spawn(async move {
                    Done::Mounted(bounded("make the volumes", tasks::mount(&deps, &pod)).await)
                });
            }
            Action::Pull(container) => self.pull(container),
            Action::Start { container, attempt } => self.start(container, attempt),
            Action::PreStop { container, kill_at } => self.pre_stop(container, kill_at),
            Action::Signal { container, kill_at } => {
                let signal = self.signals.get(&container).copied().unwrap_or(15);
                self.stop(&container, Stop::Signalled { kill_at }, signal);
            }
            Action::Kill(container) => self.kill(&container),
            Action::TearDown => self.tear_down(),
            Action::Delete => {
                self.observed.deletion = Step::Busy;
                let delete = self.deps.pods.delete(&self.pod);
                self.tasks.spawn(async move { Done::Deleted(delete.await) });
            }
            // The worker's loop sees to these.
            Action::Finish(_) | Action::End | Action::Wake(_) => {}
        }
    }

    fn begin_attach(&mut self) {
        if self.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true)) {
            self.observed.sandbox =
                Step::Done(Sandbox { ip: self.deps.host_ip, netns: None, first_id: None });
            return;
        }
        self.observed.sandbox = Step::Busy;
        let (deps, uid, own_users) = (Arc::clone(&self.deps), self.uid.clone(), self.own_users());
        self.tasks.spawn(async move {
            let attach = deps.sandboxes.attach(&uid, own_users);
            Done::Attached(bounded("attach to the network", attach).await)
        });
    }

    fn pull(&mut self, container: String) {
        let Some(spec) = self.spec_of(&container) else { return };
        let secrets = self.pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        let request = Request {
            image: spec.image.clone().unwrap_or_default(),
            policy: spec.image_pull_policy.clone().unwrap_or_else(|| "IfNotPresent".to_owned()),
            namespace: self.pod.metadata.namespace.clone().unwrap_or_default(),
            secrets: secrets.map(|secret| secret.name.clone()).collect(),
        };
        let Some(observed) = self.observed.containers.get_mut(&container) else { return };
        observed.image = Step::Busy;
        let deps = Arc::clone(&self.deps);
        self.tasks.spawn(async move {
            let begun = Instant::now();
            let result = deps.images.image(request).await;
            Done::Pulled { container, result, took: begun.elapsed() }
        });
    }

    fn start(&mut self, container: String, attempt: u32) {
        let Some(spec) = self.spec_of(&container).cloned() else { return };
        let Some(sandbox) = self.observed.sandbox.done().cloned() else { return };
        let Some(observed) = self.observed.containers.get_mut(&container) else { return };
        let Some(image) = observed.image.done().cloned() else { return };
        if let State::Exited(ended) = &observed.state {
            observed.last = Some(ended.clone());
        }
        observed.state = State::Starting { attempt };
        observed.config = None;
        let (deps, pod) = (Arc::clone(&self.deps), Arc::clone(&self.pod));
        self.tasks.spawn(async move {
            let result = tasks::start(&deps, &pod, &spec, attempt, &image, &sandbox).await;
            Done::Started { container, attempt, result }
        });
    }

    fn pre_stop(&mut self, container: String, kill_at: Instant) {
        self.say_killing(&container);
        let hook =
            self.spec_of(&container).and_then(|spec| Some((spec.clone(), spec.lifecycle.clone()?.pre_stop?)));
        let Some(observed) = self.observed.containers.get_mut(&container) else { return };
        let State::Running(run) = &observed.state else { return };
        let attempt = run.attempt;
        observed.state = State::Stopping { run: run.clone(), stop: Stop::PreStop { kill_at } };
        let ask = self.ask();
        self.tasks.spawn(async move {
            let result = match (hook, ask) {
                (Some((spec, hook)), Some(ask)) => tasks::hook(&hook, &spec, &*ask).await,
                _ => Ok(()),
            };
            Done::PreStopped { container, attempt, result }
        });
    }

    /// SIGKILL, and again while the container has not ended: what ends late is said.
    fn kill(&mut self, container: &str) {
        let state = self.observed.containers.get(container).map(|container| &container.state);
        if matches!(state, Some(State::Stopping { stop: Stop::Killed { .. }, .. })) {
            let message = format!(
                "container {container} has not ended {} s after SIGKILL; it is killed again",
                KILL_AGAIN.as_secs()
            );
            self.say(Some(container), Event::warning("FailedKillPod", message));
        }
        let again_at = self.clock().now + KILL_AGAIN;
        self.stop(container, Stop::Killed { again_at }, 9);
    }

    /// Moves a container one step towards its end and sends it a signal.
    fn stop(&mut self, container: &str, stop: Stop, signal: i32) {
        if matches!(self.observed.containers.get(container).map(|c| &c.state), Some(State::Running(_))) {
            self.say_killing(container);
        }
        let Some(observed) = self.observed.containers.get_mut(container) else { return };
        let Some(run) = observed.run().cloned() else { return };
        observed.state = State::Stopping { run, stop };
        self.probes.remove(container);
        let Some(handle) = lock(&self.handles).get(container).cloned() else { return };
        let container = container.to_owned();
        self.tasks.spawn(async move {
            let result = bounded("signal the container", handle.signal(signal)).await;
            Done::Signalled { container, result }
        });
    }

    fn say_killing(&self, container: &str) {
        let unhealthy = self.observed.containers.get(container).and_then(|c| c.run()?.unhealthy.as_ref());
        let message = match unhealthy {
            Some(unhealthy) => format!("Container {container} {}, will be restarted", unhealthy.message),
            None => format!("Stopping container {container}"),
        };
        self.say(Some(container), Event::normal("Killing", message));
    }

    fn tear_down(&mut self) {
        self.observed.teardown = Step::Busy;
        let mut containers: Vec<_> = std::mem::take(&mut self.stale);
        containers.extend(std::mem::take(&mut *lock(&self.handles)).into_values());
        self.gate_scope = None;
        let (deps, uid) = (Arc::clone(&self.deps), self.uid.clone());
        let on_host = self.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        self.tasks.spawn(async move {
            let mut result = bounded("clean up", tasks::clear(&deps, &uid, containers)).await;
            if result.is_ok() && !on_host {
                result = bounded("detach from the network", deps.sandboxes.detach(&uid)).await;
            }
            Done::TornDown(result)
        });
    }

    /// Brings volumes up to date with what they show.
    pub(super) fn refresh(&mut self) {
        if self.observed.volumes.done().is_none() || self.observed.teardown != Step::Pending {
            return;
        }
        let (deps, pod) = (Arc::clone(&self.deps), Arc::clone(&self.pod));
        self.tasks.spawn(async move {
            Done::Refreshed(bounded("refresh the volumes", tasks::mount(&deps, &pod)).await)
        });
    }

    /// Asks the Pod's containers over the network.
    pub(super) fn ask(&self) -> Option<Arc<dyn Ask>> {
        let sandbox = self.observed.sandbox.done()?;
        Some(Arc::new(action::Network {
            sandboxes: Arc::clone(&self.deps.sandboxes),
            uid: self.uid.clone(),
            ip: sandbox.ip,
            on_host: sandbox.netns.is_none(),
        }))
    }

    pub(super) fn watch_exit(&mut self, container: &str, run: &Run) {
        let Some(handle) = lock(&self.handles).get(container).cloned() else { return };
        let Some(spec) = self.spec_of(container).cloned() else { return };
        let (deps, pod, attempt) = (Arc::clone(&self.deps), Arc::clone(&self.pod), run.attempt);
        let container = container.to_owned();
        self.tasks.spawn(async move {
            let exit = handle.wait().await;
            let message = tasks::last_words(&deps, &pod, &spec, attempt, &exit, handle.spec()).await;
            Done::Exited { container, attempt, exit, message }
        });
    }

    pub(super) fn begin_probes(&mut self, container: &str) {
        if !is_probed(&self.pod, container) {
            return;
        }
        let Some(spec) = self.spec_of(container).cloned() else { return };
        let Some(run) = self.observed.containers.get(container).and_then(|c| c.run()).cloned() else {
            return;
        };
        let Some(ask) = self.ask() else { return };
        let (probes, refused) = probe::of(&spec);
        for reason in refused {
            self.say(Some(container), Event::warning("ProbeUnsupported", reason));
        }
        if probes.is_empty() {
            return;
        }
        let scope: Scope = self.scope.child(container);
        let reports = self.reports.0.clone();
        let name = container.to_owned();
        scope.spawn("probes", probe::run(name, run.attempt, probes, run.since, run.started, ask, reports));
        self.probes.insert(container.to_owned(), scope);
    }

    /// Looks out for listening sockets anew, if the Pod has the gate.
    pub(super) fn begin_gate(&mut self) {
        let gates = self.pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
        if !gates.into_iter().any(|gate| gate.condition_type == LISTENING) {
            return;
        }
        let Some(sandbox) = self.observed.sandbox.done() else { return };
        let scope = self.scope.child("gate");
        let sandboxes = Arc::clone(&self.deps.sandboxes);
        scope
            .spawn("watch", crate::gate::watch(sandboxes, self.uid.clone(), sandbox.ip, self.gate.0.clone()));
        self.gate_scope = Some(scope);
    }

    pub(super) fn say(&self, container: Option<&str>, event: Event) {
        self.deps.events.record(&self.pod, container, event);
    }

    pub(super) fn say_failure(&self, reason: &'static str, failure: &Failure) {
        self.say(None, Event::warning(reason, failure.to_string()));
    }
}
