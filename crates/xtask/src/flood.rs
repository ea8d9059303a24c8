//! An attacker: one user, or one Pod, that holds as many connections as it can and leaves each undone.
//!
//! It is a process of its own, as the descriptors, the user and the network namespace are. It works against a cap on its
//! own CPU time: what is judged is what connections do to others, not who wins a race for the processor. So one thread
//! asks the kernel for many sockets at a time, and whatever the other side ends or refuses is opened again.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType};

/// Descriptors that the process needs for itself.
const OWN_DESCRIPTORS: u64 = 64;
/// Connections that are opened, and bytes that are said, between two looks at what came.
const BATCH: usize = 64;
const EVENTS: usize = 256;
/// Longest wait for an event, and longest pause for the cap's sake.
const TURN: Duration = Duration::from_millis(10);
const PORT_FIRST: u16 = 10_000;
const PORTS_TRIED: usize = 64;
/// Without a free port: how long until the next try.
const PORTLESS: Duration = Duration::from_millis(100);
/// How often the slow ones say another byte.
const SLOW: Duration = Duration::from_secs(2);
const HEAD: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Never: ending and ending";

/// How many kinds there are.
const KINDS: u16 = 3;

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

/// What became of an attacker's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counts {
    /// Connections that were begun.
    pub(crate) tried: u64,
    /// Of those, made.
    pub(crate) made: u64,
    /// Of those made, ended by the other side.
    pub(crate) ended: u64,
    /// Held at one time, and at the end.
    pub(crate) most: u64,
    pub(crate) held: u64,
}

impl Counts {
    /// Those of another attacker of the same flood; the most is of each at its own time.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            tried: self.tried + other.tried,
            made: self.made + other.made,
            ended: self.ended + other.ended,
            most: self.most + other.most,
            held: self.held + other.held,
        }
    }

    pub(crate) fn words(&self) -> String {
        let Self { tried, made, ended, most, held } = self;
        format!(
            "{tried} tried, {made} made, {ended} refused or closed, {most} held at most, {held} at the end"
        )
    }
}

/// An attacker's process.
pub(crate) struct Attacker {
    child: Child,
    log: PathBuf,
}

/// Starts an attacker in a process of its own.
pub(crate) fn start(arguments: &Arguments, log: &Path) -> Result<Attacker> {
    let file = std::fs::File::create(log).with_context(|| format!("make {}", log.display()))?;
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
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    Ok(Attacker { child: command.spawn().context("start an attacker")?, log: log.to_owned() })
}

impl Attacker {
    /// Waits until its time is over; what it did.
    pub(crate) fn end(mut self) -> Result<Counts> {
        let status = self.child.wait().context("wait for an attacker")?;
        let said = std::fs::read_to_string(&self.log)?;
        ensure!(status.success(), "an attacker ended: {status}; {}", said.trim());
        serde_json::from_str(&said).with_context(|| format!("an attacker said {said:?}"))
    }
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
        Self { count: count.div_ceil(parts), cpu: (cpu / parts).max(1), ..self }
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
    let mut attack = Attack::new(arguments, usize::try_from(count)?)?;
    attack.play(|_| false)?;
    crate::print(&serde_json::to_string(&attack.counts)?);
    Ok(())
}

struct Connection {
    socket: OwnedFd,
    /// Its turn among all: a place's next connection is another one.
    number: u64,
    made: bool,
    /// Bytes of the head that were said.
    said: usize,
}

struct Attack<'a> {
    arguments: &'a Arguments,
    epoll: OwnedFd,
    places: Vec<Option<Connection>>,
    free: VecDeque<usize>,
    /// The last port, from the first one on.
    ports: u16,
    portless_until: Instant,
    /// When which connection says its next byte.
    due: VecDeque<(Instant, usize, u64)>,
    counts: Counts,
}

impl<'a> Attack<'a> {
    fn new(arguments: &'a Arguments, count: usize) -> Result<Self> {
        Ok(Self {
            arguments,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            places: (0..count).map(|_| None).collect(),
            free: (0..count).collect(),
            ports: 0,
            portless_until: Instant::now(),
            due: VecDeque::new(),
            counts: Counts::default(),
        })
    }

    /// Until the time is over, or `enough`.
    fn play(&mut self, enough: impl Fn(&Counts) -> bool) -> Result<()> {
        let (start, time) = (Instant::now(), Duration::from_secs(self.arguments.seconds));
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            let elapsed = start.elapsed();
            if elapsed >= time || enough(&self.counts) {
                return Ok(());
            }
            // So much time has to have passed for what was used to be within the cap.
            let earned = cpu_used() * 100 / u32::try_from(self.arguments.cpu)?;
            if let Some(pause) = earned.checked_sub(elapsed) {
                std::thread::sleep(pause.min(TURN).min(time - elapsed));
                continue;
            }
            for _ in 0..BATCH {
                if !self.open()? {
                    break;
                }
            }
            self.speak();
            let wait = if self.free.is_empty() || self.portless_until > Instant::now() {
                TURN
            } else {
                Duration::ZERO
            };
            let wait = rustix::time::Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for the connections"),
            }
            for event in events.drain(..) {
                let epoll::Event { flags, data } = event;
                self.seen(usize::try_from(data.u64())?, flags);
            }
        }
    }

    /// Begins another connection; false when there is no place or no port for it now.
    fn open(&mut self) -> Result<bool> {
        if self.portless_until > Instant::now() {
            return Ok(false);
        }
        let Some(place) = self.free.pop_front() else { return Ok(false) };
        let Some(socket) = self.connect()? else {
            self.portless_until = Instant::now() + PORTLESS;
            self.free.push_back(place);
            return Ok(false);
        };
        self.counts.tried += 1;
        use epoll::EventFlags as E;
        let events = E::IN | E::OUT | E::RDHUP | E::ET;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(place as u64), events)?;
        self.places[place] = Some(Connection { socket, number: self.counts.tried, made: false, said: 0 });
        Ok(true)
    }

    /// A socket that connects, if one of the next ports is free. The kernel's own choice would cost more and more: it
    /// looks at port after port while those of closed connections rest.
    fn connect(&mut self) -> Result<Option<OwnedFd>> {
        let Arguments { address, from, kind, .. } = self.arguments;
        let from = from.map_or(Ipv4Addr::UNSPECIFIED.into(), |from| from.ip());
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        for _ in 0..PORTS_TRIED {
            // Each kind has ports of its own.
            self.ports = (self.ports + KINDS) % (u16::MAX - PORT_FIRST - KINDS);
            let from = SocketAddr::new(from, PORT_FIRST + self.ports + *kind as u16);
            let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
            rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
            let begun =
                rustix::net::bind(&socket, &from).and_then(|()| rustix::net::connect(&socket, address));
            match begun {
                Ok(()) | Err(Errno::INPROGRESS) => return Ok(Some(socket)),
                Err(Errno::ADDRINUSE | Errno::ADDRNOTAVAIL | Errno::AGAIN) => {}
                Err(error) => return Err(error).with_context(|| format!("connect to {address} from {from}")),
            }
        }
        Ok(None)
    }

    fn seen(&mut self, place: usize, flags: epoll::EventFlags) {
        let Some(connection) = &mut self.places[place] else { return };
        if !connection.made {
            let error = rustix::net::sockopt::socket_error(&connection.socket);
            // A reset ends what was made; what is refused or unreachable never was.
            if !matches!(error, Ok(Ok(()) | Err(Errno::CONNRESET | Errno::PIPE))) {
                return self.close(place);
            }
            connection.made = true;
            self.counts.made += 1;
            self.counts.held += 1;
            let begun = match self.arguments.kind {
                _ if error != Ok(Ok(())) => false,
                Kind::Silent => true,
                Kind::HalfOpen => {
                    rustix::net::send(&connection.socket, HEAD, SendFlags::NOSIGNAL).is_ok()
                        && rustix::net::shutdown(&connection.socket, Shutdown::Write).is_ok()
                }
                Kind::Slow => {
                    self.due.push_back((Instant::now(), place, connection.number));
                    true
                }
            };
            if !begun {
                return self.close(place);
            }
        }
        if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::HUP) {
            let mut answer = [0; 512];
            loop {
                match rustix::net::recv(&connection.socket, &mut answer, RecvFlags::empty()) {
                    Ok((_, count)) if count > 0 => {}
                    Err(Errno::AGAIN) => break,
                    _ => return self.close(place),
                }
            }
        }
        self.counts.most = self.counts.most.max(self.counts.held);
    }

    /// The slow ones that it is time for say a byte.
    fn speak(&mut self) {
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some((_, place, number)) = self.due.pop_front_if(|(at, ..)| *at <= now) else { return };
            let connection = self.places[place].as_mut().filter(|connection| connection.number == number);
            let Some(connection) = connection else { continue };
            let byte = *HEAD.get(connection.said).unwrap_or(&b'x');
            connection.said += 1;
            match rustix::net::send(&connection.socket, &[byte], SendFlags::NOSIGNAL) {
                Ok(_) | Err(Errno::AGAIN) => self.due.push_back((now + SLOW, place, number)),
                Err(_) => self.close(place),
            }
        }
    }

    /// The other side has ended it; its place is free again.
    fn close(&mut self, place: usize) {
        if let Some(connection) = self.places[place].take() {
            if connection.made {
                self.counts.held -= 1;
                self.counts.ended += 1;
            }
            self.free.push_back(place);
        }
    }
}

/// CPU time of this process.
fn cpu_used() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn played(kind: Kind, enough: fn(&Counts) -> bool, serve: fn(TcpListener)) -> Counts {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(listener));
        let arguments = Arguments {
            cpu: 100,
            from: Some("127.0.0.3:0".parse().unwrap()),
            ..Arguments::new(address, kind, 60)
        };
        let mut attack = Attack::new(&arguments, 50).unwrap();
        attack.play(enough).unwrap();
        attack.counts
    }

    #[test]
    fn what_the_listener_keeps_is_held_and_what_it_ends_is_opened_again() {
        let kept = played(
            Kind::Silent,
            |counts| counts.held == 50,
            |listener| {
                let kept: Vec<_> = listener.incoming().collect();
                drop(kept);
            },
        );
        assert_eq!(kept, Counts { tried: 50, made: 50, ended: 0, most: 50, held: 50 });
        let ended = played(
            Kind::HalfOpen,
            |counts| counts.ended > 50,
            |listener| {
                for stream in listener.incoming() {
                    let mut head = Vec::new();
                    // To its end: the attacker has closed its side.
                    stream.unwrap().read_to_end(&mut head).unwrap();
                    assert_eq!(head, HEAD);
                }
            },
        );
        assert!(ended.made > 50 && ended.most <= 50, "{}", ended.words());
    }
}
