//! Collecting what nothing can reach any more.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    time::{Duration, SystemTime},
};

use oci::{Digest, Platform, manifest::Content};

use crate::{
    Error, Result, Store,
    tree::{discard, tree_name},
};

/// How long what is new is left alone, whether it is reachable or not.
#[derive(Debug, Clone, Copy)]
pub struct Grace {
    /// For blobs and trees: an upload sends blobs first and the manifest last.
    pub blobs: Duration,
    /// For manifests that lost their tag or never had one.
    pub untagged: Duration,
}

impl Default for Grace {
    /// An hour, and a day.
    fn default() -> Self {
        Grace { blobs: Duration::from_secs(3600), untagged: Duration::from_secs(24 * 3600) }
    }
}

/// What was removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    pub blobs: u64,
    /// Bytes of those blobs.
    pub bytes: u64,
    /// Untagged manifests.
    pub manifests: u64,
    pub trees: u64,
}

impl Store {
    /// Removes what neither a tag nor `in_use` (digests of manifests or indexes that workloads name) reaches.
    pub fn collect_garbage(&self, in_use: &HashSet<Digest>) -> Result<Collected> {
        self.collect_garbage_after(in_use, Grace::default())
    }

    /// Like [`Store::collect_garbage`], with other times of grace.
    pub fn collect_garbage_after(&self, in_use: &HashSet<Digest>, grace: Grace) -> Result<Collected> {
        let now = SystemTime::now();
        let mut collected = Collected::default();
        let trees = {
            let _gate = self.0.gate.write().unwrap_or_else(|e| e.into_inner());
            let kept = self.mark(in_use, now, grace)?;
            self.sweep_revisions(&kept, &mut collected)?;
            self.sweep_blobs(&kept.all, now, grace, &mut collected)?;
            kept.trees
        };
        self.sweep_trees(&trees, now, grace, &mut collected)?;
        Ok(collected)
    }

    /// Removes one blob now, unless an image of any repository needs it. `false`: it was not here.
    pub fn remove_blob(&self, digest: &Digest) -> Result<bool> {
        let _gate = self.0.gate.write().unwrap_or_else(|e| e.into_inner());
        if !self.has(digest) {
            return Ok(false);
        }
        let forever = Grace { blobs: Duration::MAX, untagged: Duration::MAX };
        if self.mark(&HashSet::new(), SystemTime::now(), forever)?.all.contains(digest) {
            return Err(Error::BlobUsed(digest.clone()));
        }
        let path = self.blob_path(digest);
        durable::remove(&path).map_err(Error::io("removing", &path))?;
        Ok(true)
    }

    /// Every blob that is kept, by digest.
    pub(crate) fn reachable(
        &self,
        in_use: &HashSet<Digest>,
        now: SystemTime,
        grace: Grace,
    ) -> Result<HashSet<Digest>> {
        Ok(self.mark(in_use, now, grace)?.all.into_iter().collect())
    }

    fn mark(&self, in_use: &HashSet<Digest>, now: SystemTime, grace: Grace) -> Result<Kept> {
        let mut kept = Kept::default();
        for digest in in_use {
            self.keep(digest, &mut kept);
        }
        let mut referrers = Vec::new();
        for repository in self.all_repositories()? {
            for tag in self.tags(&repository)?.unwrap_or_default() {
                let Ok(name) = repository.with_tag(&tag) else { continue };
                if let Some(descriptor) = self.resolve(&name)? {
                    self.keep(&descriptor.digest, &mut kept);
                }
            }
            for revision in self.revisions(&repository)? {
                let digest = revision.descriptor.digest;
                let age = now.duration_since(revision.written).unwrap_or_default();
                if age < grace.untagged {
                    self.keep(&digest, &mut kept);
                } else if let Ok(document) = self.document(&digest) {
                    referrers.extend(document.subject().map(|subject| (subject.digest.clone(), digest)));
                }
            }
        }
        // A signature lives as long as what it signs; and one may sign another.
        let mut changed = true;
        while changed {
            changed = false;
            for (subject, referrer) in &referrers {
                if kept.all.contains(subject) && !kept.all.contains(referrer) {
                    self.keep(referrer, &mut kept);
                    changed = true;
                }
            }
        }
        Ok(kept)
    }

    /// Keeps a manifest with all that it needs. What cannot be read is kept by itself.
    fn keep(&self, digest: &Digest, kept: &mut Kept) {
        if !kept.all.insert(digest.clone()) {
            return;
        }
        match self.document(digest).map(|d| d.content) {
            Ok(Content::Index(index)) => {
                for child in &index.manifests {
                    self.keep(&child.digest, kept);
                }
            }
            Ok(Content::Image(manifest)) => {
                kept.all.extend(manifest.blobs().map(|b| b.digest.clone()));
                if let Ok(image) = self.image(digest, &Platform::host()) {
                    let count = image.manifest.layers.len();
                    kept.trees.insert(tree_name(&image.config, count));
                    kept.trees.insert(tree_name(&image.config, count.saturating_sub(1)));
                }
            }
            Err(_) => {}
        }
    }

    fn sweep_revisions(&self, kept: &Kept, collected: &mut Collected) -> Result<()> {
        for repository in self.all_repositories()? {
            for revision in self.revisions(&repository)? {
                if !kept.all.contains(&revision.descriptor.digest) {
                    self.unlink_revision(&self.repository_dir(&repository), &revision.descriptor.digest)?;
                    collected.manifests += 1;
                }
            }
        }
        Ok(())
    }

    fn sweep_blobs(
        &self,
        kept: &BTreeSet<Digest>,
        now: SystemTime,
        grace: Grace,
        collected: &mut Collected,
    ) -> Result<()> {
        for (digest, size, changed) in self.blobs()? {
            let is_new = now.duration_since(changed).unwrap_or_default() < grace.blobs;
            if is_new || kept.contains(&digest) {
                continue;
            }
            let path = self.blob_path(&digest);
            // Not synced one by one: a removal that a power cut undoes is made again.
            fs::remove_file(&path).map_err(Error::io("removing", &path))?;
            collected.blobs += 1;
            collected.bytes += size;
        }
        Ok(())
    }

    fn sweep_trees(
        &self,
        kept: &BTreeSet<String>,
        now: SystemTime,
        grace: Grace,
        collected: &mut Collected,
    ) -> Result<()> {
        let _gate = self.0.tree_gate.write().unwrap_or_else(|e| e.into_inner());
        let trees = &self.0.trees;
        for entry in fs::read_dir(trees).map_err(Error::io("listing", trees))? {
            let entry = entry.map_err(Error::io("listing", trees))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let changed = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let is_new = now.duration_since(changed).unwrap_or_default() < grace.blobs;
            if name.starts_with('.') || is_new || kept.contains(&name) {
                continue;
            }
            discard(trees, &entry.path())?;
            collected.trees += 1;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Kept {
    /// Blobs, manifests included.
    all: BTreeSet<Digest>,
    /// Names of trees.
    trees: BTreeSet<String>,
}
