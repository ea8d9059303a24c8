//! Rung `floods`: each listener and a Service under 20,000 silent, slow and half-open connections of one user, and of one
//! Pod. Everybody else's requests are answered, and not later than by haproxy with limits by source in the same run.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::CloneFlags;

use super::{Seen, Setting, fixtures};
use crate::bench::api::Api;
use crate::bench::peers::tail;
use crate::bench::process::{Process, until};
use crate::bench::samples::Samples;
use crate::flood::{self, Arguments, Kind};
use crate::sandbox::Sandbox;

/// How long a flood lasts, in the long and in the short form.
const SECONDS: u64 = 60;
const SECONDS_SHORT: u64 = 8;
/// Connections of all attackers of one flood together.
const CONNECTIONS: u64 = 20_000;
const KINDS: [Kind; 3] = [Kind::Silent, Kind::Slow, Kind::HalfOpen];
/// Percent of one processor for all attackers of one flood together.
const CPU: u64 = 30;
/// Requests a second of everybody else, each on a connection of its own.
const PER_SECOND: u64 = 50;
/// A request that takes longer is lost.
const LIMIT: Duration = Duration::from_secs(10);
/// Where an attacker on loopback comes from: haproxy tells peers by their addresses only.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// `nobody`.
const ATTACKER_UID: u32 = 65534;
/// What haproxy lets one source have, of its own connections in all.
const HAPROXY_CONNECTIONS: u32 = 4000;
const HAPROXY_SOURCE: u32 = 512;
const HAPROXY_PORT: u16 = 18080;
const POD_PORT: u16 = 8080;

/// Whom everybody else asks, and how.
#[derive(Clone)]
enum Asked {
    /// `GET PATH`, in a network namespace of its own if there is one.
    Plain { address: SocketAddr, path: &'static str, inside: Option<PathBuf> },
    /// `GET /version` over TLS.
    Kubernetes(Api),
}

/// What a flood goes to.
struct Round {
    name: String,
    attacked: SocketAddr,
    asked: Asked,
    /// The attackers' network namespace, when they are a Pod; else they are a user.
    attackers: Attackers,
}

#[derive(Clone)]
enum Attackers {
    User { inside: Option<PathBuf> },
    Pod(PathBuf),
}

/// What everybody else saw.
#[derive(Default)]
struct Answers {
    count: usize,
    milliseconds: Samples,
    lost: Vec<String>,
}

impl Answers {
    fn words(&self) -> String {
        let mut words = format!("{} answers, p99 {:.1} ms", self.count, self.milliseconds.p99());
        if let Some(first) = self.lost.first() {
            words.push_str(&format!(", {} lost: {first}", self.lost.len()));
        }
        words
    }
}

pub(super) fn run(setting: &Setting) -> Result<Seen> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    fixtures::up_one(&sandbox, &fixtures::FIXTURES[0], 1)?;
    let seconds = if setting.short { SECONDS_SHORT } else { SECONDS };
    let mut findings = Vec::new();
    let mut figures = Vec::new();
    for (ours, peer) in rounds(&sandbox, setting.short)? {
        if !setting.wants(&ours.name) {
            continue;
        }
        let answers = play(&sandbox, &ours, seconds)?;
        let mut words = format!("{}: {}", ours.name, answers.words());
        if !answers.lost.is_empty() || answers.count == 0 {
            findings.push(format!("{}: {}", ours.name, answers.words()));
        }
        if let Some(peer) = peer {
            let haproxy = Haproxy::start(&sandbox, &peer)?;
            let theirs = play(&sandbox, &haproxy.round, seconds)?;
            drop(haproxy);
            words.push_str(&format!("; haproxy: {}", theirs.words()));
            let (p99, bar) = (answers.milliseconds.p99(), theirs.milliseconds.p99());
            if p99 > bar {
                findings.push(format!("{}: p99 {p99:.1} ms, haproxy's {bar:.1}", ours.name));
            }
        }
        crate::say(&format!("  {words}"));
        figures.push(words);
    }
    sandbox.end()?;
    let figure = if findings.is_empty() { figures.join("; ") } else { findings.join("; ") };
    Ok(Seen::new(findings.is_empty() && !figures.is_empty(), figure))
}

/// What haproxy stands in front of.
struct Peer {
    /// Its network namespace.
    inside: Option<PathBuf>,
    /// The Pod that it leads to; without one it answers itself.
    backend: Option<SocketAddr>,
    name: String,
}

fn rounds(sandbox: &Sandbox, short: bool) -> Result<Vec<(Round, Option<Peer>)>> {
    let user = Attackers::User { inside: None };
    let endpoint = |name: &str| -> Result<SocketAddr> { Ok(sandbox.endpoint(name)?.parse()?) };
    let api = Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))?;
    let pods = sandbox.get("/api/v1/namespaces/default/pods")?;
    let pod = &pods["items"][0];
    let uid = pod["metadata"]["uid"].as_str().context("a Pod without a uid")?;
    let ip: IpAddr = pod["status"]["podIP"].as_str().context("a Pod without an address")?.parse()?;
    let namespaces = sandbox.state().join("run/netns");
    let router = namespaces.join("router");
    let service = sandbox.address(fixtures::FIXTURES[0].name)?;
    let plain = |address, path| Asked::Plain { address, path, inside: None };
    let round = |name: &str, attacked, asked, attackers: &Attackers| Round {
        name: name.to_owned(),
        attacked,
        asked,
        attackers: attackers.clone(),
    };
    let alone =
        |name: &str| Some(Peer { inside: None, backend: None, name: name.to_owned() }).filter(|_| !short);
    let (registry, console, kubernetes) =
        (endpoint("registry")?, endpoint("console")?, endpoint("kubernetes")?);
    let before_pod = Peer {
        inside: Some(router.clone()),
        backend: Some(SocketAddr::new(ip, POD_PORT)),
        name: "haproxy-service".to_owned(),
    };
    let mut rounds = vec![
        (round("registry-by-user", registry, plain(registry, "/v2/"), &user), alone("haproxy-registry")),
        (round("kubernetes-by-user", kubernetes, Asked::Kubernetes(api.clone()), &user), None),
        (round("service-by-user", service, plain(service, "/"), &user), Some(before_pod).filter(|_| !short)),
    ];
    if short {
        return Ok(rounds);
    }
    let from_pod = Attackers::Pod(namespaces.join(uid));
    let cluster = sandbox.get("/api/v1/namespaces/default/services/hello")?;
    let spec = &cluster["spec"];
    let cluster_ip: IpAddr = spec["clusterIP"].as_str().context("a Service without an address")?.parse()?;
    let port = spec["ports"][0]["port"].as_u64().context("a Service without a port")?;
    let inside = SocketAddr::new(cluster_ip, u16::try_from(port)?);
    let api_inside: IpAddr =
        sandbox.get("/api/v1/namespaces/default/services/kubernetes")?["spec"]["clusterIP"]
            .as_str()
            .context("kubernetes.default has no address")?
            .parse()?;
    rounds.push((
        round("console-by-user", console, plain(console, "/healthz"), &user),
        alone("haproxy-console"),
    ));
    rounds.push((round("service-by-pod", inside, plain(service, "/"), &from_pod), None));
    let api_inside = SocketAddr::new(api_inside, 443);
    rounds.push((round("kubernetes-by-pod", api_inside, Asked::Kubernetes(api), &from_pod), None));
    Ok(rounds)
}

/// Floods, and asks meanwhile.
fn play(sandbox: &Sandbox, round: &Round, seconds: u64) -> Result<Answers> {
    let folder = sandbox.work("floods")?;
    let mut attackers = Vec::new();
    for kind in KINDS {
        let one = Arguments::new(round.attacked, kind, seconds).part(KINDS.len(), CONNECTIONS, CPU);
        let one = match &round.attackers {
            Attackers::Pod(netns) => one.inside(netns.clone()),
            Attackers::User { inside } => {
                let one = one.of_user(ATTACKER_UID, SocketAddr::new(ATTACKER.into(), 0));
                match inside {
                    Some(netns) => one.inside(netns.clone()),
                    None => one,
                }
            }
        };
        attackers.push(flood::start(&one, &folder.join(format!("{}-{kind:?}.log", round.name)))?);
    }
    let answers = ask(&round.asked, Duration::from_secs(seconds));
    for mut attacker in attackers {
        let status = attacker.wait().context("wait for an attacker")?;
        ensure!(status.success(), "an attacker ended: {status}; {}", said(&folder)?);
    }
    crate::say(&format!("  {}: attackers: {}", round.name, said(&folder)?));
    answers
}

/// What the attackers of the last flood said of themselves.
fn said(folder: &Path) -> Result<String> {
    let mut said = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        said.push(std::fs::read_to_string(&path)?.trim().to_owned());
        std::fs::remove_file(path)?;
    }
    Ok(said.join(" / "))
}

/// Requests at a fixed rate for as long as a flood lasts; each is timed from when it was due.
fn ask(asked: &Asked, time: Duration) -> Result<Answers> {
    const ASKERS: u32 = 4;
    let gap = Duration::from_secs(1) * ASKERS / PER_SECOND as u32;
    let start = Instant::now();
    let asker = |number: u32| {
        let asked = asked.clone();
        std::thread::spawn(move || -> Result<Answers> {
            if let Asked::Plain { inside: Some(netns), .. } = &asked {
                nix::sched::setns(std::fs::File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
            }
            let mut answers = Answers::default();
            let first = start + gap * number / ASKERS;
            let mut turn = 0;
            while start.elapsed() < time {
                let due = first + gap * turn;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                match once(&asked) {
                    Ok(()) => {
                        answers.count += 1;
                        answers.milliseconds.push_milliseconds(due.elapsed());
                    }
                    Err(error) => answers.lost.push(format!("{error:#}")),
                }
                turn += 1;
            }
            Ok(answers)
        })
    };
    let askers: Vec<_> = (0..ASKERS).map(asker).collect();
    let mut all = Answers::default();
    for asker in askers {
        let Ok(answers) = asker.join() else { bail!("an asker panicked") };
        let answers = answers?;
        all.count += answers.count;
        all.milliseconds.extend(answers.milliseconds);
        all.lost.extend(answers.lost);
    }
    Ok(all)
}

/// One request on a connection of its own; any answer that is no server's error.
fn once(asked: &Asked) -> Result<()> {
    match asked {
        Asked::Kubernetes(api) => {
            let (status, _) = api.connect()?.send("GET", "/version", "", "")?;
            ensure!(status == 200, "status {status}");
        }
        Asked::Plain { address, path, .. } => {
            let mut stream = TcpStream::connect_timeout(address, LIMIT).context("connect")?;
            stream.set_read_timeout(Some(LIMIT))?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).context("write")?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).context("read")?;
            let status = answer.get(9..12).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
            ensure!(matches!(status.chars().next(), Some('2' | '4')), "status {status:?}");
        }
    }
    Ok(())
}

/// haproxy with a limit for each source.
struct Haproxy {
    _server: Process,
    round: Round,
}

impl Haproxy {
    fn start(sandbox: &Sandbox, peer: &Peer) -> Result<Self> {
        let folder = sandbox.work("haproxy")?;
        let address = SocketAddr::from(([127, 0, 0, 1], HAPROXY_PORT));
        let answer = match peer.backend {
            Some(backend) => format!("  default_backend out\nbackend out\n  server pod {backend}\n"),
            None => "  http-request return status 200 content-type text/plain string ok\n".to_owned(),
        };
        let config = format!(
            "global\n  nbthread 2\n  maxconn {HAPROXY_CONNECTIONS}\ndefaults\n  mode http\n  timeout connect 5s\n  \
             timeout client 60s\n  timeout server 60s\n  timeout http-request 30s\n  http-reuse always\nfrontend in\n  bind {address}\n  \
             stick-table type ip size 100k expire 60s store conn_cur\n  tcp-request connection track-sc0 src\n  \
             tcp-request connection reject if {{ sc0_conn_cur gt {HAPROXY_SOURCE} }}\n{answer}"
        );
        let path = folder.join("haproxy.cfg");
        std::fs::write(&path, config)?;
        let program = ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"]
            .into_iter()
            .find(|path| Path::new(path).exists());
        let program = program.unwrap_or("haproxy");
        let mut command = match &peer.inside {
            Some(netns) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", netns.display())).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("-db").arg("-f").arg(&path);
        let server = Process::start("haproxy", &folder, command)?;
        let asked = Asked::Plain { address, path: "/", inside: peer.inside.clone() };
        let log = folder.join("haproxy.log");
        until("haproxy", LIMIT, || {
            let one = ask(&asked, Duration::from_millis(1)).ok()?;
            (one.lost.is_empty() && one.count > 0).then_some(())
        })
        .with_context(|| tail(&log))?;
        let attackers = Attackers::User { inside: peer.inside.clone() };
        Ok(Self {
            _server: server,
            round: Round { name: peer.name.clone(), attacked: address, asked, attackers },
        })
    }
}
