//! A folder of files that changes as a whole, as kubelet's atomic writer lays it out.
//!
//! The files are in a hidden folder, `..data` links to it, and each name links into `..data`. A new content is written
//! beside the old and `..data` is renamed over: who reads sees one or the other. None of it has to survive a power
//! cut, so nothing is synced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path};

/// Files by their path in the volume.
pub type Files = BTreeMap<String, File>;

/// A file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Makes `dir` show exactly `files`; answers whether something changed. `group` gets to read them.
pub fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let old = fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && same(&dir.join(old), files)?
    {
        return Ok(false);
    }
    sweep(dir, old.as_deref())?;
    let name = fresh(dir)?;
    let target = dir.join(&name);
    fs::create_dir(&target)?;
    fs::set_permissions(&target, Permissions::from_mode(0o755))?;
    for (path, file) in files {
        let path = inside(&target, path)?;
        make_dirs(&target, path.parent().unwrap_or(&target))?;
        fs::write(&path, &file.bytes)?;
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        fs::set_permissions(&path, Permissions::from_mode(mode & 0o777))?;
        if group.is_some() {
            chown(&path, None, group)?;
        }
    }
    let next = dir.join(NEXT);
    remove(&next)?;
    symlink(&name, &next)?;
    fs::rename(&next, dir.join(DATA))?;
    let tops: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let link = dir.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(format!("{DATA}/{top}"), &link)?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(&*name) {
            remove(&entry.path())?;
        }
    }
    sweep(dir, fs::read_link(dir.join(DATA)).ok().as_deref())?;
    Ok(true)
}

/// Makes the folders from `top` down to `dir`; any user of the container may pass them, whatever our umask.
fn make_dirs(top: &Path, dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|above| *above != top && !above.is_dir()).collect();
    for dir in missing.into_iter().rev() {
        fs::create_dir(dir)?;
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn inside(dir: &Path, path: &str) -> io::Result<std::path::PathBuf> {
    let relative = Path::new(path);
    if relative.components().all(|part| matches!(part, Component::Normal(_))) && !path.is_empty() {
        Ok(dir.join(relative))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("path {path:?} leaves the volume")))
    }
}

fn same(dir: &Path, files: &Files) -> io::Result<bool> {
    fn count(dir: &Path) -> io::Result<usize> {
        let mut sum = 0;
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            sum += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
        }
        Ok(sum)
    }
    for (path, file) in files {
        match fs::read(inside(dir, path)?) {
            Ok(bytes) if bytes == file.bytes => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(count(dir)? == files.len())
}

/// Removes data folders other than the current one: what an interrupted write left, or the last write replaced.
fn sweep(dir: &Path, current: Option<&Path>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with("..") && name != DATA && name != NEXT;
        if ours && current.is_none_or(|current| current.as_os_str() != name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn fresh(dir: &Path) -> io::Result<String> {
    let now = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    match fs::symlink_metadata(dir.join(&now)) {
        Err(_) => Ok(now),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, now)),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => durable::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let file = |text: &str| File { bytes: text.as_bytes().to_vec(), mode: 0o640 };
        list.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    #[test]
    fn a_change_replaces_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::metadata(dir.join("sub")).unwrap().permissions().mode() & 0o777, 0o755);
        let before = fs::read_link(dir.join(DATA)).unwrap();
        assert!(!write(dir, &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap());
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), before);
        assert!(write(dir, &files(&[("a", "3"), ("c", "4")]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join("sub").exists() && !dir.join(&before).exists());
        let names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
    }

    #[test]
    fn nothing_is_written_outside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", ""] {
            assert!(write(dir.path(), &files(&[(path, "1")]), None).is_err(), "{path}");
        }
    }
}
