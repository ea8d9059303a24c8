//! A disk server for one QEMU: the Network Block Device protocol (doc/proto.md of nbd), fixed newstyle, one export,
//! simple replies; in front of [`Disk`].

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;

use super::volatile::{Disk, Lost};

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// Flags are there, flush, forced unit access.
const EXPORT_FLAGS: u16 = 0b1101;
const FORCED: u16 = 1;

const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = (1 << 31) | 1;

/// Longest request, in bytes: what QEMU sends at most.
const REQUEST_BYTES_MAX: usize = 32 << 20;

#[derive(Default)]
struct Plan {
    /// After so many writes nothing is answered any more.
    cut_at: Option<u64>,
}

struct Shared {
    disk: Disk,
    plan: Plan,
    moment: Sender<()>,
}

/// A served disk. It serves as long as the process lives; a machine that was ended may be followed by another.
pub(super) struct Server {
    shared: Arc<Mutex<Shared>>,
    socket: PathBuf,
    moment: Receiver<()>,
}

impl Server {
    /// Serves the file's content on a socket.
    pub(super) fn start(file: std::fs::File, socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("bind {}", socket.display()))?;
        let (sender, moment) = channel();
        let shared = Shared { disk: Disk::new(file)?, plan: Plan::default(), moment: sender };
        let shared = Arc::new(Mutex::new(shared));
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // One machine after the other: the end of one is its socket's.
                if let Err(error) = serve(&stream, &served) {
                    crate::say(&format!("disk: {error:#}"));
                }
            }
        });
        Ok(Self { shared, socket: socket.to_owned(), moment })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Write requests so far.
    pub(super) fn writes(&self) -> u64 {
        lock(&self.shared).disk.writes()
    }

    /// Lets the disk fall silent after so many more writes.
    pub(super) fn cut_after(&self, writes: u64) {
        let mut shared = lock(&self.shared);
        shared.plan.cut_at = Some(shared.disk.writes() + writes);
    }

    /// Lets writes fail: the first after so many, and those that follow it.
    pub(super) fn fail(&self, after: u64, writes: u64) {
        let mut shared = lock(&self.shared);
        let first = shared.disk.writes() + after + 1;
        shared.disk.fail(first..first + writes);
    }

    /// Waits until the disk has fallen silent; false when it did not.
    pub(super) fn silent(&self, within: std::time::Duration) -> bool {
        self.moment.recv_timeout(within).is_ok()
    }

    /// What the power's end leaves; the machine has to be ended by then.
    pub(super) fn cut(&self, random: &mut StdRng) -> Result<Lost> {
        let mut shared = lock(&self.shared);
        shared.plan.cut_at = None;
        Ok(shared.disk.cut(random)?)
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: &UnixStream, shared: &Mutex<Shared>) -> Result<()> {
    let (mut input, mut output) = (std::io::BufReader::new(stream), stream);
    if !negotiate(&mut input, &mut output, lock(shared).disk.bytes())? {
        return Ok(());
    }
    while let Some(request) = Request::read(&mut input)? {
        if request.kind == Kind::Disconnect {
            return Ok(());
        }
        let Some(reply) = answer(&request, shared) else {
            // The power is gone; the machine that waits for the answer is ended by the test.
            return Ok(());
        };
        output.write_all(&reply).context("answer")?;
    }
    Ok(())
}

/// `None`: the disk is silent.
fn answer(request: &Request, shared: &Mutex<Shared>) -> Option<Vec<u8>> {
    let mut shared = lock(shared);
    if shared.plan.cut_at.is_some_and(|at| shared.disk.writes() >= at) {
        // Nobody may wait for it any more.
        let _ = shared.moment.send(());
        return None;
    }
    let mut read = Vec::new();
    let result = match request.kind {
        Kind::Read => {
            read.resize(request.length, 0);
            shared.disk.read(request.offset, &mut read)
        }
        Kind::Write => shared.disk.write(request.offset, &request.content, request.forced),
        Kind::Flush => shared.disk.flush(),
        Kind::Disconnect => Ok(()),
    };
    let error = result.err().map_or(0, |error| error.raw_os_error().unwrap_or(nix::libc::EIO)) as u32;
    let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
    reply.extend_from_slice(&error.to_be_bytes());
    reply.extend_from_slice(&request.handle.to_be_bytes());
    if error == 0 {
        reply.extend_from_slice(&read);
    }
    Some(reply)
}

/// Whether requests follow.
fn negotiate(input: &mut impl Read, output: &mut impl Write, bytes: u64) -> Result<bool> {
    let mut hello = MAGIC.to_be_bytes().to_vec();
    hello.extend_from_slice(&OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
    output.write_all(&hello).context("greet")?;
    let _client_flags: [u8; 4] = take(input)?;
    loop {
        ensure!(u64::from_be_bytes(take(input)?) == OPTION_MAGIC, "the client sent no option");
        let option = u32::from_be_bytes(take(input)?);
        let length = u32::from_be_bytes(take(input)?) as usize;
        ensure!(length <= 4096, "an option of {length} bytes");
        let mut content = vec![0; length];
        input.read_exact(&mut content)?;
        let mut reply = |kind: u32, content: &[u8]| -> Result<()> {
            let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            for number in [option, kind, content.len() as u32] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            bytes.extend_from_slice(content);
            output.write_all(&bytes).context("answer an option")
        };
        match option {
            OPTION_GO | OPTION_INFO => {
                // NBD_INFO_EXPORT: type 0, size, flags.
                let mut info = 0u16.to_be_bytes().to_vec();
                info.extend_from_slice(&bytes.to_be_bytes());
                info.extend_from_slice(&EXPORT_FLAGS.to_be_bytes());
                reply(REPLY_INFO, &info)?;
                reply(REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => {
                reply(REPLY_ACK, &[])?;
                return Ok(false);
            }
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn take<const N: usize>(input: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes).context("read the client's greeting")?;
    Ok(bytes)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Flush,
    Disconnect,
}

struct Request {
    kind: Kind,
    forced: bool,
    handle: u64,
    offset: u64,
    length: usize,
    /// Of a write.
    content: Vec<u8>,
}

impl Request {
    /// `None`: the client is gone.
    fn read(input: &mut impl Read) -> Result<Option<Self>> {
        let mut head = [0; 28];
        // A machine that is killed may leave half a request; it was never answered.
        if input.read_exact(&mut head).is_err() {
            return Ok(None);
        }
        let mut head = head.as_slice();
        ensure!(u32::from_be_bytes(take(&mut head)?) == REQUEST_MAGIC, "no request");
        let flags = u16::from_be_bytes(take(&mut head)?);
        let kind = match u16::from_be_bytes(take(&mut head)?) {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Disconnect,
            3 => Kind::Flush,
            other => bail!("a request of the unknown kind {other}"),
        };
        let handle = u64::from_be_bytes(take(&mut head)?);
        let offset = u64::from_be_bytes(take(&mut head)?);
        let length = u32::from_be_bytes(take(&mut head)?) as usize;
        ensure!(length <= REQUEST_BYTES_MAX, "a request of {length} bytes");
        let mut content = Vec::new();
        if kind == Kind::Write {
            content.resize(length, 0);
            if input.read_exact(&mut content).is_err() {
                return Ok(None);
            }
        }
        Ok(Some(Self { kind, forced: flags & FORCED != 0, handle, offset, length, content }))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const DISK_BYTES: u64 = 1 << 20;

    struct Client {
        stream: UnixStream,
        handle: u64,
    }

    impl Client {
        fn new(server: &Server) -> Self {
            let mut stream = UnixStream::connect(server.socket()).unwrap();
            assert_eq!(u64::from_be_bytes(take(&mut stream).unwrap()), MAGIC);
            let _: [u8; 10] = take(&mut stream).unwrap();
            stream.write_all(&3u32.to_be_bytes()).unwrap();
            // An option that the server does not know, then GO for the export without a name.
            for (option, content) in [(8u32, vec![]), (OPTION_GO, vec![0; 6])] {
                stream.write_all(&OPTION_MAGIC.to_be_bytes()).unwrap();
                stream.write_all(&option.to_be_bytes()).unwrap();
                stream.write_all(&(content.len() as u32).to_be_bytes()).unwrap();
                stream.write_all(&content).unwrap();
            }
            let unsupported: [u8; 20] = take(&mut stream).unwrap();
            assert_eq!(unsupported[12..16], REPLY_UNSUPPORTED.to_be_bytes());
            let info: [u8; 20 + 12] = take(&mut stream).unwrap();
            assert_eq!(info[22..30], DISK_BYTES.to_be_bytes());
            let _ack: [u8; 20] = take(&mut stream).unwrap();
            Self { stream, handle: 0 }
        }

        /// `None`: no answer came.
        fn ask(&mut self, kind: u16, offset: u64, length: u32, content: &[u8]) -> Option<(u32, Vec<u8>)> {
            self.handle += 1;
            let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
            bytes.extend_from_slice(&0u16.to_be_bytes());
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&self.handle.to_be_bytes());
            bytes.extend_from_slice(&offset.to_be_bytes());
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(content);
            self.stream.write_all(&bytes).unwrap();
            let mut head = [0; 16];
            self.stream.read_exact(&mut head).ok()?;
            assert_eq!(head[8..], self.handle.to_be_bytes());
            let error = u32::from_be_bytes(head[4..8].try_into().unwrap());
            let mut read = vec![0; if kind == 0 && error == 0 { length as usize } else { 0 }];
            self.stream.read_exact(&mut read).unwrap();
            Some((error, read))
        }

        fn write(&mut self, offset: u64, value: u8) -> Option<u32> {
            Some(self.ask(1, offset, 512, &[value; 512])?.0)
        }

        fn first(&mut self, offset: u64) -> u8 {
            self.ask(0, offset, 512, &[]).unwrap().1[0]
        }
    }

    #[test]
    fn a_disk_is_served_fails_falls_silent_and_is_served_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(DISK_BYTES).unwrap();
        let server = Server::start(file, &folder.path().join("disk")).unwrap();
        let mut client = Client::new(&server);
        assert_eq!(client.write(0, 1), Some(0));
        assert_eq!(client.ask(3, 0, 0, &[]).unwrap().0, 0, "flush");
        server.fail(1, 1);
        assert_eq!(client.write(512, 2), Some(0));
        assert_eq!(client.write(512, 3), Some(nix::libc::EIO as u32));
        assert_eq!(client.first(512), 2);
        server.cut_after(1);
        assert_eq!(client.write(1024, 4), Some(0));
        assert_eq!(client.write(0, 5), None, "silent");
        assert!(server.silent(std::time::Duration::from_secs(30)));
        drop(client);
        let lost = server.cut(&mut StdRng::seed_from_u64(1)).unwrap();
        assert_eq!(lost.unflushed, 2);
        let mut client = Client::new(&server);
        assert_eq!(client.first(0), 1, "what was flushed is there, what was not answered is not");
        assert!(matches!(client.first(1024), 0 | 4));
        assert_eq!(client.ask(0, DISK_BYTES, 512, &[]).unwrap().0, nix::libc::EINVAL as u32);
    }
}
