//! An open-loop load without retries: operations start at a fixed rate, whatever the earlier ones do.
//!
//! Each operation is one exchange with a fixture of `tests/programs`, half of them on a new connection, half (where
//! the protocol has more than one exchange a connection) on one that is kept. Whatever the unchanging program would
//! not have done is lost: a refusal, a reset, an answer of 5xx, a wrong answer, a time-out.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// An operation that takes longer is lost.
const OPERATION_SECONDS_MAX: u64 = 10;
/// Operations at a time; an open loop that falls this far behind has lost what it cannot start.
const OPEN_MAX: u64 = 8000;

/// What a fixture speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// `GET /`: any 2xx.
    Get,
    /// `POST /` with a body, a slow answer with its length and checksum.
    Post,
    /// Bytes come back as they were sent.
    Echo,
    /// The server greets first, then answers lines.
    Greeting,
}

/// Where a load goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) protocol: Protocol,
    pub(crate) address: SocketAddr,
    pub(crate) per_second: u64,
}

/// What became of the operations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) done: u64,
    /// Why operations were lost, and how many for each reason.
    pub(crate) lost: BTreeMap<String, u64>,
}

impl Report {
    pub(crate) fn lost(&self) -> u64 {
        self.lost.values().sum()
    }

    /// `done` and `lost` in words.
    pub(crate) fn words(&self) -> String {
        let mut text = format!("{} operations, {} lost", self.done, self.lost());
        for (reason, count) in self.lost.iter().take(4) {
            text.push_str(&format!("; {count} × {reason}"));
        }
        text
    }
}

/// A running load.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    done: AtomicU64,
    /// How long the operations took that ended well, in microseconds, since they were last taken.
    took_us: Mutex<Vec<u64>>,
    open: AtomicU64,
    lost: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    fn count(&self, result: Result<(), String>, protocol: Protocol) {
        match result {
            Ok(()) => {
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            Err(reason) => {
                let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
                *lost.entry(format!("{protocol:?}: {reason}")).or_default() += 1;
            }
        }
    }
}

impl Load {
    pub(crate) fn start(targets: &[Target]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = Arc::new(Shared::default());
        let start = |target: &Target| tokio::spawn(drive(*target, Arc::clone(&stop), Arc::clone(&shared)));
        let tasks = targets.iter().map(start).collect();
        Self { stop, shared, tasks }
    }

    /// Operations that have ended well so far.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// How long the operations took that ended well since this was last asked, in microseconds.
    pub(crate) fn take_times_us(&self) -> Vec<u64> {
        std::mem::take(&mut *self.shared.took_us.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Operations that were lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// Starts no more operations, waits for those that run, and tells.
    pub(crate) async fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            // A task that panicked is a fault of this file, and must not look like a good run.
            if let Err(error) = task.await {
                self.shared.count(Err(format!("load: {error}")), Protocol::Get);
            }
        }
        let lost = self.shared.lost.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report { done: self.shared.done.load(Ordering::Relaxed), lost }
    }
}

async fn drive(target: Target, stop: Arc<AtomicBool>, shared: Arc<Shared>) {
    let kept: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / target.per_second as u32);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let mut running = tokio::task::JoinSet::new();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        number += 1;
        while running.try_join_next().is_some() {}
        if shared.open.load(Ordering::Relaxed) >= OPEN_MAX {
            shared.count(Err("too many operations are open".to_owned()), target.protocol);
            continue;
        }
        shared.open.fetch_add(1, Ordering::Relaxed);
        let (kept, shared) = (Arc::clone(&kept), Arc::clone(&shared));
        running.spawn(async move {
            let limit = Duration::from_secs(OPERATION_SECONDS_MAX);
            let started = Instant::now();
            let result = match tokio::time::timeout(limit, operation(target, number, &kept)).await {
                Ok(result) => result,
                Err(_) => Err("time-out".to_owned()),
            };
            shared.open.fetch_sub(1, Ordering::Relaxed);
            if result.is_ok() {
                let took = started.elapsed().as_micros() as u64;
                shared.took_us.lock().unwrap_or_else(PoisonError::into_inner).push(took);
            }
            shared.count(result, target.protocol);
        });
    }
    while running.join_next().await.is_some() {}
}

type Kept = Mutex<Vec<TcpStream>>;

async fn operation(target: Target, number: u64, kept: &Kept) -> Result<(), String> {
    let mut stream = None;
    if number.is_multiple_of(2) {
        stream = take_live(kept);
    }
    let mut stream = match stream {
        Some(stream) => stream,
        None => {
            TcpStream::connect(target.address).await.map_err(|error| format!("connect: {}", error.kind()))?
        }
    };
    let again = match target.protocol {
        Protocol::Get => {
            http(&mut stream, &format!("GET / HTTP/1.1\r\nHost: load\r\nX-Number: {number}\r\n\r\n"), None)
                .await?
        }
        Protocol::Post => {
            let body = format!("number {number} {}", "x".repeat((number % 2000) as usize));
            let head = format!("POST / HTTP/1.1\r\nHost: load\r\nContent-Length: {}\r\n\r\n", body.len());
            let sum = sha2::Sha256::digest(body.as_bytes());
            let expect = format!("{} {sum:x}\n", body.len());
            http(&mut stream, &(head + &body), Some(&expect)).await?
        }
        Protocol::Echo => {
            let text = format!("line {number} {}\n", "y".repeat((number % 500) as usize));
            exchange(&mut stream, text.as_bytes(), text.as_bytes()).await?;
            false
        }
        Protocol::Greeting => {
            read_line(&mut stream, "220 greeter").await?;
            stream
                .write_all(format!("n {number}\n").as_bytes())
                .await
                .map_err(|error| format!("write: {}", error.kind()))?;
            read_line(&mut stream, &format!("250 1 n {number}")).await?;
            false
        }
    };
    // One that is kept serves one operation after another; as many are kept as run at a time.
    if again && number.is_multiple_of(2) {
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
    Ok(())
}

/// A kept connection that the other side has not closed meanwhile: any client looks before it reuses one.
fn take_live(kept: &Kept) -> Option<TcpStream> {
    loop {
        let stream = kept.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        match stream.try_read(&mut [0; 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Some(stream),
            _ => {}
        }
    }
}

/// One exchange; whether the connection may be used again.
async fn http(stream: &mut TcpStream, request: &str, body: Option<&str>) -> Result<bool, String> {
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("write: {}", error.kind()))?;
    let mut answer = Vec::with_capacity(4096);
    let head = loop {
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        read_more(stream, &mut answer).await?;
    };
    let text = String::from_utf8_lossy(&answer[..head]).into_owned();
    let status = text.get(9..12).unwrap_or("???").to_owned();
    if !status.starts_with('2') {
        return Err(format!("status {status}"));
    }
    let header = |name: &str| {
        text.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
        })
    };
    let mut rest = answer.split_off(head);
    let got = if header("transfer-encoding").as_deref() == Some("chunked") {
        chunked(stream, rest).await?
    } else {
        let length: usize = header("content-length")
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| "an answer without a length".to_owned())?;
        while rest.len() < length {
            read_more(stream, &mut rest).await?;
        }
        rest
    };
    if body.is_some_and(|body| got != body.as_bytes()) {
        return Err("wrong answer".to_owned());
    }
    Ok(header("connection").as_deref() != Some("close"))
}

/// A body in chunks (RFC 9112, section 7.1), without trailers; `rest` is what was read of it with the head.
async fn chunked(stream: &mut TcpStream, mut rest: Vec<u8>) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    loop {
        let line = loop {
            if let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
                break end;
            }
            read_more(stream, &mut rest).await?;
        };
        let size =
            std::str::from_utf8(&rest[..line]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or_else(|| "a chunk without a size".to_owned())?;
        while rest.len() < line + 2 + size + 2 {
            read_more(stream, &mut rest).await?;
        }
        body.extend_from_slice(&rest[line + 2..line + 2 + size]);
        rest.drain(..line + 2 + size + 2);
        if size == 0 {
            return Ok(body);
        }
    }
}

async fn read_more(stream: &mut TcpStream, answer: &mut Vec<u8>) -> Result<(), String> {
    match stream.read_buf(answer).await {
        Ok(0) => Err(format!("closed after {} bytes", if answer.is_empty() { "0" } else { "some" })),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("read: {}", error.kind())),
    }
}

async fn exchange(stream: &mut TcpStream, send: &[u8], expect: &[u8]) -> Result<(), String> {
    stream.write_all(send).await.map_err(|error| format!("write: {}", error.kind()))?;
    let mut answer = Vec::with_capacity(expect.len());
    while answer.len() < expect.len() {
        read_more(stream, &mut answer).await?;
    }
    if answer == expect { Ok(()) } else { Err("wrong answer".to_owned()) }
}

async fn read_line(stream: &mut TcpStream, expect: &str) -> Result<(), String> {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\n") {
        read_more(stream, &mut answer).await?;
    }
    let line = String::from_utf8_lossy(&answer);
    if line.trim_end().starts_with(expect) {
        Ok(())
    } else {
        Err(format!("wrong answer {:?}", line.trim_end()))
    }
}

/// Resolves when `condition` is true; looked at with each answer of `probe`, at most until the deadline.
pub(crate) async fn until<F: Future<Output = bool>>(seconds: u64, mut probe: impl FnMut() -> F) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < deadline {
        if probe().await {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    false
}
