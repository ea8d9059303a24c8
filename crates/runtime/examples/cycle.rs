//! create + start + wait + delete, beside `runc run` of the same program, interleaved: `cycle [ROUNDS]`, as root.
#![expect(clippy::print_stdout, reason = "its purpose")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use runtime::{Config, Runtime, bench};

fn main() -> ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().collect();
    if args.get(1).is_some_and(|verb| verb == "keeper") {
        return runtime::keeper_main(&args[2..]);
    }
    let rounds = args.get(1).and_then(|arg| arg.to_str()?.parse().ok()).unwrap_or(30);
    let executor =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    executor.block_on(compare(rounds));
    ExitCode::SUCCESS
}

async fn compare(rounds: usize) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("bin")).unwrap();
    fs::copy("/bin/busybox", tree.join("bin/busybox")).unwrap();
    symlink("busybox", tree.join("bin/true")).unwrap();
    let has_runc = prepare_runc(dir.path(), &tree);
    let exe = std::env::current_exe().unwrap();
    let runtime =
        Runtime::open(Config { state_dir: dir.path().to_owned(), instance: "0000be4c".into(), exe }).unwrap();
    let (mut ours, mut runc) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let cycle =
            bench::bench_cycle(&runtime, dir.path(), &format!("b{round}"), &tree, &["/bin/true"]).await;
        ours.push(cycle.unwrap());
        if has_runc {
            let begin = Instant::now();
            let status = Command::new("runc")
                .args(["run", "--bundle"])
                .arg(dir.path().join("runc"))
                .arg("gantry-cycle")
                .status();
            assert!(status.unwrap().success());
            runc.push(begin.elapsed());
        }
    }
    runtime.destroy().await.unwrap();
    let of = |part: fn(&bench::Cycle) -> Duration| median(ours.iter().map(part).collect());
    println!(
        "gantry {:?}: create {:?}, start {:?}, wait {:?}, delete {:?}",
        of(bench::Cycle::total),
        of(|c| c.create),
        of(|c| c.start),
        of(|c| c.wait),
        of(|c| c.delete)
    );
    if has_runc {
        let runc = median(runc);
        println!("runc   {runc:?}; ratio {:.2}", of(bench::Cycle::total).as_secs_f64() / runc.as_secs_f64());
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// runc's own default spec, for the same tree and program.
fn prepare_runc(dir: &Path, tree: &Path) -> bool {
    let bundle = dir.join("runc");
    fs::create_dir(&bundle).unwrap();
    if !Command::new("runc")
        .args(["spec", "--bundle"])
        .arg(&bundle)
        .status()
        .is_ok_and(|status| status.success())
    {
        return false;
    }
    // Mount points that runc would make in the tree.
    for name in ["proc", "dev", "sys"] {
        fs::create_dir_all(tree.join(name)).unwrap();
    }
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["root"]["path"] = tree.to_string_lossy().into();
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    config["process"]["terminal"] = false.into();
    fs::write(path, config.to_string()).unwrap();
    true
}
