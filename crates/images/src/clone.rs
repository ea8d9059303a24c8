//! Copies a tree by hard links: folders are made anew, everything else is shared.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, linkat, utimensat};

use crate::{Error, Result, unpack::chown};

/// Copies the content, modes, owners and times of `from` into the folder `to`. Nothing writes to a shared file: whoever
/// changes a tree unlinks first.
pub(crate) fn clone_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(Error::io("listing", from))? {
        let entry = entry.map_err(Error::io("listing", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(Error::io("looking at", &source))?;
        if kind.is_dir() {
            fs::create_dir(&target).map_err(Error::io("making", &target))?;
            clone_tree(&source, &target)?;
        } else {
            link(&source, &target).map_err(Error::io("linking", &target))?;
        }
    }
    copy_attributes(from, to).map_err(Error::io("setting attributes of", to))
}

fn link(source: &Path, target: &Path) -> io::Result<()> {
    match linkat(CWD, source, CWD, target, AtFlags::empty()) {
        // The file system's limit of links to one file is reached.
        Err(rustix::io::Errno::MLINK) => {
            fs::copy(source, target)?;
            copy_attributes(source, target)
        }
        result => Ok(result?),
    }
}

fn copy_attributes(source: &Path, target: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(source)?;
    chown(CWD, target.as_os_str().as_encoded_bytes(), metadata.uid(), metadata.gid())?;
    fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    let time = Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
