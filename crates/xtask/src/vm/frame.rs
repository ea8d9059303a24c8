//! What host and guest say to each other over a virtio-serial port: frames of a kind, a length and that many bytes.

use std::io::{Read, Write};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Longest content of a frame, in bytes.
pub(super) const CONTENT_BYTES_MAX: usize = 1 << 20;

/// A command for the guest, with no standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// The program and its arguments.
    pub(super) command: Vec<String>,
    /// Beside the agent's own environment.
    pub(super) environment: Vec<(String, String)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// Guest: the system is up; its kernel's release.
    Hello(String),
    /// Host: run this.
    Run(Request),
    /// Guest: the command wrote.
    Output(Vec<u8>),
    Error(Vec<u8>),
    /// Guest: the command ended, with this code, or 128 and the signal.
    Exit(i32),
}

impl Frame {
    /// `None`: the other side is gone.
    pub(super) fn read(from: &mut impl Read) -> Result<Option<Self>> {
        let mut head = [0; 5];
        let mut got = 0;
        while got < head.len() {
            match from.read(&mut head[got..]).context("read a frame's head")? {
                0 if got == 0 => return Ok(None),
                0 => bail!("a frame was cut off"),
                count => got += count,
            }
        }
        let [kind, length @ ..] = head;
        let length = u32::from_le_bytes(length) as usize;
        ensure!(length <= CONTENT_BYTES_MAX, "a frame of {length} bytes");
        let mut content = vec![0; length];
        from.read_exact(&mut content).context("read a frame")?;
        Ok(Some(match kind {
            0 => Self::Hello(String::from_utf8(content)?),
            1 => Self::Run(serde_json::from_slice(&content).context("read a request")?),
            2 => Self::Output(content),
            3 => Self::Error(content),
            4 => Self::Exit(i32::from_le_bytes(content.as_slice().try_into().context("an exit code")?)),
            _ => bail!("a frame of the unknown kind {kind}"),
        }))
    }

    pub(super) fn write(&self, to: &mut impl Write) -> Result<()> {
        let (kind, content) = match self {
            Self::Hello(release) => (0, release.as_bytes().to_vec()),
            Self::Run(request) => (1, serde_json::to_vec(request)?),
            Self::Output(bytes) => (2, bytes.clone()),
            Self::Error(bytes) => (3, bytes.clone()),
            Self::Exit(code) => (4, code.to_le_bytes().to_vec()),
        };
        ensure!(content.len() <= CONTENT_BYTES_MAX, "a frame of {} bytes", content.len());
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(content.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&content);
        to.write_all(&bytes).context("write a frame")?;
        to.flush().context("write a frame")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let request = Request { command: vec!["true".into()], environment: vec![("A".into(), "b".into())] };
        let frames = [
            Frame::Hello("6.1".into()),
            Frame::Run(request),
            Frame::Output(vec![1, 2]),
            Frame::Error(Vec::new()),
            Frame::Exit(-3),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).unwrap());
        let mut rest = bytes.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut rest).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut rest).unwrap(), None);
    }

    #[test]
    fn a_frame_that_lies_is_refused() {
        assert!(Frame::read(&mut [9, 0, 0, 0, 0].as_slice()).is_err(), "no such kind");
        assert!(Frame::read(&mut [2, 255, 255, 255, 255].as_slice()).is_err(), "too long");
        assert!(Frame::read(&mut [2, 3, 0, 0, 0, 1].as_slice()).is_err(), "cut off");
        assert!(Frame::read(&mut [4, 1, 0, 0, 0, 1].as_slice()).is_err(), "no code");
    }
}
