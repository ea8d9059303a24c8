//! A gantry of its own for a test: a state folder in a temporary place, in a network namespace with loopback only.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::disk::Disk;

/// Longest that a command may take.
const COMMAND_SECONDS_MAX: u64 = 180;

/// Moves the whole process into a fresh network namespace with `lo` up, so that tests use fixed ports and no test can
/// reach anything outside. Only before any thread is started.
pub(crate) fn enter_network_namespace() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("make a network namespace (root only)")?;
    // The kernel's own address for lo is there as soon as the link is up.
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut request =
        nix::libc::ifreq { ifr_name: [0; 16], ifr_ifru: nix::libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } };
    request.ifr_name[0] = b'l' as nix::libc::c_char;
    request.ifr_name[1] = b'o' as nix::libc::c_char;
    request.ifr_ifru.ifru_flags = (nix::libc::IFF_UP | nix::libc::IFF_RUNNING) as i16;
    // SAFETY: `request` is a whole ifreq that outlives the call, and SIOCSIFFLAGS reads it only.
    let result = unsafe {
        nix::libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), nix::libc::SIOCSIFFLAGS as _, &request)
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).context("bring lo up");
    }
    Ok(())
}

/// A gantry under test. Dropped, it is stopped and everything of it removed.
pub(crate) struct Sandbox {
    pub(crate) gantry: PathBuf,
    /// What `folder` lies on, when it is not the machine's own disk; unmounted before the folder is removed.
    disk: Option<Disk>,
    folder: tempfile::TempDir,
}

impl Sandbox {
    pub(crate) fn new(gantry: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("gantry-accept-").tempdir().context("make a folder")?;
        // The daemon's children run as other users, and have to pass through.
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Self { gantry: gantry.to_owned(), disk: None, folder })
    }

    /// One on a small disk of its own, in a mount namespace of the calling thread and what it starts.
    pub(crate) fn on_disk(gantry: &Path, bytes: u64) -> Result<Self> {
        let mut sandbox = Self::new(gantry)?;
        sandbox.disk = Some(Disk::mount(sandbox.folder.path(), bytes)?);
        Ok(sandbox)
    }

    /// The disk of [`Self::on_disk`].
    pub(crate) fn disk(&self) -> Result<&Disk> {
        self.disk.as_ref().context("the sandbox has no disk of its own")
    }

    /// The state folder.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Where a listener of the daemon is: host and port.
    pub(crate) fn endpoint(&self, listener: &str) -> Result<String> {
        let path = self.state().join("endpoints.json");
        let endpoints: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
        let address = endpoints[listener].as_str();
        let address = address.with_context(|| format!("{} names no {listener}", path.display()))?;
        Ok(address.rsplit('/').next().unwrap_or_default().to_owned())
    }

    /// Everything of this sandbox, the state folder among it.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A folder for the test's own files, made when it is not there.
    pub(crate) fn work(&self, name: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// A gantry command on this sandbox's state.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.gantry);
        command.args(arguments).env("GANTRY_STATE", self.state()).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, whatever that is.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output> {
        output(self.command(arguments))
    }

    /// Runs a command that has to succeed; its standard output.
    pub(crate) fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let arguments: Vec<_> = arguments.into_iter().map(|one| one.as_ref().to_owned()).collect();
        let output = self.run(&arguments)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("gantry {}: {}: {}", words(&arguments), output.status, said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The address that a Service of this name answers on, from its status.
    pub(crate) fn address(&self, service: &str) -> Result<SocketAddr> {
        let service = self.get(&format!("/api/v1/namespaces/default/services/{service}"))?;
        let ingress = &service["status"]["loadBalancer"]["ingress"][0];
        let (ip, port) = (ingress["ip"].as_str(), ingress["ports"][0]["port"].as_u64());
        let text = format!("{}:{}", ip.context("no ingress address")?, port.context("no ingress port")?);
        text.parse().with_context(|| format!("{text} is no address"))
    }

    /// GET from the Kubernetes API, through kubectl's own way in: the state's kubeconfig.
    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let output = self.kubectl(["get", "--raw", path])?;
        serde_json::from_str(&output).with_context(|| format!("read the answer of GET {path}"))
    }

    /// Runs the kubectl that the tests built.
    pub(crate) fn kubectl<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let arguments: Vec<_> = arguments.into_iter().map(|one| one.as_ref().to_owned()).collect();
        let mut command = Command::new(crate::tools::kubernetes("kubectl")?);
        command
            .arg("--kubeconfig")
            .arg(self.state().join("kubeconfig"))
            .args(&arguments)
            .stdin(Stdio::null());
        let output = output(command)?;
        if !output.status.success() {
            bail!("kubectl {}: {}", words(&arguments), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The daemon's process id, while it holds the state folder.
    pub(crate) fn daemon_pid(&self) -> Result<nix::unistd::Pid> {
        self.pid("daemon.lock")
    }

    /// The proxy's process id.
    pub(crate) fn proxy_pid(&self) -> Result<nix::unistd::Pid> {
        self.pid("proxy.pid")
    }

    fn pid(&self, name: &str) -> Result<nix::unistd::Pid> {
        let path = self.state().join("run").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let pid = text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))?;
        Ok(nix::unistd::Pid::from_raw(pid))
    }

    /// SIGKILL, and wait until the process is gone.
    pub(crate) fn kill(&self, pid: nix::unistd::Pid) -> Result<()> {
        let process = rustix::process::Pid::from_raw(pid.as_raw()).context("no process id")?;
        let handle = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?;
        rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL)?;
        let mut wait = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        if rustix::event::poll(&mut wait, Some(&limit))? == 0 {
            bail!("process {pid} survived SIGKILL for ten seconds");
        }
        Ok(())
    }

    /// Copies the logs of daemon and proxy to where the next sandbox's overwrite them: what is unmet has to be explained.
    fn keep_logs(&self) -> Result<()> {
        let kept = crate::tools::folder()?.join("last-logs");
        std::fs::create_dir_all(&kept)?;
        crate::demo::copy(&self.state().join("logs"), &kept)
    }

    /// Stops everything and removes it; what is left over is the caller's finding.
    pub(crate) fn end(&self) -> Result<()> {
        if self.state().exists() {
            self.keep_logs()?;
            self.ok(["daemon", "stop", "--all"])?;
            self.ok(["uninstall", "--purge"])?;
        }
        Ok(())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if let Some(disk) = &self.disk {
            // It is full when a check failed on it; else there is nothing to free.
            let _ = disk.free();
        }
        if let Err(error) = self.end() {
            crate::say(&format!("sandbox: {error:#}"));
        }
    }
}

fn words(arguments: &[std::ffi::OsString]) -> String {
    let words: Vec<_> = arguments.iter().map(|one| one.to_string_lossy()).collect();
    words.join(" ")
}

/// Runs a command with a deadline, so that a hang is a finding and not the end of the run.
pub(crate) fn output(command: Command) -> Result<Output> {
    output_within(command, COMMAND_SECONDS_MAX)
}

/// The same, for a command that may take longer.
pub(crate) fn output_within(mut command: Command, seconds_max: u64) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}"))?;
    let pid = rustix::process::Pid::from_raw(child.id() as i32).context("no process id")?;
    let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let (sender, receiver) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        // The receiver is gone only after the deadline; then nobody asks for the answer.
        let _ = sender.send(child.wait_with_output());
    });
    match receiver.recv_timeout(Duration::from_secs(seconds_max)) {
        Ok(output) => {
            let _ = reader.join();
            output.with_context(|| format!("wait for {name}"))
        }
        Err(_) => {
            rustix::process::pidfd_send_signal(&handle, rustix::process::Signal::KILL)?;
            bail!("{name} did not end within {seconds_max} s");
        }
    }
}
