//! Netlink messages (RFC 3549; `man 7 netlink`): building, sending with acknowledgement, dumping.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Type};

const AF_NETLINK: i32 = 16;
const HEADER_LEN: usize = 16;
const ATTRIBUTE_LEN: usize = 4;
const NESTED: u16 = 0x8000;
/// The kernel answers at once; this only keeps a bug from hanging a thread.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Of the answer to [`Socket::get`].
const GET_BYTES_MAX: usize = 4 * 1024;

/// `NLM_F_*`, of which REQUEST and ACK are set by [`Socket`].
pub(crate) mod flag {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const EXCLUSIVE: u16 = 0x200;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// The netlink families used here.
#[derive(Clone, Copy)]
pub(crate) enum Family {
    Route = 0,
    SockDiag = 4,
    Netfilter = 12,
}

/// One message; header fields that depend on the socket are filled in when it is sent.
#[derive(Debug)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of `kind` whose family header is `header`.
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | flag::REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let mut message = Self { bytes };
        message.raw(header);
        message
    }

    /// Bytes that are no attribute, padded.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    pub(crate) fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let len = (ATTRIBUTE_LEN + payload.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(payload);
    }

    pub(crate) fn string(&mut self, kind: u16, text: &str) {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// A number in the machine's byte order, as rtnetlink wants it.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order, as nf_tables wants it.
    pub(crate) fn number_be(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        fill(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn seal(&mut self, sequence: u32, flags: u16) {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        let flags = u16_at(&self.bytes, 6) | flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// A netlink socket; it speaks for the network namespace of the thread that opened it, whoever uses it later.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: socket2::Socket,
    sequence: u32,
}

impl Socket {
    pub(crate) fn open(family: Family) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            Domain::from(AF_NETLINK),
            Type::from(rustix::net::SocketType::RAW.as_raw() as i32),
            Some(Protocol::from(family as i32)),
        )?;
        socket.set_read_timeout(Some(ANSWER_WITHIN))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends the messages in one go; the answers are in their order.
    pub(crate) fn call(&mut self, messages: &mut [Message]) -> io::Result<Vec<io::Result<()>>> {
        let first = self.send(messages, flag::ACK)?;
        self.acknowledgements(first, messages.len())
    }

    /// [`Socket::call`] for one message.
    pub(crate) fn call_one(&mut self, message: Message) -> io::Result<()> {
        self.call(&mut [message])?.pop().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Sends a transaction: `begin` and `end` are not acknowledged, what lies between is. The first error is the
    /// transaction's.
    pub(crate) fn transaction(
        &mut self,
        begin: Message,
        mut between: Vec<Message>,
        end: Message,
    ) -> io::Result<()> {
        let count = between.len();
        let mut bytes = Vec::new();
        let edge = |message: Message, sequence: u32, bytes: &mut Vec<u8>| {
            let mut message = message;
            message.seal(sequence, 0);
            bytes.extend_from_slice(&message.bytes);
        };
        let first = self.sequence + 2;
        edge(begin, first - 1, &mut bytes);
        for (index, message) in between.iter_mut().enumerate() {
            message.seal(first + index as u32, flag::ACK);
            bytes.extend_from_slice(&message.bytes);
        }
        self.sequence = first + count as u32;
        edge(end, self.sequence, &mut bytes);
        (&self.socket).write_all(&bytes)?;
        // An aborted transaction leaves the messages after the bad one without an answer.
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        let mut answered = 0;
        while answered < count {
            for answer in self.answers(&mut buffer)? {
                if answer.kind == KIND_ERROR && answer.sequence >= first - 1 {
                    answer.error()?;
                    answered += 1;
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, messages: &mut [Message], flags: u16) -> io::Result<u32> {
        let first = self.sequence + 1;
        let mut bytes = Vec::with_capacity(messages.len() * 256);
        for message in messages {
            self.sequence += 1;
            message.seal(self.sequence, flags);
            bytes.extend_from_slice(&message.bytes);
        }
        (&self.socket).write_all(&bytes)?;
        Ok(first)
    }

    fn acknowledgements(&mut self, first: u32, count: usize) -> io::Result<Vec<io::Result<()>>> {
        let mut results: Vec<Option<io::Result<()>>> = (0..count).map(|_| None).collect();
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        while results.iter().any(Option::is_none) {
            for answer in self.answers(&mut buffer)? {
                let index = answer.sequence.wrapping_sub(first) as usize;
                if answer.kind == KIND_ERROR && index < count {
                    results[index] = Some(answer.error());
                }
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Asks for a list; `each` gets every entry's payload.
    pub(crate) fn dump(&mut self, message: Message, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut message = [message];
        let sequence = self.send(&mut message, flag::DUMP)?;
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            for answer in self.answers(&mut buffer)? {
                if answer.sequence != sequence {
                    continue;
                }
                match answer.kind {
                    KIND_DONE => return Ok(()),
                    KIND_ERROR => return answer.error(),
                    _ => each(answer.payload),
                }
            }
        }
    }

    /// Asks for one thing, whose payload `read` gets.
    pub(crate) fn get<T>(
        &mut self,
        message: Message,
        read: impl FnOnce(&[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let sequence = self.send(&mut [message], 0)?;
        let mut buffer = [0; GET_BYTES_MAX];
        loop {
            if let Some(answer) =
                self.answers(&mut buffer)?.into_iter().find(|answer| answer.sequence == sequence)
            {
                return match answer.kind {
                    KIND_ERROR => answer.error().map(|()| None),
                    _ => Ok(read(answer.payload)),
                };
            }
        }
    }

    fn answers<'b>(&mut self, buffer: &'b mut [u8]) -> io::Result<Vec<Answer<'b>>> {
        let len = loop {
            match (&self.socket).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                other => break other?,
            }
        };
        Ok(split(&buffer[..len]))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;

struct Answer<'b> {
    kind: u16,
    sequence: u32,
    payload: &'b [u8],
}

impl Answer<'_> {
    /// `nlmsgerr`: a negative errno, 0 is an acknowledgement.
    fn error(&self) -> io::Result<()> {
        match self.payload.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes)) {
            Some(0) => Ok(()),
            Some(code) => Err(io::Error::from_raw_os_error(-code)),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn split(mut bytes: &[u8]) -> Vec<Answer<'_>> {
    let mut answers = Vec::new();
    while bytes.len() >= HEADER_LEN {
        let len = u32_at(bytes, 0) as usize;
        if len < HEADER_LEN || len > bytes.len() {
            break;
        }
        answers.push(Answer {
            kind: u16_at(bytes, 4),
            sequence: u32_at(bytes, 8),
            payload: &bytes[HEADER_LEN..len],
        });
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    answers
}

/// The attributes in `bytes`, as (kind, payload).
pub(crate) fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while bytes.len() >= ATTRIBUTE_LEN {
        let len = usize::from(u16_at(bytes, 0));
        if len < ATTRIBUTE_LEN || len > bytes.len() {
            break;
        }
        found.push((u16_at(bytes, 2) & !NESTED, &bytes[ATTRIBUTE_LEN..len]));
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    found
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let mut message = Message::new(16, flag::CREATE, &[9; 5]);
        message.string(3, "lo");
        message.nest(18, |nest| nest.number(1, 7));
        message.seal(4, flag::ACK);
        let bytes = &message.bytes;
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(u32_at(bytes, 0) as usize, bytes.len());
        assert_eq!(u16_at(bytes, 6), flag::REQUEST | flag::CREATE | flag::ACK);
        let found = attributes(&bytes[HEADER_LEN + 8..]);
        assert_eq!(found[0], (3, &b"lo\0"[..]));
        assert_eq!(found[1].0, 18);
        assert_eq!(attributes(found[1].1), [(1, &7u32.to_ne_bytes()[..])]);
    }

    #[test]
    fn torn_answers_end_the_list() {
        assert!(split(&[1; 15]).is_empty());
        assert!(split(&[0xff; 32]).is_empty());
        assert!(attributes(&[0xff, 0xff, 0, 0]).is_empty());
        assert!(attributes(&[0, 0, 0, 0]).is_empty());
    }
}
