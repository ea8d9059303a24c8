//! Unpacks one layer into a root folder that nothing may leave.
//!
//! Invariants: every path is resolved by the kernel inside the root (`openat2` with `RESOLVE_IN_ROOT`), so that a link of
//! a lower layer cannot lead out; a file that exists is unlinked, never written to, as it may be shared by hard links.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use oci::{
    Digest,
    layer::{Action, Entry, Kind, Limits, Policy, Reader, Refused},
};
use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};

use crate::{
    Error, Result,
    room::{self, Grant},
};

/// What a folder gets once everything is in it.
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
}

/// Unpacks a layer.
pub(crate) struct Unpacker {
    root: OwnedFd,
    shown: PathBuf,
    /// What this layer made: its own whiteouts do not hide it.
    made: BTreeSet<Vec<u8>>,
    folders: BTreeMap<Vec<u8>, Attributes>,
    /// The last parent folder, as most entries share it with the one before.
    parent: Option<(Vec<u8>, OwnedFd)>,
    buffer: Vec<u8>,
    grant: Grant,
}

/// What an entry takes beside its content: a block for a folder or a long link, and its place in the folder above.
const ENTRY_BYTES: u64 = 4096;

impl Unpacker {
    /// Unpacks into an existing folder.
    pub fn open(root: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(root, flags, Mode::empty()).map_err(|e| Error::io("opening", root)(e.into()))?;
        Ok(Unpacker {
            root: fd,
            shown: root.to_owned(),
            made: BTreeSet::new(),
            folders: BTreeMap::new(),
            parent: None,
            buffer: vec![0; 128 << 10],
            grant: Grant::new(room::look(root)),
        })
    }

    /// Unpacks the plain tar stream; gives it back, read to its end.
    pub fn unpack<R: Read>(mut self, stream: R, layer: &Digest, limits: Limits) -> Result<R> {
        let refused = |source| Error::Layer { digest: layer.clone(), source };
        let mut reader = Reader::new(stream, limits);
        let mut policy = Policy::default();
        while let Some(entry) = reader.next_entry().map_err(refused)? {
            let action = policy.check(&entry).map_err(|e| refused(e.into()))?;
            self.apply(action, &entry, &mut reader).map_err(|step| match step {
                Step::Refused(e) => refused(e.into()),
                Step::Torn(e) => refused(oci::layer::Error::Torn(e)),
                Step::Disk(source) => {
                    let path = self.shown.join(String::from_utf8_lossy(&entry.path).trim_start_matches('/'));
                    Error::Io { step: "unpacking", path, source }
                }
            })?;
        }
        let rest = reader.finish().map_err(refused)?;
        self.finish_folders().map_err(Error::io("setting attributes below", &self.shown))?;
        Ok(rest)
    }

    fn apply(
        &mut self,
        action: Action,
        entry: &Entry,
        content: &mut impl Read,
    ) -> std::result::Result<(), Step> {
        match action {
            Action::Skip => Ok(()),
            Action::Root => {
                self.folders.insert(Vec::new(), attributes(entry));
                Ok(())
            }
            Action::Make { path, target } => self.make(path, target, entry, content),
            Action::Remove { path } => {
                if self.made.contains(&path) {
                    return Ok(());
                }
                self.parent = None;
                let (parent, name) = split(&path);
                match self.resolve(parent) {
                    Ok(parent) => Ok(remove(parent.as_fd(), name)?),
                    Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
            Action::Clear { path } => {
                self.parent = None;
                match self.resolve(&path) {
                    Ok(folder) => Ok(self.clear(folder.as_fd(), &path)?),
                    Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
        }
    }

    fn make(
        &mut self,
        path: Vec<u8>,
        target: Vec<u8>,
        entry: &Entry,
        content: &mut impl Read,
    ) -> std::result::Result<(), Step> {
        self.grant.take(ENTRY_BYTES)?;
        let (parent_path, name) = split(&path);
        let (cached, parent) = match self.parent.take() {
            Some((cached, fd)) if cached == parent_path => (cached, fd),
            _ => (parent_path.to_vec(), self.make_parents(parent_path, entry)?),
        };
        let at = parent.as_fd();
        let there = match rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e.into()),
        };
        let stays = entry.kind == Kind::Directory && there == Some(FileType::Directory);
        if there.is_some() && !stays {
            remove(at, name)?;
        }
        match entry.kind {
            Kind::File => self.write_file(at, name, entry, content)?,
            Kind::Directory => {
                if !stays {
                    rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700))?;
                }
                self.folders.insert(path.clone(), attributes(entry));
            }
            Kind::SymLink => {
                rustix::fs::symlinkat(target.as_slice(), at, name)?;
                set_owner_and_time(at, name, entry)?;
            }
            Kind::HardLink => self.hard_link(at, name, &target, entry)?,
            Kind::Fifo => {
                rustix::fs::mknodat(at, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
                set_owner_and_time(at, name, entry)?;
                // The umask has its say in mknod. No link is followed: the name was made a moment ago, in a folder
                // that only root passes to.
                rustix::fs::chmodat(at, name, Mode::from_raw_mode(entry.mode & 0o777), AtFlags::empty())?;
            }
            Kind::Device => return Err(Refused::Device(entry.display_path()).into()),
        }
        self.made.insert(path);
        self.parent = Some((cached, parent));
        Ok(())
    }

    fn write_file(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        content: &mut impl Read,
    ) -> std::result::Result<(), Step> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600))?);
        let mut left = entry.size;
        while left > 0 {
            let n = match content.read(&mut self.buffer) {
                Ok(0) => return Err(Step::Torn(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Step::Torn(e)),
            };
            self.grant.take(n as u64)?;
            file.write_all(&self.buffer[..n])?;
            left -= n as u64;
        }
        let Attributes { mode, uid, gid, mtime } = attributes(entry);
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        for (name, value) in &entry.xattrs {
            // Only what means the same in any container; never the overlay's own.
            if name == "security.capability" || name.starts_with("user.") {
                match rustix::fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
                    Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        // After chown, which clears set-user-id.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(rustix::fs::futimens(&file, &times(mtime))?)
    }

    fn hard_link(
        &mut self,
        at: BorrowedFd<'_>,
        name: &[u8],
        target: &[u8],
        entry: &Entry,
    ) -> std::result::Result<(), Step> {
        let refused = || {
            let target = String::from_utf8_lossy(target).into_owned();
            Step::Refused(Refused::LinkTarget { path: entry.display_path(), target })
        };
        let (parent, target_name) = split(target);
        let absent = |e| if matches!(e, Errno::NOENT | Errno::NOTDIR) { refused() } else { Step::from(e) };
        let parent = self.resolve(parent).map_err(absent)?;
        let stat = rustix::fs::statat(&parent, target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(absent)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused());
        }
        Ok(rustix::fs::linkat(&parent, target_name, at, name, AtFlags::empty())?)
    }

    /// Opens a folder, resolved inside the root.
    fn resolve(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel asks to try again when a rename elsewhere disturbed the walk.
        for _ in 0..64 {
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    fn make_parents(&mut self, path: &[u8], entry: &Entry) -> std::result::Result<OwnedFd, Step> {
        match self.resolve(path) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR) => return Err(below_file(path, entry)),
            Err(e) => return Err(e.into()),
        }
        let mut folder = self.resolve(b"")?;
        let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let part = &path[..end];
            folder = match self.resolve(part) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&folder, split(part).1, Mode::from_raw_mode(0o755))?;
                    self.made.insert(part.to_vec());
                    let made = self.resolve(part)?;
                    // Whatever the umask: any user of the container passes a folder that the layer only implies.
                    rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
                    made
                }
                Err(Errno::NOTDIR) => return Err(below_file(part, entry)),
                Err(e) => return Err(e.into()),
            };
        }
        Ok(folder)
    }

    /// Removes everything in a folder that this layer did not make.
    fn clear(&self, folder: BorrowedFd<'_>, path: &[u8]) -> std::result::Result<(), Errno> {
        for (name, kind) in children(folder)? {
            let child = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            let below = [child.as_slice(), b"/"].concat();
            let holds = self.made.range(below.clone()..).next().is_some_and(|p| p.starts_with(&below));
            if kind == FileType::Directory && (holds || self.made.contains(&child)) {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = rustix::fs::openat(folder, name.as_slice(), flags, Mode::empty())?;
                self.clear(inner.as_fd(), &child)?;
            } else if !self.made.contains(&child) {
                remove(folder, &name)?;
            }
        }
        Ok(())
    }

    /// Sets folders' modes and times last: filling a folder changes its time, and a read-only one cannot be filled.
    fn finish_folders(&mut self) -> io::Result<()> {
        for (path, Attributes { mode, uid, gid, mtime }) in std::mem::take(&mut self.folders) {
            let folder = match self.resolve(&path) {
                Ok(folder) => folder,
                // Removed again by the same layer.
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(e) => return Err(e.into()),
            };
            if rustix::process::geteuid().is_root() {
                rustix::fs::fchown(&folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
            rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
            rustix::fs::futimens(&folder, &times(mtime))?;
        }
        Ok(())
    }
}

/// Why an entry was not unpacked.
enum Step {
    Refused(Refused),
    Torn(io::Error),
    Disk(io::Error),
}

impl From<Refused> for Step {
    fn from(refused: Refused) -> Self {
        Step::Refused(refused)
    }
}

impl From<io::Error> for Step {
    fn from(error: io::Error) -> Self {
        Step::Disk(error)
    }
}

impl From<Errno> for Step {
    fn from(error: Errno) -> Self {
        Step::Disk(error.into())
    }
}

/// Changes the owner, as far as this process may give files away.
pub(crate) fn chown(at: BorrowedFd<'_>, path: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    Ok(rustix::fs::chownat(at, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn set_owner_and_time(at: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> io::Result<()> {
    let Attributes { uid, gid, mtime, .. } = attributes(entry);
    chown(at, name, uid, gid)?;
    Ok(rustix::fs::utimensat(at, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn attributes(entry: &Entry) -> Attributes {
    // Ids that do not fit belong to nobody here.
    let id = |id: u64| u32::try_from(id).unwrap_or(65534);
    Attributes { mode: entry.mode, uid: id(entry.uid), gid: id(entry.gid), mtime: entry.mtime }
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn below_file(path: &[u8], entry: &Entry) -> Step {
    let file = String::from_utf8_lossy(path).into_owned();
    Step::Refused(Refused::BelowFile { path: entry.display_path(), file })
}

/// Removes a name with all that is below it, following no link. A name that is not there is no error.
fn remove(at: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<(), Errno> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(at, name, flags, Mode::empty())?;
    for (child, _) in children(folder.as_fd())? {
        remove(folder.as_fd(), &child)?;
    }
    rustix::fs::unlinkat(at, name, AtFlags::REMOVEDIR)
}

fn children(folder: BorrowedFd<'_>) -> std::result::Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let mut children = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        children.push((name.to_vec(), kind));
    }
    Ok(children)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
