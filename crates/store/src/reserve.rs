//! Space that only the store may use: blocks of its own file, allocated before they are needed.
//!
//! **Invariant:** while the reserve is whole, a write of the store needs nothing of the disk. A file set aside and given
//! up when the disk is full would be everybody's at that moment, first of all that of whoever filled the disk; blocks
//! behind the end of the store's own file are nobody else's.
//!
//! When the disk is full and the reserve cannot be made whole any more, it is kept for what helps: see
//! [`Reserve::is_short`].

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

/// As stat(2) counts blocks.
const BLOCK_BYTES: u64 = 512;

/// The reserve of a store's file.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    /// How much is wanted behind the file's end.
    bytes: u64,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is known yet.
    Unknown,
    /// It was whole when the file had that length.
    Whole { length: u64 },
    /// The disk had no more, and less than half of it is there.
    Short,
    /// The file system cannot do it.
    Impossible,
}

impl Reserve {
    pub(crate) fn new(path: PathBuf, bytes: u64) -> Self {
        Self { path, bytes, state: if bytes == 0 { State::Impossible } else { State::Unknown } }
    }

    /// Whether the disk is full and the reserve used up by half: what can wait has to.
    pub(crate) fn is_short(&self) -> bool {
        self.state == State::Short
    }

    /// Makes it whole again, if the file has grown or if it was not.
    pub(crate) fn keep(&mut self) {
        if self.state == State::Impossible {
            return;
        }
        self.state = match self.fill() {
            Ok(state) => state,
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "look after the store's reserve");
                State::Unknown
            }
        };
    }

    fn fill(&self) -> io::Result<State> {
        let file = OpenOptions::new().write(true).open(&self.path)?;
        let length = file.metadata()?.len();
        if self.state == (State::Whole { length }) {
            return Ok(self.state);
        }
        // Holes inside count too: a page that was never written needs a block.
        match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, length + self.bytes) {
            Ok(()) => Ok(State::Whole { length }),
            Err(Errno::NOSPC | Errno::DQUOT) => {
                let behind = allocated(&file)?.saturating_sub(length);
                Ok(if behind >= self.bytes / 2 { State::Unknown } else { State::Short })
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                tracing::info!(
                    "the file system of the store cannot reserve space: on a full disk writes are refused"
                );
                Ok(State::Impossible)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn allocated(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.blocks() * BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_set_aside_behind_the_end_and_the_file_stays_as_long() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"x").unwrap();
        let mut reserve = Reserve::new(path.clone(), 1 << 20);
        reserve.keep();
        assert!(!reserve.is_short());
        let file = File::open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1);
        if reserve.state == State::Impossible {
            return;
        }
        assert!(allocated(&file).unwrap() >= 1 << 20);
        // It follows the file.
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(3 << 20).unwrap();
        reserve.keep();
        assert!(allocated(&file).unwrap() >= 4 << 20);
    }

    #[test]
    fn no_reserve_is_never_short() {
        let mut reserve = Reserve::new(PathBuf::from("/nowhere"), 0);
        reserve.keep();
        assert!(!reserve.is_short());
    }
}
