//! Attacks on the proxy: floods of silence, the host's own addresses, the HTTP parser.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::super::desync::backend;
use super::super::desync::cases::Piece;
use super::super::desync::client::{Answer, Client};
use super::{Door, Stage};
use crate::bench::process;

pub(super) const DOORS: &[Door] = &[
    Door {
        name: "proxy-egress-host",
        wanted: "a Pod reaches neither the host's own addresses nor link-local ones",
        short: true,
        attack: egress_host,
    },
    Door {
        name: "proxy-endpoints-host",
        wanted: "endpoints that somebody wrote are no way to the host's own addresses",
        short: true,
        attack: endpoints_host,
    },
    Door {
        name: "proxy-flood-from-pod",
        wanted: "6,000 silent connections of a Pod to a Service stop nobody else",
        short: false,
        attack: flood_from_pod,
    },
    Door {
        name: "proxy-flood-from-user",
        wanted: "6,000 silent connections of a user stop nobody else",
        short: false,
        attack: flood_from_user,
    },
    Door {
        name: "proxy-host-bad",
        wanted: "a bad Host, another host in the target, a padded length or an underscore in a framing field is refused",
        short: true,
        attack: host_bad,
    },
    Door {
        name: "proxy-parser-passed-by",
        wanted: "neither a slow first byte nor an unknown method forges X-Forwarded-For on a Service without appProtocol",
        short: true,
        attack: parser_passed_by,
    },
    Door {
        name: "proxy-stray-answer",
        wanted: "bytes that a backend sends after its answer reach nobody",
        short: true,
        attack: stray_answer,
    },
];

/// Gives this namespace's host an address; one that it has already is no error.
fn own(address: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["address", "replace", &format!("{address}/32"), "dev", "lo"]);
    process::ok(ip).map(drop)
}

/// Runs `tests/programs/dial` in a Pod.
fn dial(stage: &Stage, arguments: &[&str]) -> Result<String> {
    let folder = crate::tidy::root()?.join("tests/programs/dial");
    let folder = folder.to_str().context("the project's folder is no text")?.to_owned();
    let mut all = vec!["--quiet", "run", &folder, "--"];
    all.extend(arguments);
    stage.sandbox.ok(all)
}

/// Answers every connection on the address until the process ends.
fn greet(address: SocketAddr) -> Result<()> {
    backend::scripted(address, HashMap::new())
}

fn egress_host(stage: &Stage) -> Result<String> {
    own("198.51.100.2")?;
    own("169.254.169.254")?;
    let hosts = ["198.51.100.2:9301", "169.254.169.254:9301"];
    for host in hosts {
        greet(host.parse()?)?;
    }
    let mut tried = hosts.to_vec();
    tried.extend(["127.0.0.1:6443", "0.0.0.0:6443", "224.0.0.1:9301", "hello:8080"]);
    let said = dial(stage, &tried)?;
    let open: Vec<_> = said.lines().filter(|line| line.ends_with(" open")).collect();
    ensure!(open == ["hello:8080 open"], "{said:?}");
    let metrics = metrics(stage)?;
    for reason in ["host", "link_local"] {
        let line = format!("gantry_proxy_egress_refused_total{{reason=\"{reason}\"}} 1");
        ensure!(metrics.contains(&line), "not counted: {line}");
    }
    Ok("the host's own address and the metadata service's are closed, a Service is open".to_owned())
}

fn metrics(stage: &Stage) -> Result<String> {
    let mut curl = Command::new("curl");
    let socket = stage.sandbox.state().join("run/proxy-metrics.sock");
    curl.args(["--silent", "--fail", "--unix-socket"]).arg(socket).arg("http://proxy/metrics");
    process::ok(curl)
}

/// A Service in front of an address of the host.
fn service(stage: &Stage, name: &str, port: u16, target: u16, annotation: &str) -> Result<SocketAddr> {
    stage.apply(&format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotation}}}}}\nspec:\n  type: \
         LoadBalancer\n  ports: [{{port: {port}, appProtocol: http}}]\n---\napiVersion: discovery.k8s.io/v1\nkind: \
         EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: \
         IPv4\nports: [{{name: '', port: {target}}}]\nendpoints: [{{addresses: [198.51.100.2]}}]\n"
    ))?;
    process::until("the Service's address", Duration::from_secs(30), || stage.sandbox.address(name).ok())
}

fn ask(address: SocketAddr, request: &str) -> Result<Vec<Answer>> {
    let mut client = Client::connect(address)?;
    client.send(request.as_bytes());
    client.answers()
}

fn endpoints_host(stage: &Stage) -> Result<String> {
    own("198.51.100.2")?;
    greet("198.51.100.2:9302".parse()?)?;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let address = service(stage, "forged", 18301, 9302, "")?;
    let refused = ask(address, request)?;
    ensure!(refused.len() == 1 && refused[0].status == 503, "forged: {refused:?}");
    let address = service(stage, "allowed", 18302, 9302, "proxy.gantry.dev/allow-egress: host")?;
    let status = |answers: Vec<Answer>| answers.first().map(|answer| answer.status);
    process::until("the Service that is allowed", Duration::from_secs(30), || {
        ask(address, request).ok().and_then(status).filter(|status| *status == 200)
    })?;
    Ok("503 without an allowance, 200 with it".to_owned())
}

fn flood_from_user(stage: &Stage) -> Result<String> {
    let port = stage.sandbox.address("hello")?.port();
    let script = format!(
        "n=0; for i in $(seq 6000); do exec {{f}}<>/dev/tcp/127.0.0.1/{port} && n=$((n+1)); done 2>/dev/null; sleep 5; echo $n"
    );
    let ended = stage.as_nobody("bash", ["-c", &script])?;
    let held = String::from_utf8_lossy(&ended.stdout).trim().to_owned();
    ensure!(held.parse::<u32>().is_ok_and(|held| held > 1000), "only {held} were opened");
    shares(stage, &held)
}

fn flood_from_pod(stage: &Stage) -> Result<String> {
    let held = dial(stage, &["-hold", "6000", "hello:8080"])?;
    shares(stage, held.trim())
}

/// Says what the table of connections did.
fn shares(stage: &Stage, held: &str) -> Result<String> {
    let metrics = metrics(stage)?;
    let table = "listener=\"proxy_connections\"";
    let counts: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("gantry_connections_closed_total{") && line.contains(table))
        .filter_map(|line| line.split_once("reason=")?.1.split_once('}'))
        .map(|(reason, count)| format!("{}{count}", reason.trim_matches('"')))
        .collect();
    ensure!(!counts.is_empty(), "nothing was refused or closed: the flood was too small");
    Ok(format!("{held} connections; {}", counts.join(", ")))
}

fn host_bad(stage: &Stage) -> Result<String> {
    let address = stage.sandbox.address("hello")?;
    let cases = [
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@hello\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: hello:99999\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET http://other/ HTTP/1.1\r\nHost: hello\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: hello\r\nContent-Length: 003\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: hello\r\nContent_Length: 3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nHost: hello\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
    ];
    for case in cases {
        let answers = ask(address, case)?;
        ensure!(answers.len() == 1 && answers[0].status == 400, "{case:?}: {answers:?}");
    }
    Ok(format!("{} requests got 400", cases.len()))
}

fn parser_passed_by(stage: &Stage) -> Result<String> {
    let folder = crate::tidy::root()?.join("tests/programs/recorder");
    let folder = folder.to_str().context("the project's folder is no text")?.to_owned();
    stage.sandbox.ok(["up", &folder, "--name", "recorder"])?;
    stage.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: unsaid}\nspec:\n  type: LoadBalancer\n  selector: {app: \
         recorder}\n  ports: [{port: 18303, targetPort: 8080}]\n",
    )?;
    let address = process::until("the Service's address", Duration::from_secs(30), || {
        stage.sandbox.address("unsaid").ok()
    })?;
    let forged = "Host: x\r\nX-Forwarded-For: 203.0.113.9\r\nConnection: close\r\n\r\n";
    for method in ["GET", "BREW"] {
        let mut client = Client::connect(address)?;
        for piece in [&method[..1], &method[1..], " / HTTP/1.1\r\n", forged] {
            client.send(piece.as_bytes());
            // Longer than the proxy used to wait before it took a connection for something else.
            std::thread::sleep(Duration::from_millis(120));
        }
        let answers = client.answers()?;
        let clients: Vec<_> = answers.iter().flat_map(|answer| answer.field("x-client")).collect();
        ensure!(clients == ["203.0.113.9, 127.0.0.1"], "{method}: the program saw {clients:?}");
    }
    let answers = ask(address, "\u{16}\u{3}\u{1}")?;
    ensure!(answers.len() == 1 && answers[0].status == 400, "TLS: {answers:?}");
    Ok("the proxy's word is last in X-Forwarded-For, and TLS gets 400".to_owned())
}

fn stray_answer(stage: &Stage) -> Result<String> {
    own("198.51.100.2")?;
    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Saw: poison\r\n\r\npoison";
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Saw: own\r\n\r\nok".to_vec();
    let pieces = vec![Piece::Bytes(answer), Piece::Pause, Piece::Bytes(poison.as_bytes().to_vec())];
    backend::scripted("198.51.100.2:9304".parse()?, HashMap::from([("/stray".to_owned(), pieces)]))?;
    let address = service(stage, "stray", 18304, 9304, "proxy.gantry.dev/allow-egress: host")?;
    process::until("the Service", Duration::from_secs(30), || backend::get(address, "/ready").ok())?;
    const TIMES: usize = 100;
    for number in 0..TIMES {
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut client = Client::connect(address)?;
        client.send(request("/stray").as_bytes());
        ensure!(client.answer(false)?.is_some_and(|answer| answer.saw.as_deref() == Some("own")));
        // Once at once, once when the stray bytes have come: the proxy may have the connection idle by then.
        if number % 2 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let path = format!("/own-{number}");
        client.send(request(&path).as_bytes());
        let saw = client.answer(false)?.and_then(|answer| answer.saw);
        ensure!(saw.as_deref() == Some(format!("GET {path}").as_str()), "asked for {path}, answered {saw:?}");
    }
    Ok(format!("{TIMES} requests behind stray bytes got their own answers"))
}
