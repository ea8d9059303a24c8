//! The kernels that the daemon runs on: refused at the start, with the reason, rather than in the middle of a mount.

use std::io;

use nix::libc;
use rustix::io::Errno;

/// The oldest on which the suites run (`cargo xtask vm`): major and minor.
pub const OLDEST: (u32, u32) = (6, 1);

/// What the daemon cannot do without, and what it does with it. Each is called with arguments that no kernel obeys.
const NEEDED: &[(&str, &str, libc::c_long, [libc::c_long; 5])] = &[
    ("pidfd_open", "to signal no process but its own", libc::SYS_pidfd_open, [0, 0, 0, 0, 0]),
    ("close_range", "to pass on no descriptor", libc::SYS_close_range, [1, 0, 0, 0, 0]),
    ("openat2", "to resolve a path once, below a folder", libc::SYS_openat2, [-1, 0, 0, 0, 0]),
    ("open_tree", "to mount what it has resolved", libc::SYS_open_tree, [-1, 0, -1, 0, 0]),
    ("move_mount", "to mount what it has resolved", libc::SYS_move_mount, [-1, 0, -1, 0, -1]),
    (
        "mount_setattr",
        "to make mounts read-only, nosuid and nodev",
        libc::SYS_mount_setattr,
        [-1, 0, -1, 0, 0],
    ),
    ("fsopen", "to make file systems for a container", libc::SYS_fsopen, [0, -1, 0, 0, 0]),
];

/// Why the daemon does not start on a kernel.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("Linux {release} is older than {}.{}, the oldest kernel that gantry is tested on", OLDEST.0, OLDEST.1)]
    Old { release: String },
    #[error("{release:?} is no kernel release that gantry can read")]
    Unreadable { release: String },
    #[error("Linux {release} does not have the system call {name}, which gantry needs {purpose}")]
    Missing { release: String, name: &'static str, purpose: &'static str },
    #[error("the system call {name}, which gantry needs {purpose}, is not permitted here")]
    Refused { name: &'static str, purpose: &'static str },
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Refused { .. } => {
                "run the daemon on the machine itself, or in a container that may mount (privileged, without a \
                 seccomp filter)"
                    .to_owned()
            }
            _ => format!("boot Linux {}.{} or newer; uname -r shows what runs", OLDEST.0, OLDEST.1),
        }
    }
}

/// Checks the running kernel.
pub fn check() -> Result<(), Error> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    is_new_enough(&release)?;
    for (name, purpose, number, arguments) in NEEDED {
        judge(call(*number, *arguments), &release, name, purpose)?;
    }
    Ok(())
}

fn is_new_enough(release: &str) -> Result<(), Error> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(Error::Unreadable { release: release.to_owned() });
    };
    if (major, minor) < OLDEST { Err(Error::Old { release: release.to_owned() }) } else { Ok(()) }
}

/// How the kernel refused it.
fn call(number: libc::c_long, [a, b, c, d, e]: [libc::c_long; 5]) -> Option<Errno> {
    // SAFETY: no argument is a pointer to memory: all are null, a bad descriptor or a bad flag, and the kernel refuses
    // them before it does anything.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    (result < 0).then(|| Errno::from_io_error(&io::Error::last_os_error())).flatten()
}

fn judge(
    errno: Option<Errno>,
    release: &str,
    name: &'static str,
    purpose: &'static str,
) -> Result<(), Error> {
    match errno {
        Some(Errno::NOSYS) => Err(Error::Missing { release: release.to_owned(), name, purpose }),
        Some(Errno::PERM) => Err(Error::Refused { name, purpose }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused_and_new_ones_are_not() {
        for release in ["6.1.0-56-cloud-amd64", "6.18.44", "7.0-rc1", "10.2"] {
            assert_eq!(is_new_enough(release), Ok(()), "{release}");
        }
        for release in ["5.15.0-91-generic", "6.0.19", "4.19"] {
            let error = is_new_enough(release).unwrap_err();
            assert!(matches!(error, Error::Old { .. }), "{release}");
            assert!(error.to_string().contains(release) && error.hint().contains("6.1"), "{error}");
        }
        assert!(matches!(is_new_enough("linux"), Err(Error::Unreadable { .. })));
    }

    #[test]
    fn a_missing_and_a_forbidden_call_are_told_apart_from_bad_arguments() {
        assert!(matches!(judge(Some(Errno::NOSYS), "6.1", "fsopen", "to"), Err(Error::Missing { .. })));
        assert!(matches!(judge(Some(Errno::PERM), "6.1", "fsopen", "to"), Err(Error::Refused { .. })));
        assert_eq!(judge(Some(Errno::INVAL), "6.1", "fsopen", "to"), Ok(()));
        // A number that no kernel has.
        assert_eq!(call(100_000, [0; 5]), Some(Errno::NOSYS));
    }

    #[test]
    fn no_needed_call_succeeds_by_being_asked() {
        for (name, _, number, arguments) in NEEDED {
            assert!(call(*number, *arguments).is_some(), "{name} obeyed");
        }
    }
}
