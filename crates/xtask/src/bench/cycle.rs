//! Create, start, wait, delete of a container through the keeper, beside `runc run`; `crun run` is told too.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::process::ok;
use super::row::{Bar, number};
use super::samples::Samples;
use super::{Figure, Row, Setting};

pub(crate) const FIGURE: Figure = Figure {
    name: "cycle",
    about: "create + start + wait + delete of a container, through the keeper",
    peer: "runc run, crun run",
    bar: "≤ 0.8 × runc",
    run,
};

/// Cycles a round, as one takes milliseconds only.
const CYCLES_PER_ROUND: usize = 5;
/// The mark of what this makes; no state folder's, as its name is no random number.
const INSTANCE: &str = "0000be4c";

fn run(setting: &Setting) -> Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let tree = tree(folder.path())?;
    let runc = bundle(folder.path(), "runc", &tree);
    let crun = Crun::start(bundle(folder.path(), "crun", &tree));
    let executor = crate::accept::runtime()?;
    let runtime = runtime::Runtime::open(runtime::Config {
        state_dir: folder.path().to_owned(),
        instance: INSTANCE.to_owned(),
        exe: setting.gantry.clone(),
    })?;
    let cycle = |id: &str| {
        let cycle = runtime::bench::bench_cycle(&runtime, folder.path(), id, &tree, &["/bin/true"]);
        executor.block_on(cycle).map(|cycle| cycle.total())
    };
    cycle("bench-first").context("the first cycle")?;
    let (mut ours, mut with_runc, mut with_crun) =
        (Samples::default(), Samples::default(), Samples::default());
    let mut alive = runc.as_ref().map(drop).map_err(|error| anyhow::anyhow!("{error:#}"));
    for number in 0..setting.rounds * CYCLES_PER_ROUND {
        ours.push_milliseconds(cycle(&format!("bench-{number}"))?);
        if let (Ok(bundle), Ok(())) = (&runc, &alive) {
            match run_once("runc", bundle) {
                Ok(took) => with_runc.push_milliseconds(took),
                Err(error) => alive = Err(error),
            }
        }
        if let Some(took) = crun.run() {
            with_crun.push_milliseconds(took);
        }
    }
    executor.block_on(runtime.destroy())?;
    let about = "create + start + wait + delete of a container, through the keeper, beside runc run";
    let mut row =
        Row::compare(about, "ms", ours.median(), &alive.map(|()| with_runc.median()), Bar::ratio(0.8));
    row.peer = format!("{}; crun {} ms", row.peer, number(with_crun.median()));
    Ok(vec![row])
}

/// A root with busybox in it.
fn tree(folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    for name in ["bin", "proc", "dev", "sys"] {
        std::fs::create_dir_all(tree.join(name))?;
    }
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).context("copy /bin/busybox")?;
    symlink("busybox", tree.join("bin/true"))?;
    Ok(tree)
}

/// A runtime's own default bundle, for the same root and program.
fn bundle(folder: &Path, program: &str, tree: &Path) -> Result<PathBuf> {
    let bundle = folder.join(program);
    std::fs::create_dir(&bundle)?;
    let mut command = Command::new(program);
    command.arg("spec").current_dir(&bundle);
    ok(command)?;
    let path = bundle.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    config["root"]["path"] = tree.to_string_lossy().into();
    config["process"]["args"] = serde_json::json!(["/bin/true"]);
    config["process"]["terminal"] = false.into();
    std::fs::write(path, config.to_string())?;
    Ok(bundle)
}

fn run_once(program: &str, bundle: &Path) -> Result<Duration> {
    let mut command = Command::new(program);
    command.args(["run", "--bundle"]).arg(bundle).arg(format!("gantry-bench-{program}"));
    let started = Instant::now();
    ok(command)?;
    Ok(started.elapsed())
}

/// crun refuses a machine on which both versions of cgroups are mounted: it runs from a thread that does not see the
/// second.
struct Crun {
    asks: mpsc::Sender<()>,
    answers: mpsc::Receiver<Result<Duration>>,
}

impl Crun {
    fn start(bundle: Result<PathBuf>) -> Self {
        let (asks, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        std::thread::spawn(move || {
            let hidden = bundle.and_then(|bundle| hide_unified().map(|()| bundle));
            if let Err(error) = &hidden {
                crate::say(&format!("crun: {error:#}"));
            }
            let mut told = false;
            while let Ok(()) = asked.recv() {
                let took = match &hidden {
                    Ok(bundle) => run_once("crun", bundle),
                    Err(error) => Err(anyhow::anyhow!("{error:#}")),
                };
                if let (Err(error), false) = (&took, told) {
                    crate::say(&format!("crun: {error:#}"));
                    told = true;
                }
                if answer.send(took).is_err() {
                    return;
                }
            }
        });
        Self { asks, answers }
    }

    fn run(&self) -> Option<Duration> {
        self.asks.send(()).ok()?;
        self.answers.recv().ok()?.ok()
    }
}

fn hide_unified() -> Result<()> {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).context("make a mount namespace")?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    let unified = "/sys/fs/cgroup/unified";
    if Path::new(unified).join("cgroup.controllers").exists() {
        umount2(unified, MntFlags::MNT_DETACH).context("hide the second cgroup hierarchy")?;
    }
    Ok(())
}
