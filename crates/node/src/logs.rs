//! Reading containers' logs: the CRI format, over rotation, from the end, and as they grow.
//!
//! `path` is the newest file, `path.1` the one before. A line is `TIME STREAM F|P TEXT`; P is a part of a line that
//! the next entry of that stream goes on with.

use std::fs::File as BlockingFile;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::BoxFuture;
use rustix::fs::inotify;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// What is read at once.
const CHUNK_BYTES: usize = 64 << 10;
/// No line of a CRI log is longer; what is longer is no CRI log.
const LINE_BYTES_MAX: usize = 1 << 20;
/// More old files than a keeper ever keeps.
const FILES_MAX: u32 = 1000;

/// What of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on as it grows.
    pub follow: bool,
    /// Only so many of the last lines.
    pub tail: Option<usize>,
    /// Only what was written since.
    pub since: Option<jiff::Timestamp>,
    /// Each line with its time.
    pub timestamps: bool,
    /// No more bytes than that.
    pub limit_bytes: Option<usize>,
    /// `stdout` or `stderr` alone.
    pub stream: Option<String>,
}

/// The files of a run, the oldest first.
pub fn files(log: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        (1..FILES_MAX).map(|n| numbered(log, n)).take_while(|path| path.exists()).collect();
    files.reverse();
    if log.exists() {
        files.push(log.to_owned());
    }
    files
}

/// A file of a log. Rotation renames it, so it is known by its inode, and held open rather than named.
struct Opened {
    file: BlockingFile,
    inode: u64,
}

/// Opens the files of a run, the oldest first. Names move towards the older ones while this looks, so it goes the
/// same way: it may meet a file twice, but misses none.
fn open_all(log: &Path) -> io::Result<Vec<Opened>> {
    let mut opened: Vec<Opened> = Vec::new();
    let mut missing = 0;
    for number in 0..FILES_MAX {
        let path = if number == 0 { log.to_owned() } else { numbered(log, number) };
        match BlockingFile::open(&path) {
            Ok(file) => {
                missing = 0;
                let inode = file.metadata()?.ino();
                if !opened.iter().any(|known| known.inode == inode) {
                    opened.push(Opened { file, inode });
                }
            }
            // One gap is a rotation that is going on.
            Err(error) if error.kind() == io::ErrorKind::NotFound && missing < 2 => missing += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        }
    }
    opened.reverse();
    Ok(opened)
}

fn numbered(log: &Path, number: u32) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// An entry's parts.
struct Entry<'a> {
    time: &'a str,
    stream: &'a str,
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(fields.next()?).ok()?;
    let stream = std::str::from_utf8(fields.next()?).ok()?;
    let partial = fields.next()?.split(|byte| *byte == b':').next()? == b"P";
    Some(Entry { time, stream, partial, text: fields.next().unwrap_or_default() })
}

/// The texts of the last `count` lines, each with its newline. Blocks.
pub fn last_lines(log: &Path, count: usize) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut writer = Writer::new(Options::default());
    for mut opened in start(log, Some(count))? {
        let file = &mut opened.file;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            writer.line(line.strip_suffix(b"\n").unwrap_or(line));
            if let Some(text) = writer.take() {
                lines.push(String::from_utf8_lossy(&text).into_owned());
            }
        }
    }
    Ok(lines)
}

/// The files from the one on in which the last `tail` entries begin, which stands at its first; or all.
fn start(log: &Path, tail: Option<usize>) -> io::Result<Vec<Opened>> {
    let mut files = open_all(log)?;
    let Some(mut left) = tail else { return Ok(files) };
    for place in (0..files.len()).rev() {
        if let Some(offset) = nth_last(&mut files[place].file, &mut left)? {
            files.drain(..place);
            files[0].file.seek(SeekFrom::Start(offset))?;
            return Ok(files);
        }
    }
    for opened in &mut files {
        opened.file.rewind()?;
    }
    Ok(files)
}

/// Where the last `left` entries of a file begin; `None` if it has fewer, which are then taken off.
fn nth_last(file: &mut BlockingFile, left: &mut usize) -> io::Result<Option<u64>> {
    let length = file.metadata()?.len();
    if *left == 0 {
        return Ok(Some(length));
    }
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(CHUNK_BYTES as u64);
        let size = (end - begin) as usize;
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut chunk[..size])?;
        for at in (0..size).rev() {
            let next = begin + at as u64 + 1;
            // The newline at the very end closes the last entry and begins none.
            if chunk[at] == b'\n' && next != length {
                *left -= 1;
                if *left == 0 {
                    return Ok(Some(next));
                }
            }
        }
        end = begin;
    }
    // The entry at the beginning of the file.
    if length > 0 {
        *left -= 1;
    }
    file.rewind()?;
    Ok((*left == 0 && length > 0).then_some(0))
}

/// Turns entries into what a client sees.
struct Writer {
    options: Options,
    since: Option<String>,
    out: Vec<u8>,
    /// Whether the last entry of each stream was a part.
    begun: [bool; 2],
    left: Option<usize>,
}

impl Writer {
    fn new(options: Options) -> Self {
        let since = options.since.map(|since| since.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string());
        let left = options.limit_bytes;
        Self { options, since, out: Vec::new(), begun: [false; 2], left }
    }

    fn line(&mut self, line: &[u8]) {
        let Some(entry) = parse(line) else { return };
        if self.options.stream.as_deref().is_some_and(|stream| stream != entry.stream) {
            return;
        }
        // Times are all of one length, so their order is that of their text.
        if self.since.as_deref().is_some_and(|since| entry.time < since) {
            return;
        }
        let begun = &mut self.begun[usize::from(entry.stream == "stderr")];
        if self.options.timestamps && !*begun {
            self.out.extend_from_slice(entry.time.as_bytes());
            self.out.push(b' ');
        }
        *begun = entry.partial;
        self.out.extend_from_slice(entry.text);
        if !entry.partial {
            self.out.push(b'\n');
        }
    }

    /// What there is to send.
    fn take(&mut self) -> Option<Vec<u8>> {
        let mut out = std::mem::take(&mut self.out);
        if let Some(left) = &mut self.left {
            out.truncate(*left);
            *left -= out.len();
        }
        (!out.is_empty()).then_some(out)
    }

    fn is_full(&self) -> bool {
        self.left == Some(0)
    }
}

/// Sends a log to `out` until its end; with `follow` until `ended` has come true and everything is read.
pub async fn read(
    log: PathBuf,
    options: Options,
    ended: BoxFuture<'static, ()>,
    out: mpsc::Sender<io::Result<Bytes>>,
) {
    if let Err(error) = follow(&log, options, ended, &out).await {
        // Nobody listens any more: that is how following ends.
        let _ = out.send(Err(error)).await;
    }
}

struct Open {
    file: File,
    inode: u64,
}

impl From<Opened> for Open {
    fn from(opened: Opened) -> Self {
        Self { file: File::from_std(opened.file), inode: opened.inode }
    }
}

/// Looks for files off the event loop.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

async fn follow(
    log: &Path,
    options: Options,
    mut ended: BoxFuture<'static, ()>,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    let follows = options.follow;
    let changes = if follows { Some(Changes::of(log)?) } else { None };
    let mut open: Option<Open> = {
        let (log, tail) = (log.to_owned(), options.tail);
        blocking(move || start(&log, tail)).await?.into_iter().next().map(Open::from)
    };
    let mut writer = Writer::new(options);
    let mut rest = Vec::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut next: Option<Open> = None;
    let mut over = false;
    loop {
        let length = match &mut open {
            Some(open) => open.file.read(&mut chunk).await?,
            None => 0,
        };
        if length > 0 {
            rest.extend_from_slice(&chunk[..length]);
            let mut from = 0;
            while let Some(end) = rest[from..].iter().position(|byte| *byte == b'\n') {
                writer.line(&rest[from..from + end]);
                from += end + 1;
            }
            rest.drain(..from);
            if rest.len() > LINE_BYTES_MAX {
                rest.clear();
            }
            if let Some(text) = writer.take()
                && out.send(Ok(Bytes::from(text))).await.is_err()
            {
                return Ok(());
            }
            if writer.is_full() {
                return Ok(());
            }
            continue;
        }
        // What was written between the last read and the rotation has been read by now.
        if next.is_some() {
            open = next.take();
            continue;
        }
        next = {
            let (log, inode) = (log.to_owned(), open.as_ref().map(|open| open.inode));
            blocking(move || successor(&log, inode)).await?.map(Open::from)
        };
        if next.is_some() {
            continue;
        }
        let (Some(changes), false) = (&changes, over) else { return Ok(()) };
        tokio::select! {
            changed = changes.wait() => changed?,
            () = &mut ended => over = true,
            () = out.closed() => return Ok(()),
        }
    }
}

/// The file after the one with that inode: it was rotated, or nothing was open yet.
fn successor(log: &Path, inode: Option<u64>) -> io::Result<Option<Opened>> {
    let mut files = open_all(log)?.into_iter();
    let Some(inode) = inode else { return Ok(files.next()) };
    let mut files: Vec<Opened> = files.collect();
    match files.iter().position(|opened| opened.inode == inode) {
        Some(place) => Ok((place + 1 < files.len()).then(|| files.remove(place + 1))),
        // It is so old that it was removed.
        None => Ok(files.into_iter().next()),
    }
}

/// Word from the kernel that something in the log's folder changed.
struct Changes(AsyncFd<std::os::fd::OwnedFd>);

impl Changes {
    fn of(log: &Path) -> io::Result<Self> {
        let dir = log.parent().unwrap_or(Path::new("/"));
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let what = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, what)?;
        // SAFETY: an OwnedFd keeps its descriptor open, and the same, until it is dropped together with the AsyncFd.
        let fd = unsafe { AsyncFd::register(fd)? };
        Ok(Self(fd))
    }

    async fn wait(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [0; 4096];
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?)) {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;

    fn entry(second: u32, tag: &str, text: &str) -> String {
        format!("2026-01-01T00:00:{second:02}.000000000Z stdout {tag} {text}\n")
    }

    async fn all(log: &Path, options: Options) -> String {
        let (sender, mut receiver) = mpsc::channel(8);
        let ended = Box::pin(std::future::pending());
        let reading = tokio::spawn(read(log.to_owned(), options, ended, sender));
        let mut text = Vec::new();
        while let Some(bytes) = receiver.recv().await {
            text.extend_from_slice(&bytes.unwrap());
        }
        reading.await.unwrap();
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn options_choose_lines_over_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        fs::write(dir.path().join("0.log.2"), entry(1, "F", "one")).unwrap();
        fs::write(dir.path().join("0.log.1"), entry(2, "F", "two") + &entry(3, "P", "thr")).unwrap();
        fs::write(&log, entry(3, "F", "ee") + &entry(4, "F", "four")).unwrap();
        let since: jiff::Timestamp = "2026-01-01T00:00:02Z".parse().unwrap();
        for (options, expected) in [
            (Options::default(), "one\ntwo\nthree\nfour\n"),
            (Options { tail: Some(1), ..Options::default() }, "four\n"),
            (Options { tail: Some(4), ..Options::default() }, "two\nthree\nfour\n"),
            (Options { tail: Some(99), ..Options::default() }, "one\ntwo\nthree\nfour\n"),
            (Options { tail: Some(0), ..Options::default() }, ""),
            (Options { since: Some(since), ..Options::default() }, "two\nthree\nfour\n"),
            (Options { limit_bytes: Some(6), ..Options::default() }, "one\ntw"),
            (Options { stream: Some("stderr".to_owned()), ..Options::default() }, ""),
            (
                Options { timestamps: true, tail: Some(3), ..Options::default() },
                "2026-01-01T00:00:03.000000000Z three\n2026-01-01T00:00:04.000000000Z four\n",
            ),
        ] {
            assert_eq!(all(&log, options.clone()).await, expected, "{options:?}");
        }
        assert_eq!(last_lines(&log, 2).unwrap().concat(), "ee\nfour\n");
    }

    #[tokio::test]
    async fn nothing_is_lost_while_a_followed_log_rotates() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let (sender, mut receiver) = mpsc::channel(8);
        let options = Options { follow: true, ..Options::default() };
        let ended = Box::pin(async move { drop(ended.await) });
        let reading = tokio::spawn(read(log.clone(), options, ended, sender));
        let path = log.clone();
        let (seen, has_seen) = std::sync::mpsc::channel();
        let writing = tokio::task::spawn_blocking(move || {
            for second in 0..50 {
                let mut file = fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
                file.write_all(entry(second, "F", &second.to_string()).as_bytes()).unwrap();
                if second % 7 == 6 {
                    for number in (1..5).rev() {
                        let _ = fs::rename(numbered(&path, number), numbered(&path, number + 1));
                    }
                    fs::rename(&path, numbered(&path, 1)).unwrap();
                    // A reader has time for a file before it is removed.
                    while has_seen.recv().unwrap() <= second {}
                }
            }
            end.send(()).unwrap();
        });
        let mut text = Vec::new();
        while let Some(bytes) = receiver.recv().await {
            text.extend_from_slice(&bytes.unwrap());
            // The writer is gone once it has written everything.
            let lines = text.iter().filter(|byte| **byte == b'\n').count();
            let _ = seen.send(u32::try_from(lines).unwrap());
        }
        writing.await.unwrap();
        reading.await.unwrap();
        let expected: String = (0..50).map(|second| format!("{second}\n")).collect();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }
}
