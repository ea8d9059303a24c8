//! The daemon's side of `run/daemon.sock`: see [`crate::control`].

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lifecycle::Scope;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::backup::Snapshots;
use super::state::State;
use crate::access;
use crate::control::{Answer, Ask, LINE_BYTES_MAX};
use crate::format::Agreed;

/// How long a client may take to say what it wants.
const ASK_WITHIN: Duration = Duration::from_secs(5);
/// How long a command may take to copy a snapshot: until then nobody else gets one.
const COPIED_WITHIN: Duration = Duration::from_secs(3600);
/// Connections at a time: commands of one root user.
const CONNECTIONS_MAX: u64 = 16;

/// The daemon is to be replaced: by whom, and who is told how it went.
pub struct Replacement {
    pub binary: PathBuf,
    pub within: Duration,
    pub asker: std::os::unix::net::UnixStream,
}

/// What requests are answered with.
pub struct Doors {
    pub state: State,
    pub format: Agreed,
    pub snapshots: Snapshots,
    /// Takes one: then the daemon ends.
    pub replace: mpsc::Sender<Replacement>,
}

/// Serves the socket until the scope ends.
pub fn serve(doors: Doors, scope: &Scope) -> Result<()> {
    let path = crate::control::path(&doors.state.dir);
    let listener = listen(&path).with_context(|| format!("listen on {}", path.display()))?;
    let bound = lifecycle::bound::Bound::new("control_connections", CONNECTIONS_MAX);
    let (doors, inner) = (std::sync::Arc::new(doors), scope.clone());
    scope.spawn("control", async move {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: others end meanwhile.
                    tracing::warn!(%error, "accept a command");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // The socket's mode says so already; what it is worth is said twice.
            let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
            let Some(permit) = bound.acquire(1).filter(|_| is_root) else { continue };
            let doors = std::sync::Arc::clone(&doors);
            inner.spawn("control connection", async move {
                let _permit = permit;
                if let Err(error) = doors.answer(stream).await {
                    tracing::debug!(%error, "answer a command");
                }
            });
        }
    });
    Ok(())
}

/// Only the owner of the state folder's lock comes here, so what is at the path is a dead daemon's.
fn listen(path: &std::path::Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let (_open, short) = ::proxy::handover::short(path)?;
    let listener = UnixListener::bind(&short)?;
    std::fs::set_permissions(&short, PermissionsExt::from_mode(0o600))?;
    Ok(listener)
}

impl Doors {
    async fn answer(&self, mut stream: UnixStream) -> io::Result<()> {
        let mut line = String::new();
        let reading = async {
            BufReader::new((&mut stream).take(LINE_BYTES_MAX)).read_line(&mut line).await?;
            serde_json::from_str::<Ask>(&line).map_err(io::Error::other)
        };
        match tokio::time::timeout(ASK_WITHIN, reading).await?? {
            Ask::Upgrade { within_ms } => {
                let binary = access::staged_binary(&self.state.dir);
                if !binary.exists() {
                    let error = format!("there is no {}", binary.display());
                    return say(&mut stream, &Answer::Refused { error, hint: None }).await;
                }
                self.replace(stream, binary, within_ms).await
            }
            Ask::Finish { within_ms } => match self.format.finish(&self.state.dir) {
                Ok(true) => self.replace(stream, PathBuf::from("/proc/self/exe"), within_ms).await,
                Ok(false) => {
                    let why = format!("format {} is the newest that this release knows", self.format.in_use);
                    say(&mut stream, &Answer::Nothing { why }).await
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    say(&mut stream, &Answer::Refused { error, hint: None }).await
                }
            },
            Ask::Snapshot => self.snapshot(stream).await,
            Ask::Unknown => {
                let error = "this daemon does not know that request".to_owned();
                let hint = Some("is the command of a newer release? gantry daemon status".to_owned());
                say(&mut stream, &Answer::Refused { error, hint }).await
            }
        }
    }

    /// Lays out a snapshot, and keeps it while the command copies it.
    async fn snapshot(&self, mut stream: UnixStream) -> io::Result<()> {
        let taken = tokio::select! {
            taken = self.snapshots.take() => taken,
            // Whoever has gone waits for nothing, and keeps no other from waiting. Nobody says more than he has asked.
            _ = stream.readable() => return Ok(()),
        };
        match taken {
            Ok(snapshot) => {
                let folder = snapshot.folder().to_owned();
                say(&mut stream, &Answer::Snapshot { folder }).await?;
                // The folder goes with `snapshot`, when the command has copied it, has died, or takes for ever.
                let _ = tokio::time::timeout(COPIED_WITHIN, stream.read(&mut [0; 1])).await;
                Ok(())
            }
            Err(error) => {
                let hint = super::backup::hint(&error);
                let error = format!("{error:#}");
                say(&mut stream, &Answer::Refused { error, hint }).await
            }
        }
    }

    async fn replace(&self, mut stream: UnixStream, binary: PathBuf, within_ms: u64) -> io::Result<()> {
        let Ok(place) = self.replace.try_reserve() else {
            let error = "the daemon is being replaced already".to_owned();
            return say(&mut stream, &Answer::Refused { error, hint: None }).await;
        };
        say(&mut stream, &Answer::Began).await?;
        let asker = stream.into_std()?;
        asker.set_nonblocking(false)?;
        place.send(Replacement { binary, within: Duration::from_millis(within_ms), asker });
        Ok(())
    }
}

async fn say(stream: &mut UnixStream, answer: &Answer) -> io::Result<()> {
    let mut line = Vec::new();
    crate::control::write_line(&mut line, answer)?;
    stream.write_all(&line).await
}
