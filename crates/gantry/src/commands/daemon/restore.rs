//! `gantry daemon restore`: a state folder of what `gantry daemon backup` wrote, whole or not at all.
//!
//! **Invariant:** the state folder is empty or absent until everything was read, compared and synced beside it; one
//! rename makes it the restored one. A restore that is killed leaves it as it was, and a folder beside it that the next
//! one removes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use durable::Lock;
use oci::Digest;
use oci::digest::{Algorithm, Hasher};

use super::backup::{CHUNK_BYTES, DIGESTS, FORMAT, HEAD, Hashing, Head, list};
use crate::{
    context::Context,
    failure::{Failure, Result},
};

/// Of the head and of the list of digests.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;
/// How the folder is called in which a restore works, and the file in it by whose lock its owner is known to live.
const STAGED: &str = ".gantry-restore-";
const LOCK: &str = "lock";
/// What a backup holds beside its head and digests, and how deep.
const FILES: &[&str] =
    &["instance", "registry-token", "endpoints.json", "network.json", "registry.json", "format"];
const FOLDERS: &[&str] = &["blobs", "ca", "logs", "names", "store"];
const DEPTH_MAX: usize = 16;

#[derive(Clone, Debug, clap::Args)]
pub struct Restore {
    /// A file that backup wrote
    file: PathBuf,
}

pub fn restore(context: &Context, args: &Restore) -> Result<ExitCode> {
    super::root(context, "restore")?;
    let state_dir = &context.settings.state_dir;
    let started = Instant::now();
    if !is_empty(state_dir) {
        return Err(Failure::new(format!("{} is not empty, and a backup is restored into an empty state folder only", state_dir.display()))
            .hint("name another: gantry daemon restore FILE --state-dir DIR; or remove what is there: gantry uninstall --purge".to_owned()));
    }
    let parent = state_dir.parent().unwrap_or(Path::new("/"));
    let failed =
        |error: io::Error| Failure::from_error(&error).context(format!("restore {}", args.file.display()));
    durable::create_dir_all(parent).map_err(failed)?;
    for left in sweep(parent).map_err(failed)? {
        context.printer.note(format!("removed {}: a restore that did not end left it", left.display()));
    }
    let staged = tempfile::Builder::new().prefix(STAGED).tempdir_in(parent).map_err(failed)?;
    let lock = Lock::acquire(&staged.path().join(LOCK)).map_err(|error| Failure::from_error(&error))?;
    let folder = staged.path().join("state");
    fs::DirBuilder::new().mode(0o700).create(&folder).map_err(failed)?;
    context.printer.progress("reading the backup");
    let count = read(&args.file, &folder)
        .map_err(|failure| failure.context(format!("restore {}", args.file.display())))?;
    check(&folder)?;
    let place = || -> io::Result<()> {
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        match fs::remove_dir(state_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        durable::rename(&folder, state_dir)
    };
    place().map_err(failed)?;
    drop(lock);
    context.printer.step(
        "Restored",
        &format!("{} ({count} files)", state_dir.display()),
        Some(started.elapsed()),
    );
    context.printer.note(format!("start it: gantry daemon start{}", context.settings.state_flag()));
    Ok(ExitCode::SUCCESS)
}

/// Removes what restores left that were killed; says what it was.
fn sweep(parent: &Path) -> io::Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let found = entry.metadata()?;
        // Of the name itself: a link, or what belongs to somebody else, is nothing that a restore made.
        let ours = found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        if !ours || !entry.file_name().as_encoded_bytes().starts_with(STAGED.as_bytes()) {
            continue;
        }
        let held = match File::open(entry.path().join(LOCK)) {
            Ok(lock) => Lock::is_held(&lock)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !held {
            durable::remove_dir_all(&entry.path())?;
            removed.push(entry.path());
        }
    }
    Ok(removed)
}

/// Whether a backup holds such a name.
fn is_of_a_backup(path: &Path) -> bool {
    let mut parts = Vec::new();
    for part in path.components() {
        let Component::Normal(part) = part else { return false };
        parts.push(part.to_str());
    }
    match parts.as_slice() {
        [Some(name)] => *name == HEAD || *name == DIGESTS || FILES.contains(name),
        [Some(folder), below @ ..] => FOLDERS.contains(folder) && below.len() < DEPTH_MAX,
        _ => false,
    }
}

fn is_empty(folder: &Path) -> bool {
    match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Unpacks the archive into an empty folder and compares every digest; how many files there were.
fn read(file: &Path, folder: &Path) -> Result<usize> {
    let io_failed = |error: io::Error| {
        Failure::from_error(&error).hint("is it a file that gantry daemon backup wrote?".to_owned())
    };
    let broken =
        |what: String| Failure::new(what).hint("the file is not whole; use another backup".to_owned());
    let mut archive =
        tar::Archive::new(io::BufReader::with_capacity(CHUNK_BYTES, File::open(file).map_err(io_failed)?));
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut digests: Option<BTreeMap<String, String>> = None;
    let mut head: Option<Head> = None;
    for entry in archive.entries().map_err(io_failed)? {
        let mut entry = entry.map_err(io_failed)?;
        if digests.is_some() {
            return Err(broken("there is something behind its end".to_owned()));
        }
        let path = entry.path().map_err(io_failed)?.into_owned();
        let name =
            path.to_str().map(str::to_owned).ok_or_else(|| broken("a name in it is no text".to_owned()))?;
        if !entry.header().entry_type().is_file() || !is_of_a_backup(&path) {
            return Err(broken(format!("{name:?} is no file of a backup")));
        }
        let document = |entry: &mut dyn Read| -> Result<Vec<u8>> {
            let mut text = Vec::new();
            entry.take(DOCUMENT_BYTES_MAX).read_to_end(&mut text).map_err(io_failed)?;
            Ok(text)
        };
        match (name.as_str(), &head) {
            (HEAD, None) => {
                let text = document(&mut entry)?;
                let read: Head = serde_json::from_slice(&text).map_err(|error| io_failed(error.into()))?;
                if read.version != FORMAT {
                    return Err(Failure::new(format!(
                        "it is of version {}, and this release reads {FORMAT}: gantry {} wrote it",
                        read.version, read.release
                    ))
                    .hint("restore it with that release".to_owned()));
                }
                head = Some(read);
            }
            (_, None) => {
                return Err(Failure::new("it is no backup of gantry")
                    .hint("name a file that gantry daemon backup wrote".to_owned()));
            }
            (HEAD, Some(_)) => return Err(broken("it has two heads".to_owned())),
            (DIGESTS, _) => {
                let text = document(&mut entry)?;
                digests = Some(serde_json::from_slice(&text).map_err(|error| io_failed(error.into()))?);
            }
            _ => {
                let digest = unpack(&mut entry, &folder.join(&path)).map_err(io_failed)?;
                found.insert(name, digest);
            }
        }
    }
    let Some(digests) = digests else { return Err(broken("it breaks off before its end".to_owned())) };
    if let Some((name, _)) = found.iter().find(|(name, digest)| digests.get(*name) != Some(*digest)) {
        return Err(broken(format!("{name} is not what was written")));
    }
    if let Some(name) = digests.keys().find(|name| !found.contains_key(*name)) {
        return Err(broken(format!("{name} is missing")));
    }
    sync(folder).map_err(io_failed)?;
    Ok(found.len())
}

/// Writes one file, mode 0600, in folders of mode 0700; its digest.
fn unpack(entry: &mut impl Read, path: &Path) -> io::Result<String> {
    if let Some(above) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(above)?;
    }
    let mode = if path.file_name().is_some_and(|name| name == "endpoints.json") { 0o644 } else { 0o600 };
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let mut reader = Hashing { inner: entry, hasher: Hasher::new(Algorithm::Sha256) };
    io::copy(&mut reader, &mut file)?;
    file.sync_all()?;
    Ok(reader.hasher.finish().to_string())
}

/// Makes the names durable, from the bottom up.
fn sync(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync(&entry.path())?;
        }
    }
    durable::sync_dir(folder)
}

/// Whether what was unpacked is a state folder: its blobs are what their names say, and its objects can be read.
fn check(folder: &Path) -> Result<()> {
    for name in ["instance", "ca/ca.crt", "ca/ca.key"] {
        if !folder.join(name).exists() {
            return Err(
                Failure::new(format!("the backup has no {name}")).hint("use another backup".to_owned())
            );
        }
    }
    let blobs = folder.join("blobs/sha256");
    let mut names = Vec::new();
    if blobs.exists() {
        list(&blobs, Path::new(""), &mut names)
            .map_err(|error| Failure::from_error(&error).context("look at the blobs"))?;
    }
    for name in names {
        let wanted = format!("sha256:{}", name.display());
        let mut file = Hashing {
            inner: File::open(blobs.join(&name)).map_err(|error| Failure::from_error(&error))?,
            hasher: Hasher::new(Algorithm::Sha256),
        };
        io::copy(&mut file, &mut io::sink()).map_err(|error| Failure::from_error(&error))?;
        let is: Digest = file.hasher.finish();
        if is.to_string() != wanted {
            return Err(Failure::new(format!("the blob {wanted} is not what its name says"))
                .hint("the backup was taken of a damaged image store: gantry image verify".to_owned()));
        }
    }
    store::Store::open(&folder.join("store"), store::Options::default())
        .map(drop)
        .map_err(|error| Failure::from_error(&error).context("read the objects"))
}

#[cfg(test)]
mod tests {
    use super::super::backup::{append, header, write};
    use super::*;

    fn tree(dir: &Path) -> PathBuf {
        let folder = dir.join("snapshot");
        fs::create_dir_all(folder.join("ca")).unwrap();
        fs::write(folder.join("instance"), "0badcafe").unwrap();
        fs::write(folder.join("ca/ca.key"), "secret").unwrap();
        folder
    }

    #[test]
    fn what_was_written_is_read_again_and_a_broken_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (tree(dir.path()), dir.path().join("backup"));
        assert_eq!(write(&folder, None, &file).unwrap(), 2);
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let into = |name: &str| {
            let folder = dir.path().join(name);
            fs::create_dir(&folder).unwrap();
            folder
        };
        let whole = into("whole");
        assert_eq!(read(&file, &whole).unwrap(), 2);
        assert_eq!(fs::read(whole.join("ca/ca.key")).unwrap(), b"secret");
        let bytes = fs::read(&file).unwrap();
        // Cut off at every block, and each block changed.
        for end in (0..bytes.len()).step_by(512) {
            let folder = into(&format!("cut-{end}"));
            fs::write(&file, &bytes[..end]).unwrap();
            let digests_end = bytes.len() - 1024;
            assert!(end >= digests_end || read(&file, &folder).is_err(), "cut at {end}");
        }
        let at = bytes.windows(6).position(|window| window == b"secret").unwrap();
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        fs::write(&file, &changed).unwrap();
        let error = read(&file, &into("changed")).unwrap_err().to_string();
        assert!(error.contains("ca/ca.key is not what was written"), "{error}");
    }

    #[test]
    fn an_archive_that_is_no_backup_writes_nothing_outside() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("backup");
        let mut archive = tar::Builder::new(File::create(&file).unwrap());
        append(&mut archive, HEAD, br#"{"version":1,"release":"x"}"#).unwrap();
        let mut header = header(1);
        header.as_gnu_mut().unwrap().name[..8].copy_from_slice(b"../above");
        header.set_cksum();
        archive.append(&header, &b"x"[..]).unwrap();
        archive.finish().unwrap();
        let into = dir.path().join("into");
        fs::create_dir(&into).unwrap();
        assert!(read(&file, &into).is_err());
        assert!(!dir.path().join("above").exists());
        let mut archive = tar::Builder::new(File::create(&file).unwrap());
        append(&mut archive, "instance", b"0badcafe").unwrap();
        archive.finish().unwrap();
        let error = read(&file, &into).unwrap_err().to_string();
        assert!(error.contains("no backup of gantry"), "{error}");
    }

    type Member = (tar::Header, Vec<u8>);

    /// A member of any kind, under any name, that claims any size.
    fn member(kind: tar::EntryType, name: &str, size: u64, bytes: &[u8]) -> Member {
        let mut header = header(size);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("../outside").unwrap();
        }
        header.set_cksum();
        (header, bytes.to_vec())
    }

    #[test]
    fn a_backup_that_was_altered_on_purpose_is_refused_and_makes_nothing_outside() {
        use tar::EntryType as Type;
        let digests = |names: &[&str]| {
            let digests: BTreeMap<_, _> =
                names.iter().map(|name| (*name, Digest::of(b"x").to_string())).collect();
            serde_json::to_vec(&digests).unwrap()
        };
        let file = |name: &str| member(Type::Regular, name, 1, b"x");
        let cases: Vec<(&str, Vec<Member>, &str)> = vec![
            ("twice", vec![file("instance"), file("instance")], ""),
            ("a file and a folder", vec![file("ca"), file("ca/ca.key")], ""),
            ("above", vec![file("../outside/x")], "no file of a backup"),
            ("above, in the middle", vec![file("ca/../../outside/x")], "no file of a backup"),
            ("absolute", vec![file("/ca/ca.key")], "no file of a backup"),
            ("a link", vec![member(Type::Symlink, "ca", 0, b""), file("ca/x")], "no file of a backup"),
            ("a hard link", vec![member(Type::Link, "instance", 0, b"")], "no file of a backup"),
            ("a device", vec![member(Type::Block, "instance", 0, b"")], "no file of a backup"),
            ("a folder", vec![member(Type::Directory, "ca", 0, b"")], "no file of a backup"),
            ("another program's", vec![file("run/daemon.sock")], "no file of a backup"),
            ("deep", vec![file(&format!("logs/{}x", "d/".repeat(40)))], "no file of a backup"),
            ("too large a size", vec![member(Type::Regular, "instance", 1 << 40, b"x")], ""),
            ("too small a size", vec![member(Type::Regular, "instance", 0, b"x")], ""),
            ("two heads", vec![member(Type::Regular, HEAD, 2, b"{}")], "two heads"),
            ("less than it says", vec![], "instance is missing"),
            ("more than it says", vec![file("instance"), file("format")], "format is not what was written"),
            (
                "another content",
                vec![member(Type::Regular, "instance", 1, b"y")],
                "instance is not what was written",
            ),
        ];
        for (name, members, expected) in cases {
            let dir = tempfile::tempdir().unwrap();
            let (outside, into) = (dir.path().join("outside"), dir.path().join("into"));
            fs::create_dir(&outside).unwrap();
            fs::create_dir(&into).unwrap();
            let path = dir.path().join("backup");
            let mut archive = tar::Builder::new(File::create(&path).unwrap());
            append(&mut archive, HEAD, br#"{"version":1,"release":"x"}"#).unwrap();
            for (header, bytes) in members {
                archive.append(&header, bytes.as_slice()).unwrap();
            }
            append(&mut archive, DIGESTS, &digests(&["instance"])).unwrap();
            archive.finish().unwrap();
            drop(archive);
            let error = read(&path, &into).expect_err(name).to_string();
            assert!(error.contains(expected), "{name}: {error}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let mut archive = tar::Builder::new(File::create(&path).unwrap());
        append(&mut archive, HEAD, br#"{"version":2,"release":"9.9.9"}"#).unwrap();
        archive.finish().unwrap();
        let error = read(&path, dir.path()).unwrap_err().to_string();
        assert!(error.contains("version 2") && error.contains("9.9.9"), "{error}");
    }

    #[test]
    fn a_byte_that_was_changed_is_refused_or_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (tree(dir.path()), dir.path().join("backup"));
        write(&folder, None, &file).unwrap();
        let bytes = fs::read(&file).unwrap();
        let mut refused = 0;
        for at in (0..bytes.len()).step_by(7) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x11;
            fs::write(&file, &changed).unwrap();
            let into = tempfile::tempdir().unwrap();
            match read(&file, into.path()) {
                // Between members nothing is looked at.
                Ok(_) => {
                    assert_eq!(fs::read(into.path().join("instance")).unwrap(), b"0badcafe", "{at}");
                    assert_eq!(fs::read(into.path().join("ca/ca.key")).unwrap(), b"secret", "{at}");
                }
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 100, "only {refused} were refused");
    }

    #[test]
    fn what_a_killed_restore_left_goes_and_what_one_works_in_stays() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = dir.path().join(format!("{STAGED}{name}"));
            fs::create_dir_all(folder.join("state/ca")).unwrap();
            folder
        };
        let (dead, early, live) = (make("dead"), make("early"), make("live"));
        drop(Lock::acquire(&dead.join(LOCK)).unwrap());
        let _lock = Lock::acquire(&live.join(LOCK)).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("state"), dir.path().join(format!("{STAGED}link")))
            .unwrap();
        let mut removed = sweep(dir.path()).unwrap();
        removed.sort();
        assert_eq!(removed, [dead, early]);
        assert!(live.exists() && dir.path().join("state").exists());
    }
}
