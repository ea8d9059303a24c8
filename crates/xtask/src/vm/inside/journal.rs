//! What a writer was told, on a disk that forgets nothing: one record a sector, written past every cache of the guest.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

const SECTOR_BYTES: usize = 512;
/// The serial of the journal's disk.
pub(in crate::vm) const SERIAL: &str = "journal";

/// Direct input and output wants memory at whole sectors.
#[repr(C, align(4096))]
struct Sector([u8; SECTOR_BYTES]);

/// What was or is to be done with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Record {
    /// A write of this value starts; `None` is a deletion.
    Begin { key: String, value: Option<Value> },
    /// It was acknowledged.
    Acknowledged { key: String },
    /// It had no answer, and the key was found with this value afterwards.
    Found { key: String, value: Option<Value> },
}

/// A value, which says which write made it: its number and its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Value {
    pub(super) number: u64,
    pub(super) length: usize,
}

impl Value {
    pub(super) fn text(&self) -> String {
        format!("{} {}", self.number, "v".repeat(self.length))
    }
}

pub(super) struct Journal {
    disk: File,
    next: u64,
}

impl Journal {
    /// Opens the disk and reads what is on it.
    pub(super) fn open() -> Result<(Self, Vec<Record>)> {
        Self::open_at(&disk(SERIAL)?, nix::libc::O_DIRECT | nix::libc::O_DSYNC)
    }

    fn open_at(path: &Path, flags: i32) -> Result<(Self, Vec<Record>)> {
        let disk = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let disk = disk.with_context(|| format!("open {}", path.display()))?;
        let mut journal = Self { disk, next: 0 };
        let mut records = Vec::new();
        while let Some(record) = journal.read()? {
            records.push(record);
        }
        Ok((journal, records))
    }

    fn read(&mut self) -> Result<Option<Record>> {
        let mut sector = Sector([0; SECTOR_BYTES]);
        self.disk
            .read_exact_at(&mut sector.0, self.next * SECTOR_BYTES as u64)
            .context("read the journal")?;
        if sector.0[0] == 0 {
            return Ok(None);
        }
        self.next += 1;
        let text = std::str::from_utf8(&sector.0)?.trim_end();
        serde_json::from_str(text).map(Some).with_context(|| format!("the journal holds {text:?}"))
    }

    /// When it returns, the record outlives the machine.
    pub(super) fn write(&mut self, record: &Record) -> Result<()> {
        let text = serde_json::to_string(record)?;
        ensure!(text.len() <= SECTOR_BYTES, "a record of {} bytes", text.len());
        let mut sector = Sector([b' '; SECTOR_BYTES]);
        sector.0[..text.len()].copy_from_slice(text.as_bytes());
        self.disk.write_all_at(&sector.0, self.next * SECTOR_BYTES as u64).context("write the journal")?;
        self.next += 1;
        Ok(())
    }
}

/// The disk with this serial.
fn disk(serial: &str) -> Result<PathBuf> {
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let is = std::fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if is.trim() == serial {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    anyhow::bail!("no disk has the serial {serial}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_by_the_next_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let (mut journal, records) = Journal::open_at(file.path(), 0).unwrap();
        assert_eq!(records, []);
        let value = Some(Value { number: 7, length: 100 });
        let all = [
            Record::Begin { key: "a".into(), value: value.clone() },
            Record::Acknowledged { key: "a".into() },
            Record::Found { key: "b".into(), value: None },
        ];
        all[..2].iter().for_each(|record| journal.write(record).unwrap());
        let (mut journal, records) = Journal::open_at(file.path(), 0).unwrap();
        assert_eq!(records, all[..2]);
        journal.write(&all[2]).unwrap();
        assert_eq!(Journal::open_at(file.path(), 0).unwrap().1, all);
    }
}
