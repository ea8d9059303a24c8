//! Everybody else: requests at a fixed rate, each on a connection of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::CloneFlags;

use crate::bench::api::Api;
use crate::bench::samples::Samples;

/// Requests a second of everybody else together.
const PER_SECOND: u32 = 50;
const ASKERS: u32 = 4;
/// A request that takes longer is lost.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Whom everybody else asks, and how.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) request: Request,
    /// The network namespace to ask from, if it is another one.
    pub(super) inside: Option<PathBuf>,
}

#[derive(Clone)]
pub(super) enum Request {
    /// `GET PATH`.
    Plain { address: SocketAddr, path: &'static str },
    /// `GET /version` over TLS.
    Kubernetes(Api),
}

/// What everybody else saw.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) count: usize,
    pub(super) milliseconds: Samples,
    pub(super) lost: Vec<String>,
}

impl Answers {
    pub(super) fn words(&self) -> String {
        let mut words = format!("{} answers, p99 {:.1} ms", self.count, self.milliseconds.p99());
        if let Some(first) = self.lost.first() {
            words.push_str(&format!(", {} lost: {first}", self.lost.len()));
        }
        words
    }

    pub(super) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.milliseconds.extend(other.milliseconds);
        self.lost.extend(other.lost);
    }
}

impl Asked {
    /// Requests for so long; each is timed from when it was due.
    pub(super) fn ask(&self, time: Duration) -> Result<Answers> {
        let gap = Duration::from_secs(1) * ASKERS / PER_SECOND;
        let start = Instant::now();
        let asker = |number: u32| {
            let asked = self.clone();
            std::thread::spawn(move || -> Result<Answers> {
                if let Some(netns) = &asked.inside {
                    nix::sched::setns(std::fs::File::open(netns)?, CloneFlags::CLONE_NEWNET)?;
                }
                let mut answers = Answers::default();
                let first = start + gap * number / ASKERS;
                let mut turn = 0;
                while start.elapsed() < time {
                    let due = first + gap * turn;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    match asked.request.once() {
                        Ok(()) => {
                            answers.count += 1;
                            answers.milliseconds.push_milliseconds(due.elapsed());
                        }
                        Err(error) => answers.lost.push(format!("{error:#}")),
                    }
                    turn += 1;
                }
                Ok(answers)
            })
        };
        let askers: Vec<_> = (0..ASKERS).map(asker).collect();
        let mut all = Answers::default();
        for asker in askers {
            let Ok(answers) = asker.join() else { bail!("an asker panicked") };
            all.add(answers?);
        }
        Ok(all)
    }
}

impl Request {
    /// Once; any answer that is no server's error.
    fn once(&self) -> Result<()> {
        match self {
            Self::Kubernetes(api) => {
                let (status, _) = api.connect()?.send("GET", "/version", "", "")?;
                ensure!(status == 200, "status {status}");
            }
            Self::Plain { address, path } => {
                let mut stream = TcpStream::connect_timeout(address, LIMIT).context("connect")?;
                stream.set_read_timeout(Some(LIMIT))?;
                let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
                stream.write_all(request.as_bytes()).context("write")?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).context("read")?;
                let status = answer.get(9..12).map(String::from_utf8_lossy).unwrap_or_default().into_owned();
                ensure!(matches!(status.chars().next(), Some('2' | '4')), "status {status:?}");
            }
        }
        Ok(())
    }
}
