//! A container's output as CRI log lines, in files of bounded size and number.
//!
//! `2026-11-21T03:15:29.123456789Z stdout F text`: time, stream, F for a full line or P for a part of one (lines are
//! cut at 16 KiB), text. `path` is the newest file, `path.1` the one before.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::spec;

/// As containerd.
const MAX_LINE_BYTES: usize = 16 * 1024;
const STREAMS: [&str; 2] = ["stdout", "stderr"];

pub struct Log {
    settings: spec::Log,
    file: Option<File>,
    bytes: u64,
    /// The line that each stream has begun.
    begun: [Vec<u8>; 2],
    /// Lines of one read, written at once.
    batch: Vec<u8>,
}

impl Log {
    /// The file is opened with the first line; a log that cannot be written loses lines, never the container.
    pub fn open(settings: &spec::Log) -> Log {
        Log {
            settings: settings.clone(),
            file: None,
            bytes: 0,
            begun: [Vec::new(), Vec::new()],
            batch: Vec::new(),
        }
    }

    pub fn write(&mut self, stream: usize, mut bytes: &[u8]) {
        let now = timestamp(SystemTime::now());
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.begun[stream].len();
            let newline = bytes.iter().take(room + 1).position(|byte| *byte == b'\n');
            match newline {
                Some(end) => {
                    self.begun[stream].extend_from_slice(&bytes[..end]);
                    self.emit(stream, &now, 'F');
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() >= room => {
                    self.begun[stream].extend_from_slice(&bytes[..room]);
                    self.emit(stream, &now, 'P');
                    bytes = &bytes[room..];
                }
                None => {
                    self.begun[stream].extend_from_slice(bytes);
                    break;
                }
            }
        }
        self.flush();
    }

    /// The streams have ended: what is begun is written as it is.
    pub fn end(&mut self) {
        let now = timestamp(SystemTime::now());
        for stream in 0..2 {
            if !self.begun[stream].is_empty() {
                self.emit(stream, &now, 'P');
            }
        }
        self.flush();
        self.begun = [Vec::new(), Vec::new()];
        self.batch = Vec::new();
    }

    fn emit(&mut self, stream: usize, now: &str, tag: char) {
        let line = &mut self.begun[stream];
        let length = (now.len() + STREAMS[stream].len() + line.len() + 5) as u64;
        if self.file.is_none() {
            self.reopen();
        }
        if self.bytes > 0 && self.bytes + length > self.settings.max_bytes {
            self.flush();
            self.rotate();
        }
        let line = &mut self.begun[stream];
        let _ = write!(self.batch, "{now} {} {tag} ", STREAMS[stream]);
        self.batch.append(line);
        self.batch.push(b'\n');
        self.bytes += length;
    }

    fn flush(&mut self) {
        if let Some(file) = &mut self.file
            && !self.batch.is_empty()
        {
            // A full disk loses these lines; the next ones are tried again.
            let _ = file.write_all(&self.batch);
        }
        self.batch.clear();
    }

    fn reopen(&mut self) {
        self.file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.settings.path).ok();
        self.bytes =
            self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
    }

    fn rotate(&mut self) {
        let name = |age: u32| {
            if age == 0 {
                return self.settings.path.clone();
            }
            let mut path = self.settings.path.clone().into_os_string();
            path.push(format!(".{age}"));
            PathBuf::from(path)
        };
        let oldest = self.settings.max_files.max(1) - 1;
        if oldest == 0 {
            let _ = std::fs::remove_file(name(0));
        }
        for age in (0..oldest).rev() {
            let _ = std::fs::rename(name(age), name(age + 1));
        }
        self.reopen();
    }
}

/// RFC 3339 with nanoseconds, in UTC. Days to a date: Howard Hinnant's `civil_from_days`.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn open(dir: &std::path::Path, max_bytes: u64, max_files: u32) -> Log {
        Log::open(&spec::Log { path: dir.join("0.log"), max_bytes, max_files })
    }

    fn texts(path: PathBuf) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn times_are_rfc_3339() {
        let at = |secs, nanos| timestamp(UNIX_EPOCH + Duration::new(secs, nanos));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(at(1_795_230_929, 123_456_789), "2026-11-21T03:15:29.123456789Z");
    }

    #[test]
    fn lines_are_whole_across_reads_and_streams() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 1 << 20, 2);
        log.write(0, b"one\ntw");
        log.write(1, b"err\n");
        log.write(0, b"o\n\nend");
        log.end();
        assert_eq!(
            texts(dir.path().join("0.log")),
            ["stdout F one", "stderr F err", "stdout F two", "stdout F ", "stdout P end"]
        );
    }

    #[test]
    fn a_long_line_is_cut_and_a_line_of_exactly_the_limit_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 1 << 20, 2);
        let mut line = vec![b'x'; MAX_LINE_BYTES];
        line.push(b'\n');
        log.write(0, &line);
        log.write(0, &vec![b'y'; MAX_LINE_BYTES + 3]);
        log.write(0, b"\n");
        let tags: Vec<(String, usize)> = texts(dir.path().join("0.log"))
            .iter()
            .map(|line| (line[7..8].to_owned(), line.len() - 9))
            .collect();
        assert_eq!(
            tags,
            [("F".to_owned(), MAX_LINE_BYTES), ("P".to_owned(), MAX_LINE_BYTES), ("F".to_owned(), 3)]
        );
    }

    #[test]
    fn files_are_bounded_in_size_and_number() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path(), 200, 3);
        for number in 0..100 {
            log.write(0, format!("line {number}\n").as_bytes());
        }
        log.end();
        let mut names: Vec<_> =
            std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort();
        assert_eq!(names.len(), 3);
        for name in &names {
            assert!(std::fs::metadata(name).unwrap().len() <= 200);
        }
        assert_eq!(texts(dir.path().join("0.log")).last().unwrap(), "stdout F line 99");
    }
}
