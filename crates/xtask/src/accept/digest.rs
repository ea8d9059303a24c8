//! Rung `same-digest`: the same source gives the same digest, wherever and however it is built, and others can read the image.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Seen, Setting};
use crate::sandbox::{Sandbox, output};

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    let source = crate::tidy::root()?.join("examples/hello");
    let mut digests = Vec::new();
    for (name, git, parallel) in [("one", false, "1"), ("two/deeper", true, "2"), ("one", true, "2")] {
        let folder = sandbox.work(name)?.join("hello");
        crate::demo::copy(&source, &folder)?;
        if git {
            for arguments in
                [&["init", "-q"][..], &["add", "-A"], &["commit", "-q", "-m", "x", "--allow-empty"]]
            {
                let mut command = Command::new("git");
                command
                    .args(["-c", "user.name=x", "-c", "user.email=x@x"])
                    .args(arguments)
                    .current_dir(&folder);
                ensure!(output(command)?.status.success(), "git {}", arguments[0]);
            }
        }
        digests.push(build(&sandbox, &folder, &sandbox.work("out")?.join("image.tar"), parallel)?);
    }
    ensure!(digests.windows(2).all(|two| two[0] == two[1]), "digests differ: {digests:?}");
    let readers = readers(&sandbox, &digests[0])?;
    Ok(Seen::new(true, format!("3 builds, one digest {}; read by {readers}", &digests[0][..19])))
}

fn build(sandbox: &Sandbox, folder: &Path, tar: &Path, parallel: &str) -> Result<String> {
    let mut command = sandbox.command(["build", "-o", "json", "--output"]);
    command.arg(tar).arg(folder).env("GOFLAGS", format!("-p={parallel}"));
    let output = output(command)?;
    ensure!(output.status.success(), "gantry build: {}", String::from_utf8_lossy(&output.stderr));
    let built: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("read gantry build -o json")?;
    built["digest"].as_str().map(str::to_owned).context("gantry build names no digest")
}

/// skopeo, crane and umoci read the layout and see the same digest.
fn readers(sandbox: &Sandbox, digest: &str) -> Result<String> {
    let layout = sandbox.work("layout")?;
    let tar = sandbox.work("out")?.join("image.tar");
    let mut unpack = Command::new("tar");
    unpack.arg("-xf").arg(&tar).arg("-C").arg(&layout);
    ensure!(output(unpack)?.status.success(), "the layout is no tar");
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let descriptor = &index["manifests"][0];
    ensure!(descriptor["digest"] == digest, "the layout's index names {}", descriptor["digest"]);
    let name = descriptor["annotations"]["org.opencontainers.image.ref.name"]
        .as_str()
        .unwrap_or("latest")
        .to_owned();
    let at = format!("{}:{name}", layout.display());
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["inspect", "--format", "{{.Digest}}", &format!("oci:{at}")]);
    let seen = output(skopeo)?;
    ensure!(seen.status.success(), "skopeo: {}", String::from_utf8_lossy(&seen.stderr));
    ensure!(String::from_utf8_lossy(&seen.stdout).trim() == digest, "skopeo sees another digest");
    let mut umoci = Command::new("umoci");
    umoci.args(["unpack", "--image", &at]).arg(sandbox.work("bundles")?.join("umoci"));
    let seen = output(umoci)?;
    ensure!(seen.status.success(), "umoci: {}", String::from_utf8_lossy(&seen.stderr));
    sandbox.ok(["daemon", "start"])?;
    let docker = sandbox.work("docker")?;
    let mut login = sandbox.command(["registry", "login"]);
    login.env("DOCKER_CONFIG", &docker);
    let said = output(login)?;
    ensure!(said.status.success(), "gantry registry login: {}", String::from_utf8_lossy(&said.stderr));
    let pushed = format!("{}/read/hello:latest", sandbox.endpoint("registry")?);
    for arguments in [&["push"][..], &["validate", "--remote"], &["digest"]] {
        let mut crane = Command::new(crate::tools::crane()?);
        crane.env("DOCKER_CONFIG", &docker).args(arguments);
        if arguments == ["push"] {
            crane.arg(&layout);
        }
        crane.arg(&pushed).arg("--insecure");
        let seen = output(crane)?;
        ensure!(seen.status.success(), "crane {}: {}", arguments[0], String::from_utf8_lossy(&seen.stderr));
        if arguments == ["digest"] {
            ensure!(String::from_utf8_lossy(&seen.stdout).trim() == digest, "crane sees another digest");
        }
    }
    Ok("skopeo, umoci, crane (through the registry)".to_owned())
}
