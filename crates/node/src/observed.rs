//! What a worker knows of its Pod besides the object itself. Everything here is found again after a restart: from
//! the runtime, the network and the Pod's own status.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container as Spec;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::ports::{Image, Sandbox};

/// The two clocks, read together.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// For waits.
    pub now: Instant,
    /// For the API.
    pub wall: Timestamp,
}

impl Clock {
    /// When `wall` is or was, on the other clock; the past is now.
    pub fn at(&self, wall: Timestamp) -> Instant {
        self.now + Duration::try_from(wall.duration_since(self.wall)).unwrap_or_default()
    }
}

/// A preparation that may take time and fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// Nobody has begun, or it has to be done again.
    Pending,
    /// A task is at it.
    Busy,
    /// It is there.
    Done(T),
    /// It failed; again when the back-off says so.
    Failed(Trouble),
}

/// What went wrong and when it is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// CamelCase, for `waiting.reason`.
    pub reason: String,
    /// In words.
    pub message: String,
    /// When it happened.
    pub at: Instant,
    /// When to try again.
    pub retry_at: Instant,
}

impl<T> Step<T> {
    /// The outcome, if it is there.
    pub fn done(&self) -> Option<&T> {
        match self {
            Step::Done(value) => Some(value),
            _ => None,
        }
    }

    /// Whether it should be begun at `now`; `Err` is when to ask again.
    pub fn due(&self, now: Instant) -> Result<bool, Instant> {
        match self {
            Step::Pending => Ok(true),
            Step::Busy | Step::Done(_) => Ok(false),
            Step::Failed(trouble) if trouble.retry_at <= now => Ok(true),
            Step::Failed(trouble) => Err(trouble.retry_at),
        }
    }
}

/// How a container's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which run, from 0.
    pub attempt: u32,
    /// The container's id in the runtime, empty if there never was one.
    pub id: String,
    /// The exit code; 128 + n after signal n; 137 when it is not known.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` or `ContainerStatusUnknown`.
    pub reason: String,
    /// The termination message.
    pub message: String,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It never ran, and is not being started.
    Waiting,
    /// A task makes and starts it.
    Starting {
        /// Which run.
        attempt: u32,
    },
    /// Its program runs.
    Running(Run),
    /// It was told to end.
    Stopping {
        /// The run.
        run: Run,
        /// How far that has come.
        stop: Stop,
    },
    /// Its last run is over.
    Exited(Ended),
}

/// A run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which, from 0.
    pub attempt: u32,
    /// The container's id in the runtime.
    pub id: String,
    /// When the program began, on the clock for waits.
    pub since: Instant,
    /// The same for the API.
    pub started_at: Timestamp,
    /// Whether the startup probe (if any) has succeeded and the `postStart` hook has ended.
    pub started: bool,
    /// What the readiness probe (if any) says.
    pub ready: bool,
    /// Why it has to be restarted.
    pub unhealthy: Option<Unhealthy>,
}

/// A failed startup or liveness probe, or `postStart` hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unhealthy {
    /// The event's message.
    pub message: String,
    /// When it was found.
    pub at: Instant,
    /// A grace period of its own.
    pub grace: Option<Duration>,
}

/// How far the ending of a container has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Its `preStop` hook runs, until then at most.
    PreStop {
        /// When the program is killed, whatever happens.
        kill_at: Instant,
    },
    /// The hook is done; the signal is due.
    Signal {
        /// When the program is killed.
        kill_at: Instant,
    },
    /// It got its stop signal.
    Signalled {
        /// When the program is killed.
        kill_at: Instant,
    },
    /// It got SIGKILL.
    Killed {
        /// When it gets it again, should it not have ended.
        again_at: Instant,
    },
}

/// One container of the Pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// What it is doing.
    pub state: State,
    /// Its image.
    pub image: Step<Arc<Image>>,
    /// How often pulling failed.
    pub pull_backoff: Backoff,
    /// How often it ended.
    pub backoff: Backoff,
    /// Why it cannot be made at all (a missing Secret …).
    pub config: Option<Trouble>,
    /// The run before the current one.
    pub last: Option<Ended>,
}

impl Default for Container {
    fn default() -> Self {
        Self {
            state: State::Waiting,
            image: Step::Pending,
            pull_backoff: Backoff::default(),
            backoff: Backoff::default(),
            config: None,
            last: None,
        }
    }
}

impl Container {
    /// The run that is going on.
    pub fn run(&self) -> Option<&Run> {
        match &self.state {
            State::Running(run) | State::Stopping { run, .. } => Some(run),
            _ => None,
        }
    }

    /// The same, to change.
    pub fn run_mut(&mut self) -> Option<&mut Run> {
        match &mut self.state {
            State::Running(run) | State::Stopping { run, .. } => Some(run),
            _ => None,
        }
    }

    /// Whether a process may exist.
    pub fn alive(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Running(_) | State::Stopping { .. })
    }

    /// Whether its program runs and its startup is over.
    pub fn started(&self) -> bool {
        self.run().is_some_and(|run| run.started)
    }

    /// Whether its last run ended with 0.
    pub fn succeeded(&self) -> bool {
        matches!(&self.state, State::Exited(ended) if ended.code == 0)
    }

    /// The number of the next run.
    pub fn next_attempt(&self) -> u32 {
        match &self.state {
            State::Waiting => self.last.as_ref().map_or(0, |last| last.attempt + 1),
            State::Starting { attempt } => *attempt,
            State::Running(run) | State::Stopping { run, .. } => run.attempt + 1,
            State::Exited(ended) => ended.attempt + 1,
        }
    }
}

/// How the Pod ended as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Succeeded or Failed.
    pub succeeded: bool,
    /// CamelCase, for `status.reason`.
    pub reason: Option<String>,
    /// In words.
    pub message: Option<String>,
    /// Whether the node ended it, and why: then its programs get [`EVICTION_GRACE`].
    pub evicted: Option<Evicted>,
}

/// What an evicted Pod's programs get to end, as kubelet has it.
pub const EVICTION_GRACE: Duration = Duration::from_secs(1);

/// Why a node ended a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// It went beyond a limit of its own.
    Limit,
    /// The node needs the space.
    Pressure,
}

/// What the Listening gate found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Nothing listens.
    #[default]
    Closed,
    /// Only where nobody reaches it.
    LoopbackOnly(Vec<Port>),
    /// It listens.
    Open(Vec<Port>),
}

/// A port of the annotation `node.gantry.dev/listening`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Port {
    /// The number.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: String,
    /// The address it listens on.
    pub address: IpAddr,
    /// Whether it answered as HTTP/1.1 does.
    pub http: bool,
    /// Whether only the container itself reaches it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
}

/// What has reached the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Since when the API says that the Pod is not ready; `None` while it says that it is.
    pub unready_since: Option<Instant>,
    /// Whether the last status (every container ended) is there.
    pub ended: bool,
}

/// Everything that a worker knows.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Pod's network.
    pub sandbox: Step<Sandbox>,
    /// Its volumes and files.
    pub volumes: Step<()>,
    /// Containers by name, init containers too.
    pub containers: BTreeMap<String, Container>,
    /// The proxies that have to say that they have drained it; `None` until they are known.
    pub proxies: Option<Arc<BTreeSet<String>>>,
    /// The Listening gate.
    pub gate: Gate,
    /// How it ended.
    pub terminal: Option<Terminal>,
    /// The object is no more.
    pub gone: bool,
    /// What has reached the API.
    pub published: Published,
    /// Network and volumes have been taken away.
    pub teardown: Step<()>,
    /// The object has been deleted, or does not need to be.
    pub deletion: Step<()>,
}

impl Observed {
    /// A Pod that nothing has been done for.
    pub fn new(containers: impl Iterator<Item = String>) -> Self {
        Self {
            sandbox: Step::Pending,
            volumes: Step::Pending,
            containers: containers.map(|name| (name, Container::default())).collect(),
            proxies: None,
            gate: Gate::default(),
            terminal: None,
            gone: false,
            published: Published::default(),
            teardown: Step::Pending,
            deletion: Step::Pending,
        }
    }

    /// The container of that spec.
    pub fn get(&self, spec: &Spec) -> Option<&Container> {
        self.containers.get(&spec.name)
    }

    /// Whether no process of the Pod is left.
    pub fn ended(&self) -> bool {
        !self.containers.values().any(Container::alive)
    }
}
