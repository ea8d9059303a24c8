//! What listens on loopback only, and a neighbour that wants to reach it (CVE-2020-8558, CVE-2025-54410).

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::{Door, Stage};
use crate::bench::process;

pub(super) const DOORS: &[Door] = &[Door {
    name: "network-loopback",
    wanted: "a neighbour that routes 127.0.0.0/8 to us reaches no loopback-only port of the host, the router or a Pod",
    short: true,
    attack: loopback,
}];

/// A port that nothing of ours has, on loopback.
const VICTIM: &str = "127.0.0.1:9399";
const WITHIN: Duration = Duration::from_secs(2);

/// Runs something in a network namespace, which belongs to a thread.
fn within<T: Send>(netns: &Path, run: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = std::fs::File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
            run()
        });
        worker.join().unwrap_or_else(|_| bail!("it panicked"))
    })
}

fn shell(netns: &Path, script: &str) -> Result<()> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display())).args(["sh", "-ec", script]);
    process::ok(command).map(drop)
}

/// Whether somebody connected to the listener.
fn reached(listener: &TcpListener) -> Result<bool> {
    listener.set_nonblocking(true)?;
    Ok(listener.accept().is_ok())
}

/// Makes another Pod of hello's image; its namespace.
fn neighbour(stage: &Stage, name: &str) -> Result<PathBuf> {
    let deployment = stage.sandbox.get("/apis/apps/v1/namespaces/default/deployments/hello")?;
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    let image = image.context("hello has no image")?;
    stage.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: c\n    image: {image}\n"
    ))?;
    let path = format!("/api/v1/namespaces/default/pods/{name}");
    let uid = process::until("the Pod runs", Duration::from_secs(60), || {
        let pod = stage.sandbox.get(&path).ok()?;
        (pod["status"]["phase"] == "Running").then(|| pod["metadata"]["uid"].as_str().map(str::to_owned))?
    })?;
    let namespaces = stage.sandbox.state().join("run/netns");
    let own = namespaces.join(&uid);
    ensure!(own.exists(), "there is no {}", own.display());
    Ok(own)
}

fn loopback(stage: &Stage) -> Result<String> {
    let router = stage.sandbox.state().join("run/netns/router");
    let (attacker, other) = (neighbour(stage, "attacker")?, neighbour(stage, "victim")?);
    ensure!(
        std::fs::metadata(&attacker)?.ino() != std::fs::metadata(&other)?.ino(),
        "they share a namespace"
    );
    let listen = || TcpListener::bind(VICTIM).context("listen on loopback");
    let victims = [
        ("the host", listen()?),
        ("the router", within(&router, listen)?),
        ("another Pod", within(&other, listen)?),
    ];
    // As root of its own namespace it can do what no container of ours may: loopback leads to the router.
    shell(
        &attacker,
        "device=$(ip -o route show default | sed 's/.* dev \\([^ ]*\\).*/\\1/'); \
         gateway=$(ip -o route show default | sed 's/.* via \\([^ ]*\\).*/\\1/'); \
         echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet; ip address del 127.0.0.1/8 dev lo; \
         ip route replace 127.0.0.0/8 via $gateway dev $device",
    )?;
    // The proxy may take the connection, as it does for all that leaves a Pod; what counts is who is reached.
    within(&attacker, || {
        if let Ok(mut stream) = TcpStream::connect_timeout(&VICTIM.parse()?, WITHIN) {
            stream.set_read_timeout(Some(WITHIN))?;
            let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
            let _ = stream.read_to_end(&mut Vec::new());
        }
        Ok(())
    })?;
    for (whose, listener) in &victims {
        ensure!(!reached(listener)?, "{whose} was reached on loopback");
    }
    // From the router itself its listener is reached.
    within(&router, || Ok(TcpStream::connect_timeout(&VICTIM.parse()?, WITHIN)?))?;
    ensure!(reached(&victims[1].1)?, "the router's listener hears nobody: it proves nothing");
    stage.sandbox.kubectl(["delete", "pod", "attacker", "victim", "--grace-period=1", "--timeout=60s"])?;
    Ok("host, router and neighbour were not reached".to_owned())
}
