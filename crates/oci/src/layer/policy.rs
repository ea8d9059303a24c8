//! Which entries of a layer may be unpacked, judged by the archive alone, before anything touches a disk.
//!
//! Invariant: a path that passes is relative, has no `..`, and no component of it is a link that the same layer made.
//! Links of lower layers are resolved inside the image's root by whoever unpacks.

use std::collections::HashSet;

use super::reader::{Entry, Kind};

/// Prefix of a whiteout (image spec, layer.md, "Whiteouts").
const WHITEOUT: &[u8] = b".wh.";
/// The whiteout of a folder's whole content.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Files that AUFS kept for itself.
const AUFS: &[u8] = b".wh..wh.";

/// Why an entry may not be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("tar entry {0:?} leads out of the image")]
    Traversal(String),
    #[error("tar entry {path:?} links to {target:?}, out of the image")]
    LinkEscapes { path: String, target: String },
    #[error("tar entry {path:?} lies below {link:?}, which the same layer made a link")]
    BelowLink { path: String, link: String },
    #[error("tar entry {0:?} is a device")]
    Device(String),
    #[error("tar entry {0:?} is no valid whiteout")]
    Whiteout(String),
    #[error("tar entry {path:?} links to {target:?}, which is not in the image")]
    LinkTarget { path: String, target: String },
    #[error("tar entry {path:?} lies below {file:?}, which is no folder")]
    BelowFile { path: String, file: String },
}

/// What to do with an entry. Paths are relative and clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make it. The target is of a hard link, clean; of a symbolic link, as it stands.
    Make { path: Vec<u8>, target: Vec<u8> },
    /// The root folder itself: its mode and owner.
    Root,
    /// Remove what lower layers have at this path.
    Remove { path: Vec<u8> },
    /// Remove what lower layers have inside this folder.
    Clear { path: Vec<u8> },
    /// Nothing.
    Skip,
}

/// Judges the entries of one layer, in order.
#[derive(Debug, Default)]
pub struct Policy {
    links: HashSet<Vec<u8>>,
    /// Non-folders that this layer made and that are no links.
    leaves: HashSet<Vec<u8>>,
}

impl Policy {
    /// May the entry be unpacked, and as what?
    pub fn check(&mut self, entry: &Entry) -> Result<Action, Refused> {
        let shown = || entry.display_path();
        let path = clean(&entry.path).ok_or_else(|| Refused::Traversal(shown()))?;
        if path.is_empty() {
            let is_folder = entry.kind == Kind::Directory;
            return if is_folder { Ok(Action::Root) } else { Err(Refused::Traversal(shown())) };
        }
        self.check_parents(&path, entry)?;
        let (parent, name) = split(&path);
        if name == OPAQUE {
            return Ok(Action::Clear { path: parent.to_vec() });
        }
        if name.starts_with(AUFS) {
            return Ok(Action::Skip);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(Refused::Whiteout(shown()));
            }
            return Ok(Action::Remove { path: join(parent, hidden) });
        }
        let target = match entry.kind {
            Kind::Device => return Err(Refused::Device(shown())),
            Kind::HardLink => self.check_hard_link(entry)?,
            Kind::SymLink => check_symlink(parent, entry)?,
            Kind::File | Kind::Directory | Kind::Fifo => Vec::new(),
        };
        self.links.remove(&path);
        self.leaves.remove(&path);
        match entry.kind {
            Kind::SymLink => drop(self.links.insert(path.clone())),
            Kind::Directory => {}
            _ => drop(self.leaves.insert(path.clone())),
        }
        Ok(Action::Make { path, target })
    }

    fn check_parents(&self, path: &[u8], entry: &Entry) -> Result<(), Refused> {
        for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
            let parent = &path[..at];
            let text = || String::from_utf8_lossy(parent).into_owned();
            if self.links.contains(parent) {
                return Err(Refused::BelowLink { path: entry.display_path(), link: text() });
            }
            if self.leaves.contains(parent) {
                return Err(Refused::BelowFile { path: entry.display_path(), file: text() });
            }
        }
        Ok(())
    }

    fn check_hard_link(&self, entry: &Entry) -> Result<Vec<u8>, Refused> {
        let target = clean(&entry.link).filter(|t| !t.is_empty()).ok_or_else(|| escapes(entry))?;
        self.check_parents(&target, entry)?;
        Ok(target)
    }
}

/// An absolute target is fine: in a container it means the image's root. A relative one may not climb above it.
fn check_symlink(parent: &[u8], entry: &Entry) -> Result<Vec<u8>, Refused> {
    if entry.link.is_empty() || entry.link.contains(&0) {
        return Err(escapes(entry));
    }
    if entry.link[0] != b'/' {
        let mut depth = parent.split(|b| *b == b'/').filter(|part| !part.is_empty()).count();
        for part in entry.link.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => depth = depth.checked_sub(1).ok_or_else(|| escapes(entry))?,
                _ => depth += 1,
            }
        }
    }
    Ok(entry.link.clone())
}

fn escapes(entry: &Entry) -> Refused {
    let target = String::from_utf8_lossy(&entry.link).into_owned();
    Refused::LinkEscapes { path: entry.display_path(), target }
}

/// The path without leading slashes, empty parts and dots; `None` when it has `..` or a NUL.
fn clean(path: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return None,
            _ if part.contains(&0) => return None,
            _ => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Some(out)
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, path: &str, link: &str) -> Entry {
        Entry {
            path: path.into(),
            link: link.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 0,
            xattrs: Default::default(),
        }
    }

    fn check(entries: &[(Kind, &str, &str)]) -> Result<Action, Refused> {
        let mut policy = Policy::default();
        let mut last = Ok(Action::Skip);
        for (kind, path, link) in entries {
            last = policy.check(&entry(*kind, path, link));
            if last.is_err() {
                break;
            }
        }
        last
    }

    #[test]
    fn cleans_paths_and_reads_whiteouts() {
        let make = |path: &str| Ok(Action::Make { path: path.into(), target: Vec::new() });
        assert_eq!(check(&[(Kind::File, "./a//b/./c", "")]), make("a/b/c"));
        assert_eq!(check(&[(Kind::File, "/etc/x", "")]), make("etc/x"));
        assert_eq!(check(&[(Kind::Directory, "./", "")]), Ok(Action::Root));
        assert_eq!(check(&[(Kind::File, "a/.wh.b", "")]), Ok(Action::Remove { path: "a/b".into() }));
        assert_eq!(check(&[(Kind::File, "a/.wh..wh..opq", "")]), Ok(Action::Clear { path: "a".into() }));
        assert_eq!(check(&[(Kind::File, ".wh..wh.plnk", "")]), Ok(Action::Skip));
    }

    #[test]
    fn refuses_what_leaves_the_image() {
        let refused = [
            vec![(Kind::File, "../x", "")],
            vec![(Kind::File, "a/../../x", "")],
            vec![(Kind::File, "a/.wh...", "")],
            vec![(Kind::File, "a/.wh.", "")],
            vec![(Kind::SymLink, "a/l", "../../x")],
            vec![(Kind::SymLink, "l", "..")],
            vec![(Kind::SymLink, "l", "")],
            vec![(Kind::HardLink, "l", "../etc/passwd")],
            vec![(Kind::HardLink, "l", "")],
            vec![(Kind::Device, "dev/sda", "")],
            vec![(Kind::SymLink, "l", "/etc"), (Kind::File, "l/passwd", "")],
            vec![(Kind::SymLink, "l", "a"), (Kind::HardLink, "h", "l/passwd")],
            vec![(Kind::File, "f", ""), (Kind::File, "f/x", "")],
        ];
        for entries in refused {
            assert!(check(&entries).is_err(), "{entries:?}");
        }
    }

    #[test]
    fn allows_the_links_that_images_have() {
        check(&[(Kind::SymLink, "var/run", "/run")]).unwrap();
        check(&[(Kind::SymLink, "usr/lib/x", "../../lib/x")]).unwrap();
        check(&[(Kind::SymLink, "l", "a"), (Kind::Directory, "l", ""), (Kind::File, "l/x", "")]).unwrap();
    }
}
