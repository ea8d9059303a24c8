//! Room on the disk: what the store takes in leaves a part of the file system free, on which everything else depends.
//!
//! A compressed layer says nothing of its size: a kilobyte can hold a megabyte. So the free space is looked at before the
//! first byte, and again whenever a bounded number of bytes has been written since.

use std::{io, path::Path};

/// The part of the file system that stays free: a twentieth of it,
const RESERVE_PART: u64 = 20;
/// and at most 1 GiB.
const RESERVE_BYTES_MAX: u64 = 1 << 30;
/// Bytes that are written between two looks: others write too.
const LOOK_BYTES: u64 = 64 << 20;

/// What a file system offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Bytes beyond the reserve.
    pub bytes: u64,
    /// Files that can be made.
    pub files: u64,
}

impl Room {
    /// That of the file system that `path` is on.
    pub fn at(path: &Path) -> io::Result<Self> {
        let found = rustix::fs::statvfs(path)?;
        // Some file systems have no fixed number of files, and say zero.
        let files = if found.f_files == 0 { u64::MAX } else { found.f_favail };
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Self { bytes: beyond_reserve(bytes(found.f_blocks), bytes(found.f_bavail)), files })
    }
}

fn beyond_reserve(total: u64, available: u64) -> u64 {
    available.saturating_sub((total / RESERVE_PART).min(RESERVE_BYTES_MAX))
}

/// A look at the file system of `dir`, for a [`Grant`].
pub(crate) fn look(dir: &Path) -> Box<dyn Fn() -> io::Result<u64> + Send + Sync> {
    let dir = dir.to_owned();
    Box::new(move || Ok(Room::at(&dir)?.bytes))
}

/// Grants bytes while there is room.
pub(crate) struct Grant<F = Box<dyn Fn() -> io::Result<u64> + Send + Sync>> {
    look: F,
    left: u64,
}

impl<F: Fn() -> io::Result<u64>> Grant<F> {
    /// `look` tells how many bytes there is room for.
    pub fn new(look: F) -> Self {
        Self { look, left: 0 }
    }

    /// Before so many bytes are written: an error of kind `StorageFull` when there is no room for them.
    pub fn take(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.left {
            let room = (self.look)()?;
            if bytes > room {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    "no space left but what is kept free",
                ));
            }
            self.left = room.min(LOOK_BYTES).max(bytes);
        }
        self.left -= bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_part_of_the_disk_stays_free() {
        assert_eq!(beyond_reserve(1000, 100), 50);
        assert_eq!(beyond_reserve(1000, 50), 0);
        assert_eq!(beyond_reserve(1 << 50, 3 << 30), 2 << 30);
        assert!(Room::at(Path::new("/")).unwrap().files > 0);
    }

    #[test]
    fn what_others_write_meanwhile_counts() {
        let (room, looks) = (Cell::new(LOOK_BYTES * 3), Cell::new(0));
        let mut grant = Grant::new(|| {
            looks.set(looks.get() + 1);
            Ok(room.get())
        });
        for _ in 0..64 {
            grant.take(LOOK_BYTES / 64).unwrap();
        }
        assert_eq!(looks.get(), 1);
        room.set(10);
        assert_eq!(grant.take(11).unwrap_err().kind(), io::ErrorKind::StorageFull);
        grant.take(10).unwrap();
    }
}
