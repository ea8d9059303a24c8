//! Names as files: `names/<domain>/<path with + for />/{tags,manifests,referrers}/…`, each a small JSON record.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use durable::Staged;
use oci::{
    Descriptor, Digest, Reference,
    manifest::{Content, Document},
};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Store};

/// The version of the records.
const VERSION: u8 = 1;

/// The domain of the embedded store.
const EMBEDDED: &str = "localhost";

#[derive(Serialize, Deserialize)]
struct Record {
    version: u8,
    #[serde(flatten)]
    descriptor: Descriptor,
}

/// A manifest that a repository has, tagged or not.
#[derive(Debug, Clone)]
pub struct Revision {
    pub descriptor: Descriptor,
    /// When it was last put there.
    pub written: SystemTime,
}

impl Store {
    /// Takes in a manifest for a repository: verifies it, checks that what it needs is here, stores it, and sets the
    /// reference's tag. With neither tag nor digest in the reference, the tag is `latest`.
    pub fn put_manifest(
        &self,
        reference: &Reference,
        raw: Vec<u8>,
        media_type: Option<&str>,
    ) -> Result<Document> {
        let mut document = Document::parse(raw, media_type).map_err(Error::InvalidManifest)?;
        if let Some(expected) = reference.digest() {
            let actual = Digest::of_with(expected.algorithm(), &document.raw);
            if actual != *expected {
                return Err(Error::WrongDigest { expected: expected.clone(), actual });
            }
            document.descriptor.digest = actual;
        }
        let _gate = self.0.gate.read().unwrap_or_else(|e| e.into_inner());
        if let Content::Image(manifest) = &document.content {
            for blob in manifest.blobs() {
                self.expect_blob(blob)?;
            }
        }
        let mut files = Vec::new();
        if self.size(&document.descriptor.digest)? != Some(document.raw.len() as u64) {
            files.push(stage(self.blob_path(&document.descriptor.digest), &document.raw)?);
        }
        self.stage_links(reference, &document, &mut files)?;
        commit(files)?;
        Ok(document)
    }

    /// Gives content that is in the store a name: the reference's tag, `latest` if it has neither tag nor digest.
    pub fn set_name(&self, reference: &Reference, descriptor: &Descriptor) -> Result<()> {
        let _gate = self.0.gate.read().unwrap_or_else(|e| e.into_inner());
        let mut document = self.document(&descriptor.digest)?;
        if !descriptor.media_type.is_empty() {
            document.descriptor.media_type.clone_from(&descriptor.media_type);
        }
        let mut files = Vec::new();
        self.stage_links(reference, &document, &mut files)?;
        commit(files)
    }

    /// What a reference names here: the manifest or index, with its media type and size.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Descriptor>> {
        let dir = self.repository_dir(reference);
        match reference.digest() {
            Some(digest) => read(&dir.join("manifests").join(file_name(digest))),
            None => read(&dir.join("tags").join(reference.tag_or_latest())),
        }
    }

    /// Every tagged name, in order.
    pub fn names(&self) -> Result<Vec<(Reference, Descriptor)>> {
        let mut names = Vec::new();
        for repository in self.all_repositories()? {
            for tag in self.tags(&repository)?.unwrap_or_default() {
                let Ok(name) = repository.with_tag(&tag) else { continue };
                if let Some(descriptor) = self.resolve(&name)? {
                    names.push((name, descriptor));
                }
            }
        }
        Ok(names)
    }

    /// Removes a name: the tag; or, when the reference has a digest, that manifest with all its tags. `false`: there
    /// was none. Blobs stay until they are collected.
    pub fn remove_name(&self, reference: &Reference) -> Result<bool> {
        let _gate = self.0.gate.write().unwrap_or_else(|e| e.into_inner());
        let dir = self.repository_dir(reference);
        let Some(digest) = reference.digest() else {
            let path = dir.join("tags").join(reference.tag_or_latest());
            let there = path.exists();
            durable::remove(&path).map_err(Error::io("removing", &path))?;
            return Ok(there);
        };
        if self.resolve(reference)?.is_none() {
            return Ok(false);
        }
        for tag in list(&dir.join("tags"))? {
            let path = dir.join("tags").join(&tag);
            if read(&path)?.is_some_and(|d| d.digest == *digest) {
                durable::remove(&path).map_err(Error::io("removing", &path))?;
            }
        }
        self.unlink_revision(&dir, digest)?;
        Ok(true)
    }

    /// The repositories of the embedded store, in order.
    pub fn repositories(&self) -> Result<Vec<String>> {
        let embedded = |r: Reference| r.is_embedded().then(|| r.path().to_owned());
        let mut paths: Vec<String> = self.all_repositories()?.into_iter().filter_map(embedded).collect();
        paths.sort();
        Ok(paths)
    }

    /// The repository's tags, in order; `None` if there is no such repository.
    pub fn tags(&self, repository: &Reference) -> Result<Option<Vec<String>>> {
        let dir = self.repository_dir(repository);
        if !dir.is_dir() {
            return Ok(None);
        }
        list(&dir.join("tags")).map(Some)
    }

    /// The repository's manifests, tagged or not, by digest.
    pub fn revisions(&self, repository: &Reference) -> Result<Vec<Revision>> {
        let dir = self.repository_dir(repository).join("manifests");
        let mut revisions = Vec::new();
        for name in list(&dir)? {
            let path = dir.join(&name);
            let written = fs::metadata(&path).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            if let Some(descriptor) = read(&path)? {
                revisions.push(Revision { descriptor, written });
            }
        }
        Ok(revisions)
    }

    /// The repository's manifests whose subject is this digest, with artifact type and annotations, by digest.
    pub fn referrers(&self, repository: &Reference, subject: &Digest) -> Result<Vec<Descriptor>> {
        let dir = self.repository_dir(repository).join("referrers").join(file_name(subject));
        let mut referrers = Vec::new();
        for name in list(&dir)? {
            referrers.extend(read(&dir.join(name))?);
        }
        Ok(referrers)
    }

    /// Every repository of every domain, as references without a tag.
    pub(crate) fn all_repositories(&self) -> Result<Vec<Reference>> {
        let mut repositories = Vec::new();
        for domain in list(&self.0.names)? {
            for path in list(&self.0.names.join(&domain))? {
                repositories.extend(Reference::parse(&format!("{domain}/{}", path.replace('+', "/"))));
            }
        }
        Ok(repositories)
    }

    /// Removes a manifest of a repository, and the repository when it was the last. The caller holds the gate.
    pub(crate) fn unlink_revision(&self, dir: &Path, digest: &Digest) -> Result<()> {
        let subject = self.document(digest).ok().and_then(|d| d.subject().map(|s| s.digest.clone()));
        if let Some(subject) = subject {
            let path = dir.join("referrers").join(file_name(&subject)).join(file_name(digest));
            durable::remove(&path).or_else(absent_is_fine).map_err(Error::io("removing", &path))?;
            // Only when it was the last one.
            let _ = path.parent().map(fs::remove_dir);
        }
        let path = dir.join("manifests").join(file_name(digest));
        durable::remove(&path).map_err(Error::io("removing", &path))?;
        if list(&dir.join("manifests"))?.is_empty() && list(&dir.join("tags"))?.is_empty() {
            durable::remove_dir_all(dir).map_err(Error::io("removing", dir))?;
        }
        Ok(())
    }

    pub(crate) fn repository_dir(&self, reference: &Reference) -> PathBuf {
        let domain = if reference.is_embedded() { EMBEDDED } else { reference.domain() };
        self.0.names.join(domain).join(reference.path().replace('/', "+"))
    }

    fn expect_blob(&self, blob: &Descriptor) -> Result<()> {
        match self.size(&blob.digest)? {
            Some(size) if size == blob.size => Ok(()),
            Some(actual) => {
                Err(Error::WrongSize { digest: blob.digest.clone(), expected: blob.size, actual })
            }
            None => Err(Error::BlobMissing(blob.digest.clone())),
        }
    }

    /// Adds the links: the revision first, so that a tag never points at what the repository does not have.
    fn stage_links(&self, reference: &Reference, document: &Document, files: &mut Vec<Named>) -> Result<()> {
        let dir = self.repository_dir(reference);
        let descriptor = &document.descriptor;
        files.push(stage_record(&dir.join("manifests"), &file_name(&descriptor.digest), descriptor)?);
        if let Some(subject) = document.subject() {
            let mut referrer = descriptor.clone();
            referrer.artifact_type = document.artifact_type().map(str::to_owned);
            referrer.annotations = document.annotations().clone();
            let dir = dir.join("referrers").join(file_name(&subject.digest));
            files.push(stage_record(&dir, &file_name(&descriptor.digest), &referrer)?);
        }
        if reference.tag().is_some() || reference.digest().is_none() {
            files.push(stage_record(&dir.join("tags"), reference.tag_or_latest(), descriptor)?);
        }
        Ok(())
    }
}

/// A staged file and the name that it gets.
type Named = (Staged, PathBuf);

/// Removes what a crash left half-written.
pub(crate) fn sweep(dir: &Path) -> Result<()> {
    durable::sweep(dir).map_err(Error::io("cleaning", dir))?;
    for entry in fs::read_dir(dir).map_err(Error::io("listing", dir))? {
        let entry = entry.map_err(Error::io("listing", dir))?;
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            sweep(&entry.path())?;
        }
    }
    Ok(())
}

/// `sha256-…`, as a file name.
fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

fn stage_record(dir: &Path, name: &str, descriptor: &Descriptor) -> Result<Named> {
    let path = dir.join(name);
    let record = Record { version: VERSION, descriptor: descriptor.clone() };
    let bytes = serde_json::to_vec(&record).map_err(|e| Error::io("encoding", &path)(e.into()))?;
    durable::create_dir_all(dir).map_err(Error::io("making", dir))?;
    stage(path, &bytes)
}

fn stage(path: PathBuf, bytes: &[u8]) -> Result<Named> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut staged = Staged::new(dir).map_err(Error::io("making a file in", dir))?;
    staged.write_all(bytes).map_err(Error::io("writing", &path))?;
    Ok((staged, path))
}

/// Durable in this order, the last one's name standing for all in an error.
fn commit(files: Vec<Named>) -> Result<()> {
    let path = files.last().map(|(_, path)| path.clone()).unwrap_or_default();
    durable::commit_together(files).map_err(Error::io("writing", &path))
}

fn read(path: &Path) -> Result<Option<Descriptor>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("reading", path)(e)),
    };
    match serde_json::from_slice::<Record>(&bytes) {
        Ok(record) if record.version == VERSION => Ok(Some(record.descriptor)),
        _ => Err(Error::Format { path: path.to_owned() }),
    }
}

/// The names in a folder, sorted; none if it is not there.
fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("listing", dir)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(Error::io("listing", dir))?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') {
            names.push(name.into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn absent_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_the_first_format_is_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/formats/1/name-record");
        let descriptor = read(&path).unwrap().unwrap();
        assert!(descriptor.digest.to_string().starts_with("sha256:8d6ec20ef6d4"));
    }
}
