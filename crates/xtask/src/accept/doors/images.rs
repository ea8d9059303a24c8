//! Images that want more than the disk has.

use anyhow::{Context, Result, bail, ensure};

use super::super::store::archive::{self, Entry, Image};
use super::{Door, Stage};
use crate::sandbox::{Sandbox, output};

pub(super) const DOORS: &[Door] = &[Door {
    name: "images-larger-than-the-disk",
    wanted: "a small layer that unpacks to more than is free is refused before the disk is full, and writes go on",
    short: true,
    attack: bomb,
}];

/// The disk: room for gantry and the packed image, not for what is in it.
const DISK_BYTES: u64 = 96 << 20;
/// What the layer holds: zeros, which gzip packs a thousandfold.
const LAYER_BYTES: usize = 160 << 20;

fn bomb(stage: &Stage) -> Result<String> {
    // A mount namespace belongs to a thread and what it starts.
    std::thread::scope(|scope| {
        scope.spawn(|| inside(stage)).join().unwrap_or_else(|_| bail!("the case panicked"))
    })
}

fn inside(stage: &Stage) -> Result<String> {
    let sandbox = Sandbox::on_disk(&stage.setting.gantry, DISK_BYTES)?;
    sandbox.ok(["daemon", "start"])?;
    let tar = archive::tar(&[Entry::file("zeros", vec![0; LAYER_BYTES])])?;
    let (layer, diff_id) = (archive::gzip(&tar)?, archive::digest(&tar));
    let packed = layer.len();
    drop(tar);
    let path = sandbox.folder().join("bomb.tar");
    std::fs::write(&path, archive::tar(&Image::new(layer, &diff_id).layout("localhost/bomb:1"))?)?;
    let mut load = sandbox.command(["image", "load", "--input"]);
    // Its own temporary store is not on the small disk.
    load.arg(&path).env("TMPDIR", stage.sandbox.work("temporary")?);
    let loaded = output(load)?;
    ensure!(loaded.status.success(), "gantry image load: {}", String::from_utf8_lossy(&loaded.stderr));
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: bomb\nspec:\n  containers:\n    - name: bomb\n      image: localhost/bomb:1\n";
    let manifest_path = sandbox.folder().join("pod.yaml");
    std::fs::write(&manifest_path, manifest)?;
    sandbox.kubectl(["apply".as_ref(), "-f".as_ref(), manifest_path.as_os_str()])?;
    let reason = "--for=jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    let waited = sandbox.kubectl(["wait", reason, "--timeout=60s", "pod/bomb"]);
    let pod = sandbox.get("/api/v1/namespaces/default/pods/bomb")?;
    let said =
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap_or_default();
    ensure!(said.contains("no room for layer"), "the Pod waits with {said:?} ({waited:?})");
    let free = rustix::fs::statvfs(sandbox.folder()).context("look at the disk")?;
    let free = free.f_bavail * free.f_frsize;
    ensure!(free >= DISK_BYTES / 20, "{free} bytes are left free");
    sandbox.kubectl(["create", "configmap", "after", "--from-literal=a=b"])?;
    sandbox.end()?;
    Ok(format!("{packed} bytes that hold {LAYER_BYTES} were refused with {} MiB free", free >> 20))
}
