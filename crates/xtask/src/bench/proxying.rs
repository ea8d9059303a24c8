//! What a request costs in the proxy, and its p99 at a fixed rate, beside haproxy in front of the same Pods.
//!
//! Either has the same two Pods behind it. The load is an open loop over kept connections: a request's time counts from the
//! moment at which it was due, so a stall is seen by all that wait behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::go::{self, Hello};
use super::process::{Process, cpu_seconds, until};
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "proxy",
    about: "proxy CPU µs a request, and p99 at a fixed rate, HTTP/1.1 keep-alive",
    peer: "haproxy",
    bar: "≤ 1.2 ×",
    run,
};

const CONNECTIONS: u32 = 16;
const PER_SECOND: u32 = 3000;
/// How long the load lasts on either side in each round.
const SECONDS: u32 = 2;
/// Where `examples/hello` listens.
const POD_PORT: u16 = 8080;
const HAPROXY_PORT: u16 = 18090;
const LIMIT: Duration = Duration::from_secs(20);

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let hello = Hello::copy(sandbox.work("hello")?)?;
    sandbox.ok(["up", hello.path()?, "--name", "hello", "--replicas", "2"])?;
    let proxy = sandbox.proxy_pid()?.as_raw() as u32;
    let gantry = Entry { address: sandbox.address("hello")?, inside: None };
    let haproxy = Haproxy::start(&sandbox);
    let mut alive = haproxy.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}"));
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    load(&gantry, 1, &mut Samples::default())?;
    if let (Ok(haproxy), Ok(())) = (&haproxy, &alive) {
        alive = load(&haproxy.entry, 1, &mut Samples::default()).map(drop);
    }
    for _ in 0..setting.rounds {
        ours.round(&gantry, proxy)?;
        if let (Ok(haproxy), Ok(())) = (&haproxy, &alive) {
            alive = theirs.round(&haproxy.entry, haproxy.server.pid());
        }
    }
    drop(haproxy);
    sandbox.end()?;
    let p99 = alive.as_ref().map(|()| theirs.p99.median()).map_err(|error| anyhow::anyhow!("{error:#}"));
    let peer = alive.map(|()| theirs.cpu.median());
    let cpu = Row::compare(
        "proxy CPU a request, HTTP/1.1 keep-alive",
        "µs",
        ours.cpu.median(),
        &peer,
        Bar::ratio(1.2),
    );
    let about = format!("proxy p99 at {PER_SECOND} requests a second, HTTP/1.1 keep-alive");
    Ok(vec![cpu, Row::compare(&about, "ms", ours.p99.median(), &p99, Bar::ratio(1.2))])
}

/// Where a proxy listens.
pub(super) struct Entry {
    pub(super) address: SocketAddr,
    /// The network namespace, when it is another one than the figure's.
    pub(super) inside: Option<PathBuf>,
}

impl Entry {
    fn connect(&self) -> Result<TcpStream> {
        let address = self.address;
        self.visit(move || TcpStream::connect(address).with_context(|| format!("connect to {address}")))
    }

    /// Does something on a thread that is in the namespace; a socket stays in it.
    fn visit<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let Some(path) = self.inside.clone() else { return work() };
        let visitor = std::thread::spawn(move || {
            let namespace = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter {}", path.display()))?;
            work()
        });
        visitor.join().unwrap_or_else(|_| bail!("a visitor panicked"))
    }
}

/// What the rounds of one side gave.
#[derive(Default)]
pub(super) struct Side {
    /// Microseconds a request.
    pub(super) cpu: Samples,
    /// Milliseconds, one value a round.
    pub(super) p99: Samples,
}

impl Side {
    pub(super) fn round(&mut self, entry: &Entry, pid: u32) -> Result<()> {
        let mut times = Samples::default();
        let before = cpu_seconds(pid)?;
        let requests = load(entry, SECONDS, &mut times)?;
        let used = cpu_seconds(pid)? - before;
        self.cpu.push(used * 1e6 / f64::from(requests));
        self.p99.push(times.p99());
        Ok(())
    }
}

/// Sends requests at the fixed rate; how many. One that fails ends it.
pub(super) fn load(entry: &Entry, seconds: u32, times: &mut Samples) -> Result<u32> {
    let streams = (0..CONNECTIONS).map(|_| entry.connect()).collect::<Result<Vec<_>>>()?;
    let each = PER_SECOND / CONNECTIONS * seconds;
    let gap = Duration::from_secs(1) * CONNECTIONS / PER_SECOND;
    let start = Instant::now() + Duration::from_millis(20);
    let results: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let client = |(number, stream)| {
            // They are spread over the gap, so that not all are due at the same moment.
            let first = start + gap * number / CONNECTIONS;
            scope.spawn(move || connection(stream, first, gap, each))
        };
        let clients: Vec<_> = (0..CONNECTIONS).zip(streams).map(client).collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
            .collect()
    });
    for result in results {
        result?.into_iter().for_each(|time| times.push_milliseconds(time));
    }
    Ok(each * CONNECTIONS)
}

fn connection(stream: TcpStream, first: Instant, gap: Duration, count: u32) -> Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut reader = BufReader::new(stream);
    let mut times = Vec::with_capacity(count as usize);
    let mut line = String::new();
    for number in 0..count {
        let due = first + gap * number;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        reader.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut length = 0;
        let mut is_first = true;
        loop {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "the proxy closed the connection");
            if is_first {
                ensure!(line.contains(" 200 "), "the proxy answered {line:?}");
                is_first = false;
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().context("a length that is no number")?;
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        times.push(due.elapsed());
    }
    Ok(times)
}

/// haproxy in front of the same two Pods, in the namespace between them and the host: what is compared is the proxy, not
/// the way to the backends.
struct Haproxy {
    server: Process,
    entry: Entry,
}

impl Haproxy {
    fn start(sandbox: &Sandbox) -> Result<Self> {
        let folder = sandbox.work("haproxy")?;
        let address = SocketAddr::from(([127, 0, 0, 1], HAPROXY_PORT));
        let mut config = format!(
            "global\n  nbthread 2\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
             option http-keep-alive\n  http-reuse always\nfrontend in\n  bind {address}\n  default_backend out\nbackend out\n  balance random(2)\n"
        );
        let pods = sandbox.get("/api/v1/namespaces/default/pods")?;
        for (number, pod) in pods["items"].as_array().into_iter().flatten().enumerate() {
            let ip = pod["status"]["podIP"].as_str().context("a Pod without an address")?;
            config.push_str(&format!("  server s{number} {ip}:{POD_PORT}\n"));
        }
        let path = folder.join("haproxy.cfg");
        std::fs::write(&path, config)?;
        let program = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists());
        let namespace = sandbox.state().join("run/netns/router");
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", namespace.display()));
        command.arg(program.unwrap_or("haproxy")).arg("-db").arg("-f").arg(&path);
        let server = Process::start("haproxy", &folder, command)?;
        let entry = Entry { address, inside: Some(namespace) };
        let log = folder.join("haproxy.log");
        until("haproxy", LIMIT, || entry.visit(move || Ok(go::get(address))).ok().flatten())
            .with_context(|| super::peers::tail(&log))?;
        Ok(Self { server, entry })
    }
}
