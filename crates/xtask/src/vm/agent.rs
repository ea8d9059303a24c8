//! Inside the machine: runs what the host asks for, one command at a time, and sends back what it says.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};

use super::frame::{Frame, Request};

/// The name of the virtio-serial port.
pub(super) const PORT: &str = "gantry";
const PORTS: &str = "/sys/class/virtio-ports";

/// Serves until the host is gone.
pub(super) fn run() -> Result<()> {
    let port = File::options().read(true).write(true).open(port()?).context("open the port to the host")?;
    let out = Mutex::new(port.try_clone()?);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    send(&out, &Frame::Hello(release))?;
    let mut input = port;
    while let Some(frame) = Frame::read(&mut input)? {
        let Frame::Run(request) = frame else { bail!("the host sent {frame:?}") };
        let code = serve(&request, &out).or_else(|error| {
            send(&out, &Frame::Error(format!("error: {error:#}\n").into_bytes())).map(|()| 127)
        })?;
        send(&out, &Frame::Exit(code))?;
    }
    Ok(())
}

fn port() -> Result<PathBuf> {
    for entry in std::fs::read_dir(PORTS).with_context(|| format!("list {PORTS}"))? {
        let entry = entry?;
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == PORT {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    bail!("no virtio port has the name {PORT}")
}

fn serve(request: &Request, out: &Mutex<File>) -> Result<i32> {
    let (program, arguments) = request.command.split_first().context("an empty command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(request.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let running = [
            stdout.map(|pipe| scope.spawn(move || copy(pipe, out, Frame::Output))),
            stderr.map(|pipe| scope.spawn(move || copy(pipe, out, Frame::Error))),
        ];
        let status = child.wait().context("wait for the command")?;
        for copier in running.into_iter().flatten() {
            copier.join().map_err(|_| anyhow::anyhow!("a copier panicked"))??;
        }
        let signal = || status.signal().map(|signal| 128 + signal);
        status.code().or_else(signal).context("the command neither exited nor was killed")
    })
}

fn copy(mut from: impl Read, out: &Mutex<File>, frame: fn(Vec<u8>) -> Frame) -> Result<()> {
    let mut bytes = vec![0; 32 << 10];
    loop {
        match from.read(&mut bytes)? {
            0 => return Ok(()),
            count => send(out, &frame(bytes[..count].to_vec()))?,
        }
    }
}

fn send(out: &Mutex<File>, frame: &Frame) -> Result<()> {
    frame.write(&mut *out.lock().unwrap_or_else(PoisonError::into_inner))
}
