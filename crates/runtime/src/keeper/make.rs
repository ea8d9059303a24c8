//! The short-lived child in which libcontainer makes the container.
//!
//! Making a container forks, changes directory and alters the process (oom_score_adj, dumpable), so it is done in a
//! child, never in the keeper. The child has a mount namespace of its own: nothing that it mounts is ever seen by
//! the machine, and nothing has to be unmounted.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::ForkResult;
use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};

use super::finish::Finish;
use super::{make_fifo, open_fifo};
use crate::bundle::{self, Record};
use crate::cgroup::{self, Cgroup};
use crate::mounts;
use crate::rootfs;
use crate::seccomp::Filter;
use crate::spec::{Rlimit, Seccomp};
use crate::users;

/// Where libcgroups looks for hierarchies.
const CGROUP_ROOT: &str = rootfs::OWN_PLACE;
/// linux/sched.h; `libc` has it as a number that overflowed.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// What a report or an exec error may have: one atomic write to a pipe.
pub const MAX_REPORT_BYTES: usize = 4000;

/// The child, while it works.
pub struct Making {
    /// Readable when it has reported or ended.
    pub report: OwnedFd,
    child: i32,
}

/// Both ends of the container's standard streams.
pub struct Stdio {
    /// stdin, stdout, stderr as the container has them.
    pub container: [OwnedFd; 3],
    pub outputs: [Option<OwnedFd>; 2],
    pub stdin: Option<OwnedFd>,
}

/// FIFOs in the bundle. The container's outputs are open for reading too: its own read end keeps them alive when
/// the keeper dies, and lets the next keeper open them again.
pub fn pipes(record: &Record) -> io::Result<Stdio> {
    let (user, users) = (&record.spec.user, record.spec.users);
    let owner = (Some(Uid::from_raw(users.on_host(user.uid))), Some(Gid::from_raw(users.on_host(user.gid))));
    let output = |name| {
        make_fifo(name)?;
        let reader = open_fifo(name, OFlags::RDONLY)?;
        let container = rustix::fs::open(name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        // So that the program can open /dev/stdout.
        rustix::fs::fchown(&container, owner.0, owner.1)?;
        io::Result::Ok((reader, container))
    };
    let (stdout, container_stdout) = output("stdout")?;
    let (stderr, container_stderr) = output("stderr")?;
    let (stdin, container_stdin) = if record.spec.stdin {
        make_fifo("stdin")?;
        let writer = open_fifo("stdin", OFlags::RDWR)?;
        let container = rustix::fs::open("stdin", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::fs::fchown(&container, owner.0, owner.1)?;
        (Some(writer), container)
    } else {
        (None, rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    };
    Ok(Stdio {
        container: [container_stdin, container_stdout, container_stderr],
        outputs: [Some(stdout), Some(stderr)],
        stdin,
    })
}

/// A terminal; it hangs up when the keeper dies, as a terminal does.
pub fn terminal(record: &Record) -> io::Result<Stdio> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(&*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(record.spec.users.on_host(record.spec.user.uid))), None)?;
    rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
    let stdin = rustix::io::fcntl_dupfd_cloexec(&master, 3)?;
    let copy = || rustix::io::fcntl_dupfd_cloexec(&slave, 3);
    Ok(Stdio { container: [copy()?, copy()?, copy()?], outputs: [Some(master), None], stdin: Some(stdin) })
}

/// Forks the child. Returns it, and the pipe that tells of execve: closed by success, else the reason.
pub fn fork(record: &Record, stdio: [OwnedFd; 3]) -> io::Result<(Making, OwnedFd)> {
    let (report, report_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    let (executed, executed_writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&executed, OFlags::NONBLOCK)?;
    let born_in = match &record.cgroup {
        Cgroup::V2(dir) => {
            record.cgroup.create(&record.spec.resources, record.spec.privileged)?;
            Some(dir)
        }
        Cgroup::V1(_) => record.keepers.iter().find(|dir| cgroup::is_v2(dir)),
    };
    // SAFETY: the keeper has one thread, so the child may go on like an ordinary process.
    match unsafe { fork_into(born_in.map(PathBuf::as_path))? } {
        Forked::Parent(child) => Ok((Making { report, child }, executed)),
        Forked::Child { is_in } => {
            let mut kept: Vec<RawFd> = stdio.iter().map(AsRawFd::as_raw_fd).collect();
            kept.extend([report_writer.as_raw_fd(), executed_writer.as_raw_fd()]);
            close_all_but(kept);
            let joined = step("join cgroups", join(record, born_in.filter(|_| is_in)));
            let report = match joined.and_then(|()| run(record, stdio, executed_writer.as_raw_fd())) {
                Ok(pid) => pid.to_string(),
                Err(reason) => format!("!{reason}"),
            };
            let _ =
                rustix::io::write(&report_writer, &report.as_bytes()[..report.len().min(MAX_REPORT_BYTES)]);
            // SAFETY: ends the process; nothing of the keeper's is to be run or flushed here.
            unsafe { libc::_exit(0) }
        }
    }
}

enum Forked {
    Parent(i32),
    /// Whether it was born in the cgroup.
    Child {
        is_in: bool,
    },
}

/// Forks, on v2 right into a cgroup: a later move waits for a grace period of RCU, which takes milliseconds.
///
/// # Safety
/// As fork(2): the process has one thread.
unsafe fn fork_into(cgroup: Option<&Path>) -> io::Result<Forked> {
    if let Some(cgroup) = cgroup {
        let dir = fs::File::open(cgroup)?;
        // SAFETY: all zero is a valid value of these plain numbers.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = CLONE_INTO_CGROUP;
        args.exit_signal = libc::SIGCHLD as u64;
        args.cgroup = dir.as_raw_fd() as u64;
        // SAFETY: without CLONE_VM it is a fork; `args` lives across the call.
        match unsafe { libc::syscall(libc::SYS_clone3, &args, size_of::<libc::clone_args>()) } {
            0 => return Ok(Forked::Child { is_in: true }),
            child @ 1.. => return Ok(Forked::Parent(child as i32)),
            // Before Linux 5.7, or where the machine does not let us.
            _ => {}
        }
    }
    // SAFETY: the caller's promise.
    match unsafe { nix::unistd::fork()? } {
        ForkResult::Parent { child } => Ok(Forked::Parent(child.as_raw())),
        ForkResult::Child => Ok(Forked::Child { is_in: false }),
    }
}

/// Moves the child, and so the container, to its cgroups, and out of the daemon's in hierarchies that only track.
fn join(record: &Record, born_in: Option<&PathBuf>) -> io::Result<()> {
    if let Cgroup::V1(_) = record.cgroup {
        for dir in record.keepers.iter().filter(|dir| Some(*dir) != born_in) {
            // As for the keeper itself: where the machine refuses, a session of its own must do.
            let _ = cgroup::join(dir);
        }
        record.cgroup.create(&record.spec.resources, record.spec.privileged)?;
        return record.cgroup.join();
    }
    if born_in.is_some() { Ok(()) } else { record.cgroup.join() }
}

impl Making {
    /// The container's pid, or why there is none.
    pub fn finish(self) -> Result<i32, String> {
        let mut buffer = [0; MAX_REPORT_BYTES];
        let read = rustix::io::read(&self.report, &mut buffer[..]).unwrap_or(0);
        let mut status = 0;
        // It ends right after its report; the container becomes the keeper's child by that.
        // SAFETY: `status` is writable and lives across the call.
        unsafe { libc::waitpid(self.child, &mut status, 0) };
        let report = String::from_utf8_lossy(&buffer[..read]);
        match report.strip_prefix('!') {
            Some(reason) => Err(reason.to_owned()),
            None => report.parse().map_err(|_| format!("its maker ended with wait status {status:#x}")),
        }
    }
}

/// The container's first process would hold what it inherits until it executes the program.
fn close_all_but(mut kept: Vec<RawFd>) {
    kept.extend([0, 1, 2]);
    kept.sort_unstable();
    let close = |first: RawFd, last: RawFd| {
        if first <= last {
            // SAFETY: closes descriptors that only code of the keeper, which does not run here, would use.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    };
    let mut next = 0;
    for fd in kept {
        close(next, fd - 1);
        next = fd + 1;
    }
    close(next, RawFd::MAX);
}

/// Names the step that failed.
fn step<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

fn run(record: &Record, stdio: [OwnedFd; 3], executed: RawFd) -> Result<i32, String> {
    let spec = &record.spec;
    // What is made in the container is as its mode says, whatever the daemon's own umask.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    step("clear supplementary groups", rustix::thread::set_thread_groups(&[]))?;
    if let Some(score) = spec.oom_score_adj {
        // Best effort: lowering it takes a capability that even root may lack.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    step("leave the machine's mount namespace", leave_mount_namespace())?;
    // Before the container's own limit on descriptors.
    let joined = step("open the user namespace", users::open(spec))?;
    let own = joined.as_ref().map(|joined| joined.users.as_fd());
    let mounts = mounts::detach(&spec.mounts, own)?;
    for limit in &spec.rlimits {
        set_rlimit(limit);
    }
    let shown = if spec.mounts.iter().any(|mount| mount.target == Path::new(CGROUP_ROOT)) {
        Vec::new()
    } else {
        step("look at cgroups", show(&record.cgroup))?
    };
    step("hide cgroups", hide_cgroups())?;
    let root = step("mount root", rootfs::mount(spec, record.skeleton, own))?;
    let config = bundle::config(record, &root, joined.as_ref());
    step("write config.json", bundle::write_json(&spec.bundle, "config.json", &config))?;
    let oci = spec.bundle.join(bundle::OCI);
    step("make folder oci", fs::create_dir(&oci))?;
    let finish = Finish {
        program: Default::default(),
        args: strings(spec.args.iter().cloned()),
        env: strings(spec.env.iter().map(|(name, value)| format!("{name}={value}"))),
        path: spec
            .env
            .iter()
            .find(|(name, _)| name == "PATH")
            .map(|(_, value)| value.clone())
            .unwrap_or_default(),
        filter: (spec.seccomp == Seccomp::RuntimeDefault && !spec.privileged)
            .then(|| Filter::runtime_default(record.capabilities)),
        capabilities: record.capabilities,
        cgroups: shown,
        cgroup_v2: matches!(record.cgroup, Cgroup::V2(_)),
        mounts,
        cwd: spec.cwd.clone(),
        tty: spec.tty,
        executed,
    };
    let [stdin, stdout, stderr] = stdio;
    let container = ContainerBuilder::new(bundle::OCI_ID.to_owned(), SyscallType::Linux)
        .with_root_path(oci)
        .map_err(chain)?
        .with_executor(finish)
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .as_init(&spec.bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(chain)?;
    container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "no process".to_owned())
}

/// NUL bytes were refused before the keeper was started.
fn strings(values: impl Iterator<Item = String>) -> Vec<CString> {
    values.filter_map(|value| CString::new(value).ok()).collect()
}

/// An error with its causes; libcontainer's often say the same twice.
fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Best effort: raising a hard limit takes a capability that even root may lack.
fn set_rlimit(limit: &Rlimit) {
    let Some(resource) = crate::create::rlimit(&limit.name) else { return };
    let wanted = libc::rlimit { rlim_cur: limit.soft.min(limit.hard), rlim_max: limit.hard };
    // SAFETY: both structs live across the calls.
    unsafe {
        if libc::setrlimit(resource, &wanted) != 0 {
            let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            if libc::getrlimit(resource, &mut now) == 0 {
                now.rlim_cur = limit.soft.min(now.rlim_max);
                libc::setrlimit(resource, &now);
            }
        }
    }
}

/// A mount namespace of our own that hears of the machine's mounts and never the other way round.
fn leave_mount_namespace() -> io::Result<()> {
    let machine = fs::read_link("/proc/self/ns/mnt")?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    if fs::read_link("/proc/self/ns/mnt")? == machine {
        return Err(io::Error::other("still in the machine's mount namespace"));
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    Ok(())
}

/// Copies of the container's own cgroup folders, to be mounted in it: the Go runtime reads its CPU limit there.
fn show(cgroup: &Cgroup) -> io::Result<Vec<(String, RawFd)>> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    cgroup
        .shown()
        .into_iter()
        .map(|(name, dir)| {
            let tree = open_tree(CWD, &dir, clone)?;
            let fd = tree.as_raw_fd();
            // The container's first process, a descendant, inherits it, and execve closes it.
            std::mem::forget(tree);
            Ok((name, fd))
        })
        .collect()
}

/// libcontainer joins every hierarchy that it finds, slowly and once more; it finds none. What is mounted there is this
/// process's own place for mounts, which every user can pass: see [`rootfs::mount`].
fn hide_cgroups() -> io::Result<()> {
    // More than one may be stacked there.
    for _ in 0..8 {
        match umount2(CGROUP_ROOT, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(nix::Error::EINVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    mount(Some("tmpfs"), CGROUP_ROOT, Some("tmpfs"), MsFlags::empty(), Some("mode=755,size=64k"))?;
    Ok(())
}
