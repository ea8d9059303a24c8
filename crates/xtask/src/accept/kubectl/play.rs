//! Plays steps: bash, in a folder with the files of `tests/kubectl/files` and a new `tls.key`, with `kubectl` in front of its PATH.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::script::{During, Said, Step};
use crate::sandbox::output_within;

/// Longest that a step may take, without its repetitions.
const STEP_SECONDS_MAX: u64 = 90;
/// Pieces of output that wait to be read.
const PIECES_MAX: usize = 256;
/// Between two attempts of a step that may be repeated.
const AGAIN: Duration = Duration::from_millis(200);

/// Where steps are played.
#[derive(Clone)]
pub(super) struct Stage {
    folder: PathBuf,
    path: std::ffi::OsString,
    kubeconfig: PathBuf,
    files: PathBuf,
    variables: Vec<(String, String)>,
}

impl Stage {
    pub(super) fn new(
        folder: PathBuf,
        kubectl: &Path,
        kubeconfig: &Path,
        root: &Path,
        variables: Vec<(String, String)>,
    ) -> Result<Self> {
        let mut folders = vec![kubectl.parent().context("kubectl stands in no folder")?.to_owned()];
        folders.extend(std::env::split_paths(&std::env::var_os("PATH").context("PATH is not set")?));
        let path = std::env::join_paths(folders)?;
        let files = root.join("tests/kubectl/files");
        Ok(Self { folder, path, kubeconfig: kubeconfig.to_owned(), files, variables })
    }

    /// A folder and a namespace for one script.
    pub(super) fn for_script(&self, name: &str) -> Result<Self> {
        let mut stage = self.clone();
        stage.folder = self.folder.join(name);
        crate::demo::copy(&self.files, &stage.folder)?;
        let pair = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).context("make a key")?;
        std::fs::write(stage.folder.join("tls.crt"), pair.cert.pem())?;
        std::fs::write(stage.folder.join("tls.key"), pair.signing_key.serialize_pem())?;
        stage.kubeconfig = stage.folder.join("kubeconfig");
        std::fs::copy(&self.kubeconfig, &stage.kubeconfig).context("copy the kubeconfig")?;
        let set = format!(
            "kubectl create namespace {name} && kubectl config set-context --current --namespace {name}"
        );
        let output = output_within(stage.bash(&set), STEP_SECONDS_MAX)?;
        ensure!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(stage)
    }

    /// Plays a step; the error tells every fault and what was said.
    pub(super) fn play(&mut self, step: &Step) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(step.within.unwrap_or_default());
        loop {
            let said = match &step.during {
                None => self.simple(&step.run)?,
                Some(during) => self.followed(&step.run, during)?,
            };
            let faults = step.faults(&said);
            if faults.is_empty() {
                if let Some(name) = &step.save {
                    self.variables.push((name.clone(), said.out.trim_end().to_owned()));
                }
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("{}\nout: {}\nerr: {}", faults.join("\n"), said.out.trim_end(), said.err.trim_end());
            }
            std::thread::sleep(AGAIN);
        }
    }

    fn bash(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        command
            .args(["-o", "pipefail", "-c", line])
            .current_dir(&self.folder)
            .env("PATH", &self.path)
            .env("KUBECONFIG", &self.kubeconfig)
            // kubectl keeps what it discovered below it.
            .env("HOME", &self.folder)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    fn simple(&self, line: &str) -> Result<Said> {
        let output = output_within(self.bash(line), STEP_SECONDS_MAX)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) })
    }

    fn followed(&self, line: &str, during: &During) -> Result<Said> {
        let mut command = self.bash(line);
        // A group of its own, so that an interrupt reaches whatever bash started.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("start bash")?;
        let group = Pid::from_raw(i32::try_from(child.id())?);
        let out = pieces(child.stdout.take().context("no standard output")?);
        let err = pieces(child.stderr.take().context("no standard error")?);
        let deadline = Instant::now() + Duration::from_secs(STEP_SECONDS_MAX);
        let mut said = String::new();
        let result = (|| {
            hear(&out, &mut said, deadline, |text| during.when.matches(text))?;
            if let Some(then) = &during.then {
                let meanwhile = self.simple(then)?;
                ensure!(meanwhile.code == Some(0), "{then}: {}{}", meanwhile.out, meanwhile.err);
            }
            match &during.until {
                Some(until) => hear(&out, &mut said, deadline, |text| until.matches(text)),
                None => hear(&out, &mut said, deadline, |_| false),
            }
        })();
        let endless = during.until.is_some() || result.is_err();
        if endless {
            killpg(group, Signal::SIGTERM).context("interrupt the step")?;
        }
        let status = child.wait().context("wait for bash")?;
        let mut complaints = String::new();
        hear(&err, &mut complaints, deadline, |_| false)?;
        result.with_context(|| format!("out: {said}\nerr: {complaints}"))?;
        Ok(Said { code: status.code(), out: said, err: complaints })
    }
}

/// What comes out of a pipe, as it comes; the channel closes with it. The reader ends with the pipe.
fn pieces(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(PIECES_MAX);
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            if sender.send(piece[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Adds what comes to `said`, until it is `enough` or the other side has ended.
fn hear(
    pieces: &Receiver<Vec<u8>>,
    said: &mut String,
    deadline: Instant,
    enough: impl Fn(&str) -> bool,
) -> Result<()> {
    while !enough(said) {
        match pieces.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(piece) => said.push_str(&String::from_utf8_lossy(&piece)),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => bail!("nothing of what was waited for in {STEP_SECONDS_MAX} s"),
        }
    }
    Ok(())
}
