//! Which images are needed, and when the others go.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use images::garbage::{Collected, Grace};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::api::ListParams;
use kube::{Api, Client};
use oci::{Digest, Reference};

/// How often what nothing needs is removed.
const EVERY: Duration = Duration::from_secs(3600);
/// How often it is looked whether the disk gets full.
const LOOK: Duration = Duration::from_secs(60);
/// The disk is nearly full: the share in use, in percent, from which kubelet too collects
/// (`imageGCHighThresholdPercent`).
const FULL_PERCENT: u64 = 85;
/// The grace then: uploads that still run keep their blobs, nothing else is kept for being new.
const PRESSED: Grace = Grace { blobs: Duration::from_secs(600), untagged: Duration::ZERO };

/// Removes images that no tag, no container and no revision of a Deployment names.
pub struct Collector {
    pub images: images::Store,
    pub node: node::Node,
    pub client: Client,
}

impl Collector {
    /// Collects each hour, and more when the disk of the state folder is nearly full. Never ends.
    pub async fn run(self, state_dir: PathBuf) {
        let mut ticks = tokio::time::interval(LOOK);
        let mut last: Option<tokio::time::Instant> = None;
        // Before the node evicts a Pod for the disk's sake, what nothing needs goes.
        let mut pressure = self.node.disk_pressure();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = pressure.changed() => {}
            }
            let pressed = *pressure.borrow_and_update()
                || used_percent(&state_dir).is_some_and(|used| used >= FULL_PERCENT);
            if !pressed && last.is_some_and(|last| last.elapsed() < EVERY) {
                continue;
            }
            last = Some(tokio::time::Instant::now());
            match self.collect(if pressed { PRESSED } else { Grace::default() }).await {
                Ok(collected) if collected == Collected::default() => {}
                Ok(collected) => tracing::info!(?collected, pressed, "images that nothing needs"),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "collect images that nothing needs");
                }
            }
        }
    }

    /// Removes what is not needed and older than the grace.
    async fn collect(&self, grace: Grace) -> Result<Collected> {
        let mut in_use = self.named().await?;
        in_use.extend(self.node.images_in_use());
        let images = self.images.clone();
        let collected = tokio::task::spawn_blocking(move || images.collect_garbage_after(&in_use, grace));
        Ok(collected.await??)
    }

    /// The digests that objects name: a rollback needs the image of an old ReplicaSet.
    async fn named(&self) -> Result<HashSet<Digest>> {
        let all = ListParams::default();
        let mut digests = HashSet::new();
        let mut add = |spec: Option<&PodSpec>| digests.extend(spec.into_iter().flat_map(named_by));
        for object in
            Api::<Deployment>::all(self.client.clone()).list(&all).await.context("list Deployments")?
        {
            add(object.spec.and_then(|spec| spec.template.spec).as_ref());
        }
        for object in
            Api::<ReplicaSet>::all(self.client.clone()).list(&all).await.context("list ReplicaSets")?
        {
            add(object.spec.and_then(|spec| spec.template?.spec).as_ref());
        }
        for object in Api::<Pod>::all(self.client.clone()).list(&all).await.context("list Pods")? {
            add(object.spec.as_ref());
        }
        Ok(digests)
    }
}

/// How much of the file system is in use, for those who are not root.
fn used_percent(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    let used = stat.f_blocks.saturating_sub(stat.f_bfree);
    (used * 100).checked_div(used + stat.f_bavail)
}

fn named_by(spec: &PodSpec) -> Vec<Digest> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let references = containers.filter_map(|container| Reference::parse(container.image.as_deref()?).ok());
    references.filter_map(|reference| reference.digest().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Container;

    use super::*;

    #[test]
    fn a_spec_names_digests_and_no_tags() {
        let container = |image: &str| Container { image: Some(image.to_owned()), ..Container::default() };
        let digest = format!("sha256:{}", "a".repeat(64));
        let spec = PodSpec {
            containers: vec![container(&format!("localhost/x@{digest}")), container("localhost/y:latest")],
            init_containers: Some(vec![container("no reference"), Container::default()]),
            ..PodSpec::default()
        };
        assert_eq!(named_by(&spec), [Digest::parse(&digest).unwrap()]);
    }
}
