//! The last steps inside the container, between libcontainer's set-up and the program.
//!
//! libcontainer runs an executor in the container's first process. Ours mounts the cgroups, installs seccomp while
//! the process still may, drops capabilities, waits (in libcontainer) for the start, and executes the program.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::libc;
use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};

use super::make::MAX_REPORT_BYTES;
use crate::capability::{NAMES, Set};
use crate::mounts::{self, Detached, Reach, set_attributes};
use crate::seccomp::Filter;

const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The exit code of a first process that could not execute the program; the reason went through the pipe.
const NOT_EXECUTED: i32 = 127;

#[derive(Clone)]
pub struct Finish {
    /// Found in PATH, once inside.
    pub program: RefCell<Option<CString>>,
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    pub path: String,
    pub filter: Option<Filter>,
    pub capabilities: Set,
    /// Controller and detached mount, on v1.
    pub cgroups: Vec<(String, RawFd)>,
    pub cgroup_v2: bool,
    /// What was asked to be mounted, in order.
    pub mounts: Vec<Detached>,
    /// The working folder; empty means `/`.
    pub cwd: PathBuf,
    pub tty: bool,
    /// Closed by execve, or told why it failed.
    pub executed: RawFd,
}

impl Executor for Finish {
    /// In the new root, before the start is waited for. The program may be in what is mounted here.
    fn validate(&self, _spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.mount().map_err(ExecutorValidationError::ArgValidationError)?;
        let name = self.args.first().map(|arg| arg.to_string_lossy().into_owned()).unwrap_or_default();
        let program = find(&name, &self.path).ok_or_else(|| {
            ExecutorValidationError::ArgValidationError(format!(
                "exec {name:?}: executable file not found in $PATH"
            ))
        })?;
        let program = CString::new(program.into_os_string().into_encoded_bytes())
            .map_err(|_| ExecutorValidationError::ArgValidationError("NUL in the program's path".into()))?;
        self.program.replace(Some(program));
        Ok(())
    }

    /// Last of all before the process reports that it is ready. The environment goes to execve as it is.
    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        let step = |what: &str, result: io::Result<()>| {
            result.map_err(|error| ExecutorSetEnvsError::Other(format!("{what}: {error}")))
        };
        if let Some(filter) = &self.filter {
            step("install the seccomp filter", filter.install())?;
        }
        step("drop capabilities", drop_capabilities(self.capabilities))
    }

    fn exec(&self, _spec: &Spec) -> Result<(), ExecutorError> {
        let program = self.program.borrow();
        let error = match program.as_deref() {
            Some(program) => self.execute(program),
            None => io::Error::from(io::ErrorKind::NotFound),
        };
        let name = program.as_deref().map(CStr::to_string_lossy).unwrap_or_default();
        let reason = format!("exec {name:?}: {}", plain(&error));
        // SAFETY: a plain system call. A keeper that took over does not listen: that must not look like a signal.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        // SAFETY: the descriptor was inherited for this, and is open until execve succeeds.
        let pipe = unsafe { BorrowedFd::borrow_raw(self.executed) };
        let _ = rustix::io::write(pipe, &reason.as_bytes()[..reason.len().min(MAX_REPORT_BYTES)]);
        // SAFETY: ends the process; there is nothing to unwind to.
        unsafe { libc::_exit(NOT_EXECUTED) }
    }
}

/// Without Rust's "(os error 2)".
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

impl Finish {
    /// All that is mounted by descriptor, and then the working folder, which may be in it. This process is the
    /// container's user already, but has every capability; mount points that it makes are to be root's.
    fn mount(&self) -> Result<(), String> {
        let step = |what: &str, result: io::Result<()>| result.map_err(|error| format!("{what}: {error}"));
        let _as_root = FileIds::root();
        step("mount cgroups", self.show_cgroups())?;
        self.mounts.iter().try_for_each(Detached::attach)?;
        let cwd = if self.cwd.as_os_str().is_empty() { Path::new("/") } else { &self.cwd };
        step(&format!("enter working directory {}", cwd.display()), mounts::enter(cwd))
    }

    /// Only returns when it failed.
    fn execute(&self, program: &CStr) -> io::Error {
        // /proc/self/exe is gantry itself (CVE-2019-5736): no link of the kernel's own is followed.
        let path = OFlags::PATH | OFlags::CLOEXEC;
        match rustix::fs::openat2(CWD, program, path, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
            Ok(_) => {}
            Err(rustix::io::Errno::LOOP) => return io::Error::from(io::ErrorKind::PermissionDenied),
            Err(error) => return error.into(),
        }
        let pointers = |strings: &[CString]| {
            let mut list: Vec<*const libc::c_char> = strings.iter().map(|string| string.as_ptr()).collect();
            list.push(std::ptr::null());
            list
        };
        let (args, env) = (pointers(&self.args), pointers(&self.env));
        // SAFETY: plain system calls; the arrays end with null and live until execve, which copies them.
        unsafe {
            if self.tty {
                libc::ioctl(0, libc::TIOCSCTTY, 0);
            }
            // What is ignored or blocked passes through execve: Rust ignores SIGPIPE, the daemon's starter may
            // ignore anything. Zeroed, the kernel's `struct sigaction` and mask mean default and none. The C library
            // would refuse its own signals, 32 and 33.
            let zero = [0u64; 4];
            for signal in 1..=64 {
                libc::syscall(libc::SYS_rt_sigaction, signal, zero.as_ptr(), std::ptr::null::<u8>(), 8);
            }
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                zero.as_ptr(),
                std::ptr::null::<u8>(),
                8,
            );
            libc::umask(0o022);
            libc::execve(program.as_ptr(), args.as_ptr(), env.as_ptr());
        }
        io::Error::last_os_error()
    }

    /// Read-only, and only the container's own.
    fn show_cgroups(&self) -> io::Result<()> {
        if self.cgroups.is_empty() && !self.cgroup_v2 {
            return Ok(());
        }
        if !Path::new(CGROUP_ROOT).is_dir() {
            // The container's /sys is not the kernel's.
            return Ok(());
        }
        let harmless = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let read_only = harmless | MountAttrFlags::MOUNT_ATTR_RDONLY;
        let kind = if self.cgroup_v2 { "cgroup2" } else { "tmpfs" };
        let options = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        if !self.cgroup_v2 {
            fsconfig_set_string(options.as_fd(), "mode", "755")?;
            fsconfig_set_string(options.as_fd(), "size", "64k")?;
        }
        fsconfig_create(options.as_fd())?;
        let attributes = if self.cgroup_v2 { read_only } else { harmless };
        let root = fsmount(options.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        let empty_path = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(root.as_fd(), "", CWD, CGROUP_ROOT, empty_path)?;
        for (name, tree) in &self.cgroups {
            // SAFETY: inherited for this, open until execve.
            let tree = unsafe { BorrowedFd::borrow_raw(*tree) };
            let target = Path::new(CGROUP_ROOT).join(name);
            fs::create_dir(&target)?;
            set_attributes(tree, read_only, Reach::Mount)?;
            move_mount(tree, "", CWD, &target, empty_path)?;
        }
        if !self.cgroup_v2 {
            set_attributes(root.as_fd(), read_only, Reach::Mount)?;
        }
        Ok(())
    }
}

/// The ids by which this process is known to file systems, until dropped.
struct FileIds {
    uid: libc::c_int,
    gid: libc::c_int,
}

impl FileIds {
    fn root() -> FileIds {
        // SAFETY: plain system calls of this process, which has one thread. Capabilities over files are given back by
        // setfsuid(0), and by what follows they are dropped as asked.
        unsafe { FileIds { gid: libc::setfsgid(0), uid: libc::setfsuid(0) } }
    }
}

impl Drop for FileIds {
    fn drop(&mut self) {
        // SAFETY: as above; the former ids were this process's own.
        unsafe {
            libc::setfsuid(self.uid.cast_unsigned());
            libc::setfsgid(self.gid.cast_unsigned());
        }
    }
}

/// The first of PATH that is an executable file; a name with a slash is itself.
fn find(name: &str, path: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name));
    }
    if name.is_empty() {
        return None;
    }
    path.split(':').map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name)).find(|path| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// `struct __user_cap_header_struct` and `_data_struct`, version 3 (capget(2)).
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Bounding, then ambient, then the process's own. Nothing is inheritable (CVE-2022-24769).
fn drop_capabilities(keep: Set) -> io::Result<()> {
    // The kernel may know capabilities that we do not: they go first of all.
    for number in 0..64u64 {
        let kept = (number as usize) < NAMES.len() && keep.0 & (1 << number) != 0;
        // SAFETY: prctl with plain numbers.
        if !kept && unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) } != 0 {
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EINVAL) {
                break; // The kernel's last one is behind us.
            }
            return Err(error);
        }
    }
    // SAFETY: prctl with plain numbers.
    unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    // What this process itself lacks (the daemon may run without some) cannot be given.
    let mut header = Header { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: header and data are of the version that the header names, and live across both calls.
    unsafe {
        if libc::syscall(libc::SYS_capget, &mut header, data.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        for (half, data) in data.iter_mut().enumerate() {
            let wanted = (keep.0 >> (32 * half)) as u32 & data.permitted;
            *data = Data { effective: wanted, permitted: wanted, inheritable: 0 };
        }
        if libc::syscall(libc::SYS_capset, &mut header, data.as_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
