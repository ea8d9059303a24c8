//! A running machine: QEMU, its disks, and the agent inside.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::agent::PORT;
use super::frame::{Frame, Request};
use super::image::Image;
use super::nbd::Server;

/// Without hardware for it, and on a machine that has other work, a boot is slow.
const BOOT: Duration = Duration::from_secs(600);
const MEMORY_MIB: u32 = 1536;
/// Lines of the console that explain a machine that did not start.
const CONSOLE_LINES: usize = 60;

/// Who executes the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    /// QEMU's own translator.
    Tcg,
}

impl Accelerator {
    /// KVM where processors do it. A KVM without them (PVM, which cloud machines have) executes a kernel that does not
    /// know it one instruction at a time, which is far slower than QEMU's translator.
    pub(super) fn detect() -> Self {
        let module = |name: &str| Path::new("/sys/module").join(name).exists();
        let is_open = || std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
        if (module("kvm_intel") || module("kvm_amd")) && is_open() { Self::Kvm } else { Self::Tcg }
    }

    fn arguments(self) -> [&'static str; 6] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host", "-smp", "2"],
            // With two, translated, both were seen to wait for one another in the guest's kernel, for good.
            Self::Tcg => ["-accel", "tcg", "-cpu", "Nehalem", "-smp", "1"],
        }
    }
}

/// The disk that the machine writes to.
pub(super) enum State<'a> {
    /// A file; what is written need never reach it.
    Scratch(&'a Path),
    /// A disk with a cache of its own, which loses it and fails as told.
    Served(&'a Server),
}

/// What a machine is made of.
pub(super) struct Parts<'a> {
    pub(super) image: &'a Image,
    /// The beginning of a kernel's release; the oldest when there is no wish.
    pub(super) kernel: Option<&'a str>,
    /// Read-only disks, by serial.
    pub(super) disks: Vec<(&'static str, PathBuf)>,
    pub(super) state: State<'a>,
    /// A raw disk that keeps what was written to it, whatever happens to the machine.
    pub(super) journal: Option<(&'static str, &'a Path)>,
}

/// A machine, up. Dropped, it is off at once.
pub(super) struct Machine {
    qemu: Child,
    agent: UnixStream,
    console: PathBuf,
    /// The kernel that runs.
    pub(super) release: String,
    _folder: tempfile::TempDir,
}

impl Machine {
    pub(super) fn boot(parts: &Parts) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("gantry-vm-").tempdir()?;
        let socket = folder.path().join("agent");
        let listener = UnixListener::bind(&socket).context("make the agent's socket")?;
        let console = folder.path().join("console");
        let kernel = parts.image.kernel(parts.kernel)?;
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35", "-m", &MEMORY_MIB.to_string()])
            .args(Accelerator::detect().arguments())
            .args(["-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&kernel.initrd)
            .args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off systemd.show_status=false"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-device", "virtio-rng-pci", "-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=agent,path={}", socket.display())])
            .args(["-device", &format!("virtserialport,chardev=agent,name={PORT}")]);
        attach(&mut command, parts);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let parent = rustix::process::getpid();
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || {
                // The machine ends with whoever started it, however that ends.
                let kill = Some(rustix::process::Signal::KILL);
                rustix::process::set_parent_process_death_signal(kill)?;
                match rustix::process::getppid() {
                    Some(now) if now == parent => Ok(()),
                    _ => Err(std::io::Error::other("the parent has ended")),
                }
            })
        };
        let qemu =
            command.spawn().context("start qemu-system-x86_64: is it installed? run scripts/setup.sh vm")?;
        let (qemu, agent) = accept(&listener, qemu)?;
        let mut machine = Self { qemu, agent, console, release: String::new(), _folder: folder };
        match machine.hello() {
            Ok(release) => machine.release = release,
            Err(error) => bail!("the machine did not start: {error:#}\n{}", machine.console()),
        }
        Ok(machine)
    }

    fn hello(&mut self) -> Result<String> {
        self.agent.set_read_timeout(Some(BOOT))?;
        match Frame::read(&mut self.agent)? {
            Some(Frame::Hello(release)) => Ok(release),
            other => bail!("the agent said {other:?}"),
        }
    }

    /// The last lines of the console.
    pub(super) fn console(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }

    /// Starts a command; what becomes of it, [`Self::next`] tells.
    pub(super) fn start(&mut self, command: &[&str], environment: &[(&str, &str)]) -> Result<()> {
        let request = Request {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        };
        Frame::Run(request).write(&mut self.agent)
    }

    /// What the agent says next; `None`: the machine is off.
    pub(super) fn next(&mut self, within: Duration) -> Result<Option<Frame>> {
        self.agent.set_read_timeout(Some(within))?;
        Frame::read(&mut self.agent)
    }

    /// Runs a command to its end and passes on what it writes; its exit code.
    pub(super) fn run(
        &mut self,
        command: &[&str],
        within: Duration,
        mut output: impl FnMut(&[u8]),
    ) -> Result<i32> {
        self.start(command, &[])?;
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "{command:?} did not end within {within:?}");
            match self.next(left).with_context(|| format!("run {command:?}: {}", self.console()))? {
                Some(Frame::Output(bytes) | Frame::Error(bytes)) => output(&bytes),
                Some(Frame::Exit(code)) => return Ok(code),
                other => bail!("while {command:?} ran, the agent said {other:?}: {}", self.console()),
            }
        }
    }

    /// Runs a command that has to succeed; what it wrote.
    pub(super) fn ok(&mut self, command: &[&str], within: Duration) -> Result<String> {
        let mut said = Vec::new();
        let code = self.run(command, within, |bytes| said.extend_from_slice(bytes))?;
        let said = String::from_utf8_lossy(&said).into_owned();
        ensure!(code == 0, "{command:?} in the machine: exit code {code}: {}", said.trim());
        Ok(said)
    }

    /// Asks the system to go down in order, and waits until the machine is off.
    pub(super) fn power_off(self) -> Result<()> {
        self.go_down("poweroff")
    }

    /// The same for a reboot: QEMU ends where the machine would start again.
    pub(super) fn reboot(self) -> Result<()> {
        self.go_down("reboot")
    }

    fn go_down(mut self, how: &str) -> Result<()> {
        // Not by logind, which this machine does without.
        let target = format!("{how}.target");
        self.start(&["systemctl", "start", "--no-block", "--job-mode=replace-irreversibly", &target], &[])?;
        while let Some(frame) = self.next(BOOT)? {
            if let Frame::Error(bytes) = frame {
                crate::say(String::from_utf8_lossy(&bytes).trim_end());
            }
        }
        let status = self.qemu.wait()?;
        ensure!(status.success(), "qemu: {status}");
        Ok(())
    }

    /// The power goes.
    pub(super) fn cut(mut self) -> Result<()> {
        self.qemu.kill()?;
        self.qemu.wait().context("wait for qemu").map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may be off already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Waits until QEMU has connected, which it does before the machine runs.
fn accept(listener: &UnixListener, mut qemu: Child) -> Result<(Child, UnixStream)> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok((qemu, stream));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("wait for qemu"),
        }
        if let Some(status) = qemu.try_wait()? {
            let mut said = String::new();
            if let Some(mut pipe) = qemu.stderr.take() {
                std::io::Read::read_to_string(&mut pipe, &mut said)?;
            }
            bail!("qemu ended: {status}: {}", said.trim());
        }
        if Instant::now() > deadline {
            let _ = qemu.kill();
            bail!("qemu does not start its machine");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn attach(command: &mut Command, parts: &Parts) {
    let mut disk = |serial: &str, blockdev: String| {
        command.args(["-blockdev", &format!("{blockdev},node-name={serial}")]);
        command.args(["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
    };
    let file = |path: &Path, rest: &str| {
        format!("driver=raw,file.driver=file,file.filename={}{rest}", path.display())
    };
    disk("root", file(&parts.image.root(), ",read-only=on"));
    for (serial, path) in &parts.disks {
        disk(serial, file(path, ",read-only=on"));
    }
    match parts.state {
        // Nobody reads it after the machine: a flush may do nothing.
        State::Scratch(path) => disk("state", file(path, ",cache.no-flush=on")),
        State::Served(server) => {
            let socket = server.socket().display();
            disk(
                "state",
                format!("driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={socket}"),
            );
        }
    }
    if let Some((serial, path)) = parts.journal {
        disk(serial, file(path, ""));
    }
}

/// Passes a command's output on as it comes.
pub(super) fn pass_on(bytes: &[u8]) {
    // A closed pipe ends the task soon enough.
    let _ = std::io::stderr().write_all(bytes);
}
