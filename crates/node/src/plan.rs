//! What to do next for a Pod: a pure function of its object and of what was observed.
//!
//! The worker carries the actions out, notes what came of them and asks again; nothing is remembered in between.
//! A [`Action::Wake`] asks for another look at that time.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container as Spec, Pod, PodSpec};
use tokio::time::Instant;

use crate::drain;
use crate::observed::{Clock, Container, EVICTION_GRACE, Ended, Observed, State, Step, Stop, Terminal};

/// After a hook has used up the grace period the program still gets this long, as kubelet has it.
const GRACE_SHORTEST: Duration = Duration::from_secs(2);
/// From "the API says not ready" to the stop signal of an unhealthy container.
const LIVENESS_DRAIN: Duration = Duration::from_secs(1);
/// The same from the failure on, should the API not answer.
const LIVENESS_DRAIN_LONGEST: Duration = Duration::from_secs(3);

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Give the Pod its network.
    Attach,
    /// Make its volumes and files.
    Mount,
    /// Bring a container's image here.
    Pull(String),
    /// Make and start a container.
    Start {
        /// Its name.
        container: String,
        /// Which run.
        attempt: u32,
    },
    /// Run its `preStop` hook.
    PreStop {
        /// Its name.
        container: String,
        /// When the program is killed, whatever happens.
        kill_at: Instant,
    },
    /// Send its stop signal.
    Signal {
        /// Its name.
        container: String,
        /// When it is killed.
        kill_at: Instant,
    },
    /// Send SIGKILL.
    Kill(String),
    /// The Pod is over.
    Finish(Terminal),
    /// Take network, volumes and dead containers away.
    TearDown,
    /// Delete the object.
    Delete,
    /// Nothing is left to do.
    End,
    /// Look again then.
    Wake(Instant),
}

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// However it ended.
    Always,
    /// If it did not end with 0.
    OnFailure,
    /// Never.
    Never,
}

impl Policy {
    fn named(name: Option<&str>) -> Option<Self> {
        match name? {
            "Always" => Some(Policy::Always),
            "OnFailure" => Some(Policy::OnFailure),
            "Never" => Some(Policy::Never),
            _ => None,
        }
    }

    /// Whether a container that ended so is started again.
    pub fn restarts(self, ended: &Ended) -> bool {
        match self {
            Policy::Always => true,
            Policy::OnFailure => ended.code != 0,
            Policy::Never => false,
        }
    }
}

/// Whether an init container keeps running beside the others.
pub fn is_sidecar(spec: &Spec) -> bool {
    spec.restart_policy.as_deref() == Some("Always")
}

/// The restart policy of a container, which may be an init container.
pub fn policy(pod: &PodSpec, container: &Spec, init: bool) -> Policy {
    let of_pod = Policy::named(pod.restart_policy.as_deref()).unwrap_or(Policy::Always);
    match Policy::named(container.restart_policy.as_deref()) {
        Some(own) => own,
        // An init container has to end well once, and is not run again for its own sake.
        None if init && of_pod == Policy::Always => Policy::OnFailure,
        None => of_pod,
    }
}

/// The init containers and the others, in order, with what was observed of each.
pub fn containers<'a>(
    spec: &'a PodSpec,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a Spec, &'a Container, bool)> {
    let init = spec.init_containers.iter().flatten().map(|container| (container, true));
    let main = spec.containers.iter().map(|container| (container, false));
    init.chain(main).filter_map(|(spec, init)| observed.get(spec).map(|container| (spec, container, init)))
}

/// Whether the init containers are through: they ended well, or one of the others has already begun.
pub fn initialized(spec: &PodSpec, observed: &Observed) -> bool {
    let begun = |container: &Container| container.state != State::Waiting || container.last.is_some();
    if spec.containers.iter().filter_map(|container| observed.get(container)).any(begun) {
        return true;
    }
    containers(spec, observed).filter(|(_, _, init)| *init).all(|(spec, container, _)| {
        if is_sidecar(spec) { container.started() } else { container.succeeded() }
    })
}

/// What to do now.
pub fn plan(pod: &Pod, observed: &Observed, clock: Clock) -> Vec<Action> {
    let Some(spec) = &pod.spec else { return vec![Action::End] };
    let mut planner = Planner { pod, spec, observed, clock, actions: Vec::new() };
    if observed.gone || pod.metadata.deletion_timestamp.is_some() {
        planner.end();
    } else if observed.terminal.is_some() {
        planner.retire();
    } else if let Some(terminal) = planner.terminal() {
        planner.actions.push(Action::Finish(terminal));
    } else {
        planner.progress();
    }
    planner.actions
}

struct Planner<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    observed: &'a Observed,
    clock: Clock,
    actions: Vec<Action>,
}

impl Planner<'_> {
    fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Whether a step should be begun; if it has to wait, that is noted.
    fn due<T>(&mut self, step: &Step<T>) -> bool {
        step.due(self.clock.now).unwrap_or_else(|retry_at| {
            self.push(Action::Wake(retry_at));
            false
        })
    }

    /// How the Pod is over, if it is.
    fn terminal(&mut self) -> Option<Terminal> {
        if let Some(seconds) = self.spec.active_deadline_seconds
            && let Some(start) = self.pod.status.as_ref().and_then(|status| status.start_time.as_ref())
            && let Ok(end) = start.0.checked_add(jiff::SignedDuration::from_secs(seconds))
        {
            if end <= self.clock.wall {
                return Some(Terminal {
                    succeeded: false,
                    reason: Some("DeadlineExceeded".to_owned()),
                    message: Some("Pod was active on the node longer than the specified deadline".to_owned()),
                    evicted: None,
                });
            }
            self.push(Action::Wake(self.clock.at(end)));
        }
        let over = |spec: &Spec, container: &Container, init| match &container.state {
            State::Exited(ended) => {
                (!policy(self.spec, spec, init).restarts(ended)).then_some(ended.code == 0)
            }
            _ => None,
        };
        let plain = |succeeded| Terminal { succeeded, reason: None, message: None, evicted: None };
        if !initialized(self.spec, self.observed) {
            let failed = containers(self.spec, self.observed)
                .filter(|(_, _, init)| *init)
                .any(|(spec, container, init)| over(spec, container, init) == Some(false));
            return failed.then(|| plain(false));
        }
        let mut succeeded = true;
        for (spec, container, init) in containers(self.spec, self.observed) {
            if !init {
                succeeded &= over(spec, container, init)?;
            }
        }
        Some(plain(succeeded))
    }

    fn progress(&mut self) {
        if self.due(&self.observed.sandbox) {
            self.push(Action::Attach);
        }
        if self.due(&self.observed.volumes) {
            self.push(Action::Mount);
        }
        let through = initialized(self.spec, self.observed);
        let mut blocked = false;
        for (spec, container, init) in containers(self.spec, self.observed) {
            if init && !is_sidecar(spec) {
                if through || container.succeeded() || blocked {
                    continue;
                }
                blocked = true;
            } else if blocked {
                continue;
            } else if init && !container.started() && !through {
                blocked = true;
            }
            self.keep(spec, container, init);
        }
    }

    /// Keeps a container running.
    fn keep(&mut self, spec: &Spec, container: &Container, init: bool) {
        match &container.state {
            State::Waiting => self.begin(spec, container),
            State::Exited(ended) if policy(self.spec, spec, init).restarts(ended) => {
                self.begin(spec, container)
            }
            State::Exited(_) | State::Starting { .. } => {}
            State::Running(run) => {
                if let Some(unhealthy) = &run.unhealthy {
                    let longest = unhealthy.at + LIVENESS_DRAIN_LONGEST;
                    let drained = self.observed.published.unready_since.map(|since| since + LIVENESS_DRAIN);
                    let stop_at = drained.unwrap_or(longest).min(longest);
                    if stop_at > self.clock.now {
                        return self.push(Action::Wake(stop_at));
                    }
                    let grace = unhealthy.grace.unwrap_or_else(|| drain::grace(self.pod));
                    self.stop(spec, container, self.clock.now + grace, !grace.is_zero());
                }
            }
            State::Stopping { .. } => {
                self.stop(spec, container, self.clock.now + drain::grace(self.pod), true)
            }
        }
    }

    fn begin(&mut self, spec: &Spec, container: &Container) {
        let now = self.clock.now;
        if let Some(until) = container.backoff.waiting(now) {
            return self.push(Action::Wake(until));
        }
        if let Some(trouble) = container.config.as_ref().filter(|trouble| trouble.retry_at > now) {
            return self.push(Action::Wake(trouble.retry_at));
        }
        if self.due(&container.image) {
            self.push(Action::Pull(spec.name.clone()));
        }
        let ready = self.observed.sandbox.done().is_some() && self.observed.volumes.done().is_some();
        if ready && container.image.done().is_some() {
            self.push(Action::Start { container: spec.name.clone(), attempt: container.next_attempt() });
        }
    }

    /// Ends a container step by step; it is killed at `kill_at`, at once without `gently`.
    fn stop(&mut self, spec: &Spec, container: &Container, kill_at: Instant, gently: bool) {
        let now = self.clock.now;
        let name = || spec.name.clone();
        match &container.state {
            State::Running(_) if !gently => self.push(Action::Kill(name())),
            State::Running(_) => {
                let hook = spec.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.pre_stop.is_some());
                self.push(match hook {
                    true => Action::PreStop { container: name(), kill_at },
                    false => Action::Signal { container: name(), kill_at },
                });
            }
            State::Stopping { stop, .. } => match stop {
                Stop::PreStop { kill_at: then } => {
                    let until = (*then).min(kill_at);
                    if !gently {
                        self.push(Action::Kill(name()));
                    } else if until <= now {
                        self.push(Action::Signal { container: name(), kill_at: now + GRACE_SHORTEST });
                    } else {
                        self.push(Action::Wake(until));
                    }
                }
                Stop::Signal { kill_at: then } => {
                    let kill_at = (*then).min(kill_at).max(now + GRACE_SHORTEST);
                    self.push(Action::Signal { container: name(), kill_at });
                }
                Stop::Signalled { kill_at: then } => {
                    let until = (*then).min(kill_at + GRACE_SHORTEST);
                    if !gently || until <= now {
                        self.push(Action::Kill(name()));
                    } else {
                        self.push(Action::Wake(until));
                    }
                }
                Stop::Killed { again_at } if *again_at <= now => self.push(Action::Kill(name())),
                Stop::Killed { again_at } => self.push(Action::Wake(*again_at)),
            },
            State::Waiting | State::Starting { .. } | State::Exited(_) => {}
        }
    }

    /// Ends what still runs: sidecars once the others have ended, or when time is up.
    fn stop_all(&mut self, kill_at: Instant, gently: bool) {
        let main_alive =
            self.spec.containers.iter().filter_map(|c| self.observed.get(c)).any(Container::alive);
        for (spec, container, init) in containers(self.spec, self.observed) {
            let later = init && is_sidecar(spec) && main_alive && gently && self.clock.now < kill_at;
            if !later {
                self.stop(spec, container, kill_at, gently);
            }
        }
    }

    /// The object is deleted: drain, stop, tell, clean up, let go.
    fn end(&mut self) {
        if !self.observed.ended() {
            return self.drain_and_stop();
        }
        if self.due(&self.observed.teardown) {
            self.push(Action::TearDown);
        }
        if self.observed.teardown.done().is_none() {
            return;
        }
        if self.observed.gone {
            self.push(Action::End);
        } else if self.observed.published.ended && self.due(&self.observed.deletion) {
            self.push(Action::Delete);
        }
    }

    fn drain_and_stop(&mut self) {
        let now = self.clock.now;
        let grace = drain::grace(self.pod);
        if self.observed.gone {
            let gently = !grace.is_zero() || self.pod.metadata.deletion_timestamp.is_none();
            return self.stop_all(now + grace.max(GRACE_SHORTEST), gently);
        }
        let deletion = self.pod.metadata.deletion_timestamp.as_ref();
        let kill_at = deletion.map_or(now + grace, |time| self.clock.at(time.0));
        let running = self.observed.containers.values().any(|c| matches!(c.state, State::Running(_)));
        if running
            && let Some(deadline) = drain::deadline(self.pod)
            && self.clock.at(deadline) > now
            && self.observed.proxies.as_deref().is_none_or(|all| !drain::missing(self.pod, all).is_empty())
        {
            self.push(Action::Wake(self.clock.at(deadline)));
            // What was being restarted when the Pod was deleted goes on ending.
            for (spec, container, _) in containers(self.spec, self.observed) {
                if matches!(container.state, State::Stopping { .. }) {
                    self.stop(spec, container, kill_at, true);
                }
            }
            return;
        }
        let least = now + grace.min(GRACE_SHORTEST);
        self.stop_all(kill_at.max(least), !grace.is_zero());
    }

    /// The Pod is over but its object stays.
    fn retire(&mut self) {
        if !self.observed.ended() {
            let mut grace = drain::grace(self.pod);
            if self.observed.terminal.as_ref().is_some_and(|terminal| terminal.evicted.is_some()) {
                grace = grace.min(EVICTION_GRACE);
            }
            return self.stop_all(self.clock.now + grace, !grace.is_zero());
        }
        if self.due(&self.observed.teardown) {
            self.push(Action::TearDown);
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
