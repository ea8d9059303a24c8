//! YAML into values, with bounds.
//!
//! The parser under `serde_yaml_ng` takes time with the square of the depth (200 kB of `[` take minutes) and gives aliases
//! out as often as they stand there. So its events are looked at first, one by one: the walk stops at the first one that
//! is too deep or stands for too much, before the parser has done much about it.

use std::collections::HashMap;
use std::mem::MaybeUninit;

use serde_json::Value;

use crate::DEPTH_MAX;

/// Values in a document once aliases stand for what they mean.
const VALUES_MAX: u64 = 500_000;
/// Bytes of text that aliases may add to a document.
const ALIAS_BYTES_MAX: u64 = 4 << 20;
/// `%TAG` and `%YAML` lines: the parser compares each with all before.
const DIRECTIVES_MAX: usize = 100;

/// Why a document is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Deeper than [`DEPTH_MAX`].
    #[error("line {line}: nested more than {DEPTH_MAX} levels deep")]
    Depth {
        /// From 1 on.
        line: u64,
    },
    /// Too many values, or aliases that stand for too much.
    #[error(
        "line {line}: the document holds more than {VALUES_MAX} values, or aliases stand for too much text"
    )]
    Size {
        /// From 1 on.
        line: u64,
    },
    /// An alias inside of what it stands for.
    #[error("line {line}: an alias stands for what it is a part of")]
    Cycle {
        /// From 1 on.
        line: u64,
    },
    /// More directives than anybody needs.
    #[error("more than {DIRECTIVES_MAX} directives")]
    Directives,
    /// No YAML.
    #[error("{0}")]
    Syntax(String),
}

/// The one document of a request.
pub fn value(raw: &[u8]) -> Result<Value, Error> {
    check(raw)?;
    serde_yaml_ng::from_slice(raw).map_err(|error| Error::Syntax(error.to_string()))
}

/// Whether a stream of documents is within the bounds. Where it is no YAML the check ends: the parser proper, which
/// stops at the same place, says why.
pub fn check(raw: &[u8]) -> Result<(), Error> {
    if raw.split(|byte| *byte == b'\n').filter(|line| line.first() == Some(&b'%')).count() > DIRECTIVES_MAX {
        return Err(Error::Directives);
    }
    let mut events = Events::new(raw);
    let mut document = Walk { bytes_max: raw.len() as u64 + ALIAS_BYTES_MAX, ..Walk::default() };
    while let Some((event, line)) = events.next() {
        match event {
            Event::Other => document.clear(),
            Event::Scalar { anchor, bytes } => {
                document.add(Size { values: 1, bytes, depth: 0 }, anchor, line)?;
            }
            Event::Start { anchor } => document.open(anchor, line)?,
            Event::End => document.close(line)?,
            Event::Alias { anchor } => document.alias(&anchor, line)?,
        }
    }
    Ok(())
}

type Anchor = Box<[u8]>;

/// What a value is, with everything that aliases in it stand for.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    values: u64,
    bytes: u64,
    depth: usize,
}

#[derive(Debug, Default)]
struct Walk {
    bytes_max: u64,
    open: Vec<(Option<Anchor>, Size)>,
    anchors: HashMap<Anchor, Size>,
}

impl Walk {
    fn clear(&mut self) {
        self.open.clear();
        self.anchors.clear();
    }

    fn open(&mut self, anchor: Option<Anchor>, line: u64) -> Result<(), Error> {
        self.open.push((anchor, Size { values: 1, bytes: 0, depth: 1 }));
        if self.open.len() > DEPTH_MAX { Err(Error::Depth { line }) } else { Ok(()) }
    }

    fn close(&mut self, line: u64) -> Result<(), Error> {
        match self.open.pop() {
            Some((anchor, size)) => self.add(size, anchor, line),
            None => Ok(()),
        }
    }

    fn alias(&mut self, anchor: &Anchor, line: u64) -> Result<(), Error> {
        if self.open.iter().any(|(open, _)| open.as_ref() == Some(anchor)) {
            return Err(Error::Cycle { line });
        }
        // An unknown one is an error of the parser proper.
        let size = self.anchors.get(anchor).copied().unwrap_or_default();
        self.add(size, None, line)
    }

    fn add(&mut self, size: Size, anchor: Option<Anchor>, line: u64) -> Result<(), Error> {
        if let Some(anchor) = anchor {
            self.anchors.insert(anchor, size);
        }
        let above = self.open.len();
        if above + size.depth > DEPTH_MAX {
            return Err(Error::Depth { line });
        }
        let Some((_, parent)) = self.open.last_mut() else { return Ok(()) };
        parent.values = parent.values.saturating_add(size.values);
        parent.bytes = parent.bytes.saturating_add(size.bytes);
        parent.depth = parent.depth.max(size.depth + 1);
        if parent.values > VALUES_MAX || parent.bytes > self.bytes_max {
            return Err(Error::Size { line });
        }
        Ok(())
    }
}

enum Event {
    Scalar {
        anchor: Option<Anchor>,
        bytes: u64,
    },
    Start {
        anchor: Option<Anchor>,
    },
    End,
    Alias {
        anchor: Anchor,
    },
    /// The beginning or end of a document or of the stream.
    Other,
}

/// The events of a stream, by the parser that `serde_yaml_ng` uses: both see the same.
struct Events<'r> {
    parser: Box<MaybeUninit<unsafe_libyaml::yaml_parser_t>>,
    ended: bool,
    _raw: std::marker::PhantomData<&'r [u8]>,
}

impl<'r> Events<'r> {
    fn new(raw: &'r [u8]) -> Self {
        let mut parser = Box::new(MaybeUninit::uninit());
        let at: *mut unsafe_libyaml::yaml_parser_t = parser.as_mut_ptr();
        // SAFETY: `at` is writable and stays where it is, in its box; `raw` outlives the parser, as `'r` says.
        let ended = unsafe {
            let failed = unsafe_libyaml::yaml_parser_initialize(at).fail;
            if !failed {
                unsafe_libyaml::yaml_parser_set_encoding(at, unsafe_libyaml::YAML_UTF8_ENCODING);
                unsafe_libyaml::yaml_parser_set_input_string(at, raw.as_ptr(), raw.len() as u64);
            }
            failed
        };
        Self { parser, ended, _raw: std::marker::PhantomData }
    }

    /// The next event and its line, from 1 on; none at the end and from an error on.
    fn next(&mut self) -> Option<(Event, u64)> {
        if self.ended {
            return None;
        }
        let mut event = MaybeUninit::<unsafe_libyaml::yaml_event_t>::uninit();
        let event = event.as_mut_ptr();
        // SAFETY: the parser was initialised by `new`, or `ended` is set; a successful call initialises the event, which
        // is deleted once, after everything in it was copied.
        unsafe {
            if unsafe_libyaml::yaml_parser_parse(self.parser.as_mut_ptr(), event).fail {
                self.ended = true;
                return None;
            }
            let read = read(&*event);
            let line = (*event).start_mark.line + 1;
            self.ended = (*event).type_ == unsafe_libyaml::YAML_STREAM_END_EVENT;
            unsafe_libyaml::yaml_event_delete(event);
            Some((read, line))
        }
    }
}

/// # Safety
/// The event comes from the parser and was not deleted.
unsafe fn read(event: &unsafe_libyaml::yaml_event_t) -> Event {
    // SAFETY: the union's member is the one that the event's type names; anchors are null or end with a zero.
    unsafe {
        match event.type_ {
            unsafe_libyaml::YAML_SCALAR_EVENT => {
                let scalar = &event.data.scalar;
                Event::Scalar { anchor: name(scalar.anchor), bytes: scalar.length }
            }
            unsafe_libyaml::YAML_SEQUENCE_START_EVENT => {
                Event::Start { anchor: name(event.data.sequence_start.anchor) }
            }
            unsafe_libyaml::YAML_MAPPING_START_EVENT => {
                Event::Start { anchor: name(event.data.mapping_start.anchor) }
            }
            unsafe_libyaml::YAML_SEQUENCE_END_EVENT | unsafe_libyaml::YAML_MAPPING_END_EVENT => Event::End,
            unsafe_libyaml::YAML_ALIAS_EVENT => {
                Event::Alias { anchor: name(event.data.alias.anchor).unwrap_or_default() }
            }
            _ => Event::Other,
        }
    }
}

/// # Safety
/// `anchor` is null or points to bytes that end with a zero.
unsafe fn name(anchor: *const u8) -> Option<Anchor> {
    if anchor.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    let text = unsafe { std::ffi::CStr::from_ptr(anchor.cast()) };
    Some(text.to_bytes().into())
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, dropped once. A parser whose initialisation failed is all zeros, which
        // deletion takes.
        unsafe { unsafe_libyaml::yaml_parser_delete(self.parser.as_mut_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn depth_is_bounded_in_flow_and_in_blocks() {
        for open in ["[", "{a: ", "[{a: ", "- ", "? ", "- ? "] {
            let error = check(open.repeat(200_000).as_bytes()).unwrap_err();
            assert_eq!(error, Error::Depth { line: 1 }, "{open}");
        }
        let fits = format!("{}1{}", "[".repeat(DEPTH_MAX), "]".repeat(DEPTH_MAX));
        assert_eq!(crate::depth::measure(&value(fits.as_bytes()).unwrap()).0, DEPTH_MAX);
        assert!(value(format!("[{fits}]").as_bytes()).is_err());
    }

    #[test]
    fn aliases_stand_for_a_bounded_amount() {
        assert_eq!(value(b"a: &x [1, 2]\nb: *x").unwrap(), json!({"a": [1, 2], "b": [1, 2]}));
        let mut bomb = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
        for level in 1..10 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        assert!(matches!(check(bomb.as_bytes()), Err(Error::Size { .. })));
        let long = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(100));
        assert!(matches!(check(long.as_bytes()), Err(Error::Size { line: 2 })));
        assert_eq!(check(b"a: &a [1, *a]"), Err(Error::Cycle { line: 1 }));
        let mut chain = "a0: &a0 [1]\n".to_owned();
        for level in 1..=DEPTH_MAX {
            chain.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        assert!(matches!(check(chain.as_bytes()), Err(Error::Depth { .. })), "by aliases alone");
    }

    #[test]
    fn many_values_and_directives_are_refused_and_text_with_brackets_is_not() {
        assert!(matches!(check("- a\n".repeat(VALUES_MAX as usize).as_bytes()), Err(Error::Size { .. })));
        assert_eq!(check("%TAG !a! b\n".repeat(200_000).as_bytes()), Err(Error::Directives));
        let text = format!("data: |\n  {}\n---\nb: '{}'\n", "[".repeat(100_000), "{".repeat(1000));
        assert_eq!(check(text.as_bytes()), Ok(()));
    }

    #[test]
    fn what_is_no_yaml_is_said_by_the_parser() {
        assert!(matches!(value(b"a: [1"), Err(Error::Syntax(_))));
        assert!(matches!(value(b"a: *nobody"), Err(Error::Syntax(_))));
        assert_eq!(value(b"").unwrap(), Value::Null);
    }
}
