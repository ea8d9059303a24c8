//! What a hostile program or image tries from inside a Pod, or with the making of its container.
//!
//! The same attacks, with the moments of a race chosen more meanly, are tests of `crates/runtime` (tests/doors.rs).

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tar::EntryType;

use super::{Door, Stage};
use crate::accept::store::archive::{self, Entry, Image};
use crate::accept::store::work::poll;

pub(super) const DOORS: &[Door] = &[
    Door {
        name: "containers-end",
        wanted: "a Pod whose threads make their keeper a tracer is deleted within its grace period and 10 s, and another \
                 one keeps neither `stop --all` nor `uninstall` from ending",
        short: true,
        attack: end,
    },
    Door {
        name: "containers-host-users",
        wanted: "root of a Pod with hostUsers: false is no user of the host's, and of no other Pod's",
        short: true,
        attack: host_users,
    },
    Door {
        name: "containers-image-links",
        wanted: "an image whose /dev, /proc or /sys is a link to a folder of the host is not run, and nothing is made there",
        short: true,
        attack: image_links,
    },
    Door {
        name: "containers-kernel",
        wanted: "root in a Pod reaches no namespace, hierarchy, kernel setting or kernel crypto, and no descriptor of ours",
        short: true,
        attack: kernel,
    },
    Door {
        name: "containers-runtime-binary",
        wanted: "a Pod whose program is /proc/self/exe does not run gantry, and the binary stays as it is",
        short: true,
        attack: runtime_binary,
    },
    Door {
        name: "containers-set-user-id",
        wanted: "a set-user-id program that a Pod leaves in an emptyDir gives nobody anything, inside or on the host",
        short: true,
        attack: set_user_id,
    },
    Door {
        name: "containers-subpath-race",
        wanted: "of many containers whose subPath a neighbour swaps for a link to the root, none sees the host's root",
        short: true,
        attack: subpath_race,
    },
    Door {
        name: "containers-working-directory",
        wanted: "a container whose working directory is one of its maker's descriptors does not run",
        short: true,
        attack: working_directory,
    },
];

/// Containers that start while a neighbour swaps, and in the short form.
const VICTIMS: (usize, usize) = (24, 8);
/// Longest that a deletion may take beyond its grace period, in seconds.
const DELETION_SECONDS_MAX: u64 = 10;

/// The attacker's image, in the stage's registry.
fn intruder(stage: &Stage) -> Result<String> {
    let source = crate::tidy::root()?.join("tests/programs/intruder");
    let said =
        stage.sandbox.ok(["build", source.to_str().context("the folder is no text")?, "--format", "json"])?;
    let facts: Value = serde_json::from_str(&said).context("read gantry build --format json")?;
    Ok(facts["image"].as_str().context("gantry build names no image")?.to_owned())
}

/// A Pod of these containers, as root; `spec` adds to it.
fn pod(stage: &Stage, name: &str, containers: Vec<Value>, spec: Value) -> Result<()> {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsUser": 0}, "containers": containers,
        },
    });
    for (field, value) in spec.as_object().into_iter().flatten() {
        pod["spec"][field] = value.clone();
    }
    stage.apply(&pod.to_string())
}

fn get(stage: &Stage, name: &str) -> Result<Value> {
    stage.sandbox.get(&format!("/api/v1/namespaces/default/pods/{name}"))
}

fn log(stage: &Stage, name: &str, container: &str) -> Result<String> {
    let path = format!("/api/v1/namespaces/default/pods/{name}/log?container={container}");
    stage.sandbox.kubectl(["get", "--raw", &path])
}

/// Waits until a running container has said that.
fn said(stage: &Stage, name: &str, container: &str, word: &str) -> Result<()> {
    poll(&format!("{name} says {word}"), || {
        Ok(log(stage, name, container).is_ok_and(|log| log.lines().any(|line| line == word)))
    })
}

/// Waits for a Pod's end; what its first container said, in which no door was open.
fn outcome(stage: &Stage, name: &str) -> Result<String> {
    poll(&format!("{name} ends"), || {
        let phase = get(stage, name)?["status"]["phase"].clone();
        Ok(phase == "Succeeded" || phase == "Failed")
    })?;
    let container = get(stage, name)?["spec"]["containers"][0]["name"].clone();
    let said = log(stage, name, container.as_str().context("a container without a name")?)?;
    ensure!(!said.contains("open:") && !said.contains("failed:"), "it said: {}", said.trim());
    Ok(said)
}

/// Waits until a Pod's first container is refused; why.
fn refusal(stage: &Stage, name: &str) -> Result<String> {
    let mut why = String::new();
    poll(&format!("{name} is refused"), || {
        let pod = get(stage, name)?;
        let state = &pod["status"]["containerStatuses"][0]["state"];
        ensure!(state["running"].is_null(), "its container runs");
        let word = [&state["waiting"], &state["terminated"], &pod["status"]]
            .into_iter()
            .find_map(|at| at["message"].as_str().filter(|text| !text.is_empty()));
        why = word.unwrap_or_default().to_owned();
        Ok(!why.is_empty())
    })?;
    Ok(why)
}

fn subpath_race(stage: &Stage) -> Result<String> {
    let image = intruder(stage)?;
    let shared = stage.sandbox.work("shared")?;
    let volumes = json!({"volumes": [{"name": "shared", "hostPath": {"path": shared}}]});
    let attacker = json!({"name": "swap", "image": image, "args": ["swap", "/shared/sub", "/shared/link"],
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]});
    pod(stage, "attacker", vec![attacker], volumes.clone())?;
    said(stage, "attacker", "swap", "swapping")?;
    let victims = stage.setting.times(VICTIMS.0, VICTIMS.1);
    let victim = |number: usize| {
        json!({"name": format!("v{number}"), "image": image, "args": ["look", "/data"],
            "volumeMounts": [{"name": "shared", "mountPath": "/data", "subPath": "sub"}]})
    };
    pod(stage, "victims", (0..victims).map(victim).collect(), volumes)?;
    outcome(stage, "victims")?;
    let mut inside = 0;
    for number in 0..victims {
        let log = log(stage, "victims", &format!("v{number}"))?;
        ensure!(!log.contains("open:"), "container {number} said: {}", log.trim());
        inside += usize::from(log.contains("inside"));
    }
    Ok(format!("{inside} of {victims} saw the folder, the others the volume that it is in"))
}

fn end(stage: &Stage) -> Result<String> {
    let image = intruder(stage)?;
    for name in ["traced", "stays"] {
        let container = json!({"name": "traced", "image": image, "args": ["traced"]});
        pod(stage, name, vec![container], Value::Null)?;
        said(stage, name, "traced", "traced")?;
    }
    let begin = Instant::now();
    stage.sandbox.kubectl(["delete", "pod", "traced", "--wait=true", "--timeout=60s"])?;
    let took = begin.elapsed();
    ensure!(took.as_secs() <= 1 + DELETION_SECONDS_MAX, "its deletion took {took:.1?}");
    Ok(format!("deleted in {took:.1?}"))
}

fn host_users(stage: &Stage) -> Result<String> {
    let image = intruder(stage)?;
    let mut maps = Vec::new();
    for name in ["users-one", "users-two"] {
        let container = json!({"name": "users", "image": image, "args": ["users", "/data"],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
        let own = json!({"hostUsers": false, "volumes": [{"name": "data", "emptyDir": {}}]});
        pod(stage, name, vec![container], own)?;
        maps.push(outcome(stage, name)?);
    }
    ensure!(maps.iter().all(|map| map.contains("wrote")), "a volume could not be written: {}", maps.concat());
    ensure!(maps[0] != maps[1], "both have the same users: {}", maps[0]);
    let container = json!({"name": "users", "image": image, "args": ["users", "/"]});
    pod(stage, "users-host", vec![container], json!({"hostUsers": false, "hostNetwork": true}))?;
    let why = refusal(stage, "users-host")?;
    Ok(format!("{}; with hostNetwork: {why}", maps[0].trim().replace('\n', ", ")))
}

fn image_links(stage: &Stage) -> Result<String> {
    let outside = stage.sandbox.work("outside")?;
    let target = outside.to_str().context("the folder is no text")?;
    let mut why = String::new();
    for folder in ["dev", "proc", "sys"] {
        let layer = archive::tar(&[Entry::link(EntryType::Symlink, folder, target)])?;
        let name = format!("localhost/links-{folder}:1");
        let image = archive::tar(&Image::new(layer.clone(), &archive::digest(&layer)).layout(&name))?;
        let file = stage.sandbox.work("images")?.join(folder);
        std::fs::write(&file, image)?;
        stage.sandbox.ok(["image", "load", "-i", file.to_str().context("the file is no text")?])?;
        let container = json!({"name": "links", "image": name, "command": ["/file"]});
        pod(stage, &format!("links-{folder}"), vec![container], Value::Null)?;
        why = refusal(stage, &format!("links-{folder}"))?;
        ensure!(why.contains(&format!("/{folder}")), "{folder}: refused for another reason: {why}");
        ensure!(std::fs::read_dir(&outside)?.next().is_none(), "something was made in {target}");
    }
    Ok(format!("three images refused: {why}"))
}

fn kernel(stage: &Stage) -> Result<String> {
    let settings = ["/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe"];
    let read = || settings.map(|path| std::fs::read(path).ok());
    let before = read();
    let container = json!({"name": "kernel", "image": intruder(stage)?, "args": ["kernel"]});
    pod(stage, "kernel", vec![container], Value::Null)?;
    let said = outcome(stage, "kernel")?;
    ensure!(said.contains("tried") && read() == before, "the kernel's settings changed");
    Ok("nothing was open".to_owned())
}

fn runtime_binary(stage: &Stage) -> Result<String> {
    let before = archive::digest(&std::fs::read(&stage.sandbox.gantry)?);
    let image = intruder(stage)?;
    for (name, program) in
        [("self", "/proc/self/exe"), ("first", "/proc/1/exe"), ("thread", "/proc/thread-self/exe")]
    {
        let container = json!({"name": "exe", "image": image, "command": [program, "version"]});
        pod(stage, name, vec![container], Value::Null)?;
        refusal(stage, name)?;
    }
    ensure!(archive::digest(&std::fs::read(&stage.sandbox.gantry)?) == before, "the binary changed");
    Ok("three programs refused".to_owned())
}

fn set_user_id(stage: &Stage) -> Result<String> {
    let container = json!({"name": "plant", "image": intruder(stage)?, "args": ["plant", "/data"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}]});
    pod(stage, "plant", vec![container], json!({"volumes": [{"name": "data", "emptyDir": {}}]}))?;
    said(stage, "plant", "plant", "planted")?;
    let said = log(stage, "plant", "plant")?;
    ensure!(!said.contains("open:"), "it said: {}", said.trim());
    let uid = get(stage, "plant")?["metadata"]["uid"].as_str().context("a Pod without a UID")?.to_owned();
    let planted = stage.sandbox.state().join("pods").join(uid).join("volumes/data/planted");
    ensure!(planted.exists(), "{} is not there", planted.display());
    let tried = stage.as_nobody(planted.to_str().context("the file is no text")?, ["users", "/"]);
    ensure!(tried.is_err(), "nobody could run {}", planted.display());
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

fn working_directory(stage: &Stage) -> Result<String> {
    let image = intruder(stage)?;
    let numbers = 3..=12;
    for number in numbers.clone() {
        let name = format!("descriptor-{number}");
        let inside = Path::new("/proc/self/fd").join(number.to_string());
        let container = json!({"name": "look", "image": image, "args": ["look", "."], "workingDir": inside});
        pod(stage, &name, vec![container], Value::Null)?;
        refusal(stage, &name)?;
    }
    Ok(format!("descriptors {} to {} refused", numbers.start(), numbers.end()))
}
