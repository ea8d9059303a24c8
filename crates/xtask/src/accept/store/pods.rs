//! Pods that end with codes that are known here, and what of Pods is left that the API does not know.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::{Value, json};

use super::work::poll;
use crate::bench::api::{Api, Connection};
use crate::sandbox::Sandbox;

const PATH: &str = "/api/v1/namespaces/default/pods";
/// Where the gates are, inside.
const GATES: &str = "/gates";

/// Pods of `tests/programs/exit`.
pub(super) struct Pods {
    image: String,
    gates: PathBuf,
    traces: Traces,
}

/// What Pods leave on the machine.
pub(crate) struct Traces {
    state: PathBuf,
    instance: String,
}

/// A Pod and the code that it ends with.
pub(super) struct Pod {
    pub(super) name: String,
    code: u8,
    gate: Option<PathBuf>,
}

/// What is known of an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    True,
    Unknown,
}

impl Pods {
    /// Builds the program's image into the sandbox's registry; `gates` is a folder for FIFOs.
    pub(super) fn new(sandbox: &Sandbox, gates: PathBuf) -> Result<Self> {
        let source = crate::tidy::root()?.join("tests/programs/exit");
        let source = source.to_str().context("the project's folder is no text")?.to_owned();
        let said = sandbox.ok(["build", &source, "--format", "json"])?;
        let facts: Value = serde_json::from_str(&said).context("read gantry build --format json")?;
        let image = facts["image"].as_str().context("gantry build names no image")?.to_owned();
        Ok(Self { image, gates, traces: Traces::of(sandbox)? })
    }

    /// A Pod that ends at once, or, `gated`, when its gate is opened.
    pub(super) fn define(&self, name: &str, code: u8, gated: bool) -> Result<Pod> {
        let gate = self.gates.join(name);
        if gated {
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, mode, 0)
                .context("make a FIFO")?;
            // The umask does not count here.
            std::fs::set_permissions(&gate, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        }
        Ok(Pod { name: name.to_owned(), code, gate: gated.then_some(gate) })
    }

    /// Creates it; `None`: no answer came.
    pub(super) fn create(&self, connection: &mut Connection, pod: &Pod) -> Result<Option<u16>> {
        let mut arguments = vec![pod.code.to_string()];
        arguments.extend(pod.gate.as_ref().map(|_| format!("{GATES}/{}", pod.name)));
        let body = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name},
            "spec": {
                "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "volumes": [{"name": "gates", "hostPath": {"path": self.gates}}],
                "containers": [{
                    "name": "exit", "image": self.image, "args": arguments,
                    "volumeMounts": [{"name": "gates", "mountPath": GATES}],
                }],
            },
        });
        match connection.send("POST", PATH, "application/json", &body.to_string()) {
            Ok((status, _)) => Ok(Some(status)),
            Err(_) => Ok(None),
        }
    }

    /// Waits until its program runs.
    pub(super) fn running(&self, connection: &mut Connection, pod: &Pod) -> Result<()> {
        poll(&format!("pod {} runs", pod.name), || {
            let (_, is) = get(connection, pod)?;
            Ok(is["status"]["phase"] == "Running")
        })
    }

    /// The keeper of its container, which has one.
    pub(super) fn keeper(&self, connection: &mut Connection, pod: &Pod) -> Result<Pid> {
        let (_, is) = get(connection, pod)?;
        let uid = is["metadata"]["uid"].as_str().context("a Pod without a UID")?;
        let (pid, _) = self.traces.keepers()?.into_iter().find(|(_, of)| of == uid).context("no keeper")?;
        Ok(Pid::from_raw(pid))
    }

    /// Lets its program end, and waits until it did.
    pub(super) fn open_gate(&self, pod: &Pod) -> Result<()> {
        let path = pod.gate.as_ref().context("no gate")?;
        let mut gate: Option<File> = None;
        poll("the program waits at its gate", || {
            let opened = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
            match opened {
                Ok(file) => gate = Some(file),
                Err(error) if error.raw_os_error() == Some(nix::libc::ENXIO) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(gate.is_some())
        })?;
        let mut gate = gate.context("no gate")?;
        gate.write_all(b"x")?;
        // The last reader is gone when the program is.
        let mut wait = [PollFd::new(&gate, PollFlags::empty())];
        let limit = Timespec { tv_sec: 30, tv_nsec: 0 };
        ensure!(rustix::event::poll(&mut wait, Some(&limit))? > 0, "pod {} does not end", pod.name);
        std::fs::remove_file(path)?;
        Ok(())
    }

    /// Waits until the API says how it ended. `None`: there is no such Pod.
    pub(super) fn exit(&self, connection: &mut Connection, pod: &Pod) -> Result<Option<Exit>> {
        let mut exit = None;
        poll(&format!("pod {} has ended", pod.name), || {
            let (status, is) = get(connection, pod)?;
            let ended = &is["status"]["containerStatuses"][0]["state"]["terminated"];
            exit = match (status, ended["reason"].as_str()) {
                (404, _) => return Ok(true),
                (_, None) => return Ok(false),
                (_, Some("ContainerStatusUnknown")) => Some(Exit::Unknown),
                (_, Some("Completed" | "Error")) if ended["exitCode"] == pod.code && !excused(ended) => {
                    Some(Exit::True)
                }
                _ => bail!("pod {} ended with {}, and is said to have {ended}", pod.name, pod.code),
            };
            Ok(true)
        })?;
        Ok(exit)
    }

    /// Deletes it at once; whether that was acknowledged.
    pub(super) fn delete(&self, connection: &mut Connection, pod: &Pod) -> Result<bool> {
        let path = format!("{PATH}/{}?gracePeriodSeconds=0", pod.name);
        match connection.send("DELETE", &path, "", "") {
            Ok((200 | 202 | 404, _)) => Ok(true),
            Ok((status, answer)) => bail!("{path}: {status} {}", String::from_utf8_lossy(&answer)),
            Err(_) => Ok(false),
        }
    }

    /// Waits until these are gone.
    pub(super) fn gone(&self, connection: &mut Connection, pods: &[Pod]) -> Result<()> {
        for pod in pods {
            poll(&format!("pod {} is gone", pod.name), || Ok(get(connection, pod)?.0 == 404))?;
        }
        Ok(())
    }

    /// Nothing runs or stands on the machine for a Pod that the API does not know.
    pub(super) fn check_no_orphan(&self, api: &Api) -> Result<()> {
        self.traces.check_no_orphan(api)
    }
}

impl Traces {
    pub(crate) fn of(sandbox: &Sandbox) -> Result<Self> {
        let state = sandbox.state().canonicalize()?;
        let instance = std::fs::read_to_string(state.join("instance"))?.trim().to_owned();
        Ok(Self { state, instance })
    }

    /// The keepers of this state folder: process id and Pod.
    pub(crate) fn keepers(&self) -> Result<Vec<(i32, String)>> {
        keepers(&self.state)
    }

    /// Nothing runs or stands on the machine for a Pod that the API does not know.
    pub(crate) fn check_no_orphan(&self, api: &Api) -> Result<()> {
        let mut connection = api.connect()?;
        let mut orphans = Vec::new();
        let looked = poll("nothing is left of Pods that are no more", || {
            // Of now, not of then: the last one to be asked is the API.
            let things = self.things()?;
            let list = connection.ok("GET", "/api/v1/pods", "", "")?;
            let items = list["items"].as_array().context("a list without items")?;
            let known: BTreeSet<&str> =
                items.iter().filter_map(|item| item["metadata"]["uid"].as_str()).collect();
            orphans = things.into_iter().filter(|(_, uid)| !known.contains(uid.as_str())).collect();
            Ok(orphans.is_empty())
        });
        looked.with_context(|| format!("orphans: {orphans:?}"))
    }

    /// What there is for Pods: what it is, and the Pod's UID.
    fn things(&self) -> Result<Vec<(String, String)>> {
        let mut things = Vec::new();
        for (pid, uid) in self.keepers()? {
            things.push((format!("keeper {pid}"), uid));
        }
        let run = self.state.join("run");
        let containers = run.join("containers");
        let mut cgroups = BTreeSet::new();
        find_cgroups(Path::new("/sys/fs/cgroup"), &format!("gantry-{}", self.instance), 0, &mut cgroups);
        for id in cgroups {
            let uid = std::fs::read_link(containers.join(&id)).ok().and_then(|bundle| self.uid(&bundle));
            things.push((format!("cgroup {id}"), uid.unwrap_or_default()));
        }
        for entry in std::fs::read_dir(&containers)? {
            let path = entry?.path();
            let uid = std::fs::read_link(&path).ok().and_then(|bundle| self.uid(&bundle));
            things.push((format!("{}", path.display()), uid.unwrap_or_default()));
        }
        for folder in [self.state.join("pods"), run.join("netns")] {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let uid = name.split('.').next().unwrap_or_default().to_owned();
                if uid != "router" {
                    things.push((format!("{}", entry.path().display()), uid));
                }
            }
        }
        Ok(things)
    }

    fn uid(&self, bundle: &Path) -> Option<String> {
        uid(&self.state, bundle)
    }
}

/// Whether a known code comes with the words for an unknown one.
fn excused(ended: &Value) -> bool {
    ended["message"].as_str().is_some_and(|message| message.contains("not known"))
}

fn get(connection: &mut Connection, pod: &Pod) -> Result<(u16, Value)> {
    let (status, answer) = connection.send("GET", &format!("{PATH}/{}", pod.name), "", "")?;
    ensure!(matches!(status, 200 | 404), "GET pod {}: {status}", pod.name);
    Ok((status, serde_json::from_slice(&answer)?))
}

/// The Pod that a bundle is of.
fn uid(state: &Path, bundle: &Path) -> Option<String> {
    let below = bundle.strip_prefix(state.join("pods")).ok()?;
    Some(below.components().next()?.as_os_str().to_string_lossy().into_owned())
}

/// The keepers of this state folder: process id and Pod.
fn keepers(state: &Path) -> Result<Vec<(i32, String)>> {
    let mut keepers = Vec::new();
    for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        if let [_, role, _, bundle, ..] = words.as_slice()
            && role == "keeper"
            && let Some(uid) = uid(state, Path::new(bundle.as_ref()))
        {
            keepers.push((pid, uid));
        }
    }
    Ok(keepers)
}

/// The ids of containers that have a cgroup below a folder of this name.
fn find_cgroups(folder: &Path, name: &str, depth: usize, found: &mut BTreeSet<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        if entry.file_name().to_string_lossy() == name {
            let inner = std::fs::read_dir(entry.path()).into_iter().flatten().flatten();
            found.extend(inner.filter_map(|entry| {
                entry.file_name().to_string_lossy().strip_prefix("c-").map(str::to_owned)
            }));
        } else if depth < 2 {
            find_cgroups(&entry.path(), name, depth + 1, found);
        }
    }
}
