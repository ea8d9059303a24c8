//! The state folder's disk is filled at seeded moments of concurrent writes: what is refused is refused clearly, what
//! was acknowledged stays, and when there is space again everything works again.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::archive::{self, Image};
use super::pods::{Exit, Pod, Pods};
use super::registry::Registry;
use super::work::Work;
use super::writers::{Writers, api};
use crate::accept::Setting;
use crate::disk::Disk;
use crate::sandbox::{Sandbox, output};

/// The disk: small enough to be filled at once, large enough for the images that the test builds.
const DISK_BYTES: u64 = 192 << 20;
/// Steps of all writers before the disk is filled.
const STEPS: std::ops::Range<u64> = 20..200;
/// What is left free, so that writes fail at different places.
const FREE_BYTES: std::ops::Range<u64> = 0..64 << 10;
/// Objects of this size fill what the store's file had in reserve.
const LARGE_BYTES: usize = 60_000;

struct Full<'a> {
    sandbox: &'a Sandbox,
    disk: &'a Disk,
    writers: Writers,
    random: StdRng,
    pods: Pods,
    hello: PathBuf,
    exits_true: usize,
    exits_unknown: usize,
    refused_objects: u64,
    refused_blobs: u64,
    restarts: usize,
}

pub(super) fn run(setting: &Setting) -> Result<String> {
    // A mount namespace belongs to a thread and what it starts.
    std::thread::scope(|scope| {
        scope.spawn(|| inside(setting)).join().unwrap_or_else(|_| bail!("the test panicked"))
    })
}

fn inside(setting: &Setting) -> Result<String> {
    let sandbox = Sandbox::on_disk(&setting.gantry, DISK_BYTES)?;
    sandbox.ok(["daemon", "start"])?;
    let hello = sandbox.work("hello")?;
    crate::demo::copy(&crate::tidy::root()?.join("examples/hello"), &hello)?;
    let mut full = Full {
        sandbox: &sandbox,
        disk: sandbox.disk()?,
        writers: Writers::new(setting.seed),
        random: StdRng::seed_from_u64(setting.seed),
        pods: Pods::new(&sandbox, sandbox.work("gates")?)?,
        hello,
        exits_true: 0,
        exits_unknown: 0,
        refused_objects: 0,
        refused_blobs: 0,
        restarts: 0,
    };
    let times = setting.times(20, 2);
    for number in 0..times {
        full.one(number).with_context(|| format!("full disk {number} of seed {}", setting.seed))?;
    }
    // Nothing came from memory.
    sandbox.kill(sandbox.daemon_pid()?)?;
    sandbox.ok(["daemon", "start"])?;
    let (blobs, _) = full.writers.check_all(&sandbox)?;
    let (objects, pushed) = full.writers.written();
    let figure = format!(
        "{times} full disks: {} object writes, {} pushes and {times} commands refused clearly; {objects} object \
         writes and {pushed} pushes acknowledged, all there, {blobs} blobs whole; writes went on after each, {} \
         times after a kill; {} exit codes true, {} unknown",
        full.refused_objects, full.refused_blobs, full.restarts, full.exits_true, full.exits_unknown
    );
    sandbox.end()?;
    Ok(figure)
}

impl Full<'_> {
    fn one(&mut self, number: usize) -> Result<()> {
        let (sandbox, work) = (self.sandbox, Work::default());
        // Every other time the daemon dies on the full disk.
        let killed = number % 2 == 1;
        let api = api(sandbox)?;
        let mut connection = api.connect()?;
        let pod = self.pods.define(&format!("full-{number}"), self.random.random_range(1..120), true)?;
        ensure!(self.pods.create(&mut connection, &pod)? == Some(201), "pod {} was not made", pod.name);
        self.pods.running(&mut connection, &pod)?;
        let (moment, free) = (self.random.random_range(STEPS), self.random.random_range(FREE_BYTES));
        let command = self.command(number)?;
        let (disk, pods) = (self.disk, &self.pods);
        self.writers.run(sandbox, &work, true, |objects, images| {
            work.until("the moment", |counts| counts.steps >= moment)?;
            disk.fill_but(free)?;
            objects.grow(&mut api.connect()?, LARGE_BYTES)?;
            disk.fill()?;
            work.until("a refusal of each", |counts| counts.objects_refused > 0 && counts.blobs_refused > 0)?;
            refused_clearly(command)?;
            pods.open_gate(&pod)?;
            if killed {
                work.stop();
                sandbox.kill(sandbox.daemon_pid()?)?;
                // What it needs it has set aside, and it says that there is no more.
                let said = sandbox.run(["daemon", "start"])?;
                let words = String::from_utf8_lossy(&said.stderr).into_owned();
                ensure!(said.status.success() && words.contains("nearly full"), "on a full disk: {words}");
            }
            disk.free()?;
            if killed {
                return Ok(());
            }
            objects.clear(&mut api.connect()?)?;
            let image = Image::random(&mut self.random, 1000..2000)?;
            images.push_one(&mut Registry::of(sandbox)?.connect()?, "v0", &image)
        })?;
        if killed {
            self.restarts += 1;
            sandbox.ok(["daemon", "start"])?;
        }
        self.refused_objects += work.counts().objects_refused;
        self.refused_blobs += work.counts().blobs_refused;
        self.after(&pod, killed)
    }

    /// With space again, and the daemon, if it was killed, started anew.
    fn after(&mut self, pod: &Pod, killed: bool) -> Result<()> {
        let sandbox = self.sandbox;
        self.writers.check(sandbox, killed)?;
        let api = api(sandbox)?;
        let mut connection = api.connect()?;
        if killed && let Some(objects) = self.writers.objects.last_mut() {
            objects.clear(&mut connection)?;
        }
        match self.pods.exit(&mut connection, pod)? {
            Some(Exit::True) => self.exits_true += 1,
            Some(Exit::Unknown) => self.exits_unknown += 1,
            None => bail!("pod {} is not there", pod.name),
        }
        ensure!(self.pods.delete(&mut connection, pod)?, "no answer");
        self.pods.gone(&mut connection, std::slice::from_ref(pod))?;
        self.pods.check_no_orphan(&api)?;
        self.writers.check(sandbox, killed)
    }

    /// A command that needs space: each time another one.
    fn command(&self, number: usize) -> Result<Command> {
        let version = self.hello.join("round.go");
        std::fs::write(
            &version,
            format!("package main\n\nvar round = {number}\n\nfunc init() {{ println(round) }}\n"),
        )?;
        let mut command = match number % 3 {
            0 => {
                let image = Image::random(&mut StdRng::seed_from_u64(number as u64), 300_000..400_000)?;
                let path = self.sandbox.work("load")?.join("image.tar");
                std::fs::write(&path, archive::tar(&image.layout("localhost/full:1"))?)?;
                let mut command = self.sandbox.command(["image", "load", "--input"]);
                command.arg(path);
                return Ok(command);
            }
            1 => self.sandbox.command(["build"]),
            _ => self.sandbox.command(["up"]),
        };
        command.arg(&self.hello);
        Ok(command)
    }
}

fn refused_clearly(command: Command) -> Result<()> {
    let name = format!("{:?}", command.get_args().next().unwrap_or_default());
    let said = output(command)?;
    ensure!(!said.status.success(), "gantry {name} succeeded on a full disk");
    clear(&said, &name)
}

/// One `error:` and a `hint:`.
fn clear(said: &std::process::Output, name: &str) -> Result<()> {
    let text = String::from_utf8_lossy(&said.stderr);
    let lines = |start: &str| text.lines().filter(|line| line.starts_with(start)).count();
    ensure!(lines("error:") == 1 && lines("hint:") > 0, "gantry {name} says no error: with a hint:: {text}");
    Ok(())
}
