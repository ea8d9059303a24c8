//! The daemon is killed at seeded moments of concurrent writes, started again, and asked for what it acknowledged.

use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::archive::{self, Image};
use super::pods::{Exit, Pod, Pods};
use super::registry::{Images, Registry};
use super::work::{Work, poll};
use super::writers::{Writers, api};
use crate::accept::Setting;
use crate::sandbox::{Sandbox, output};

/// Steps of all writers before a kill.
const STEPS: std::ops::Range<u64> = 20..300;
/// In one of so many kills the keeper of a container dies too.
const KEEPER_EVERY: usize = 4;
/// After one of so many kills the next daemon is killed too, while it starts.
const START_EVERY: usize = 5;
/// Looks at the starting daemon before it is killed: the moment, without a clock.
const LOOKS: std::ops::Range<u32> = 0..10_000;
const LOADED_TAGS: usize = 4;

struct Kills<'a> {
    sandbox: &'a Sandbox,
    writers: Writers,
    /// What `gantry image load` was told.
    loaded: Images,
    random: StdRng,
    pods: Pods,
    /// Of earlier kills, and to be deleted.
    old: Vec<Pod>,
    exits_true: usize,
    exits_unknown: usize,
    starts_killed: usize,
}

pub(super) fn run(setting: &Setting) -> Result<String> {
    let sandbox = Sandbox::new(&setting.gantry)?;
    sandbox.ok(["daemon", "start"])?;
    let mut kills = Kills {
        sandbox: &sandbox,
        writers: Writers::new(setting.seed),
        loaded: Images::new("loaded"),
        random: StdRng::seed_from_u64(setting.seed),
        pods: Pods::new(&sandbox, sandbox.work("gates")?)?,
        old: Vec::new(),
        exits_true: 0,
        exits_unknown: 0,
        starts_killed: 0,
    };
    let times = setting.times(100, 8);
    for number in 0..times {
        kills.one(number).with_context(|| format!("kill {number} of seed {}", setting.seed))?;
    }
    let (blobs, images) = kills.writers.check_all(&sandbox)?;
    let (objects, pushed) = kills.writers.written();
    let objects_in_flight = kills.writers.objects.iter().map(|one| one.in_flight());
    let (in_flight, arrived) = objects_in_flight.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let (known, unknown) = (kills.exits_true, kills.exits_unknown);
    let (loads, starts) = (kills.loaded.pushed(), kills.starts_killed);
    sandbox.end()?;
    Ok(format!(
        "{times} kills and {starts} more of a starting daemon: {objects} object writes, {pushed} pushes and \
         {loads} loads acknowledged, all there; {in_flight} object writes in flight, {arrived} of them there, whole; {blobs} blobs whole, {images} images \
         read by crane; no orphan; {known} exit codes true, {unknown} unknown"
    ))
}

impl Kills<'_> {
    fn one(&mut self, number: usize) -> Result<()> {
        let (sandbox, work) = (self.sandbox, Work::default());
        let keeper_dies = number % KEEPER_EVERY == KEEPER_EVERY - 1;
        let mut connection = api(sandbox)?.connect()?;
        let gated = self.pods.define(&format!("gated-{number}"), self.random.random_range(0..120), true)?;
        let quick = self.pods.define(&format!("quick-{number}"), self.random.random_range(0..120), false)?;
        ensure!(self.pods.create(&mut connection, &gated)? == Some(201), "pod {} was not made", gated.name);
        self.pods.running(&mut connection, &gated)?;
        let keeper = keeper_dies.then(|| self.pods.keeper(&mut connection, &gated)).transpose()?;
        let (moment, looks) = (self.random.random_range(STEPS), self.random.random_range(LOOKS));
        let daemon = sandbox.daemon_pid()?;
        let start_dies = number % START_EVERY == START_EVERY - 1;
        let mut random = StdRng::seed_from_u64(self.random.random());
        let (pods, old, loaded) = (&self.pods, &self.old, &mut self.loaded);
        let quick_made = thread::scope(|scope| {
            let loader = scope.spawn(|| load(sandbox, loaded, &work, &mut random));
            let quick_made = self.writers.run(sandbox, &work, false, |_, _| {
                let pods = scope.spawn(|| -> Result<Option<u16>> {
                    work.step();
                    for pod in old {
                        // Without an answer it is asked again after the start.
                        pods.delete(&mut connection, pod)?;
                    }
                    pods.create(&mut connection, &quick)
                });
                work.until("the moment of the kill", |counts| counts.steps >= moment)?;
                work.stop();
                sandbox.kill(daemon)?;
                // After the daemon, which would replace it.
                keeper.map_or(Ok(()), |keeper| sandbox.kill(keeper))?;
                pods.join().unwrap_or_else(|_| bail!("the Pods' writer panicked"))
            });
            // No daemon sees this.
            let ended = quick_made.is_ok().then(|| self.pods.open_gate(&gated));
            let killed = start_dies.then(|| kill_start(sandbox, daemon, looks)).transpose();
            let started = sandbox.ok(["daemon", "start"]);
            loader.join().unwrap_or_else(|_| bail!("the loader panicked"))?;
            ended.transpose()?;
            killed?;
            started?;
            quick_made
        })?;
        self.starts_killed += usize::from(start_dies);
        self.check(&gated, keeper_dies, &quick, quick_made)?;
        self.old = vec![gated, quick];
        Ok(())
    }

    fn check(&mut self, gated: &Pod, keeper_died: bool, quick: &Pod, made: Option<u16>) -> Result<()> {
        let sandbox = self.sandbox;
        self.writers.check(sandbox, true)?;
        self.loaded.check(&mut Registry::of(sandbox)?.connect()?)?;
        let api = api(sandbox)?;
        let mut connection = api.connect()?;
        for (pod, exit) in [
            (gated, self.pods.exit(&mut connection, gated)?),
            (quick, self.pods.exit(&mut connection, quick)?),
        ] {
            match exit {
                Some(Exit::True) => self.exits_true += 1,
                Some(Exit::Unknown) => {
                    ensure!(
                        keeper_died && pod.name == gated.name,
                        "{}: unknown, and its keeper lives",
                        pod.name
                    );
                    self.exits_unknown += 1;
                }
                None => ensure!(
                    made.is_none() && pod.name == quick.name,
                    "pod {} was acknowledged and is not there",
                    pod.name
                ),
            }
        }
        ensure!(matches!(made, None | Some(201)), "pod {}: {made:?}", quick.name);
        for pod in &self.old {
            ensure!(self.pods.delete(&mut connection, pod)?, "no answer");
        }
        self.pods.gone(&mut connection, &self.old)?;
        self.pods.check_no_orphan(&api)
    }
}

/// Starts a daemon after `old`, and kills it so many looks after it is there.
fn kill_start(sandbox: &Sandbox, old: Pid, looks: u32) -> Result<()> {
    thread::scope(|scope| {
        let starting = scope.spawn(|| sandbox.run(["daemon", "start"]));
        let mut pid = old;
        poll("another daemon is there", || {
            pid = sandbox.daemon_pid().unwrap_or(old);
            Ok(pid != old)
        })?;
        for _ in 0..looks {
            std::hint::black_box(sandbox.daemon_pid().ok());
        }
        sandbox.kill(pid)?;
        let said = starting.join().unwrap_or_else(|_| bail!("the starter panicked"))?;
        // It may have been ready by then.
        let text = String::from_utf8_lossy(&said.stderr);
        let clear = text.contains("error:") && text.contains("hint:");
        ensure!(said.status.success() || clear, "gantry daemon start: {text}");
        Ok(())
    })
}

/// Loads images by the command until told to stop.
fn load(sandbox: &Sandbox, loaded: &mut Images, work: &Work, random: &mut StdRng) -> Result<()> {
    let path = sandbox.work("load")?.join("image.tar");
    while work.step() {
        let tag = format!("v{}", random.random_range(0..LOADED_TAGS));
        let image = Image::random(random, 1000..300_000)?;
        let name = format!("localhost/{}:{tag}", loaded.repository());
        std::fs::write(&path, archive::tar(&image.layout(&name))?)?;
        loaded.begin(&tag, &image);
        let mut command = sandbox.command(["image", "load", "--input"]);
        command.arg(&path);
        let said = output(command)?;
        if said.status.success() {
            loaded.acknowledge(&tag, &image);
        } else {
            let text = String::from_utf8_lossy(&said.stderr);
            ensure!(work.stopped(), "gantry image load: {text}");
            ensure!(text.contains("error:") && text.contains("hint:"), "gantry image load: {text}");
        }
    }
    Ok(())
}
