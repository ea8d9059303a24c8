//! A machine that is started again and again on the same disks.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Trial;
use crate::vm::frame::Frame;
use crate::vm::image::{Image, empty_file_system};
use crate::vm::inside::{CHECKED, JOURNAL};
use crate::vm::machine::{Machine, Parts, State};
use crate::vm::nbd::Server;
use crate::vm::payload::{Payload, go_disk};

/// The disk that loses and fails; sparse.
const DISK_BYTES: u64 = 4 << 30;
/// One sector a record.
const JOURNAL_BYTES: u64 = 64 << 20;
/// How long a part of a suite may take inside.
pub(super) const PART: Duration = Duration::from_secs(1800);

pub(super) struct Lab {
    image: Image,
    payload: Payload,
    kernel: Option<String>,
    pub(super) disk: Server,
    journal: PathBuf,
    _folder: tempfile::TempDir,
}

impl Lab {
    pub(super) fn new(trial: &Trial) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("gantry-vm-").tempdir()?;
        let (state, journal) = (folder.path().join("state.img"), folder.path().join("journal.img"));
        empty_file_system(&state, DISK_BYTES)?;
        std::fs::File::create(&journal)?.set_len(JOURNAL_BYTES)?;
        let file = std::fs::File::options().read(true).write(true).open(&state)?;
        let disk = Server::start(file, &folder.path().join("disk"))?;
        let payload = Payload::new(&trial.gantry)?;
        payload.project()?;
        payload.disk()?;
        Ok(Self {
            image: Image::open()?,
            payload,
            kernel: trial.kernel.clone(),
            disk,
            journal,
            _folder: folder,
        })
    }

    pub(super) fn boot(&self) -> Result<Machine> {
        Machine::boot(&Parts {
            image: &self.image,
            kernel: self.kernel.as_deref(),
            disks: vec![("payload", self.payload.image()), ("go", go_disk()?)],
            state: State::Served(&self.disk),
            journal: Some((JOURNAL, &self.journal)),
        })
    }

    /// A machine in which the daemon is a unit and a program is served.
    pub(super) fn prepared(&self) -> Result<Machine> {
        let mut machine = self.boot()?;
        let said = inside(&mut machine, &["prepare"])?;
        if !said.is_empty() {
            crate::say(said.trim_end());
        }
        Ok(machine)
    }
}

/// Runs a part to its end; what it said.
pub(super) fn inside(machine: &mut Machine, part: &[&str]) -> Result<String> {
    let command = [&["xtask", "vm", "inside"], part].concat();
    machine.ok(&command, PART)
}

/// Starts the writer; when it returns, what was there is checked, and it writes. What it said of that.
pub(super) fn write(machine: &mut Machine, seed: u64) -> Result<String> {
    machine.start(&["xtask", "vm", "inside", "ledger", "--seed", &seed.to_string()], &[])?;
    let mut said = String::new();
    loop {
        match machine.next(PART).with_context(|| format!("the writer: {}", machine.console()))? {
            Some(Frame::Output(bytes) | Frame::Error(bytes)) => {
                said.push_str(&String::from_utf8_lossy(&bytes))
            }
            Some(Frame::Exit(code)) => bail!("the writer ended with {code}: {said}"),
            other => bail!("the machine said {other:?} in place of the writer: {}", machine.console()),
        }
        if let Some(line) = said.lines().find(|line| line.starts_with(CHECKED)) {
            ensure!(!said.contains("error:"), "{said}");
            return Ok(line.trim_start_matches(CHECKED).trim_start_matches(':').trim().to_owned());
        }
    }
}
