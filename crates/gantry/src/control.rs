//! What commands of gantry ask its own daemon on `run/daemon.sock`: to be replaced, and for a snapshot of its state. One
//! JSON value a line; one request a connection, then answers until one that is the last.
//!
//! Everything else goes through the Kubernetes API and the registry. This socket is root's alone.

use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Of a request or an answer.
pub const LINE_BYTES_MAX: u64 = 64 * 1024;
/// Of what commands and daemon say here, and of the way in which one daemon takes over from another. A binary that does
/// not speak it cannot be upgraded to in place.
pub const PROTOCOL: u32 = 1;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case")]
pub enum Ask {
    /// Be replaced by the binary that was staged, within so many milliseconds.
    Upgrade { within_ms: u64 },
    /// Write the newest format from now on; the daemon starts again for that.
    Finish { within_ms: u64 },
    /// Lay out a consistent copy of everything that is to be kept. It stays until the connection ends.
    Snapshot,
    #[serde(other)]
    Unknown,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// The daemon ends now, and the next one starts.
    Began,
    /// The new daemon serves. Last.
    Replaced { version: String },
    /// The new one did not come up; the old one serves again. Last.
    WentBack { error: String },
    /// Neither came up. Last.
    Down { error: String },
    /// Nothing was changed. Last.
    Refused { error: String, hint: Option<String> },
    /// Nothing was to be done. Last.
    Nothing { why: String },
    /// The copy's folder.
    Snapshot { folder: PathBuf },
}

/// The socket of a state folder's daemon.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("run/daemon.sock")
}

/// Writes one value as a line.
pub fn write_line(stream: &mut impl io::Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// A command's end of the socket.
pub struct Connection {
    reader: BufReader<UnixStream>,
}

impl Connection {
    /// Asks the daemon. `NotFound` or `ConnectionRefused`: there is none that listens here.
    pub fn ask(state_dir: &Path, ask: &Ask) -> io::Result<Self> {
        let (_open, short) = ::proxy::handover::short(&path(state_dir))?;
        let mut stream = UnixStream::connect(short)?;
        stream.set_write_timeout(Some(Duration::from_secs(10)))?;
        write_line(&mut stream, ask)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The next answer, which may take so long; `None` at the connection's end.
    pub fn answer(&mut self, within: Duration) -> io::Result<Option<Answer>> {
        self.reader.get_ref().set_read_timeout(Some(within))?;
        let mut line = String::new();
        if (&mut self.reader).take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        serde_json::from_str(&line).map(Some).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_answered_keeps_its_form() {
        let text = serde_json::to_string(&Ask::Upgrade { within_ms: 60_000 }).unwrap();
        assert_eq!(text, r#"{"ask":"upgrade","within_ms":60000}"#);
        assert_eq!(serde_json::from_str::<Ask>(r#"{"ask":"what is new"}"#).unwrap(), Ask::Unknown);
        let text = serde_json::to_string(&Answer::WentBack { error: "no".into() }).unwrap();
        assert_eq!(text, r#"{"answer":"went-back","error":"no"}"#);
    }
}
