//! The daemon's log: a file of bounded size, and the one before it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Size at which the file becomes `….1` and a new one begins.
const FILE_BYTES_MAX: u64 = 10 << 20;

/// A file that is renamed to `….1` when it is full.
pub struct Rotating {
    state: Mutex<Open>,
}

struct Open {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl Rotating {
    fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { state: Mutex::new(Open { path: path.to_owned(), file, bytes, bytes_max }) })
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(durable::FILE_MODE).open(path)
}

impl Write for &Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut open = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if open.bytes > 0 && open.bytes + line.len() as u64 > open.bytes_max {
            let mut old = open.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&open.path, old)?;
            open.file = append(&open.path)?;
            open.bytes = 0;
        }
        open.file.write_all(line)?;
        open.bytes += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Rotating {
    type Writer = &'a Rotating;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Sends the process's log to `path`. `GANTRY_LOG` filters it as `RUST_LOG` does elsewhere; the default is `info`.
pub fn start(path: &Path) -> io::Result<()> {
    let writer = Rotating::open(path, FILE_BYTES_MAX)?;
    let filter = EnvFilter::try_from_env("GANTRY_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(writer)
        // It would print them on stderr, and a print that fails, as on a full disk, panics in whatever task logs.
        .log_internal_errors(false);
    // A second call in one process keeps the first log.
    let _ = subscriber.try_init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_makes_room_and_nothing_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = Rotating::open(&path, 10).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\n"] {
            (&log).write_all(line.as_bytes()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("log.1")).unwrap(), "three\n");
    }
}
