//! `gantry daemon backup` and `restore`: everything that a state folder has to keep, in one file.
//!
//! The file is a tar archive (`docs/format-backup.md`): a head, the files, and last their digests, so that one that
//! broke off is never taken for whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use oci::Digest;
use oci::digest::{Algorithm, Hasher};
use serde::{Deserialize, Serialize};

use crate::{
    context::Context,
    control::{Answer, Ask, Connection},
    failure::{Failure, Result},
    launch,
    version::VERSION,
};

/// Of the archive.
const FORMAT: u32 = 1;
const HEAD: &str = "gantry-backup.json";
const DIGESTS: &str = "digests.json";
/// Of the head and of the list of digests.
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;
/// How long a daemon may take to lay out what is to be copied.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(600);
const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Clone, Debug, clap::Args)]
pub struct Backup {
    /// The file to write; one that is there is replaced once the new one is whole
    file: PathBuf,
    /// The logs too
    #[arg(long)]
    logs: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub struct Restore {
    /// A file that backup wrote
    file: PathBuf,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    version: u32,
    /// Of gantry.
    release: String,
}

pub fn backup(context: &Context, args: &Backup) -> Result<ExitCode> {
    super::root(context, "backup")?;
    let state_dir = &context.settings.state_dir;
    if launch::holder(state_dir)?.is_none() {
        return Err(Failure::new(format!("no daemon runs in {}", state_dir.display()))
            .hint(format!("sudo gantry daemon start{}", context.settings.state_flag())));
    }
    let started = Instant::now();
    context.printer.progress("asking the daemon for a snapshot");
    let asked = Connection::ask(state_dir, &Ask::Snapshot);
    let mut connection = asked.map_err(|error| super::upgrade::no_door(context, &error))?;
    let answer = connection.answer(SNAPSHOT_WITHIN);
    let folder = match answer.map_err(|error| Failure::from_error(&error).context("wait for the snapshot"))? {
        Some(Answer::Snapshot { folder }) => folder,
        Some(Answer::Refused { error, hint }) => return Err(Failure::new(error).hint(hint)),
        _ => return Err(Failure::new("the daemon ended before there was a snapshot")),
    };
    context.printer.progress("writing the backup");
    let logs = args.logs.then(|| state_dir.join("logs"));
    let count = write(&folder, logs.as_deref(), &args.file).map_err(|error| {
        let failure = Failure::from_error(&error).context(format!("write {}", args.file.display()));
        match error.kind() {
            io::ErrorKind::StorageFull => {
                failure.hint("free space there, or name a file elsewhere".to_owned())
            }
            _ => failure.hint("nothing was written; name a file in a folder that is there".to_owned()),
        }
    })?;
    // Until here the snapshot had to stay.
    drop(connection);
    let bytes = fs::metadata(&args.file).map_or(0, |found| found.len());
    let facts = format!("{} ({count} files, {:.1} MB)", args.file.display(), bytes as f64 / 1e6);
    context.printer.step("Wrote", &facts, Some(started.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// Writes the archive, whole or not at all; how many files are in it.
fn write(folder: &Path, logs: Option<&Path>, file: &Path) -> io::Result<usize> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let staged = durable::Staged::with_mode(parent, 0o600)?;
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(CHUNK_BYTES, staged));
    let head = Head { version: FORMAT, release: VERSION.to_owned() };
    append(&mut archive, HEAD, &serde_json::to_vec(&head)?)?;
    let mut files = Vec::new();
    list(folder, Path::new(""), &mut files)?;
    let mut sources: Vec<(PathBuf, PathBuf)> =
        files.into_iter().map(|name| (folder.join(&name), name)).collect();
    if let Some(logs) = logs {
        let mut files = Vec::new();
        list(logs, Path::new(""), &mut files)?;
        sources.extend(files.into_iter().map(|name| (logs.join(&name), Path::new("logs").join(name))));
    }
    let mut digests = BTreeMap::new();
    for (path, name) in &sources {
        let text = name.to_str().ok_or(io::ErrorKind::InvalidData)?;
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut header = header(size);
        // A log grows meanwhile: what it was is copied.
        let mut reader = Hashing { inner: file.take(size), hasher: Hasher::new(Algorithm::Sha256) };
        archive.append_data(&mut header, text, &mut reader)?;
        digests.insert(text.to_owned(), reader.hasher.finish().to_string());
    }
    append(&mut archive, DIGESTS, &serde_json::to_vec(&digests)?)?;
    let staged = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    staged.commit(file)?;
    Ok(sources.len())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(bytes.len() as u64), name, bytes)
}

/// The files below a folder, by name.
fn list(folder: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder.join(below))?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = below.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list(folder, &name, found)?;
        } else if kind.is_file() {
            found.push(name);
        }
    }
    Ok(())
}

struct Hashing<T> {
    inner: T,
    hasher: Hasher,
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
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
    let staged = tempfile::Builder::new().prefix(".gantry-restore-").tempdir_in(parent).map_err(failed)?;
    context.printer.progress("reading the backup");
    let count = read(&args.file, staged.path())
        .map_err(|failure| failure.context(format!("restore {}", args.file.display())))?;
    check(staged.path())?;
    let place = || -> io::Result<()> {
        fs::set_permissions(staged.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        match fs::remove_dir(state_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        durable::rename(staged.path(), state_dir)
    };
    place().map_err(failed)?;
    // Its name is another now.
    let _ = staged.keep();
    context.printer.step(
        "Restored",
        &format!("{} ({count} files)", state_dir.display()),
        Some(started.elapsed()),
    );
    context.printer.note(format!("start it: gantry daemon start{}", context.settings.state_flag()));
    Ok(ExitCode::SUCCESS)
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
        if !entry.header().entry_type().is_file()
            || !path.components().all(|part| matches!(part, Component::Normal(_)))
        {
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
}
