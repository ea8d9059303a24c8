//! The Go toolchain as a child process: found, started, cancelled, its output bounded.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio_util::sync::CancellationToken;

/// Bytes of each output stream that are kept; what a compiler says beyond that helps nobody.
const OUTPUT_BYTES_MAX: usize = 4 << 20;

/// Called with each line that the toolchain writes to stderr while it works (`go: downloading …`).
pub type Progress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Where the toolchain is and where it runs.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The `go` command.
    pub command: PathBuf,
    /// The folder that relative targets and import paths without a version are seen from.
    pub folder: PathBuf,
}

/// What a `go` command gave.
#[derive(Debug)]
pub(crate) struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

/// Why a `go` command gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no Go toolchain on this machine (looked for `go` in PATH and in /usr/local/go/bin)")]
    NotFound,
    #[error("start {command}")]
    Start { command: PathBuf, source: io::Error },
    #[error("read the output of {command}")]
    Read { command: PathBuf, source: io::Error },
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound => Some(
                "install Go (Debian: apt-get install golang-go; or https://go.dev/dl) and see that `go version` works"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}

impl Toolchain {
    /// Finds `go` in a PATH-like list and then where Go's own installer puts it (sudo drops that from PATH).
    pub fn find(path: Option<&OsStr>, folder: PathBuf) -> Result<Self, Error> {
        let listed = path.map(std::env::split_paths).into_iter().flatten();
        let usual = ["/usr/local/go/bin", "/usr/lib/go/bin", "/snap/bin"].map(PathBuf::from);
        listed
            .chain(usual)
            .map(|folder| folder.join("go"))
            .find(|candidate| is_executable(candidate))
            .map(|command| Self { command, folder })
            .ok_or(Error::NotFound)
    }

    /// The executable.
    pub fn command(&self) -> &Path {
        &self.command
    }

    /// Runs `go` to its end; the child and all that it started are killed on cancellation.
    pub(crate) async fn run(
        &self,
        folder: &Path,
        arguments: &[OsString],
        variables: &[(&str, OsString)],
        cancel: &CancellationToken,
        progress: Progress<'_>,
    ) -> Result<Output, Error> {
        let mut command = tokio::process::Command::new(&self.command);
        command
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that compilers and linkers end with it.
            .process_group(0)
            .kill_on_drop(true);
        // Go takes the logical folder from PWD, which would otherwise be ours.
        command.env("PWD", folder);
        for (name, value) in variables {
            command.env(name, value);
        }
        tracing::debug!(?arguments, folder = %folder.display(), "go");
        let start = |source| Error::Start { command: self.command.clone(), source };
        let read = |source| Error::Read { command: self.command.clone(), source };
        let mut child = command.spawn().map_err(start)?;
        let group = Group(child.id());
        let stdout = child.stdout.take().ok_or_else(|| read(io::ErrorKind::BrokenPipe.into()))?;
        let stderr = child.stderr.take().ok_or_else(|| read(io::ErrorKind::BrokenPipe.into()))?;
        let finished = async {
            let (stdout, stderr) = tokio::try_join!(keep(stdout), keep_lines(stderr, progress))?;
            Ok((child.wait().await?, stdout, stderr))
        };
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Error::Cancelled),
            result = finished => result,
        };
        let (status, stdout, stderr) = result.map_err(read)?;
        group.finished();
        Ok(Output { status, stdout, stderr })
    }
}

/// The child's process group, killed unless it is known to have ended.
struct Group(Option<u32>);

impl Group {
    fn finished(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed()));
        if let Some(pid) = pid {
            // An error means that the group is gone already.
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
    }
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

async fn keep(mut stream: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    (&mut stream).take(OUTPUT_BYTES_MAX as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await?;
    Ok(kept)
}

async fn keep_lines(stream: impl AsyncRead + Unpin, progress: Progress<'_>) -> io::Result<String> {
    let mut lines = BufReader::new(stream).split(b'\n');
    let mut kept = String::new();
    while let Some(line) = lines.next_segment().await? {
        let line = String::from_utf8_lossy(&line);
        progress(&line);
        if kept.len() + line.len() < OUTPUT_BYTES_MAX {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_go_is_told_how_to_get_it() {
        let empty = tempfile::tempdir().unwrap();
        let found = Toolchain::find(Some(empty.path().as_os_str()), empty.path().into());
        if let Err(error) = found {
            assert!(error.hint().unwrap().contains("install Go"));
        }
    }

    #[tokio::test]
    async fn cancelling_ends_the_child() {
        let folder = tempfile::tempdir().unwrap();
        let shell = Toolchain { command: "/bin/sh".into(), folder: folder.path().into() };
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let on_line = move |_: &str| stop.cancel();
        let arguments = ["-c", "echo started >&2; exec sleep 1000"].map(OsString::from);
        let result = shell.run(folder.path(), &arguments, &[], &cancel, &on_line).await;
        assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    }
}
