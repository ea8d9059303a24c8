//! A disk with a volatile cache, as disks have: what was not flushed may be lost when the power goes, in any part and
//! any order, sector by sector. And a disk that fails.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rand::Rng;
use rand::rngs::StdRng;

/// What a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;
/// What the cache holds; a disk whose cache is full writes it back.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// The chances of an unflushed sector to be kept, one of which is drawn for each cut.
const KEPT: [f64; 5] = [0.0, 0.1, 0.5, 0.9, 1.0];

/// A write that was answered, and may be lost.
struct Write {
    offset: u64,
    before: Vec<u8>,
    after: Vec<u8>,
    /// Forced unit access: it was on the medium when it was answered, whatever came before.
    forced: bool,
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lost {
    /// Sectors of unflushed writes.
    pub(super) unflushed: u64,
    /// Of these, that are not on the disk.
    pub(super) lost: u64,
}

pub(super) struct Disk {
    /// What is read: everything that was written.
    file: File,
    bytes: u64,
    cache: Vec<Write>,
    cached: usize,
    /// Answered write requests.
    writes: u64,
    /// Write requests that fail, by their numbers.
    failing: Range<u64>,
}

impl Disk {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes, cache: Vec::new(), cached: 0, writes: 0, failing: 0..0 })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Write requests so far: the clock by which moments are chosen.
    pub(super) fn writes(&self) -> u64 {
        self.writes
    }

    /// From now on these write requests, and flushes between them, end with an error.
    pub(super) fn fail(&mut self, writes: Range<u64>) {
        self.failing = writes;
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len())?;
        self.file.read_exact_at(into, offset)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8], forced: bool) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        self.writes += 1;
        if self.failing.contains(&self.writes) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        let mut before = vec![0; bytes.len()];
        self.file.read_exact_at(&mut before, offset)?;
        self.file.write_all_at(bytes, offset)?;
        self.cached += bytes.len();
        self.cache.push(Write { offset, before, after: bytes.to_vec(), forced });
        if self.cached > CACHE_BYTES_MAX {
            self.forget();
        }
        Ok(())
    }

    /// After it, everything that was written before it is there for good.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.failing.contains(&self.writes) {
            return Err(io::Error::from_raw_os_error(nix::libc::EIO));
        }
        self.forget();
        Ok(())
    }

    /// The power goes: of each unflushed write a seeded part is there afterwards.
    pub(super) fn cut(&mut self, random: &mut StdRng) -> io::Result<Lost> {
        for write in self.cache.iter().rev() {
            self.file.write_all_at(&write.before, write.offset)?;
        }
        let kept = KEPT[random.random_range(0..KEPT.len())];
        let mut counts = Lost::default();
        for write in &self.cache {
            for (number, sector) in write.after.chunks(SECTOR_BYTES).enumerate() {
                let is_kept = write.forced || random.random_bool(kept);
                counts.unflushed += u64::from(!write.forced);
                counts.lost += u64::from(!is_kept);
                if is_kept {
                    self.file.write_all_at(sector, write.offset + (number * SECTOR_BYTES) as u64)?;
                }
            }
        }
        self.forget();
        Ok(counts)
    }

    fn forget(&mut self) {
        self.cache.clear();
        self.cached = 0;
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        let is_inside = offset.checked_add(length as u64).is_some_and(|end| end <= self.bytes);
        if is_inside { Ok(()) } else { Err(io::Error::from_raw_os_error(nix::libc::EINVAL)) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn disk() -> Disk {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 10).unwrap();
        Disk::new(file).unwrap()
    }

    fn at(disk: &Disk, sector: u64) -> u8 {
        let mut one = [0];
        disk.read(sector * SECTOR_BYTES as u64, &mut one).unwrap();
        one[0]
    }

    #[test]
    fn what_was_flushed_or_forced_survives_every_cut_and_the_rest_some() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..50 {
            let mut disk = disk();
            disk.write(0, &[1; SECTOR_BYTES], false).unwrap();
            disk.flush().unwrap();
            disk.write(0, &[2; SECTOR_BYTES * 3], false).unwrap();
            disk.write(5 * SECTOR_BYTES as u64, &[3; SECTOR_BYTES], true).unwrap();
            assert_eq!((at(&disk, 0), at(&disk, 2)), (2, 2), "what was written is read");
            let counts = disk.cut(&mut StdRng::seed_from_u64(seed)).unwrap();
            assert_eq!(counts.unflushed, 3);
            assert!(matches!(at(&disk, 0), 1 | 2) && matches!(at(&disk, 1), 0 | 2), "old or new");
            assert_eq!(at(&disk, 5), 3, "forced");
            lost += counts.lost;
            kept += counts.unflushed - counts.lost;
        }
        assert!(lost > 0 && kept > 0, "{lost} lost, {kept} kept");
    }

    #[test]
    fn a_lost_write_uncovers_what_was_there_before_it() {
        let seed = (0..100).find(|seed| {
            let mut disk = disk();
            for value in 1..=3 {
                disk.write(0, &[value; SECTOR_BYTES], false).unwrap();
            }
            disk.cut(&mut StdRng::seed_from_u64(*seed)).unwrap();
            at(&disk, 0) == 2
        });
        assert!(seed.is_some(), "the second of three writes can be the last that is kept");
    }

    #[test]
    fn a_failing_disk_says_so_and_recovers() {
        let mut disk = disk();
        disk.fail(2..3);
        disk.write(0, &[1; SECTOR_BYTES], false).unwrap();
        assert!(disk.write(0, &[2; SECTOR_BYTES], false).is_err() && disk.flush().is_err());
        assert_eq!(at(&disk, 0), 1);
        disk.write(0, &[3; SECTOR_BYTES], false).unwrap();
        disk.flush().unwrap();
        assert_eq!((at(&disk, 0), disk.writes()), (3, 3));
        assert!(disk.write(64 << 10, &[1], false).is_err(), "beyond the end");
    }

    #[test]
    fn the_same_seed_loses_the_same() {
        let after = |seed| {
            let mut disk = disk();
            disk.write(0, &[1; 32 << 10], false).unwrap();
            disk.cut(&mut StdRng::seed_from_u64(seed)).unwrap();
            (0..64).map(|sector| at(&disk, sector)).collect::<Vec<_>>()
        };
        assert_eq!(after(7), after(7));
    }
}
