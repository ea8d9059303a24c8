//! Reboots, power cuts, failing disks, stepping clocks: what was acknowledged is there, and everything serves again.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::Trial;
use super::lab::{Lab, PART, inside, write};
use crate::vm::frame::Frame;
use crate::vm::inside::STEPS;
use crate::vm::machine::Machine;

/// Disk writes after which the power goes, while the writer writes.
const WRITES: std::ops::Range<u64> = 1..2500;
/// The same, counted from power on: while kernel, systemd and daemon start.
const STARTING_WRITES: std::ops::Range<u64> = 1..1500;
/// In one of so many cuts it goes while the machine starts.
const STARTING_EVERY: usize = 5;
/// How long the writer may take to that moment.
const MOMENT: Duration = Duration::from_secs(900);
/// Disk writes that fail, one after the other.
const FAILING: std::ops::Range<u64> = 1..40;

pub(super) fn power(trial: &Trial) -> Result<String> {
    let lab = Lab::new(trial)?;
    let mut random = StdRng::seed_from_u64(trial.seed);
    let first = lab.prepared()?;
    first.power_off()?;
    let times = trial.times(50, 2);
    let (mut unflushed, mut lost, mut starting) = (0, 0, 0);
    for number in 0..times {
        let while_starting = number % STARTING_EVERY == STARTING_EVERY - 1;
        let cut = one_cut(&lab, &mut random, while_starting);
        let cut = cut.with_context(|| format!("power cut {number} of seed {}", trial.seed))?;
        unflushed += cut.unflushed;
        lost += cut.lost;
        starting += usize::from(while_starting);
        crate::say(&format!(
            "cut {number}: {} of {} unflushed sectors lost; {}",
            cut.lost, cut.unflushed, cut.said
        ));
    }
    let mut machine = lab.boot()?;
    let last = write(&mut machine, trial.seed).context("after the last power cut")?;
    machine.cut()?;
    lab.disk.cut(&mut random)?;
    let mut machine = lab.boot()?;
    inside(&mut machine, &["settled"])?;
    Ok(format!(
        "{times} power cuts, {starting} of them while the machine started: {lost} of {unflushed} unflushed sectors \
         lost; {last}; the program serves"
    ))
}

struct Cut {
    unflushed: u64,
    lost: u64,
    said: String,
}

fn one_cut(lab: &Lab, random: &mut StdRng, while_starting: bool) -> Result<Cut> {
    let said;
    if while_starting {
        lab.disk.cut_after(random.random_range(STARTING_WRITES));
        // It may fall silent before the agent is up, and then there is no machine.
        match lab.boot() {
            Ok(machine) => {
                lab.disk.silent(MOMENT);
                machine.cut()?;
                said = "while it started, after the agent".to_owned();
            }
            Err(_) => said = "while it started, before the agent".to_owned(),
        }
    } else {
        let mut machine = lab.boot()?;
        inside(&mut machine, &["settled"])?;
        said = write(&mut machine, random.random())?;
        lab.disk.cut_after(random.random_range(WRITES));
        if !lab.disk.silent(MOMENT) {
            bail!("the writer does not write: {}", told(&mut machine));
        }
        machine.cut()?;
    }
    let lost = lab.disk.cut(random)?;
    Ok(Cut { unflushed: lost.unflushed, lost: lost.lost, said })
}

/// What the agent has to say, without waiting for more.
fn told(machine: &mut Machine) -> String {
    let mut text = String::new();
    while let Ok(Some(frame)) = machine.next(Duration::from_secs(1)) {
        match frame {
            Frame::Output(bytes) | Frame::Error(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
            other => text.push_str(&format!("{other:?}")),
        }
    }
    text + &machine.console()
}

pub(super) fn reboot(trial: &Trial) -> Result<String> {
    let lab = Lab::new(trial)?;
    let mut machine = lab.prepared()?;
    let times = trial.times(5, 1);
    let mut said = String::new();
    for number in 0..times {
        let (unit, seed) = (format!("--unit=writer-{number}"), (trial.seed + number as u64).to_string());
        let before = lab.disk.writes();
        machine.ok(
            &["systemd-run", &unit, "/payload/bin/xtask", "vm", "inside", "ledger", "--seed", &seed],
            PART,
        )?;
        // In the middle of its writes.
        machine.ok(
            &["sh", "-c", "until journalctl -u 'writer-*' | grep -q checked; do sleep 0.2; done; sleep 2"],
            PART,
        )?;
        ensure!(lab.disk.writes() > before, "nothing was written before reboot {number}");
        machine.reboot().with_context(|| format!("reboot {number}"))?;
        machine = lab.boot()?;
        inside(&mut machine, &["settled"])?;
        said = inside(&mut machine, &["ledger", "--seed", &seed, "--writes", "0"])?;
    }
    machine.power_off()?;
    Ok(format!("{times} reboots under writes: the unit started, the program served again; {}", said.trim()))
}

pub(super) fn errors(trial: &Trial) -> Result<String> {
    let lab = Lab::new(trial)?;
    let mut random = StdRng::seed_from_u64(trial.seed);
    lab.prepared()?.power_off()?;
    let times = trial.times(10, 1);
    let mut refusals = Vec::new();
    let mut said = String::new();
    for number in 0..times {
        let mut machine = lab.boot()?;
        inside(&mut machine, &["settled"]).with_context(|| format!("before failing disk {number}"))?;
        said = write(&mut machine, random.random())?;
        lab.disk.fail(random.random_range(0..400), random.random_range(FAILING));
        let refused =
            refusal(&mut machine).with_context(|| format!("failing disk {number} of seed {}", trial.seed))?;
        crate::say(&format!("failing disk {number}: {refused}"));
        refusals.push(refused);
        machine.cut()?;
        // The disk is a good one again, and keeps what it acknowledged.
        lab.disk.fail(0, 0);
        lab.disk.cut(&mut random)?;
    }
    let mut machine = lab.boot()?;
    inside(&mut machine, &["settled"])?;
    let last = inside(&mut machine, &["ledger", "--seed", "1", "--writes", "50"])?;
    let clear = refusals.iter().filter(|text| text.contains("\"kind\":\"Status\"")).count();
    Ok(format!(
        "{times} failing disks: {} writes refused, {clear} of them with a Status; after a start on a good disk: {}; \
         before the last: {said}",
        refusals.len(),
        last.trim()
    ))
}

/// What the writer was told when the disk failed.
fn refusal(machine: &mut Machine) -> Result<String> {
    let mut said = String::new();
    loop {
        match machine.next(MOMENT).with_context(|| format!("nothing was refused: {}", machine.console()))? {
            Some(Frame::Output(bytes) | Frame::Error(bytes)) => {
                said.push_str(&String::from_utf8_lossy(&bytes))
            }
            Some(Frame::Exit(0)) => return Ok(said.trim().to_owned()),
            other => bail!("{other:?}: {said}"),
        }
    }
}

pub(super) fn unit(trial: &Trial) -> Result<String> {
    let lab = Lab::new(trial)?;
    let mut machine = lab.prepared()?;
    let said = inside(&mut machine, &["unit"])?;
    Ok(said.trim().replace('\n', "; "))
}

pub(super) fn clock(trial: &Trial) -> Result<String> {
    let lab = Lab::new(trial)?;
    let mut machine = lab.prepared()?;
    inside(&mut machine, &["clock"])?;
    Ok(format!("steps of {STEPS:?} s: the program served, scaled and kept its replicas; a new daemon too"))
}

pub(super) fn figures(trial: &Trial) -> Result<String> {
    let lab = Lab::new(trial)?;
    lab.prepared()?.power_off()?;
    let mut rows = Vec::new();
    for _ in 0..trial.times(5, 1) {
        let mut machine = lab.boot()?;
        rows.push(inside(&mut machine, &["took"])?.trim().to_owned());
        machine.power_off()?;
    }
    let mut machine = lab.boot()?;
    let deaths = inside(&mut machine, &["deaths", "--times", &trial.times(20, 2).to_string()])?;
    let accelerator = crate::vm::machine::Accelerator::detect();
    Ok(format!(
        "executed by {accelerator:?}: kernel's start → first answer, and of these ms since the daemon's start: {}; {}",
        rows.join(", "),
        deaths.trim()
    ))
}
