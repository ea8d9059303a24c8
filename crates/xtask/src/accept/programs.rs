//! Rung `programs`: the programs of `docs/programs.md`, deployed from the module proxy one after another.
//!
//! The document is the list: its command lines are what is run. What was seen is written below it by `--bless`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Seen, Setting};
use crate::sandbox::{Sandbox, output_within};

/// So many have to serve.
const SERVE_MIN: usize = 6;
/// Fetching and compiling a large program takes minutes on a small machine.
const UP_SECONDS_MAX: u64 = 900;
/// How long a program that is ready may take to answer its probe.
const PROBE_SECONDS_MAX: u64 = 10;
/// Where the list ends and the results begin.
const RESULTS: &str = "## What was seen";

/// A row of the document.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    name: String,
    arguments: Vec<String>,
    probe: Probe,
}

/// What a program has to answer.
#[derive(Debug, PartialEq, Eq)]
enum Probe {
    /// 2xx for this path.
    Http(String),
    /// NATS greets first.
    Info,
    /// SETTINGS, for HTTP/2's preface.
    Http2,
    /// CONNACK, for MQTT's CONNECT.
    Mqtt,
}

/// What became of a program.
struct Outcome {
    name: String,
    serves: bool,
    /// Not served, but the user was told what to do.
    explained: bool,
    seconds: f64,
    said: String,
}

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let path = crate::tidy::root()?.join("docs/programs.md");
    let document = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let programs = read(&document)?;
    let sandbox = Sandbox::new(&setting.gantry)?;
    sandbox.ok(["daemon", "start"])?;
    let mut outcomes = Vec::new();
    for program in &programs {
        let outcome = try_one(&sandbox, program)?;
        crate::say(&format!("{}: {}", outcome.name, outcome.said));
        outcomes.push(outcome);
    }
    sandbox.end()?;
    if setting.bless {
        std::fs::write(&path, with_results(&document, &outcomes))?;
    }
    let serve = outcomes.iter().filter(|one| one.serves).count();
    let unexplained: Vec<_> =
        outcomes.iter().filter(|one| !one.serves && !one.explained).map(|one| one.name.as_str()).collect();
    let mut figure = format!("{serve} of {} serve", outcomes.len());
    for one in outcomes.iter().filter(|one| !one.serves) {
        figure.push_str(&format!("; {}: {}", one.name, one.said));
    }
    Ok(Seen::new(serve >= SERVE_MIN && unexplained.is_empty(), figure))
}

fn try_one(sandbox: &Sandbox, program: &Program) -> Result<Outcome> {
    let started = Instant::now();
    let up = output_within(sandbox.command(&program.arguments), UP_SECONDS_MAX)?;
    let seconds = started.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&up.stderr).into_owned();
    let outcome =
        |serves, explained, said| Outcome { name: program.name.clone(), serves, explained, seconds, said };
    if !up.status.success() {
        let starts = |word: &str| said.lines().find(|line| line.starts_with(word)).map(str::to_owned);
        let (error, hint) = (starts("error:"), starts("hint:"));
        let explained = error.is_some() && hint.is_some();
        let told: Vec<_> = error.into_iter().chain(hint).collect();
        return Ok(outcome(false, explained, told.join(" ")));
    }
    let answer = addresses(sandbox, &program.name).and_then(|all| any(&program.probe, &all));
    sandbox.ok(["down", &program.name])?;
    Ok(match answer {
        Ok(address) => outcome(true, true, format!("answers on port {}", address.port())),
        Err(error) => outcome(false, false, format!("{error:#}")),
    })
}

/// Every address that the program's Service answers on.
fn addresses(sandbox: &Sandbox, name: &str) -> Result<Vec<SocketAddr>> {
    let service = sandbox.get(&format!("/api/v1/namespaces/default/services/{name}"))?;
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for one in &ingress {
        for port in one["ports"].as_array().into_iter().flatten() {
            if port["protocol"] != "UDP" {
                let ip = one["ip"].as_str().context("an ingress without an address")?;
                all.push(SocketAddr::new(ip.parse()?, port["port"].as_u64().unwrap_or_default() as u16));
            }
        }
    }
    ensure!(!all.is_empty(), "the Service has no address");
    Ok(all)
}

fn any(probe: &Probe, addresses: &[SocketAddr]) -> Result<SocketAddr> {
    let deadline = Instant::now() + Duration::from_secs(PROBE_SECONDS_MAX);
    loop {
        let mut last = None;
        for address in addresses {
            match probe.ask(*address) {
                Ok(()) => return Ok(*address),
                Err(error) => last = Some(error.context(format!("ask {address}"))),
            }
        }
        if Instant::now() > deadline {
            return Err(last.context("there was no address")?);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Probe {
    fn read(text: &str) -> Result<Self> {
        Ok(match text {
            "TCP, greets with `INFO`" => Self::Info,
            "TCP, HTTP/2 preface" => Self::Http2,
            "TCP, MQTT `CONNECT`" => Self::Mqtt,
            _ => match text.strip_prefix("HTTP `").and_then(|rest| rest.strip_suffix('`')) {
                Some(path) => Self::Http(path.to_owned()),
                None => bail!("{text:?} is no probe"),
            },
        })
    }

    fn ask(&self, address: SocketAddr) -> Result<()> {
        let patience = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_read_timeout(Some(patience))?;
        match self {
            Self::Http(path) => {
                let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes())?;
                let mut start = [0; 12];
                stream.read_exact(&mut start)?;
                ensure!(start[9] == b'2', "status {}", String::from_utf8_lossy(&start[9..]));
            }
            Self::Info => {
                let mut start = [0; 4];
                stream.read_exact(&mut start)?;
                ensure!(&start == b"INFO", "greeted with {start:?}");
            }
            Self::Http2 => {
                // The preface and an empty SETTINGS frame: RFC 9113, section 3.4.
                stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")?;
                let mut head = [0; 9];
                stream.read_exact(&mut head)?;
                ensure!(head[3] == 4, "the first frame is of type {}", head[3]);
            }
            Self::Mqtt => {
                // MQTT 3.1.1, section 3.1: clean session, no keep-alive, a client id of one letter.
                stream.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01x")?;
                let mut head = [0; 1];
                stream.read_exact(&mut head)?;
                ensure!(head[0] == 0x20, "the first packet is {:#x}", head[0]);
            }
        }
        Ok(())
    }
}

/// The rows of the list.
fn read(document: &str) -> Result<Vec<Program>> {
    let list = document.split(RESULTS).next().unwrap_or_default();
    let rows = list.lines().filter(|line| line.contains("`gantry up "));
    rows.map(|line| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, _, command, probe] = cells[..] else {
            bail!("a row has other than four cells: {line}");
        };
        let words = command.trim_matches('`').split_whitespace().skip(1);
        let arguments = words.map(str::to_owned).collect();
        Ok(Program { name: name.to_owned(), arguments, probe: Probe::read(probe)? })
    })
    .collect()
}

fn with_results(document: &str, outcomes: &[Outcome]) -> String {
    let list = document.split(RESULTS).next().unwrap_or_default().trim_end();
    let mut text = format!(
        "{list}\n\n{RESULTS}\n\nWritten by `cargo xtask accept programs --bless`; the seconds are those of `gantry up`, fetching and compiling \
         included.\n\n| Program | Serves | Seconds | |\n|---|---|---|---|\n"
    );
    for one in outcomes {
        let serves = if one.serves { "yes" } else { "no" };
        let said = one.said.replace('|', "/");
        text.push_str(&format!("| {} | {serves} | {:.0} | {said} |\n", one.name, one.seconds));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_and_stays_when_results_are_written() {
        let document =
            std::fs::read_to_string(crate::tidy::root().unwrap().join("docs/programs.md")).unwrap();
        let programs = read(&document).unwrap();
        assert_eq!(programs.len(), 8);
        let caddy = &programs[0];
        assert_eq!(caddy.probe, Probe::Http("/".to_owned()));
        assert_eq!(caddy.arguments[0], "up");
        assert!(programs.iter().all(|one| one.arguments.contains(&one.name)));
        let outcome = Outcome {
            name: "caddy".into(),
            serves: true,
            explained: true,
            seconds: 1.0,
            said: "fine".into(),
        };
        let once = with_results(&document, &[outcome]);
        assert!(once.contains("| caddy | yes | 1 | fine |"));
        assert_eq!(read(&once).unwrap(), programs);
    }
}
