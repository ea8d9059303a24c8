//! A container, as the daemon sees it: requests to its keeper, and what to do when the keeper is gone.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::bundle::{self, Record};
use crate::cgroup::Stats;
use crate::process;
use crate::protocol::{self, Envelope, Exit, MAX_BODY_BYTES, Phase, Reply, Request, Step, kind};
use crate::runtime::{Shared, blocking, remove_files};
use crate::spec::Spec;

/// A keeper answers at once, or after a kill.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the kernel is asked for the status of a container that ended without a keeper.
const REAP_WAIT: Duration = Duration::from_secs(5);
const REAP_STEP: Duration = Duration::from_millis(20);
/// How often a keeper that has not answered is looked at: one that somebody stopped never will.
const STOPPED_STEP: Duration = Duration::from_secs(1);

/// Why a request about a container failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be executed: `reason` says which file and why.
    #[error("container {id}: {reason}")]
    Exec { id: String, reason: String },
    #[error("container {id} has ended")]
    Ended { id: String, exit: Exit },
    #[error("container {id}: {step:?}: {reason}")]
    Refused { id: String, step: Step, reason: String },
    #[error("talk to the keeper of container {id}")]
    Keeper { id: String, source: io::Error },
    #[error("remove what belongs to container {id}")]
    Remove { id: String, source: io::Error },
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, and its program not started.
    Created,
    Running,
    Paused,
    Exited(Exit),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// In the machine's pid namespace; of the container's first process, which may have ended.
    pub pid: Option<i32>,
    pub state: State,
}

/// A handle; cheap to clone. Dropping it changes nothing about the container.
#[derive(Clone)]
pub struct Container {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    record: Arc<Record>,
    /// Held from the time when it ran: with it the kernel tells the exit code even after everyone else is dead.
    process: Mutex<Option<(i32, OwnedFd)>>,
    /// A connection with nothing under way.
    idle: Mutex<Option<Connection>>,
    repairing: tokio::sync::Mutex<()>,
}

/// Where a container's truth is.
enum Source {
    Keeper(Connection),
    Ended(Exit),
}

impl Container {
    pub(crate) fn new(
        shared: Arc<Shared>,
        record: Arc<Record>,
        pid: Option<i32>,
        idle: Option<Connection>,
    ) -> Self {
        let process =
            pid.and_then(|pid| Some((pid, process::open(pid).ok()?))).or_else(|| open_process(&record));
        Container {
            inner: Arc::new(Inner {
                shared,
                record,
                process: Mutex::new(process),
                idle: Mutex::new(idle),
                repairing: tokio::sync::Mutex::new(()),
            }),
        }
    }

    pub fn id(&self) -> &str {
        &self.inner.record.spec.id
    }

    pub fn bundle(&self) -> &Path {
        &self.inner.record.spec.bundle
    }

    /// As it was asked for, with the defaults filled in.
    pub fn spec(&self) -> &Spec {
        &self.inner.record.spec
    }

    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.inner.record.spec.annotations
    }

    /// In the machine's pid namespace; `None` once it has ended without this handle having seen it.
    pub fn pid(&self) -> Option<i32> {
        lock(&self.inner.process).as_ref().map(|(pid, _)| *pid)
    }

    /// When its program was started, if it was.
    pub fn started_at(&self) -> Option<std::time::SystemTime> {
        bundle::started_at(self.bundle())
    }

    /// Starts the program; returns when it is executed.
    pub async fn start(&self) -> Result<(), Error> {
        let (attempts, result) = self.attempt(Request::Start).await?;
        match result {
            Err(Error::Refused { step: Step::Exec, reason, id }) => Err(Error::Exec { id, reason }),
            // The keeper that died in between had done it.
            Err(Error::Refused { step: Step::Request, .. }) if attempts > 1 && self.has_started().await? => {
                Ok(())
            }
            result => result.map(drop),
        }
    }

    async fn has_started(&self) -> Result<bool, Error> {
        Ok(match self.status().await?.state {
            State::Running | State::Paused => true,
            State::Exited(exit) => exit.started_at.is_some(),
            State::Created => false,
        })
    }

    /// Sends a signal to the container's first process.
    pub async fn signal(&self, signal: i32) -> Result<(), Error> {
        self.call(Request::Signal { signal }).await?.map(drop)
    }

    /// Waits for the end. Outlives keepers: a dead one is replaced.
    pub async fn wait(&self) -> Result<Exit, Error> {
        loop {
            let connection = match self.source().await? {
                Source::Ended(exit) => return Ok(exit),
                Source::Keeper(connection) => connection,
            };
            match connection.call(Request::Wait).await {
                Ok(Reply::Exited { exit }) => {
                    self.put_back(connection);
                    return Ok(exit);
                }
                Ok(reply) => return Err(self.unexpected(reply)),
                Err(error) => tracing::debug!(container = self.id(), %error, "the keeper is gone"),
            }
        }
    }

    pub async fn status(&self) -> Result<Status, Error> {
        match self.call(Request::Status).await? {
            Ok(Reply::Status { pid, phase, exit }) => Ok(Status {
                pid,
                state: match (phase, exit) {
                    (_, Some(exit)) => State::Exited(exit),
                    (Phase::Creating | Phase::Created, None) => State::Created,
                    (Phase::Paused, None) => State::Paused,
                    (Phase::Running, None) => State::Running,
                    (Phase::Exited, None) => State::Exited(Exit::from_status(None, None)),
                },
            }),
            Ok(reply) => Err(self.unexpected(reply)),
            Err(Error::Ended { exit, .. }) => Ok(Status { pid: None, state: State::Exited(exit) }),
            Err(error) => Err(error),
        }
    }

    pub async fn pause(&self) -> Result<(), Error> {
        self.call(Request::Pause).await?.map(drop)
    }

    pub async fn resume(&self) -> Result<(), Error> {
        self.call(Request::Resume).await?.map(drop)
    }

    /// Sets the terminal's size.
    pub async fn resize(&self, rows: u16, columns: u16) -> Result<(), Error> {
        self.call(Request::Resize { rows, columns }).await?.map(drop)
    }

    /// Live output from now on, and stdin. Attach before start to miss nothing.
    pub async fn attach(&self) -> Result<Attach, Error> {
        match self.source().await? {
            Source::Ended(exit) => Ok(Attach::new(None, Some(exit))),
            Source::Keeper(connection) => match connection.call(Request::Attach).await {
                Ok(Reply::Done) => Ok(Attach::new(Some(Arc::new(connection)), None)),
                Ok(reply) => Err(self.unexpected(reply)),
                Err(source) => Err(self.keeper(source)),
            },
        }
    }

    /// Use of resources, from the cgroup's files.
    pub fn stats(&self) -> io::Result<Stats> {
        self.inner.record.cgroup.stats()
    }

    /// Kills what still runs and removes all that belongs to the container. Safe to repeat.
    pub async fn delete(&self) -> Result<(), Error> {
        let idle = lock(&self.inner.idle).take();
        let connection = match idle {
            Some(connection) => Some(connection),
            None => connect(self.bundle(), self.inner.record.version).ok(),
        };
        let mut kept_by_keeper = false;
        if let Some(connection) = connection {
            match self.ask_to_delete(&connection).await {
                Some(Ok(Reply::Done)) => kept_by_keeper = true,
                Some(Ok(reply)) => return Err(self.unexpected(reply)),
                // It died.
                Some(Err(_)) => {}
                None => {
                    tracing::warn!(container = self.id(), "its keeper does not answer: killing it");
                    if let Some(keeper) = keeper_of(self.bundle()) {
                        let _ = rustix::process::kill_process(keeper, rustix::process::Signal::KILL);
                    }
                }
            }
        }
        let inner = self.inner.clone();
        blocking(move || {
            if !kept_by_keeper {
                inner.record.cgroup.remove()?;
            }
            remove_files(&inner.record.spec.bundle, &inner.shared.link(&inner.record.spec.id))
        })
        .await
        .map_err(|source| Error::Remove { id: self.id().to_owned(), source })
    }

    /// `None`: it is stopped, or said nothing for too long.
    async fn ask_to_delete(&self, connection: &Connection) -> Option<io::Result<Reply>> {
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let mut answer = std::pin::pin!(connection.call(Request::Delete));
        loop {
            if let Ok(answer) = tokio::time::timeout(STOPPED_STEP, &mut answer).await {
                return Some(answer);
            }
            let stopped =
                keeper_of(self.bundle()).is_some_and(|keeper| process::is_stopped(keeper.as_raw_pid()));
            if stopped || tokio::time::Instant::now() >= deadline {
                return None;
            }
        }
    }

    /// One request. A keeper that is found dead is replaced, once.
    async fn call(&self, request: Request) -> Result<Result<Reply, Error>, Error> {
        Ok(self.attempt(request).await?.1)
    }

    /// The same, with how many keepers were asked.
    async fn attempt(&self, request: Request) -> Result<(u32, Result<Reply, Error>), Error> {
        // A keeper of an older release knows its own version, which its record has.
        let request = Envelope { version: self.inner.record.version, request };
        let mut last = io::Error::from(io::ErrorKind::NotConnected);
        for attempts in 1..=2 {
            let connection = match self.source().await? {
                Source::Ended(exit) => {
                    return Ok((attempts, Err(Error::Ended { id: self.id().to_owned(), exit })));
                }
                Source::Keeper(connection) => connection,
            };
            match tokio::time::timeout(ANSWER_TIMEOUT, connection.exchange(&request)).await {
                Ok(Ok(Reply::Failed { step, reason })) => {
                    self.put_back(connection);
                    return Ok((attempts, Err(Error::Refused { id: self.id().to_owned(), step, reason })));
                }
                Ok(Ok(reply)) => {
                    self.put_back(connection);
                    return Ok((attempts, Ok(reply)));
                }
                Ok(Err(error)) => last = error,
                Err(_) => return Err(self.keeper(io::ErrorKind::TimedOut.into())),
            }
        }
        Err(self.keeper(last))
    }

    fn put_back(&self, connection: Connection) {
        *lock(&self.inner.idle) = Some(connection);
    }

    async fn source(&self) -> Result<Source, Error> {
        if let Some(connection) = lock(&self.inner.idle).take()
            && connection.is_open()
        {
            return Ok(Source::Keeper(connection));
        }
        self.find().await.map_err(|source| self.keeper(source))
    }

    /// Makes sure of a living keeper or a known end.
    pub(crate) async fn repair(&self) -> io::Result<()> {
        if let Source::Keeper(connection) = self.find().await? {
            self.put_back(connection);
        }
        Ok(())
    }

    async fn find(&self) -> io::Result<Source> {
        let _one_at_a_time = self.inner.repairing.lock().await;
        if let Ok(connection) = connect(self.bundle(), self.inner.record.version) {
            return Ok(Source::Keeper(connection));
        }
        if let Some(exit) = bundle::read_exit(self.bundle()) {
            return Ok(Source::Ended(exit));
        }
        let lives = open_process(&self.inner.record).filter(|(_, pidfd)| !process::has_ended(pidfd));
        if let Some(process) = lives {
            *lock(&self.inner.process) = Some(process);
            tracing::info!(container = self.id(), "its keeper is gone: starting another");
            let (_child, connection) = self.inner.shared.spawn("adopt", self.bundle())?;
            // Answers when it has taken over.
            tokio::time::timeout(ANSWER_TIMEOUT, connection.call(Request::Status)).await??;
            return Ok(Source::Keeper(connection));
        }
        self.find_end().await.map(Source::Ended)
    }

    /// It ended without a keeper: the kernel may still know how, by the pidfd held since it ran.
    async fn find_end(&self) -> io::Result<Exit> {
        let pidfd = lock(&self.inner.process).as_ref().and_then(|(_, pidfd)| pidfd.try_clone().ok());
        let mut status = None;
        if let Some(pidfd) = pidfd {
            let deadline = tokio::time::Instant::now() + REAP_WAIT;
            loop {
                status = process::reaped_status(&pidfd);
                if status.is_some() || tokio::time::Instant::now() >= deadline {
                    break;
                }
                tokio::time::sleep(REAP_STEP).await;
            }
        }
        let record = self.inner.record.clone();
        blocking(move || {
            let bundle = &record.spec.bundle;
            if !bundle.exists() {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            }
            let mut exit = Exit::from_status(status, bundle::started_at(bundle));
            exit.oom_killed = exit.code != Some(0) && record.cgroup.oom_kills() > 0;
            bundle::write_exit(bundle, &exit).map_err(io::Error::other)?;
            Ok(exit)
        })
        .await
    }

    fn keeper(&self, source: io::Error) -> Error {
        Error::Keeper { id: self.id().to_owned(), source }
    }

    fn unexpected(&self, reply: Reply) -> Error {
        match reply {
            Reply::Failed { step, reason } => Error::Refused { id: self.id().to_owned(), step, reason },
            other => self.keeper(io::Error::other(format!("unexpected answer {other:?}"))),
        }
    }
}

/// The keeper is who holds its lock.
fn keeper_of(bundle: &Path) -> Option<rustix::process::Pid> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(bundle.join(bundle::LOCK)).ok()?;
    // SAFETY: all zero is a valid value of these plain numbers.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: the call only writes to `lock`, which lives across it.
    let asked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &mut lock) };
    let is_held = asked == 0 && lock.l_type != libc::F_UNLCK as libc::c_short;
    rustix::process::Pid::from_raw(lock.l_pid).filter(|_| is_held)
}

fn open_process(record: &Record) -> Option<(i32, OwnedFd)> {
    let identity = bundle::read_process(&record.spec.bundle)?;
    Some((identity.pid, identity.open()?))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Both directions of an attached container.
pub struct Attach {
    pub input: Input,
    pub output: Output,
}

/// Writes to the container's stdin.
#[derive(Clone)]
pub struct Input(Option<Arc<Connection>>);

/// Reads the container's output.
pub struct Output {
    connection: Option<Arc<Connection>>,
    exit: Option<Exit>,
}

/// What an attached container says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attached {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    /// Nothing follows.
    Exited(Exit),
}

impl Attach {
    fn new(connection: Option<Arc<Connection>>, exit: Option<Exit>) -> Attach {
        Attach { input: Input(connection.clone()), output: Output { connection, exit } }
    }
}

impl Output {
    /// The next piece; `None` after the exit, or when the keeper died (then attach again).
    pub async fn next(&mut self) -> Option<Attached> {
        if let Some(exit) = self.exit.take() {
            self.connection = None;
            return Some(Attached::Exited(exit));
        }
        let connection = self.connection.clone()?;
        loop {
            match connection.receive().await {
                Ok(Some((kind::STDOUT, body))) => return Some(Attached::Stdout(body)),
                Ok(Some((kind::STDERR, body))) => return Some(Attached::Stderr(body)),
                Ok(Some((_, body))) => {
                    if let Ok(Reply::Exited { exit }) = serde_json::from_slice(&body) {
                        self.connection = None;
                        return Some(Attached::Exited(exit));
                    }
                }
                Ok(None) | Err(_) => {
                    self.connection = None;
                    return None;
                }
            }
        }
    }
}

impl Input {
    /// Waits while the container does not read.
    pub async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let connection = self.0.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        for chunk in bytes.chunks(MAX_BODY_BYTES) {
            connection.send(kind::STDIN, chunk).await?;
        }
        Ok(())
    }

    /// The program reads end of file after what was written.
    pub async fn close(&self) -> io::Result<()> {
        self.request(Request::CloseStdin).await
    }

    pub async fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        self.request(Request::Resize { rows, columns }).await
    }

    async fn request(&self, request: Request) -> io::Result<()> {
        let connection = self.0.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let body = serde_json::to_vec(&Envelope { version: connection.version, request })?;
        connection.send(kind::MESSAGE, &body).await
    }
}

/// A socket to a keeper, and the version that this keeper speaks.
pub(crate) struct Connection {
    socket: AsyncFd<OwnedFd>,
    version: u32,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd, version: u32) -> io::Result<Connection> {
        // SAFETY: the AsyncFd owns the descriptor, and never gives it away or replaces it.
        let socket =
            unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::WRITABLE)? };
        Ok(Connection { socket, version })
    }

    /// One request and its answer.
    pub(crate) async fn call(&self, request: Request) -> io::Result<Reply> {
        self.exchange(&Envelope { version: self.version, request }).await
    }

    async fn exchange(&self, request: &Envelope) -> io::Result<Reply> {
        self.send(kind::MESSAGE, &serde_json::to_vec(request)?).await?;
        match self.receive().await? {
            Some((kind::MESSAGE, body)) => Ok(serde_json::from_slice(&body)?),
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn send(&self, kind: u8, body: &[u8]) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| protocol::send(socket.as_fd(), kind, body)).await
    }

    async fn receive(&self) -> io::Result<Option<(u8, Vec<u8>)>> {
        self.socket
            .async_io(Interest::READABLE, |socket| {
                let mut buffer = [0; MAX_BODY_BYTES + 1];
                let packet = protocol::receive(socket.as_fd(), &mut buffer)?;
                Ok(packet.map(|(kind, body)| (kind, body.to_vec())))
            })
            .await
    }

    /// Whether the keeper has not hung up.
    fn is_open(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let socket = self.socket.get_ref();
        let mut polled = [PollFd::new(socket, PollFlags::IN)];
        let _ = poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        polled[0].revents().is_empty()
    }
}

/// Connects to the keeper that serves this bundle.
fn connect(bundle: &Path, version: u32) -> io::Result<Connection> {
    let dir = rustix::fs::open(bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(bundle::short_path(&dir, bundle::SOCKET))?)?;
    Connection::new(socket, version)
}
