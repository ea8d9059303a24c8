//! Digests: `algorithm:hex` (OCI image spec, descriptor.md, "Digests"). Only registered algorithms are accepted.

use std::{fmt, io, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("digest {0:?} has no algorithm")]
    NoAlgorithm(String),
    #[error("digest algorithm {0:?} is not supported; sha256 and sha512 are")]
    UnknownAlgorithm(String),
    #[error("digest {0:?} is not {1} lower-case hexadecimal characters")]
    NotHex(String, usize),
}

/// The registered algorithms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn as_str(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A validated digest, such as `sha256:e3b0…`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(Arc<str>);

impl Digest {
    /// Parses and validates.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let (name, hex) = text.split_once(':').ok_or_else(|| Error::NoAlgorithm(text.to_owned()))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(Error::UnknownAlgorithm(name.to_owned())),
        };
        let is_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if hex.len() != algorithm.hex_len() || !is_hex {
            return Err(Error::NotHex(text.to_owned(), algorithm.hex_len()));
        }
        Ok(Digest(text.into()))
    }

    /// The sha256 digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_sha256(sha2::Sha256::digest(bytes).as_slice())
    }

    /// The digest of some bytes by the given algorithm.
    pub fn of_with(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    fn from_sha256(sum: &[u8]) -> Self {
        Digest(format!("sha256:{}", hex::encode(sum)).into())
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> Algorithm {
        if self.0.starts_with("sha512:") { Algorithm::Sha512 } else { Algorithm::Sha256 }
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        &self.0[self.algorithm().as_str().len() + 1..]
    }

    /// The first 12 characters of the hexadecimal part, for people.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Digest::parse(text)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Digest::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// Hashes a stream.
#[derive(Clone)]
pub enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// A fresh hasher.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Hasher::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Hasher::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        match self {
            Hasher::Sha256(hasher) => Digest::from_sha256(hasher.finalize().as_slice()),
            Hasher::Sha512(hasher) => {
                Digest(format!("sha512:{}", hex::encode(hasher.finalize().as_slice())).into())
            }
        }
    }
}

/// A reader or writer that hashes and counts what passes through.
pub struct Hashing<T> {
    inner: T,
    hasher: Hasher,
    count: u64,
}

impl<T> Hashing<T> {
    /// Hashes by the given algorithm what passes to or from `inner`.
    pub fn new(algorithm: Algorithm, inner: T) -> Self {
        Hashing { inner, hasher: Hasher::new(algorithm), count: 0 }
    }

    /// The inner reader or writer, the digest, and the number of bytes that passed.
    pub fn finish(self) -> (T, Digest, u64) {
        (self.inner, self.hasher.finish(), self.count)
    }

    /// Bytes so far.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl<T: io::Read> io::Read for Hashing<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }
}

impl<T: io::Write> io::Write for Hashing<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.hasher.update(&buf[..n]);
        self.count += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_only_registered_algorithms_in_lower_case() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::parse(empty).unwrap(), Digest::of(b""));
        assert_eq!(Digest::of(b"").short(), "e3b0c44298fc");
        assert!(matches!(Digest::parse("md5:00"), Err(Error::UnknownAlgorithm(_))));
        assert!(matches!(Digest::parse("sha256"), Err(Error::NoAlgorithm(_))));
        assert!(matches!(Digest::parse(&empty.to_uppercase()), Err(Error::UnknownAlgorithm(_))));
        assert!(matches!(Digest::parse("sha256:../../x"), Err(Error::NotHex(..))));
        let long = Digest::of_with(Algorithm::Sha512, b"");
        assert_eq!(Digest::parse(long.as_str()).unwrap(), long);
        assert_eq!(long.hex().len(), 128);
    }

    #[test]
    fn a_json_digest_is_validated() {
        assert!(serde_json::from_str::<Digest>("\"sha256:zz\"").is_err());
    }
}
