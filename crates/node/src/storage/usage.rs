//! What a folder holds on disk, counted in slices: a program decides how much there is to count.
//!
//! **Invariant:** a slice costs a bounded amount of work and a walk a bounded amount of memory, whatever the program
//! made. Folders are opened from their root without following a link, so that nothing outside is counted.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2, statat};
use rustix::io::Errno;

/// Folders that wait to be counted; a tree with more cannot be counted.
const PENDING_MAX: usize = 100_000;
/// Levels of folders; a tree with more cannot be counted.
const DEPTH_MAX: usize = 1_000;
/// Bytes of a path that the kernel takes at once (PATH_MAX), with room to spare.
const PATH_BYTES_MAX: usize = 3_000;
/// Files with several names that are remembered, so that each is counted once; more are counted by each name.
const LINKED_MAX: usize = 100_000;
/// As stat(2) counts blocks.
const BLOCK_BYTES: u64 = 512;

/// Why a tree cannot be counted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Too many folders, or too deep.
    #[error("its folders are too many or nested too deep to be counted")]
    Uncountable,
    /// The file system.
    #[error("look into {path}")]
    Io {
        /// The tree.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// One pass over a tree.
#[derive(Debug)]
pub struct Walk {
    root: PathBuf,
    pending: Vec<PathBuf>,
    open: Option<(PathBuf, Dir, OwnedFd)>,
    linked: HashSet<u64>,
    bytes: u64,
}

impl Walk {
    /// A pass that has seen nothing yet. A root that is not there holds nothing.
    pub fn new(root: PathBuf) -> Self {
        Self { root, pending: vec![PathBuf::new()], open: None, linked: HashSet::new(), bytes: 0 }
    }

    /// What has been counted so far: as much as there is, or less.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts on for at most `budget` entries, which it takes from it; whether the pass is through.
    pub fn go_on(&mut self, budget: &mut u64) -> Result<bool, Error> {
        while *budget > 0 {
            let Some((path, entries, folder)) = &mut self.open else {
                let Some(path) = self.pending.pop() else { return Ok(true) };
                *budget -= 1;
                self.open = open(&self.root, &path)
                    .map_err(|source| self.error(source))?
                    .map(|folder| {
                        let entries = Dir::read_from(&folder);
                        entries.map(|entries| (path, entries, folder))
                    })
                    .transpose()
                    .map_err(|source| self.error(source.into()))?;
                continue;
            };
            let entry = match entries.read() {
                Some(Ok(entry)) => entry,
                // It was removed while it was read.
                None | Some(Err(Errno::NOENT)) => {
                    self.open = None;
                    continue;
                }
                Some(Err(error)) => return Err(self.error(error.into())),
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            *budget -= 1;
            let stat = match statat(&*folder, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(self.error(error.into())),
            };
            let below = (FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
                .then(|| path.join(std::ffi::OsStr::from_bytes(name.to_bytes())));
            self.count(&stat);
            if let Some(below) = below {
                if self.pending.len() >= PENDING_MAX || below.components().count() > DEPTH_MAX {
                    return Err(Error::Uncountable);
                }
                self.pending.push(below);
            }
        }
        Ok(self.open.is_none() && self.pending.is_empty())
    }

    fn count(&mut self, stat: &Stat) {
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !is_folder && stat.st_nlink > 1 {
            if self.linked.contains(&stat.st_ino) {
                return;
            }
            if self.linked.len() < LINKED_MAX {
                self.linked.insert(stat.st_ino);
            }
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.bytes = self.bytes.saturating_add(blocks.saturating_mul(BLOCK_BYTES));
    }

    fn error(&self, source: io::Error) -> Error {
        Error::Io { path: self.root.clone(), source }
    }
}

/// Opens `path` below `root`; `None` if it is not there (any more), is a link by now, or lies on another file system.
fn open(root: &Path, path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut at = match openat(CWD, root, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let mut part = PathBuf::new();
    let mut parts = path.components().peekable();
    while let Some(next) = parts.next() {
        part.push(next);
        let more = parts.peek().is_some();
        if more && part.as_os_str().len() < PATH_BYTES_MAX {
            continue;
        }
        at = match openat2(at.as_fd(), &part, flags, Mode::empty(), resolve) {
            Ok(found) => found,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        part.clear();
    }
    Ok(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn whole(root: &Path) -> Result<u64, Error> {
        let mut walk = Walk::new(root.to_owned());
        while !walk.go_on(&mut 1000)? {}
        Ok(walk.bytes())
    }

    #[test]
    fn blocks_are_counted_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("r");
        fs::create_dir_all(root.join("a/b")).unwrap();
        let empty = whole(&root).unwrap();
        fs::write(root.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(root.join("a/b/file"), root.join("again")).unwrap();
        fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("link")).unwrap();
        std::os::unix::fs::symlink("..", root.join("up")).unwrap();
        // A hole holds nothing.
        fs::File::create(root.join("hole")).unwrap().set_len(1 << 40).unwrap();
        let found = whole(&root).unwrap() - empty;
        assert!(((1 << 20)..(1 << 20) + (64 << 10)).contains(&found), "{found}");
        assert_eq!(whole(&dir.path().join("nothing")).unwrap(), 0);
    }

    #[test]
    fn a_slice_ends_with_its_budget_and_the_next_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..500 {
            fs::write(dir.path().join(format!("{number}")), b"x").unwrap();
        }
        let mut walk = Walk::new(dir.path().to_owned());
        let (mut slices, mut least) = (1, 0);
        loop {
            let mut budget = 50;
            let through = walk.go_on(&mut budget).unwrap();
            assert!(walk.bytes() >= least);
            least = walk.bytes();
            if through {
                break;
            }
            assert_eq!(budget, 0);
            slices += 1;
        }
        assert!((10..=12).contains(&slices), "{slices}");
        assert_eq!(walk.bytes(), whole(dir.path()).unwrap());
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused_and_a_deep_one_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let make = |levels: usize| {
            let top = dir.path().join(levels.to_string());
            fs::create_dir(&top).unwrap();
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let mut at = openat(CWD, &top, flags, Mode::empty()).unwrap();
            let name = "d".repeat(20);
            for _ in 0..levels {
                rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
                at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
            }
            let file = openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
            rustix::io::write(&file, &[1; 4096]).unwrap();
            top
        };
        // Longer than a path may be for the kernel.
        assert!(whole(&make(DEPTH_MAX - 1)).unwrap() >= 4096);
        assert!(matches!(whole(&make(DEPTH_MAX + 1)), Err(Error::Uncountable)));
        durable::remove_dir_all(dir.path()).unwrap();
    }
}
