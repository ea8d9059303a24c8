//! The attacker inside a container: `hostile ATTACK [ARGUMENT…]`.
#![expect(clippy::print_stdout, reason = "a test waits for what it says")]

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nix::libc;
use rustix::fs::{CWD, RenameFlags, renameat_with};

pub fn main(args: &[OsString]) -> ExitCode {
    let args: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    match args[..] {
        ["swap", folder, link, to] => swap(Path::new(folder), Path::new(link), to),
        ["traced"] => {
            std::thread::spawn(|| {
                trace_me();
                rest()
            });
            say_traced()
        }
        ["traced-and-stopped"] => {
            std::thread::spawn(|| {
                trace_me();
                stop_self();
                rest()
            });
            say_traced()
        }
        ["traced-leader"] => {
            trace_me();
            say_traced()
        }
        ["traced-again-and-again"] => {
            std::thread::spawn(|| {
                loop {
                    trace_me();
                    stop_self();
                }
            });
            say_traced()
        }
        ["traced-and-goes-on"] => {
            // SAFETY: an ignored signal runs no code.
            unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
            let thread = std::thread::spawn(|| {
                trace_me();
                stop_self();
                println!("goes on");
            });
            let _ = thread.join();
            ExitCode::from(5)
        }
        ["fork-bomb"] => {
            println!("resisting");
            loop {
                // SAFETY: this process has one thread.
                unsafe { libc::fork() };
            }
        }
        ["stopped"] => stopped(),
        ["deaf"] => {
            for number in 1..=64 {
                // SAFETY: an ignored signal runs no code.
                unsafe { libc::signal(number, libc::SIG_IGN) };
            }
            println!("resisting");
            rest()
        }
        ["kernel"] => kernel(),
        ["namespaces"] => {
            // SAFETY: this process has one thread.
            let made = unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } == 0;
            println!("{}", if made { "made" } else { "not!" });
            let _ = std::io::stdin().read_line(&mut String::new());
            ExitCode::SUCCESS
        }
        ["user"] => {
            println!("{}", rustix::process::geteuid().as_raw());
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(2),
    }
}

fn rest() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1000));
    }
}

fn trace_me() {
    // SAFETY: the request takes no pointer.
    unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
}

/// A signal to this very thread: a traced one stops before it is delivered, ignored or not.
fn stop_self() {
    // SAFETY: plain system calls.
    unsafe {
        libc::signal(libc::SIGUSR1, libc::SIG_IGN);
        libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::syscall(libc::SYS_gettid), libc::SIGUSR1);
    }
}

fn say_traced() -> ! {
    // Not before there is a tracer, told of by the kernel itself.
    let is_traced = || {
        let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok())
            .any(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('t')))
    };
    // One that does not stop looks like any other: give it a moment to have called.
    for _ in 0..50 {
        if is_traced() {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("traced");
    rest()
}

fn swap(folder: &Path, link: &Path, to: &str) -> ExitCode {
    let _ = std::fs::remove_file(link);
    if std::os::unix::fs::symlink(to, link).is_err() {
        return ExitCode::from(3);
    }
    println!("swapping");
    loop {
        let _ = renameat_with(CWD, folder, CWD, link, RenameFlags::EXCHANGE);
    }
}

/// Children that are stopped, and zombies that nobody waits for.
fn stopped() -> ExitCode {
    for number in 0..8 {
        // SAFETY: this process has one thread; the child only stops or ends.
        unsafe {
            if libc::fork() == 0 {
                if number % 2 == 0 {
                    libc::kill(libc::getpid(), libc::SIGSTOP);
                }
                libc::_exit(0);
            }
        }
    }
    println!("resisting");
    rest()
}

/// Namespaces in which it would be root, cgroup mounts, and the kernel's crypto.
fn kernel() -> ExitCode {
    // SAFETY: plain system calls with constant strings.
    let results = unsafe {
        [
            libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP),
            libc::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP),
            libc::mount(
                c"cgroup".as_ptr(),
                c"/proc".as_ptr(),
                c"cgroup".as_ptr(),
                0,
                c"memory".as_ptr().cast(),
            ),
            libc::socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
            libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ]
    };
    if results.iter().all(|result| *result < 0) {
        println!("refused");
        ExitCode::SUCCESS
    } else {
        println!("{results:?}");
        ExitCode::FAILURE
    }
}
