//! Rung `chaos`: while a program is deployed, scaled, rolled back, taken down and its Pods are deleted, something dies,
//! stops or fills up at a seeded moment. Afterwards everything is as it was wanted, and nothing else is there; and
//! whoever used the program beside it noticed only the death of the proxy.
//!
//! `--only kill-017` repeats one; `--only kill-0` plays the first hundred.

mod faults;
mod step;
mod world;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::faults::Acting;
use self::step::{Action, Step};
use self::world::{PROGRAM, Wanted, World};
use super::{Seen, Setting, fixtures};
use crate::load::{Load, Protocol, Target, until};
use crate::sandbox::Sandbox;

/// The disk of the state folder, which a fault fills.
const DISK_BYTES: u64 = 512 << 20;
/// Requests a second to the program that nobody touches.
const BESIDE_PER_SECOND: u64 = 50;
/// How soon after the fault everything has to be as it is wanted.
const SETTLED: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Counts {
    kills: usize,
    acknowledged: usize,
    late: Vec<String>,
    slowest: Duration,
    lost_by_proxy: u64,
}

pub(crate) fn run(setting: &Setting) -> Result<Seen> {
    let sandbox = Sandbox::on_disk(&setting.gantry, DISK_BYTES)?;
    fixtures::up_one(&sandbox, &fixtures::FIXTURES[0], 0)?;
    let hello = sandbox.address(fixtures::FIXTURES[0].name)?;
    let target = Target { protocol: Protocol::Get, address: hello, per_second: BESIDE_PER_SECOND };
    let runtime = super::runtime()?;
    let load = runtime.block_on(async { Load::start(&[target]) });
    let mut counts = Counts::default();
    let world = World::new(&sandbox)?;
    let times = setting.times(500, 15);
    for number in (0..times).filter(|number| setting.wants(&Step::name(*number))) {
        let mut step = Step::new(setting.seed, number, world.wanted()?.is_some());
        let said = step.to_string();
        one(&world, &mut step, &load, &runtime, &mut counts).with_context(|| said.clone())?;
        crate::say(&format!("  {said}"));
    }
    let report = runtime.block_on(load.stop());
    sandbox.end()?;
    let figure = format!(
        "{} kills: all settled, the slowest {:.1} s after the fault; {} commands acknowledged, none forgotten; nothing \
         leaked; {} requests beside them, 0 lost but {} while the proxy was dead or stopped",
        counts.kills,
        counts.slowest.as_secs_f64(),
        counts.acknowledged,
        report.done,
        counts.lost_by_proxy,
    );
    let figure = match counts.late.as_slice() {
        [] => figure,
        late => format!("{figure}; {} later than {} s: {}", late.len(), SETTLED.as_secs(), late.join("; ")),
    };
    Ok(Seen::new(counts.late.is_empty() && counts.kills > 0, figure))
}

fn one(
    world: &World,
    step: &mut Step,
    load: &Load,
    runtime: &tokio::runtime::Runtime,
    counts: &mut Counts,
) -> Result<()> {
    let (before, lost_before) = (world.wanted()?, load.lost());
    let mut acting = Acting::start(world, step)?;
    let goal = load.done() + load.lost() + step.requests;
    ensure!(
        runtime.block_on(until(60, || async { load.done() + load.lost() >= goal })),
        "the program beside it stands still"
    );
    faults::strike(world, step, &mut acting)?;
    let acknowledged = acting.end(world)?;
    let ended = Instant::now();
    world.settle().with_context(|| format!("the command was {}", acknowledged.said()))?;
    let took = ended.elapsed();
    let after = world.wanted()?;
    check(step, acknowledged.is_ok(), before.as_ref(), after.as_ref())?;
    world.no_orphan()?;
    let lost = load.lost() - lost_before;
    if step.fault.loses_nothing() {
        ensure!(lost == 0, "{lost} requests to the program beside it were lost");
    } else {
        counts.lost_by_proxy += lost;
    }
    counts.kills += 1;
    counts.acknowledged += usize::from(acknowledged.is_ok());
    counts.slowest = counts.slowest.max(took);
    if took > SETTLED {
        counts.late.push(format!("{step}: {:.1} s", took.as_secs_f64()));
    }
    Ok(())
}

/// No wanted state is lost: what was acknowledged is there; what was not is there whole or not at all.
fn check(step: &Step, acknowledged: bool, before: Option<&Wanted>, after: Option<&Wanted>) -> Result<()> {
    let version = step.number.to_string();
    let is_done = match step.action {
        Action::Up => after.is_some_and(|after| after.version == version),
        Action::Scale(replicas) => after.is_some_and(|after| after.replicas == u64::from(replicas)),
        Action::Rollback => after.is_some(),
        Action::Down => after.is_none(),
        Action::Delete => after == before,
    };
    ensure!(
        is_done || (!acknowledged && after == before),
        "{PROGRAM} was {before:?}, {:?} was {}, and is {after:?}",
        step.action,
        if acknowledged { "acknowledged" } else { "not acknowledged" }
    );
    // What the action is not about stays.
    if let (Action::Up, Some(before), Some(after)) = (step.action, before, after) {
        ensure!(before.replicas == after.replicas, "{} replicas became {}", before.replicas, after.replicas);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_has_to_be_there() {
        let wanted = |replicas, version: &str| Some(Wanted { replicas, version: version.into() });
        let mut step = Step::new(1, 7, false);
        let (old, new) = (wanted(2, "3"), wanted(2, "7"));
        assert!(check(&step, true, old.as_ref(), new.as_ref()).is_ok());
        assert!(check(&step, true, old.as_ref(), old.as_ref()).is_err(), "forgotten");
        assert!(check(&step, false, old.as_ref(), old.as_ref()).is_ok());
        assert!(check(&step, false, old.as_ref(), None).is_err(), "lost");
        assert!(check(&step, true, old.as_ref(), wanted(1, "7").as_ref()).is_err(), "replicas lost");
        step.action = Action::Scale(3);
        assert!(check(&step, false, old.as_ref(), wanted(1, "3").as_ref()).is_err(), "neither old nor new");
        step.action = Action::Down;
        assert!(check(&step, true, old.as_ref(), old.as_ref()).is_err());
        assert!(check(&step, false, old.as_ref(), None).is_ok());
    }
}
