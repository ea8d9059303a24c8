//! Writes a layer in one pass: tar, diff id, gzip, digest.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
};

use super::{
    gzip::Encoder,
    header::{BLOCK, Fields, encode},
};
use crate::{
    Descriptor, Digest,
    digest::{Algorithm, Hashing},
    media_type,
};

/// What every entry has in common.
#[derive(Debug, Clone)]
pub struct Options {
    /// Seconds since 1970.
    pub mtime: u64,
    pub uid: u64,
    pub gid: u64,
    /// gzip, or a plain tar.
    pub gzip: bool,
    /// Threads that compress; has no influence on the bytes.
    pub threads: usize,
}

impl Default for Options {
    /// gzip, owned by root, at the epoch, on two threads at most.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Options { mtime: 0, uid: 0, gid: 0, gzip: true, threads: cores.min(4) }
    }
}

/// A finished layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Of the bytes as written, compressed or not.
    pub descriptor: Descriptor,
    /// Of the plain tar stream.
    pub diff_id: Digest,
}

enum Packing<W: Write> {
    Plain(Hashing<W>),
    Gzip(Encoder<Hashing<W>>),
}

impl<W: Write> Write for Packing<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Packing::Plain(inner) => inner.write(buf),
            Packing::Gzip(inner) => inner.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes tar entries into `W`. Missing parent folders are added, mode 0755.
pub struct Writer<W: Write> {
    tar: Hashing<Packing<W>>,
    options: Options,
    /// What was written, and whether it is a folder.
    written: BTreeMap<String, bool>,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts a layer.
    pub fn new(sink: W, options: Options) -> io::Result<Self> {
        let sink = Hashing::new(Algorithm::Sha256, sink);
        let packing = if options.gzip {
            Packing::Gzip(Encoder::new(sink, options.threads)?)
        } else {
            Packing::Plain(sink)
        };
        let tar = Hashing::new(Algorithm::Sha256, packing);
        Ok(Writer { tar, options, written: BTreeMap::new(), buffer: vec![0; 128 << 10] })
    }

    /// A folder. One that is there already, given or as a parent, is left as it is.
    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        let path = self.place(path)?;
        match self.written.get(&path) {
            Some(true) => return Ok(()),
            Some(false) => return Err(twice(&path)),
            None => {}
        }
        self.header(&format!("{path}/"), b'5', mode, 0, "")?;
        self.written.insert(path, true);
        Ok(())
    }

    /// A file of exactly `size` bytes from `content`.
    pub fn file(&mut self, path: &str, mode: u32, size: u64, mut content: impl Read) -> io::Result<()> {
        let path = self.leaf(path)?;
        self.header(&path, b'0', mode, size, "")?;
        let mut left = size;
        let mut buffer = std::mem::take(&mut self.buffer);
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let n = match content.read(&mut buffer[..want]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                n => n?,
            };
            if n == 0 {
                let text = format!("{path}: the file became shorter while it was read");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            self.tar.write_all(&buffer[..n])?;
            left -= n as u64;
        }
        self.buffer = buffer;
        let padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        self.tar.write_all(&[0; BLOCK][..padding])?;
        self.written.insert(path, false);
        Ok(())
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = self.leaf(path)?;
        self.header(&path, b'2', 0o777, 0, target)?;
        self.written.insert(path, false);
        Ok(())
    }

    /// A hard link to a file that this layer has.
    pub fn hardlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        let path = self.leaf(path)?;
        let target = clean(target)?;
        if self.written.get(&target) != Some(&false) {
            let text = format!("{target}: no such file in this layer to link {path} to");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        self.header(&path, b'1', 0o644, 0, &target)?;
        self.written.insert(path, false);
        Ok(())
    }

    /// Ends the archive; gives the sink back and says what was written.
    pub fn finish(mut self) -> io::Result<(W, Layer)> {
        self.tar.write_all(&[0; 2 * BLOCK])?;
        let (packing, diff_id, _) = self.tar.finish();
        let (media_type, sink) = match packing {
            Packing::Plain(inner) => (media_type::OCI_LAYER, inner),
            Packing::Gzip(encoder) => (media_type::OCI_LAYER_GZIP, encoder.finish()?),
        };
        let (mut sink, digest, size) = sink.finish();
        sink.flush()?;
        Ok((sink, Layer { descriptor: Descriptor::new(media_type, digest, size), diff_id }))
    }

    fn leaf(&mut self, path: &str) -> io::Result<String> {
        let path = self.place(path)?;
        if self.written.contains_key(&path) { Err(twice(&path)) } else { Ok(path) }
    }

    /// The clean path, with its parents written.
    fn place(&mut self, path: &str) -> io::Result<String> {
        let path = clean(path)?;
        for (at, _) in path.match_indices('/') {
            match self.written.get(&path[..at]) {
                Some(true) => {}
                Some(false) => return Err(twice(&path[..at])),
                None => {
                    self.header(&path[..=at], b'5', 0o755, 0, "")?;
                    self.written.insert(path[..at].to_owned(), true);
                }
            }
        }
        Ok(path)
    }

    fn header(&mut self, path: &str, kind: u8, mode: u32, size: u64, link: &str) -> io::Result<()> {
        let Options { mtime, uid, gid, .. } = self.options;
        let (path, link) = (path.as_bytes(), link.as_bytes());
        self.tar.write_all(&encode(&Fields { path, link, kind, mode, uid, gid, size, mtime }))
    }
}

/// Writes a layer into memory.
pub fn write(
    options: Options,
    fill: impl FnOnce(&mut Writer<Vec<u8>>) -> io::Result<()>,
) -> io::Result<(Vec<u8>, Layer)> {
    let mut writer = Writer::new(Vec::new(), options)?;
    fill(&mut writer)?;
    writer.finish()
}

fn clean(path: &str) -> io::Result<String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.is_empty() || parts.contains(&"..") || path.contains('\0') {
        let text = format!("{path:?} is no path inside an image");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(parts.join("/"))
}

fn twice(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, format!("{path}: already in this layer"))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn fill(writer: &mut Writer<Vec<u8>>) -> io::Result<()> {
        let long = format!("opt/{}/{}", "d".repeat(90), "f".repeat(120));
        writer.directory("tmp", 0o1777)?;
        writer.file("/ko-app/hello", 0o555, 3, &b"abc"[..])?;
        writer.file(&long, 0o644, 600_000, io::repeat(7))?;
        writer.file("ünï", 0o644, 0, io::empty())?;
        writer.symlink("bin", "usr/bin")?;
        writer.symlink("long", &"x/".repeat(90))?;
        writer.hardlink("ko-app/other", "ko-app/hello")
    }

    #[test]
    fn others_read_what_is_written() {
        let (bytes, layer) = write(Options::default(), fill).unwrap();
        assert_eq!(layer.descriptor.digest, Digest::of(&bytes));
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice()).read_to_end(&mut tar).unwrap();
        assert_eq!(layer.diff_id, Digest::of(&tar));
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let link = entry.link_name_bytes().map(|l| l.len());
            let path = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            let mode = entry.header().mode().unwrap();
            let size = io::copy(&mut entry, &mut io::sink()).unwrap();
            seen.push((path.len(), path.chars().take(12).collect::<String>(), mode, size, link));
        }
        let expect = [
            (4, "tmp/", 0o1777, 0, None),
            (7, "ko-app/", 0o755, 0, None),
            (12, "ko-app/hello", 0o555, 3, None),
            (4, "opt/", 0o755, 0, None),
            (95, "opt/dddddddd", 0o755, 0, None),
            (215, "opt/dddddddd", 0o644, 600_000, None),
            (5, "ünï", 0o644, 0, None),
            (3, "bin", 0o777, 0, Some(7)),
            (4, "long", 0o777, 0, Some(180)),
            (12, "ko-app/other", 0o644, 0, Some(12)),
        ];
        let expect: Vec<_> = expect.iter().map(|(l, p, m, s, k)| (*l, (*p).to_owned(), *m, *s, *k)).collect();
        assert_eq!(seen, expect);
    }

    #[test]
    fn the_digest_does_not_depend_on_the_threads() {
        let with = |threads| write(Options { threads, ..Options::default() }, fill).unwrap();
        assert_eq!(with(1), with(2));
        assert_eq!(with(1), with(7));
        let plain = write(Options { gzip: false, ..Options::default() }, fill).unwrap().1;
        assert_eq!(plain.diff_id, with(1).1.diff_id);
        assert_eq!(plain.diff_id, plain.descriptor.digest);
    }

    #[test]
    fn refuses_paths_that_leave_or_repeat() {
        let file = |path: &'static str| {
            write(Options::default(), |w| {
                w.file("a", 0o644, 0, io::empty())?;
                w.file(path, 0o644, 0, io::empty())
            })
        };
        for path in ["../x", "a", "/", "", "a/b", "x/../../y"] {
            assert!(file(path).is_err(), "{path}");
        }
        let short = write(Options::default(), |w| w.file("a", 0o644, 5, &b"abc"[..]));
        assert_eq!(short.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
