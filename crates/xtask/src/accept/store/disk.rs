//! What the state folder holds: blobs that are what their names say, and nothing half-written.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::archive;

/// The blob store, looked at again and again: what was read once and is the same file is not read again.
#[derive(Default)]
pub(super) struct Blobs {
    read: HashSet<(String, u64, u64)>,
}

impl Blobs {
    /// Reads what is new, and looks for each blob that was acknowledged. How many there are.
    pub(super) fn check<'a>(
        &mut self,
        state: &Path,
        acknowledged: impl Iterator<Item = &'a String>,
    ) -> Result<usize> {
        let folder = state.join("blobs/sha256");
        let mut there = BTreeSet::new();
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // An upload that may go on.
            if name.starts_with(".staged-") {
                continue;
            }
            let metadata = entry.metadata()?;
            if self.read.insert((name.clone(), metadata.ino(), metadata.len())) {
                let bytes = std::fs::read(entry.path())?;
                ensure!(
                    archive::digest(&bytes) == format!("sha256:{name}"),
                    "blob {name} is not what its name says: {} bytes",
                    bytes.len()
                );
            }
            there.insert(format!("sha256:{name}"));
        }
        for digest in acknowledged {
            ensure!(there.contains(digest), "the acknowledged blob {digest} is not there");
        }
        Ok(there.len())
    }

    /// The next check reads every file.
    pub(super) fn forget(&mut self) {
        self.read.clear();
    }
}

/// Files and folders that have the name of one that is being written.
pub(super) fn staged(state: &Path) -> Result<Vec<PathBuf>> {
    let is_staged = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(".staged-") || name.starts_with(".tmp-")
    };
    Ok(files(state, &[])?.into_keys().filter(is_staged).collect())
}

/// Every file and folder below `folder`, with its size (0 for a folder); `without` are not looked into.
pub(super) fn files(folder: &Path, without: &[PathBuf]) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            // Gone since its parent was read.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("list {}", folder.display())),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else { continue };
            if without.contains(&entry.path()) {
                continue;
            }
            let size = if metadata.is_dir() { 0 } else { metadata.len() };
            if metadata.is_dir() {
                open.push(entry.path());
            }
            found.insert(entry.path(), size);
        }
    }
    Ok(found)
}
