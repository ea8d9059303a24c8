//! Tars that lie or are torn: `gantry image load` refuses each, and nothing of it is left.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::json;
use tar::EntryType;

use super::archive::{self, Entry, Image};
use super::disk;
use crate::accept::Setting;
use crate::sandbox::{Sandbox, output};

const NAME: &str = "localhost/lies:1";

/// A case gets a good image and the sandbox's folder, and makes an archive of it that is not good.
type Case = fn(Image, &Path) -> Result<Vec<u8>>;

const CASES: &[(&str, Case)] = &[
    ("a tar cut in the middle", |image, _| {
        let bytes = archive::tar(&image.layout(NAME))?;
        Ok(bytes[..bytes.len() / 2].to_vec())
    }),
    ("a gzip cut in the middle", |image, _| {
        let bytes = archive::gzip(&archive::tar(&image.layout(NAME))?)?;
        Ok(bytes[..bytes.len() / 2].to_vec())
    }),
    ("a layer whose gzip is cut", |_, _| {
        let layer = archive::tar(&[Entry::file("file", vec![7; 2000])])?;
        let gzip = archive::gzip(&layer)?;
        let cut = gzip[..gzip.len() - 9].to_vec();
        archive::tar(&Image::new(cut, &archive::digest(&layer)).layout(NAME))
    }),
    ("a blob that is not what its name says", |image, _| {
        let mut entries = image.layout(NAME);
        entries[4].bytes[700] ^= 1;
        archive::tar(&entries)
    }),
    ("a size that is not the blob's", |mut image, _| {
        let size = image.layer.len() + 1;
        image.change(|manifest| manifest["layers"][0]["size"] = json!(size))?;
        archive::tar(&image.layout(NAME))
    }),
    ("a manifest that names a blob that is not there", |image, _| archive::tar(&image.layout(NAME)[..4])),
    ("a file above the archive", |image, _| extended(image, "../../escaped")),
    ("a file with an absolute path", |image, folder| {
        extended(image, folder.join("escaped").to_str().context("the folder is no text")?)
    }),
    ("a layer whose symbolic link leads out", |_, folder| {
        let target = folder.to_str().context("the folder is no text")?;
        let below = Entry::file("link/escaped", b"x".to_vec());
        layered(&[Entry::link(EntryType::Symlink, "link", target), below])
    }),
    ("a layer whose hard link leads out", |_, _| {
        layered(&[Entry::link(EntryType::Link, "link", "../../../../etc/passwd")])
    }),
    ("a layer with a device", |_, _| layered(&[Entry::link(EntryType::Block, "disk", "")])),
    ("a manifest of an unknown media type", |image, _| {
        let mut entries = image.layout(NAME);
        let manifest = json!({
            "mediaType": "text/html", "digest": image.digest(), "size": image.manifest.len(),
            "annotations": {"io.containerd.image.name": NAME},
        });
        entries[1].bytes = archive::index(&manifest);
        archive::tar(&entries)
    }),
    ("a declared size beyond all measure", |image, _| {
        let mut entries = image.layout(NAME);
        entries[4].size = Some(1 << 62);
        archive::tar(&entries)
    }),
    ("a docker save whose layer is another file", |image, _| archive::tar(&image.saved(NAME, "config.json"))),
    ("two indexes", |image, _| {
        let mut entries = image.layout(NAME);
        let other = Entry::file("index.json", entries[1].bytes.clone());
        entries.push(other);
        archive::tar(&entries)
    }),
    ("a diff id that is not the layer's", |image, _| {
        archive::tar(&Image::new(image.layer, &archive::digest(b"another")).layout(NAME))
    }),
];

/// A good image with one more file.
fn extended(image: Image, path: &str) -> Result<Vec<u8>> {
    let mut entries = image.layout(NAME);
    entries.push(Entry::file(path, b"x".to_vec()));
    archive::tar(&entries)
}

/// An image of a layer of these entries.
fn layered(entries: &[Entry]) -> Result<Vec<u8>> {
    let layer = archive::tar(entries)?;
    let diff_id = archive::digest(&layer);
    archive::tar(&Image::new(layer, &diff_id).layout(NAME))
}

pub(super) fn run(setting: &Setting) -> Result<String> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    sandbox.ok(["daemon", "start"])?;
    let mut random = StdRng::seed_from_u64(setting.seed);
    let mut good = || Image::random(&mut random, 2000..3000);
    // Something is there that could be damaged; and good archives of both sorts are not refused.
    let control = good()?;
    let saved = archive::tar(&control.saved("localhost/saved:1", "layer/layer.tar"))?;
    for bytes in [archive::tar(&control.layout("localhost/control:1"))?, saved] {
        let said = load(&sandbox, &bytes)?;
        ensure!(said.status.success(), "a good archive: {}", String::from_utf8_lossy(&said.stderr));
    }
    let folder = sandbox.work("")?.canonicalize()?;
    let before = there(&sandbox, &folder)?;
    for (what, case) in CASES {
        let bytes = case(good()?, &folder).with_context(|| (*what).to_owned())?;
        let said = load(&sandbox, &bytes)?;
        let text = String::from_utf8_lossy(&said.stderr);
        let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
        ensure!(!said.status.success(), "{what}: was loaded");
        ensure!(lines("error:") == 1 && lines("hint:") > 0, "{what}: not one error: with a hint:: {text}");
        let after = there(&sandbox, &folder)?;
        ensure!(after == before, "{what}: {:?} became {:?}", before, after);
    }
    sandbox.end()?;
    Ok(format!("{} lying or torn tars refused, nothing left of them", CASES.len()))
}

fn load(sandbox: &Sandbox, bytes: &[u8]) -> Result<std::process::Output> {
    let path = sandbox.work("tars")?.join("image.tar");
    std::fs::write(&path, bytes)?;
    let mut command = sandbox.command(["image", "load", "--input"]);
    command.arg(&path).env("TMPDIR", sandbox.work("temporary")?);
    output(command)
}

/// Every file that a load could have made, and what the registry lists.
fn there(sandbox: &Sandbox, folder: &Path) -> Result<(BTreeMap<PathBuf, u64>, String)> {
    // Objects, logs and sockets change by themselves.
    let state = folder.join("state");
    let others = ["store", "logs", "run"].map(|name| state.join(name));
    let without: Vec<_> = others.into_iter().chain([folder.join("tars")]).collect();
    Ok((disk::files(folder, &without)?, sandbox.ok(["image", "ls", "-o", "json"])?))
}
