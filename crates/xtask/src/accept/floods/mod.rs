//! Rung `floods`: each listener and a Service under 20,000 silent, slow and half-open connections of one user, and of one
//! Pod. Everybody else's requests are answered, and not later than by haproxy with limits by source in the same run.
//!
//! The full form floods either side twice, in the order ours, haproxy, haproxy, ours, and compares all requests of one
//! with all of the other: what else the machine does hits both.

mod asked;
mod haproxy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use self::asked::{Answers, Asked, Request};
use self::haproxy::Front;
use super::{Seen, Setting, fixtures};
use crate::bench::api::Api;
use crate::flood::{self, Arguments, Counts, Kind};
use crate::sandbox::Sandbox;

/// How long a flood lasts, in the long and in the short form.
const SECONDS: u64 = 60;
const SECONDS_SHORT: u64 = 8;
/// Connections of all attackers of one flood together: so many are wanted at one time, and in the full form so many have
/// to be tried.
const CONNECTIONS: u64 = 20_000;
const KINDS: [Kind; 3] = [Kind::Silent, Kind::Slow, Kind::HalfOpen];
/// Percent of one processor for all attackers of one flood together.
const CPU: u64 = 30;
/// Where an attacker on loopback comes from: haproxy tells peers by their addresses only.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// `nobody`.
const ATTACKER_UID: u32 = 65534;
const POD_PORT: u16 = 8080;

/// What is flooded by whom, and asked by everybody else.
struct Round {
    name: &'static str,
    flooded: SocketAddr,
    asked: Asked,
    attackers: Attackers,
    /// haproxy's part.
    front: Front,
}

#[derive(Clone)]
enum Attackers {
    /// A user on loopback.
    User,
    /// The Pod of this network namespace.
    Pod(PathBuf),
}

/// What one side did in all its turns.
#[derive(Default)]
struct Side {
    answers: Answers,
    counts: Counts,
}

impl Side {
    fn words(&self) -> String {
        format!("{} ({})", self.answers.words(), self.counts.words())
    }
}

pub(super) fn run(setting: &Setting) -> Result<Seen> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    fixtures::up_one(&sandbox, &fixtures::FIXTURES[0], 1)?;
    let mut findings = Vec::new();
    let mut figures = Vec::new();
    for round in rounds(&sandbox, setting.short)? {
        if !setting.wants(round.name) {
            continue;
        }
        let (ours, theirs) = play(&sandbox, &round, setting.short)?;
        let mut words = format!("{}: {}", round.name, ours.words());
        if let Some(theirs) = &theirs {
            words.push_str(&format!("; haproxy: {}", theirs.words()));
        }
        crate::say(&format!("  {words}"));
        findings.extend(judge(&round, &ours, theirs.as_ref()));
        figures.push(words);
    }
    sandbox.end()?;
    let figure = if findings.is_empty() { figures.join("; ") } else { findings.join("; ") };
    Ok(Seen::new(findings.is_empty() && !figures.is_empty(), figure))
}

/// What is not as wanted.
fn judge(round: &Round, ours: &Side, theirs: Option<&Side>) -> Vec<String> {
    let mut findings = Vec::new();
    if !ours.answers.lost.is_empty() || ours.answers.count == 0 {
        findings.push(format!("{}: {}", round.name, ours.answers.words()));
    }
    let Some(theirs) = theirs else { return findings };
    let (p99, bar) = (ours.answers.milliseconds.p99(), theirs.answers.milliseconds.p99());
    // A figure that is none is no proof.
    if p99.is_nan() || bar.is_nan() || p99 > bar {
        findings.push(format!("{}: p99 {p99:.1} ms, haproxy's {bar:.1}", round.name));
    }
    for (side, who) in [(ours, "ours"), (theirs, "haproxy")] {
        if side.counts.tried < CONNECTIONS {
            findings.push(format!("{}: too small a flood of {who}: {}", round.name, side.counts.words()));
        }
    }
    findings
}

fn rounds(sandbox: &Sandbox, short: bool) -> Result<Vec<Round>> {
    let endpoint = |name: &str| -> Result<SocketAddr> { Ok(sandbox.endpoint(name)?.parse()?) };
    let api = Api::of_kubeconfig(&sandbox.state().join("kubeconfig"))?;
    let pods = sandbox.get("/api/v1/namespaces/default/pods")?;
    let pod = &pods["items"][0];
    let uid = pod["metadata"]["uid"].as_str().context("a Pod without a uid")?;
    let ip: IpAddr = pod["status"]["podIP"].as_str().context("a Pod without an address")?.parse()?;
    let namespaces = sandbox.state().join("run/netns");
    let service = sandbox.address(fixtures::FIXTURES[0].name)?;
    let (registry, console) = (endpoint("registry")?, endpoint("console")?);
    let plain = |address, path| Asked { request: Request::Plain { address, path }, inside: None };
    let kubernetes = || Asked { request: Request::Kubernetes(api.clone()), inside: None };
    let alone = || Front { inside: None, answers: haproxy::Answers::Own };
    let tls = |inside| Front { inside, answers: haproxy::Answers::Tls(api.clone()) };
    let router = || Some(namespaces.join("router"));
    let pod = SocketAddr::new(ip, POD_PORT);
    let before_pod = || Front { inside: router(), answers: haproxy::Answers::Pod(pod) };
    let round = |name, flooded, asked, attackers, front| Round { name, flooded, asked, attackers, front };
    let user = |name, flooded, asked, front| round(name, flooded, asked, Attackers::User, front);
    let mut rounds = vec![
        user("registry-by-user", registry, plain(registry, "/v2/"), alone()),
        user("kubernetes-by-user", endpoint("kubernetes")?, kubernetes(), tls(None)),
        user("service-by-user", service, plain(service, "/"), before_pod()),
    ];
    if short {
        return Ok(rounds);
    }
    let from_pod = || Attackers::Pod(namespaces.join(uid));
    let cluster = sandbox.get("/api/v1/namespaces/default/services/hello")?;
    let port = cluster["spec"]["ports"][0]["port"].as_u64().context("a Service without a port")?;
    let inside = SocketAddr::new(cluster_ip(&cluster)?, u16::try_from(port)?);
    let api_inside = cluster_ip(&sandbox.get("/api/v1/namespaces/default/services/kubernetes")?)?;
    let api_inside = SocketAddr::new(api_inside, 443);
    rounds.push(user("console-by-user", console, plain(console, "/healthz"), alone()));
    rounds.push(round("service-by-pod", inside, plain(service, "/"), from_pod(), before_pod()));
    rounds.push(round("kubernetes-by-pod", api_inside, kubernetes(), from_pod(), tls(router())));
    Ok(rounds)
}

fn cluster_ip(service: &serde_json::Value) -> Result<IpAddr> {
    Ok(service["spec"]["clusterIP"].as_str().context("a Service without an address")?.parse()?)
}

/// Floods either side; haproxy only in the full form.
fn play(sandbox: &Sandbox, round: &Round, short: bool) -> Result<(Side, Option<Side>)> {
    let mut ours = Side::default();
    if short {
        turn(sandbox, round, None, &mut ours, SECONDS_SHORT)?;
        return Ok((ours, None));
    }
    let mut theirs = Side::default();
    for is_ours in [true, false, false, true] {
        if is_ours {
            turn(sandbox, round, None, &mut ours, SECONDS)?;
        } else {
            turn(sandbox, round, Some(&round.front), &mut theirs, SECONDS)?;
        }
    }
    Ok((ours, Some(theirs)))
}

/// Floods once, and asks meanwhile.
fn turn(
    sandbox: &Sandbox,
    round: &Round,
    front: Option<&Front>,
    side: &mut Side,
    seconds: u64,
) -> Result<()> {
    let folder = sandbox.work("floods")?;
    let haproxy = front.map(|front| haproxy::start(sandbox, front)).transpose()?;
    let flooded = match (front, &round.attackers) {
        (None, _) => round.flooded,
        // The whole range of Services is the router's own.
        (Some(_), Attackers::Pod(_)) => SocketAddr::new(round.flooded.ip(), haproxy::PORT),
        (Some(_), Attackers::User) => SocketAddr::from((Ipv4Addr::LOCALHOST, haproxy::PORT)),
    };
    let mut attackers = Vec::new();
    for kind in KINDS {
        let one = Arguments::new(flooded, kind, seconds).part(KINDS.len(), CONNECTIONS, CPU);
        let inside = match &round.attackers {
            Attackers::Pod(netns) => Some(netns),
            Attackers::User => front.and_then(|front| front.inside.as_ref()),
        };
        let one = inside.map_or(one.clone(), |netns| one.inside(netns.clone()));
        let one = match round.attackers {
            Attackers::Pod(_) => one,
            Attackers::User => one.of_user(ATTACKER_UID, SocketAddr::new(ATTACKER.into(), 0)),
        };
        attackers.push(flood::start(&one, &folder.join(format!("{}-{kind:?}.log", round.name)))?);
    }
    let answers = front.map_or_else(|| round.asked.clone(), Front::asked).ask(Duration::from_secs(seconds));
    let mut counts = Counts::default();
    for attacker in attackers {
        counts = counts.and(attacker.end()?);
    }
    drop(haproxy);
    let answers = answers?;
    let who = if front.is_some() { "haproxy" } else { "ours" };
    crate::say(&format!("    {}, {who}: {}; {}", round.name, answers.words(), counts.words()));
    side.answers.add(answers);
    // What was held at most is of the larger turn.
    let most = side.counts.most.max(counts.most);
    side.counts = Counts { most, ..side.counts.and(counts) };
    Ok(())
}
