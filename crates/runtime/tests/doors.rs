//! What a hostile container, image or neighbour tries; each test is an attack, and asserts the safe outcome.
//!
//! `cargo test -p runtime --test doors [NAME…]`, as root. This binary is its own keeper, and with the argument `hostile`
//! the attacker inside the container.

mod hostile;
mod world;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use runtime::{Access, Mount, MountKind, Namespace, Seccomp, Spec, State, User, Users, create};
use world::{Test, World, bind, chain, kill_keeper, texts, until};

const TESTS: &[Test] = tests! {
    a_sub_path_that_is_swapped_never_shows_the_host
    a_target_inside_a_volume_that_is_swapped_stays_inside
    a_target_that_is_a_link_stays_in_the_root
    an_image_whose_own_folders_are_links_is_refused
    nothing_is_mounted_inside_proc
    a_set_user_id_file_in_a_volume_gives_nothing
    a_thread_that_makes_the_keeper_its_tracer_does_not_keep_the_container
    a_container_that_resists_ends
    a_working_directory_through_a_descriptor_is_refused
    the_runtime_itself_cannot_be_written_to
    a_null_device_of_the_images_own_masks_nothing
    release_agents_and_kernel_crypto_are_out_of_reach
    garbage_collection_removes_only_bundles
    root_of_a_container_with_users_of_its_own_is_nobody_outside
};

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|verb| verb.to_str()) {
        Some("hostile") => hostile::main(&args[2..]),
        _ => world::run(TESTS),
    }
}

/// A container whose program is an attack of [`hostile`].
fn hostile(world: &World, attack: &[&str]) -> Spec {
    let mut spec = world.spec("");
    let exe = std::env::current_exe().unwrap();
    spec.mounts.push(bind(exe.to_str().unwrap(), "/bin/hostile", true));
    spec.args = ["/bin/hostile", "hostile"].iter().chain(attack).map(|arg| (*arg).to_owned()).collect();
    spec
}

/// A folder of the host that any container user may write to.
fn volume(world: &World, name: &str) -> String {
    let dir = world.path(name);
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    dir.to_string_lossy().into_owned()
}

fn below(source: &str, sub_path: &str, target: &str) -> Mount {
    Mount { sub_path: Some(sub_path.into()), inert: true, ..bind(source, target, false) }
}

/// CVE-2021-25741: a sibling swaps a folder for a link to the root while containers with that subPath start.
async fn a_sub_path_that_is_swapped_never_shows_the_host() {
    let world = World::new();
    let shared = volume(&world, "shared");
    fs::create_dir(world.path("shared/sub")).unwrap();
    fs::write(world.path("shared/sub/inside"), "inside").unwrap();
    let mut spec = hostile(&world, &["swap", "/shared/sub", "/shared/link", "/"]);
    spec.mounts.push(bind(&shared, "/shared", false));
    spec.user = User::default();
    let attacker = world.start(spec).await;
    until("the swaps go on", || texts(&attacker.spec().log.path).contains("swapping")).await;
    let (mut inside, mut elsewhere, mut refused) = (0, 0, 0);
    for _ in 0..60 {
        let mut spec = world.spec("cat /data/inside 2>/dev/null; ls -a /data; cat /data/etc/shadow /data/proc/1/cmdline 2>/dev/null");
        spec.user = User::default();
        spec.mounts.push(below(&shared, "sub", "/data"));
        let log = spec.log.path.clone();
        let id = spec.id.clone();
        match world.runtime.create(spec).await {
            Ok(container) => {
                container.start().await.unwrap();
                container.wait().await.unwrap();
                container.delete().await.unwrap();
                let text = texts(&log);
                assert!(
                    !text.contains(" etc") && !text.contains(" proc") && !text.contains("root:"),
                    "{id}: {text}"
                );
                // What is there is the folder, or, through the link, the volume itself.
                if text.contains("F inside") { inside += 1 } else { elsewhere += 1 }
            }
            Err(error) => {
                assert!(
                    matches!(error, create::Error::Refused { .. } | create::Error::Source { .. }),
                    "{error}"
                );
                refused += 1;
            }
        }
    }
    assert_eq!(inside + elsewhere + refused, 60);
    assert!(inside > 0, "the volume is served meanwhile: {inside} {elsewhere} {refused}");
    attacker.delete().await.unwrap();
    world.end().await;
}

/// CVE-2024-45310: the mount point is inside a volume in which a sibling swaps a folder for a link.
async fn a_target_inside_a_volume_that_is_swapped_stays_inside() {
    let world = World::new();
    let shared = volume(&world, "shared");
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(world.path("shared/a")).unwrap();
    let mut spec = hostile(&world, &["swap", "/shared/a", "/shared/link", outside.to_str().unwrap()]);
    spec.mounts.push(bind(&shared, "/shared", false));
    spec.user = User::default();
    let attacker = world.start(spec).await;
    until("the swaps go on", || texts(&attacker.spec().log.path).contains("swapping")).await;
    let mut started = 0;
    for round in 0..40 {
        let mut spec = world.spec("true");
        spec.user = User::default();
        spec.mounts.push(bind(&shared, "/v", false));
        let target = format!("/v/a/new-{round}/point");
        spec.mounts.push(bind(&world.path("tree").to_string_lossy(), &target, true));
        if let Ok(container) = world.runtime.create(spec).await {
            started += u32::from(container.start().await.is_ok());
            container.wait().await.unwrap();
            container.delete().await.unwrap();
        }
    }
    assert!(started > 0, "the volume is served meanwhile");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside");
    attacker.delete().await.unwrap();
    world.end().await;
}

async fn a_target_that_is_a_link_stays_in_the_root() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(world.path("hosts"), "ours").unwrap();
    let tree = world.path("tree");
    symlink(&outside, tree.join("etc")).unwrap();
    symlink("../../../../../../../..", tree.join("up")).unwrap();
    for access in [Access::ReadOnly, Access::Overlay] {
        let mut spec = world.spec("cat /etc/hosts; cat /up/x/hosts");
        spec.rootfs.access = access;
        let hosts = world.path("hosts");
        spec.mounts.push(bind(hosts.to_str().unwrap(), "/etc/hosts", false));
        spec.mounts.push(bind(hosts.to_str().unwrap(), "/up/x/hosts", false));
        let (exit, log) = world.run(spec).await;
        assert_eq!((exit.code, log.as_str()), (Some(0), "stdout P oursours\n"));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside");
        assert!(!tree.join("x").exists() && !Path::new("/x").exists());
    }
    world.end().await;
}

/// CVE-2026-41579: libcontainer makes devices and links by the path of `/dev`, from outside.
async fn an_image_whose_own_folders_are_links_is_refused() {
    let world = World::new();
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    let tree = world.path("tree");
    fs::create_dir(tree.join("real")).unwrap();
    for name in ["dev", "proc", "sys"] {
        for to in [outside.to_str().unwrap(), "real", "/nowhere"] {
            symlink(to, tree.join(name)).unwrap();
            for access in [Access::ReadOnly, Access::Overlay] {
                let mut spec = world.spec("true");
                spec.rootfs.access = access;
                let bundle = spec.bundle.clone();
                let error = world.runtime.create(spec).await.err().expect("refused");
                assert!(matches!(error, create::Error::MountPoint { .. }), "{}", chain(&error));
                assert!(error.hint().unwrap().contains(name), "{:?}", error.hint());
                assert!(!bundle.exists());
            }
            fs::remove_file(tree.join(name)).unwrap();
        }
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "nothing was made outside");
    let (exit, _) = world.run(world.spec("true")).await;
    assert_eq!(exit.code, Some(0));
    world.end().await;
}

/// CVE-2019-19921, CVE-2025-52881: what is mounted over procfs decides where the next writer's bytes go.
async fn nothing_is_mounted_inside_proc() {
    let world = World::new();
    let shared = volume(&world, "shared");
    symlink("/proc", world.path("tree/p")).unwrap();
    for target in ["/proc/self/attr", "/proc/sys", "/proc/1", "/p/sys/kernel", "/proc"] {
        let mut spec = world.spec("true");
        spec.user = User::default();
        spec.mounts.push(bind(&shared, target, false));
        match world.runtime.create(spec).await {
            Err(create::Error::Refused { reason, .. }) => {
                assert!(reason.contains("inside /proc"), "{reason}")
            }
            other => panic!("{target}: {:?}", other.map(|container| container.id().to_owned())),
        }
    }
    // As lxcfs does.
    fs::write(world.path("meminfo"), "MemTotal: 1 kB\n").unwrap();
    let mut spec = world.spec("cat /proc/meminfo");
    spec.mounts.push(bind(world.path("meminfo").to_str().unwrap(), "/proc/meminfo", true));
    let (_, log) = world.run(spec).await;
    assert_eq!(log, "stdout F MemTotal: 1 kB\n");
    world.end().await;
}

async fn a_set_user_id_file_in_a_volume_gives_nothing() {
    let world = World::new();
    let shared = volume(&world, "shared");
    let file = world.path("shared/program");
    fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o6755)).unwrap();
    let node = world.path("shared/null");
    let (kind, number) = (rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    rustix::fs::mknodat(rustix::fs::CWD, &node, kind, 0o666.into(), number).unwrap();
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    for (inert, expected) in [(true, "65532"), (false, "0")] {
        let mut spec = world.spec(
            "/data/program hostile user; echo x > /data/null && echo opened; grep ' /data ' /proc/mounts",
        );
        spec.no_new_privileges = false;
        spec.mounts.push(Mount { inert, ..bind(&shared, "/data", false) });
        let (_, log) = world.run(spec).await;
        assert!(log.contains(&format!("stdout F {expected}\n")), "{inert}: {log}");
        assert_eq!(log.contains("nosuid,nodev"), inert, "{log}");
        assert_eq!(log.contains("F opened"), !inert, "{log}");
    }
    world.end().await;
}

/// A thread that calls PTRACE_TRACEME makes its process's parent, the keeper, its tracer.
async fn a_thread_that_makes_the_keeper_its_tracer_does_not_keep_the_container() {
    let world = World::new();
    for attack in ["traced", "traced-and-stopped", "traced-leader", "traced-again-and-again"] {
        for paused in [false, true] {
            let container = world.start(hostile(&world, &[attack])).await;
            until("it is traced", || texts(&container.spec().log.path).contains("F traced")).await;
            // Nor does it keep the others.
            assert_eq!(world.run(world.spec("exit 4")).await.0.code, Some(4));
            if paused {
                container.pause().await.unwrap();
            }
            let begin = Instant::now();
            container.signal(9).await.unwrap();
            let exit = container.wait().await.unwrap();
            assert_eq!((exit.signal, exit.code), (Some(9), None), "{attack}");
            container.delete().await.unwrap();
            assert!(begin.elapsed() < Duration::from_secs(10), "{attack}: {:?}", begin.elapsed());
        }
    }
    // A stop is not for ever: the keeper lets the thread go, with its signal.
    let (exit, log) = world.run(hostile(&world, &["traced-and-goes-on"])).await;
    assert_eq!(exit.code, Some(5), "{log}");
    assert!(log.contains("F goes on"), "{log}");
    // And one whose keeper died meanwhile.
    let container = world.start(hostile(&world, &["traced-and-stopped"])).await;
    until("it is traced", || texts(&container.spec().log.path).contains("F traced")).await;
    kill_keeper(&container).await;
    container.delete().await.unwrap();
    world.end().await;
}

async fn a_container_that_resists_ends() {
    let world = World::new();
    for attack in ["fork-bomb", "stopped", "deaf"] {
        let mut spec = hostile(&world, &[attack]);
        spec.resources.pids_limit = Some(64);
        let container = world.start(spec).await;
        until("it resists", || texts(&container.spec().log.path).contains("F resisting")).await;
        let begin = Instant::now();
        container.delete().await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "{attack}: {:?}", begin.elapsed());
    }
    // Its keeper does not answer either.
    let container = world.start(world.spec("sleep 1000")).await;
    let keeper = rustix::process::Pid::from_raw(world::keeper_of(&container)).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::STOP).unwrap();
    container.delete().await.unwrap();
    world.end().await;
}

/// CVE-2024-21626.
async fn a_working_directory_through_a_descriptor_is_refused() {
    let world = World::new();
    for number in 3..=20 {
        let mut spec = world.spec("ls -a .; cat ../../../../etc/shadow");
        spec.user = User::default();
        spec.cwd = format!("/proc/self/fd/{number}").into();
        assert!(world.runtime.create(spec).await.is_err(), "descriptor {number}");
    }
    symlink("/proc/self/fd/7", world.path("tree/cwd")).unwrap();
    let mut spec = world.spec("true");
    spec.cwd = "/cwd".into();
    assert!(world.runtime.create(spec).await.is_err());
    // A working directory in a volume is entered when the volume is there.
    let shared = volume(&world, "shared");
    let mut spec = world.spec("pwd; ls /proc/self/fd; touch here");
    spec.mounts.push(bind(&shared, "/data", false));
    spec.cwd = "/data/work".into();
    fs::create_dir(world.path("shared/work")).unwrap();
    fs::set_permissions(world.path("shared/work"), fs::Permissions::from_mode(0o777)).unwrap();
    let (_, log) = world.run(spec).await;
    assert_eq!(log, "stdout F /data/work\nstdout F 0\nstdout F 1\nstdout F 2\nstdout F 3\n");
    assert!(world.path("shared/work/here").exists());
    world.end().await;
}

/// CVE-2019-5736.
async fn the_runtime_itself_cannot_be_written_to() {
    let world = World::new();
    let tree = world.path("tree");
    fs::write(tree.join("bin/again"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(tree.join("bin/again"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("/proc/self/exe", tree.join("bin/self")).unwrap();
    let exe = std::env::current_exe().unwrap();
    let before = (fs::metadata(&exe).unwrap().len(), fs::metadata(&exe).unwrap().mtime());
    for program in ["/bin/again", "/bin/self", "/proc/self/exe", "/proc/1/exe"] {
        let mut spec = world.spec("");
        spec.user = User::default();
        spec.args = vec![program.into(), "nothing-is-called-so".into()];
        let container = world.runtime.create(spec).await.unwrap();
        // What it would run is the binary through a mount that nobody can write through, not even the machine's root.
        let own = format!("/proc/{}/exe", container.pid().unwrap());
        assert!(fs::OpenOptions::new().write(true).open(&own).is_err());
        let mount = rustix::fs::statvfs(&own).unwrap();
        assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        let _ = container.start().await;
        container.wait().await.unwrap();
        container.delete().await.unwrap();
    }
    assert_eq!((fs::metadata(&exe).unwrap().len(), fs::metadata(&exe).unwrap().mtime()), before);
    world.end().await;
}

/// CVE-2025-31133: masked paths are covered with the image's `/dev/null`.
async fn a_null_device_of_the_images_own_masks_nothing() {
    let world = World::new();
    let tree = world.path("tree");
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    fs::create_dir(tree.join("dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", tree.join("dev/null")).unwrap();
    for access in [Access::ReadOnly, Access::Overlay] {
        let mut spec = world.spec(
            "echo '|/evil' > /proc/sys/kernel/core_pattern; stat -c %t:%T /dev/null /proc/keys; cat /proc/keys",
        );
        spec.rootfs.access = access;
        spec.user = User::default();
        let (_, log) = world.run(spec).await;
        assert!(log.contains("core_pattern: Read-only file system"), "{log}");
        let shown: Vec<&str> = log.lines().filter(|line| line.starts_with("stdout")).collect();
        assert_eq!(shown, ["stdout F 1:3"; 2], "masked by the null device itself: {log}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(), pattern);
    world.end().await;
}

/// CVE-2022-0492, CVE-2026-31431.
async fn release_agents_and_kernel_crypto_are_out_of_reach() {
    let world = World::new();
    for user in [0, 65532] {
        let mut spec = hostile(&world, &["kernel"]);
        spec.user = User { uid: user, gid: user, groups: Vec::new() };
        spec.capabilities = Default::default();
        spec.no_new_privileges = false;
        assert_eq!(spec.seccomp, Seccomp::RuntimeDefault);
        let (exit, log) = world.run(spec).await;
        assert_eq!((exit.code, log.as_str()), (Some(0), "stdout F refused\n"), "as {user}");
        let mut spec = world.spec(
            "for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do echo /evil > $f; done; \
             mount -t cgroup -o memory cgroup /tmp && echo mounted; true",
        );
        spec.user = User { uid: user, gid: user, groups: Vec::new() };
        spec.capabilities = Default::default();
        let (_, log) = world.run(spec).await;
        assert!(!log.contains("mounted"), "{log}");
    }
    world.end().await;
}

/// pelagos-containers/pelagos#347: collection with empty or foreign fields removed the host's `/bin`.
async fn garbage_collection_removes_only_bundles() {
    let world = World::new();
    let precious = world.path("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), "1").unwrap();
    fs::create_dir(world.path("pods/foreign")).unwrap();
    fs::write(world.path("pods/foreign/file"), "1").unwrap();
    let index = world.path("run/containers");
    let kept = world.start(world.spec("sleep 1000")).await;
    let record = kept.bundle().join("container.json");
    // Links that lead elsewhere, and records that say so.
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("file"), "1").unwrap();
    symlink(elsewhere.path(), index.join("elsewhere")).unwrap();
    symlink("", index.join("empty")).unwrap_or_default();
    symlink(world.dir.path(), index.join("state")).unwrap();
    symlink(world.path("pods/../precious"), index.join("up")).unwrap();
    symlink(world.path("pods/foreign"), index.join("foreign")).unwrap();
    let text = fs::read_to_string(&record).unwrap();
    for (name, from, to) in [
        ("other-bundle", kept.bundle().to_str().unwrap(), "/"),
        ("no-bundle", kept.bundle().to_str().unwrap(), ""),
        ("other-id", "\"id\":\"c1\"", "\"id\":\"\""),
        ("other-cgroup", "/c-c1", ""),
    ] {
        let bundle = world.path("pods").join(name);
        fs::create_dir(&bundle).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(bundle.join("container.json"), text.replace(from, to)).unwrap();
        symlink(&bundle, index.join(name)).unwrap();
    }
    let found = world.runtime.reattach().await.unwrap();
    assert_eq!(found.iter().map(|container| container.id()).collect::<Vec<_>>(), [kept.id()]);
    assert_eq!(kept.status().await.unwrap().state, State::Running);
    assert!(precious.join("file").exists() && elsewhere.path().join("file").exists());
    assert!(world.path("pods/foreign/file").exists() && world.path("tree/bin/sh").exists());
    let mut outside = world.spec("true");
    outside.bundle = elsewhere.path().join("bundle");
    assert!(matches!(world.runtime.create(outside).await, Err(create::Error::Bundle(_))));
    for entry in fs::read_dir(&index).unwrap().flatten() {
        if entry.file_name() != *kept.id() {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    for name in ["other-bundle", "no-bundle", "other-id", "other-cgroup", "foreign"] {
        fs::remove_dir_all(world.path("pods").join(name)).unwrap();
    }
    world.end().await;
}

/// A network namespace that belongs to other users, for as long as this lives.
struct OtherUsers(std::process::Child);

impl OtherUsers {
    fn new(first: u32) -> OtherUsers {
        use std::io::Read as _;
        use std::process::{Command, Stdio};
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["hostile", "namespaces"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{}/{map}", child.id()), format!("0 {first} 65536")).unwrap();
        }
        OtherUsers(child)
    }

    fn network(&self) -> Namespace {
        Namespace::Path(format!("/proc/{}/ns/net", self.0.id()).into())
    }
}

impl Drop for OtherUsers {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

async fn root_of_a_container_with_users_of_its_own_is_nobody_outside() {
    let first = 77 << 16;
    let users = OtherUsers::new(first);
    let world = World::new();
    // Nothing of ours can be passed by anybody but the machine's root.
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let shared = volume(&world, "shared");
    fs::write(world.path("shared/roots"), "root's\n").unwrap();
    fs::set_permissions(world.path("shared/roots"), fs::Permissions::from_mode(0o600)).unwrap();
    for (round, (access, skeleton)) in [
        (Access::ReadOnly, true),
        (Access::Overlay, true),
        (Access::ReadOnly, false),
        (Access::Overlay, false),
    ]
    .into_iter()
    .enumerate()
    {
        if !skeleton {
            for name in ["proc", "dev", "sys", "data", "tmp"] {
                let _ = fs::create_dir(world.path("tree").join(name));
            }
        }
        let mut spec = world.spec(
            "cat /proc/self/uid_map; id -u; stat -c %u:%g /bin /data/roots /tmp; cat /data/roots; touch /data/new-$ROUND && echo new; \
             touch /tmp/x && echo tmp; touch /x 2>/dev/null && echo writable; echo >/dev/null && echo null; \
             cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; echo said; read word",
        );
        spec.stdin = true;
        spec.rootfs.access = access;
        spec.env.push(("ROUND".into(), round.to_string()));
        spec.netns = users.network();
        spec.users = Users::Own { first };
        spec.user = User { uid: 0, gid: 0, groups: vec![5] };
        spec.capabilities = Default::default();
        spec.no_new_privileges = false;
        spec.mounts.push(Mount { inert: true, ..bind(&shared, "/data", false) });
        spec.mounts.push(Mount {
            kind: MountKind::Tmpfs { size_bytes: 1 << 20, mode: 0o755 },
            ..bind("", "/tmp", false)
        });
        let container = world.start(spec).await;
        let log = container.spec().log.path.clone();
        until("it has said all", || texts(&log).contains("F said")).await;
        let status = fs::read_to_string(format!("/proc/{}/status", container.pid().unwrap())).unwrap();
        let ids = format!("Uid:\t{first}\t{first}\t{first}\t{first}\n");
        assert!(status.contains(&ids) && status.contains(&format!("Groups:\t{} \n", first + 5)), "{status}");
        container.delete().await.unwrap();
        let text = texts(&log);
        let lines: Vec<String> =
            text.lines().map(|line| line[9..].split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let mut expected = vec!["0 5046272 65536", "0", "0:0", "0:0", "0:0", "root's", "new", "tmp"];
        if access == Access::Overlay {
            expected.push("writable");
        }
        expected.extend(["null", "67108864", "said"]);
        assert_eq!(lines, expected, "{access:?}");
        let made = fs::metadata(world.path(&format!("shared/new-{round}"))).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0), "on disk, ids are the container's");
    }
    // Where there are no such users, nothing runs as if there were.
    for netns in [Namespace::New, Namespace::Path("/proc/self/ns/net".into())] {
        let mut spec = world.spec("true");
        spec.netns = netns;
        spec.users = Users::Own { first };
        assert!(matches!(world.runtime.create(spec).await, Err(create::Error::Refused { .. })));
    }
    world.end().await;
}
