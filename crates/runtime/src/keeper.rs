//! The keeper: one small process a container, single-threaded, that outlives the daemon.
//!
//! It makes the container in a short-lived child ([`make`]), becomes the container's parent as subreaper, reads its
//! output into the log ([`log`]), knows its exit code, and serves the daemon on a socket in the bundle.
//!
//! **Invariants.** The exit record is durable before anyone hears of the exit. The log has all output before the
//! exit is told. Memory is bounded: one read for each slow client, one packet of stdin for each writer.

mod clients;
mod end;
mod finish;
mod log;
mod make;
mod memory;
mod serve;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use nix::sys::signalfd::SignalFd;
use rustix::event::epoll;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::bundle::{self, Record};
use crate::process::Identity;
use crate::protocol::{Exit, MAX_BODY_BYTES, Phase, Reply, kind};
use clients::Clients;
use log::Log;
use make::Making;

/// How long a keeper that is not the container's parent waits for somebody to reap it and so reveal its status.
const REAP_WAIT: Duration = Duration::from_secs(5);
/// And how often it asks.
const REAP_STEP: Duration = Duration::from_millis(20);

/// How long after its last step a container is likely to stay, so that the keeper gives memory back.
const TRIM_AFTER: Duration = Duration::from_millis(500);

/// What an event is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Listener,
    /// The child that makes the container has reported, or ended.
    Making,
    /// The container's first process has ended.
    Process,
    /// The program was executed, or could not be.
    Executed,
    Output(usize),
    Stdin,
    /// A child has ended or stopped.
    Children,
    Client(usize),
}

impl Token {
    fn data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Token::Listener => 0,
            Token::Making => 1,
            Token::Process => 2,
            Token::Executed => 3,
            Token::Output(index) => 4 + index as u64,
            Token::Stdin => 6,
            Token::Children => 7,
            Token::Client(index) => 16 + index as u64,
        })
    }

    fn from_data(data: epoll::EventData) -> Option<Token> {
        Some(match data.u64() {
            0 => Token::Listener,
            1 => Token::Making,
            2 => Token::Process,
            3 => Token::Executed,
            index @ 4..=5 => Token::Output(index as usize - 4),
            6 => Token::Stdin,
            7 => Token::Children,
            index @ 16.. => Token::Client(index as usize - 16),
            _ => return None,
        })
    }
}

/// Kind bytes of the two outputs, by index.
const OUTPUT_KINDS: [u8; 2] = [kind::STDOUT, kind::STDERR];

struct Keeper {
    record: Record,
    epoll: OwnedFd,
    listener: OwnedFd,
    clients: Clients,
    /// stdout and stderr; a terminal has only the first. `None` after the end.
    outputs: [Option<OwnedFd>; 2],
    /// Whether outputs are watched: not while an attached client is behind.
    reading: bool,
    /// The write end, kept until somebody closes it.
    stdin: Option<OwnedFd>,
    stdin_pending: Vec<u8>,
    /// Closed once what is pending is written.
    stdin_ended: bool,
    log: Log,
    phase: Phase,
    making: Option<Making>,
    failure: Option<String>,
    identity: Option<Identity>,
    pidfd: Option<OwnedFd>,
    /// Tells whether execve succeeded.
    executed: Option<OwnedFd>,
    /// Whether `start` was asked for and not answered yet.
    starting: bool,
    started_at: Option<SystemTime>,
    /// False for a keeper that took over: then the status comes from the kernel's memory, or not at all.
    is_parent: bool,
    reap_until: Option<Instant>,
    children: SignalFd,
    /// Children are not looked at before: see [`end`].
    calm_until: Option<Instant>,
    /// The first process's own, from wait(2).
    status: Option<i32>,
    /// It was sent SIGKILL.
    ending: Option<end::Ending>,
    trim_at: Option<Instant>,
    exit: Option<Exit>,
    deleting: bool,
    done: bool,
}

/// The hidden command: `make BUNDLE` for a new container, `adopt BUNDLE` for one whose keeper died. Descriptor 0 is
/// the daemon's first connection.
pub fn keeper_main(args: &[OsString]) -> ExitCode {
    let [verb, dir] = args else { return ExitCode::from(2) };
    // Nobody reads what goes wrong here but through the socket: without it, the exit code is all there is.
    match (verb.to_str(), Keeper::open(Path::new(dir))) {
        (Some("make"), Ok(mut keeper)) => keeper.make().and_then(|()| keeper.run()),
        (Some("adopt"), Ok(mut keeper)) => keeper.adopt().and_then(|()| keeper.run()),
        (_, Ok(_)) => return ExitCode::from(2),
        (_, Err(error)) => Err(error),
    }
    .map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
}

impl Keeper {
    fn open(dir: &Path) -> io::Result<Keeper> {
        // SAFETY: the daemon put its socket there, and nothing else in this process knows of it.
        let first = unsafe { OwnedFd::from_raw_fd(0) };
        // Out of the way of stdio, which a later child sets anew.
        let first_moved = rustix::io::fcntl_dupfd_cloexec(&first, 10)?;
        std::mem::forget(first);
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())?;
        for stdio in 0..3 {
            // SAFETY: descriptors 0 to 2 are this process's stdio, owned by nobody.
            if unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), stdio) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        let _ = rustix::process::setsid();
        // SAFETY: prctl with plain numbers and a constant string.
        unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_NAME, c"gantry-keeper".as_ptr());
        }
        // Paths in the bundle are short from here on (a socket's path has 108 bytes).
        rustix::process::chdir(dir)?;
        lock()?;
        let record = Record::read(Path::new("."))?;
        leave_cgroups(&record)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let children = end::children(&epoll)?;
        let listener = listen()?;
        epoll::add(&epoll, &listener, Token::Listener.data(), epoll::EventFlags::IN)?;
        let mut clients = Clients::default();
        clients.add(&epoll, first_moved)?;
        let log = Log::open(&record.spec.log);
        Ok(Keeper {
            record,
            epoll,
            listener,
            clients,
            outputs: [None, None],
            reading: false,
            stdin: None,
            stdin_pending: Vec::new(),
            stdin_ended: false,
            log,
            phase: Phase::Creating,
            making: None,
            failure: None,
            identity: None,
            pidfd: None,
            executed: None,
            starting: false,
            started_at: None,
            is_parent: true,
            reap_until: None,
            children,
            calm_until: None,
            status: None,
            ending: None,
            trim_at: Some(Instant::now() + TRIM_AFTER),
            exit: None,
            deleting: false,
            done: false,
        })
    }

    /// Starts the child that makes the container.
    fn make(&mut self) -> io::Result<()> {
        let stdio =
            if self.record.spec.tty { make::terminal(&self.record)? } else { make::pipes(&self.record)? };
        let (making, executed) = make::fork(&self.record, stdio.container)?;
        self.outputs = stdio.outputs;
        self.stdin = stdio.stdin;
        epoll::add(&self.epoll, &making.report, Token::Making.data(), epoll::EventFlags::IN)?;
        self.making = Some(making);
        self.executed = Some(executed);
        Ok(())
    }

    /// Takes over a container whose keeper died.
    fn adopt(&mut self) -> io::Result<()> {
        self.is_parent = false;
        let here = Path::new(".");
        self.identity = bundle::read_process(here);
        if let Some(exit) = bundle::read_exit(here) {
            self.started_at = exit.started_at;
            self.phase = Phase::Exited;
            self.exit = Some(exit);
            return Ok(());
        }
        let Some(pidfd) = self.identity.as_ref().and_then(Identity::open) else {
            // It ended while nobody looked.
            self.phase = Phase::Exited;
            self.started_at = bundle::started_at(here);
            return self.finish(None);
        };
        self.started_at = bundle::started_at(here);
        self.phase = if self.started_at.is_some() { Phase::Running } else { Phase::Created };
        if !self.record.spec.tty {
            for (index, name) in ["stdout", "stderr"].into_iter().enumerate() {
                self.outputs[index] = Some(open_fifo(name, OFlags::RDONLY)?);
            }
            if self.record.spec.stdin {
                self.stdin = Some(open_fifo("stdin", OFlags::RDWR)?);
            }
        }
        self.watch(pidfd)
    }

    /// Watches the container's process and outputs from now on.
    fn watch(&mut self, pidfd: OwnedFd) -> io::Result<()> {
        epoll::add(&self.epoll, &pidfd, Token::Process.data(), epoll::EventFlags::IN)?;
        self.pidfd = Some(pidfd);
        self.read_outputs(true)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(16);
        while !self.done {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                let (flags, data) = (event.flags, event.data);
                if let Some(token) = Token::from_data(data) {
                    self.handle(token, flags)?;
                }
            }
            self.on_time()?;
        }
        Ok(())
    }

    fn handle(&mut self, token: Token, flags: epoll::EventFlags) -> io::Result<()> {
        match token {
            Token::Listener => self.accept(),
            Token::Making => self.made(),
            Token::Process => self.ended(),
            Token::Executed => self.executed(),
            Token::Output(index) => {
                self.read_output(index);
                Ok(())
            }
            Token::Stdin => self.feed_stdin(),
            Token::Children => self.on_children(),
            Token::Client(index) => {
                if flags.contains(epoll::EventFlags::OUT) {
                    self.clients.flush(&self.epoll, index);
                    self.read_outputs(true)?;
                }
                if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                    self.serve(index)?;
                }
                Ok(())
            }
        }
    }

    fn timeout(&self) -> Option<rustix::event::Timespec> {
        let now = Instant::now();
        let reap = self.reap_until.map(|_| REAP_STEP);
        let slow = self.clients.next_deadline().map(|deadline| deadline.saturating_duration_since(now));
        let trim = self.trim_at.map(|at| at.saturating_duration_since(now));
        let end = self.next_ending().map(|at| at.saturating_duration_since(now));
        let next = reap.into_iter().chain(slow).chain(trim).chain(end).min()?;
        rustix::event::Timespec::try_from(next).ok()
    }

    fn on_time(&mut self) -> io::Result<()> {
        if self.clients.cut_slow(&self.epoll) {
            self.read_outputs(true)?;
        }
        if self.reap_until.is_some() {
            self.ended()?;
        }
        self.on_time_of_ending()?;
        if self.trim_at.is_some_and(|at| Instant::now() >= at) {
            self.trim_at = None;
            memory::trim();
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        match rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            // Root only: the socket's mode says so already.
            Ok(client) => self.clients.add(&self.epoll, client),
            Err(_) => Ok(()),
        }
    }

    /// The child has reported.
    fn made(&mut self) -> io::Result<()> {
        let Some(making) = self.making.take() else { return Ok(()) };
        let _ = epoll::delete(&self.epoll, &making.report);
        let result = making.finish().and_then(|pid| {
            let identity = Identity::of(pid).map_err(|error| format!("look at process {pid}: {error}"))?;
            let pidfd = identity.open().ok_or_else(|| format!("process {pid} ended at once"))?;
            bundle::write_json(Path::new("."), bundle::PROCESS, &identity)
                .map_err(|error| format!("write {}: {error}", bundle::PROCESS))?;
            Ok((identity, pidfd))
        });
        match result {
            Ok((identity, pidfd)) => {
                self.identity = Some(identity);
                self.reap();
                self.phase = Phase::Created;
                self.watch(pidfd)?;
            }
            Err(reason) => {
                self.phase = Phase::Exited;
                self.failure = Some(reason);
                self.outputs = [None, None];
                let _ = self.record.cgroup.remove();
            }
        }
        self.tell_created();
        if self.deleting {
            self.delete()?;
        }
        Ok(())
    }

    /// execve succeeded (end of file), or the reason why not.
    fn executed(&mut self) -> io::Result<()> {
        let Some(pipe) = self.executed.take() else { return Ok(()) };
        let _ = epoll::delete(&self.epoll, &pipe);
        let mut reason = vec![0; 4096];
        let read = rustix::io::read(&pipe, &mut reason[..]).unwrap_or(0);
        let reply = if read == 0 {
            Reply::Done
        } else {
            reason.truncate(read);
            self.started_at = None;
            let _ = fs::remove_file(bundle::STARTED);
            Reply::Failed {
                step: crate::protocol::Step::Exec,
                reason: String::from_utf8_lossy(&reason).into_owned(),
            }
        };
        if read == 0 && self.phase == Phase::Created {
            self.phase = Phase::Running;
        }
        self.starting = false;
        self.trim_at = Some(Instant::now() + TRIM_AFTER);
        self.clients.answer(&self.epoll, clients::Awaits::Start, &reply);
        Ok(())
    }

    fn finish(&mut self, status: Option<i32>) -> io::Result<()> {
        self.reap_until = None;
        self.ending = None;
        if let Some(pidfd) = self.pidfd.take() {
            let _ = epoll::delete(&self.epoll, pidfd);
        }
        if self.executed.is_some() && self.starting {
            self.executed()?;
        }
        for index in 0..2 {
            self.drain_output(index);
        }
        self.log.end();
        let mut exit = Exit::from_status(status, self.started_at);
        exit.oom_killed = exit.code != Some(0) && self.record.cgroup.oom_kills() > 0;
        // Untold rather than not durable: the daemon then finds no record, and says unknown.
        let durable = bundle::write_exit(Path::new("."), &exit);
        if let Err(error) = durable {
            self.failure = Some(error.to_string());
        }
        self.phase = Phase::Exited;
        self.exit = Some(exit);
        self.stdin = None;
        self.clients.answer(&self.epoll, clients::Awaits::Exit, &Reply::Exited { exit });
        if self.deleting {
            self.delete()?;
        }
        Ok(())
    }

    /// Watches or forgets both outputs; forgets them anyway while an attached client is behind.
    fn read_outputs(&mut self, wanted: bool) -> io::Result<()> {
        let wanted = wanted && self.pidfd.is_some() && !self.clients.is_behind();
        if wanted == self.reading {
            return Ok(());
        }
        self.reading = wanted;
        for (index, output) in self.outputs.iter().enumerate() {
            let Some(output) = output else { continue };
            if wanted {
                epoll::add(&self.epoll, output, Token::Output(index).data(), epoll::EventFlags::IN)?;
            } else {
                epoll::delete(&self.epoll, output)?;
            }
        }
        Ok(())
    }

    /// One read; tells whether there may be more.
    fn read_output(&mut self, index: usize) -> bool {
        let Some(output) = &self.outputs[index] else { return false };
        let mut buffer = [0; MAX_BODY_BYTES / 2];
        match rustix::io::read(output, &mut buffer[..]) {
            Ok(0) | Err(rustix::io::Errno::IO) => {
                // A terminal's other side is gone; a FIFO has no writer any more.
                if self.reading {
                    let _ = epoll::delete(&self.epoll, output);
                }
                self.outputs[index] = None;
                false
            }
            Ok(read) => {
                self.log.write(index, &buffer[..read]);
                self.clients.broadcast(&self.epoll, OUTPUT_KINDS[index], &buffer[..read]);
                if self.clients.is_behind() {
                    let _ = self.read_outputs(false);
                }
                true
            }
            Err(_) => false,
        }
    }

    fn drain_output(&mut self, index: usize) {
        // A FIFO holds at most 1 MiB (pipe-max-size), and nobody writes any more.
        for _ in 0..1024 {
            if !self.read_output(index) {
                break;
            }
        }
        self.outputs[index] = None;
    }
}

/// In the daemon's cgroup it would die with the daemon; where the machine refuses, setsid must do. A helper does it,
/// since the move may take milliseconds; the container's own is made in [`make`], and never waits for this one.
fn leave_cgroups(record: &Record) -> io::Result<()> {
    let own = std::process::id().to_string();
    // SAFETY: this process has one thread.
    if let nix::unistd::ForkResult::Child = unsafe { nix::unistd::fork()? } {
        for cgroup in &record.keepers {
            let _ = fs::write(cgroup.join("cgroup.procs"), &own);
        }
        // SAFETY: ends the process; nothing is to be run or flushed here.
        unsafe { libc::_exit(0) }
    }
    Ok(())
}

/// One keeper a container. A process's own lock (fcntl): the container, a descendant, must not hold it.
fn lock() -> io::Result<()> {
    let file =
        rustix::fs::open(bundle::LOCK, OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from(0o600))?;
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    // Held until this process ends.
    std::mem::forget(file);
    Ok(())
}

fn listen() -> io::Result<OwnedFd> {
    let _ = fs::remove_file(bundle::SOCKET);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let before = rustix::process::umask(Mode::from(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(bundle::SOCKET)?);
    rustix::process::umask(before);
    bound?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

fn open_fifo(name: &str, access: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(name, access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn make_fifo(name: &str) -> io::Result<()> {
    Ok(rustix::fs::mknodat(CWD, name, FileType::Fifo, Mode::from(0o600), 0)?)
}

/// Reborrows for epoll's sake.
fn fd<T: AsFd>(owner: &T) -> BorrowedFd<'_> {
    owner.as_fd()
}
