//! Files from this machine in a layer: sorted, owned by root, without dates, modes 0755 and 0644 only.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use oci::layer::Writer;

/// Files and folders that one addition may bring.
const ENTRIES_MAX: usize = 100_000;
/// Deeper is a loop of links.
const DEPTH_MAX: usize = 64;

/// `--add SRC:DST`: a file or folder of this machine, and its place in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    pub source: PathBuf,
    /// Absolute; behind a closing slash the source's own name is put.
    pub destination: String,
}

/// Why an addition is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("--add {text}: not SRC:DST with an absolute DST")]
    Malformed { text: String },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no file, folder or link to one")]
    Special { path: PathBuf },
    #[error("{path} holds more than {ENTRIES_MAX} files")]
    TooMany { path: PathBuf },
    #[error("{path} lies more than {DEPTH_MAX} folders deep: a link may lead in a circle")]
    TooDeep { path: PathBuf },
    #[error("write the layer's entry for {path}")]
    Write { path: PathBuf, source: io::Error },
}

impl Addition {
    /// Reads `SRC:DST`; the last colon counts.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let malformed = || Error::Malformed { text: text.to_owned() };
        let (source, destination) = text.rsplit_once(':').ok_or_else(malformed)?;
        if source.is_empty() || !destination.starts_with('/') {
            return Err(malformed());
        }
        Ok(Self { source: source.into(), destination: destination.to_owned() })
    }

    /// Where it lies in the image.
    fn place(&self, is_folder: bool) -> String {
        let name = self.source.file_name().map(|name| name.to_string_lossy().into_owned());
        match name {
            Some(name) if self.destination.ends_with('/') && !is_folder => {
                format!("{}{name}", self.destination)
            }
            _ => self.destination.clone(),
        }
    }
}

/// Writes additions into a layer.
pub(crate) fn write<W: Write>(additions: &[Addition], writer: &mut Writer<W>) -> Result<(), Error> {
    for addition in additions {
        let meta = read(&addition.source, fs::metadata(&addition.source))?;
        let place = addition.place(meta.is_dir());
        let mut left = ENTRIES_MAX;
        entry(&addition.source, place.trim_end_matches('/'), 0, &mut left, writer)?;
    }
    Ok(())
}

fn entry<W: Write>(
    path: &Path,
    place: &str,
    depth: usize,
    left: &mut usize,
    writer: &mut Writer<W>,
) -> Result<(), Error> {
    let write = |source| Error::Write { path: path.into(), source };
    if depth > DEPTH_MAX {
        return Err(Error::TooDeep { path: path.into() });
    }
    *left = left.checked_sub(1).ok_or_else(|| Error::TooMany { path: path.into() })?;
    // Links are followed, as ko does: what they lead to may not be in the image.
    let meta = read(path, fs::metadata(path))?;
    if meta.is_dir() {
        if !place.is_empty() {
            writer.directory(place, 0o755).map_err(write)?;
        }
        let mut names = Vec::new();
        for child in read(path, fs::read_dir(path))? {
            names.push(read(path, child)?.file_name());
        }
        names.sort();
        for name in names {
            let below = format!("{place}/{}", name.to_string_lossy());
            entry(&path.join(&name), &below, depth + 1, left, writer)?;
        }
        return Ok(());
    }
    if !meta.is_file() {
        return Err(Error::Special { path: path.into() });
    }
    use std::os::unix::fs::PermissionsExt as _;
    let mode = if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    let file = read(path, fs::File::open(path))?;
    writer.file(place, mode, meta.len(), file).map_err(write)
}

fn read<T>(path: &Path, result: io::Result<T>) -> Result<T, Error> {
    result.map_err(|source| Error::Read { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn additions_are_source_and_destination() {
        let addition = Addition::parse("./a:b:/etc/x").unwrap();
        assert_eq!((addition.source, addition.destination), ("./a:b".into(), "/etc/x".into()));
        for text in ["a", "a:b", ":/x", "a:"] {
            assert!(Addition::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn folders_come_sorted_and_without_what_the_host_says_of_them() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("z")).unwrap();
        for name in ["b", "a", "z/c"] {
            fs::write(root.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
        let addition = Addition { source: root.path().into(), destination: "/data/".into() };
        let file = Addition { source: root.path().join("a"), destination: "/etc/".into() };
        let mut writer =
            Writer::new(Vec::new(), oci::layer::Options { gzip: false, ..Default::default() }).unwrap();
        write(&[addition, file], &mut writer).unwrap();
        let (bytes, _) = writer.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let names: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string()).collect();
        assert_eq!(names, ["data/", "data/a", "data/b", "data/link", "data/z/", "data/z/c", "etc/", "etc/a"]);
    }

    #[test]
    fn circles_end() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(".", root.path().join("loop")).unwrap();
        let addition = Addition { source: root.path().into(), destination: "/d".into() };
        let mut writer = Writer::new(Vec::new(), oci::layer::Options::default()).unwrap();
        assert!(write(&[addition], &mut writer).is_err());
    }
}
