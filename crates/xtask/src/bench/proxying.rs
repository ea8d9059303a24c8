//! What a request costs in the proxy, and its p99 at a fixed rate, beside haproxy in front of the same Go program.
//!
//! Either side has two backends. The load is an open loop over kept connections: a request's time counts from the
//! moment at which it was due, so a stall is seen by all that wait behind it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
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
const PORTS: [u16; 2] = [18081, 18082];
const HAPROXY_PORT: u16 = 18090;
const LIMIT: Duration = Duration::from_secs(20);

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let hello = Hello::copy(sandbox.work("hello")?)?;
    sandbox.ok(["up", hello.path()?, "--name", "hello", "--replicas", "2"])?;
    let address = sandbox.address("hello")?;
    let proxy = sandbox.proxy_pid()?.as_raw() as u32;
    let haproxy = Haproxy::start(&sandbox);
    let mut alive = haproxy.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}"));
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    load(address, 1, &mut Samples::default())?;
    if let (Ok(_), Ok(())) = (&haproxy, &alive) {
        alive = load(Haproxy::ADDRESS, 1, &mut Samples::default()).map(drop);
    }
    for _ in 0..setting.rounds {
        ours.round(address, proxy)?;
        if let (Ok(haproxy), Ok(())) = (&haproxy, &alive) {
            alive = theirs.round(Haproxy::ADDRESS, haproxy.server.pid());
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

/// What the rounds of one side gave.
#[derive(Default)]
struct Side {
    /// Microseconds a request.
    cpu: Samples,
    /// Milliseconds, one value a round.
    p99: Samples,
}

impl Side {
    fn round(&mut self, address: SocketAddr, pid: u32) -> Result<()> {
        let mut times = Samples::default();
        let before = cpu_seconds(pid)?;
        let requests = load(address, SECONDS, &mut times)?;
        let used = cpu_seconds(pid)? - before;
        self.cpu.push(used * 1e6 / f64::from(requests));
        self.p99.push(times.p99());
        Ok(())
    }
}

/// Sends requests at the fixed rate; how many. One that fails ends it.
fn load(address: SocketAddr, seconds: u32, times: &mut Samples) -> Result<u32> {
    let each = PER_SECOND / CONNECTIONS * seconds;
    let gap = Duration::from_secs(1) * CONNECTIONS / PER_SECOND;
    let start = Instant::now() + Duration::from_millis(20);
    let results: Vec<Result<Vec<Duration>>> = std::thread::scope(|scope| {
        let client = |number: u32| {
            // They are spread over the gap, so that not all are due at the same moment.
            let first = start + gap * number / CONNECTIONS;
            scope.spawn(move || connection(address, first, gap, each))
        };
        let clients: Vec<_> = (0..CONNECTIONS).map(client).collect();
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

fn connection(address: SocketAddr, first: Instant, gap: Duration, count: u32) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect(address)?;
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

/// haproxy in front of two processes of the same program.
struct Haproxy {
    server: Process,
    _backends: Vec<Process>,
}

impl Haproxy {
    const ADDRESS: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), HAPROXY_PORT);

    fn start(sandbox: &Sandbox) -> Result<Self> {
        let folder = sandbox.work("haproxy")?;
        let mut backends = Vec::new();
        let mut config = format!(
            "global\n  nbthread 2\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
             option http-keep-alive\n  http-reuse always\nfrontend in\n  bind 127.0.0.1:{HAPROXY_PORT}\n  default_backend out\nbackend out\n  balance random(2)\n"
        );
        for port in PORTS {
            let hello = Hello::copy(sandbox.work(&format!("backend-{port}"))?)?.on_port(port)?;
            hello.build()?;
            let name = format!("backend-{port}");
            backends.push(Process::start(&name, &folder, Command::new(hello.binary()))?);
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            until(&name, LIMIT, || go::get(address))?;
            config.push_str(&format!("  server s{port} 127.0.0.1:{port}\n"));
        }
        let path = folder.join("haproxy.cfg");
        std::fs::write(&path, config)?;
        let program = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"]
            .into_iter()
            .find(|path| std::path::Path::new(path).exists());
        let mut command = Command::new(program.unwrap_or("haproxy"));
        command.arg("-db").arg("-f").arg(&path);
        let server = Process::start("haproxy", &folder, command)?;
        let log = folder.join("haproxy.log");
        until("haproxy", LIMIT, || go::get(Self::ADDRESS)).with_context(|| super::peers::tail(&log))?;
        Ok(Self { server, _backends: backends })
    }
}
