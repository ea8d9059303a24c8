//! Reads tar streams that may lie: every length is bounded before it is believed, and what is not understood is
//! refused, so that no two readers can see different files in it.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read},
};

use super::{
    header::{self, BLOCK},
    policy::{Policy, Refused},
};
use crate::{
    Digest,
    digest::{Algorithm, Hashing},
};

/// How much a layer may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of the unpacked tar stream.
    pub bytes: u64,
    /// Bytes of one extended header (long name, PAX records).
    pub extended_bytes: u64,
    /// Bytes of a path.
    pub path_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { entries: 2_000_000, bytes: 64 << 30, extended_bytes: 1 << 20, path_bytes: 4096 }
    }
}

/// Every layer may unpack to so many bytes,
const UNPACKED_BYTES: u64 = 1 << 30;
/// and a large one to so many times its own size. Programs and their files come to 2 to 10; deflate can reach 1,032.
const UNPACKED_TIMES: u64 = 100;

impl Limits {
    /// Those of a layer that takes so many bytes as it is stored: what is hardly there cannot be much.
    pub fn of_layer(self, stored_bytes: u64) -> Self {
        let most = stored_bytes.saturating_mul(UNPACKED_TIMES).max(UNPACKED_BYTES);
        Limits { bytes: self.bytes.min(most), ..self }
    }
}

/// Why a layer cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading the layer failed")]
    Read(#[source] io::Error),
    #[error("the layer is cut short or damaged")]
    Torn(#[source] io::Error),
    #[error("the layer is compressed with zstd, which is not supported; push it with gzip")]
    Zstd,
    #[error("tar header {number} has a wrong {field}")]
    Header { number: u64, field: &'static str },
    #[error("tar entry {path:?} is of type {flag:?}, which is not supported")]
    UnknownType { path: String, flag: char },
    #[error("tar entry {0}: an extended header is damaged")]
    Extended(u64),
    #[error("the layer holds more than {limit} {what}")]
    TooMuch { what: &'static str, limit: u64 },
    #[error("tar entry {path:?} says it has {size} bytes, more than a layer may hold")]
    TooLarge { path: String, size: u64 },
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("the layer unpacks to {actual}, but the configuration says {expected}")]
    WrongDiffId { expected: Digest, actual: Digest },
}

impl Error {
    /// Sorts an error of the stream by what it means: data that ends or does not decode is torn.
    fn from_stream(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                Error::Torn(error)
            }
            _ => Error::Read(error),
        }
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    SymLink,
    HardLink,
    Fifo,
    /// A character or block device.
    Device,
}

/// One entry; its content, if any, is read from the [`Reader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    /// Seconds since 1970.
    pub mtime: i64,
    pub size: u64,
    /// Extended attributes, by full name.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// The path for messages.
    pub fn display_path(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// Reads entries one after the other. Implements `Read` for the current entry's content.
pub struct Reader<R> {
    inner: R,
    limits: Limits,
    /// Unread bytes of the current entry, and of the padding after it.
    remaining: u64,
    padding: u64,
    entries: u64,
    total: u64,
    global: BTreeMap<String, Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads a plain tar stream.
    pub fn new(inner: R, limits: Limits) -> Self {
        Reader { inner, limits, remaining: 0, padding: 0, entries: 0, total: 0, global: BTreeMap::new() }
    }

    /// The next entry; the rest of the current one is skipped. `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        self.skip()?;
        let mut records: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let (mut long_path, mut long_link) = (None, None);
        let mut extended = 0;
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            let number = self.entries;
            let raw = header::decode(&block).map_err(|field| Error::Header { number, field })?;
            self.count()?;
            match raw.flag {
                b'x' | b'g' | b'L' | b'K' => {
                    extended += 1;
                    if extended > 16 {
                        return Err(Error::Extended(number));
                    }
                    let data = self.extended(raw.size)?;
                    match raw.flag {
                        b'x' => records = pax(&data).ok_or(Error::Extended(number))?,
                        b'g' => self.global.extend(pax(&data).ok_or(Error::Extended(number))?),
                        b'L' => long_path = Some(until_nul(data)),
                        _ => long_link = Some(until_nul(data)),
                    }
                }
                _ => return self.entry(raw, records, long_path, long_link).map(Some),
            }
        }
    }

    /// Reads what follows the end of the archive, so that a digest of the stream is complete; gives the stream back.
    pub fn finish(mut self) -> Result<R, Error> {
        self.skip()?;
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.inner.read(&mut buffer) {
                Ok(0) => return Ok(self.inner),
                Ok(n) => self.add(n as u64)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_stream(e)),
            }
        }
    }

    fn entry(
        &mut self,
        raw: header::Raw,
        records: BTreeMap<String, Vec<u8>>,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, Error> {
        let number = self.entries;
        let record = |key: &str| records.get(key).or_else(|| self.global.get(key)).cloned();
        let integer = |key: &str| -> Result<Option<i64>, Error> {
            let Some(text) = record(key) else { return Ok(None) };
            // Times may have a fraction, which is left out.
            let text = String::from_utf8(text).map_err(|_| Error::Extended(number))?;
            let whole = text.split('.').next().unwrap_or_default();
            whole.parse().map(Some).map_err(|_| Error::Extended(number))
        };
        let natural = |key: &str| -> Result<Option<u64>, Error> {
            integer(key)?.map(|n| u64::try_from(n).map_err(|_| Error::Extended(number))).transpose()
        };
        let path = record("path").or(long_path).unwrap_or(raw.path);
        let shown = String::from_utf8_lossy(&path).into_owned();
        if records.keys().any(|key| key.starts_with("GNU.sparse.")) {
            return Err(Error::UnknownType { path: shown, flag: 'S' });
        }
        let kind = match raw.kind {
            // How tar wrote folders before it had a type for them; only the whole path tells.
            Some(Kind::File) if path.ends_with(b"/") => Kind::Directory,
            Some(kind) => kind,
            None => return Err(Error::UnknownType { path: shown, flag: raw.flag.into() }),
        };
        let declared = natural("size")?.unwrap_or(raw.size);
        if declared > self.limits.bytes {
            return Err(Error::TooLarge { path: shown, size: declared });
        }
        let size = if kind == Kind::File { declared } else { 0 };
        // Only files carry content; for a hard link POSIX allows a size without meaning it.
        if kind != Kind::File && kind != Kind::HardLink && declared != 0 {
            return Err(Error::Header { number, field: "size" });
        }
        if path.len() > self.limits.path_bytes {
            return Err(Error::TooMuch { what: "bytes of path", limit: self.limits.path_bytes as u64 });
        }
        let prefix = "SCHILY.xattr.";
        let xattr = |(k, v): (&String, &Vec<u8>)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()));
        let xattrs = self.global.iter().chain(&records).filter_map(xattr).collect();
        let entry = Entry {
            kind,
            mode: raw.mode,
            uid: natural("uid")?.unwrap_or(raw.uid),
            gid: natural("gid")?.unwrap_or(raw.gid),
            mtime: integer("mtime")?.unwrap_or(raw.mtime),
            size,
            xattrs,
            link: record("linkpath").or(long_link).unwrap_or(raw.link),
            path,
        };
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(entry)
    }

    fn count(&mut self) -> Result<(), Error> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Error::TooMuch { what: "entries", limit: self.limits.entries });
        }
        Ok(())
    }

    fn add(&mut self, bytes: u64) -> Result<(), Error> {
        self.total += bytes;
        if self.total > self.limits.bytes {
            return Err(Error::TooMuch { what: "bytes", limit: self.limits.bytes });
        }
        Ok(())
    }

    /// The next header; `None` at the first block of zeros, or where the stream ends between entries.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(Error::Torn(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_stream(e)),
            }
        }
        self.add(BLOCK as u64)?;
        Ok(block.iter().any(|b| *b != 0).then_some(block))
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > self.limits.extended_bytes {
            return Err(Error::TooMuch {
                what: "bytes in an extended header",
                limit: self.limits.extended_bytes,
            });
        }
        self.remaining = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut data = Vec::with_capacity(size as usize);
        self.by_ref().read_to_end(&mut data).map_err(Error::from_stream)?;
        self.skip()?;
        Ok(data)
    }

    fn skip(&mut self) -> Result<(), Error> {
        let mut left = self.remaining + self.padding;
        (self.remaining, self.padding) = (0, 0);
        let mut buffer = [0; 16 << 10];
        while left > 0 {
            let want = left.min(buffer.len() as u64) as usize;
            match self.inner.read(&mut buffer[..want]) {
                Ok(0) => return Err(Error::Torn(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => {
                    left -= n as u64;
                    self.add(n as u64)?;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::from_stream(e)),
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    /// The current entry's content. Ends early only with an error.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = self.remaining.min(buf.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buf[..want])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.remaining -= n as u64;
        self.add(n as u64).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(n)
    }
}

fn until_nul(data: Vec<u8>) -> Vec<u8> {
    data.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

/// PAX records: `length key=value\n`, the length counting all of it.
fn pax(mut data: &[u8]) -> Option<BTreeMap<String, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !data.is_empty() {
        // Some writers pad with zeros.
        if data.iter().all(|b| *b == 0) {
            break;
        }
        let space = data.iter().position(|b| *b == b' ')?;
        let len: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
        let record = data.get(space + 1..len)?;
        let (end, record) = record.split_last()?;
        let equals = record.iter().position(|b| *b == b'=')?;
        let key = String::from_utf8(record[..equals].to_vec()).ok()?;
        let value = &record[equals + 1..];
        let textual = matches!(key.as_str(), "path" | "linkpath");
        if *end != b'\n' || (textual && value.contains(&0)) {
            return None;
        }
        if value.is_empty() {
            records.remove(&key);
        } else {
            records.insert(key, value.to_vec());
        }
        data = &data[len..];
    }
    Some(records)
}

/// The plain tar stream of a layer, whatever its media type claims: some writers say gzip and mean a plain tar.
pub fn decompress<'a>(layer: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Error> {
    let mut layer = BufReader::with_capacity(128 << 10, layer);
    let start = layer.fill_buf().map_err(Error::from_stream)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(layer)));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err(Error::Zstd);
    }
    Ok(Box::new(layer))
}

/// Reads a whole layer without unpacking it: does it hold only what may be unpacked, and is it what `diff_id` says?
pub fn verify(layer: impl Read, diff_id: &Digest, limits: Limits) -> Result<(), Error> {
    let hashing = Hashing::new(diff_id.algorithm(), decompress(layer)?);
    let mut reader = Reader::new(hashing, limits);
    let mut policy = Policy::default();
    while let Some(entry) = reader.next_entry()? {
        policy.check(&entry)?;
    }
    expect(diff_id, reader.finish()?)
}

/// Compares a diff id with what was read.
pub fn expect<R>(diff_id: &Digest, read: Hashing<R>) -> Result<(), Error> {
    let (_, actual, _) = read.finish();
    if actual == *diff_id {
        return Ok(());
    }
    Err(Error::WrongDiffId { expected: diff_id.clone(), actual })
}

/// The diff id of a layer: the digest of its plain tar stream.
pub fn diff_id(layer: impl Read, limits: Limits) -> Result<Digest, Error> {
    let hashing = Hashing::new(Algorithm::Sha256, decompress(layer)?);
    let (_, digest, _) = Reader::new(hashing, limits).finish()?.finish();
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Options, write};

    fn list(tar: &[u8]) -> Result<Vec<Entry>, Error> {
        let mut reader = Reader::new(tar, Limits::default());
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        reader.finish()?;
        Ok(entries)
    }

    fn plain(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_small_layer_may_not_be_a_large_one() {
        let most = |stored| Limits::default().of_layer(stored).bytes;
        assert_eq!((most(0), most(10 << 20), most(11 << 20)), (1 << 30, 1 << 30, 1100 << 20));
        assert_eq!(most(u64::MAX), Limits::default().bytes);
        let strict = Limits { bytes: 7, ..Limits::default() };
        assert_eq!(strict.of_layer(1 << 40).bytes, 7);
    }

    #[test]
    fn reads_ustar_gnu_and_pax() {
        let long = "n/".repeat(80) + "file";
        let own =
            write(Options { gzip: false, ..Options::default() }, |w| w.file(&long, 0o600, 3, &b"abc"[..]));
        assert_eq!(list(&own.unwrap().0).unwrap().last().unwrap().path, long.as_bytes());
        let gnu = plain(|b| {
            let mut h = tar::Header::new_gnu();
            h.set_size(3);
            h.set_mode(0o4755);
            h.set_mtime(1);
            h.set_uid(3_000_000);
            b.append_data(&mut h, &long, &b"abc"[..]).unwrap();
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(tar::EntryType::Symlink);
            h.set_size(0);
            b.append_link(&mut h, "link", "t/".repeat(70)).unwrap();
        });
        let entries = list(&gnu).unwrap();
        let file = &entries[0];
        assert_eq!((file.path.as_slice(), file.mode, file.uid), (long.as_bytes(), 0o4755, 3_000_000));
        assert_eq!((entries[1].kind, entries[1].link.len()), (Kind::SymLink, 140));
    }

    #[test]
    fn refuses_what_is_cut_or_lies_about_its_length() {
        let (tar, _) = write(Options { gzip: false, ..Options::default() }, |w| {
            w.file("a", 0o644, 2000, io::repeat(1).take(2000))
        })
        .unwrap();
        assert!(matches!(list(&tar[..1000]), Err(Error::Torn(_))));
        assert!(matches!(list(&tar[..100]), Err(Error::Torn(_))));
        let mut wrong = tar.clone();
        wrong[3] ^= 1;
        assert!(matches!(list(&wrong), Err(Error::Header { field: "checksum", .. })));
        let huge = plain(|b| {
            let mut h = tar::Header::new_gnu();
            h.set_path("huge").unwrap();
            h.set_size(1 << 60);
            h.set_cksum();
            b.append(&h, io::empty()).unwrap();
        });
        assert!(matches!(list(&huge), Err(Error::TooLarge { .. })));
        let bomb = plain(|b| {
            let mut h = tar::Header::new_ustar();
            h.set_entry_type(tar::EntryType::XHeader);
            h.set_path("pax").unwrap();
            h.set_size(1 << 30);
            h.set_cksum();
            b.append(&h, io::empty()).unwrap();
        });
        assert!(matches!(list(&bomb), Err(Error::TooMuch { .. })));
    }

    #[test]
    fn refuses_damaged_records_and_sparse_files() {
        assert!(pax(b"99 path=x\n").is_none());
        assert!(pax(b"10 path=x\n").is_some());
        assert!(pax(b"x path=x\n").is_none());
        assert!(pax(b"11 path=x\0\n").is_none());
        assert!(pax(b"0 path=x\n").is_none());
        let sparse = plain(|b| {
            let mut h = tar::Header::new_gnu();
            h.set_entry_type(tar::EntryType::GNUSparse);
            h.set_path("s").unwrap();
            h.set_size(0);
            h.set_cksum();
            b.append(&h, io::empty()).unwrap();
        });
        assert!(matches!(list(&sparse), Err(Error::UnknownType { flag: 'S', .. })));
    }

    #[test]
    fn verifies_packed_and_plain_layers() {
        let fill = |w: &mut crate::layer::Writer<Vec<u8>>| w.file("a", 0o644, 700_000, io::repeat(3));
        let (bytes, layer) = write(Options::default(), fill).unwrap();
        verify(bytes.as_slice(), &layer.diff_id, Limits::default()).unwrap();
        assert_eq!(diff_id(bytes.as_slice(), Limits::default()).unwrap(), layer.diff_id);
        let wrong = verify(bytes.as_slice(), &Digest::of(b"x"), Limits::default());
        assert!(matches!(wrong, Err(Error::WrongDiffId { .. })));
        let cut = verify(&bytes[..bytes.len() - 6], &layer.diff_id, Limits::default());
        assert!(matches!(cut, Err(Error::Torn(_))));
        let small = Limits { bytes: 100_000, ..Limits::default() };
        assert!(verify(bytes.as_slice(), &layer.diff_id, small).is_err());
        assert!(matches!(decompress(&[0x28, 0xb5, 0x2f, 0xfd][..]), Err(Error::Zstd)));
    }
}
