//! `gantry daemon backup`: everything that a state folder has to keep, in one file; [`super::restore`] reads it.
//!
//! The file is a tar archive (`docs/format-backup.md`): a head, the files, and last their digests, so that one that
//! broke off is never taken for whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

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
pub(super) const FORMAT: u32 = 1;
pub(super) const HEAD: &str = "gantry-backup.json";
pub(super) const DIGESTS: &str = "digests.json";
/// How long a daemon may take to lay out what is to be copied.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(600);
pub(super) const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Clone, Debug, clap::Args)]
pub struct Backup {
    /// The file to write; one that is there is replaced once the new one is whole
    file: PathBuf,
    /// The logs too
    #[arg(long)]
    logs: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) version: u32,
    /// Of gantry.
    pub(super) release: String,
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
pub(super) fn write(folder: &Path, logs: Option<&Path>, file: &Path) -> io::Result<usize> {
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

pub(super) fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

pub(super) fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(bytes.len() as u64), name, bytes)
}

/// The files below a folder, by name.
pub(super) fn list(folder: &Path, below: &Path, found: &mut Vec<PathBuf>) -> io::Result<()> {
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

pub(super) struct Hashing<T> {
    pub(super) inner: T,
    pub(super) hasher: Hasher,
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
