//! RuntimeDefault: what a container may ask of the kernel, as a classic BPF program (seccomp(2)).
//!
//! The names are containerd's and Docker's default profile; [`table`] holds them. A call that is not allowed fails
//! with EPERM; one that is newer than the table, or of a foreign architecture (x32, i386), with ENOSYS, so that a C
//! library falls back to an older one. The kernel caches what is allowed whatever its arguments, so the length of
//! the program costs nothing per call.

mod table;

use std::io;

use nix::libc::{self, sock_filter};

use crate::capability::Set;

/// An assembled program.
#[derive(Clone, Debug)]
pub struct Filter(Vec<sock_filter>);

// Offsets in `struct seccomp_data`; low halves of the arguments on a little-endian machine.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARG0: u32 = 16;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
const NAMESPACE_FLAGS: u32 = 0x7E02_0000;
/// Execution domains that Docker's profile allows (personality(2)).
const PERSONALITIES: [u32; 5] = [0x0, 0x0008, 0x20000, 0x20008, 0xffff_ffff];
/// Sockets that reach beyond any namespace: AF_ALG (the kernel's crypto, CVE-2026-31431) and AF_VSOCK.
const REFUSED_FAMILIES: [u32; 2] = [libc::AF_ALG as u32, libc::AF_VSOCK as u32];

impl Filter {
    /// The profile for a container with these capabilities.
    pub fn runtime_default(capabilities: Set) -> Filter {
        let mut program = Program::default();
        program.load(ARCH);
        program.jump(libc::BPF_JEQ, AUDIT_ARCH, 1, 0);
        program.answer(ENOSYS);
        program.load(NUMBER);
        if cfg!(target_arch = "x86_64") {
            // x32 calls carry this bit.
            program.jump(libc::BPF_JGE, 0x4000_0000, 0, 1);
            program.answer(ENOSYS);
        }
        let admin = capabilities.has("SYS_ADMIN");
        let mut allowed = table::allowed(capabilities);
        if !admin {
            program.when(libc::SYS_clone, |block| {
                block.load(ARG0);
                block.jump(libc::BPF_JSET, NAMESPACE_FLAGS, 0, 1);
                block.answer(EPERM);
                block.answer(ALLOW);
            });
            // Its flags are behind a pointer; ENOSYS makes C libraries fall back to clone.
            program.when(libc::SYS_clone3, |block| block.answer(ENOSYS));
        }
        program.when(libc::SYS_socket, |block| {
            block.load(ARG0);
            block.one_of(&REFUSED_FAMILIES, EPERM);
            block.answer(ALLOW);
        });
        program.when(libc::SYS_personality, |block| {
            block.load(ARG0);
            block.one_of(&PERSONALITIES, ALLOW);
            block.answer(EPERM);
        });
        allowed.sort_unstable();
        allowed.dedup();
        for (low, high) in ranges(&allowed) {
            program.jump(libc::BPF_JGE, low, 0, 2);
            program.jump(libc::BPF_JGT, high, 1, 0);
            program.answer(ALLOW);
        }
        program.jump(libc::BPF_JGT, table::NEWEST, 0, 1);
        program.answer(ENOSYS);
        program.answer(EPERM);
        Filter(program.0)
    }

    /// Puts the calling thread under the program. Needs no_new_privs or CAP_SYS_ADMIN.
    pub fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: `program` describes a live array; the kernel only reads it, and copies it.
        let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &program) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[derive(Default)]
struct Program(Vec<sock_filter>);

impl Program {
    fn push(&mut self, code: u32, k: u32, jt: u8, jf: u8) {
        self.0.push(sock_filter { code: code as u16, jt, jf, k });
    }

    fn load(&mut self, offset: u32) {
        self.push(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    }

    fn jump(&mut self, test: u32, k: u32, yes: u8, no: u8) {
        self.push(libc::BPF_JMP | test | libc::BPF_K, k, yes, no);
    }

    fn answer(&mut self, action: u32) {
        self.push(libc::BPF_RET | libc::BPF_K, action, 0, 0);
    }

    /// `block`, which answers in all its paths, for this call only.
    fn when(&mut self, number: libc::c_long, block: impl FnOnce(&mut Program)) {
        let mut inner = Program::default();
        block(&mut inner);
        self.jump(libc::BPF_JEQ, number as u32, 0, inner.0.len() as u8);
        self.0.append(&mut inner.0);
    }

    fn one_of(&mut self, values: &[u32], action: u32) {
        for value in values {
            self.jump(libc::BPF_JEQ, *value, 0, 1);
            self.answer(action);
        }
    }
}

/// Runs of consecutive numbers in a sorted list.
fn ranges(numbers: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, high)) if *high + 1 == number => *high = number,
            _ => ranges.push((number, number)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for one call.
    fn run(filter: &Filter, arch: u32, number: libc::c_long, arg0: u32) -> u32 {
        let (mut at, mut a) = (0, 0);
        loop {
            let step = &filter.0[at];
            at += 1;
            match u32::from(step.code) & 0x07 {
                libc::BPF_LD => {
                    a = match step.k {
                        NUMBER => number as u32,
                        ARCH => arch,
                        ARG0 => arg0,
                        other => panic!("load of {other}"),
                    }
                }
                libc::BPF_RET => return step.k,
                libc::BPF_JMP => {
                    let yes = match u32::from(step.code) & 0xf0 {
                        libc::BPF_JEQ => a == step.k,
                        libc::BPF_JGE => a >= step.k,
                        libc::BPF_JGT => a > step.k,
                        libc::BPF_JSET => a & step.k != 0,
                        other => panic!("jump {other}"),
                    };
                    at += usize::from(if yes { step.jt } else { step.jf });
                }
                other => panic!("class {other}"),
            }
        }
    }

    fn default() -> Filter {
        Filter::runtime_default(Set::resolve(&crate::Capabilities::default(), false).unwrap())
    }

    #[test]
    fn ordinary_calls_pass_and_dangerous_ones_do_not() {
        let filter = default();
        for number in
            [libc::SYS_read, libc::SYS_execve, libc::SYS_futex, libc::SYS_epoll_pwait2, libc::SYS_chroot]
        {
            assert_eq!(run(&filter, AUDIT_ARCH, number, 0), ALLOW, "{number}");
        }
        for number in
            [libc::SYS_mount, libc::SYS_bpf, libc::SYS_kexec_load, libc::SYS_io_uring_setup, libc::SYS_keyctl]
        {
            assert_eq!(run(&filter, AUDIT_ARCH, number, 0), EPERM, "{number}");
        }
        assert_eq!(run(&filter, AUDIT_ARCH, 900, 0), ENOSYS);
        assert_eq!(run(&filter, 0x4000_0003, libc::SYS_read, 0), ENOSYS);
    }

    #[test]
    fn arguments_decide_where_the_profile_says_so() {
        let filter = default();
        assert_eq!(run(&filter, AUDIT_ARCH, libc::SYS_socket, libc::AF_INET as u32), ALLOW);
        assert_eq!(run(&filter, AUDIT_ARCH, libc::SYS_socket, libc::AF_ALG as u32), EPERM);
        assert_eq!(run(&filter, AUDIT_ARCH, libc::SYS_personality, 0xffff_ffff), ALLOW);
        assert_eq!(run(&filter, AUDIT_ARCH, libc::SYS_personality, 0x0040_0000), EPERM);
        assert_eq!(run(&filter, AUDIT_ARCH, libc::SYS_clone, 0x0001_0f00), ALLOW);
        assert_eq!(run(&filter, AUDIT_ARCH, libc::SYS_clone, libc::CLONE_NEWUSER as u32), EPERM);
        assert_eq!(run(&filter, AUDIT_ARCH, libc::SYS_clone3, 0), ENOSYS);
    }

    #[test]
    fn capabilities_open_their_calls() {
        let filter = Filter::runtime_default(Set::ALL);
        for number in
            [libc::SYS_mount, libc::SYS_bpf, libc::SYS_clone3, libc::SYS_unshare, libc::SYS_settimeofday]
        {
            assert_eq!(run(&filter, AUDIT_ARCH, number, libc::CLONE_NEWUSER as u32), ALLOW, "{number}");
        }
    }
}
