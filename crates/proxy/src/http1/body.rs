//! Where a body ends, while its bytes pass unchanged.

/// How a message's body is delimited (RFC 9112, 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

/// The body breaks its own framing; nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

/// Extensions and trailers of one body, in bytes.
const EXTRA_BYTES_MAX: u32 = 16 * 1024;
/// A chunk's size, in hexadecimal digits.
const SIZE_DIGITS_MAX: u8 = 15;

/// Follows a body to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    state: State,
    extra: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Done,
    Length(u64),
    UntilClose,
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
        quoted: bool,
    },
    SizeLineFeed {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataLineFeed,
    /// At the start of a trailer line, or of the empty line that ends them.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
}

impl Body {
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Empty => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, extra: 0 }
    }

    /// Whether the last byte was seen. A body that ends with the connection is never done.
    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the connection's end is this body's end.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.state == State::UntilClose
    }

    /// At least how many more bytes there are.
    pub(crate) fn remaining(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Data { left } => left,
            _ => 0,
        }
    }

    /// How many of the bytes belong to the body.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Broken> {
        let mut at = 0;
        while at < bytes.len() {
            match &mut self.state {
                State::Done => break,
                State::UntilClose => return Ok(bytes.len()),
                State::Length(left) => {
                    let taken = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    at += taken;
                    if *left == 0 {
                        self.state = State::Done;
                    }
                }
                State::Data { left } => {
                    let taken = (bytes.len() - at).min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    at += taken;
                    if *left == 0 {
                        self.state = State::DataReturn;
                    }
                }
                _ => {
                    self.state = self.step(bytes[at])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, Broken> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(Broken);
                }
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    _ => (byte | 0x20) - b'a' + 10,
                };
                State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err(Broken),
            (State::Size { size, .. }, b'\r') => State::SizeLineFeed { size },
            (State::Size { size, .. }, b';') => State::Extension { size, quoted: false },
            (State::Extension { size, quoted: false }, b'\r') => State::SizeLineFeed { size },
            (State::Extension { size, quoted }, b'"') => State::Extension { size, quoted: !quoted },
            (State::Extension { .. }, b'\t' | b' '..=b'~') => {
                self.count()?;
                self.state
            }
            (State::SizeLineFeed { size: 0 }, b'\n') => State::Trailer,
            (State::SizeLineFeed { size }, b'\n') => State::Data { left: size },
            (State::DataReturn, b'\r') => State::DataLineFeed,
            (State::DataLineFeed, b'\n') => State::Size { size: 0, digits: 0 },
            (State::Trailer, b'\r') => State::LastLineFeed,
            (State::LastLineFeed, b'\n') => State::Done,
            (State::TrailerName, b':') => {
                self.count()?;
                State::TrailerValue
            }
            (
                State::Trailer | State::TrailerName,
                b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9',
            )
            | (State::Trailer | State::TrailerName, b'A'..=b'Z' | b'^'..=b'z' | b'|' | b'~') => {
                self.count()?;
                State::TrailerName
            }
            (State::TrailerValue, b'\r') => State::TrailerLineFeed,
            (State::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => {
                self.count()?;
                State::TrailerValue
            }
            (State::TrailerLineFeed, b'\n') => State::Trailer,
            _ => return Err(Broken),
        })
    }

    fn count(&mut self) -> Result<(), Broken> {
        self.extra += 1;
        if self.extra > EXTRA_BYTES_MAX { Err(Broken) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunked(bytes: &[u8]) -> Result<(usize, bool), Broken> {
        let mut body = Body::new(Framing::Chunked);
        let taken = body.advance(bytes)?;
        Ok((taken, body.is_done()))
    }

    #[test]
    fn bodies_end_where_they_say() {
        let mut body = Body::new(Framing::Length(5));
        assert_eq!(body.advance(b"abc"), Ok(3));
        assert_eq!(body.advance(b"deGET /"), Ok(2));
        assert!(body.is_done());
        assert_eq!(chunked(b"3\r\nabc\r\n0\r\n\r\nGET"), Ok((13, true)));
        assert_eq!(chunked(b"a;x=\"y;z\"\r\n0123456789\r\n0\r\nA: b\r\nC:\r\n\r\n"), Ok((38, true)));
        assert_eq!(chunked(b"3\r\nab"), Ok((5, false)));
        let mut open = Body::new(Framing::UntilClose);
        assert_eq!(open.advance(b"abc"), Ok(3));
        assert!(!open.is_done() && open.ends_with_connection());
    }

    #[test]
    fn broken_chunks_are_refused() {
        let cases: &[&[u8]] = &[
            b"\r\n",
            b"x\r\n",
            b"-1\r\n",
            b"0x1\r\n",
            b" 1\r\n",
            b"1 \r\n",
            b"1\n",
            b"1\r\nab",
            b"1\r\na\n",
            b"1\r\na\rx",
            b"1;a\nb\r\n",
            b"1;a\"\r\n",
            b"0\r\n\n",
            b"0\r\nA b\r\n",
            b"0\r\n: b\r\n",
            b"0\r\nA: b\n",
            b"0\r\nA: b\rx",
            b"0\r\n A: b\r\n",
            b"0000000000000001\r\n",
            b"ffffffffffffffff\r\n",
        ];
        for case in cases {
            assert_eq!(chunked(case), Err(Broken), "{:?}", String::from_utf8_lossy(case));
        }
        let mut long = b"1;".to_vec();
        long.resize(20 * 1024, b'a');
        assert_eq!(chunked(&long), Err(Broken));
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_cut_changes_nothing(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
            cuts in prop::collection::vec(1usize..9, 1..40),
        ) {
            let mut bytes = Vec::new();
            for part in &parts {
                bytes.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                bytes.extend_from_slice(part);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(b"0\r\n\r\n");
            let length = bytes.len();
            bytes.extend_from_slice(b"next");
            let (mut body, mut at) = (Body::new(Framing::Chunked), 0);
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(bytes.len());
                at += body.advance(&bytes[at..end]).unwrap();
                if body.is_done() {
                    break;
                }
            }
            prop_assert_eq!(at, length);
        }
    }
}
