//! The one scanner: looks at the disk and counts on for each Pod, every two seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use lifecycle::bound::Bound;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Eviction;
use super::limit::{self, Usage};
use super::pressure::{Candidate, Disk, Pressure, victim};
use super::usage::{self, Walk};
use crate::node::{Entry, Registry};
use crate::worker::log_dir;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(2);
/// Entries that a round counts for all Pods together: some tenths of a second.
const ROUND_ENTRIES_MAX: u64 = 200_000;
/// Entries that a round counts for one Pod, so that no other waits for it.
const POD_ENTRIES_MAX: u64 = 50_000;
/// Rounds under pressure before a Pod is evicted: images that nothing needs go first.
const ROUNDS_BEFORE_EVICTION: u32 = 3;
/// How long an evicted Pod has to give its space back before another one is.
const CLEAN_UP: Duration = Duration::from_secs(30);

/// Counts what the Pods of a node hold on disk.
pub(crate) struct Scanner {
    pods: Registry,
    state_dir: PathBuf,
    pressed: watch::Sender<bool>,
    counts: BTreeMap<String, Count>,
    pressure: Pressure,
    /// Rounds that the pressure has lasted.
    rounds: u32,
    /// Whom the disk's sake cost last, and when.
    evicted: Option<(String, Instant)>,
    bound: Arc<Bound>,
}

/// Where the counting of a Pod stands.
#[derive(Default)]
struct Count {
    trees: Vec<Tree>,
    /// The last pass that came to its end.
    whole: Option<Usage>,
}

/// What is counted together.
struct Tree {
    part: Part,
    walk: Walk,
    through: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Volume(String),
    Container(String),
}

impl Scanner {
    /// `pressed` is told whether the disk is nearly full.
    pub fn new(pods: Registry, state_dir: PathBuf, pressed: watch::Sender<bool>) -> Self {
        Self {
            pods,
            state_dir,
            pressed,
            counts: BTreeMap::new(),
            pressure: Pressure::default(),
            rounds: 0,
            evicted: None,
            bound: Bound::new("node_storage_scan_round_entries", ROUND_ENTRIES_MAX),
        }
    }

    /// Looks for ever.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(ROUND);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // Reading folders blocks.
            self = match tokio::task::spawn_blocking(move || {
                self.round(Instant::now());
                self
            })
            .await
            {
                Ok(scanner) => scanner,
                Err(error) => return tracing::error!(%error, "the scanner of what Pods write ended badly"),
            };
        }
    }

    fn round(&mut self, now: Instant) {
        // A disk that cannot be asked is no reason to end anyone.
        let disk = Disk::look(&self.state_dir).unwrap_or_default();
        let pressed = self.pressure.look(disk, now);
        if self.pressed.send_if_modified(|was| std::mem::replace(was, pressed) != pressed) {
            let (available, threshold) = (disk.available, disk.threshold());
            tracing::warn!(pressed, available, threshold, "disk of the state folder");
        }
        self.rounds = if disk.is_short() { self.rounds.saturating_add(1) } else { 0 };
        let pods = self.pods.all();
        let there: BTreeSet<&str> = pods.iter().filter_map(|(pod, _)| pod.metadata.uid.as_deref()).collect();
        self.counts.retain(|uid, _| there.contains(uid.as_str()));
        let mut left = ROUND_ENTRIES_MAX;
        for (pod, entry) in pods.iter().filter(|(pod, _)| can_be_evicted(pod)) {
            if pressed || limit::is_limited(pod) {
                self.count(pod, entry, &mut left);
            }
        }
        self.bound.set(ROUND_ENTRIES_MAX - left);
        if self.rounds >= ROUNDS_BEFORE_EVICTION {
            self.relieve(&pods, disk, now);
        }
    }

    /// Counts on for a Pod, and ends it if it is beyond its limits.
    fn count(&mut self, pod: &Pod, entry: &Entry, left: &mut u64) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let count = self.counts.entry(uid).or_default();
        if count.trees.is_empty() {
            count.trees = trees(pod, entry, &self.state_dir);
        }
        let mut budget = POD_ENTRIES_MAX.min(*left);
        let before = budget;
        let limited = limit::is_limited(pod);
        for tree in count.trees.iter_mut().filter(|tree| !tree.through) {
            match tree.walk.go_on(&mut budget) {
                Ok(through) => tree.through = through,
                // What cannot be counted cannot be limited.
                Err(error @ usage::Error::Uncountable) if limited => {
                    let message = format!("Local ephemeral storage of {}: {error}. ", tree.part.words());
                    evict(entry, Eviction { message, pressure: false });
                    tree.through = true;
                }
                Err(error) => {
                    tracing::debug!(error = %crate::ports::Failure::of(&error), "count what a Pod holds");
                    tree.through = true;
                }
            }
        }
        *left -= before - budget;
        let usage = count.usage();
        if let Some(message) = limit::exceeded(pod, &usage) {
            evict(entry, Eviction { message, pressure: false });
        }
        if count.trees.iter().all(|tree| tree.through) {
            count.whole = Some(usage);
            count.trees.clear();
        }
    }

    /// Ends the Pod whose end helps the disk most.
    fn relieve(&mut self, pods: &[(Arc<Pod>, Entry)], disk: Disk, now: Instant) {
        let is_clean = |uid: &str| {
            let found = pods.iter().find(|(pod, _)| pod.metadata.uid.as_deref() == Some(uid));
            found.is_none_or(|(pod, _)| !can_be_evicted(pod))
        };
        if self.evicted.as_ref().is_some_and(|(uid, at)| !is_clean(uid) && now.duration_since(*at) < CLEAN_UP)
        {
            return;
        }
        let candidates = pods.iter().filter(|(pod, _)| can_be_evicted(pod)).filter_map(|(pod, _)| {
            let uid = pod.metadata.uid.clone()?;
            let used = self.counts.get(&uid)?.known().total();
            let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
            Some(Candidate { uid, used, request: limit::request(pod), priority })
        });
        let Some(chosen) = victim(candidates.collect(), disk) else { return };
        let message = format!(
            "The node was low on resource: ephemeral-storage. Threshold quantity: {}, available: {}. The Pod was using \
             {}, request is {}. ",
            limit::words(disk.threshold()),
            limit::words(disk.available),
            limit::words(chosen.used),
            limit::words(chosen.request)
        );
        if let Some((_, entry)) = pods.iter().find(|(pod, _)| pod.metadata.uid.as_ref() == Some(&chosen.uid))
        {
            evict(entry, Eviction { message, pressure: true });
        }
        self.evicted = Some((chosen.uid, now));
    }
}

impl Count {
    fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for tree in &self.trees {
            let (map, name) = match &tree.part {
                Part::Volume(name) => (&mut usage.volumes, name),
                Part::Container(name) => (&mut usage.containers, name),
            };
            let sum = map.entry(name.clone()).or_default();
            *sum = sum.saturating_add(tree.walk.bytes());
        }
        usage
    }

    /// The last whole count, or what the present one has found if that is more.
    fn known(&self) -> Usage {
        let present = self.usage();
        match &self.whole {
            Some(whole) if whole.total() >= present.total() => whole.clone(),
            _ => present,
        }
    }
}

impl Part {
    fn words(&self) -> String {
        match self {
            Part::Volume(name) => format!("EmptyDir volume {name:?}"),
            Part::Container(name) => format!("container {name}"),
        }
    }
}

/// A Pod that has ended holds its logs only, and what is being deleted gives everything back anyway.
fn can_be_evicted(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn evict(entry: &Entry, eviction: Eviction) {
    // The first reason stays.
    entry.eviction.send_if_modified(|now| {
        let is_new = now.is_none();
        now.get_or_insert(eviction);
        is_new
    });
}

/// Where a Pod's files are: what it wrote into its containers, their logs, its emptyDirs on disk.
fn trees(pod: &Pod, entry: &Entry, state_dir: &Path) -> Vec<Tree> {
    let tree = |part, path| Tree { part, walk: Walk::new(path), through: false };
    let dir = state_dir.join("pods").join(pod.metadata.uid.as_deref().unwrap_or_default());
    let logs = log_dir(state_dir, pod);
    let mut trees: Vec<Tree> = limit::volumes(pod)
        .map(|(name, _)| tree(Part::Volume(name.to_owned()), dir.join("volumes").join(name)))
        .collect();
    let containers = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    for container in containers {
        trees.push(tree(Part::Container(container.name.clone()), logs.join(&container.name)));
    }
    let handles = entry.handles.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, handle) in handles.iter() {
        let layer = dir.join("containers").join(handle.id()).join("upper");
        trees.push(tree(Part::Container(name.clone()), layer));
    }
    trees
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scanner(dir: &Path, spec: serde_json::Value) -> (Scanner, Entry, PathBuf) {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
        .unwrap();
        let entry = Entry::new(crate::worker::Update { pod: Arc::new(pod), gone: false });
        let pods = Registry::default();
        pods.insert("u".to_owned(), entry.clone());
        let scanner = Scanner::new(pods, dir.to_owned(), watch::Sender::new(false));
        let volume = dir.join("pods/u/volumes/v");
        std::fs::create_dir_all(&volume).unwrap();
        (scanner, entry, volume)
    }

    fn said(entry: &Entry) -> Option<String> {
        entry.eviction.borrow().as_ref().map(|eviction| eviction.message.clone())
    }

    #[test]
    fn a_volume_beyond_its_limit_is_found_in_one_round() {
        let dir = tempfile::tempdir().unwrap();
        let spec = json!({"containers": [{"name": "c"}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]});
        let (mut scanner, entry, volume) = scanner(dir.path(), spec);
        std::fs::write(volume.join("small"), vec![1; 512 << 10]).unwrap();
        scanner.round(Instant::now());
        assert_eq!(said(&entry), None);
        std::fs::write(volume.join("more"), vec![1; 768 << 10]).unwrap();
        scanner.round(Instant::now());
        assert_eq!(said(&entry).unwrap(), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
    }

    #[test]
    fn logs_count_as_the_container_s_own() {
        let dir = tempfile::tempdir().unwrap();
        let spec = json!({"containers": [{"name": "c",
            "resources": {"limits": {"ephemeral-storage": "1Mi"}}}]});
        let (mut scanner, entry, _) = scanner(dir.path(), spec);
        let logs = dir.path().join("logs/n_p_u/c");
        std::fs::create_dir_all(&logs).unwrap();
        std::fs::write(logs.join("0.log"), vec![1; 2 << 20]).unwrap();
        scanner.round(Instant::now());
        assert!(
            said(&entry).unwrap().contains("ephemeral local storage usage exceeds"),
            "{:?}",
            said(&entry)
        );
    }

    #[test]
    fn what_cannot_be_counted_is_not_allowed_under_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let spec = json!({"containers": [{"name": "c"}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Gi"}}]});
        let (mut scanner, entry, volume) = scanner(dir.path(), spec);
        let mut deep = volume;
        for _ in 0..1001 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        scanner.round(Instant::now());
        assert!(said(&entry).unwrap().contains("too deep to be counted"), "{:?}", said(&entry));
    }
}
