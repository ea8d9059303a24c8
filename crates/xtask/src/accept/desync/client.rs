//! A client that sends what it is told, byte for byte, and reads answers as RFC 9112 frames them.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Longest silence of a proxy that has something to say.
const SILENCE: Duration = Duration::from_secs(15);

/// A final response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::accept) struct Answer {
    pub(in crate::accept) status: u16,
    /// What the backend says that it saw: method and target.
    pub(in crate::accept) saw: Option<String>,
    /// It ended as it said that it would.
    pub(in crate::accept) whole: bool,
    head: String,
}

impl Answer {
    /// The first field of that name.
    pub(in crate::accept) fn field(&self, name: &str) -> Option<String> {
        field(&self.head, name)
    }
}

fn field(head: &str, name: &str) -> Option<String> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// A connection of which answers are read one by one.
pub(in crate::accept) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
    ended: bool,
}

impl Client {
    pub(in crate::accept) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self { stream, read: Vec::new(), ended: false })
    }

    /// Sends the bytes. That the other side takes no more is no error: it may have answered already.
    pub(in crate::accept) fn send(&mut self, bytes: &[u8]) {
        if self.stream.write_all(bytes).is_err() {
            self.ended = false;
        }
    }

    /// Says that there is nothing more.
    pub(in crate::accept) fn finish(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// More bytes; false at the end.
    fn fill(&mut self) -> Result<bool> {
        let mut bytes = [0; 16 * 1024];
        if self.ended {
            return Ok(false);
        }
        match self.stream.read(&mut bytes) {
            Ok(0) => self.ended = true,
            Ok(count) => self.read.extend_from_slice(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                self.ended = true;
            }
            Err(error) => return Err(error).context("the proxy neither answers nor closes"),
        }
        Ok(!self.ended)
    }

    /// The next final response; `None` at the end of the connection.
    pub(in crate::accept) fn answer(&mut self, to_head: bool) -> Result<Option<Answer>> {
        loop {
            let end = loop {
                if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                    break end + 4;
                }
                if !self.fill()? {
                    let torn = Answer { status: 0, saw: None, whole: false, head: String::new() };
                    return Ok((!self.read.is_empty()).then_some(torn));
                }
            };
            let head: Vec<u8> = self.read.drain(..end).collect();
            let head = String::from_utf8_lossy(&head).into_owned();
            let status: u16 = head.get(9..12).and_then(|text| text.parse().ok()).unwrap_or(0);
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            let field = |name: &str| field(&head, name);
            let saw = field("x-saw");
            let bodiless = to_head
                || saw.as_deref().is_some_and(|saw| saw.starts_with("HEAD "))
                || matches!(status, 204 | 304);
            let whole = match (field("transfer-encoding"), field("content-length")) {
                _ if bodiless => true,
                (Some(_), _) => self.chunks()?,
                (None, Some(length)) => self.take(length.parse().unwrap_or(usize::MAX))?,
                (None, None) => {
                    while self.fill()? {}
                    self.read.clear();
                    true
                }
            };
            return Ok(Some(Answer { status, saw, whole, head }));
        }
    }

    /// All answers up to the end of the connection.
    pub(in crate::accept) fn answers(&mut self) -> Result<Vec<Answer>> {
        let mut all = Vec::new();
        while let Some(answer) = self.answer(false)? {
            let whole = answer.whole;
            all.push(answer);
            if !whole {
                break;
            }
        }
        Ok(all)
    }

    fn take(&mut self, count: usize) -> Result<bool> {
        while self.read.len() < count {
            if !self.fill()? {
                return Ok(false);
            }
        }
        self.read.drain(..count);
        Ok(true)
    }

    fn chunks(&mut self) -> Result<bool> {
        loop {
            let Some(line) = self.line()? else { return Ok(false) };
            let size = line.split(';').next().unwrap_or_default();
            let Ok(size) = usize::from_str_radix(size.trim(), 16) else { return Ok(false) };
            if size == 0 {
                loop {
                    match self.line()? {
                        None => return Ok(false),
                        Some(line) if line.is_empty() => return Ok(true),
                        Some(_) => {}
                    }
                }
            }
            if !self.take(size)? || self.line()?.as_deref() != Some("") {
                return Ok(false);
            }
        }
    }

    fn line(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }
}
