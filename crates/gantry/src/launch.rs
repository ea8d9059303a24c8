//! The daemon as a process: is it there, start it, stop it.
//!
//! A started daemon tells by a line on a pipe that it serves, or why it does not; nobody sleeps and looks again.

use std::{
    fs,
    io::{self, Read as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    access, console,
    failure::{Failure, Result},
    modes, service,
    settings::Settings,
};

/// Names the descriptor on which a daemon says that it is ready.
pub const READY_VARIABLE: &str = "GANTRY_READY_FD";
/// The descriptor's number in the daemon.
const READY_FD: i32 = 3;
/// Lines of the log that explain a daemon that did not start.
const LOG_LINES: usize = 12;

/// The one line that a starting daemon writes, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Started {
    Ready { version: String },
    Failed { error: String, hint: Option<String> },
}

impl Started {
    /// Says it on the descriptor that the starter gave; does nothing when nobody waits.
    pub fn tell(&self) -> io::Result<()> {
        let Some(fd) = std::env::var(READY_VARIABLE).ok().and_then(|text| text.parse::<i32>().ok()) else {
            return Ok(());
        };
        // Opened anew through /proc, so that no number is taken for a descriptor that we own. The starter waits for
        // this line, not for the pipe's end.
        let mut file = fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}"))?;
        let mut line = serde_json::to_vec(self).map_err(io::Error::other)?;
        line.push(b'\n');
        io::Write::write_all(&mut file, &line)
    }
}

/// The process that holds a state folder's lock, if one does.
pub fn holder(state_dir: &Path) -> Result<Option<Pid>> {
    let path = access::lock_path(state_dir);
    let failed =
        |error: io::Error| Failure::from_error(&error).context(format!("look at {}", path.display()));
    let file = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        // Another user's daemon: whether it runs is seen by its answers.
        Err(rustix::io::Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    };
    if !durable::Lock::is_held(&file).map_err(failed)? {
        return Ok(None);
    }
    let mut text = String::new();
    (&file).take(64).read_to_string(&mut text).map_err(failed)?;
    Ok(text.trim().parse().ok().and_then(Pid::from_raw))
}

/// Starts a daemon and waits until it serves. True when it was this call that started it.
pub async fn ensure(settings: &Settings, cancel: &CancellationToken) -> Result<bool> {
    if answers(&settings.state_dir).await? {
        return Ok(false);
    }
    match comes_up(&settings.state_dir, START_DEADLINE).await? {
        ComesUp::Serves => return Ok(false),
        ComesUp::Silent(pid) => {
            return Err(Failure::new(format!(
                "the daemon (process {}) runs, but does not listen",
                pid.as_raw_nonzero()
            ))
            .hint(format!("see {}", access::log_path(&settings.state_dir).display())));
        }
        // Perhaps it was just dying.
        ComesUp::Gone => {}
    }
    if !settings.is_root {
        return Err(Failure::new("no daemon runs, and only root may start one")
            .hint(format!("sudo gantry daemon start{}", settings.state_flag())));
    }
    if service::start(settings)? {
        return Ok(true);
    }
    match start(settings, cancel).await {
        Ok(()) => Ok(true),
        // Of two commands that start one at once, one loses.
        Err(failure) if cancel.is_cancelled() => Err(failure),
        Err(failure) => match comes_up(&settings.state_dir, START_DEADLINE).await? {
            ComesUp::Serves => Ok(false),
            ComesUp::Silent(_) | ComesUp::Gone => Err(failure),
        },
    }
}

/// How long a daemon that another command started may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(10);
/// Its readiness is told to its own starter alone; others ask again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What became of a daemon that somebody else started.
#[derive(Debug, PartialEq, Eq)]
enum ComesUp {
    Serves,
    /// It has the state folder, and did not answer in time.
    Silent(Pid),
    /// Nobody has the state folder: it has ended, as one does that was killed a moment ago, or there was none.
    Gone,
}

/// Waits for a daemon that somebody else is starting.
async fn comes_up(state_dir: &Path, within: Duration) -> Result<ComesUp> {
    let deadline = tokio::time::Instant::now() + within;
    while let Some(pid) = holder(state_dir)? {
        if answers(state_dir).await? {
            return Ok(ComesUp::Serves);
        }
        if tokio::time::Instant::now() >= deadline {
            return Ok(ComesUp::Silent(pid));
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
    Ok(ComesUp::Gone)
}

/// How long a daemon may take to say that it is well.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Whether a daemon serves this state folder. An open port says nothing: the proxy holds the daemon's sockets open
/// while no daemon runs, so that nobody is refused until the next one is there. One that was asked and then died never
/// answers, and is not waited for.
pub async fn answers(state_dir: &Path) -> Result<bool> {
    let Some(endpoints) = access::Endpoints::read(state_dir)? else { return Ok(false) };
    let sees_lock = rustix::process::geteuid().is_root();
    if sees_lock && holder(state_dir)?.is_none() {
        return Ok(false);
    }
    let Some(address) = endpoints.console_address() else { return Ok(false) };
    let answer = console::request(address, http::Method::GET, "/healthz", ANSWER_DEADLINE);
    let gone = async {
        while let Ok(Some(_)) = holder(state_dir) {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    };
    tokio::select! {
        answer = answer => Ok(answer.is_ok_and(|(status, _)| status.is_success())),
        () = gone, if sees_lock => Ok(false),
    }
}

/// Starts a daemon in a session of its own.
pub async fn start(settings: &Settings, cancel: &CancellationToken) -> Result<()> {
    let failed = |step: &str, error: io::Error| Failure::from_error(&error).context(step.to_owned());
    modes::make(&settings.state_dir).map_err(|error| Failure::from_error(&error).hint(error.hint()))?;
    let logs = settings.state_dir.join("logs");
    durable::create_dir_all(&logs).map_err(|error| failed("make the folder for logs", error))?;
    let crash = logs.join("daemon.stderr");
    let stderr =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(durable::FILE_MODE).open(&crash);
    let stderr = stderr.map_err(|error| failed("make the daemon's log", error))?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| failed("make a pipe", error.into()))?;
    let mut child = spawn(settings, stderr, write).map_err(|error| failed("start the daemon", error))?;
    let line = async {
        let mut line = String::new();
        let file = tokio::fs::File::from_std(fs::File::from(read));
        tokio::io::AsyncBufReadExt::read_line(&mut tokio::io::BufReader::new(file), &mut line)
            .await
            .map(|_| line)
    };
    let line = tokio::select! {
        line = line => line.map_err(|error| failed("wait for the daemon", error))?,
        () = cancel.cancelled() => {
            // Ours, and not reaped yet: the number is still its own.
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::interrupted("the starting daemon was stopped"));
        }
    };
    match serde_json::from_str(&line) {
        Ok(Started::Ready { .. }) => Ok(()),
        Ok(Started::Failed { error, hint }) => {
            let _ = child.wait();
            Err(Failure::new(format!("the daemon did not start: {error}")).hint(hint))
        }
        Err(_) => {
            let status = child.wait().map_or_else(|_| "it ended".to_owned(), |status| status.to_string());
            let said = [crash, access::log_path(&settings.state_dir)].iter().filter_map(tail).next();
            Err(Failure::new(format!("the daemon did not start ({status})"))
                .output(said.as_deref())
                .hint(format!("run it in the foreground: gantry daemon run{}", settings.state_flag())))
        }
    }
}

fn spawn(settings: &Settings, stderr: fs::File, ready: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("gantry")
        .args(["daemon", "run", "--state-dir"])
        .arg(&settings.state_dir)
        .env(READY_VARIABLE, READY_FD.to_string())
        .env_remove("GANTRY_KUBECONFIG")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(stderr.try_clone()?)
        .stderr(stderr);
    let prepare = move || {
        // Away from the terminal and its signals; nothing of the caller's stays open.
        rustix::process::setsid()?;
        if ready.as_raw_fd() == READY_FD {
            rustix::io::fcntl_setfd(&ready, rustix::io::FdFlags::empty())?;
        } else {
            // SAFETY: the child has one thread and is about to exec; whatever had this number is closed by that.
            let mut target = unsafe { rustix::fd::OwnedFd::from_raw_fd(READY_FD) };
            rustix::io::dup2(&ready, &mut target)?;
            std::mem::forget(target);
        }
        close_from(READY_FD + 1);
        Ok(())
    };
    use std::os::fd::FromRawFd as _;
    // SAFETY: between fork and exec only system calls are made, no memory is allocated and no lock is taken.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// Marks every descriptor from `first` on to be closed at exec; the pipe of `Command` itself must live until then.
fn close_from(first: i32) {
    // SAFETY: the call takes no pointer. Old kernels refuse it, and then close-on-exec is all there is.
    let _ = unsafe {
        nix::libc::syscall(nix::libc::SYS_close_range, first, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC)
    };
}

/// How a daemon's end came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    WasNotRunning,
    Ended,
}

/// Asks a daemon to end, and waits for it. Containers stay.
pub async fn stop(settings: &Settings, deadline: Duration) -> Result<Stopped> {
    end(settings, Signal::TERM, deadline).await
}

/// Kills a daemon that did not end when it was asked to.
pub async fn kill(settings: &Settings, deadline: Duration) -> Result<Stopped> {
    end(settings, Signal::KILL, deadline).await
}

async fn end(settings: &Settings, signal: Signal, deadline: Duration) -> Result<Stopped> {
    // What only died, systemd starts again; and one that it is about to start has no process yet.
    let by_systemd = settings.is_root && service::stop(settings, service::Wait::No)?;
    let stopped = end_process(settings, signal, deadline).await;
    if by_systemd && stopped.is_ok() {
        service::stop(settings, service::Wait::Yes)?;
    }
    stopped
}

async fn end_process(settings: &Settings, signal: Signal, deadline: Duration) -> Result<Stopped> {
    let Some(pid) = holder(&settings.state_dir)? else { return Ok(Stopped::WasNotRunning) };
    let failed = |step: &str, error: rustix::io::Errno| {
        let hint = (error == rustix::io::Errno::PERM)
            .then(|| format!("sudo gantry daemon stop{}", settings.state_flag()));
        Failure::from_error(&io::Error::from(error))
            .context(format!("{step} process {}", pid.as_raw_nonzero()))
            .hint(hint)
    };
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(Stopped::WasNotRunning),
        Err(error) => return Err(failed("find", error)),
    };
    // Only now, with the process held, does the number mean what the lock says.
    if holder(&settings.state_dir)? != Some(pid) {
        return Ok(Stopped::WasNotRunning);
    }
    rustix::process::pidfd_send_signal(&process, signal).map_err(|error| failed("signal", error))?;
    let ended = tokio::task::spawn_blocking(move || ended(&process, deadline)).await;
    match ended {
        Ok(Ok(true)) => Ok(Stopped::Ended),
        Ok(Ok(false)) => Err(Failure::new(format!(
            "the daemon (process {}) has not ended after {} s",
            pid.as_raw_nonzero(),
            deadline.as_secs()
        ))
        .hint(format!("see {}", access::log_path(&settings.state_dir).display()))),
        Ok(Err(error)) => Err(failed("wait for", error)),
        Err(error) => Err(Failure::from_error(&error)),
    }
}

/// Waits until a process has ended, or the deadline.
fn ended(process: &OwnedFd, deadline: Duration) -> std::result::Result<bool, rustix::io::Errno> {
    let timeout = Timespec::try_from(deadline).map_err(|_| rustix::io::Errno::INVAL)?;
    let mut wanted = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut wanted, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(|count| count > 0),
        }
    }
}

fn tail(path: &PathBuf) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    (!lines.is_empty()).then(|| lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_says_who_holds_it() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(holder(state.path()).unwrap(), None);
        fs::create_dir(state.path().join("run")).unwrap();
        let lock = durable::Lock::acquire(&access::lock_path(state.path())).unwrap();
        assert_eq!(holder(state.path()).unwrap(), Some(rustix::process::getpid()));
        drop(lock);
        assert_eq!(holder(state.path()).unwrap(), None);
    }

    #[tokio::test]
    async fn a_daemon_that_another_command_started_is_waited_for() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let state = tempfile::tempdir().unwrap();
        fs::create_dir(state.path().join("run")).unwrap();
        assert_eq!(comes_up(state.path(), START_DEADLINE).await.unwrap(), ComesUp::Gone, "nobody starts");
        let lock = durable::Lock::acquire(&access::lock_path(state.path())).unwrap();
        let silent = ComesUp::Silent(rustix::process::getpid());
        assert_eq!(comes_up(state.path(), Duration::ZERO).await.unwrap(), silent, "it has not listened yet");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let console = format!("http://{}", listener.local_addr().unwrap());
        let endpoints = access::Endpoints { console, ..access::Endpoints::default() };
        fs::write(state.path().join("endpoints.json"), serde_json::to_vec(&endpoints).unwrap()).unwrap();
        let daemon = async {
            // The first question is cut off, as by a daemon that is not ready.
            drop(listener.accept().await.unwrap());
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            stream
        };
        let (up, _stream) = tokio::join!(comes_up(state.path(), START_DEADLINE), daemon);
        assert_eq!(up.unwrap(), ComesUp::Serves);
        // One that was killed holds the lock a little longer than it answers.
        // Its socket stays open, as the proxy has it too: whoever asked is not told of the end.
        tokio::time::pause();
        let asked = tokio::time::Instant::now();
        let dies = async {
            let asking = listener.accept().await.unwrap();
            drop(lock);
            asking
        };
        let (up, _asking) = tokio::join!(comes_up(state.path(), START_DEADLINE), dies);
        assert_eq!(up.unwrap(), ComesUp::Gone);
        assert!(asked.elapsed() < ANSWER_DEADLINE, "the question was waited out");
    }

    #[test]
    fn what_a_daemon_says_is_json() {
        let failed = Started::Failed { error: "no".into(), hint: None };
        let text = serde_json::to_string(&failed).unwrap();
        assert_eq!(text, r#"{"failed":{"error":"no","hint":null}}"#);
        assert_eq!(serde_json::from_str::<Started>(&text).unwrap(), failed);
        let ready = Started::Ready { version: "0.1.0".into() };
        assert_eq!(serde_json::to_string(&ready).unwrap(), r#"{"ready":{"version":"0.1.0"}}"#);
    }
}
