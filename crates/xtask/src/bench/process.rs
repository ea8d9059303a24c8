//! Processes of a benchmark: started, measured, and ended by whoever started them.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// How long a process has to end by itself.
const END_SECONDS_MAX: u64 = 20;

/// A process that ends with its owner.
pub(crate) struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts it in the background; what it says goes to `folder/NAME.log`.
    pub(crate) fn start(name: &str, folder: &Path, mut command: Command) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let out = File::options().append(true).create(true).open(&log);
        let out = out.with_context(|| format!("open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        // A session of its own, as gantry's processes have: the kernel shares the processors among sessions.
        // SAFETY: setsid is async-signal-safe, and the closure touches nothing else.
        unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { child, name: name.to_owned() })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when it has ended already.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}", self.name),
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        // A child that is not reaped yet keeps its number, so the signal reaches no one else.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(END_SECONDS_MAX);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Looks again and again until there is an answer or the time is over; the pauses are short beside what is measured.
pub(crate) fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: nothing within {} s", limit.as_secs());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Runs a command that has to succeed; its standard output.
pub(crate) fn ok(command: Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = crate::sandbox::output(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{line}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The proportional set size of a process, in MiB.
pub(crate) fn pss_mebibytes(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kibibytes = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    Ok(kibibytes.with_context(|| format!("{path} has no Pss"))? / 1024.0)
}

/// The CPU time that the living threads of a process have used, to the nanosecond.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let folder = format!("/proc/{pid}/task");
    let mut nanoseconds = 0u64;
    for entry in std::fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        let path = entry?.path().join("schedstat");
        // A thread may end between the listing and here.
        let text = std::fs::read_to_string(path).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// Processes whose command line has these words behind the program's name.
pub(crate) fn find(first: &str, containing: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let is_one = words.get(1).is_some_and(|word| word == first)
            && words.iter().any(|word| word.contains(containing));
        if is_one {
            found.push(pid);
        }
    }
    Ok(found)
}
