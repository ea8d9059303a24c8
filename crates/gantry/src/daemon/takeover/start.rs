//! Starting the daemon that takes over, and the one before again if it does not serve.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::FdFlags;

use super::{ASKER_VARIABLE, BACK_WITHIN, LINE_BYTES_MAX, LOCK_VARIABLE, OUTCOME_VARIABLE};
use crate::access::{installed_binary, staged_binary};
use crate::control::Answer;
use crate::launch::{READY_VARIABLE, Started};

/// What a takeover was given.
pub struct Takeover {
    pub dir: PathBuf,
    /// The state folder's.
    pub lock: OwnedFd,
    pub within: Duration,
}

impl Takeover {
    /// Starts the new daemon, or else the old one. What is to be said about it, and the process that serves.
    pub fn run(&self, binary: &Path) -> (Answer, Option<u32>) {
        let own = Path::new("/proc/self/exe");
        let error = match self.start(binary, self.within) {
            Ok((pid, version)) => {
                if binary == staged_binary(&self.dir)
                    && let Err(error) = durable::rename(binary, &installed_binary(&self.dir))
                {
                    tracing::error!(%error, "keep the new binary for later starts");
                }
                return (Answer::Replaced { version }, Some(pid));
            }
            Err(error) => format!("{error:#}"),
        };
        tracing::error!(error, "the new daemon did not start; the old one does again");
        if binary == staged_binary(&self.dir) {
            let _ = durable::remove(binary);
        }
        match self.start(own, BACK_WITHIN) {
            Ok((pid, _)) => (Answer::WentBack { error }, Some(pid)),
            Err(again) => (Answer::Down { error: format!("{error}; and the old one: {again:#}") }, None),
        }
    }

    /// Starts a daemon from that binary and waits until it serves; its process and release.
    fn start(&self, binary: &Path, within: Duration) -> Result<(u32, String)> {
        let (read, write) =
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("make a pipe")?;
        let said = self.dir.join("logs/daemon.stderr");
        let output = File::create(&said).or_else(|_| File::options().write(true).open("/dev/null"));
        let output = output.context("open the daemon's output")?;
        let mut child = self.spawn(binary, write, output).context("run it")?;
        let answer = wait(read, within);
        match answer {
            Ok(Some(Started::Ready { version })) => Ok((child.id(), version)),
            Ok(Some(Started::Failed { error, .. })) => {
                end(&mut child);
                bail!("{error}")
            }
            Ok(None) => {
                let status = end(&mut child);
                let text = fs::read(&said).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
                bail!("it ended before it served ({status}): {last}")
            }
            Err(error) => {
                end(&mut child);
                Err(error)
            }
        }
    }

    fn spawn(&self, binary: &Path, ready: OwnedFd, output: File) -> io::Result<Child> {
        let lock = self.lock.try_clone()?;
        let mut command = Command::new(binary);
        command
            .arg0("gantry")
            .args(["daemon", "run", "--state-dir"])
            .arg(&self.dir)
            .env(LOCK_VARIABLE, lock.as_raw_fd().to_string())
            .env(READY_VARIABLE, ready.as_raw_fd().to_string())
            .env_remove(ASKER_VARIABLE)
            .env_remove(OUTCOME_VARIABLE)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // SAFETY: between fork and exec only setsid is called, which is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                // Not an error for who leads a session already, and a new process never does.
                let _ = rustix::process::setsid();
                Ok(())
            });
        }
        keep_open(&mut command, [lock.as_raw_fd(), ready.as_raw_fd()]);
        command.spawn()
    }
}

/// Leaves these descriptors open for the program, which have to be open until it is spawned.
pub fn keep_open<const N: usize>(command: &mut Command, descriptors: [RawFd; N]) {
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            for descriptor in descriptors {
                rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(descriptor), FdFlags::empty())?;
            }
            Ok(())
        });
    }
}

/// Waits for the line that a daemon says about its start; `None` if it ended without one.
fn wait(read: OwnedFd, within: Duration) -> Result<Option<Started>> {
    let deadline = Instant::now() + within;
    let mut file = File::from(read);
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("the deadline")?;
        let mut wanted = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)];
        match rustix::event::poll(&mut wanted, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("wait for it"),
            Ok(0) => bail!("it did not serve within {} s", within.as_secs_f64()),
            Ok(_) => {}
        }
        let mut part = [0; 4096];
        let count = file.read(&mut part).context("hear from it")?;
        line.extend_from_slice(&part[..count]);
        if line.ends_with(b"\n") {
            return serde_json::from_slice(&line).map(Some).context("understand what it said");
        }
        if count == 0 || line.len() as u64 > LINE_BYTES_MAX {
            return Ok(None);
        }
    }
}

fn end(child: &mut Child) -> String {
    let _ = child.kill();
    child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use durable::Lock;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    struct Folder {
        dir: tempfile::TempDir,
        lock: Lock,
    }

    impl Folder {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["logs", "run"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            let lock = Lock::acquire(&dir.path().join("run/daemon.lock")).unwrap();
            Self { dir, lock }
        }

        /// What comes of starting a shell script as the new daemon.
        fn start(&self, script: &str, within: Duration) -> Result<(u32, String)> {
            let path = self.dir.path().join("binary");
            // A file that is written cannot be executed, and another test's fork may hold this one open.
            let staged = path.with_extension("staged");
            fs::write(&staged, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&staged, fs::Permissions::from_mode(0o700)).unwrap();
            fs::rename(&staged, &path).unwrap();
            let lock = self.lock.pass_on().unwrap();
            Takeover { dir: self.dir.path().to_owned(), lock, within }.start(&path, within)
        }
    }

    #[test]
    fn a_daemon_that_says_that_it_serves_has_the_lock_and_stays() {
        let folder = Folder::new();
        let script = "test -e /proc/self/fd/$GANTRY_LOCK_FD || exit 1\n\
                      echo '{\"ready\":{\"version\":\"9.0.0\"}}' > /proc/self/fd/$GANTRY_READY_FD\nexec sleep 600";
        let (pid, version) = folder.start(script, LONG).unwrap();
        assert_eq!(version, "9.0.0");
        let Folder { dir, lock } = folder;
        drop(lock);
        let file = File::open(dir.path().join("run/daemon.lock")).unwrap();
        assert!(Lock::is_held(&file).unwrap(), "the new daemon holds it");
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    }

    #[test]
    fn a_daemon_that_does_not_serve_is_ended_and_it_is_said_why() {
        let folder = Folder::new();
        let said = |script: &str, within| format!("{:#}", folder.start(script, within).unwrap_err());
        let error = said("echo first >&2; echo boom >&2; exit 7", LONG);
        assert!(error.contains("exit status: 7") && error.ends_with("boom"), "{error}");
        let script = "echo '{\"failed\":{\"error\":\"no store\",\"hint\":null}}' > /proc/self/fd/$GANTRY_READY_FD\nsleep 600";
        assert_eq!(said(script, LONG), "no store");
        let error = said("exec sleep 600", Duration::from_millis(50));
        assert!(error.contains("did not serve within"), "{error}");
        assert!(said("echo what > /proc/self/fd/$GANTRY_READY_FD", LONG).contains("understand what it said"));
        assert!(
            Takeover { dir: folder.dir.path().into(), lock: folder.lock.pass_on().unwrap(), within: LONG }
                .start(&folder.dir.path().join("absent"), LONG)
                .is_err()
        );
    }
}
