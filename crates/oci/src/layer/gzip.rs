//! gzip (RFC 1952) in blocks of a fixed size, compressed by as many threads as there are.
//!
//! Invariant: the output depends on the input alone. Each block is deflated (RFC 1951) by itself and ends at a byte
//! boundary, so the blocks make one stream in one member, whoever compressed which.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use flate2::{Compress, Compression, Crc, FlushCompress, Status};

/// Bytes of input in a block. Part of the format: changing it changes every digest.
pub const BLOCK_LEN: usize = 256 << 10;

/// The least bytes of input for which threads are started.
const PARALLEL_MIN_LEN: usize = 2 * BLOCK_LEN;

/// RFC 1952, 2.3: no name, no time, fastest, system unknown. Constant, so that the digest is.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];

type Job = (Vec<u8>, bool, mpsc::SyncSender<io::Result<Vec<u8>>>);

/// Compresses what is written to it into `inner`.
pub struct Encoder<W: Write> {
    inner: W,
    block: Vec<u8>,
    crc: Crc,
    /// Blocks on their way, in order.
    pending: VecDeque<mpsc::Receiver<io::Result<Vec<u8>>>>,
    workers: Option<Workers>,
    /// For blocks that the caller's thread compresses.
    deflate: Option<Deflate>,
    threads: usize,
    total: usize,
}

struct Workers {
    jobs: mpsc::Sender<Job>,
    handles: Vec<thread::JoinHandle<()>>,
}

impl<W: Write> Encoder<W> {
    /// Writes the gzip header. With `threads` of 0 or 1 everything happens on the caller's thread.
    pub fn new(mut inner: W, threads: usize) -> io::Result<Self> {
        inner.write_all(&HEADER)?;
        Ok(Encoder {
            inner,
            block: Vec::with_capacity(BLOCK_LEN),
            crc: Crc::new(),
            pending: VecDeque::new(),
            workers: None,
            deflate: None,
            threads,
            total: 0,
        })
    }

    /// Writes the last block and the trailer, and gives `inner` back.
    pub fn finish(mut self) -> io::Result<W> {
        let last = std::mem::take(&mut self.block);
        self.submit(last, true)?;
        while !self.pending.is_empty() {
            self.collect()?;
        }
        self.inner.write_all(&self.crc.sum().to_le_bytes())?;
        self.inner.write_all(&self.crc.amount().to_le_bytes())?;
        if let Some(workers) = self.workers.take() {
            drop(workers.jobs);
            for handle in workers.handles {
                let _ = handle.join();
            }
        }
        Ok(self.inner)
    }

    fn submit(&mut self, block: Vec<u8>, last: bool) -> io::Result<()> {
        self.crc.update(&block);
        self.total += block.len();
        if self.threads > 1 && self.workers.is_none() && !last && self.total >= PARALLEL_MIN_LEN {
            self.workers = Workers::start(self.threads);
        }
        let Some(workers) = &self.workers else {
            let deflate = self.deflate.get_or_insert_with(Deflate::new);
            return self.inner.write_all(&deflate.block(&block, last)?);
        };
        let (sender, receiver) = mpsc::sync_channel(1);
        workers
            .jobs
            .send((block, last, sender))
            .map_err(|_| io::Error::other("compression threads ended"))?;
        self.pending.push_back(receiver);
        // Bounds what is in flight to a few blocks a thread.
        while self.pending.len() > 4 * self.threads {
            self.collect()?;
        }
        Ok(())
    }

    fn collect(&mut self) -> io::Result<()> {
        let Some(receiver) = self.pending.pop_front() else { return Ok(()) };
        let block = receiver.recv().map_err(|_| io::Error::other("compression thread ended"))??;
        self.inner.write_all(&block)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = buf.len().min(BLOCK_LEN - self.block.len());
        self.block.extend_from_slice(&buf[..n]);
        if self.block.len() == BLOCK_LEN {
            let full = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK_LEN));
            self.submit(full, false)?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        // Blocks end where the format says, not where a caller flushes.
        Ok(())
    }
}

impl Workers {
    fn start(threads: usize) -> Option<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        let mut handles = Vec::new();
        for _ in 0..threads {
            let receiver = Arc::clone(&receiver);
            let work = move || {
                let mut deflate = Deflate::new();
                loop {
                    let job = receiver.lock().unwrap_or_else(|e| e.into_inner()).recv();
                    let Ok((block, last, reply)) = job else { return };
                    // The reader may be gone after an error of its own.
                    let _ = reply.send(deflate.block(&block, last));
                }
            };
            match thread::Builder::new().name("gzip".into()).spawn(work) {
                Ok(handle) => handles.push(handle),
                Err(_) if handles.is_empty() => return None,
                Err(_) => break,
            }
        }
        Some(Workers { jobs, handles })
    }
}

/// A compressor that forgets each block: its tables are large, and made once.
struct Deflate(Box<Compress>);

impl Deflate {
    fn new() -> Self {
        Deflate(Box::new(Compress::new(Compression::new(1), false)))
    }

    /// One block: raw deflate, flushed to a byte boundary, or ended when it is the last.
    fn block(&mut self, block: &[u8], last: bool) -> io::Result<Vec<u8>> {
        let compress = &mut self.0;
        compress.reset();
        let mut out = Vec::with_capacity(block.len() / 2 + 1024);
        let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
        loop {
            let consumed = compress.total_in() as usize;
            let room = out.capacity() - out.len();
            let status =
                compress.compress_vec(&block[consumed..], &mut out, flush).map_err(io::Error::other)?;
            let all_in = compress.total_in() as usize == block.len();
            let done = match status {
                Status::StreamEnd => true,
                // A sync flush is complete once it leaves room in the output.
                Status::Ok | Status::BufError => !last && all_in && out.len() < out.capacity(),
            };
            if done {
                return Ok(out);
            }
            if room < 64 || out.len() == out.capacity() {
                out.reserve(block.len() / 4 + 1024);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let next = |i| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Half of it repeats, so that there is something to compress.
            if i % 7 < 4 { (i / 64) as u8 } else { state as u8 }
        };
        (0..len).map(next).collect()
    }

    fn encode(data: &[u8], threads: usize, step: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(Vec::new(), threads).unwrap();
        for part in data.chunks(step.max(1)) {
            encoder.write_all(part).unwrap();
        }
        encoder.finish().unwrap()
    }

    #[test]
    fn the_bytes_depend_on_the_input_alone() {
        for len in [0, 1, BLOCK_LEN - 1, BLOCK_LEN, BLOCK_LEN + 1, 5 * BLOCK_LEN + 17] {
            let data = noise(len);
            let one = encode(&data, 1, 1 << 20);
            assert_eq!(one, encode(&data, 2, 4096), "{len}");
            assert_eq!(one, encode(&data, 5, 70_001), "{len}");
            let mut back = Vec::new();
            // A decoder for one member, so that anything after it would be noticed.
            flate2::bufread::GzDecoder::new(one.as_slice()).read_to_end(&mut back).unwrap();
            assert_eq!(back, data, "{len}");
        }
    }
}
