//! Real containers, as root: this binary is its own keeper, so it has a `main` of its own.
//!
//! `cargo test -p runtime --test containers [NAME…]` runs the tests whose name holds one of the NAMEs.
#![expect(clippy::print_stdout, reason = "one test says what it measured")]

mod world;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use runtime::{Access, Attached, Capabilities, Mount, MountKind, State, bench, create};
use world::{Test, World, bind, chain, keeper_of, kill, kill_keeper, open, session, texts, until};

const TESTS: &[Test] = tests! {
    a_container_runs_and_leaves_nothing
    exit_codes_and_signals_are_true
    a_program_that_cannot_run_says_why
    a_failed_creation_leaves_nothing
    the_defaults_are_restricted
    privileges_are_what_was_asked_for
    the_root_is_read_only_and_its_tree_untouched
    an_overlay_root_is_writable
    mounts_are_made_where_asked
    the_container_sees_its_own_limits
    memory_limits_kill_and_say_so
    pids_are_limited
    logs_are_cri_and_rotated
    stdin_and_output_flow_while_attached
    a_slow_reader_holds_output_up_and_loses_nothing
    a_terminal_is_a_terminal
    pause_stops_time
    statistics_count
    a_dead_keeper_is_replaced_and_the_exit_code_true
    a_dead_keeper_before_the_start
    an_end_that_nobody_saw_is_unknown
    a_new_daemon_finds_its_containers
    half_made_containers_are_swept
    a_keeper_is_small_and_apart
    proc_self_exe_is_refused
    cycles_follow_each_other
};

fn main() -> ExitCode {
    world::run(TESTS)
}

async fn a_container_runs_and_leaves_nothing() {
    let world = World::new();
    let mut spec = world.spec("echo hello; echo oops >&2; hostname; echo $GREETING $HOME; pwd; exit 3");
    symlink("busybox", world.path("tree/bin/hostname")).unwrap();
    spec.env.push(("GREETING".into(), "hi".into()));
    spec.hostname = "pod-1".into();
    spec.annotations.insert("pod".into(), "uid".into());
    let container = world.runtime.create(spec.clone()).await.unwrap();
    assert_eq!(container.status().await.unwrap().state, State::Created);
    assert!(matches!(world.runtime.create(spec.clone()).await, Err(create::Error::Exists(_))));
    container.start().await.unwrap();
    assert!(container.start().await.is_err(), "only once");
    let exit = container.wait().await.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (Some(3), None, false));
    assert!(exit.started_at.unwrap() <= exit.finished_at);
    assert_eq!(container.wait().await.unwrap(), exit, "and again");
    assert_eq!(container.status().await.unwrap().state, State::Exited(exit));
    let log = texts(&spec.log.path);
    for line in ["stdout F hello", "stderr F oops", "stdout F pod-1", "stdout F hi /", "stdout F /"] {
        assert!(log.lines().any(|found| found == line), "{line} in {log}");
    }
    container.delete().await.unwrap();
    container.delete().await.unwrap();
    assert!(!spec.bundle.exists());
    world.end().await;
}

async fn exit_codes_and_signals_are_true() {
    let world = World::new();
    for code in [0, 1, 42, 255] {
        let (exit, _) = world.run(world.spec(&format!("exit {code}"))).await;
        assert_eq!((exit.code, exit.signal), (Some(code), None));
    }
    // Signals reach the first process as the kernel has it: without a handler, only SIGKILL ends pid 1.
    let container =
        world.start(world.spec("trap 'exit 7' TERM; echo ready; while :; do sleep 1; done")).await;
    until("the trap is set", || texts(&container.spec().log.path).contains("ready")).await;
    container.signal(15).await.unwrap();
    assert_eq!(container.wait().await.unwrap().code, Some(7));
    assert!(container.signal(15).await.is_err(), "there is nobody any more");
    let container = world.start(world.spec("sleep 1000")).await;
    container.signal(9).await.unwrap();
    let exit = container.wait().await.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (None, Some(9), false));
    world.end().await;
}

async fn a_program_that_cannot_run_says_why() {
    let world = World::new();
    let tree = world.path("tree");
    fs::write(tree.join("bin/text"), "hello").unwrap();
    fs::write(tree.join("bin/script"), "#!/bin/none\n").unwrap();
    fs::write(tree.join("bin/plain"), "").unwrap();
    for name in ["text", "script"] {
        fs::set_permissions(tree.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (program, reason) in [
        ("/bin/none", "exec \"/bin/none\": no such file or directory"),
        ("/bin/script", "exec \"/bin/script\": no such file or directory"),
        ("/bin/plain", "exec \"/bin/plain\": permission denied"),
        ("/bin/text", "exec \"/bin/text\": exec format error"),
    ] {
        let mut spec = world.spec("");
        spec.args = vec![program.into()];
        let container = world.runtime.create(spec).await.unwrap();
        match container.start().await {
            Err(runtime::Error::Exec { reason: found, .. }) => assert_eq!(found, reason),
            other => panic!("{program}: {other:?}"),
        }
        let exit = container.wait().await.unwrap();
        assert_eq!((exit.code, exit.started_at), (Some(127), None));
    }
    let mut spec = world.spec("");
    spec.args = vec!["none".into()];
    let error = world.runtime.create(spec).await.err().unwrap();
    assert!(error.to_string().contains("exec \"none\": executable file not found in $PATH"), "{error}");
    world.end().await;
}

async fn a_failed_creation_leaves_nothing() {
    let world = World::new();
    let mut bad_id = world.spec("true");
    bad_id.id = "a/b".into();
    assert!(matches!(world.runtime.create(bad_id).await, Err(create::Error::Id(_))));
    let mut bad_mount = world.spec("true");
    bad_mount.mounts.push(bind("/etc/hostname", "/bin/sh/under", true));
    assert!(matches!(world.runtime.create(bad_mount).await, Err(create::Error::MountPoint { .. })));
    let mut bad_source = world.spec("true");
    bad_source.mounts.push(bind("/nonexistent", "/data", true));
    let error = world.runtime.create(bad_source.clone()).await.err().unwrap();
    assert!(matches!(error, create::Error::Source { .. }), "{error}");
    assert!(!bad_source.bundle.exists());
    let mut bad_netns = world.spec("true");
    bad_netns.netns = PathBuf::from("/nonexistent").into();
    assert!(world.runtime.create(bad_netns).await.is_err());
    for dir in world.cgroups() {
        let left = fs::read_dir(&dir)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with("c-"));
        assert_eq!(left.count(), 0, "{}", dir.display());
    }
    world.end().await;
}

async fn the_defaults_are_restricted() {
    let world = World::new();
    let (exit, log) = world
        .run(world.spec(
            "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups|SigIgn|SigBlk)' /proc/self/status; ls /proc/self/fd; \
             cat /proc/self/cgroup; mount -t tmpfs none /tmp 2>&1; cat /proc/kcore; cat /proc/1/comm",
        ))
        .await;
    let has = |line: &str| assert!(log.lines().any(|found| found[9..] == *line), "{line:?} in\n{log}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        has(&format!("{set}:\t0000000000000000"));
    }
    has("NoNewPrivs:\t1");
    has("Seccomp:\t2");
    has("Uid:\t65532\t65532\t65532\t65532");
    has("Gid:\t65532\t65532\t65532\t65532");
    has("Groups:\t ");
    has("SigIgn:\t0000000000000000");
    has("SigBlk:\t0000000000000000");
    // 0, 1, 2 and the folder that ls itself reads.
    let fds: Vec<&str> =
        log.lines().map(|line| &line[9..]).filter(|text| text.parse::<u32>().is_ok()).collect();
    assert_eq!(fds, ["0", "1", "2", "3"]);
    assert!(
        log.lines()
            .filter(|line| line.contains("::/") || line.contains(":/"))
            .all(|line| !line.contains("c-c1")),
        "{log}"
    );
    assert_eq!(exit.code, Some(0));
    world.end().await;
}

async fn privileges_are_what_was_asked_for() {
    let world = World::new();
    let mut spec =
        world.spec("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; id -u");
    spec.user = runtime::User { uid: 0, gid: 0, groups: vec![7, 2000] };
    spec.capabilities = Capabilities { add: vec!["NET_ADMIN".into()], drop: vec!["MKNOD".into()] };
    spec.no_new_privileges = false;
    let (_, log) = world.run(spec).await;
    let expected = format!("{:016x}", (0xa804_25fb_u64 | 1 << 12) & !(1 << 27));
    for line in [
        format!("CapEff:\t{expected}"),
        format!("CapBnd:\t{expected}"),
        "NoNewPrivs:\t0".into(),
        "Seccomp:\t2".into(),
        "Groups:\t7 2000 ".into(),
    ] {
        assert!(log.contains(&line), "{line:?} in\n{log}");
    }
    let mut spec = world.spec("grep -E '^(CapEff|Seccomp:)' /proc/self/status; mount -t tmpfs none /proc/scsi 2>/dev/null; mount -t tmpfs none /tmp && echo mounted");
    fs::create_dir(world.path("tree/tmp")).unwrap();
    spec.user = runtime::User::default();
    spec.privileged = true;
    spec.no_new_privileges = false;
    let (_, log) = world.run(spec).await;
    assert!(log.contains("Seccomp:\t0") && log.contains("mounted"), "{log}");
    world.end().await;
}

async fn the_root_is_read_only_and_its_tree_untouched() {
    let world = World::new();
    let before = listing(&world.path("tree"));
    let mut spec =
        world.spec("touch /x; mkdir /proc/x; touch /bin/y; echo >/dev/null && echo null; ls /; echo $HOME");
    spec.user = runtime::User::default();
    let (_, log) = world.run(spec).await;
    assert_eq!(log.matches("Read-only file system").count(), 2, "{log}");
    assert!(log.contains("stdout F null") && log.contains("stdout F proc"), "{log}");
    assert_eq!(listing(&world.path("tree")), before, "the tree is untouched");
    world.end().await;
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            found.extend(listing(&entry.path()));
        }
    }
    found.sort();
    found
}

async fn an_overlay_root_is_writable() {
    let world = World::new();
    let before = listing(&world.path("tree"));
    let mut spec = world.spec("touch /x /bin/y && ls /x /bin/y; pwd");
    spec.rootfs.access = Access::Overlay;
    spec.user = runtime::User::default();
    spec.cwd = "/srv/work".into();
    let (exit, log) = world.run(spec).await;
    assert_eq!(log, "stdout F /bin/y\nstdout F /x\nstdout F /srv/work\n");
    assert_eq!(exit.code, Some(0));
    assert_eq!(listing(&world.path("tree")), before, "the tree is untouched");
    world.end().await;
}

async fn mounts_are_made_where_asked() {
    let world = World::new();
    let data = world.path("data");
    fs::create_dir_all(data.join("sub")).unwrap();
    fs::write(data.join("file"), "inside").unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).unwrap();
    let tree = world.path("tree");
    fs::create_dir(tree.join("run")).unwrap();
    fs::create_dir(tree.join("var")).unwrap();
    symlink("/run", tree.join("var/run")).unwrap();
    let mut spec = world.spec(
        "cat /ro/file; touch /ro/no 2>&1; touch /rw/yes; cat /etc/resolv.conf; echo; touch /var/run/secrets/token; \
         stat -c '%a %u' /tmp; ls /var/run/secrets; ls /nested",
    );
    let data_text = data.to_string_lossy().into_owned();
    spec.mounts = vec![
        bind(&format!("{data_text}/file"), "/nested/dir/file", true),
        bind(&data_text, "/nested/dir", false),
        bind(&data_text, "/ro", true),
        bind(&data_text, "/rw", false),
        bind(&format!("{data_text}/file"), "/etc/resolv.conf", true),
        Mount {
            source: PathBuf::new(),
            sub_path: None,
            inert: false,
            target: "/tmp".into(),
            read_only: false,
            kind: MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o1777 },
        },
        Mount {
            source: PathBuf::new(),
            sub_path: None,
            inert: false,
            target: "/var/run/secrets".into(),
            read_only: false,
            kind: MountKind::Tmpfs { size_bytes: 0, mode: 0o777 },
        },
    ];
    let (_, log) = world.run(spec).await;
    let expected = "stdout F insidetouch: /ro/no: Read-only file system\nstdout F inside\nstdout F 1777 0\nstdout F token\nstdout F dir\n";
    assert_eq!(log, expected);
    assert!(data.join("yes").exists());
    world.end().await;
}

async fn the_container_sees_its_own_limits() {
    let world = World::new();
    let mut spec = world.spec(
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null \
         || cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/memory.max; echo x > /sys/fs/cgroup/y",
    );
    spec.resources.cpu_limit_milli = Some(1500);
    let (_, log) = world.run(spec).await;
    assert!(
        log.starts_with("stdout F 150000\nstdout F 67108864\n")
            || log.starts_with("stdout F 150000 100000\n"),
        "{log}"
    );
    assert!(log.contains("y: Read-only file system") || log.contains("y: Permission denied"), "{log}");
    // Open files: as asked for, whatever this process may open; above the machine's own limit, as many as that.
    let own = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    for (soft, hard, expected) in [(64, 128, (64, 128)), (64, u64::MAX - 1, (64, own.1))] {
        let mut spec = world.spec("ulimit -Sn; ulimit -Hn");
        spec.rlimits.push(runtime::Rlimit { name: "RLIMIT_NOFILE".into(), soft, hard });
        let (_, log) = world.run(spec).await;
        let (soft, hard) = expected;
        assert_eq!(log, format!("stdout F {soft}\nstdout F {hard}\n"));
    }
    world.end().await;
}

async fn memory_limits_kill_and_say_so() {
    let world = World::new();
    let mut spec = world.spec("exec dd if=/dev/zero of=/dev/null bs=200M count=1");
    spec.resources.memory_limit_bytes = Some(16 << 20);
    let (exit, _) = world.run(spec).await;
    assert_eq!((exit.signal, exit.oom_killed), (Some(9), true));
    let mut spec = world.spec("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 9");
    spec.resources.memory_limit_bytes = Some(16 << 20);
    let (exit, _) = world.run(spec).await;
    assert!(exit.oom_killed, "{exit:?}");
    world.end().await;
}

async fn pids_are_limited() {
    let world = World::new();
    let mut spec = world.spec("for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait");
    spec.resources.pids_limit = Some(4);
    let (exit, log) = world.run(spec).await;
    assert!(exit.code != Some(0) && log.contains("can't fork"), "{exit:?} {log}");
    world.end().await;
}

async fn logs_are_cri_and_rotated() {
    let world = World::new();
    let mut spec = world.spec("for i in $(seq 1 2000); do echo line $i; done; echo -n end");
    spec.log.max_bytes = 10_000;
    spec.log.max_files = 3;
    let path = spec.log.path.clone();
    world.run(spec).await;
    let files: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().flatten().collect();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.metadata().unwrap().len() <= 10_000));
    let text = fs::read_to_string(&path).unwrap();
    let last: Vec<&str> = text.lines().rev().take(2).collect();
    assert!(last[0].ends_with("Z stdout P end") && last[1].ends_with("Z stdout F line 2000"), "{last:?}");
    assert_eq!(last[0].find('Z'), Some(29));
    world.end().await;
}

async fn stdin_and_output_flow_while_attached() {
    let world = World::new();
    let mut spec = world.spec("cat; echo end >&2; exit 5");
    spec.stdin = true;
    let log = spec.log.path.clone();
    let container = world.runtime.create(spec).await.unwrap();
    let first = container.attach().await.unwrap();
    let second = container.attach().await.unwrap();
    container.start().await.unwrap();
    let big = vec![b'x'; 300_000];
    let input = first.input.clone();
    let expected = big.clone();
    let writer = tokio::spawn(async move {
        input.write(&big).await.unwrap();
        input.close().await.unwrap();
    });
    let read = async |mut attach: runtime::Attach| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let exit = loop {
            match attach.output.next().await.expect("not cut") {
                Attached::Stdout(bytes) => out.extend(bytes),
                Attached::Stderr(bytes) => err.extend(bytes),
                Attached::Exited(exit) => break exit,
            }
        };
        assert_eq!(attach.output.next().await, None);
        (out, err, exit.code)
    };
    for (out, err, code) in <[_; 2]>::from(tokio::join!(read(first), read(second))) {
        assert_eq!(out.len(), expected.len());
        assert_eq!((out, err, code), (expected.clone(), b"end\n".to_vec(), Some(5)));
    }
    writer.await.unwrap();
    assert_eq!(texts(&log).lines().filter(|line| line.starts_with("stdout P")).count(), 300_000 / 16384 + 1);
    world.end().await;
}

async fn a_slow_reader_holds_output_up_and_loses_nothing() {
    let world = World::new();
    let container = world.runtime.create(world.spec("seq 1 200000")).await.unwrap();
    let mut attach = container.attach().await.unwrap();
    container.start().await.unwrap();
    // It has written more than a pipe holds, and nobody has read yet.
    let log = container.spec().log.path.clone();
    until("output comes", || fs::metadata(&log).is_ok_and(|log| log.len() > 64 << 10)).await;
    let mut out = Vec::new();
    while let Some(Attached::Stdout(bytes)) = attach.output.next().await {
        out.extend(bytes);
    }
    let text = String::from_utf8(out).unwrap();
    assert!(text.lines().eq((1..=200_000).map(|number| number.to_string())));
    world.end().await;
}

async fn a_terminal_is_a_terminal() {
    let world = World::new();
    let mut spec =
        world.spec("test -t 0 && test -t 1 && echo terminal; stty size; read line; echo got $line");
    spec.tty = true;
    spec.stdin = true;
    let container = world.runtime.create(spec).await.unwrap();
    let attach = container.attach().await.unwrap();
    container.resize(33, 77).await.unwrap();
    container.start().await.unwrap();
    attach.input.write(b"word\n").await.unwrap();
    let exit = container.wait().await.unwrap();
    let log = texts(&container.spec().log.path);
    assert!(log.contains("terminal") && log.contains("33 77") && log.contains("got word"), "{exit:?} {log}");
    world.end().await;
}

async fn pause_stops_time() {
    let world = World::new();
    let container = world.start(world.spec("while :; do echo tick; done")).await;
    container.pause().await.unwrap();
    assert_eq!(container.status().await.unwrap().state, State::Paused);
    let used = container.stats().unwrap().cpu_usage_ns;
    // Time passes for others.
    let other = world.start(world.spec("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")).await;
    assert_eq!(other.wait().await.unwrap().code, Some(0));
    assert_eq!(container.stats().unwrap().cpu_usage_ns, used);
    container.resume().await.unwrap();
    until("it runs again", || container.stats().unwrap().cpu_usage_ns > used).await;
    container.pause().await.unwrap();
    container.signal(9).await.unwrap();
    assert_eq!(container.wait().await.unwrap().signal, Some(9), "even while paused");
    let container = world.start(world.spec("sleep 1000")).await;
    container.pause().await.unwrap();
    container.delete().await.unwrap();
    let container = world.start(world.spec("sleep 1000")).await;
    container.pause().await.unwrap();
    kill_keeper(&container).await;
    container.delete().await.unwrap();
    world.end().await;
}

async fn statistics_count() {
    let world = World::new();
    let container = world.start(world.spec("while :; do :; done")).await;
    until("it has used CPU", || container.stats().unwrap().cpu_usage_ns > 1_000_000).await;
    let stats = container.stats().unwrap();
    assert!(stats.memory_usage_bytes > 0 && stats.memory_working_set_bytes <= stats.memory_usage_bytes);
    assert_eq!((stats.pids, stats.memory_limit_bytes), (1, 64 << 20));
    world.end().await;
}

async fn a_dead_keeper_is_replaced_and_the_exit_code_true() {
    let world = World::new();
    let mut spec = world.spec("trap 'echo bye; exit 21' TERM; while :; do echo tick; sleep 0.05; done");
    spec.log.max_bytes = 1 << 20;
    let container = world.start(spec).await;
    let waiter = tokio::spawn({
        let container = container.clone();
        async move { container.wait().await.unwrap() }
    });
    for _ in 0..3 {
        kill_keeper(&container).await;
        assert_eq!(container.status().await.unwrap().state, State::Running, "it lives on");
        let lines = texts(&container.spec().log.path).lines().count();
        until("output is logged again", || texts(&container.spec().log.path).lines().count() > lines).await;
    }
    container.signal(15).await.unwrap();
    let exit = waiter.await.unwrap();
    assert!(exit.code == Some(21) || !exit.is_known(), "true or unknown: {exit:?}");
    assert_eq!(exit.code.is_some(), kernel_tells_exits(), "known where the kernel can tell");
    assert!(texts(&container.spec().log.path).contains("bye"));
    world.end().await;
}

/// PIDFD_INFO_EXIT: Linux 6.15.
fn kernel_tells_exits() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 15)
}

async fn a_dead_keeper_before_the_start() {
    let world = World::new();
    let container = world.runtime.create(world.spec("echo ran; exit 4")).await.unwrap();
    kill_keeper(&container).await;
    assert_eq!(container.status().await.unwrap().state, State::Created);
    container.start().await.unwrap();
    let exit = container.wait().await.unwrap();
    assert!(exit.code == Some(4) || !exit.is_known(), "{exit:?}");
    assert_eq!(texts(&container.spec().log.path), "stdout F ran\n");
    world.end().await;
}

async fn an_end_that_nobody_saw_is_unknown() {
    let world = World::new();
    let container = world.start(world.spec("sleep 1000")).await;
    let (id, pid, keeper) = (container.id().to_owned(), container.pid().unwrap(), keeper_of(&container));
    // The daemon, which could ask by its pidfd, dies first.
    drop(container);
    kill(keeper);
    kill(pid);
    until("it is reaped", || !Path::new(&format!("/proc/{pid}")).exists()).await;
    let found = open(world.dir.path(), &world.instance).reattach().await.unwrap();
    let container = found.iter().find(|container| container.id() == id).unwrap();
    let exit = container.wait().await.unwrap();
    assert!(!exit.is_known() && exit.started_at.is_some(), "{exit:?}");
    world.end().await;
}

async fn a_new_daemon_finds_its_containers() {
    let world = World::new();
    let running = world.start(world.spec("sleep 1000")).await;
    let ended = world.start(world.spec("exit 6")).await;
    ended.wait().await.unwrap();
    let mut spec = world.spec("true");
    spec.annotations.insert("pod".into(), "uid-1".into());
    let created = world.runtime.create(spec).await.unwrap();
    let again = open(world.dir.path(), &world.instance);
    let found = again.reattach().await.unwrap();
    assert_eq!(found.len(), 3);
    let by_id = |id: &str| found.iter().find(|container| container.id() == id).unwrap().clone();
    assert_eq!(by_id(running.id()).status().await.unwrap().state, State::Running);
    assert_eq!(by_id(running.id()).pid(), running.pid());
    assert_eq!(by_id(ended.id()).wait().await.unwrap().code, Some(6));
    assert_eq!(by_id(created.id()).annotations()["pod"], "uid-1");
    by_id(created.id()).start().await.unwrap();
    assert_eq!(created.wait().await.unwrap().code, Some(0));
    world.end().await;
}

async fn half_made_containers_are_swept() {
    let world = World::new();
    let bundle = world.path("pods/half");
    fs::create_dir(&bundle).unwrap();
    symlink(&bundle, world.path("run/containers/half")).unwrap();
    let stray = world.cgroups()[0].join("c-stray");
    fs::create_dir(&stray).unwrap();
    let kept = world.start(world.spec("sleep 1000")).await;
    assert_eq!(world.runtime.reattach().await.unwrap().len(), 1);
    assert!(!bundle.exists() && !stray.exists());
    assert_eq!(kept.status().await.unwrap().state, State::Running);
    world.end().await;
}

async fn a_keeper_is_small_and_apart() {
    let world = World::new();
    let container = world.start(world.spec("seq 1 20000; sleep 1000")).await;
    until("the output is logged", || texts(&container.spec().log.path).contains("F 20000")).await;
    let keeper = keeper_of(&container);
    let kib = |name: &str| -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{keeper}/smaps_rollup")).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().next().unwrap().parse().unwrap()
    };
    until("the keeper's PSS is at most 1.5 MiB", || kib("Pss:") <= 1536).await;
    println!("    keeper PSS {} KiB, of that not from the binary {} KiB", kib("Pss:"), kib("Pss_Anon:"));
    assert_eq!(container.status().await.unwrap().state, State::Running, "and it still works");
    let apart = format!("gantry-{}/keepers", world.instance);
    until("it has left the daemon's cgroup", || {
        fs::read_to_string(format!("/proc/{keeper}/cgroup")).unwrap().contains(&apart)
    })
    .await;
    assert_eq!(session(keeper), Some(keeper), "in a session of its own");
    let fds = fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().flatten();
    let open: Vec<String> =
        fds.map(|fd| fs::read_link(fd.path()).unwrap().to_string_lossy().into_owned()).collect();
    assert!(open.len() <= 14, "nothing inherited: {open:?}");
    world.end().await;
}

async fn proc_self_exe_is_refused() {
    let world = World::new();
    let mut spec = world.spec("");
    spec.args = vec!["/proc/self/exe".into(), "keeper".into()];
    spec.user = runtime::User::default();
    let container = world.runtime.create(spec).await.unwrap();
    assert!(matches!(container.start().await, Err(runtime::Error::Exec { .. })));
    // Nor can the file be written through a keeper's own link, even by the machine's root.
    let keeper = keeper_of(&container);
    let mount = rustix::fs::statvfs(format!("/proc/{keeper}/exe")).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    world.end().await;
}

async fn cycles_follow_each_other() {
    let world = World::new();
    for round in 0..10 {
        let id = format!("b{round}");
        let (pods, tree) = (world.path("pods"), world.path("tree"));
        let cycle = bench::bench_cycle(&world.runtime, &pods, &id, &tree, &["/bin/true"]).await;
        cycle.unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    world.end().await;
}
