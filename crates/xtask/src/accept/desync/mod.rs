//! Rung `desync`: requests and answers on which two parsers could disagree, sent raw through both kinds of Service, in
//! front of net/http, hyper and nginx, beside haproxy in the same run.
//!
//! What the client was answered is what the backend saw, request by request, and nothing more: else something was
//! smuggled. Where haproxy refuses, so does gantry. A dumb relay beside them has to be caught.

pub(super) mod backend;
pub(super) mod cases;
pub(super) mod client;
mod dumb;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use self::backend::Backend;
use self::cases::{Case, Expected, Piece};
use self::client::{Answer, Client};
use super::{Seen, Setting};
use crate::bench::process::{self, Process};
use crate::sandbox::Sandbox;

/// The host's own address in this rung's namespace: endpoints may not be on loopback.
const HOST: [u8; 4] = [198, 51, 100, 1];
const NET_HTTP: u16 = 9101;
const HYPER: u16 = 9102;
const NGINX: u16 = 9103;
const SCRIPTED: u16 = 9104;
const HAPROXY_REQUESTS: u16 = 9201;
const HAPROXY_ANSWERS: u16 = 9202;
const DUMB: u16 = 9203;
/// Findings that are told in full.
const TOLD_MAX: usize = 12;

/// A way to a backend.
struct Front {
    name: &'static str,
    address: SocketAddr,
    /// Index of the backend whose list counts.
    backend: usize,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A Service on which HTTP is spoken.
    Http,
    /// A Service that relays bytes.
    Relay,
    Haproxy,
    Dumb,
}

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let folder = crate::tidy::root()?.join("tests/desync");
    let wanted = |case: &Case| setting.wants(&case.name);
    let requests: Vec<Case> = cases::read(&folder.join("requests.txt"))?.into_iter().filter(wanted).collect();
    let answers: Vec<Case> = cases::read(&folder.join("answers.txt"))?.into_iter().filter(wanted).collect();
    let sandbox = Sandbox::new(&setting.gantry)?;
    let mut ip = Command::new("ip");
    ip.args(["address", "add", "198.51.100.1/32", "dev", "lo"]);
    process::ok(ip)?;
    let mut report = Report::default();
    let _haproxy = haproxy(&sandbox, at(NET_HTTP))?;
    request_side(&sandbox, &requests, &mut report)?;
    answer_side(&sandbox, &answers, &mut report)?;
    sandbox.end()?;
    let figure = format!(
        "{} requests and {} answers: {} sent, {} of them refused (haproxy: {}), nothing smuggled to net/http, hyper or \
         nginx, {} stricter than haproxy, a dumb relay was caught {} times{}",
        requests.len(),
        answers.len(),
        report.sent,
        report.refused,
        report.refused_by_haproxy,
        report.stricter,
        report.caught,
        report.words(),
    );
    Ok(Seen::new(report.findings.is_empty() && (report.caught > 0 || setting.only.is_some()), figure))
}

#[derive(Default)]
struct Report {
    sent: usize,
    refused: usize,
    refused_by_haproxy: usize,
    stricter: usize,
    caught: usize,
    findings: Vec<String>,
}

impl Report {
    fn finding(&mut self, text: String) {
        crate::say(&format!("  {text}"));
        self.findings.push(text);
    }

    fn words(&self) -> String {
        let told: Vec<_> = self.findings.iter().take(TOLD_MAX).map(String::as_str).collect();
        if told.is_empty() {
            String::new()
        } else {
            format!("; {} FINDINGS: {}", self.findings.len(), told.join("; "))
        }
    }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((HOST, port))
}

/// What a client of a case was answered, by front and case.
type Answered = BTreeMap<(&'static str, String), Vec<Answer>>;

fn request_side(sandbox: &Sandbox, cases: &[Case], report: &mut Report) -> Result<()> {
    let nginx = sandbox.work("nginx")?;
    let backends = [
        Backend::net_http(at(NET_HTTP), &sandbox.work("recorder")?)?,
        Backend::hyper(at(HYPER))?,
        Backend::nginx(at(NGINX), &nginx)?,
    ];
    for backend in &backends {
        backend.ready()?;
    }
    process::until("haproxy", std::time::Duration::from_secs(30), || {
        backend::get(at(HAPROXY_REQUESTS), "/ready").ok()
    })?;
    dumb::start(at(DUMB), backends[0].address)?;
    let root = crate::tidy::root()?;
    let program = root.join("tests/programs/recorder");
    sandbox.ok(["up", program.to_str().context("the project's folder is no text")?, "--name", "recorder"])?;
    apply(sandbox)?;
    let seen_by_pod = Backend::pod(sandbox.address("pod-log")?);
    let service = |name, backend, kind| {
        Ok::<_, anyhow::Error>(Front { name, address: sandbox.address(name)?, backend, kind })
    };
    let fronts = [
        service("l7-net-http", 0, Kind::Http)?,
        service("l7-hyper", 1, Kind::Http)?,
        service("l7-nginx", 2, Kind::Http)?,
        service("seen", 3, Kind::Http)?,
        service("relay-net-http", 0, Kind::Relay)?,
        service("relay-hyper", 1, Kind::Relay)?,
        service("relay-nginx", 2, Kind::Relay)?,
        // What haproxy refuses for its bytes it refuses each time; a connection of its backend that closed under it is no
        // refusal.
        Front { name: "haproxy", address: at(HAPROXY_REQUESTS), backend: 0, kind: Kind::Haproxy },
        Front { name: "haproxy-again", address: at(HAPROXY_REQUESTS), backend: 0, kind: Kind::Haproxy },
        Front { name: "haproxy-thrice", address: at(HAPROXY_REQUESTS), backend: 0, kind: Kind::Haproxy },
        Front { name: "dumb", address: at(DUMB), backend: 0, kind: Kind::Dumb },
    ];
    let mut answered = Answered::new();
    for case in cases {
        for front in &fronts {
            let mut client = Client::connect(front.address)?;
            client.send(&case.bytes(front.name)?);
            client.finish();
            let answers = match client.answers() {
                Ok(answers) => answers,
                Err(error) => {
                    report.finding(format!("{} by {}: {error:#}", case.name, front.name));
                    continue;
                }
            };
            report.sent += 1;
            answered.insert((front.name, case.name.clone()), answers);
        }
    }
    let mut seen: Vec<HashMap<String, Vec<String>>> = Vec::new();
    for backend in backends.iter().chain([&seen_by_pod]) {
        seen.push(by_case(&backend.seen()?));
    }
    for case in cases {
        let of = |front: &Front| -> &[String] {
            let key = format!("{}/{}", front.name, case.name);
            seen[front.backend].get(&key).map_or(&[], Vec::as_slice)
        };
        let haproxies = fronts.iter().filter(|front| front.kind == Kind::Haproxy);
        let by_haproxy = haproxies.map(|front| of(front).len()).max().unwrap_or(0);
        report.refused_by_haproxy += usize::from(by_haproxy == 0);
        for front in &fronts {
            let Some(answers) = answered.get(&(front.name, case.name.clone())) else { continue };
            judge_request(case, front, of(front), answers, by_haproxy, report);
        }
    }
    Ok(())
}

/// `FRONT/CASE` of a line `METHOD …/FRONT/CASE/N`; what has another target (`*`, an authority) is of no case.
fn case_of(line: &str) -> Option<String> {
    let mut parts = line.split_once(' ')?.1.rsplit('/');
    let (_, case, front) = (parts.next()?, parts.next()?, parts.next()?);
    Some(format!("{front}/{case}"))
}

/// Lines by what they are of.
fn by_case(lines: &[String]) -> HashMap<String, Vec<String>> {
    let mut cases: HashMap<String, Vec<String>> = HashMap::new();
    for line in lines {
        if let Some(case) = case_of(line) {
            cases.entry(case).or_default().push(line.clone());
        }
    }
    cases
}

fn judge_request(
    case: &Case,
    front: &Front,
    seen: &[String],
    answers: &[Answer],
    by_haproxy: usize,
    report: &mut Report,
) {
    let own = format!("{}/{}", front.name, case.name);
    let is_own = |saw: &&String| case_of(saw).is_some_and(|of| of == own);
    let said: Vec<&String> = answers.iter().filter_map(|answer| answer.saw.as_ref()).filter(is_own).collect();
    // A backend may finish what the proxy gave up: the last request, if its client was told so or cut off.
    let given_up = answers.last().is_none_or(|last| last.saw.is_none() || !last.whole);
    let same = said.len() <= seen.len() && said.iter().zip(seen).all(|(said, seen)| *said == seen);
    let extra = seen.len().saturating_sub(said.len());
    let smuggled = seen.iter().any(|line| line.ends_with("/smuggled"));
    let honest = same && (extra == 0 || (extra == 1 && given_up)) && !smuggled;
    let what = || format!("{} by {}: answered {said:?}, the backend saw {seen:?}", case.name, front.name);
    match front.kind {
        Kind::Dumb => report.caught += usize::from(!honest),
        // What a relay's backend makes of the bytes is the backend's own reading; but each is answered.
        Kind::Relay if !same || extra > usize::from(given_up) => report.finding(what()),
        Kind::Relay | Kind::Haproxy => {}
        Kind::Http => {
            if !honest {
                report.finding(format!("SMUGGLED {}", what()));
            }
            // Of a request that was given up a backend may have answered the head alone.
            let count = if honest { said.len() } else { seen.len() };
            // haproxy stands in front of net/http, which has a mind of its own too.
            if count > by_haproxy && matches!(front.name, "l7-net-http" | "seen") {
                report.finding(format!("haproxy is stricter ({by_haproxy}): {}", what()));
            }
            let met = match case.expected {
                Expected::Any => true,
                Expected::Refused => count == 0,
                Expected::Requests(wanted) => count == wanted,
                Expected::Passed => false,
            };
            if !met {
                report.finding(format!("not as expected ({:?}): {}", case.expected, what()));
            }
            if front.name == "l7-net-http" {
                report.refused += usize::from(count == 0);
                report.stricter += usize::from(count < by_haproxy);
            }
        }
    }
}

fn answer_side(sandbox: &Sandbox, cases: &[Case], report: &mut Report) -> Result<()> {
    let fronts = [("l7-scripted", sandbox.address("l7-scripted")?), ("haproxy", at(HAPROXY_ANSWERS))];
    let mut answers: HashMap<String, Vec<Piece>> = HashMap::new();
    for case in cases {
        for (front, _) in fronts {
            answers.insert(format!("/{front}/{}/ask", case.name), case.pieces(front)?);
        }
    }
    backend::scripted(at(SCRIPTED), answers)?;
    for (front, address) in fronts {
        process::until(front, std::time::Duration::from_secs(30), || backend::get(address, "/ready").ok())
            .with_context(|| format!("{:?}", backend::get(address, "/ready")))?;
    }
    for case in cases {
        let mut refused = Vec::new();
        for (front, address) in fronts {
            match exchange(case, front, address) {
                Ok(outcome) => {
                    report.sent += 1;
                    refused.push(outcome);
                }
                // Who haproxy gives a wrong answer to is not our business.
                Err(_) if front == "haproxy" => refused.push(false),
                Err(error) => report.finding(format!("answer {}: {error:#}", case.name)),
            }
        }
        let [ours, theirs] = refused[..] else { continue };
        report.refused += usize::from(ours);
        report.refused_by_haproxy += usize::from(theirs);
        report.stricter += usize::from(ours && !theirs);
        if theirs && !ours {
            report.finding(format!("answer {}: haproxy refuses it", case.name));
        }
        let met = match case.expected {
            Expected::Refused => ours,
            Expected::Passed => !ours,
            _ => true,
        };
        if !met {
            report.finding(format!("answer {}: not as expected ({:?})", case.name, case.expected));
        }
    }
    Ok(())
}

/// Asks for a case's answer, and then for others on the same and on new connections; whether the answer was refused. An
/// error if somebody gets what is not his.
fn exchange(case: &Case, front: &str, address: SocketAddr) -> Result<bool> {
    let request = |path: &str, method: &str, more: &str| {
        format!("{method} /{front}/{}/{path} HTTP/1.1\r\nHost: x\r\n{more}\r\n", case.name)
    };
    let mut client = Client::connect(address)?;
    client.send(request("ask", &case.method, "").as_bytes());
    let first = client.answer(case.method == "HEAD")?;
    let refused =
        first.as_ref().is_none_or(|answer| answer.status == 0 || answer.status >= 500 || !answer.whole);
    let own = |path: &str| format!("GET /{front}/{}/{path}", case.name);
    let check = |answers: &[Answer], path: &str| {
        for answer in answers {
            let wrong = answer.status == 200 && answer.saw.as_deref() != Some(own(path).as_str());
            ensure!(!wrong, "{front}: asked for {path}, answered {:?}", answer.saw);
        }
        Ok(())
    };
    if !refused {
        // It may have been closed; then there is nothing.
        client.send(request("after", "GET", "Connection: close\r\n").as_bytes());
        let answers = client.answers()?;
        ensure!(answers.len() <= 1, "{front}: {} answers to one request", answers.len());
        check(&answers, "after")?;
    }
    for path in ["other", "another", "third"] {
        let mut client = Client::connect(address)?;
        client.send(request(path, "GET", "Connection: close\r\n").as_bytes());
        let answers = client.answers()?;
        ensure!(answers.len() == 1 && answers[0].status == 200, "{front}: {path}: {answers:?}");
        check(&answers, path)?;
    }
    Ok(refused)
}

/// Services in front of the backends of this machine; and two in front of the Pod, of which nobody says what it speaks.
fn apply(sandbox: &Sandbox) -> Result<()> {
    let mut manifest = String::new();
    for (name, port, target, protocol) in [
        ("l7-net-http", 18101, NET_HTTP, "http"),
        ("l7-hyper", 18102, HYPER, "http"),
        ("l7-nginx", 18103, NGINX, "http"),
        ("l7-scripted", 18104, SCRIPTED, "http"),
        ("relay-net-http", 18105, NET_HTTP, "tcp"),
        ("relay-hyper", 18106, HYPER, "tcp"),
        ("relay-nginx", 18107, NGINX, "tcp"),
    ] {
        manifest.push_str(&format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations: {{proxy.gantry.dev/allow-egress: \
             198.51.100.0/24}}\nspec:\n  type: LoadBalancer\n  ports: [{{port: {port}, appProtocol: {protocol}}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}\n  labels: \
             {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports: [{{name: '', port: {target}}}]\n\
             endpoints: [{{addresses: [198.51.100.1]}}]\n---\n"
        ));
    }
    for (name, port, protocol) in [("seen", 18108, ""), ("pod-log", 18109, ", appProtocol: http")] {
        manifest.push_str(&format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  type: LoadBalancer\n  selector: {{app: \
             recorder}}\n  ports: [{{port: {port}, targetPort: 8080{protocol}}}]\n---\n"
        ));
    }
    let path = sandbox.work("manifests")?.join("desync.yaml");
    std::fs::write(&path, manifest)?;
    sandbox.ok(["up", "-f", path.to_str().context("the temporary folder is no text")?])?;
    Ok(())
}

/// Debian's haproxy in front of net/http and of the scripted backend, with connections reused as much as it will.
fn haproxy(sandbox: &Sandbox, requests: SocketAddr) -> Result<Process> {
    let folder = sandbox.work("haproxy")?;
    let mut config = "global\n  nbthread 1\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client \
                      30s\n  timeout server 30s\n  option http-keep-alive\n  http-reuse always\n"
        .to_owned();
    for (name, port, server) in
        [("requests", HAPROXY_REQUESTS, requests), ("answers", HAPROXY_ANSWERS, at(SCRIPTED))]
    {
        config.push_str(&format!("listen {name}\n  bind {}\n  server s {server}\n", at(port)));
    }
    let path = folder.join("haproxy.cfg");
    std::fs::write(&path, config)?;
    let program =
        ["/usr/sbin/haproxy", "/usr/local/sbin/haproxy"].into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(program.context("there is no haproxy: scripts/setup.sh test")?);
    command.arg("-db").arg("-f").arg(&path);
    Process::start("haproxy", &folder, command)
}
