//! The daemon as a unit of systemd, and a program that it serves.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::bench::api::{Api, Connection};

pub(super) const STATE: &str = "/var/lib/gantry";
pub(super) const UNIT: &str = "gantry.service";
pub(super) const GANTRY: &str = "/payload/bin/gantry";
/// The program that is served.
const PROGRAM: &str = "hello";
/// How long the daemon may take to serve, in a machine that QEMU's translator executes on a busy host.
const READY: Duration = Duration::from_secs(900);
/// Between two looks at what nobody announces.
const LOOK: Duration = Duration::from_millis(10);

/// Installs the unit, deploys the program and waits until it answers.
pub(super) fn prepare() -> Result<()> {
    run(Command::new(GANTRY).args(["daemon", "install"]))?;
    ready()?;
    let hello = crate::tidy::root()?.join("examples/hello");
    run(Command::new(GANTRY).arg("up").arg(hello).args(["--name", PROGRAM, "--timeout", "20m"]))?;
    run(Command::new(GANTRY).args(["scale", PROGRAM, "2"]))?;
    let address = answers()?;
    settled()?;
    super::first::install(address)
}

/// Waits until the API server says that it is ready.
pub(super) fn ready() -> Result<Api> {
    let kubeconfig = Path::new(STATE).join("kubeconfig");
    wait("the daemon is ready", || {
        let api = Api::of_kubeconfig(&kubeconfig)?;
        ensure!(api.is_ready(), "it does not answer");
        Ok(api)
    })
    .with_context(|| journal(30))
}

/// Waits until the program answers, at the address in its Service's status.
pub(super) fn answers() -> Result<SocketAddr> {
    let mut connection = ready()?.connect()?;
    wait("the program answers", || {
        let address = address(&mut connection)?;
        ask(address, Duration::from_secs(10))?;
        Ok(address)
    })
}

/// Waits until the program has all its replicas, and nothing else is there.
pub(super) fn settled() -> Result<()> {
    let mut connection = ready()?.connect()?;
    wait("the program has its two replicas", || {
        let list = connection.ok("GET", "/api/v1/namespaces/default/pods", "", "")?;
        let pods = list["items"].as_array().context("a list without items")?;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        ensure!(ready == 2 && pods.len() == 2, "{ready} of {} Pods are ready", pods.len());
        Ok(())
    })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

fn address(connection: &mut Connection) -> Result<SocketAddr> {
    let path = format!("/api/v1/namespaces/default/services/{PROGRAM}");
    let service = connection.ok("GET", &path, "", "")?;
    let ingress = &service["status"]["loadBalancer"]["ingress"][0];
    let (ip, port) = (ingress["ip"].as_str(), ingress["ports"][0]["port"].as_u64());
    let text = format!("{}:{}", ip.context("no ingress address")?, port.context("no ingress port")?);
    text.parse().with_context(|| format!("{text} is no address"))
}

/// One exchange on a connection of its own.
pub(super) fn ask(address: SocketAddr, within: Duration) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, within).context("connect")?;
    stream.set_read_timeout(Some(within))?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    ensure!(answer.contains(" 200 ") && answer.contains("Hello"), "the answer is {answer:?}");
    Ok(())
}

/// Looks until there is no error, or the deadline.
pub(super) fn wait<T>(what: &str, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + READY;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("{what} within {} s", READY.as_secs())));
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// The last lines that systemd has of the unit, and the daemon's own log.
pub(super) fn journal(lines: usize) -> String {
    let lines = lines.to_string();
    let units = Command::new("journalctl").args(["--no-pager", "-n", &lines, "-u", UNIT]).output();
    let units = units.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let log = Command::new("tail").args(["-n", &lines, &format!("{STATE}/logs/daemon.log")]).output();
    let log = log.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    format!("{units}\n{log}")
}

/// Runs a command that has to succeed; its standard output.
pub(super) fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
