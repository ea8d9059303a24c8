//! `gantry daemon upgrade`: another binary takes over daemon and proxy; programs do not notice.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{
    context::Context,
    control::{Answer, Ask, Connection, PROTOCOL},
    failure::{Failure, Result},
    launch,
    version::VERSION,
};

/// How long a binary may take to say what it is.
const SAY_WITHIN: Duration = Duration::from_secs(30);
/// What the old daemon is given to end and, if the new one does not start, to start again.
const OLD_WITHIN: Duration = Duration::from_secs(180);
/// Of what a binary says about itself.
const SAID_BYTES_MAX: u64 = 64 * 1024;

#[derive(Clone, Debug, clap::Args)]
pub struct Upgrade {
    /// The gantry to upgrade to [default: the one that runs this command]
    binary: Option<PathBuf>,
    /// Write the newest format from now on; the release before cannot open the state folder then
    #[arg(long, conflicts_with = "binary")]
    finish: bool,
    /// How long the new daemon may take to serve before the old one is started again
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = super::super::duration)]
    within: Duration,
}

/// What `gantry version -o json` says about taking over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Of [`crate::control`].
    pub protocol: u32,
    pub format_oldest: u32,
    pub format_newest: u32,
}

impl About {
    /// This binary's.
    pub fn own() -> Self {
        Self {
            protocol: PROTOCOL,
            format_oldest: crate::format::oldest(),
            format_newest: crate::format::newest(crate::format::STEPS),
        }
    }
}

#[derive(Deserialize)]
struct Said {
    version: String,
    #[serde(default)]
    upgrade: Option<About>,
}

pub fn upgrade(context: &Context, args: &Upgrade) -> Result<ExitCode> {
    super::root(context, "upgrade")?;
    let state_dir = &context.settings.state_dir;
    if launch::holder(state_dir)?.is_none() {
        return Err(Failure::new(format!("no daemon runs in {}", state_dir.display())).hint(format!(
            "start it with the new binary: gantry daemon start{}",
            context.settings.state_flag()
        )));
    }
    let started = Instant::now();
    let within_ms = args.within.as_millis() as u64;
    let ask = if args.finish {
        Ask::Finish { within_ms }
    } else {
        let binary = args.binary.clone().unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
        context.printer.progress("looking at the new binary");
        stage(context, &binary)?;
        Ask::Upgrade { within_ms }
    };
    context.printer.progress("waiting for the new daemon");
    let before = crate::access::Endpoints::read(state_dir)?.unwrap_or_default().version;
    let before = if before.is_empty() { "an older release".to_owned() } else { before };
    let asked = Connection::ask(state_dir, &ask);
    let mut connection = asked.map_err(|error| no_door(context, &error))?;
    loop {
        let answer = connection.answer(args.within + OLD_WITHIN);
        let answer = answer
            .map_err(|error| Failure::from_error(&error).context("hear how it went").hint(status(context)))?;
        match answer {
            Some(Answer::Began) => {}
            Some(Answer::Replaced { version }) => {
                let facts = format!("daemon and proxy from {before} to {version}");
                let word = if args.finish { "Finished" } else { "Upgraded" };
                context.printer.step(word, &facts, Some(started.elapsed()));
                return Ok(ExitCode::SUCCESS);
            }
            Some(Answer::WentBack { error }) => {
                return Err(Failure::new(format!(
                    "the new daemon did not start, and the old one serves again: {error}"
                ))
                .hint(format!("see {}", crate::access::log_path(state_dir).display())));
            }
            Some(Answer::Down { error }) => {
                return Err(Failure::new(format!("no daemon runs: the new one did not start: {error}"))
                    .hint(format!("sudo gantry daemon start{}", context.settings.state_flag())));
            }
            Some(Answer::Refused { error, hint }) => return Err(Failure::new(error).hint(hint)),
            Some(Answer::Nothing { why }) => {
                context.printer.note(why);
                return Ok(ExitCode::SUCCESS);
            }
            Some(Answer::Snapshot { .. }) | None => {
                return Err(Failure::new("the daemon ended without saying how it went").hint(status(context)));
            }
        }
    }
}

fn status(context: &Context) -> String {
    format!("see what runs: gantry daemon status{}", context.settings.state_flag())
}

/// Why a daemon cannot be asked.
pub fn no_door(context: &Context, error: &io::Error) -> Failure {
    let flag = context.settings.state_flag();
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::new("the daemon that runs is of a release that cannot be asked for this").hint(format!(
                "start it with this binary; programs and their ports stay: gantry daemon stop{flag} && gantry daemon start{flag}"
            ))
        }
        _ => Failure::from_error(error).context("ask the daemon").hint(status(context)),
    }
}

/// Copies the binary into the state folder, where it stays whatever becomes of the file, and has it say what it is.
/// When it cannot take over, nothing was changed.
fn stage(context: &Context, binary: &Path) -> Result<()> {
    let state_dir = &context.settings.state_dir;
    let shown = std::fs::read_link(binary).unwrap_or_else(|_| binary.to_owned());
    let staged = crate::access::staged_binary(state_dir);
    copy(binary, &staged).map_err(|error| copy_failed(context, &shown, &error))?;
    let checked = ask(&staged).and_then(|said| suits(&said, &About::own(), state_dir));
    if checked.is_err() {
        let _ = durable::remove(&staged);
    }
    checked.map_err(|failure| failure.context(shown.display()))
}

fn copy_failed(context: &Context, binary: &Path, error: &io::Error) -> Failure {
    let failure = Failure::from_error(error).context(format!(
        "copy {} into {}",
        binary.display(),
        context.settings.state_dir.display()
    ));
    match error.kind() {
        io::ErrorKind::StorageFull => {
            failure.hint("free space there; the daemon that runs is as it was".to_owned())
        }
        _ => failure.hint("name the new binary: gantry daemon upgrade BINARY".to_owned()),
    }
}

/// Copies an executable, durably.
pub fn copy(binary: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().unwrap_or(Path::new("/"));
    durable::create_dir_all_with_mode(folder, 0o700)?;
    let mut file = File::open(binary)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut staged = durable::Staged::with_mode(folder, 0o700)?;
    io::copy(&mut file, &mut staged)?;
    staged.commit(to)
}

/// Whether the kernel itself runs the file. What it does not know, the C library would give to a shell, line by line.
fn is_program(binary: &Path) -> io::Result<bool> {
    let mut magic = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(binary)?, 4), &mut magic)?;
    Ok(magic == *b"\x7fELF" || magic.starts_with(b"#!"))
}

/// What a binary says about itself.
fn ask(binary: &Path) -> Result<Said> {
    if !is_program(binary).map_err(|error| Failure::from_error(&error).context("look at it"))? {
        return Err(Failure::new("it is no program")
            .hint("name a gantry binary for this machine: BINARY version -o json".to_owned()));
    }
    let mut child = std::process::Command::new(binary)
        .args(["version", "-o", "json"])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Failure::from_error(&error).context("it cannot be run"))?;
    let read = child.stdout.take().map(std::os::fd::OwnedFd::from);
    let text = read.map(|read| read_within(File::from(read), SAY_WITHIN));
    let _ = child.kill();
    let _ = child.wait();
    let none = || {
        Failure::new("it is no gantry: it does not say which version it is")
            .hint("name a gantry binary for this machine: BINARY version -o json".to_owned())
    };
    match text {
        Some(Ok(text)) => serde_json::from_slice(&text).map_err(|_| none()),
        _ => Err(none()),
    }
}

/// All that comes until the end, within a time and a size.
fn read_within(file: File, within: Duration) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let (done, text) = std::sync::mpsc::channel();
    std::thread::Builder::new().name("binary".to_owned()).spawn(move || {
        let mut text = Vec::new();
        let read = file.take(SAID_BYTES_MAX).read_to_end(&mut text);
        // Nobody waits for it after the deadline; the pipe ends with the process.
        let _ = done.send(read.map(|_| text));
    })?;
    text.recv_timeout(within).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Whether that binary can take over a state folder from this release.
fn suits(said: &Said, own: &About, state_dir: &Path) -> Result<()> {
    let Some(about) = &said.upgrade else {
        return Err(Failure::new(format!(
            "gantry {} cannot take over from a daemon that runs",
            said.version
        ))
        .hint("stop the daemon, then start it with that binary; programs and their ports stay".to_owned()));
    };
    if about.protocol != own.protocol {
        let (theirs, ours) = (about.protocol, own.protocol);
        return Err(Failure::new(format!(
            "gantry {} hands over by protocol {theirs}, and gantry {VERSION} by {ours}",
            said.version
        ))
        .hint("stop the daemon, then start it with that binary; programs and their ports stay".to_owned()));
    }
    let format = crate::format::in_use(state_dir)
        .map_err(|error| Failure::from(error).context("look at the state folder"))?;
    if !(about.format_oldest..=about.format_newest).contains(&format) {
        return Err(Failure::new(format!(
            "gantry {} reads formats {} to {}, and the state folder has format {format}",
            said.version, about.format_oldest, about.format_newest
        ))
        .hint("use a newer release, or restore a backup: gantry daemon restore FILE".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("binary");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        path
    }

    #[test]
    fn only_a_gantry_that_can_take_over_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let verdict = |text: &str| {
            let said = ask(&script(dir.path(), text))?;
            suits(&said, &About { protocol: 1, format_oldest: 1, format_newest: 1 }, dir.path())
        };
        let says = |json: &str| format!("#!/bin/sh\necho '{json}'\n");
        let about = |protocol: u32, oldest: u32, newest: u32| {
            says(&format!(
                r#"{{"version":"9.0.0","upgrade":{{"protocol":{protocol},"format_oldest":{oldest},"format_newest":{newest}}}}}"#
            ))
        };
        verdict(&about(1, 1, 3)).unwrap();
        let refused = |text: &str| verdict(text).unwrap_err().to_string();
        assert!(refused("#!/bin/sh\nexit 1\n").contains("no gantry"));
        assert!(refused("touch here; no program at all").contains("no program"));
        assert!(refused(&says(r#"{"version":"0.0.1"}"#)).contains("cannot take over"));
        assert!(refused(&about(2, 1, 1)).contains("protocol 2"));
        assert!(refused(&about(1, 2, 3)).contains("has format 1"));
    }
}
