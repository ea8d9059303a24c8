//! A state folder with a runtime and a busybox tree, and a harness for test binaries that are their own keeper.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a test harness reports on its streams")]
#![allow(dead_code, reason = "each test binary uses its part")]

use std::fs;
use std::future::Future;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use runtime::{Config, Container, Exit, Mount, MountKind, Runtime, Spec, bench};

pub type Test = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

/// Names with their functions.
#[macro_export]
macro_rules! tests {
    ($($name:ident)*) => { &[$((stringify!($name), || Box::pin($name()))),*] };
}

/// Runs the tests whose name holds one of the command line's NAMEs; a hidden `keeper` is the runtime's own.
pub fn run(tests: &'static [Test]) -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|verb| verb == "keeper") {
        return runtime::keeper_main(&args[2..]);
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("containers are made by root only: run this test as root");
        return ExitCode::FAILURE;
    }
    let names: Vec<String> = args
        .iter()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let mut failed = Vec::new();
    for (name, test) in tests {
        if !names.is_empty() && !names.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let begin = Instant::now();
        let result = std::thread::spawn(move || {
            let executor =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            executor.block_on(async {
                tokio::time::timeout(Duration::from_secs(60), test()).await.expect("in time")
            });
        })
        .join();
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:.0?})", begin.elapsed());
        if result.is_err() {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {failed:?}");
    ExitCode::FAILURE
}

/// A state folder with a runtime and a busybox tree; checks at the end that nothing is left.
pub struct World {
    pub dir: tempfile::TempDir,
    pub instance: String,
    pub runtime: Runtime,
    next: std::cell::Cell<u32>,
}

impl World {
    pub fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        static COUNT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let instance = format!("{:04x}{count:04x}", std::process::id() as u16);
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
        for applet in [
            "sh", "true", "cat", "echo", "sleep", "id", "ls", "touch", "grep", "seq", "kill", "stat", "dd",
            "mkdir", "mount", "mknod", "head", "tty", "stty", "yes",
        ] {
            symlink("busybox", tree.join("bin").join(applet)).unwrap();
        }
        let world = World { runtime: open(dir.path(), &instance), dir, instance, next: 0.into() };
        fs::create_dir(world.path("pods")).unwrap();
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A shell script as an ordinary user in a restricted container.
    pub fn spec(&self, script: &str) -> Spec {
        self.next.set(self.next.get() + 1);
        let id = format!("c{}", self.next.get());
        let mut spec = bench::spec(&self.path("pods"), &id, &self.path("tree"), &["/bin/sh", "-c", script]);
        spec.log.path = self.path("logs").join(format!("{id}.log"));
        spec
    }

    pub async fn start(&self, spec: Spec) -> Container {
        let container =
            self.runtime.create(spec).await.unwrap_or_else(|error| panic!("create: {}", chain(&error)));
        container.start().await.unwrap_or_else(|error| panic!("start: {}", chain(&error)));
        container
    }

    /// Runs to the end: how it ended, and its log without times.
    pub async fn run(&self, spec: Spec) -> (Exit, String) {
        let log = spec.log.path.clone();
        let container = self.start(spec).await;
        let exit = container.wait().await.unwrap();
        container.delete().await.unwrap();
        (exit, texts(&log))
    }

    pub fn cgroups(&self) -> Vec<PathBuf> {
        let name = format!("gantry-{}", self.instance);
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let hierarchies = mounts
            .lines()
            .filter(|line| line.contains(" cgroup"))
            .map(|line| line.split(' ').nth(1).unwrap());
        hierarchies.map(|mount| Path::new(mount).join(&name)).filter(|path| path.exists()).collect()
    }

    fn processes(&self) -> Vec<String> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok())
            .filter(|command| command.contains(&dir))
            .map(|command| command.replace('\0', " "))
            .collect()
    }

    pub async fn end(self) {
        self.runtime.destroy().await.unwrap();
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        until("all processes are gone", || self.processes().is_empty()).await;
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.dir.path().to_string_lossy()), "mounts are left");
        assert_eq!(fs::read_dir(self.path("pods")).unwrap().count(), 0, "bundles are left");
    }
}

/// A test that fails leaves nothing either.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let runtime = self.runtime.clone();
            let executor = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = std::thread::spawn(move || executor().block_on(runtime.destroy())).join();
        }
    }
}

pub fn open(state: &Path, instance: &str) -> Runtime {
    Runtime::open(Config {
        state_dir: state.to_owned(),
        instance: instance.to_owned(),
        exe: std::env::current_exe().unwrap(),
    })
    .unwrap()
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub fn texts(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    // The last line may be half written.
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| line.split_once(' ').unwrap().1).collect()
}

/// Waits for a state of the machine that sends no event.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn keeper_of(container: &Container) -> i32 {
    let bundle = container.bundle().to_string_lossy().into_owned();
    let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let command = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let is_keeper = command.starts_with("gantry\0keeper\0") && command.contains(&*bundle);
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        // Its short-lived children share its command line, not its being a session's leader.
        (is_keeper && session(pid)? == pid).then_some(pid)
    });
    found.expect("there is a keeper")
}

pub fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(3)?.parse().ok()
}

pub fn kill(pid: i32) {
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

pub async fn kill_keeper(container: &Container) {
    let keeper = keeper_of(container);
    kill(keeper);
    until("the keeper is dead", || {
        fs::read_to_string(format!("/proc/{keeper}/stat")).map_or(true, |stat| stat.contains(") Z "))
    })
    .await;
}

pub fn bind(source: &str, target: &str, read_only: bool) -> Mount {
    Mount {
        source: source.into(),
        sub_path: None,
        target: target.into(),
        read_only,
        inert: false,
        kind: MountKind::Bind,
    }
}
