//! A small record in a file of its own, with a version and a check sum.
//!
//! ```text
//! byte 0      version of the payload's format, the caller's
//! bytes 1-4   length of the payload, little endian
//! bytes 5-12  first 8 bytes of the payload's SHA-256
//! bytes 13-   payload
//! ```
//!
//! [`crate::write`] already keeps a record from being torn; the check sum tells a disk's fault, or a file that was
//! copied in part, from a record.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const HEAD: usize = 13;

/// Longest payload, in bytes. Records are small by design: states, exit codes, settings.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read or written.
    #[error("record {}", path.display())]
    Io {
        /// The record's file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Length or check sum do not fit.
    #[error("record {} is torn", path.display())]
    Torn {
        /// The record's file.
        path: PathBuf,
    },
    /// Another version than the caller reads.
    #[error("record {} has version {found}, not {wanted}", path.display())]
    Version {
        /// The record's file.
        path: PathBuf,
        /// In the file.
        found: u8,
        /// Asked for.
        wanted: u8,
    },
}

/// Writes the record durably (mode 0600).
pub fn write(path: &Path, version: u8, payload: &[u8]) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "the payload is too long")));
    }
    crate::write(path, &encode(version, payload)).map_err(io)
}

/// Reads the record's payload; `Ok(None)` if there is no file.
pub fn read(path: &Path, version: u8) -> Result<Option<Vec<u8>>, Error> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take((HEAD + PAYLOAD_BYTES_MAX + 1) as u64).read_to_end(&mut bytes).map_err(io)?;
    let torn = || Error::Torn { path: path.to_owned() };
    let (head, payload) = bytes.split_at_checked(HEAD).ok_or_else(torn)?;
    if head != &encode(head[0], payload)[..HEAD] {
        return Err(torn());
    }
    if head[0] != version {
        return Err(Error::Version { path: path.to_owned(), found: head[0], wanted: version });
    }
    Ok(Some(payload.to_vec()))
}

fn encode(version: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + payload.len());
    bytes.push(version);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&Sha256::digest(payload)[..8]);
    bytes.extend_from_slice(payload);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_torn_or_flipped_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        assert!(read(&path, 1).unwrap().is_none());
        write(&path, 1, b"exit 3").unwrap();
        assert_eq!(read(&path, 1).unwrap().unwrap(), b"exit 3");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(read(&path, 1), Err(Error::Torn { .. })), "{length}");
        }
        for position in 1..whole.len() {
            let mut flipped = whole.clone();
            flipped[position] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            assert!(matches!(read(&path, 1), Err(Error::Torn { .. })), "{position}");
        }
        std::fs::write(&path, &whole).unwrap();
        assert!(matches!(read(&path, 2), Err(Error::Version { found: 1, wanted: 2, .. })));
    }
}
