//! Daemon and proxy die at the same moment under a service manager, while a client opens new connections all the time;
//! and everything dies, as when the power goes, and the daemon starts again.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::go::{self, Hello};
use super::manager::Manager;
use super::process::until;
use super::row::Bar;
use super::samples::Samples;
use super::{Figure, Row, Setting};
use crate::sandbox::Sandbox;

pub(crate) const FIGURE: Figure = Figure {
    name: "deaths",
    about: "daemon and proxy die together under a service manager; everything dies",
    peer: super::NO_PEER,
    bar: "0 refused; ≤ 500 ms; ≤ 1 s",
    run,
};

/// How often daemon and proxy die.
const DEATHS: usize = 20;
/// Between two new connections.
const PACE: Duration = Duration::from_millis(2);
const LIMIT: Duration = Duration::from_secs(60);
/// How often everything dies, each time with a new program: how one ended that is killed is known, other than after a
/// power cut, and its second start waits.
const POWER_CUTS: usize = 3;

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let hello = Hello::copy(sandbox.work("hello")?)?;
    let mut manager = Manager::start(&sandbox)?;
    sandbox.ok(["up", hello.path()?])?;
    let address = sandbox.address("hello")?;
    let held = manager.held();
    ensure!(held >= 4, "the manager holds {held} listeners: the daemon's three and the Service's are four");
    let (refused, longest) = while_connecting(address, || {
        for death in 0..DEATHS {
            die(&sandbox, &mut manager, address).with_context(|| format!("death {death}"))?;
        }
        Ok(())
    })?;
    let mut starts = Samples::default();
    sandbox.ok(["down", "hello"])?;
    for cut in 0..POWER_CUTS {
        let name = format!("hello-{cut}");
        sandbox.ok(["up", hello.path()?, "--name", &name])?;
        let took = everything(&sandbox, &mut manager, sandbox.address(&name)?);
        starts.push_milliseconds(took.with_context(|| format!("cut {cut}"))?);
        sandbox.ok(["down", &name])?;
    }
    sandbox.end()?;
    drop(manager);
    let none = || Ok(f64::NAN);
    let about = format!("daemon and proxy die together {DEATHS} times: new connections refused");
    let refused = Row::compare(&about, "refused", refused as f64, &none(), Bar::most(0.0));
    let about = "the same: the longest that a new connection waited for its answer";
    let longest = Row::compare(about, "ms", longest.as_secs_f64() * 1000.0, &none(), Bar::most(500.0));
    let about = "everything dies: daemon start → first answer of the program that ran";
    let start = Row::compare(about, "ms", starts.median(), &none(), Bar::most(1000.0));
    Ok([refused, longest, start]
        .into_iter()
        .map(|row| Row { peer: super::NO_PEER.to_owned(), ..row })
        .collect())
}

/// Kills both; the manager starts the daemon again, and that the proxy.
fn die(sandbox: &Sandbox, manager: &mut Manager, address: SocketAddr) -> Result<()> {
    let proxy = sandbox.proxy_pid()?;
    manager.kill_and(&[proxy])?;
    manager.restart(true)?;
    until("another proxy", LIMIT, || sandbox.proxy_pid().ok().filter(|pid| *pid != proxy))?;
    go::serves(address, "Hello", LIMIT)
}

/// Kills everything that runs for the state folder, and has a manager that holds nothing start the daemon.
fn everything(sandbox: &Sandbox, manager: &mut Manager, address: SocketAddr) -> Result<Duration> {
    let all = of(sandbox)?;
    ensure!(all.len() >= 3, "proxy, keeper and program are more than {all:?}");
    manager.kill_and(&all)?;
    ensure!(go::get(address).is_none(), "the program answers though everything is dead");
    let started = Instant::now();
    manager.restart(false)?;
    until("the program's answer", LIMIT, || go::get(address))?;
    Ok(started.elapsed())
}

/// Every process of the state folder: those with it in their command line first, then those of its control groups. A
/// keeper that outlived its container by a moment would note how that ended, as none does when the power goes.
fn of(sandbox: &Sandbox) -> Result<Vec<nix::unistd::Pid>> {
    let folder = sandbox.state().display().to_string();
    let instance = std::fs::read_to_string(sandbox.state().join("instance"))?;
    let group = format!("/gantry-{}/", instance.trim());
    let (mut found, mut programs) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // One that has just ended has neither.
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let is_of = |name: &str, text: &str| String::from_utf8_lossy(&read(name)).contains(text);
        if is_of("cmdline", &folder) {
            found.push(nix::unistd::Pid::from_raw(pid));
        } else if is_of("cgroup", &group) {
            programs.push(nix::unistd::Pid::from_raw(pid));
        }
    }
    found.append(&mut programs);
    Ok(found)
}

/// How many new connections were refused meanwhile, and the longest that one waited for its answer.
fn while_connecting(address: SocketAddr, work: impl FnOnce() -> Result<()>) -> Result<(u64, Duration)> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut refused, mut longest) = (0, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let started = Instant::now();
                match ask(address) {
                    Ok(()) => longest = longest.max(started.elapsed()),
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => refused += 1,
                    // Cut by the death of the proxy that had accepted it.
                    Err(_) => {}
                }
                std::thread::sleep(PACE);
            }
            (refused, longest)
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let seen = client.join().map_err(|_| anyhow::anyhow!("the client panicked"));
        done.and(seen)
    })
}

fn ask(address: SocketAddr) -> std::io::Result<()> {
    use std::io::{Read as _, Write as _};
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.contains(" 200 ") { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}
