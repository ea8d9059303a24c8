//! Buffers that connections borrow while bytes pass, so that an idle connection holds none.

use std::cell::RefCell;

/// What a borrowed buffer holds at first, in bytes.
pub(crate) const BUFFER_BYTES: usize = 16 * 1024;
/// How many spare buffers a thread keeps.
const SPARE_MAX: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that were read and not yet used.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// What was read and not yet used.
    pub(crate) fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Marks the first `count` bytes as used.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Marks the first `count` bytes of [`Buffer::space`] as read.
    pub(crate) fn produced(&mut self, count: usize) {
        self.end += count.min(self.bytes.len() - self.end);
    }

    /// Room to read into; grows while all of `max` is not in use. Empty when it is.
    pub(crate) fn space(&mut self, max: usize) -> &mut [u8] {
        if self.bytes.is_empty() {
            self.bytes = SPARE.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        }
        if self.end == self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.bytes.len() && self.bytes.len() < max {
            let size = (self.bytes.len() * 2).min(max);
            self.bytes.resize(size, 0);
        }
        &mut self.bytes[self.end..]
    }

    /// Makes room for bulk: only while nothing is in it.
    pub(crate) fn grow(&mut self, size: usize) {
        if self.is_empty() && self.bytes.len() < size {
            give_back(std::mem::replace(&mut self.bytes, vec![0; size]));
        }
    }

    /// Gives the memory back if nothing is in it.
    pub(crate) fn rest(&mut self) {
        if self.is_empty() && !self.bytes.is_empty() {
            give_back(std::mem::take(&mut self.bytes));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        give_back(std::mem::take(&mut self.bytes));
    }
}

fn give_back(bytes: Vec<u8>) {
    if bytes.len() == BUFFER_BYTES {
        // While the thread ends its spare buffers are gone already.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(buffer: &mut Buffer, bytes: &[u8], max: usize) {
        buffer.space(max)[..bytes.len()].copy_from_slice(bytes);
        buffer.produced(bytes.len());
    }

    #[test]
    fn bytes_come_out_as_they_went_in_and_the_size_is_bounded() {
        let mut buffer = Buffer::default();
        put(&mut buffer, b"hello", BUFFER_BYTES);
        buffer.consume(2);
        assert_eq!(buffer.filled(), b"llo");
        let rest = buffer.space(BUFFER_BYTES).len();
        buffer.produced(rest);
        assert_eq!(buffer.space(BUFFER_BYTES).len(), 2);
        assert_eq!(&buffer.filled()[..3], b"llo");
        buffer.produced(2);
        assert_eq!(buffer.space(BUFFER_BYTES).len(), 0);
        assert_eq!(buffer.space(BUFFER_BYTES + 7).len(), 7);
        buffer.consume(usize::MAX);
        buffer.rest();
        assert!(buffer.filled().is_empty() && buffer.bytes.is_empty());
    }
}
