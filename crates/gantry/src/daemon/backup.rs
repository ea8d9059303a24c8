//! A consistent copy of what a state folder has to keep, laid out while the daemon runs.
//!
//! Objects first, as one snapshot of the store, then names and the blobs that both reach. What belongs to this machine's
//! processes is left out, so that the copy can be started anywhere: Pods that a controller makes again, their endpoints,
//! the node, the Leases of running proxies. A Pod that nobody makes again starts anew.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use oci::Digest;
use serde_json::{Value, json};
use store::Entry;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::state::State;

/// Files of the state folder that are copied as they are, when they are there.
const FILES: &[&str] =
    &["instance", "registry-token", "endpoints.json", "network.json", "registry.json", "format"];
/// Folders of which the files are copied.
const FOLDERS: &[&str] = &["ca"];

/// Makes copies, one at a time.
pub struct Snapshots {
    state: State,
    objects: store::Store,
    images: images::Store,
    gate: Arc<Mutex<()>>,
}

/// A copy; dropping it removes it.
pub struct Snapshot {
    folder: PathBuf,
    _gate: OwnedMutexGuard<()>,
}

impl Snapshot {
    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        match durable::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, folder = %self.folder.display(), "remove a snapshot");
            }
            _ => {}
        }
    }
}

impl Snapshots {
    /// Also removes what a daemon left that died over a snapshot.
    pub fn new(state: &State, objects: store::Store, images: images::Store) -> Result<Self> {
        let folder = folder(state);
        match durable::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", folder.display()));
            }
            _ => {}
        }
        Ok(Self { state: state.clone(), objects, images, gate: Arc::default() })
    }

    /// Lays out a copy; waits for one that is being used.
    pub async fn take(&self) -> Result<Snapshot> {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let snapshot = Snapshot { folder: folder(&self.state), _gate: gate };
        let (state, objects, images) = (self.state.clone(), self.objects.snapshot(), self.images.clone());
        tokio::task::spawn_blocking(move || {
            lay_out(&state, &objects, &images, snapshot.folder())?;
            Ok(snapshot)
        })
        .await?
    }
}

fn folder(state: &State) -> PathBuf {
    state.run("snapshot")
}

/// What to do about an error of [`Snapshots::take`].
pub fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().any(is_full).then(|| {
        "free space on the file system of the state folder: a snapshot holds a copy of all objects while it is copied"
            .to_owned()
    })
}

fn is_full(cause: &(dyn std::error::Error + 'static)) -> bool {
    let io = cause.downcast_ref::<std::io::Error>();
    cause.is::<Short>() || io.is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
}

/// There is no room for a snapshot.
#[derive(Debug, thiserror::Error)]
#[error("no space left for a snapshot: the objects take {needed} bytes, and {available} are available")]
struct Short {
    needed: u64,
    available: u64,
}

/// A B-tree's pages are half full at worst, and it has a head.
const COPY_TIMES: u64 = 2;
const COPY_BYTES: u64 = 1 << 20;

/// Looked at first: a disk that a snapshot fills is full for everybody else too.
fn look_for_room(folder: &Path, objects: &store::Snapshot) -> Result<()> {
    let bytes: u64 =
        objects.range("/", None).map(|(key, entry)| (key.len() + entry.value.len()) as u64).sum();
    let needed = bytes * COPY_TIMES + COPY_BYTES;
    let found = rustix::fs::statvfs(folder).with_context(|| format!("look at {}", folder.display()))?;
    let available = found.f_bavail.saturating_mul(found.f_frsize);
    if needed > available {
        return Err(Short { needed, available }.into());
    }
    Ok(())
}

fn lay_out(state: &State, objects: &store::Snapshot, images: &images::Store, folder: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    look_for_room(&state.dir, objects)?;
    std::fs::DirBuilder::new().mode(0o700).create(folder).context("make the snapshot's folder")?;
    objects.write_to(&folder.join("store"), keep).context("copy the objects")?;
    let mut in_use = HashSet::new();
    for (_, entry) in objects.range("/", None) {
        in_use.extend(digests(&entry.value));
    }
    images.snapshot(&in_use, folder).context("copy the images")?;
    for name in FILES {
        copy(&state.dir.join(name), &folder.join(name))?;
    }
    for name in FOLDERS {
        let (from, to) = (state.dir.join(name), folder.join(name));
        std::fs::create_dir(&to).with_context(|| format!("make {}", to.display()))?;
        for entry in std::fs::read_dir(&from).with_context(|| format!("read {}", from.display()))? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    match std::fs::copy(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        copied => copied.map(drop).with_context(|| format!("copy {}", from.display())),
    }
}

/// What of an object goes into the copy.
fn keep(key: &str, entry: &Entry) -> Option<Entry> {
    let mut parts = key.split('/').skip(1);
    let (group, plural, namespace) = (parts.next()?, parts.next()?, parts.next());
    match (group, plural) {
        ("core", "nodes" | "events") | ("events.k8s.io", _) => None,
        ("coordination.k8s.io", "leases")
            if matches!(namespace, Some("gantry-system" | "kube-node-lease")) =>
        {
            None
        }
        ("discovery.k8s.io", "endpointslices") if is_made(&entry.value) => None,
        ("core", "pods") => {
            let value = anew(&entry.value)?;
            Some(Entry { value: value.into(), revision: entry.revision })
        }
        _ => Some(entry.clone()),
    }
}

/// Whether a controller made the object, and makes it again.
fn is_made(value: &[u8]) -> bool {
    let object: Value = serde_json::from_slice(value).unwrap_or_default();
    let owners = object["metadata"]["ownerReferences"].as_array();
    owners.is_some_and(|owners| owners.iter().any(|owner| owner["controller"] == true))
}

/// A Pod as it was before it was bound; `None` if somebody makes it again, or it was to go.
fn anew(value: &[u8]) -> Option<Vec<u8>> {
    let mut pod: Value = serde_json::from_slice(value).ok()?;
    if is_made(value) || !pod["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    if !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        pod["spec"].as_object_mut()?.remove("nodeName");
        pod["status"] = json!({"phase": "Pending", "qosClass": pod["status"]["qosClass"]});
    }
    serde_json::to_vec(&pod).ok()
}

/// Every digest that stands in an object, whatever its kind: what it names must be in the copy.
fn digests(value: &[u8]) -> Vec<Digest> {
    const PREFIX: &[u8] = b"sha256:";
    const LENGTH: usize = PREFIX.len() + 64;
    value
        .windows(LENGTH)
        .filter(|window| window.starts_with(PREFIX))
        .filter_map(|window| Digest::parse(std::str::from_utf8(window).ok()?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(value: &Value) -> Entry {
        Entry { value: serde_json::to_vec(value).unwrap().into(), revision: store::Revision(7) }
    }

    #[test]
    fn what_is_of_this_machine_is_left_out_and_a_lone_pod_starts_anew() {
        let owned = json!({"metadata": {"ownerReferences": [{"controller": true}]}, "spec": {}});
        assert!(keep("/core/pods/default/a", &entry(&owned)).is_none());
        assert!(keep("/discovery.k8s.io/endpointslices/default/a", &entry(&owned)).is_none());
        assert!(keep("/core/nodes/here", &entry(&json!({}))).is_none());
        assert!(keep("/coordination.k8s.io/leases/gantry-system/proxy-1", &entry(&json!({}))).is_none());
        assert!(keep("/coordination.k8s.io/leases/default/mine", &entry(&json!({}))).is_some());
        assert!(keep("/apps/replicasets/default/a", &entry(&owned)).is_some());
        let running = json!({"metadata": {}, "spec": {"nodeName": "here", "a": 1}, "status": {"phase": "Running", "podIP": "x"}});
        let kept = keep("/core/pods/default/b", &entry(&running)).unwrap();
        let pod: Value = serde_json::from_slice(&kept.value).unwrap();
        assert_eq!(pod["spec"], json!({"a": 1}));
        assert_eq!((&pod["status"]["phase"], &pod["status"]["podIP"]), (&json!("Pending"), &Value::Null));
        let ended = json!({"metadata": {}, "spec": {"nodeName": "here"}, "status": {"phase": "Succeeded"}});
        let kept = keep("/core/pods/default/c", &entry(&ended)).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&kept.value).unwrap(), ended);
    }

    #[test]
    fn digests_are_found_wherever_they_stand() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let text = format!(r#"{{"image":"localhost/x@{digest}","other":"sha256:short"}}"#);
        assert_eq!(digests(text.as_bytes()), [Digest::parse(&digest).unwrap()]);
    }
}
