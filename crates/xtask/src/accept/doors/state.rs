//! The daemon's own socket, and what comes of a backup when something goes wrong in the middle.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Door, Stage};
use crate::sandbox::Sandbox;

pub(super) const DOORS: &[Door] = &[
    Door {
        name: "state-full-disk-backup",
        wanted: "a snapshot for which the disk has no room is refused with a hint, and nothing half written is left",
        short: true,
        attack: full_disk,
    },
    Door {
        name: "state-restore-killed",
        wanted: "kill -9 during a restore leaves an empty state folder or a whole one, and the next restore says what it found",
        short: true,
        attack: killed,
    },
    Door {
        name: "state-socket",
        wanted: "neither nobody nor a client that talks nonsense, too much or not at all keeps the daemon from a backup",
        short: true,
        attack: socket,
    },
];

/// Longer than a client of the socket may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(60);

fn backup(sandbox: &Sandbox, file: &std::path::Path) -> Result<(bool, String)> {
    let ended = sandbox.run(["daemon".as_ref(), "backup".as_ref(), file.as_os_str()])?;
    Ok((ended.status.success(), String::from_utf8_lossy(&ended.stderr).trim().to_owned()))
}

fn socket(stage: &Stage) -> Result<String> {
    let sandbox = &stage.sandbox;
    let (path, pid) = (sandbox.state().join("run/daemon.sock"), sandbox.daemon_pid()?);
    let text = path.to_str().context("the path is no text")?;
    let tried =
        stage.as_nobody("curl", ["--silent", "--max-time", "5", "--unix-socket", text, "http://x/"])?;
    ensure!(!tried.status.success(), "nobody connected to {text}");
    let nonsense: [Vec<u8>; 6] = [
        b"\n".to_vec(),
        vec![0xff; 4096],
        b"{\"ask\":\"upgrade\"}\n".to_vec(),
        b"{\"ask\":\"no such thing\"}\n".to_vec(),
        vec![b'x'; 1 << 20],
        [b"[".repeat(60_000).as_slice(), b"\n"].concat(),
    ];
    for bytes in &nonsense {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // Cut off in the middle is an end as well.
        let _ = stream.write_all(bytes);
        match stream.read_to_end(&mut Vec::new()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => bail!("it stays open"),
            _ => {}
        }
    }
    // More than there are places, all silent; and snapshots that somebody asks for and does not wait for.
    let silent: Vec<_> = (0..64).map(|_| UnixStream::connect(&path)).collect::<Result<_, _>>()?;
    drop(silent);
    for _ in 0..64 {
        let mut stream = UnixStream::connect(&path)?;
        let _ = stream.write_all(b"{\"ask\":\"snapshot\"}\n");
    }
    let file = sandbox.work("backup")?.join("all.gantry");
    let begun = Instant::now();
    loop {
        let (done, said) = backup(sandbox, &file)?;
        if done {
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "no backup after {} s: {said}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(sandbox.daemon_pid()? == pid, "the daemon is another one");
    // It goes when the daemon has seen that its last client is gone.
    let left = sandbox.state().join("run/snapshot");
    crate::bench::process::until("the snapshot goes", PATIENCE, || (!left.exists()).then_some(()))?;
    Ok(format!(
        "{} kinds of nonsense; a backup {:.1} s after them",
        nonsense.len(),
        begun.elapsed().as_secs_f64()
    ))
}

fn left(sandbox: &Sandbox) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(sandbox.folder())?.collect::<Result<Vec<_>, _>>()?;
    let staged = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(".gantry-restore"))
    };
    Ok(entries.into_iter().map(|entry| entry.path()).filter(staged).collect())
}

fn killed(stage: &Stage) -> Result<String> {
    const KILLS: u32 = 20;
    let file = stage.sandbox.work("backup")?.join("all.gantry");
    let (done, said) = backup(&stage.sandbox, &file)?;
    ensure!(done, "{said}");
    let second = Sandbox::new(&stage.setting.gantry)?;
    let arguments = ["daemon".as_ref(), "restore".as_ref(), file.as_os_str()];
    let begun = Instant::now();
    second.ok(arguments)?;
    let whole = begun.elapsed();
    let (mut empty, mut restored) = (0, 0);
    for number in 0..KILLS {
        match std::fs::remove_dir_all(second.state()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut child = second
            .command(arguments)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        // The moment is what is tried: spread over the time that a restore takes.
        std::thread::sleep(whole * number / KILLS);
        child.kill()?;
        child.wait()?;
        if second.state().join("instance").exists() {
            restored += 1;
            let over = second.run(arguments)?;
            let said = String::from_utf8_lossy(&over.stderr).into_owned();
            ensure!(!over.status.success() && said.contains("not empty"), "over a whole one: {said}");
            ensure!(second.state().join("store/store.redb").exists(), "it is half a state folder");
        } else {
            empty += 1;
            ensure!(!second.state().exists(), "half a state folder is there");
            let left = left(&second)?;
            let next = second.run(arguments)?;
            let said = String::from_utf8_lossy(&next.stderr).into_owned();
            ensure!(next.status.success(), "the next restore failed: {said}");
            for path in left {
                ensure!(
                    said.contains(&path.display().to_string()),
                    "it does not say that it removed {}: {said}",
                    path.display()
                );
            }
        }
    }
    ensure!(
        left(&second)?.iter().all(|path| !path.join("state").exists()),
        "something is left beside the state folder"
    );
    ensure!(empty > 0, "no restore was killed in time");
    // No daemon ever ran in it.
    std::fs::remove_dir_all(second.state())?;
    Ok(format!("{KILLS} kills: {empty} times nothing was restored, {restored} times all"))
}

fn full_disk(stage: &Stage) -> Result<String> {
    let sandbox = Sandbox::on_disk(&stage.setting.gantry, 200 << 20)?;
    sandbox.ok(["daemon", "start"])?;
    let value = "x".repeat(900_000);
    for index in 0..20 {
        let map = sandbox.work("maps")?.join("map.json");
        let object = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("m{index}")},
            "data": {"k": value}});
        std::fs::write(&map, object.to_string())?;
        sandbox.kubectl(["create", "-f", map.to_str().context("the path is no text")?])?;
    }
    sandbox.disk()?.fill_but(4 << 20)?;
    let file = tempfile::tempdir()?;
    let path = file.path().join("all.gantry");
    let (done, said) = backup(&sandbox, &path)?;
    ensure!(!done && said.contains("no space left") && said.contains("hint: "), "it said: {said}");
    ensure!(std::fs::read_dir(file.path())?.next().is_none(), "half a backup is left");
    ensure!(!sandbox.state().join("run/snapshot").exists(), "half a snapshot is left");
    sandbox.disk()?.free()?;
    let (done, again) = backup(&sandbox, &path)?;
    ensure!(done, "with space again: {again}");
    sandbox.end()?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}
