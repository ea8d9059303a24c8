//! An attacker: one user, or one Pod, that holds as many connections as it can and leaves each undone.
//!
//! It is a process of its own, as the descriptors, the user and the network namespace are. It works against a cap on its
//! own CPU time: what is judged is what connections do to others, not who wins a race for the processor.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Descriptors that the process needs for itself.
const OWN_DESCRIPTORS: u64 = 64;
/// New connections for each tick, while the CPU time is below its cap.
const TICK: Duration = Duration::from_millis(10);
const PER_TICK: usize = 100;
/// How often the slow ones say another byte.
const SLOW: Duration = Duration::from_secs(1);
const CONNECT_MAX: Duration = Duration::from_secs(5);
const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Never: ending and ending";

/// What a connection leaves undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// It says nothing.
    Silent,
    /// A byte of a head now and then.
    Slow,
    /// Half a head, and its sending side closed.
    HalfOpen,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Arguments {
    address: SocketAddr,
    #[arg(value_enum)]
    kind: Kind,
    /// Connections to hold
    #[arg(long, default_value_t = 20_000)]
    count: u64,
    #[arg(long)]
    seconds: u64,
    /// The user to become
    #[arg(long)]
    uid: Option<u32>,
    /// The network namespace to enter first
    #[arg(long)]
    netns: Option<PathBuf>,
    /// The address to come from
    #[arg(long)]
    from: Option<SocketAddr>,
    /// Percent of one processor that it may use
    #[arg(long, default_value_t = 20)]
    cpu: u64,
}

/// Starts an attacker in a process of its own.
pub(crate) fn start(arguments: &Arguments, log: &Path) -> Result<std::process::Child> {
    let log = std::fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("flood").arg(arguments.address.to_string());
    command.arg(
        clap::ValueEnum::to_possible_value(&arguments.kind).context("a kind without a name")?.get_name(),
    );
    command.args(["--count", &arguments.count.to_string(), "--seconds", &arguments.seconds.to_string()]);
    command.args(["--cpu", &arguments.cpu.to_string()]);
    if let Some(uid) = arguments.uid {
        command.args(["--uid", &uid.to_string()]);
    }
    if let Some(netns) = &arguments.netns {
        command.arg("--netns").arg(netns);
    }
    if let Some(from) = arguments.from {
        command.args(["--from", &from.to_string()]);
    }
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("start an attacker")
}

impl Arguments {
    /// 20,000 connections for so long.
    pub(crate) fn new(address: SocketAddr, kind: Kind, seconds: u64) -> Self {
        Self { address, kind, count: 20_000, seconds, uid: None, netns: None, from: None, cpu: 20 }
    }

    /// From that user and source address.
    pub(crate) fn of_user(self, uid: u32, from: SocketAddr) -> Self {
        Self { uid: Some(uid), from: Some(from), ..self }
    }

    /// From inside that network namespace.
    pub(crate) fn inside(self, netns: PathBuf) -> Self {
        Self { netns: Some(netns), ..self }
    }

    /// One of `parts` attackers, who together hold so many connections and use so many percent of a processor.
    pub(crate) fn part(self, parts: usize, count: u64, cpu: u64) -> Self {
        let parts = parts.max(1) as u64;
        Self { count: count / parts, cpu: (cpu / parts).max(1), ..self }
    }
}

/// The attacker's process.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(netns) = &arguments.netns {
        let file = std::fs::File::open(netns).with_context(|| format!("open {}", netns.display()))?;
        nix::sched::setns(file, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    if let Some(uid) = arguments.uid {
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(Gid::from_raw(uid), Gid::from_raw(uid), Gid::from_raw(uid))?;
        nix::unistd::setresuid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid))?;
    }
    let count = arguments.count.min(hard.saturating_sub(OWN_DESCRIPTORS));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(attack(arguments, count))
}

#[derive(Default)]
struct Counts {
    made: AtomicU64,
    held: AtomicU64,
    most: AtomicU64,
}

async fn attack(arguments: &Arguments, count: u64) -> Result<()> {
    let (turns, counts) = (Arc::new(Semaphore::new(0)), Arc::new(Counts::default()));
    for _ in 0..count {
        let (arguments, turns, counts) = (arguments.clone(), Arc::clone(&turns), Arc::clone(&counts));
        tokio::spawn(async move {
            // The semaphore is never closed.
            while let Ok(turn) = turns.acquire().await {
                turn.forget();
                let Ok(stream) = connect(&arguments).await else { continue };
                counts.made.fetch_add(1, Ordering::Relaxed);
                let held = counts.held.fetch_add(1, Ordering::Relaxed) + 1;
                counts.most.fetch_max(held, Ordering::Relaxed);
                hold(stream, arguments.kind).await;
                counts.held.fetch_sub(1, Ordering::Relaxed);
            }
        });
    }
    let (start, end) = (Instant::now(), Duration::from_secs(arguments.seconds));
    let mut tick = tokio::time::interval(TICK);
    while start.elapsed() < end {
        tick.tick().await;
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let used = Duration::new(used.tv_sec as u64, used.tv_nsec as u32);
        if used.as_millis() * 100 <= start.elapsed().as_millis() * u128::from(arguments.cpu)
            && turns.available_permits() < PER_TICK
        {
            turns.add_permits(PER_TICK);
        }
    }
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    crate::print(&format!(
        "{} made, {} held at most, {} at the end",
        read(&counts.made),
        read(&counts.most),
        read(&counts.held)
    ));
    Ok(())
}

async fn connect(arguments: &Arguments) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if let Some(from) = arguments.from {
        socket.bind(from)?;
    }
    Ok(tokio::time::timeout(CONNECT_MAX, socket.connect(arguments.address)).await??)
}

/// Until the other side closes.
async fn hold(mut stream: TcpStream, kind: Kind) {
    let mut answer = [0; 64];
    match kind {
        Kind::Silent => {}
        Kind::HalfOpen => {
            if stream.write_all(HEAD).await.is_err() || stream.shutdown().await.is_err() {
                return;
            }
        }
        Kind::Slow => {
            for byte in HEAD.iter().chain(std::iter::repeat(&b'x')) {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                // Whatever is said, or an end, ends it.
                if tokio::time::timeout(SLOW, stream.read(&mut answer)).await.is_ok() {
                    return;
                }
            }
        }
    }
    while matches!(stream.read(&mut answer).await, Ok(count) if count > 0) {}
}
