//! A consistent copy of names and blobs beside the store, for a backup.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use oci::Digest;

use crate::garbage::Grace;
use crate::{Error, Result, Store};

impl Store {
    /// Lays out `blobs/` and `names/` in `folder`, which is on the store's own file system: every name, and hard links to
    /// the blobs that a name, a manifest or `in_use` (digests that workloads name) reaches. Nothing is collected
    /// meanwhile, and what is collected later stays in the copy.
    pub fn snapshot(&self, in_use: &HashSet<Digest>, folder: &Path) -> Result<()> {
        let _gate = self.0.gate.write().unwrap_or_else(|e| e.into_inner());
        let everything = Grace { blobs: Duration::MAX, untagged: Duration::MAX };
        for digest in self.reachable(in_use, SystemTime::now(), everything)? {
            let blob = self.blob_path(&digest);
            let Ok(below) = blob.strip_prefix(&self.0.blobs) else { continue };
            let copy = folder.join("blobs").join(below);
            if let Some(above) = copy.parent() {
                fs::create_dir_all(above).map_err(Error::io("making", above))?;
            }
            match fs::hard_link(&blob, &copy) {
                // A manifest may name what was never pulled, as an index does for other platforms.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                result => result.map_err(Error::io("linking", &copy))?,
            }
        }
        copy_folder(&self.0.names, &folder.join("names"))
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::io("making", to))?;
    for entry in fs::read_dir(from).map_err(Error::io("reading", from))? {
        let entry = entry.map_err(Error::io("reading", from))?;
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &copy)?;
        } else {
            fs::copy(&path, &copy).map_err(Error::io("copying", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_keeps_what_is_collected_later_and_not_what_nothing_reaches() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let store = Store::open(&state).unwrap();
        let used = store.put(b"used", None).unwrap();
        let stray = store.put(b"stray", None).unwrap();
        let copy = state.join("copy");
        store.snapshot(&HashSet::from([used.clone()]), &copy).unwrap();
        assert!(store.remove_blob(&used).unwrap());
        let at = |digest: &Digest| {
            copy.join("blobs").join(store.blob_path(digest).strip_prefix(state.join("blobs")).unwrap())
        };
        assert_eq!(fs::read(at(&used)).unwrap(), b"used");
        assert!(!at(&stray).exists());
        assert!(copy.join("names").is_dir());
    }
}
