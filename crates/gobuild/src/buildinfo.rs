//! What the linker wrote into a Go binary: toolchain version, main package, main module.
//!
//! Read from the file itself, which saves a `go version -m` (about 12 ms). Format: package `debug/buildinfo`.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

const MAGIC: &[u8] = b"\xff Go buildinf:";
/// Bytes before the strings of a header with inline strings (Go 1.18 and later).
const HEADER_BYTES: usize = 32;
const SECTION_BYTES_MAX: u64 = 4 << 20;

/// The linker's note about a binary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// `go1.26.8`
    pub go: String,
    /// The main package's import path; `command-line-arguments` for files outside a module.
    pub package: String,
    /// The main module and its version, when there is one.
    pub module: Option<(String, String)>,
    /// ELF machine number.
    pub machine: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read {path}")]
    Read { path: String, source: io::Error },
    #[error("{path} is not an ELF executable")]
    NotElf { path: String },
    #[error("{path} has no Go build information")]
    NotGo { path: String },
}

/// Reads the build information of an ELF file.
pub fn read(path: &Path) -> Result<BuildInfo, Error> {
    let name = || path.display().to_string();
    let mut file = File::open(path).map_err(|source| Error::Read { path: name(), source })?;
    parse(&mut file).map_err(|problem| match problem {
        Problem::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            Error::NotElf { path: name() }
        }
        Problem::Io(source) => Error::Read { path: name(), source },
        Problem::NotElf => Error::NotElf { path: name() },
        Problem::NotGo => Error::NotGo { path: name() },
    })
}

enum Problem {
    Io(io::Error),
    NotElf,
    NotGo,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn parse(file: &mut (impl Read + Seek)) -> Result<BuildInfo, Problem> {
    let mut header = [0; 64];
    file.read_exact(&mut header)?;
    // Only 64-bit little-endian ELF is ever built here.
    if &header[..6] != b"\x7fELF\x02\x01" {
        return Err(Problem::NotElf);
    }
    let machine = u16::from_le_bytes([header[18], header[19]]);
    let section = section(file, &header, b".go.buildinfo")?.ok_or(Problem::NotGo)?;
    if section.len() < HEADER_BYTES || !section.starts_with(MAGIC) || section[15] & 2 == 0 {
        return Err(Problem::NotGo);
    }
    let (go, rest) = string(&section[HEADER_BYTES..]).ok_or(Problem::NotGo)?;
    let (module, _) = string(rest).ok_or(Problem::NotGo)?;
    let mut info =
        BuildInfo { go: String::from_utf8_lossy(go).into_owned(), machine, ..BuildInfo::default() };
    // Sixteen bytes of marker stand on both sides of the text.
    let text = String::from_utf8_lossy(module.get(16..module.len().saturating_sub(16)).unwrap_or_default());
    for line in text.lines() {
        let mut fields = line.split('\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some("path"), Some(path), _) => path.clone_into(&mut info.package),
            (Some("mod"), Some(path), version) => {
                info.module = Some((path.to_owned(), version.unwrap_or_default().to_owned()));
            }
            _ => {}
        }
    }
    Ok(info)
}

fn section(
    file: &mut (impl Read + Seek),
    header: &[u8; 64],
    name: &[u8],
) -> Result<Option<Vec<u8>>, Problem> {
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let table_at = u64_at(header, 40);
    let (entry, count, names_index) = (u16_at(58), u16_at(60), u16_at(62));
    if entry < 64 || names_index >= count {
        return Err(Problem::NotElf);
    }
    let table = bytes_at(file, table_at, u64::from(entry) * u64::from(count))?;
    let row = |index: u16| &table[usize::from(index) * usize::from(entry)..][..64];
    let names = bytes_at(file, u64_at(row(names_index), 24), u64_at(row(names_index), 32))?;
    for index in 0..count {
        let row = row(index);
        let at = u32::from_le_bytes([row[0], row[1], row[2], row[3]]) as usize;
        let found = names.get(at..).and_then(|rest| rest.split(|byte| *byte == 0).next());
        if found == Some(name) {
            return bytes_at(file, u64_at(row, 24), u64_at(row, 32)).map(Some);
        }
    }
    Ok(None)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn bytes_at(file: &mut (impl Read + Seek), at: u64, count: u64) -> Result<Vec<u8>, Problem> {
    if count > SECTION_BYTES_MAX {
        return Err(Problem::NotElf);
    }
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < count {
        return Err(Problem::NotElf);
    }
    Ok(bytes)
}

/// A string behind its length as an unsigned varint.
fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut shift) = (0usize, 0u32);
    for (index, byte) in bytes.iter().enumerate().take(9) {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let rest = &bytes[index + 1..];
            return (length <= rest.len()).then(|| rest.split_at(length));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn what_is_no_go_binary_is_refused() {
        assert!(matches!(parse(&mut Cursor::new(vec![0; 200])), Err(Problem::NotElf)));
        assert!(matches!(parse(&mut Cursor::new(b"\x7fELF".to_vec())), Err(Problem::Io(_))));
        let mut lying = vec![0xff; 64];
        lying[..6].copy_from_slice(b"\x7fELF\x02\x01");
        assert!(matches!(parse(&mut Cursor::new(lying)), Err(Problem::NotElf)));
    }

    #[test]
    fn strings_carry_their_length() {
        assert_eq!(string(b"\x03abcd"), Some((&b"abc"[..], &b"d"[..])));
        assert_eq!(string(b"\x05abc"), None);
        assert_eq!(string(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"), None);
        assert_eq!(string(b""), None);
    }
}
