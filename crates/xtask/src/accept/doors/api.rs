//! What somebody who may write objects, or only connect, does to the daemon.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{Door, Stage};
use crate::bench::api::{Api, Connection};
use crate::bench::process::pss_mebibytes;
use crate::flood::{self, Arguments, Kind};

pub(super) const DOORS: &[Door] = &[
    Door {
        name: "api-connections",
        wanted: "others are served while nobody holds what he can of each listener, and what is left undone is closed",
        short: true,
        attack: connections,
    },
    Door {
        name: "api-deep-folder",
        wanted: "a Pod with folders 30,000 levels deep in an emptyDir is removed, and the daemon goes on",
        short: true,
        attack: deep_folder,
    },
    Door {
        name: "api-deep-patch",
        wanted: "a JSON patch whose copies double the depth is refused, and the daemon goes on",
        short: true,
        attack: deep_patch,
    },
    Door {
        name: "api-memory",
        wanted: "500 MB of ConfigMaps cost what they hold and 60 MiB, lists 5 MiB each, and what is deleted goes back",
        short: false,
        attack: memory,
    },
    Door {
        name: "api-quota",
        wanted: "a store that holds its quota refuses more by name, and takes deletions, a status and a Lease",
        short: false,
        attack: quota,
    },
    Door {
        name: "api-yaml",
        wanted: "YAML of 200,000 brackets or of aliases upon aliases is refused within two seconds",
        short: true,
        attack: yaml,
    },
];

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REVISIONS: &str = "/apis/apps/v1/namespaces/default/controllerrevisions";
/// Longest that something may take on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(120);

fn api(stage: &Stage) -> Result<Api> {
    Api::of_kubeconfig(&stage.sandbox.state().join("kubeconfig"))
}

/// Looks until it holds.
fn until(what: &str, limit: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !look()? {
        ensure!(start.elapsed() < limit, "{what}: not within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(start.elapsed())
}

fn connections(stage: &Stage) -> Result<String> {
    const SECONDS: u64 = 15;
    const COUNT: u64 = 4000;
    const CPU: u64 = 20;
    let folder = stage.sandbox.work("attack")?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
    let mut attackers = Vec::new();
    for (number, listener) in ["kubernetes", "registry", "console"].into_iter().enumerate() {
        let address = stage.sandbox.endpoint(listener)?.parse()?;
        let from = "127.0.0.2:0".parse()?;
        let one = Arguments::new(address, Kind::Silent, SECONDS)
            .of_user(super::stage::NOBODY, from)
            .part(1, COUNT, CPU);
        attackers.push(flood::start(&one, &folder.join(format!("{number}.log")))?);
    }
    let api = api(stage)?;
    let console = stage.sandbox.endpoint("console")?;
    let (start, mut asked) = (Instant::now(), 0);
    while start.elapsed() < Duration::from_secs(SECONDS) {
        let (status, _) = api.connect().context("connect to the API")?.send("GET", "/version", "", "")?;
        ensure!(status == 200, "the API answered {status}");
        ensure!(get(&console, "/healthz")?.ends_with("ok"), "the console does not answer");
        asked += 1;
    }
    for attacker in attackers {
        attacker.end()?;
    }
    // Half a head, and then nothing.
    let mut half = TcpStream::connect(stage.sandbox.endpoint("registry")?)?;
    half.write_all(b"GET /v2/ HTTP/1.1\r\nHost: loc")?;
    half.set_read_timeout(Some(PATIENCE))?;
    let mut rest = Vec::new();
    // A reset is an end as well.
    match half.read_to_end(&mut rest) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("half a head stays open"),
        _ => {}
    }
    let metrics = get(&console, "/metrics")?;
    for (listener, reason) in [
        ("kubernetes", "peer_share"),
        ("registry", "peer_share"),
        ("console", "peer_share"),
        ("registry", "head"),
    ] {
        let row = format!("listener=\"{listener}_connections\",reason=\"{reason}\"");
        ensure!(metrics.contains(&row), "the metrics have no {row}");
    }
    Ok(format!("{asked} requests to the API and the console answered"))
}

fn get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).with_context(|| format!("read {path} of {address}"))?;
    Ok(answer)
}

fn deep_patch(stage: &Stage) -> Result<String> {
    let pid = stage.sandbox.daemon_pid()?;
    let mut api = api(stage)?.connect()?;
    let revision = json!({"metadata": {"name": "deep"}, "revision": 1, "data": {"a": {}}});
    api.ok("POST", REVISIONS, "application/json", &revision.to_string())?;
    let double = |power: u32| {
        let path = format!("/data/a{}", "/b".repeat(1 << power));
        json!({"op": "copy", "from": "/data/a", "path": path})
    };
    let patch: Value = (0..12).map(double).collect();
    let path = format!("{REVISIONS}/deep");
    let (status, _) = api.send("PATCH", &path, "application/json-patch+json", &patch.to_string())?;
    ensure!(status == 422, "the patch was answered with {status}");
    ensure!(stage.sandbox.daemon_pid()? == pid, "the daemon is another one");
    Ok(format!("{} bytes of patch: 422", patch.to_string().len()))
}

fn yaml(stage: &Stage) -> Result<String> {
    let mut bomb = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
    for level in 1..10 {
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", format!("*a{}, ", level - 1).repeat(10)));
    }
    let mut slowest = Duration::ZERO;
    for body in ["[".repeat(200_000), "- ".repeat(200_000), "{a: ".repeat(200_000), bomb] {
        for (method, path, media) in [
            ("POST", MAPS.to_owned(), "application/yaml"),
            ("PATCH", format!("{MAPS}/a?fieldManager=door"), "application/apply-patch+yaml"),
        ] {
            let start = Instant::now();
            let (status, _) = api(stage)?.connect()?.send(method, &path, media, &body)?;
            ensure!(status == 400, "{method} was answered with {status}");
            slowest = slowest.max(start.elapsed());
        }
    }
    ensure!(slowest < Duration::from_secs(2), "one took {slowest:?}");
    Ok(format!("the slowest refusal took {} ms", slowest.as_millis()))
}

fn deep_folder(stage: &Stage) -> Result<String> {
    const DEPTH: usize = 30_000;
    let daemon = stage.sandbox.daemon_pid()?;
    let deployment = stage.sandbox.get("/apis/apps/v1/namespaces/default/deployments/hello")?;
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let image = container["image"].as_str().context("hello has no image")?;
    stage.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: deep\nspec:\n  containers:\n  - name: c\n    image: {image}\n    \
         volumeMounts:\n    - {{name: v, mountPath: /v}}\n  volumes:\n  - {{name: v, emptyDir: {{}}}}\n"
    ))?;
    let path = "/api/v1/namespaces/default/pods/deep";
    until("the Pod runs", PATIENCE, || Ok(stage.sandbox.get(path)?["status"]["phase"] == "Running"))?;
    let uid = stage.sandbox.get(path)?["metadata"]["uid"].as_str().context("no uid")?.to_owned();
    let pod = stage.sandbox.state().join("pods").join(&uid);
    let volume = find(&pod, "v").with_context(|| format!("no emptyDir below {}", pod.display()))?;
    // As any container does it, level by level.
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let mut at = openat(CWD, &volume, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..DEPTH {
        mkdirat(&at, c"d", Mode::RWXU)?;
        at = openat(&at, c"d", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    }
    drop(at);
    stage.sandbox.kubectl(["delete", "pod", "deep", "--grace-period=1", "--timeout=120s"])?;
    let gone = until("its folder is removed", PATIENCE, || Ok(!pod.exists()))?;
    ensure!(stage.sandbox.daemon_pid()? == daemon, "the daemon is another one");
    Ok(format!("{DEPTH} levels were gone {} ms after the Pod", gone.as_millis()))
}

/// The folder of that name below `from`.
fn find(from: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    for entry in std::fs::read_dir(from).ok()?.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name() == name {
                return Some(path);
            }
            if let Some(found) = find(&path, name) {
                return Some(found);
            }
        }
    }
    None
}

fn memory(stage: &Stage) -> Result<String> {
    const COUNT: usize = 1000;
    const BYTES: usize = 500_000;
    const LISTS: usize = 4;
    let mebibytes = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let pid = u32::try_from(stage.sandbox.daemon_pid()?.as_raw())?;
    let before = pss_mebibytes(pid)?;
    let mut api_connection = api(stage)?.connect()?;
    let text = "x".repeat(BYTES);
    for index in 0..COUNT {
        let map = json!({"metadata": {"name": format!("m{index}")}, "data": {"k": text}});
        api_connection.ok("POST", MAPS, "application/json", &map.to_string())?;
    }
    let stored = mebibytes(COUNT * BYTES);
    let mut full = f64::INFINITY;
    // What the last writes left free is given back within the allocator's turn.
    until("memory is what is stored and 60 MiB", Duration::from_secs(60), || {
        full = full.min(pss_mebibytes(pid)?);
        Ok(full <= stored + 60.0)
    })
    .with_context(|| format!("{stored:.0} MiB stored, {full:.0} held"))?;
    // Writing 5 sets the peak back to what is held now.
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
    let held = status_mebibytes(pid, "VmRSS:")?;
    std::thread::scope(|scope| -> Result<()> {
        let list = || -> Result<usize> { Ok(api(stage)?.connect()?.send("GET", MAPS, "", "")?.1.len()) };
        let lists: Vec<_> = (0..LISTS).map(|_| scope.spawn(list)).collect();
        for list in lists {
            let Ok(bytes) = list.join() else { bail!("a list panicked") };
            let bytes = bytes?;
            ensure!(bytes > COUNT * BYTES, "a list of {bytes} bytes");
        }
        Ok(())
    })?;
    let a_list = (status_mebibytes(pid, "VmHWM:")? - held) / LISTS as f64;
    ensure!(a_list <= 5.0, "a list added {a_list:.1} MiB");
    // On a connection of its own: the first one may have idled for too long.
    drop(api_connection);
    let mut api_connection = api(stage)?.connect()?;
    let started = Instant::now();
    let (status, _) = api_connection.send("DELETE", MAPS, "", "")?;
    ensure!(status == 200, "the deletion was answered with {status}");
    let deletion = started.elapsed();
    drop(api_connection);
    let mut after = f64::INFINITY;
    let back = until("memory goes back", Duration::from_secs(60), || {
        after = after.min(pss_mebibytes(pid)?);
        Ok(after <= before * 1.2)
    })
    .with_context(|| format!("{before:.0} MiB before, {after:.0} after"))?;
    Ok(format!(
        "{before:.0} MiB before, {full:.0} with {stored:.0} stored, {a_list:.1} a list, {after:.0} {} s after a deletion \
         that took {:.1} s",
        back.as_secs(),
        deletion.as_secs_f64()
    ))
}

fn quota(stage: &Stage) -> Result<String> {
    const BYTES: usize = 900_000;
    /// More than the quota holds.
    const COUNT_MAX: usize = 3000;
    let mut connection = api(stage)?.connect()?;
    let text = "x".repeat(BYTES);
    let make = |connection: &mut Connection, index: usize| {
        let map = json!({"metadata": {"name": format!("m{index}")}, "data": {"k": text}});
        connection.send("POST", MAPS, "application/json", &map.to_string())
    };
    let mut count = 0;
    let refusal = loop {
        let (status, said) = make(&mut connection, count)?;
        if status != 201 {
            ensure!(status == 403, "refused with {status}");
            break String::from_utf8_lossy(&said).into_owned();
        }
        count += 1;
        ensure!(count < COUNT_MAX, "{count} objects were taken: there is no quota");
    };
    for words in ["exceeded quota", "delete objects"] {
        ensure!(refusal.contains(words), "the refusal does not say {words:?}: {refusal}");
    }
    let lease = json!({"metadata": {"name": "full"}, "spec": {"holderIdentity": "door"}}).to_string();
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    connection.ok("POST", leases, "application/json", &lease)?;
    let status = json!({"status": {"observedGeneration": 1}}).to_string();
    let hello = "/apis/apps/v1/namespaces/default/deployments/hello/status";
    connection.ok("PATCH", hello, "application/merge-patch+json", &status)?;
    for index in 0..3 {
        connection.ok("DELETE", &format!("{MAPS}/m{index}"), "", "")?;
    }
    let (status, _) = make(&mut connection, 0)?;
    ensure!(status == 201, "there is room again, and {status} was answered");
    Ok(format!(
        "{count} objects of {BYTES} bytes were taken, one more got 403; Lease, status and deletions passed"
    ))
}

/// A figure of `/proc/PID/status`.
fn status_mebibytes(pid: u32, name: &str) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kibibytes.with_context(|| format!("process {pid} has no {name}"))? / 1024.0)
}
